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
    )


def work_on(asked: Asked, cell: str, base_seed: int) -> bool:
    """Finish one row; False if that failed, which is stored with its traceback and raises nothing."""
    one_thread()
    with Notes(asked.sweep, cell, base_seed, sys.stderr) as notes:
        stage = "plan"
        try:
            plan = cells.CellPlan(asked.store.grid(), cell, asked.typed, _suite(asked, cell))
            stages = plan.stages(base_seed)
            work_through(stages, asked.runs, notes.progress, asked.begun)
            stage = "row"
            attempts = resolve(stages, asked.runs.absolute())
            asked.store.put(*plan.row(attempts, base_seed))
        except StageFailed as failed:
            _fail(asked, cell, base_seed, failed.stage, failed.error, failed.trace)
        except UserError as error:
            _fail(asked, cell, base_seed, stage, str(error), "")
        except Exception as error:  # noqa: BLE001 - recorded with its traceback; the sweep goes on with the next cell
            _fail(asked, cell, base_seed, stage, f"{type(error).__name__}: {error}", traceback.format_exc())
        else:
            return True
    return False


def one_thread() -> None:
    """Arithmetic as in harness/jobs.py: so many threads, whoever started this process, for the same floats."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(THREADS)))  # for libraries that are loaded from now on
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)


def _suite(asked: Asked, cell: str) -> Path:
    if asked.suite is not None:
        return asked.suite
    return make_suite(composed(asked.store.grid(), cell, asked.typed))


def _fail(asked: Asked, cell: str, base_seed: int, stage: str, error: str, trace: str) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    commit, _ = code_state(Path(__file__))
    line = error.partition("\n")[0]
    failure = Failure(
        cell=cell, base_seed=base_seed, stage=stage, error=line, traceback=trace, when=when, code_commit=commit
    )
    asked.store.fail(failure)
    print(trace or line, file=sys.stderr)
