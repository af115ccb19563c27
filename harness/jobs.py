"""Runs stages in worker processes, each after what it needs: the done are skipped, the cut off go on.

    stages = [Stage("encoder", "harness.mini.encoder:train", {"seed": 0}, weight=90), ...]
    folders = run(stages, Path("results/runs"))

A stage that fails leaves a traceback file; those that do not need it are finished before the run reports it.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path

import psutil

from harness.errors import UserError
from harness.paths import write_text
from harness.progress import Bar, Display, Event, Progress
from harness.stages import Attempt, Stage, attempt_stage, resolve

MEMORY_PER_JOB = 2.5e9  # bytes: torch, a mini model in training and its frozen features
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_LEAVE = 5.0
# Threads of arithmetic per worker: always the same, for the order of a sum, and with it its last bits, depends on
# them. A run resumed on other cores or with other `jobs` must compute the same floats.
THREADS = 1
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class StagesFailed(UserError):
    """Some stages failed; everything that did not need them is finished."""

    exit_code = 1


@dataclass(frozen=True)
class Outcome:
    """How one attempt of a stage ended; `error` is one line, `trace` the traceback, both "" on success."""

    stage: str
    error: str = ""
    trace: str = ""
    is_users: bool = False  # the error is a sentence for a person: the traceback adds nothing


@dataclass
class Worker:
    """A worker process and this end of its pipe."""

    process: multiprocessing.Process
    pipe: connection.Connection
    attempt: Attempt | None = None


@dataclass
class Run:
    """What is known of a run while it goes on."""

    attempts: dict[str, Attempt]
    waiting: set[str]
    done: set[str]
    display: Display
    overall: Bar
    failures: list[Outcome] = field(default_factory=list)


def run(
    stages: Iterable[Stage], directory: Path, jobs: int | None = None, display: Display | None = None
) -> dict[str, Path]:
    """Run what is not finished yet and return every stage's folder by its name.

    Args:
        directory: where the folders are.
        jobs: how many worker processes; None: as many as cores and memory allow; 0: none, every stage runs in
            this process, for a debugger, and its exceptions come out as they are.
        display: where progress is drawn; None: a new one, on stderr.

    Raises:
        StagesFailed: one sentence that names every stage that failed and where its traceback is.
    """
    if display is None:
        with Display() as own:
            return run(stages, directory, jobs, own)
    attempts = resolve(stages, directory.absolute())
    done = {name for name, attempt in attempts.items() if attempt.final.is_dir()}
    waiting = set(attempts) - done
    if waiting and jobs == 0:
        for name in [name for name in attempts if name in waiting]:
            attempt_stage(attempts[name], display.progress(name))
    elif waiting:
        _run_in_workers(attempts, waiting, done, default_jobs() if jobs is None else jobs, display)
    return {name: attempt.final for name, attempt in attempts.items()}


def default_jobs(memory_per_job: float = MEMORY_PER_JOB) -> int:
    """One worker per core that this process may use, but no more than fit in the free memory (bytes)."""
    return max(1, min(_cores(), int(psutil.virtual_memory().available / memory_per_job)))


def exit_with_parent() -> None:
    """End this worker process at once when its parent dies, even of kill -9; for a pool: `initializer=`."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("exit_with_parent() is for worker processes; this one has no parent process")

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_in_workers(
    attempts: dict[str, Attempt], waiting: set[str], done: set[str], jobs: int, display: Display
) -> None:
    weights = {name: attempts[name].stage.weight for name in waiting}
    n_workers = min(jobs, len(waiting))
    with display.progress().bar(
        f"{len(waiting)} stages, %", total=100.0, expected_s=sum(weights.values()) / n_workers
    ) as overall:
        state = Run(attempts, set(waiting), set(done), display, overall)
        order = sorted(waiting, key=lambda name: -path_weight(name, attempts))
        with _workers(n_workers) as workers:
            while _hand_out(state, workers, order):
                _listen(state, workers)
                _advance_overall(state, weights, workers)
    if state.failures:
        raise StagesFailed(_sentence(state, len(waiting)))


def path_weight(name: str, attempts: dict[str, Attempt]) -> float:
    """Seconds of a stage and of the longest chain of stages after it: the longest chain goes first."""
    after = [other for other in attempts if name in attempts[other].stage.needs.values()]
    return attempts[name].stage.weight + max((path_weight(other, attempts) for other in after), default=0.0)


def _hand_out(run: Run, workers: list[Worker], order: list[str]) -> bool:
    """Give idle workers the stages that are ready; True while any worker is busy."""
    for worker in workers:
        if worker.attempt is not None:
            continue
        ready = (n for n in order if n in run.waiting and set(run.attempts[n].stage.needs.values()) <= run.done)
        name = next(ready, None)
        if name is None:
            break
        worker.attempt = run.attempts[name]
        run.waiting.remove(name)
        worker.pipe.send(worker.attempt)
    return any(worker.attempt is not None for worker in workers)


def _listen(run: Run, workers: list[Worker]) -> None:
    """Take what the workers have to say; replace those that died."""
    said = connection.wait([worker.pipe for worker in workers], timeout=SECONDS_BETWEEN_LOOKS)
    for number, worker in enumerate(workers):
        if worker.pipe not in said:
            continue
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):  # the worker is gone, perhaps in the middle of a message
            worker.process.join()
            if worker.attempt is not None:
                code = worker.process.exitcode
                died = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with {code}"
                _end(run, Outcome(worker.attempt.stage.name, f"{died}; out of memory?"))
            workers[number] = _start_worker()
            continue
        if isinstance(message, Event):
            run.display.handle(message)
        else:
            worker.attempt = None
            _end(run, message)


def _end(run: Run, outcome: Outcome) -> None:
    """Note how a stage ended."""
    run.display.forget(outcome.stage)
    if not outcome.error:
        run.done.add(outcome.stage)
        run.display.progress().say(f"{outcome.stage}: done ({len(run.done)} of {len(run.attempts)} stages)")
        return
    if outcome.trace and not outcome.is_users:
        write_text(run.attempts[outcome.stage].traceback, outcome.trace)
    run.failures.append(outcome)
    run.display.progress().say(f"{outcome.stage} failed: {outcome.error}")


def _advance_overall(run: Run, weights: dict[str, float], workers: list[Worker]) -> None:
    finished = sum(weight for name, weight in weights.items() if name in run.done)
    begun = [worker.attempt.stage for worker in workers if worker.attempt is not None]
    finished += sum(stage.weight * run.display.stage_fraction(stage.name) for stage in begun)
    share = 100.0 * finished / (sum(weights.values()) or 1.0)
    run.overall.advance(max(0.0, share - run.overall.done))


def _sentence(run: Run, total: int) -> str:
    failures = []
    for outcome in run.failures:
        where = run.attempts[outcome.stage].traceback
        hint = f" (traceback in {where})" if outcome.trace and not outcome.is_users else ""
        failures.append(f"{outcome.stage}: {outcome.error}{hint}")
    unrun = f"; not run, since they need these: {', '.join(sorted(run.waiting))}" if run.waiting else ""
    return f"{len(failures)} of {total} stages failed: {'; '.join(failures)}{unrun}"


@contextmanager
def _workers(number: int) -> Iterator[list[Worker]]:
    """Worker processes with `THREADS` threads of arithmetic each, ended on the way out whatever they do."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(THREADS)))  # a spawned process inherits them
    workers: list[Worker] = []
    try:
        workers += [_start_worker() for _ in range(number)]
        yield workers
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for worker in workers:
            worker.pipe.close()  # an idle worker leaves by itself, and cleans up behind it
            worker.process.join(SECONDS_TO_LEAVE if worker.attempt is None else 0)
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _start_worker() -> Worker:
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=False)
    process.start()
    theirs.close()  # so that the pipe ends when the worker does
    return Worker(process, ours)


def _work(pipe: connection.Connection) -> None:
    """A worker's life: take an attempt, run it, report, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle: it ends the workers
    exit_with_parent()
    os.dup2(2, 1)  # stdout is for what a verb was asked for: what a library prints in here is for stderr
    lock = threading.Lock()  # a stage may report from several threads

    def send(message: Event | Outcome) -> None:
        with lock:
            pipe.send(message)

    while True:
        try:
            attempt: Attempt = pipe.recv()
        except EOFError:  # the run is over
            return
        name = attempt.stage.name
        try:
            attempt_stage(attempt, Progress(send, name))
        except UserError as error:
            send(Outcome(name, str(error), traceback.format_exc(), is_users=True))
        except Exception as error:  # noqa: BLE001 - whatever a stage raises is reported and fails the run
            send(Outcome(name, f"{type(error).__name__}: {error}", traceback.format_exc()))
        else:
            send(Outcome(name))
