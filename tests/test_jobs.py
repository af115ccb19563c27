"""The runner of stages: what it skips, resumes, reports and survives; the stages' functions are here too."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from harness.errors import UserError
from harness.grids.work import is_free
from harness.jobs import Run, StagesFailed, Worker, _listen, default_jobs, run
from harness.progress import SILENT, Counter, Display, Progress, clock
from harness.provenance import library_versions, provenance
from harness.stages import Stage, attempt_stage, code_hash, resolve

HERE = __name__


def add(out: Path, progress: Progress, amount: int, before: Path | None = None) -> None:
    """A stage: the number in `before` (or 0) plus `amount`; notes each call and its threads."""
    number = amount + (int((before / "number").read_text()) if before else 0)
    with progress.bar("adding", total=2) as bar:
        bar.advance(2)
    (out / "number").write_text(str(number))
    (out / "threads").write_text(os.environ["OMP_NUM_THREADS"])
    with (out.parent / "calls").open("a") as calls:
        calls.write(f"{amount}\n")


def fail(out: Path, progress: Progress, kind: str) -> None:
    """A stage that fails: with a sentence, with a bug, or by being killed."""
    if kind == "sentence":
        raise UserError("the clips are missing; build the suite first")
    if kind == "bug":
        raise ZeroDivisionError("in the middle of it")
    os.kill(os.getpid(), signal.SIGKILL)


def talk(out: Path, progress: Progress) -> None:
    """A stage with a library that prints, as DeepSpeed's logger does, and another that writes to the descriptor."""
    print("no GPU was found", flush=True)
    os.write(1, b"nor an NPU\n")


FRAMES: list[object] = []


def remember(out: Path, progress: Progress) -> None:
    """A stage that keeps the frame it was called from alive, as a stored exception does."""
    FRAMES.append(sys._getframe(1))


def count_up(out: Path, progress: Progress, to: int, seconds: float) -> None:
    """A stage with a checkpoint after each step; `log` has every step that was ever begun."""
    checkpoint = out / "checkpoint"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in progress.track(range(first, to), "counting"):
        with (out / "log").open("a") as log:
            log.write(f"{step}\n")
        time.sleep(seconds)
        checkpoint.write_text(str(step + 1))


def chain() -> list[Stage]:
    """1, then 1 + 10, then 11 + 100, listed in the wrong order."""
    return [
        Stage("third", f"{HERE}:add", {"amount": 100}, {"before": "second"}),
        Stage("first", f"{HERE}:add", {"amount": 1}),
        Stage("second", f"{HERE}:add", {"amount": 10}, {"before": "first"}),
    ]


def quiet() -> Display:
    return Display(Console(file=io.StringIO()))


@pytest.mark.parametrize("jobs", [0, 2])
def test_stages_run_in_the_order_of_their_needs_and_only_once(tmp_path: Path, jobs: int) -> None:
    folders = run(chain(), tmp_path, jobs=jobs, display=quiet())
    assert (folders["third"] / "number").read_text() == "111"
    assert (tmp_path / "calls").read_text().split() == ["1", "10", "100"]
    description = json.loads((folders["second"] / "stage.json").read_text())
    assert description["kwargs"] == {"amount": 10}
    assert description["needs"] == {"before": folders["first"].name}
    assert description["made_by"] == provenance().fields()
    assert run(chain(), tmp_path, jobs=jobs, display=quiet()) == folders
    assert len((tmp_path / "calls").read_text().split()) == 3


def test_a_changed_argument_reruns_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    before = resolve(chain(), tmp_path)
    stages = [
        stage if stage.name != "second" else Stage("second", stage.function, {"amount": 20}, stage.needs)
        for stage in chain()
    ]
    after = resolve(stages, tmp_path)
    assert after["first"].key == before["first"].key
    assert after["second"].key != before["second"].key
    assert after["third"].key != before["third"].key


def test_changed_code_changes_the_key_and_changed_comments_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "module_to_hash.py"
    module.write_text('def f(x):\n    """Old."""\n    return x + 1\n')
    old = code_hash(["module_to_hash"])
    module.write_text('"""New."""\n\ndef f(x):\n    """New."""\n    return (x +\n        1)  # why\n')
    assert code_hash(["module_to_hash"]) == old
    module.write_text("def f(x):\n    return x + 2\n")
    assert code_hash(["module_to_hash"]) != old
    with pytest.raises(ValueError, match="no module 'nowhere_at_all'"):
        code_hash(["nowhere_at_all"])


def test_other_libraries_change_every_key(tmp_path: Path) -> None:
    before = resolve(chain(), tmp_path)
    assert {name: each.key for name, each in resolve(chain(), tmp_path, library_versions()).items()} == {
        name: each.key for name, each in before.items()
    }
    after = resolve(chain(), tmp_path, library_versions() | {"torch": "0.1"})
    assert all(after[name].key != before[name].key for name in before)


def test_a_worker_that_breaks_off_in_the_middle_of_a_message_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.send("half a message")
    stage = Stage("s", f"{HERE}:add", {"amount": 1})
    attempts = resolve([stage], tmp_path)

    class Broken:
        """A pipe end that is ready and cannot be read."""

        fileno = ours.fileno

        def recv(self) -> None:
            raise OSError("got end of file during message")

    gone = SimpleNamespace(exitcode=-9, join=lambda: None)
    workers = [Worker(gone, Broken(), attempts["s"])]
    monkeypatch.setattr("harness.jobs._start_worker", lambda: "a new worker")
    display = quiet()
    state = Run(attempts, set(), set(), display, display.progress().bar("x", total=1))
    _listen(state, workers)
    assert workers == ["a new worker"]
    assert [outcome.error for outcome in state.failures] == ["its process was killed by signal 9; out of memory?"]


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    stages = [
        Stage("bug", f"{HERE}:fail", {"kind": "bug"}),
        Stage("sentence", f"{HERE}:fail", {"kind": "sentence"}),
        Stage("killed", f"{HERE}:fail", {"kind": "killed"}),
        Stage("after", f"{HERE}:add", {"amount": 1}, {"before": "bug"}),
        *chain(),
    ]
    with pytest.raises(StagesFailed) as failure:
        run(stages, tmp_path, jobs=2, display=quiet())
    attempts = resolve(stages, tmp_path)
    said = str(failure.value)
    assert "3 of 7 stages failed" in said
    assert f"bug: ZeroDivisionError: in the middle of it (traceback in {attempts['bug'].traceback})" in said
    assert "sentence: the clips are missing; build the suite first" in said
    assert "killed by signal 9" in said
    assert said.endswith("not run, since they need these: after")
    assert "in fail" in attempts["bug"].traceback.read_text()
    assert not attempts["sentence"].traceback.exists()
    assert (attempts["third"].final / "number").read_text() == "111"
    assert not attempts["bug"].final.exists()


def test_a_worker_has_one_thread_whatever_the_cores_and_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.jobs._cores", lambda: 6)
    stages = [Stage(f"s{amount}", f"{HERE}:add", {"amount": amount}) for amount in range(3)]
    folders = run(stages, tmp_path, jobs=2, display=quiet())
    assert {(folder / "threads").read_text() for folder in folders.values()} == {"1"}
    assert default_jobs(memory_per_job=1.0) == 6
    assert default_jobs(memory_per_job=1e15) == 1


def test_kill_9_loses_the_step_it_interrupts_and_leaves_no_worker(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from harness.jobs import run
        from harness.stages import Stage
        if __name__ == "__main__":
            stage = Stage("count", "{HERE}:count_up", {{"to": 40, "seconds": 0.1}})
            run([stage], Path({str(tmp_path)!r}), jobs=1)
    """)
    main = tmp_path / "main.py"
    main.write_text(script)
    environment = dict(os.environ, PYTHONPATH=_path())
    process = subprocess.Popen([sys.executable, main], env=environment, stderr=subprocess.DEVNULL)
    attempt = resolve([Stage("count", f"{HERE}:count_up", {"to": 40, "seconds": 0.1})], tmp_path)["count"]
    checkpoint = attempt.work / "checkpoint"
    _wait_until(lambda: checkpoint.exists() and (checkpoint.read_text() or "0") > "2")
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_until(lambda: not any(worker.is_running() for worker in workers))
    begun = (attempt.work / "log").read_text().split()
    assert len(begun) < 40

    subprocess.run([sys.executable, main], env=environment, check=True, stderr=subprocess.DEVNULL)
    steps = (attempt.final / "log").read_text().split()
    assert sorted(set(map(int, steps))) == list(range(40))
    assert len(steps) <= 41  # only the step that was cut off ran twice


def test_what_a_stage_prints_is_not_taken_for_what_a_verb_was_asked_for(tmp_path: Path) -> None:
    main = tmp_path / "main.py"
    main.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from harness.jobs import run
        from harness.stages import Stage
        if __name__ == "__main__":
            print(run([Stage("talk", "{HERE}:talk", {{}})], Path({str(tmp_path)!r}), jobs=1)["talk"].name)
    """)
    )
    environment = dict(os.environ, PYTHONPATH=_path())
    ran = subprocess.run([sys.executable, main], env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("talk-"), ran.stdout
    assert len(ran.stdout.splitlines()) == 1
    assert {"no GPU was found", "nor an NPU"} <= set(ran.stderr.splitlines())


def test_a_stage_is_let_go_of_as_soon_as_it_is_finished_or_has_failed(tmp_path: Path) -> None:
    good, bad = Stage("remember", f"{HERE}:remember"), Stage("fail", f"{HERE}:fail", {"kind": "bug"})
    attempts = resolve([good, bad], tmp_path)
    attempt_stage(attempts["remember"], SILENT)
    assert is_free(attempts["remember"].lock)
    with pytest.raises(ZeroDivisionError):
        attempt_stage(attempts["fail"], SILENT)
    assert is_free(attempts["fail"].lock)


def test_two_runs_do_not_work_on_the_same_stage_at_once(tmp_path: Path) -> None:
    command = textwrap.dedent(f"""
        from pathlib import Path
        from harness.stages import Stage, attempt_stage, resolve
        from harness.progress import SILENT
        stage = Stage("count", "{HERE}:count_up", {{"to": 5, "seconds": 0.2}})
        attempt_stage(resolve([stage], Path({str(tmp_path)!r}))["count"], SILENT)
    """)
    environment = dict(os.environ, PYTHONPATH=_path())
    runs = [subprocess.Popen([sys.executable, "-c", command], env=environment) for _ in range(2)]
    assert [process.wait(timeout=60) for process in runs] == [0, 0]
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert (folder / "log").read_text().split() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("stages", "complaint"),
    [
        ([Stage("a", "m:f"), Stage("a", "m:f")], r"share a name: \['a'\]"),
        ([Stage("a", "m:f", needs={"x": "b"})], r"no such stage: \['b'\]"),
        ([Stage("a", "m:f", needs={"x": "b"}), Stage("b", "m:f", needs={"x": "a"})], "a circle"),
    ],
)
def test_a_wrong_graph_is_refused(tmp_path: Path, stages: list[Stage], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        resolve(stages, tmp_path)


def test_a_failed_stage_keeps_its_work_for_the_next_attempt(tmp_path: Path) -> None:
    (attempt,) = resolve([Stage("bug", f"{HERE}:fail", {"kind": "bug"})], tmp_path).values()
    attempt.work.mkdir(parents=True)
    (attempt.work / "checkpoint").write_text("7")
    with pytest.raises(ZeroDivisionError):
        attempt_stage(attempt, SILENT)
    assert (attempt.work / "checkpoint").read_text() == "7"


def test_off_a_terminal_progress_is_a_line_with_time_left(tmp_path: Path) -> None:
    said = io.StringIO()
    display = Display(Console(file=said), every_s=0.0)
    run([Stage("first", f"{HERE}:add", {"amount": 1}, weight=30)], tmp_path, jobs=1, display=display)
    lines = said.getvalue().splitlines()
    assert lines[0] == "1 stages, % 0% (0:30 left)"  # nothing seen yet: the expected seconds
    assert any("first: adding 100% (0:00 left)" in line for line in lines)
    assert display.stage_fraction("first") == 0.0  # forgotten once it has ended


def test_time_left_counts_only_this_runs_work() -> None:
    now = time.monotonic()
    counter = Counter("x", total=100, share=1, stage="", done=60, skipped=50, started=now - 10)
    assert counter.seconds_left() == pytest.approx(40, abs=0.5)  # one a second, 40 to go
    assert Counter("x", 100, 1, "", done=50, skipped=50).seconds_left() is None
    assert (clock(None), clock(61), clock(3661)) == ("-:--", "1:01", "1:01:01")


def test_a_bar_sends_everything_it_counted() -> None:
    display = quiet()
    progress = display.progress("stage")
    with progress.bar("b", total=1000, share=0.5) as bar:
        for _ in range(300):
            bar.advance()
        bar.flush()
        assert display.stage_fraction("stage") == pytest.approx(0.15)
    assert display.stage_fraction("stage") == pytest.approx(0.5)
    assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    with pytest.raises(TypeError, match="give total="):
        list(progress.track(iter("abc"), "letters"))


def _wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _path() -> str:
    """PYTHONPATH for a process that has to find this file."""
    return os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])
