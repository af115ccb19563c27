"""A conversation as tokens and labels: what evaluation will ask, token by token, with a loss on the answers alone.

<|im_start|>user <video> question <|im_end|> <|im_start|>assistant | answer <|im_end|> | <|im_start|>user ...
prompt: no loss                                                    | learned           | the next prompt
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from architectures import SlowFastProcessor
from architectures.processing import IGNORED, VIDEO_TOKEN, spread
from harness.finetune.annotations import Example

TURN_END = "<|im_end|>"


class ExampleError(Exception):
    """A conversation that cannot be learned from: where it is and why, in a sentence."""


@dataclass(frozen=True)
class Piece:
    """One turn: the tokens of its prompt, with one placeholder for each of its `videos`, and of its answer."""

    prompt: list[int]
    answer: list[int]
    videos: int

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Tokens:
    """A conversation's turns in order."""

    pieces: tuple[Piece, ...]

    @property
    def input_ids(self) -> list[int]:
        """All tokens, one placeholder a video."""
        return [token for piece in self.pieces for token in piece.ids]

    @property
    def labels(self) -> list[int]:
        """The answers' tokens; -100 elsewhere."""
        return [label for piece in self.pieces for label in [IGNORED] * len(piece.prompt) + piece.answer]

    def spread(self, placeholder: int, fast_counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """`input_ids` and `labels` with a placeholder for every fast token of each video."""
        ids, labels = self.input_ids, self.labels
        is_video = [token == placeholder for token in ids]
        return spread(ids, is_video, fast_counts, placeholder), spread(labels, is_video, fast_counts, IGNORED)


def tokenize(example: Example, processor: SlowFastProcessor) -> Tokens:
    """A conversation's tokens.

    The first prompt is the processor's own of that question, under the entry's system prompt if it has one; later
    ones go on in the same form. Prompt and answer are tokenised apart, for at evaluation the answer is not there.
    """
    first = with_system(processor, processor.system if example.system is None else example.system)
    later = with_system(processor, None)
    pieces = []
    for number, turn in enumerate(example.turns):
        if number:
            prompt = continued(processor, "\n" + later.chat(turn.question, turn.places))
        else:
            prompt = processor.tokenize(first.chat(turn.question, turn.places))
        pieces.append(Piece(prompt, continued(processor, turn.answer + TURN_END), turn.places))
    return Tokens(tuple(pieces))


def with_system(processor: SlowFastProcessor, system: str | None) -> SlowFastProcessor:
    """The processor under another system prompt."""
    other = copy.copy(processor)
    other.system = system
    return other


def continued(processor: SlowFastProcessor, text: str) -> list[int]:
    """Ids of a text within a sequence: as the processor's `tokenize`, but without a token for the beginning."""
    ids: list[int] = []
    for number, part in enumerate(text.split(VIDEO_TOKEN)):
        ids += [processor.placeholder()] if number else []
        ids += processor.tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
    return ids


def fit(tokens: Tokens, fast_counts: Sequence[int], max_length: int | None, source: str = "") -> Tokens:
    """The conversation in at most `max_length` tokens, its videos' `fast_counts` included.

    The last turns go first, up to the last one that shows a video; then the end of the last answer that is left.
    A question or a video is never cut: where not one token of an answer would be left, an ExampleError.
    """
    pieces, shown = list(tokens.pieces), sum(fast_counts) - len(fast_counts)
    if max_length is None:
        return tokens
    while len(pieces) > 1 and not pieces[-1].videos and _length(pieces) + shown > max_length:
        pieces.pop()
    length = _length(pieces) + shown
    beyond, answer = length - max_length, len(pieces[-1].answer)
    if beyond >= answer:
        raise ExampleError(
            f"{source}: question and videos have {length - answer} tokens, which leaves no room for an answer in "
            f"max_length={max_length}"
        )
    if beyond > 0:
        last = pieces[-1]
        pieces[-1] = Piece(last.prompt, last.answer[:-beyond], last.videos)
    return Tokens(tuple(pieces))


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)
