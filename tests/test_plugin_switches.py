"""The plug-in's switches: rules that give fewer frames, the official prompts, precision, open answers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_plugin import FRAMES, answers, asked_alone, plugin, requests_for

from harness import video
from harness.benchmarks import benchmark_of_task
from harness.controls import spread_to, together
from harness.journal import UNPARSED, Entry
from harness.lmms_requests import Question, entry_of, read_questions, text_to_score
from harness.processes import Peers
from harness.video import read_frames


class Few:
    """A rule that gives so many frames, whatever is wanted."""

    formula = "as the test says"

    def __init__(self, count: int) -> None:
        self.count = count

    def indices(self, total: int, fps: Any, frames: int) -> np.ndarray:
        return np.linspace(0, total - 1, self.count).round().astype(int)


@pytest.fixture
def uneven(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], video.Decoded]]:
    """Videos give 1 to 6 frames, each its own number; what reads one of them."""
    requests, datasets = requests_for(["videomme"])
    docs = datasets["videomme"][benchmark_of_task("videomme").split]
    paths = sorted({request.args[2](docs[request.args[3]])[0] for request in requests})
    counts = {Path(path): 1 + number % 6 for number, path in enumerate(paths)}

    def read(path: Path, *settings: Any) -> video.Decoded:
        return read_frames(path, FRAMES, sampling=Few(counts[Path(path)]))

    monkeypatch.setattr(video, "_frames_or_error", read)
    return read


def test_a_rule_may_give_fewer_frames_than_asked(uneven: Callable) -> None:
    """Side by side in a batch, each video with the placeholders of its own frames."""
    model = plugin(batch=7, sampling="official")
    requests, datasets = requests_for(["videomme"], model)
    model.generate_until(requests)
    questions = read_questions(requests, datasets)
    alone = {key: asked_alone(question, seen=uneven(question.path)) for key, question in questions.items()}
    assert {key: entry.answer for key, entry in model.entries.items()} == alone
    assert {len(watched.indices) for watched in model.watched} == {1, 2, 3, 4, 5, 6}
    assert len(set(alone.values())) > 3


@pytest.mark.parametrize("control", ["other_video", "shuffled", "blank_video", "other_question"])
def test_controls_of_videos_of_different_lengths(uneven: Callable, control: str) -> None:
    batched, alone = (answers(plugin(batch=batch, control=control, answer_tokens=2)) for batch in (7, 1))
    assert batched == alone
    assert len(set(alone.values())) > 3


def test_videos_are_put_together_or_listed() -> None:
    long, short = torch.rand(1, 3, 2), torch.rand(1, 2, 2)
    assert torch.equal(together([long, long]), torch.cat([long, long]))
    listed = together([long, short])
    assert [tensor.shape for tensor in listed] == [(3, 2), (2, 2)]
    assert torch.equal(listed[1], short[0])
    assert spread_to(long, 3) is long
    assert torch.equal(spread_to(long, 2), long[:, [0, 2]])
    assert torch.equal(spread_to(short, 3), short[:, [0, 0, 1]])


def test_official_prompts_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = plugin(prompts="official", batch=24), []

    def generate(questions: list[Question], videos: dict) -> list[str]:
        asked.extend(questions)
        return ["red B"] * len(questions)

    monkeypatch.setattr(model, "_generate", generate)
    requests, _ = requests_for(["longvideobench_val_v"], model)
    model.generate_until(requests)
    packaged = {request.args[3]: request.args[0] for request in requests}
    assert len(asked) == len(requests)
    for question in asked:
        assert question.prompt.startswith("Select the best answer to the following multiple-choice question")
        assert question.prompt.endswith(packaged[question.doc_id])
        assert (question.max_new_tokens, question.until) == (256, ())
    short = plugin(prompts="official", answer_tokens=3)
    requests, _ = requests_for(["longvideobench_val_v"], short)
    assert {question.max_new_tokens for question in short._questions(requests, Peers()).values()} == {3}


@pytest.mark.parametrize(
    ("task", "letter", "failure", "answer", "given"),
    [
        ("videomme", "B", "", "red B", "red B"),
        ("videomme", "B", UNPARSED, "red", "B"),
        ("tempcompass_multi_choice", "B", "", "red B", "B"),  # else a judge is asked
        ("activitynetqa", "", "", "a red ball", "a red ball"),
        ("activitynetqa", "", "missing video", None, "The question cannot be answered: the video was not seen."),
    ],
)
def test_what_lmms_eval_is_given(task: str, letter: str, failure: str, answer: str | None, given: str) -> None:
    assert text_to_score(Entry(task, 0, "a.mp4", answer, letter, failure)) == given


def test_an_open_answer_has_no_letter() -> None:
    question = Question("activitynetqa", 0, "what?", Path("a.mp4"), "", None, "", 0, 8, ())
    entry = entry_of(question, "a red ball", None, 0.0)
    assert (entry.letter, entry.failure, entry.answer) == ("", "", "a red ball")
    assert entry_of(question, "", None, 0.0).failure == "empty answer"


def test_a_precision_is_the_models() -> None:
    model = plugin(dtype="bfloat16", batch=24)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    found = answers(model)
    assert len(set(found.values())) > 3
    assert found != answers(plugin(batch=24))  # the random model's answers hang on a hair
