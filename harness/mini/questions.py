"""Multiple-choice questions about a clip: five families, each asking about another kind of event.

Every option is a single word, so that an answer is "word letter" and no option hides a letter of its own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from harness.mini.world import COLOURS, COUNTS, GLYPHS, MOTIONS, PLACES, Clip

FAMILIES = {
    "needle": "brief: the colour of a glyph that flashed once",
    "order": "ordered: which of several glyphs flashed first",
    "count": "counted: how often a glyph flashed, zero to three times",
    "where": "fine in space: the quadrant in which a glyph flashed",
    "motion": "global: the ball's direction, a control that 16 frames suffice for",
}
TEXTS = {
    "needle": "What colour is the {}?",
    "order": "Which shape comes first?",
    "count": "How often does the {} appear?",
    "where": "Where is the {}?",
    "motion": "Which way does the ball move?",
}
MIN_OPTIONS = 2
MAX_OPTIONS = {"needle": 5, "order": 5, "count": 4, "where": 4, "motion": 5}
WORDS = (*GLYPHS, *COLOURS, *COUNTS, *PLACES, *MOTIONS)


@dataclass(frozen=True)
class Question:
    """A question and its options; `answer` is the index of the right one."""

    family: str
    text: str
    options: tuple[str, ...]
    answer: int

    @property
    def word(self) -> str:
        """The right option."""
        return self.options[self.answer]


def draw_question(rng: random.Random, clip: Clip, family: str, n_options: int) -> Question:
    """A question of a family about a clip, with 2 to MAX_OPTIONS[family] options in random order.

    The right option's place is uniform. Raises ValueError for an unknown family or another number of options.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown question family {family!r}: use one of {', '.join(FAMILIES)}")
    if not MIN_OPTIONS <= n_options <= MAX_OPTIONS[family]:
        allowed = f"{MIN_OPTIONS} to {MAX_OPTIONS[family]}"
        raise ValueError(f"a {family} question has {allowed} options, not {n_options}")
    text = TEXTS[family]
    if family == "order":
        shapes = rng.sample(clip.singles, n_options)
        first = min(shapes, key=clip.singles.index)  # singles are in the order of their flashes
        return Question(family, text, tuple(GLYPHS[g] for g in shapes), shapes.index(first))
    if family == "motion":
        return _question(rng, family, text, MOTIONS, clip.motion, n_options)
    if family == "count":
        count = rng.randrange(len(COUNTS))  # first the count: else "one" would be the best guess
        glyph = rng.choice([g for g, n in enumerate(clip.counts) if n == count])
        return _question(rng, family, text.format(GLYPHS[glyph]), COUNTS, count, n_options)
    flash = clip.flash_of(rng.choice(clip.singles))
    words, right = (COLOURS, flash.colour) if family == "needle" else (PLACES, flash.place)
    return _question(rng, family, text.format(GLYPHS[flash.glyph]), words, right, n_options)


def _question(rng: random.Random, family: str, text: str, words: Sequence[str], right: int, n_options: int) -> Question:
    """Put the right word at a uniform place among wrong ones drawn without replacement."""
    options = rng.sample([word for i, word in enumerate(words) if i != right], n_options - 1)
    answer = rng.randrange(n_options)
    options.insert(answer, words[right])
    return Question(family, text, tuple(options), answer)
