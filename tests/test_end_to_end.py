"""The whole path by the command line: from nothing to rows, table and figures, and what can go wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tiny import small_suite

from harness.report import COLUMNS
from harness.rows import UNPARSED, read_rows, read_samples
from harness.video import EMPTY, MISSING, TRUNCATED, UNREADABLE

ROWS = "rows=[self_attention@16,slow_fast@32]"
SETTINGS = ["scale=test", "base_seeds=[0]"]
TIMES = ["prefill_ms", "decode_ms_per_token"]
STEP_LIMIT = 600  # seconds that a run may take before the tests give it up


def harness(folder: Path, verb: str, *settings: str) -> subprocess.CompletedProcess:
    """One call of the command line in a folder, at the tests' scale."""
    command = [sys.executable, "-m", "harness", verb, *SETTINGS, *settings]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=STEP_LIMIT)


def csv_of(folder: Path, table: str = "main") -> Path:
    return folder / "results" / "tables" / f"{table}_test.csv"


def check_table(folder: Path, said: str) -> None:
    """Rows, samples, table and figures are there and belong together."""
    rows = read_rows(folder / "results" / "rows" / "main_test_seed0.jsonl")
    samples = read_samples(folder / "results" / "rows" / "main_test_seed0.samples.parquet")
    settings = [(row.architecture, row.frames, row.base_seed) for row in rows.itertuples()]
    assert settings == [("self_attention", 16, 0), ("slow_fast", 32, 0)]
    assert rows["n_samples"].tolist() == [104, 104]
    assert rows["failures"].tolist() == [0, 0]
    assert rows["fast_tokens"].tolist() == [64, 64]
    assert rows["slow_tokens"].tolist() == [0, 128]
    assert len(samples) == 208
    for row in rows.itertuples():
        own = samples[(samples["architecture"] == row.architecture) & (samples["frames"] == row.frames)]
        share = own[own["benchmark"] == "videomme"]["correct"].mean()
        assert row.scores["videomme"] == pytest.approx(100 * share)
    assert rows["average"].between(0, 60).all()  # a dozen steps teach nothing

    table = pd.read_csv(csv_of(folder))
    assert list(table.columns) == list(COLUMNS)
    assert table["architecture"].tolist() == ["self_attention", "slow_fast", "chance"]
    assert table["average"].tolist()[:2] == pytest.approx(rows["average"].tolist(), abs=1e-3)
    assert (table[["prefill_ms", "decode_ms_per_token", "prefill_tflop_7b"]][:2] > 0).all(axis=None)
    assert 0 < table["prefill_overhead_7b_pct"][1] < 4
    figures = {path.name for path in (folder / "results" / "figures").iterdir()}
    names = ("accuracy_vs_frames", "accuracy_vs_prefill_flops")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert said.startswith("Slow-fast against its baselines, test scale")  # nothing else before it on stdout
    assert "Scale: test" in said


def damaged(suite: Path, folder: Path) -> list[str]:
    """A copy of a suite in `folder` with a truncated, a zero-byte and a missing mp4; their names."""
    shutil.copytree(suite, folder)
    truncated, empty, missing = sorted((folder / "home").rglob("*.mp4"))[:60:25]
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    empty.write_bytes(b"")
    missing.unlink()
    return [path.name for path in (truncated, empty, missing)]


def check_damaged(folder: Path, done: subprocess.CompletedProcess, broken: list[str]) -> None:
    """Everything is written, the three are counted and named, and the exit code says so."""
    assert done.returncode == 3, done.stderr
    rows = read_rows(folder / "results" / "rows" / "main_test_seed0.jsonl")
    samples = read_samples(folder / "results" / "rows" / "main_test_seed0.samples.parquet")
    failed = samples[~samples["failure"].isin(["", UNPARSED])]
    assert {EMPTY, MISSING} < set(failed["failure"]) <= {EMPTY, MISSING, TRUNCATED, UNREADABLE}
    assert {Path(video).name for video in failed["video"]} == set(broken)
    assert rows["failures"].tolist() == [len(failed) // 2] * 2
    assert rows["failures"].min() >= 3
    assert rows["n_samples"].tolist() == [104, 104]  # none is dropped
    assert not failed["correct"].any()
    assert pd.read_csv(csv_of(folder))["failures"].tolist() == [*rows["failures"], 0]
    text = csv_of(folder).with_suffix(".md").read_text()
    assert "slow_fast†" in text
    for name in broken:
        assert name in text
        assert name in done.stderr
    assert "everything is written" in done.stderr


@pytest.mark.timeout(900)
def test_from_nothing_to_a_table_and_again(tmp_path: Path) -> None:
    first = harness(tmp_path, "table", ROWS)
    assert first.returncode == 0, first.stderr
    check_table(tmp_path, first.stdout)
    stages = sorted(path.name for path in (tmp_path / "results" / "runs").iterdir())
    written = csv_of(tmp_path).read_bytes()

    again = harness(tmp_path, "table", ROWS)
    assert again.returncode == 0, again.stderr
    assert csv_of(tmp_path).read_bytes() == written
    assert again.stdout == first.stdout
    assert again.stderr == ""  # no stage was run
    assert sorted(path.name for path in (tmp_path / "results" / "runs").iterdir()) == stages


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_broken_videos_are_counted_and_named_by_the_table(tmp_path: Path) -> None:
    broken = damaged(small_suite(), tmp_path / "suite")
    check_damaged(tmp_path, harness(tmp_path, "table", ROWS, "suite=suite"), broken)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_controls_stand_beside_the_compressor_alone(tmp_path: Path) -> None:
    done = harness(tmp_path, "controls", "rows=[compressor_only@128,slow_fast@128]")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(csv_of(tmp_path, "controls"))
    assert table["control"].tolist() == ["none", "gate_closed", "other_video"]
    assert (table["average_lo"] <= table["average"]).all()
    assert (table["average"] <= table["average_hi"]).all()
    rows = read_rows(tmp_path / "results" / "rows" / "controls_test_seed0.jsonl")
    assert rows["control"].tolist() == ["gate_closed", "other_video"]
    closed = rows[rows["control"] == "gate_closed"].iloc[0]
    assert closed["failures"] == 0


def kill_when(folder: Path, pattern: str, ready, *settings: str) -> None:
    """Start the table and kill -9 its main process once `ready` holds of a file like `pattern`."""
    command = [sys.executable, "-m", "harness", "table", *SETTINGS, ROWS, *settings]
    runs = folder / "results" / "runs"
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + STEP_LIMIT
        while not any(map(ready, runs.glob(pattern))):
            assert run.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
    time.sleep(2)  # its workers notice


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_in_training_and_in_evaluation_changes_no_number(tmp_path: Path) -> None:
    longer = ["scale.base.steps=120"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = harness(tmp_path / "whole", "table", ROWS, *longer, "jobs=1")  # the number of workers changes nothing
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    kill_when(killed, ".base0-*.work/checkpoints/checkpoint-60", Path.is_dir, *longer)
    assert not list((killed / "results" / "runs").glob("base0-*"))
    journal = ".scores0-slow_fast-32-*.work/journal.jsonl"
    kill_when(killed, journal, lambda path: path.read_text().count("\n") > 30, *longer)
    (half,) = (killed / "results" / "runs").glob(journal)
    answered = len(half.read_text().splitlines()) - 1
    assert 30 <= answered < 104
    done = harness(killed, "table", ROWS, *longer)
    assert done.returncode == 0, done.stderr
    tables = [pd.read_csv(csv_of(folder)).drop(columns=TIMES) for folder in (tmp_path / "whole", killed)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    weights = [
        next((folder / "results" / "runs").glob("model0-slow_fast-32-*")) / "model.safetensors"
        for folder in (tmp_path / "whole", killed)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (scores,) = (killed / "results" / "runs").glob("scores0-slow_fast-32-*")
    assert len((scores / "journal.jsonl").read_text().splitlines()) >= 104
    assert json.loads((scores / "stage.json").read_text())["name"] == "scores0-slow_fast-32"
