"""Sweeps in processes of their own, with stages that take no time: what is shared, what fails, what is killed."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fake_grids import GRID, ROWS, calls, rows, store, surroundings, sweep

from harness.grids.notes import read_notes
from harness.grids.verb import CellsFailed

ENOUGH = 600.0  # seconds, on a busy machine


def started(results: Path, *overrides: str) -> subprocess.Popen:
    """A sweep in a process of its own."""
    command = [sys.executable, "-m", "fake_grids", str(results), *overrides]
    return subprocess.Popen(command, env=surroundings(results / "site"), stderr=subprocess.PIPE)


def until(there: Callable[[], bool]) -> None:
    """Wait for something; an AssertionError if it does not come."""
    begun = time.monotonic()
    while not there():
        assert time.monotonic() - begun < ENOUGH, "it did not come"
        time.sleep(0.1)


def switch(results: Path, name: str) -> Path:
    """The file of this name that fake stages look for."""
    file = results / "runs" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def is_waiting(results: Path) -> bool:
    """Whether a process of a sweep says that it waits for others."""
    return any(note.waits for folder in results.glob("runs/sweeps/*") for note in read_notes(folder))


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; one that nobody waits for stays as a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_sweeps_at_once_compute_everything_once(tmp_path: Path) -> None:
    sweeps = [started(tmp_path, "workers=20") for _ in range(2)]  # a second for each stage
    for each in sweeps:
        _, told = each.communicate(timeout=240)
        assert each.returncode == 0, told.decode()
    assert rows(tmp_path) == ROWS
    assert len(calls(tmp_path)) == len(set(calls(tmp_path))) == 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_shared_stage_that_fails_in_another_process_fails_all_that_wait_for_it(tmp_path: Path) -> None:
    hold, fail = switch(tmp_path, "hold-shared"), switch(tmp_path, "fail-shared")
    other = started(tmp_path)
    until(lambda: "shared" in calls(tmp_path))

    def let_go_when_this_process_waits() -> None:
        try:
            until(lambda: is_waiting(tmp_path))
        finally:
            hold.unlink()

    watching = threading.Thread(target=let_go_when_this_process_waits)
    watching.start()
    with pytest.raises(CellsFailed, match=r"^6 rows failed: fake one/0, .*, fake three@3/1; "):
        sweep(tmp_path)
    watching.join()
    told = other.communicate(timeout=ENOUGH)[1].decode()
    assert other.returncode != 0
    assert "6 rows failed" in told
    assert sorted(calls(tmp_path)) == ["cost", "shared"]  # nobody tried again, here or there
    failures = store(tmp_path).failures()
    assert [(each.cell, each.base_seed) for each in failures] == ROWS
    assert {each.stage for each in failures} == {"shared"}
    assert {each.error for each in failures} == {"ZeroDivisionError: in the middle of shared"}
    assert all("in note" in each.traceback for each in failures)
    fail.unlink()
    sweep(tmp_path, "retry=true")
    assert rows(tmp_path) == ROWS
    assert store(tmp_path).failures() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_launched_worker_that_is_killed_is_recorded_and_what_it_had_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage of two+/0 kills its process; launched again it does so again, and is put down as failed.

    Slow: each launch is a process that imports everything.
    """
    kill = switch(tmp_path, "kill-broken0")
    monkeypatch.setenv("PYTHONPATH", surroundings(tmp_path / "site")["PYTHONPATH"])
    two_rows = GRID.replace("  three@3: [gate=sigmoid, gate.bias=1]\n", "")
    with pytest.raises(CellsFailed, match=r"^1 rows failed: fake two\+/0; "):
        sweep(tmp_path, "jobs=1", "base_seeds=[0]", grid=two_rows)
    assert rows(tmp_path) == [("one", 0)]
    (failure,) = store(tmp_path).failures()
    assert (failure.cell, failure.stage) == ("two+", "model0")
    assert failure.error.startswith("its process died")
    assert calls(tmp_path).count("broken0") == 2
    kill.unlink()
    sweep(tmp_path, "retry=true", "base_seeds=[0]", grid=two_rows)  # its lock went with it, its folder is taken over
    assert rows(tmp_path) == [("one", 0), ("two+", 0)]
    assert sorted(calls(tmp_path)) == ["base0", "broken0", "broken0", "broken0", "cost", "model0", "shared"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_end_when_the_verb_alone_is_killed(tmp_path: Path) -> None:
    """Slow: four processes import everything, the verb, what it launches, and two workers."""
    hold = switch(tmp_path, "hold-base0")
    verb = started(tmp_path, "jobs=2", "base_seeds=[0]")
    until(lambda: "base0" in calls(tmp_path) and is_waiting(tmp_path))
    below = psutil.Process(verb.pid).children(recursive=True)
    assert sum("popen_loky" in " ".join(each.cmdline()) for each in below) == 2
    verb.kill()
    verb.communicate(timeout=ENOUGH)
    until(lambda: all(map(is_gone, below)))
    hold.unlink()
    sweep(tmp_path, "base_seeds=[0]")
    assert rows(tmp_path) == [row for row in ROWS if row[1] == 0]
    assert calls(tmp_path).count("base0") == 2
    assert all(calls(tmp_path).count(name) == 1 for name in ("shared", "cost", "model0"))
