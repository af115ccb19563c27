"""The plug-in: batches against asking one by one, controls, and answers against lmms-eval's own parsers."""

import random
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmms_eval.tasks
import numpy as np
import pandas as pd
import pytest
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from lmms_eval.utils import load_yaml_config
from tiny import small_suite, tiny_checkpoint

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from harness import video
from harness.benchmarks import BENCHMARKS, LETTERS, benchmark_of_task
from harness.errors import UserError
from harness.journal import UNPARSED
from harness.lmms_plugin import SlowFastMLLM
from harness.lmms_requests import Question, cut, option_letter, plan_batches, read_questions
from harness.progress import SILENT
from harness.video import read_frames

FRAMES = 8


def requests_for(tasks: Iterable[str], model: SlowFastMLLM | None = None) -> tuple[list[Instance], dict]:
    """Requests about the small suite as lmms-eval makes them, and its `task_dict` (also set on `model`)."""
    suite = small_suite()
    requests, datasets = [], {}
    for task in tasks:
        benchmark = benchmark_of_task(task)
        table = suite / "hub" / benchmark.hub / (benchmark.config_of(task) or "default")
        docs = pd.read_parquet(next(table.glob("*.parquet"))).to_dict("records")
        docs = [{k: list(v) if isinstance(v, np.ndarray) else v for k, v in doc.items()} for doc in docs]
        datasets[task] = {benchmark.split: docs}

        def to_visual(doc: dict, benchmark: Any = benchmark, task: str = task) -> list[str]:
            return [str(suite / "home" / benchmark.video_of(doc, task))]

        for doc_id, doc in enumerate(docs):
            settings = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
            arguments = (doc["question"], settings, to_visual, doc_id, task, benchmark.split)
            metadata = {"task": task, "doc_id": doc_id, "repeats": 1}
            requests.append(Instance("generate_until", arguments, 0, metadata))
    if model is not None:
        model.task_dict = datasets
    return requests, datasets


def plugin(**arguments: Any) -> SlowFastMLLM:
    arguments = {"pretrained": tiny_checkpoint(), "frames": FRAMES, "progress": SILENT, **arguments}
    return SlowFastMLLM(**arguments)


def answers(model: SlowFastMLLM, tasks: Iterable[str] = ("videomme",)) -> dict:
    requests, _ = requests_for(tasks, model)
    model.generate_until(requests)
    return {key: entry.answer for key, entry in model.entries.items()}


@cache
def tiny_model() -> tuple[SlowFastForConditionalGeneration, SlowFastProcessor]:
    folder = tiny_checkpoint()
    model = SlowFastForConditionalGeneration.from_pretrained(folder).eval()
    return model, SlowFastProcessor.from_pretrained(folder)


def asked_alone(question: Question, slow: Path | None = None, seen: video.Decoded | None = None) -> str:
    """The model's answer to one question by `generate`: no batch, no padding, no shared features."""
    model, processor = tiny_model()
    seen = seen or read_frames(question.path, FRAMES)
    inputs = dict(processor(text=[question.prompt], videos=[seen.frames_THWC], times=[seen.times_T]))
    if slow is not None:
        other = read_frames(slow, FRAMES)
        shown = processor.watchable([other.frames_THWC], [other.times_T])["frames"]
        inputs["slow_features"] = model.encode_video(shown)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=question.max_new_tokens, do_sample=False)
    new_ids = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new_ids, skip_special_tokens=True).strip()


def test_lmms_eval_finds_the_plug_in() -> None:
    assert get_model("slowfast_mllm") is SlowFastMLLM


def test_batches_answer_as_single_questions_do() -> None:
    model = plugin(batch=7)
    requests, datasets = requests_for(["videomme"], model)
    texts = model.generate_until(requests)
    questions = read_questions(requests, datasets)
    alone = {key: asked_alone(question) for key, question in questions.items()}
    assert {key: entry.answer for key, entry in model.entries.items()} == alone
    assert len(set(alone.values())) > 3  # else the test could not tell rows apart
    for request, text in zip(requests, texts, strict=True):
        entry = model.entries[request.args[4], request.args[3]]
        assert text == (entry.letter if entry.failure else entry.answer)


def test_without_workers_a_video_is_decoded_when_its_batch_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plugin(batch=3, workers=0)
    order = []
    monkeypatch.setattr(video, "read_frames", lambda *args, **kw: order.append("decode") or read_frames(*args, **kw))
    generate = model._generate
    monkeypatch.setattr(model, "_generate", lambda *args: order.append("answer") or generate(*args))
    serial = answers(model)
    assert order == ["decode", "answer"] * 8  # 24 questions about 8 videos
    monkeypatch.undo()
    assert serial == answers(plugin(batch=3, workers=2))
    assert [watched.total for watched in model.watched] == [128] * 8


def test_each_video_of_a_batch_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plugin(batch=24)
    shapes = []
    encode = model.model.encode_video
    monkeypatch.setattr(
        model.model, "encode_video", lambda frames: shapes.append(tuple(frames.shape[:2])) or encode(frames)
    )
    answers(model)  # 24 questions about 8 videos
    assert shapes == [(1, FRAMES)] * 8


def test_no_answer_depends_on_the_other_requests_order() -> None:
    model = plugin()
    requests, _ = requests_for(["videomme"], model)
    straight = dict(zip([r.args[3] for r in requests], model.generate_until(requests), strict=True))
    shuffled = random.Random(0).sample(requests, len(requests))
    again = plugin()
    requests_for(["videomme"], again)
    assert dict(zip([r.args[3] for r in shuffled], again.generate_until(shuffled), strict=True)) == straight


def test_plan_of_batches() -> None:
    requests, datasets = requests_for(["videomme", "longvideobench_val_v"])
    questions = list(read_questions(requests, datasets).values())
    batches = plan_batches(questions, 5)
    assert batches == plan_batches(reversed(questions), 5)
    assert sorted(q.key for batch in batches for q in batch) == sorted(q.key for q in questions)
    assert all(len(batch) <= 5 and len({q.task for q in batch}) == 1 for batch in batches)
    for task in ("videomme", "longvideobench_val_v"):  # a video's questions side by side
        videos = [q.path for batch in batches for q in batch if q.task == task]
        assert sum(a != b for a, b in pairwise(videos)) == len(set(videos)) - 1


def test_other_video_shows_the_slow_tokens_of_the_next_video() -> None:
    tasks = ["videomme", "mvbench_action_antonym", "mvbench_state_change"]
    requests, datasets = requests_for(tasks)
    questions = read_questions(requests, datasets, other_video=True)
    for question in questions.values():
        assert question.other != question.path
        assert benchmark_of_task(question.task).name in question.other.name  # of the same benchmark
    answered = answers(plugin(control="other_video"))
    alone = {k: asked_alone(q, slow=q.other) for k, q in questions.items() if q.task == "videomme"}
    assert answered == alone
    assert answered != answers(plugin())


def test_gate_closed_is_the_model_without_warm_up() -> None:
    closed = plugin(control="gate_closed")
    opened = plugin()
    with torch.no_grad():
        for name, parameter in opened.model.named_parameters():
            if name.endswith("warmup"):
                parameter.zero_()
    answered = answers(closed)
    assert answered == answers(opened)
    assert answered != answers(plugin())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            {"control": "gates_closed"},
            "unknown control 'gates_closed': use one of none, gate_closed",
        ),
        ({"frames": "many"}, "frames='many': give a whole number"),
        ({"frames": 0}, "frames=0: give a whole number"),
        ({"workers": -1}, "workers=-1: give a whole number of at least 0"),
        ({"decoder": "decord"}, "unknown decoder 'decord': use one of pyav, torchcodec"),
        ({"frames": True}, "frames=True: give a whole number"),
        ({"frame": 16}, "unknown model argument 'frame': use one of pretrained, frames"),
        ({"batch_size": "many"}, "batch size 'many'"),
        ({"dtype": "int8"}, "dtype='int8': use one of bfloat16, float16, float32"),
        ({"device": "gpu"}, "device=gpu: torch knows no such device"),
        ({"prompts": "theirs"}, "unknown prompts 'theirs': use one of lmms_eval, official"),
        ({"sampling": "random"}, "unknown sampling rule 'random': use one of uniform, official"),
        ({"answer_tokens": 0}, "answer_tokens=0: give a whole number of at least 1"),
        ({"pretrained": "nowhere"}, "nowhere is no checkpoint folder"),
    ],
)
def test_a_bad_argument_is_one_sentence(arguments: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        plugin(**arguments)


def test_on_the_command_line_a_bad_argument_ends_the_process() -> None:
    with pytest.raises(SystemExit, match="slowfast_mllm: unknown control 'x'"):
        SlowFastMLLM.create_from_arg_string(f"pretrained={tiny_checkpoint()},control=x", {"batch_size": "1"})


@pytest.mark.parametrize(
    ("batch", "batch_size", "expected"),
    [
        (None, None, 32),
        (None, "1", 32),
        (None, 1, 32),
        (None, "auto", 32),
        (None, "8", 8),
        (4, "8", 4),
        (1, "1", 1),
    ],
)
def test_batch_size(batch: int | None, batch_size: Any, expected: int) -> None:
    assert plugin(batch=batch, batch_size=batch_size).batch == expected


def test_sampling_is_refused() -> None:
    requests, datasets = requests_for(["videomme"])
    requests[0].args[1]["temperature"] = 0.7
    with pytest.raises(UserError, match="answers are greedy here"):
        read_questions(requests, datasets)


def test_a_task_outside_the_registry_is_refused() -> None:
    requests, datasets = requests_for(["videomme"])
    strange = Instance("generate_until", (*requests[0].args[:4], "nextqa", "test"), 0, requests[0].metadata)
    with pytest.raises(UserError, match="'nextqa' belongs to no benchmark"):
        read_questions([strange], {"nextqa": {"test": datasets["videomme"]["test"]}})


def test_an_empty_answer_is_a_failure_and_scored_as_a_wrong_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plugin()
    monkeypatch.setattr(model, "_generate", lambda questions, videos: ["", "no letter", "red B"] * 8)
    requests, datasets = requests_for(["videomme"], model)
    texts = model.generate_until(requests)
    entries = [model.entries["videomme", i] for i in range(3)]
    assert [entry.failure for entry in entries] == ["empty answer", UNPARSED, ""]
    targets = [BENCHMARKS["videomme"].target_letter(doc) for doc in datasets["videomme"]["test"]]
    for text, target in list(zip(texts, targets, strict=True))[:2]:
        assert text in LETTERS[:4]
        assert text != target
    assert texts[2] == "red B"


@pytest.mark.parametrize(
    ("text", "until", "expected"),
    [(" red B\n\nso", ["\n\n"], "red B"), ("red B", [], "red B"), ("a.b;c", [";", "."], "a")],
)
def test_stop_strings(text: str, until: list[str], expected: str) -> None:
    assert cut(text, until) == expected


# --------------------------------------------------------------- answers, against lmms-eval's own parsers


@pytest.mark.parametrize(
    ("answer", "n_options", "letter"),
    [
        *[("red B", 4, "B"), ("red. B", 4, "B"), ("red (B)", 4, "B"), ("B. red", 4, "B"), ("red\nB", 4, "B")],
        *[("B", 2, "B"), ("red B.", 4, "B"), ("red B,", 4, "B"), ("C B", 4, "C"), ("C B", 2, "B")],
        *[("red", 4, None), ("red C", 2, None), ("red B)", 4, None), ("BED", 4, None), ("red b", 4, None)],
        *[("A: red", 4, None), ("", 4, None), ("B,.", 4, None), ("B\nred", 4, None)],
    ],
)
def test_option_letter_by_hand(answer: str, n_options: int, letter: str | None) -> None:
    assert option_letter(answer, n_options) == letter


def parsers() -> list[tuple[str, Callable, list[dict]]]:
    """(benchmark, the packaged task's process_results, docs of the small suite)."""
    package = Path(lmms_eval.tasks.__file__).parent
    found = []
    for benchmark in BENCHMARKS.values():
        task = benchmark.tasks[0]
        config = load_yaml_config(package / benchmark.definitions[task], mode="full")
        docs = requests_for([task])[1][task][benchmark.split]
        found.append((benchmark.name, config["process_results"], docs))
    return found


def test_what_has_an_option_letter_is_never_guessed_at() -> None:
    """Every parser reads such an answer the same, whatever the random state."""
    rng = random.Random(0)
    pieces = [*"ABCDE", "(A)", "(E)", *".,:)' \n", " ", "red", "The answer is"]
    checked = 0
    for name, process_results, docs in parsers():
        benchmark, doc = BENCHMARKS[name], docs[0]
        for _ in range(3000):
            answer = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
            if option_letter(answer, benchmark.n_options(doc)) is None:
                continue
            parsed = set()
            for seed in range(6):
                random.seed(seed)
                parsed.add(str(process_results(doc, [answer])[benchmark.metric]))
            assert len(parsed) == 1, (name, answer)
            checked += 1
    assert checked > 3000


def test_word_and_letter_score_as_the_letter_says() -> None:
    for name, process_results, docs in parsers():
        benchmark = BENCHMARKS[name]
        for doc in docs:
            for letter in LETTERS[: benchmark.n_options(doc)]:
                value = process_results(doc, [f"red {letter}"])[benchmark.metric]
                assert benchmark.is_correct(value) == (letter == benchmark.target_letter(doc)), (name, doc, letter)
