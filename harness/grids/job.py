"""The job of a sweep: one (cell, base seed), from whatever stages are missing to its row in the store."""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig

from harness.compose import compose
from harness.errors import UserError
from harness.grids import cells
from harness.grids.cells import composed
from harness.grids.notes import Notes
from harness.grids.plans import code_on_disk
from harness.grids.suites import make_suite
from harness.grids.work import StageFailed, work_through
from harness.jobs import THREAD_VARIABLES, THREADS
from harness.provenance import code_state
from harness.row_store import Failure, RowStore
from harness.stages import resolve


@dataclass(frozen=True)
class Asked:
    """What is asked of every job of a sweep.

    Attributes:
        grid: the grid's name; the grid itself is the one that its store was begun with.
        scale, seed: which of the grid's stores.
        typed: settings of every cell, KEY=VALUE.
        suite: folder of the suite; None: each cell's own.
        runs, results: the folders of stages and of rows.
        sweep: the sweep's own folder.
        begun: when it began, as the file system has it.
        code: hash of the code that it began with, see `plans.code_on_disk`.
    """

    grid: str
    scale: str
    seed: int
    typed: Sequence[str]
    suite: Path | None
    runs: Path
    results: Path
    sweep: Path
    begun: float
    code: str

    @property
    def store(self) -> RowStore:
        """Where the rows go."""
        return RowStore(self.results, self.grid, self.scale, self.seed)


def job_of(config: DictConfig) -> Asked:
    """What a job of the Hydra app (conf/sweep.yaml) is asked."""
    settings = compose(list(config.settings))
    sweep = Path(config.folder)
    sweep.mkdir(parents=True, exist_ok=True)
    return Asked(
        grid=config.grid,
        scale=settings.scale.name,
        seed=settings.seed,
        typed=tuple(config.settings),
        suite=None if config.suite is None else Path(config.suite),
        runs=Path(config.runs_dir),
        results=Path(config.results_dir),
        sweep=sweep,
        begun=time.time() if config.begun is None else config.begun,
        code=code_on_disk() if config.code is None else config.code,
    )


class CodeChanged(Exception):
    """The code on the disk is no longer the one that this process has loaded."""


def work_on(asked: Asked, cell: str, base_seed: int) -> bool:
    """Finish one row; False if that failed, which is stored with its traceback and raises nothing.

    Also False, with nothing stored, if the code has changed since the sweep began: keys name the code on the disk, and
    this process would work with what it loaded before. The row stays to do.
    """
    one_thread()
    with Notes(asked.sweep, cell, base_seed, sys.stderr) as notes:
        stage, content = "plan", ""
        try:
            _expect_code(asked)
            plan = cells.CellPlan(asked.store.grid(), cell, asked.typed, _suite(asked, cell))
            attempts = resolve(plan.stages(base_seed), asked.runs.absolute())
            content = plan.content_hash(attempts, base_seed)
            work_through(attempts, notes.progress, asked.begun)
            stage = "row"
            row, samples = plan.row(attempts, base_seed)
            _expect_code(asked)
            asked.store.put(row, samples, replaced_in(asked.runs))
            return True
        except CodeChanged:
            failed = None
        except StageFailed as error:
            failed = (error.stage, error.error, error.trace)
        except UserError as error:
            failed = (stage, str(error), "")
        except Exception as error:  # noqa: BLE001 - recorded with its traceback; the sweep goes on with the next cell
            failed = (stage, f"{type(error).__name__}: {error}", traceback.format_exc())
        if failed is None or code_on_disk() != asked.code:
            print(
                f"{cell}/{base_seed} is left to do: the code has changed since the sweep began, so its result would be "
                "stored as that of code which did not make it; run the grid again",
                file=sys.stderr,
            )
        else:
            _fail(asked, cell, base_seed, content, *failed)
    return False


def _expect_code(asked: Asked) -> None:
    if code_on_disk() != asked.code:
        raise CodeChanged


def replaced_in(runs: Path) -> Path:
    """Where rows go that are replaced by rows of other content."""
    return runs / "replaced"


def one_thread() -> None:
    """Arithmetic as in harness/jobs.py: so many threads, whoever started this process, for the same floats."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(THREADS)))  # for libraries that are loaded from now on
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)


def _suite(asked: Asked, cell: str) -> Path:
    if asked.suite is not None:
        return asked.suite
    return make_suite(composed(asked.store.grid(), cell, asked.typed))


def _fail(asked: Asked, cell: str, base_seed: int, content: str, stage: str, error: str, trace: str) -> None:
    failure = failure_of(cell, base_seed, content, stage, error, trace)
    asked.store.fail(failure)
    print(trace or failure.error, file=sys.stderr)


def failure_of(cell: str, base_seed: int, content: str, stage: str, error: str, trace: str = "") -> Failure:
    """A failure of this moment; of the error its first line."""
    commit, _ = code_state(Path(__file__))
    return Failure(
        cell=cell,
        base_seed=base_seed,
        stage=stage,
        error=error.partition("\n")[0],
        traceback=trace,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        code_commit=commit,
        content_hash=content,
    )
