"""Several processes on one evaluation: the same answers as one, a journal each, and launches that are none."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_plugin import FRAMES, plugin, requests_for
from tiny import small_suite, tiny_checkpoint

from harness import lmms_plugin, processes
from harness.errors import UserError
from harness.evaluate import evaluate
from harness.journal import Entry, Journal, part_of, parts_of
from harness.lmms_plugin import SlowFastMLLM
from harness.processes import Peers, check_launch, death, device_for, environment, evaluate_in_processes, launcher, main
from harness.progress import Event, Progress

TASKS = ("videomme", "mvbench_action_antonym", "mvbench_state_change")  # of the last two, a process gets nothing
LAUNCHED = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"),
    *("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
)


@pytest.fixture(autouse=True)
def _started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a shell, whoever runs the tests."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------- two processes, as two threads of this one


class Threads(Peers):
    """Peers that are threads of this process."""

    meeting: threading.Barrier
    things: list

    def gather(self, thing: Any) -> list:
        self.things[self.rank] = thing
        self.meeting.wait(timeout=240)
        everyone = list(self.things)
        self.meeting.wait(timeout=240)
        return everyone


def peers_of(world: int) -> list[Threads]:
    meeting, things = threading.Barrier(world), [None] * world
    peers = [Threads(rank, world) for rank in range(world)]
    for peer in peers:
        object.__setattr__(peer, "meeting", meeting)
        object.__setattr__(peer, "things", things)
    return peers


def answered_by(world: int, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> tuple[list[SlowFastMLLM], list[list]]:
    """The plug-ins of so many processes that have answered TASKS, and the questions that each one asked its model."""
    models = [plugin(batch=7, workers=0, **arguments) for _ in range(world)]
    requests = [requests_for(TASKS, model)[0] for model in models]
    asked: list[list] = [[] for _ in range(world)]
    failed: list[Exception] = []
    here = threading.local()

    def run(rank: int, peers: Peers) -> list[str]:
        here.peers, model = peers, models[rank]
        answer = model._answer
        model._answer = lambda batch, videos: asked[rank].extend(q.key for q in batch) or answer(batch, videos)
        own = [request for request in requests[rank] if request.args[3] % world == rank]  # lmms-eval's own sharding
        own += own[-1:]  # and padding
        try:
            texts = model.generate_until(own)
        except Exception as error:
            failed.append(error)
            peers.meeting.abort()  # nobody waits for this one
            raise
        return [(request.args[4], request.args[3], text) for request, text in zip(own, texts, strict=True)]

    with monkeypatch.context() as patch, ThreadPoolExecutor(world) as pool:
        patch.setattr(lmms_plugin.Peers, "here", classmethod(lambda cls: here.peers))
        patch.setattr(lmms_plugin, "code_hash", lambda modules: "-")  # Python 3.11's parser knows no threads
        futures = [pool.submit(run, rank, peers) for rank, peers in enumerate(peers_of(world))]
    if failed:
        raise failed[0]
    given = [future.result() for future in futures]
    for model in models:
        model.given = {(task, doc_id): text for each in given for task, doc_id, text in each}
    return models, asked


def entries(model: SlowFastMLLM) -> dict:
    return {key: replace(entry, seconds=0.0) for key, entry in model.entries.items()}


def records(path: Path) -> list[dict]:
    """A journal's different lines without what differs from run to run; a video may have been read for two batches."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{**line.get("watched", line), "seconds": 0.0} for line in lines]
    return [json.loads(line) for line in sorted({json.dumps(line, sort_keys=True) for line in lines})]


@pytest.mark.parametrize("control", ["none", "other_video"])
def test_two_processes_answer_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str) -> None:
    (alone,), _ = answered_by(1, monkeypatch, journal=tmp_path / "one" / "journal.jsonl", control=control)
    both, asked = answered_by(2, monkeypatch, journal=tmp_path / "two" / "journal.jsonl", control=control)
    assert entries(both[0]) == entries(both[1]) == entries(alone)
    assert len({entry.answer for entry in alone.entries.values()}) > 3  # else nothing could be mixed up
    assert both[0].given == alone.given
    assert sorted(asked[0] + asked[1]) == sorted(alone.entries)  # each by one process, once
    assert abs(len(asked[0]) - len(asked[1])) <= 7
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["journal.jsonl"]
    assert records(tmp_path / "two" / "journal.jsonl") == records(tmp_path / "one" / "journal.jsonl")
    assert both[0].watched == both[1].watched


@pytest.mark.parametrize("world", [1, 2])
def test_what_others_left_is_not_answered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Parts of three processes that were killed, one in the middle of a line and one in its first."""
    path = tmp_path / "journal.jsonl"
    (alone,), _ = answered_by(1, monkeypatch, journal=path)
    header, *lines = path.read_bytes().splitlines(keepends=True)
    answers = [line for line in lines if b'"watched"' not in line]
    first, second = answers[2:9], answers[9:16]  # two whole batches; those of MVBench come first
    path.write_bytes(b"".join([header, *lines[: lines.index(answers[0])]]))
    part_of(path, 0, 3).write_bytes(b"".join([header, *first]))
    part_of(path, 1, 3).write_bytes(b"".join([header, *second]) + answers[16][:30])
    part_of(path, 2, 3).write_bytes(header[:50])
    models, asked = answered_by(world, monkeypatch, journal=path)
    kept = {(entry["task"], entry["doc_id"]) for entry in map(json.loads, first + second)}
    assert {key for each in asked for key in each} == set(alone.entries) - kept
    assert entries(models[0]) == entries(alone)
    assert {key: models[0].entries[key].seconds for key in kept} == {key: alone.entries[key].seconds for key in kept}
    assert [found.name for found in tmp_path.iterdir()] == ["journal.jsonl"]
    assert set(Journal.resume(path, json.loads(header)["journal_of"]).entries) == set(alone.entries)


def test_a_part_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal.resume(path, {"frames": 8}, rank=1, world=2).append([Entry("mlvu_dev", 0, "0.mp4", "red A", "A")])
    assert [found.name for found in parts_of(path)] == ["journal.1-of-2.jsonl"]
    with pytest.raises(UserError, match=r"journal\.1-of-2\.jsonl is the journal of another run: its frames is 8"):
        Journal.resume(path, {"frames": 16})


# ------------------------------------------------------------------------------------- launches that are none


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says that this is one of 2 processes, but it is not connected"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "not connected to the others"),
        # what `accelerate launch --cpu --num_processes 2` leaves to the single process that it starts
        (
            {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "accelerate launch was asked for several processes and started a single one",
        ),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4: 4 processes were started side by side"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"PMI_SIZE": "8"}, "PMI_SIZE=8"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_launches_that_are_none_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict, complaint: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint):
        check_launch()
    with pytest.raises(UserError, match=complaint):
        evaluate(tiny_checkpoint(), small_suite(), tmp_path / "out", FRAMES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1"},  # torchrun with one process
        {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"},  # accelerate launch with one
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"WORLD_SIZE": ""},
    ],
    ids=["by hand", "torchrun", "accelerate", "srun", "empty"],
)
def test_launches_of_one_process_are_taken(monkeypatch: pytest.MonkeyPatch, variables: dict) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_launch()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("device", "variables", "expected"),
    [
        (None, {}, "cuda"),
        ("auto", {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda", {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cuda:0"),
        ("cuda:1", {}, "cuda:1"),
        (None, {"ACCELERATE_USE_CPU": "true"}, "cpu"),
        ("cpu", {"LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "2"}, "cpu"),
    ],
)
def test_device_of_a_process(
    monkeypatch: pytest.MonkeyPatch, two_gpus: None, device: str | None, variables: dict, expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert device_for(device) == torch.device(expected)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, two_gpus: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 GPUs are needed here, one for each process, and torch finds 2"):
        evaluate_in_processes(3, tiny_checkpoint(), small_suite(), tmp_path / "out", FRAMES, device="cuda")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # torchrun by hand
    with pytest.raises(UserError, match="3 GPUs are needed"):
        device_for("auto")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    with pytest.raises(UserError, match="3 GPUs are needed"):
        device_for("cuda:2")
    with pytest.raises(UserError, match="device=gpu: torch knows no such device"):
        device_for("gpu")


def test_a_launch_has_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(12), raising=False)
    variables = environment(4, "cpu")
    assert "MASTER_PORT" not in variables
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["ACCELERATE_USE_CPU"] == "true"
    assert launcher(1) == [sys.executable]
    assert launcher(2)[1:5] == ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


# ------------------------------------------------------------------ what the processes tell, and how they die

SUMMARY = """Traceback (most recent call last):
{error}
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
harness.processes FAILED
------------------------------------------------------------
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 16)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 17)
  error_file: <N/A>
============================================================
"""


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (SUMMARY.format(error="", code=-9), r"process 2 of 2 was ended by SIGKILL \(out of memory\?\); the others"),
        (SUMMARY.format(error="", code=-15), "process 2 of 2 was ended by SIGTERM; the others were stopped"),
        (SUMMARY.format(error="[rank1]: OSError: no more", code=1), "process 2 of 2 failed with OSError: no more; "),
        (SUMMARY.format(error="", code=1).replace("-15", "-9"), "process 1 of 2 was ended by SIGKILL"),
        (SUMMARY.format(error="", code=7), "process 2 of 2 failed with exit code 7; "),
        ("something else", "the 2 processes ended without a result; "),
    ],
    ids=["killed", "terminated", "error", "killed and its consequence", "code", "unknown"],
)
def test_a_death_is_one_sentence(tmp_path: Path, log: str, sentence: str) -> None:
    told = death(log, 2, tmp_path)
    assert re.search(sentence, told), told
    assert told.endswith(f"what is answered is kept in {tmp_path}, and the same command goes on from there")


def told_by(script: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Event], Callable[[], None]]:
    """The events that a launch of this script brings, and what waits for it."""
    (out / "arguments.json").write_text("{}")
    events: list[Event] = []
    command = [sys.executable, "-c", script, str(out / "arguments.json")]
    return events, lambda: processes.run_together(command, 2, out, Progress(events.append, stage="scores"))


def test_reports_reach_the_one_who_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"event": {"bar": "1.2.0", "kind": "advance", "amount": 3.0}}
    script = f"print({json.dumps(event)!r}); print('a line of a library'); print('[1]'); print('{{}}')"
    events, run = told_by(script, tmp_path, monkeypatch)
    run()
    assert events == [Event("1.2.0", "advance", amount=3.0, stage="scores")]
    assert (tmp_path / "lmms_eval.log").read_text() == "a line of a library\n[1]\n{}\n"


def test_a_complaint_is_the_sentence_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """import sys; print('{"complaint": "frames=0: give more"}'); sys.exit(2)"""
    with pytest.raises(UserError, match=r"^frames=0: give more$"):
        told_by(script, tmp_path, monkeypatch)[1]()


def test_one_process_of_a_launch_reads_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[dict] = []
    monkeypatch.setattr("harness.evaluate.evaluate", lambda **arguments: asked.append(arguments))
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps({"checkpoint": "a", "suite": "b", "out": "c", "frames": 4, "features": None}))
    assert main([str(file)]) == 0
    (arguments,) = asked
    assert arguments.pop("progress") is not None
    assert arguments == {**{k: Path(v) for k, v in zip(("checkpoint", "suite", "out"), "abc", strict=True)}} | {
        "frames": 4,
        "features": None,
    }
    assert main([]) == 2
    assert "error: torchrun ... -m harness.processes ARGUMENTS.json: name that one file" in capsys.readouterr().err
