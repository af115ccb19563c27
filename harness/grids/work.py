"""Runs the stages of one cell in this process, beside other processes that may want the same ones.

A stage is worked on by who holds its lock (see harness/stages.py), so two cells that share stages split them: each
takes one that is ready and free, and waits only where all that are ready are taken. A process that dies lets go of its
lock; who takes the stage next goes on from what is there.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import UserError
from harness.jobs import path_weight
from harness.paths import write_text
from harness.progress import Progress
from harness.stages import Attempt, attempt_stage

SECONDS_BETWEEN_LOOKS = 0.5


class StageFailed(Exception):
    """A stage failed, here or in another process of the same sweep: which, the error's line, its traceback."""

    def __init__(self, stage: str, error: str, trace: str):
        super().__init__(f"{stage}: {error}")
        self.stage, self.error, self.trace = stage, error, trace


def work_through(
    attempts: Mapping[str, Attempt], progress: Callable[[str], Progress], begun: float | None = None
) -> None:
    """Have every stage finished, by this process or another.

    Args:
        attempts: the stages by name, resolved.
        progress: what the stage of that folder name reports to; called when this process begins it, and with "" when
            it waits.
        begun: when the sweep began, in the file system's seconds: a traceback left since then fails this call too,
            instead of another attempt at the same. None: now.

    Raises StageFailed; the traceback is left beside the stage's folder.
    """
    begun = time.time() if begun is None else begun
    for attempt in attempts.values():
        attempt.final.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(attempts, key=lambda name: -path_weight(name, attempts))
    while waiting := [name for name in order if not attempts[name].final.is_dir()]:
        for name in waiting:
            _expect_no_failure(attempts[name], begun)
        ready = (attempts[name] for name in waiting if _is_ready(attempts[name]))
        free = next((attempt for attempt in ready if is_free(attempt.lock)), None)
        if free is None:
            progress("")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        else:
            _attempt(free, progress(free.final.name))


def is_free(lock: Path) -> bool:
    """Whether nobody holds a lock at this moment."""
    try:
        with FileLock(lock, blocking=False):
            return True
    except Timeout:
        return False


def _is_ready(attempt: Attempt) -> bool:
    return all(folder.is_dir() for folder in attempt.folders.values())


def _expect_no_failure(attempt: Attempt, begun: float) -> None:
    """StageFailed if another process of this sweep left a traceback."""
    try:
        if attempt.traceback.stat().st_mtime < begun:
            return
        trace = attempt.traceback.read_text(encoding="utf-8")
    except FileNotFoundError:  # never failed, or mended at this moment
        return
    *_, last = trace.strip().splitlines() or [""]
    raise StageFailed(attempt.stage.name, last, trace)


def _attempt(attempt: Attempt, progress: Progress) -> None:
    try:
        attempt_stage(attempt, progress)
    except Exception as error:
        sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()
        write_text(attempt.traceback, trace)
        raise StageFailed(attempt.stage.name, sentence.partition("\n")[0], trace) from error
