"""Two real processes, by torchrun: samples as one process gives them, `kill -9` of one, launches as users type them."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from tiny import small_suite, tiny_checkpoint

from harness.errors import UserError
from harness.evaluate import Evaluation, evaluate
from harness.journal import part_of
from harness.processes import environment, evaluate_in_processes, launcher

FRAMES = 8
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COLUMNS = ["task", "doc_id", "prediction", "correct", "failure", "message", "answer"]


def expect_equal(found: Evaluation, expected: Evaluation, *folders: Path) -> None:
    assert found.scores == expected.scores
    pd.testing.assert_frame_equal(found.samples[COLUMNS], expected.samples[COLUMNS])
    names, tables = zip(*[(sorted(path.name for path in f.iterdir()), watched(f)) for f in folders], strict=True)
    assert names[0] == names[1]
    pd.testing.assert_frame_equal(*tables)


def watched(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "videos.parquet").drop(columns="seconds")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """An evaluation by one process, in small batches."""
    out = tmp_path_factory.mktemp("one")
    return out, evaluate(tiny_checkpoint(), small_suite(), out, 32, batch_size=4)


def in_two(out: Path) -> Evaluation:
    return evaluate_in_processes(2, tiny_checkpoint(), small_suite(), out, 32, batch_size=4, workers=1)


def test_two_real_processes_give_the_same_samples(one: tuple[Path, Evaluation], tmp_path: Path) -> None:
    expect_equal(in_two(tmp_path / "two"), one[1], tmp_path / "two", one[0])


def kill_when_busy(out: Path, rank: int) -> None:
    """kill -9 one process of a launch, once it has answered something."""
    part = part_of(out / "journal.jsonl", rank, 2)
    while not (part.exists() and part.read_bytes().count(b"\n") > 10):
        time.sleep(0.005)
    for child in psutil.Process().children(recursive=True):
        if "harness.processes" in child.cmdline() and child.environ().get("RANK") == str(rank):
            child.kill()


def answers_in(out: Path) -> dict[tuple, float]:
    """Question -> seconds of every whole line of all journals in a folder."""
    lines = b"".join(path.read_bytes().rpartition(b"\n")[0] + b"\n" for path in out.glob("journal*.jsonl")).splitlines()
    return {(e["task"], e["doc_id"]): e["seconds"] for e in map(json.loads, lines) if "doc_id" in e}


def test_a_killed_process_ends_the_run_and_a_restart_goes_on(one: tuple[Path, Evaluation], tmp_path: Path) -> None:
    """Restarted by two processes, and by one."""
    out = tmp_path / "killed"
    killer = threading.Thread(target=kill_when_busy, args=(out, 1), daemon=True)
    killer.start()
    with pytest.raises(UserError, match=r"process 2 of 2 was ended by SIGKILL.*the same command goes on from there"):
        in_two(out)
    killer.join()
    before = answers_in(out)
    assert 0 < len(before) < len(one[1].samples)
    assert not (out / "scores.json").exists()
    by_one = shutil.copytree(out, tmp_path / "by_one")
    restarted: list[tuple[Path, Callable[[], Evaluation]]] = [
        (out, lambda: in_two(out)),
        (by_one, lambda: evaluate(tiny_checkpoint(), small_suite(), by_one, 32, batch_size=4)),
    ]
    for folder, again in restarted:
        expect_equal(again(), one[1], folder, one[0])
        after = answers_in(folder)
        assert before.items() <= after.items()  # none was answered again: it would have taken other seconds


def test_torchrun_of_lmms_evals_own_command_line_gives_the_same(tmp_path: Path) -> None:
    """As a user would, without this harness's launcher: the collectives are then Accelerate's."""
    suite = small_suite()
    wanted = evaluate(tiny_checkpoint(), suite, tmp_path / "one", FRAMES, benchmarks=["videomme", "mlvu"], limit=9)
    command = [*launcher(2), "-m", "lmms_eval", "--model", "slowfast_mllm", "--tasks", "videomme,mlvu_dev"]
    command += ["--model_args", f"pretrained={tiny_checkpoint()},frames={FRAMES}", "--limit", "9", "--log_samples"]
    variables = {**environment(2, "cpu"), "HF_HOME": str(suite / "home"), "HF_HUB_OFFLINE": "1"}
    variables["LMMS_EVAL_DATASETS_CACHE"] = str(tmp_path / "datasets")
    ran = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")],
        **{"cwd": suite / "hub", "env": variables, "capture_output": True, "text": True},
    )
    files = sorted((tmp_path / "out").rglob("*_samples_*.jsonl"))
    assert len(files) == 2, ran.stderr[-3000:]
    texts = {}
    for file in files:
        task = file.stem.partition("_samples_")[2]
        texts |= {(task, s["doc_id"]): s["filtered_resps"] for s in map(json.loads, file.read_text().splitlines())}
    expected = wanted.samples
    scored = expected["answer"].where(expected["failure"] == "", expected["prediction"])
    assert texts == dict(zip(zip(expected["task"], expected["doc_id"], strict=True), scored, strict=True))


def test_what_accelerate_launch_starts_is_refused(tmp_path: Path) -> None:
    """Should it one day start two processes on a CPU, this shows it."""
    script = tmp_path / "script.py"
    script.write_text("from harness.processes import check_launch\ncheck_launch()\n")
    options = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--dynamo_backend", "no", str(script)]
    ran = subprocess.run(command, env=environment(1, "cpu"), capture_output=True, text=True)
    assert "UserError: accelerate launch was asked for several processes and started a single one" in ran.stderr
