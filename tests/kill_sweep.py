"""Kills a sweep with kill -9 at random moments, restarts it each time, and compares with an undisturbed one.

    python tests/kill_sweep.py FOLDER [KILLS] [SEED]

Both sweeps are real: `python -m harness ablate` at the tests' scale, two processes, Hydra's joblib launcher. The whole
process group is killed, at moments drawn from the time that the undisturbed one took. Where a sweep gets done between
two kills, the next one begins in a new folder, so that every kill hits a sweep at work. In the end all of them must
hold the same rows and samples, times and the machine's state aside, none twice, no line torn.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from harness.row_store import RowStore
from harness.rows import KEYS

GRID = """
order: 1
question: Does a killed sweep end as an undisturbed one?
paper: nothing
cost: nothing
time: a minute
reference: open
together: [architecture=slow_fast, frames=16]
cells:
  open: [gate=none]
  sigmoid: [gate=sigmoid]
"""
OF_THE_MACHINE = ["timings", "code_commit", "code_dirty", "device"]
BY_SAMPLE = ["cell", *KEYS, "task", "doc_id"]
SHARE = 0.6  # of the undisturbed time, within which a kill falls,
MOST = 60.0  # but after no more seconds than this


def command(folder: Path, *settings: str) -> list[str]:
    """The command of a sweep whose everything is below `folder`, with its grid written there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kills.yaml").write_text(GRID)
    where = [f"grids_dir={folder}", f"runs_dir={folder / 'runs'}", f"results_dir={folder / 'results'}"]
    return [sys.executable, "-m", "harness", "ablate", "grid=kills", "scale=test", "jobs=2", *where, *settings]


def start(folder: Path) -> subprocess.Popen:
    """A sweep of one base seed, in a process group of its own."""
    sweep = command(folder, "base_seeds=[0]")
    with (folder / "told.txt").open("ab") as told:
        return subprocess.Popen(sweep, stdout=told, stderr=told, start_new_session=True)


def finish(folder: Path) -> float:
    """Run a sweep to its end; seconds. RuntimeError with what it told if it fails."""
    started = time.monotonic()
    if start(folder).wait() != 0:
        raise RuntimeError((folder / "told.txt").read_text()[-5000:])
    return time.monotonic() - started


def kill_after(folder: Path, seconds: float) -> bool:
    """Start a sweep and kill it after so many seconds; False if it was done before."""
    sweep = start(folder)
    try:
        sweep.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()
        return True
    return False


def outcome(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows and samples of a sweep, without what belongs to the machine."""
    store = RowStore(folder / "results", "kills", "test", 0)
    samples = store.samples().drop(columns="seconds").sort_values(BY_SAMPLE, ignore_index=True)
    return store.frame().drop(columns=OF_THE_MACHINE), samples


def check(folder: Path, expected: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """AssertionError unless a sweep holds what the undisturbed one holds."""
    rows, samples = outcome(folder)
    assert not rows.duplicated(["cell", "base_seed"]).any(), "a row is there twice"
    assert not samples.duplicated(BY_SAMPLE).any(), "a sample is there twice"
    pd.testing.assert_frame_equal(rows, expected[0], check_exact=True)
    pd.testing.assert_frame_equal(samples, expected[1], check_exact=True)


def main(folder: Path, kills: int = 20, seed: int = 0) -> None:
    """The whole test."""
    draw = random.Random(seed)
    took = finish(folder / "undisturbed")
    print(f"undisturbed: {took:.0f} s", flush=True)
    rounds = [folder / "killed-0"]
    for number in range(1, kills + 1):
        after = draw.uniform(0.5, min(MOST, SHARE * took))
        while not kill_after(rounds[-1], after):
            rounds.append(folder / f"killed-{len(rounds)}")
        n_stages = len(list(rounds[-1].glob("runs/*/stage.json")))
        print(f"kill {number} after {after:.1f} s: {n_stages} stages finished in {rounds[-1].name}", flush=True)
    finish(rounds[-1])
    expected = outcome(folder / "undisturbed")
    for killed in rounds:
        check(killed, expected)
    print(f"{kills} kills over {len(rounds)} sweeps: {len(expected[0])} rows each, equal to the undisturbed ones'")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:4]))
