"""An endless stream of questions about the pool's clips, in the prompt formats that lmms-eval will use."""

import random
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from harness.benchmarks import BENCHMARKS
from harness.mini.questions import FAMILIES, MAX_OPTIONS, MIN_OPTIONS, TEXTS, WORDS, Question, draw_question
from harness.mini.schema import PromptTemplate, prompt_template
from harness.mini.tokenizer import END, LETTERS, START, build_tokenizer
from harness.mini.world import COLOURS, COUNTS, GLYPHS, MOTIONS, PLACES, Clip

TEXT_ONLY = "text"  # an auxiliary family: which option says a given word; it needs no video
TEXT_ONLY_TEXT = "Which option says {}?"
ANSWER_LENGTH = 3  # word, letter, end of turn


def templates(family: str) -> list[PromptTemplate]:
    """The prompt templates of a family's questions: every benchmark, every number of options."""
    most = MAX_OPTIONS.get(family, 4)
    counts = range(MIN_OPTIONS, most + 1)
    return [prompt_template(b.name, n) for b in BENCHMARKS.values() for n in counts if n in b.option_counts]


def suite_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the mini scale: the words of all questions, the instructions of all prompts."""
    every = {template.benchmark + str(template.n_options): template for f in FAMILIES for template in templates(f)}
    instructions = [text for t in every.values() for text in (t.boilerplate[0], t.boilerplate[-1])]
    between = [text for t in every.values() for text in t.boilerplate[1:-1]]
    questions = [text.format("") for text in (*TEXTS.values(), TEXT_ONLY_TEXT)]
    return build_tokenizer([*questions, *between, *WORDS], instructions)


@dataclass(frozen=True)
class Branch:
    """One tokenised question with its answer; `question_end` is the place of the question's last token."""

    family: str
    ids: list[int]
    question_end: int


class QuestionStream:
    """Draws questions about clips and tokenises them as chat turns with their answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.templates = {family: templates(family) for family in (*FAMILIES, TEXT_ONLY)}

    def draw(self, rng: random.Random, clip: Clip, family: str) -> tuple[str, Question, str]:
        """A question of a family as (family, question, prompt)."""
        template = rng.choice(self.templates[family])
        if family == TEXT_ONLY:
            question = self.text_only(rng, template.n_options)
        else:
            question = draw_question(rng, clip, family, template.n_options)
        return family, question, template.render(question)

    @staticmethod
    def text_only(rng: random.Random, n_options: int) -> Question:
        """Which of some words of one kind is the given one?"""
        words = rng.sample(rng.choice((GLYPHS, COLOURS, COUNTS, PLACES, MOTIONS)), n_options)
        answer = rng.randrange(n_options)
        return Question(TEXT_ONLY, TEXT_ONLY_TEXT.format(words[answer]), tuple(words), answer)

    def branches(self, drawn: list[tuple[str, Question, str]]) -> list[Branch]:
        """Tokenises drawn questions: the prompt, the turn's end, the answer "word letter", the end."""
        turns = [
            f"{prompt}{END}\n{START}assistant\n{question.word} {LETTERS[question.answer]}{END}"
            for _, question, prompt in drawn
        ]
        ids = self.tokenizer(turns)["input_ids"]
        return [
            Branch(family, turn, self.end_of(question.text, turn))
            for (family, question, _), turn in zip(drawn, ids, strict=True)
        ]

    def end_of(self, text: str, ids: list[int]) -> int:
        """The place in `ids` of the last token of `text`."""
        wanted = self.question_ids(text)
        for start in range(len(ids) - len(wanted) + 1):
            if ids[start : start + len(wanted)] == wanted:
                return start + len(wanted) - 1
        raise ValueError(f"The question '{text}' does not stand in its own prompt.")

    def question_ids(self, text: str) -> list[int]:
        """Tokens of a bare question; there are few different ones, each is tokenised once."""
        if text not in self._known:
            self._known[text] = self.tokenizer(text)["input_ids"]
        return self._known[text]

    @cached_property
    def _known(self) -> dict[str, list[int]]:
        return {}
