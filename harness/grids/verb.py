"""`python -m harness ablate grid=NAME`: plans the grid, has Hydra run what is missing, and watches."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from harness.commands import complain_of, refuse_paper_scale
from harness.errors import UserError
from harness.grids.cells import composed, key_of, settings_of
from harness.grids.grid import ALL, GRIDS, Grid, all_grids, load_grid
from harness.grids.guard import VARIABLE, end_children
from harness.grids.listing import print_plan
from harness.grids.plans import Planned, Planner
from harness.grids.status import DONE, FAILED, TO_DO, Status, name_of, status_of
from harness.grids.view import View
from harness.jobs import THREAD_VARIABLES, THREADS, default_jobs
from harness.row_store import RowStore
from harness.settings import ABLATE, MAIN, Launcher, Reuse

OF_THE_VERB = {item for item in ABLATE.schema.__dataclass_fields__ if item not in MAIN.schema.__dataclass_fields__}
OF_THE_COMMAND = OF_THE_VERB | {"jobs", "runs_dir", "results_dir", "output", "suite"}
"""Settings that say where and how, and not what a cell is."""
NOT_IN_A_GRID = OF_THE_COMMAND | {"seed", "base_seeds", "scale", "rows", "checkpoint", "workers", "batch_size"}
SECONDS_TO_LEAVE = 10.0


class CellsFailed(UserError):
    """Some cells failed, or the sweep ended early; all else is stored."""

    exit_code = 1


@dataclass(frozen=True)
class Command:
    """What was asked for: `typed` are the settings of every cell, `jobs` processes at once."""

    settings: DictConfig
    typed: tuple[str, ...]
    runs: Path
    results: Path
    suite: Path | None
    jobs: int

    @classmethod
    def of(cls, settings: DictConfig, overrides: Sequence[str]) -> "Command":
        """From the verb's composed settings and what was typed."""
        typed = tuple(text for text in overrides if key_of(text) not in OF_THE_COMMAND)
        return cls(
            settings,
            typed,
            runs=Path(settings.runs_dir).absolute(),
            results=Path(settings.results_dir).absolute(),
            suite=None if settings.suite is None else Path(settings.suite).resolve(),
            jobs=default_jobs() if settings.jobs is None else settings.jobs,
        )

    @property
    def base_seeds(self) -> tuple[int, ...]:
        """Of every cell."""
        return tuple(self.settings.base_seeds)

    def store(self, grid: Grid) -> RowStore:
        """Where a grid's rows are."""
        return RowStore(self.results, grid.name, self.settings.scale.name, self.settings.seed)

    def planner(self) -> Planner:
        """Plans cells under these settings."""
        return Planner(self.runs, self.typed, self.suite)


def ablate(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Run whatever of a grid, or of the book, is not done; with dry_run, say what that would be.

    Raises UserError for a mistake in a grid or in what was typed, CellsFailed (exit 1) after everything else is done
    if cells failed, TooManyFailures (exit 3) if too many questions had no answer.
    """
    refuse_paper_scale(settings)
    folder = GRIDS if settings.grids_dir is None else Path(settings.grids_dir)
    if settings.grid is None:
        raise UserError(
            f"ablate needs grid=NAME, one of {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}, or {ALL}"
        )
    grids = all_grids(folder, composed=False) if settings.grid == ALL else [load_grid(settings.grid, folder, False)]
    command = Command.of(settings, overrides)
    _check(grids, command.typed)
    if settings.dry_run:
        planner = command.planner()
        planned = [(grid, _status(command, grid, planner.rows(grid, command.base_seeds))) for grid in grids]
        print_plan(planned, command.runs, command.results, command.jobs)
        return
    failed = [name for grid in grids for name in _run(command, grid)]
    _complain(command, grids)
    if failed:
        raise CellsFailed(
            f"{len(failed)} rows failed: {', '.join(failed)}; everything else is stored; the tracebacks are in "
            f"{command.results}/rows/ablations/*.failures.jsonl, and retry=true tries them again"
        )


def _check(grids: Sequence[Grid], typed: Sequence[str]) -> None:
    """UserError for settings that no cell of any grid takes, or that a grid cannot make."""
    taken = set()
    for grid in grids:
        for name, cell in grid.cells.items():
            for text in (*grid.together, *cell.set):
                if key_of(text) in NOT_IN_A_GRID:
                    raise UserError(
                        f"grid {grid.name}, cell {name}: {key_of(text)} is a setting of the whole command, not of a "
                        "cell; leave it out of the grid and type it"
                    )
            taken |= set(settings_of(grid, name, typed))
    for text in typed:
        if text not in taken:
            named = f"grid {grids[0].name}" if len(grids) == 1 else "grids"
            raise UserError(f"{text} changes no cell of the {named}: each sets {key_of(text)} itself; leave it out")


def _status(command: Command, grid: Grid, planned: Sequence[Planned]) -> Status:
    committed = command.settings.reuse is Reuse.committed
    return status_of(planned, command.store(grid), command.runs, committed)


# ---------------------------------------------------------------------------------------------------- one grid


def _run(command: Command, grid: Grid) -> list[str]:
    """Run a grid; the names of the rows that failed, now or before."""
    _make_suites(command, grid)
    planned = command.planner().rows(grid, command.base_seeds)
    store = command.store(grid)
    store.begin(grid)
    _set_aside(command, grid, store, planned)
    if command.settings.retry:
        for row in _status(command, grid, planned).rows(FAILED):
            store.clear_failure(row.cell, row.base_seed)
    status = _status(command, grid, planned)
    if skipped := status.rows(FAILED):
        _say(f"{grid.name}: skipped, since they failed before (retry=true tries again): {_names(skipped)}")
    if not status.rows(TO_DO):
        done = len(status.rows(DONE))
        _say(f"{grid.name}: all done ({done} rows)" if not skipped else f"{grid.name}: {done} rows done")
        return [f"{grid.name} {name_of(row)}" for row in skipped]
    _sweep(command, grid, status)
    after = _status(command, grid, planned)
    if left := after.rows(TO_DO):
        raise CellsFailed(
            f"{grid.name}: the sweep ended early, {len(left)} rows are left: {_names(left)}; its log is in "
            f"{command.runs / 'sweeps'}, and the same command goes on"
        )
    return [f"{grid.name} {name_of(row)}" for row in after.rows(FAILED)]


def _make_suites(command: Command, grid: Grid) -> None:
    """Generate the suites that are not there: before the sweep, on all cores."""
    if command.suite is not None:
        return
    from harness.grids.suites import make_suite
    from harness.progress import Display

    planner = command.planner()
    for name in grid.cells:
        if not planner.has_suite(grid, name):
            with Display() as display:
                make_suite(composed(grid, name, command.typed), max(command.jobs, 1), display.progress())


def _set_aside(command: Command, grid: Grid, store: RowStore, planned: Sequence[Planned]) -> None:
    """Move rows of other content out of the way; rows of further base seeds stay if they are as they would be now."""
    stored = store.rows()
    further = tuple(sorted({row.base_seed for row in stored} - set(command.base_seeds)))
    keep = {row.content_hash for row in planned}
    if further:
        others = replace(command.planner(), typed=(*_without(command.typed, "base_seeds"), _base_seeds(further)))
        keep |= {row.content_hash for row in others.rows(grid, further)}
    where = command.runs / "replaced"
    moved = store.set_aside(keep, where)
    if moved:
        _say(
            f"{grid.name}: {len(moved)} stored rows were of other content (settings, code or libraries have changed); "
            f"they are now in {where}"
        )


def _without(typed: Sequence[str], key: str) -> list[str]:
    return [text for text in typed if key_of(text) != key]


def _base_seeds(seeds: Sequence[int]) -> str:
    return f"base_seeds=[{','.join(map(str, seeds))}]"


def _sweep(command: Command, grid: Grid, status: Status) -> None:
    """Have the missing rows computed, by Hydra's launcher or, with jobs=0, in this process."""
    sweep = command.runs / "sweeps" / f"{grid.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}"
    sweep.mkdir(parents=True)
    mark = sweep / "begun"
    mark.touch()
    begun = mark.stat().st_mtime
    view = View(grid, status, command.store(grid), command.runs, command.results, sweep, max(command.jobs, 1))
    if command.jobs == 0:
        _in_this_process(command, grid, status, sweep, begun, view)
        return
    with view, _launched(_arguments(command, grid, status, sweep, begun), sweep / "log.txt") as is_running:
        while is_running():
            view.look()
            time.sleep(0.5)
        view.look(last=True)


def _in_this_process(command: Command, grid: Grid, status: Status, sweep: Path, begun: float, view: View) -> None:
    """For a debugger: one row after the other."""
    from harness.grids.job import Asked, work_on

    scale, seed = command.settings.scale.name, command.settings.seed
    asked = Asked(grid.name, scale, seed, command.typed, command.suite, command.runs, command.results, sweep, begun)
    with view:
        for row in status.rows(TO_DO):
            work_on(asked, row.cell, row.base_seed)
            view.look(last=True)


def _arguments(command: Command, grid: Grid, status: Status, sweep: Path, begun: float) -> list[str]:
    """The Hydra app's command line: a multirun over what is to do."""
    to_do = status.rows(TO_DO)
    cells = dict.fromkeys(row.cell for row in to_do)
    base_seeds = sorted({row.base_seed for row in to_do})
    wanted = {(row.cell, row.base_seed) for row in to_do}
    skip = [f"{cell}/{seed}" for cell in cells for seed in base_seeds if (cell, seed) not in wanted]
    # Cells vary slowest: a cell's base seeds run side by side, and with them the bases that everything waits for.
    return [
        "--multirun",
        f"grid={quoted(grid.name)}",
        f"cell={','.join(map(quoted, cells))}",
        f"base_seed={','.join(map(str, base_seeds))}",
        f"skip={_list(skip)}",
        f"settings={_list(command.typed)}",
        f"suite={'null' if command.suite is None else quoted(str(command.suite))}",
        f"runs_dir={quoted(str(command.runs))}",
        f"results_dir={quoted(str(command.results))}",
        f"folder={quoted(str(sweep))}",
        f"begun={begun!r}",
        *launcher_arguments(command.settings, command.jobs),
    ]


def launcher_arguments(settings: DictConfig, jobs: int) -> list[str]:
    """What chooses and sets up the launcher."""
    launcher = settings.launcher
    chosen = [f"hydra/launcher=sweep_{launcher.name}"]
    if launcher is Launcher.joblib:
        return [*chosen, f"hydra.launcher.n_jobs={jobs}"]
    if launcher is Launcher.submitit_local:
        return [*chosen, f"hydra.sweeper.max_batch_size={jobs}"]
    partition = "null" if settings.partition is None else quoted(settings.partition)
    return [
        *chosen,
        f"hydra.launcher.partition={partition}",
        f"hydra.launcher.timeout_min={settings.minutes}",
        f"hydra.launcher.mem_gb={settings.gigabytes}",
        f"hydra.launcher.gpus_per_node={settings.gpus}",
    ]


def quoted(text: str) -> str:
    """A text as Hydra's command line takes it, whatever is in it."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)  # backslashes count before a quote alone
    return "'" + re.sub(r"\\+$", lambda found: found[0] * 2, escaped) + "'"


def _list(texts: Sequence[str]) -> str:
    return f"[{','.join(map(quoted, texts))}]"


@contextmanager
def _launched(arguments: list[str], log: Path) -> Iterator[Callable[[], bool]]:
    """The Hydra app in a process of its own, ended on the way out; yields whether it still runs."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(THREADS)), VARIABLE: "1"}
    command = [sys.executable, "-m", "harness.grids.sweep", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
        try:
            yield lambda: process.poll() is None
        finally:
            if process.poll() is None:
                end_children()
            process.stdin.close()
            process.wait()


def _complain(command: Command, grids: Sequence[Grid]) -> None:
    rows = [row for grid in grids for row in command.store(grid).rows() if row.failures]
    failed = sum(row.failures for row in rows)
    named = sorted({f"{row.grid} {row.cell}" for row in rows})
    asked = sum(row.n_samples for grid in grids for row in command.store(grid).rows())
    complain_of(failed, asked, named)


def _names(rows: Sequence[Planned]) -> str:
    return ", ".join(map(name_of, rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
