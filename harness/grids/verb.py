"""`python -m harness ablate grid=NAME`: plans the grid, has Hydra run what is missing, and watches."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from harness.commands import complain_of, expect_mini
from harness.errors import UserError
from harness.grids.cells import composed, key_of, settings_of
from harness.grids.grid import ALL, GRIDS, Grid, all_grids, load_grid
from harness.grids.job import replaced_in
from harness.grids.launch import run_sweep
from harness.grids.listing import print_plan
from harness.grids.plans import Planned, Planner, code_at_start, code_on_disk
from harness.grids.status import DONE, FAILED, TO_DO, Status, name_of, status_of
from harness.jobs import default_jobs
from harness.progress import Display, Progress
from harness.row_store import RowStore
from harness.settings import ABLATE, MAIN, Reuse

OF_THE_VERB = {item for item in ABLATE.schema.__dataclass_fields__ if item not in MAIN.schema.__dataclass_fields__}
OF_THE_COMMAND = OF_THE_VERB | {"jobs", "runs_dir", "results_dir", "output", "suite", "dry_run", "online", "submit"}
"""Settings that say where and how, and not what a cell is."""
NOT_IN_A_GRID = OF_THE_COMMAND | {"seed", "base_seeds", "scale", "rows", "checkpoint", "workers", "batch_size"}


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

    Raises UserError for a mistake in a grid or in what was typed; after everything else is done CellsFailed (exit 1) if
    cells failed or a grid could not be run, or TooManyFailures (exit 3) if too many questions had no answer.
    """
    expect_mini(settings, overrides)
    folder = GRIDS if settings.grids_dir is None else Path(settings.grids_dir)
    if settings.grid is None:
        raise UserError(
            f"ablate needs grid=NAME, one of {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}, or {ALL}"
        )
    grids = all_grids(folder, composed=False) if settings.grid == ALL else [load_grid(settings.grid, folder, False)]
    command = Command.of(settings, overrides)
    _check(grids, command.typed)
    planner = command.planner()
    # All grids before the first one runs: a mistake in the last is told at once.
    with Display() as display:
        planned = _planned(planner, grids, command.base_seeds, display.progress())
    if settings.dry_run:
        statuses = [(grid, _status(command, grid, rows)) for grid, rows in planned]
        print_plan(statuses, command.runs, command.results, command.jobs)
        return
    failed: list[str] = []
    errors: list[UserError] = []
    for grid in grids:
        try:
            _run(command, planner, grid, failed)
        except CellsFailed as error:
            errors.append(error)
        except UserError as error:
            if len(grids) == 1:
                raise
            errors.append(CellsFailed(f"{grid.name}: {error}"))
    _conclude(command, grids, failed, errors)


def _planned(
    planner: Planner, grids: Sequence[Grid], base_seeds: tuple[int, ...], progress: Progress
) -> list[tuple[Grid, list[Planned]]]:
    """Each grid's rows; half a second a cell unless the plan is remembered, and the book has 200."""
    found: list[tuple[Grid, list[Planned]]] = []
    with progress.bar("plan", total=sum(len(grid.cells) for grid in grids)) as bar:
        for grid in grids:
            rows: list[Planned] = []
            for name in grid.cells:
                rows += planner.cell(grid, name, base_seeds)
                bar.advance()
            found.append((grid, rows))
    return found


def _conclude(command: Command, grids: Sequence[Grid], failed: Sequence[str], errors: Sequence[UserError]) -> None:
    """Raise what went wrong, all of it in one sentence; nothing did if there is nothing to name."""
    told = list(errors)
    if failed:
        told.append(
            CellsFailed(
                f"{len(failed)} rows failed: {', '.join(failed)}; everything else is stored; the tracebacks are in "
                f"{command.results}/rows/ablations/*.failures.jsonl, and retry=true tries them again"
            )
        )
    try:
        _complain(command, grids)
    except UserError as error:
        told.append(error)
    if len(told) == 1:
        raise told[0]
    if told:
        raise CellsFailed("; ".join(map(str, told)))


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


def _run(command: Command, planner: Planner, grid: Grid, failed: list[str]) -> None:
    """Run a grid; `failed` gains the names of its rows that failed, now or before."""
    if code_on_disk() != code_at_start():
        raise CellsFailed(f"{grid.name}: not run, since the code has changed after this command began; run it again")
    _make_suites(command, planner, grid)
    planned = planner.rows(grid, command.base_seeds)
    store = command.store(grid)
    store.begin(grid)
    if command.settings.reuse is not Reuse.committed:
        _set_aside(command, planner, grid, planned)
    if command.settings.retry:
        for row in _status(command, grid, planned).rows(FAILED):
            store.clear_failure(row.cell, row.base_seed)
    status = _status(command, grid, planned)
    if skipped := status.rows(FAILED):
        _say(f"{grid.name}: skipped, since they failed before (retry=true tries again): {_names(skipped)}")
    if not status.rows(TO_DO):
        done = len(status.rows(DONE))
        _say(f"{grid.name}: all done ({done} rows)" if not skipped else f"{grid.name}: {done} rows done")
    else:
        _tell_replaced(command, grid, status)
        run_sweep(command, grid, lambda: _status(command, grid, planned))
    after = _status(command, grid, planned)
    failed += [f"{grid.name} {name_of(row)}" for row in after.rows(FAILED)]
    if left := after.rows(TO_DO):
        raise CellsFailed(_why_left(command, grid, left))


def _why_left(command: Command, grid: Grid, left: Sequence[Planned]) -> str:
    if code_on_disk() != code_at_start():
        why = "the code has changed while the sweep ran"
        return (
            f"{grid.name}: {why}, {len(left)} rows are left: {_names(left)}; run it again, with the code as it is now"
        )
    return (
        f"{grid.name}: the sweep ended early, {len(left)} rows are left: {_names(left)}; its log is in "
        f"{command.runs / 'sweeps'}, and the same command goes on"
    )


def _make_suites(command: Command, planner: Planner, grid: Grid) -> None:
    """Generate the suites that are not there: before the sweep, on all cores."""
    from harness.grids.suites import make_suite

    for name in grid.cells:
        if not planner.has_suite(grid, name):
            with Display() as display:
                make_suite(composed(grid, name, command.typed), max(command.jobs, 1), display.progress())


def _set_aside(command: Command, planner: Planner, grid: Grid, planned: Sequence[Planned]) -> None:
    """Move rows away that no row of this sweep will replace.

    Those are rows of cells that the grid has not any more, and of further base seeds if they are not as they would be
    now. All others stay until their replacement is there.
    """
    stored = command.store(grid).rows()
    asked = {(row.cell, row.base_seed) for row in planned}
    rows = [*planned, *(row for row in stored if (row.cell, row.base_seed) in asked)]
    further = tuple(sorted({row.base_seed for row in stored if row.cell in grid.cells} - set(command.base_seeds)))
    if further:
        others = replace(planner, typed=(*_without(command.typed, "base_seeds"), _base_seeds(further)))
        rows += others.rows(grid, further)
    where = replaced_in(command.runs)
    if moved := command.store(grid).set_aside({(row.cell, row.base_seed, row.content_hash) for row in rows}, where):
        _say(
            f"{grid.name}: {len(moved)} stored rows are of cells that the grid has no more, or of further base seeds "
            f"and other content; they are now in {where}"
        )


def _tell_replaced(command: Command, grid: Grid, status: Status) -> None:
    """Say how many stored rows the sweep will replace by others."""
    to_do = {(row.cell, row.base_seed): row.content_hash for row in status.rows(TO_DO)}
    stored = {(row.cell, row.base_seed): row.content_hash for row in command.store(grid).rows()}
    if same := [key for key in to_do if stored.get(key) == to_do[key]]:
        _say(
            f"{grid.name}: {len(same)} stored rows of equal content are made again here and replaced, in other grids "
            "too where scores differ; reuse=committed keeps them, results_dir=results/replicates/NAME puts this "
            "machine's beside them"
        )
    if stale := [key for key in to_do if stored.get(key, to_do[key]) != to_do[key]]:
        _say(
            f"{grid.name}: {len(stale)} stored rows are of other content (settings, code or libraries have changed); "
            f"each moves to {replaced_in(command.runs)} when its new one is there"
        )


def _without(typed: Sequence[str], key: str) -> list[str]:
    return [text for text in typed if key_of(text) != key]


def _base_seeds(seeds: Sequence[int]) -> str:
    return f"base_seeds=[{','.join(map(str, seeds))}]"


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
