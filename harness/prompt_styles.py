"""How a question is put to a model: lmms-eval's packaged prompts, or the official evaluation's, by name.

The official repository carries its own copy of a few tasks. There the question is led in by a sentence, MLVU's is
laid out anew, and up to 256 tokens are generated whatever the task asks for. Tasks that it does not copy are asked
as packaged. A new style is a class with these methods and a line in STYLES.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from harness.errors import UserError

Doc = dict[str, Any]

LEAD = "Select the best answer to the following multiple-choice question based on the video."
REQUEST = "Answer with the option's letter from the given choices directly."
OFFICIAL_TOKENS = 256
"""The official model class looks the task's settings up as attributes of a dictionary, finds none, and generates
with its defaults: greedily, at most so many tokens, without stop strings."""


class Style(Protocol):
    """A way of asking the questions of lmms-eval's tasks."""

    def prompt(self, task: str, doc: Doc, packaged_text: str) -> str:
        """The text to ask about a doc, given the packaged task's own; UserError for a doc that cannot be laid out."""

    def answer_tokens(self, task: str, packaged: int) -> int:
        """How many tokens an answer may have, given the packaged task's own number."""

    def stops(self, task: str, packaged: Sequence[str]) -> tuple[str, ...]:
        """The strings that end an answer, given the packaged task's own."""


class Packaged:
    """Everything as lmms-eval's packaged task has it."""

    def prompt(self, task: str, doc: Doc, packaged_text: str) -> str:
        """The packaged text."""
        return packaged_text

    def answer_tokens(self, task: str, packaged: int) -> int:
        """The packaged number."""
        return packaged

    def stops(self, task: str, packaged: Sequence[str]) -> tuple[str, ...]:
        """The packaged strings."""
        return tuple(packaged)


class Official:
    """As the official repository asks: SHI-Labs/Slow-Fast-Video-Multimodal-LLM, folder lmms_eval."""

    def prompt(self, task: str, doc: Doc, packaged_text: str) -> str:
        """The packaged text, led in or laid out anew where the official tasks differ."""
        return PROMPTS[task](doc, packaged_text) if task in PROMPTS else packaged_text

    def answer_tokens(self, task: str, packaged: int) -> int:
        """OFFICIAL_TOKENS, whatever the task."""
        return OFFICIAL_TOKENS

    def stops(self, task: str, packaged: Sequence[str]) -> tuple[str, ...]:
        """None."""
        return ()


def _led_in(doc: Doc, packaged_text: str) -> str:
    return f"{LEAD}\n{packaged_text}"


def _mlvu(doc: Doc, packaged_text: str) -> str:
    """The question on one line, ended by ? if by nothing else, then the options as "A. ..." lines.

    As the official task reads a doc: of its lines that are not empty, the first asks and the next four offer.
    """
    question, *options = [line for line in doc["question"].split("\n") if line][:5]
    lettered = [re.sub(r"^(\s*)\(([A-D])\)", r"\1\2.", option) for option in options]
    if not options or any(new == old for new, old in zip(lettered, options, strict=True)):
        raise UserError(
            f"MLVU's question {doc['question']!r} is no line with up to four lines of options (A) to (D) below it, "
            "as prompts=official needs it; use prompts=lmms_eval, or restore the table"
        )
    asked = question if question.endswith((".", "?")) else f"{question}?"
    return "\n".join([LEAD, asked, *lettered, REQUEST])


PROMPTS: dict[str, Callable[[Doc, str], str]] = {
    "mlvu_dev": _mlvu,
    "longvideobench_val_v": _led_in,
    "perceptiontest_val_mc": _led_in,
    "tempcompass_multi_choice": _led_in,
}
"""The official prompts that differ from the packaged ones, by lmms-eval task."""

STYLES: dict[str, Style] = {"lmms_eval": Packaged(), "official": Official()}
DEFAULT = "lmms_eval"


def find_style(name: str) -> Style:
    """A style by its name in STYLES; UserError if there is none."""
    if name not in STYLES:
        raise UserError(f"unknown prompts {name!r}: use one of {', '.join(STYLES)}")
    return STYLES[name]
