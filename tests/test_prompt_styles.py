"""Prompts of the official evaluation, against texts written down by hand from its rules."""

import pytest

from harness.benchmarks import all_benchmarks
from harness.errors import UserError
from harness.prompt_styles import DEFAULT, PROMPTS, STYLES, find_style

OFFICIAL, PACKAGED = STYLES["official"], STYLES["lmms_eval"]

MLVU_DOC = {"question": "What colour is the hat\n(A) red\n(B) blue\n(C) green\n(D) black", "answer": "B"}
MLVU_PROMPT = """Select the best answer to the following multiple-choice question based on the video.
What colour is the hat?
A. red
B. blue
C. green
D. black
Answer with the option's letter from the given choices directly."""


def mlvu(question: str) -> list[str]:
    return OFFICIAL.prompt("mlvu_dev", {"question": question}, "not used").split("\n")


def test_mlvu_is_laid_out_anew() -> None:
    assert OFFICIAL.prompt("mlvu_dev", MLVU_DOC, "not used") == MLVU_PROMPT


@pytest.mark.parametrize(
    ("written", "asked"),
    [("Who", "Who?"), ("Who?", "Who?"), ("Name him.", "Name him."), ("Go!", "Go!?"), ("Who ", "Who ?")],
    ids=["none", "question-mark", "full-stop", "other-mark", "space"],
)
def test_mlvu_question_marks(written: str, asked: str) -> None:
    assert mlvu(f"{written}\n(A) he\n(B) she\n(C) it\n(D) they")[1] == asked


def test_mlvu_lines_that_count() -> None:
    """Empty lines do not, nor what comes after four options; fewer options are no error."""
    assert mlvu("Who?\n\n(A) he\n\n(B) she (A) or it\n")[1:-1] == ["Who?", "A. he", "B. she (A) or it"]
    assert mlvu("Who?\n(A) 1\n(B) 2\n(C) 3\n(D) 4\nand more")[1:-1] == ["Who?", "A. 1", "B. 2", "C. 3", "D. 4"]


@pytest.mark.parametrize("question", ["Who?", "Who?\nA. he\nB. she", "Who was it\nin the end?\n(A) he\n(B) she"])
def test_mlvu_questions_that_are_laid_out_otherwise_are_refused(question: str) -> None:
    with pytest.raises(UserError, match="use prompts=lmms_eval"):
        mlvu(question)


@pytest.mark.parametrize(
    ("task", "packaged", "expected"),
    [
        pytest.param(
            "longvideobench_val_v",
            "Who?\nA. he\nB. she\nAnswer with the option's letter from the given choices directly.\n",
            "Select the best answer to the following multiple-choice question based on the video.\n"
            "Who?\nA. he\nB. she\nAnswer with the option's letter from the given choices directly.\n",
            id="longvideobench",
        ),
        pytest.param(
            "perceptiontest_val_mc",
            "Who?\nA. he\nB. she\nC. it\nAnswer with the option's letter from the given choices directly.",
            "Select the best answer to the following multiple-choice question based on the video.\n"
            "Who?\nA. he\nB. she\nC. it\nAnswer with the option's letter from the given choices directly.",
            id="perceptiontest",
        ),
        pytest.param(
            "tempcompass_multi_choice",
            "Who?\nA. he\nB. she\nPlease directly give the best option:",
            "Select the best answer to the following multiple-choice question based on the video.\n"
            "Who?\nA. he\nB. she\nPlease directly give the best option:",
            id="tempcompass",
        ),
    ],
)
def test_questions_that_are_led_in(task: str, packaged: str, expected: str) -> None:
    assert OFFICIAL.prompt(task, {}, packaged) == expected


def test_all_other_tasks_are_asked_as_packaged() -> None:
    tasks = [task for benchmark in all_benchmarks().values() for task in benchmark.tasks]
    assert set(PROMPTS) < set(tasks)
    for task in set(tasks) - set(PROMPTS):
        assert OFFICIAL.prompt(task, {"question": "Who?"}, "any text\n") == "any text\n"


def test_the_default_changes_nothing() -> None:
    assert find_style(DEFAULT) is PACKAGED
    for benchmark in all_benchmarks().values():
        for task in benchmark.tasks:
            assert PACKAGED.prompt(task, MLVU_DOC, "Question: (") == "Question: ("
            assert PACKAGED.answer_tokens(task, 16) == 16
            assert PACKAGED.stops(task, ["\n\n"]) == ("\n\n",)


def test_official_answers_end_by_themselves_or_after_256_tokens() -> None:
    for task in ("mlvu_dev", "longvideobench_val_v", "activitynetqa"):
        assert OFFICIAL.answer_tokens(task, 16) == 256
        assert OFFICIAL.stops(task, ["\n\n"]) == ()


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(UserError, match="unknown prompts 'llava': use one of lmms_eval, official"):
        find_style("llava")
