"""Questions: right by the clip's facts, fair to guessers, with every option a different single word."""

import random
import time

import numpy as np
import pytest

from harness.mini.questions import FAMILIES, MAX_OPTIONS, TEXTS, WORDS, Question, draw_question
from harness.mini.world import COLOURS, COUNTS, GLYPHS, MOTIONS, PLACES, Clip, draw_clip

CLIPS = [draw_clip(3_000_000, index) for index in range(50)]
KINDS = [(family, n) for family in FAMILIES for n in range(2, MAX_OPTIONS[family] + 1)]


def asked_glyph(question: Question) -> int:
    (name,) = [name for name in GLYPHS if f" the {name}" in question.text]
    return GLYPHS.index(name)


def truth(question: Question, clip: Clip) -> str:
    """The answer from the clip's list of flashes alone."""
    if question.family == "motion":
        return MOTIONS[clip.motion]
    if question.family == "order":
        names = [GLYPHS[flash.glyph] for flash in clip.flashes]
        assert all(names.count(option) == 1 for option in question.options)
        return next(name for name in names if name in question.options)
    flashes = [flash for flash in clip.flashes if flash.glyph == asked_glyph(question)]
    if question.family == "count":
        return COUNTS[len(flashes)]
    (flash,) = flashes
    return COLOURS[flash.colour] if question.family == "needle" else PLACES[flash.place]


@pytest.mark.parametrize(("family", "n_options"), KINDS)
def test_the_answer_is_right_and_the_options_differ(family, n_options):
    rng = random.Random(0)
    for clip in CLIPS:
        for _ in range(5):
            question = draw_question(rng, clip, family, n_options)
            assert question.word == truth(question, clip)
            assert question.family == family
            assert len(question.options) == len(set(question.options)) == n_options
            assert set(question.options) <= set(WORDS)


@pytest.mark.parametrize(("family", "n_options"), KINDS)
def test_the_right_place_is_uniform(family, n_options):
    rng = random.Random(1)
    draws = 4000
    places = [draw_question(rng, CLIPS[i % 50], family, n_options).answer for i in range(draws)]
    expected = draws / n_options
    assert np.abs(np.bincount(places, minlength=n_options) - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize(("family", "n_options"), [kind for kind in KINDS if kind[0] != "order"])
def test_no_word_is_a_better_guess(family, n_options):
    """Over many clips each word is right equally often when offered (order: by the glyphs' symmetry)."""
    rng = random.Random(2)
    offered, right = dict.fromkeys(WORDS, 0), dict.fromkeys(WORDS, 0)
    for index in range(3000):
        question = draw_question(rng, draw_clip(3_000_001, index), family, n_options)
        for option in question.options:
            offered[option] += 1
        right[question.word] += 1
    for word in WORDS:
        if offered[word]:
            deviation = np.sqrt(offered[word] / n_options * (1 - 1 / n_options))
            assert abs(right[word] - offered[word] / n_options) < 5 * deviation, word


def test_words_parse_as_single_words():
    """A stand-alone letter A to E inside an option would be taken for the answer."""
    assert len(WORDS) == len(set(WORDS))
    assert all(word.isalpha() and word.islower() and len(word) > 1 for word in WORDS)
    assert set(TEXTS) == set(FAMILIES) == set(MAX_OPTIONS)


def test_a_wrong_request_is_refused():
    rng = random.Random(0)
    with pytest.raises(ValueError, match="needle, order, count, where, motion"):
        draw_question(rng, CLIPS[0], "colour", 4)
    with pytest.raises(ValueError, match="2 to 4 options, not 5"):
        draw_question(rng, CLIPS[0], "where", 5)
    with pytest.raises(ValueError, match="2 to 5 options, not 1"):
        draw_question(rng, CLIPS[0], "order", 1)


def test_questions_are_a_function_of_the_generator():
    first, second = ([draw_question(random.Random(5), clip, "needle", 4) for clip in CLIPS] for _ in "ab")
    assert first == second


def test_drawing_is_quick():
    """15 microseconds each are promised, for training draws many; a busy machine gets four times that."""
    rng = random.Random(0)
    start = time.process_time()
    for i in range(5000):
        draw_question(rng, CLIPS[i % 50], "needle", 4)
    assert (time.process_time() - start) / 5000 < 60e-6
