"""What --dry-run prints: each grid's rows, which are done, and what the rest is expected to take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.grids.estimate import COMMITTED, GUESSED, OWN, Times, suite_seconds, unfinished, wall_seconds
from harness.grids.grid import Grid
from harness.grids.plans import Planned
from harness.grids.status import DONE, FAILED, TO_DO, Status
from harness.progress import clock

NAME = 34  # characters of a cell's name
SIGNS = {DONE: "done", FAILED: "failed", TO_DO: "to do"}


@dataclass
class Rest:
    """What is left of some rows: seconds and FLOP of their unfinished stages, each counted once."""

    seconds: dict[str, float]
    flop: float
    needs: dict[str, tuple[str, ...]]
    suites: float

    @classmethod
    def of(cls, rows: Sequence[Planned], runs: Path, times: Times, counted: frozenset[str] = frozenset()) -> "Rest":
        """Of `rows`, without the stages that are `counted` already."""
        left = {folder: both for folder, both in unfinished(rows, runs).items() if folder not in counted}
        seconds = {folder: times.seconds(*both) for folder, both in left.items()}
        flop = sum(stage.flop for stage, _ in left.values())
        return cls(seconds, flop, {folder: stage.needs for folder, (stage, _) in left.items()}, suite_seconds(rows))

    @property
    def work(self) -> float:
        """Seconds of all stages one after the other."""
        return sum(self.seconds.values())

    def wall(self, jobs: int) -> float:
        """Seconds with so many processes; suites are generated before, on as many."""
        return self.suites / max(jobs, 1) + wall_seconds(self.seconds, self.needs, jobs)


def print_plan(grids: Sequence[tuple[Grid, Status]], runs: Path, results: Path, jobs: int) -> None:
    """The plan of one grid or of the book, at most 80 characters wide."""
    times = Times.recorded(runs, results)
    counted: set[str] = set()
    for grid, status in grids:
        print("\n".join(_grid_lines(grid, status, runs, times, jobs, counted)), end="\n\n")
    rest = Rest.of([row for _, status in grids for row in _rest(status)], runs, times)
    for line in _foot(grids, rest, times, jobs):
        print(line)


def _rest(status: Status) -> list[Planned]:
    """The rows that the next run works on."""
    return status.rows(TO_DO)


def _grid_lines(grid: Grid, status: Status, runs: Path, times: Times, jobs: int, counted: set[str]) -> list[str]:
    """A grid's table; `counted` gains its stages."""
    seeds = sorted({row.base_seed for row in status.planned})
    header = f"  {'cell':{NAME}}" + "".join(f"{f'seed {seed}':>8}" for seed in seeds)
    lines = [f"{grid.name}: {grid.question}", f"{header:<60}{'7B TFLOP':>10}{'minutes':>9}"]
    begun = frozenset(counted)
    for name in grid.cells:
        rows = [row for row in status.planned if row.cell == name]
        rest = Rest.of([row for row in rows if status.of(row) == TO_DO], runs, times, frozenset(counted))
        counted |= set(rest.seconds)
        states = "".join(f"{SIGNS[status.of(row)]:>8}" for row in rows)
        cell = f"  {name:{NAME}.{NAME}}{states}"
        lines.append(f"{cell:<60}{rows[0].prefill_tflop_7b:>10.2f}{rest.work / 60:>9.1f}")
    rest = Rest.of(_rest(status), runs, times, begun)
    shared = "; what grids above share is counted there" if begun & set(unfinished(_rest(status), runs)) else ""
    lines.append(f"  {_counts(status)}: {_amount(rest, jobs)}{shared}")
    return lines


def _counts(status: Status) -> str:
    done, failed, to_do = (len(status.rows(state)) for state in (DONE, FAILED, TO_DO))
    told = f", {failed} failed before (retry=true tries again)" if failed else ""
    return f"{done} of {len(status.planned)} rows done{told}, {to_do} to do"


def _amount(rest: Rest, jobs: int) -> str:
    if not rest.seconds:
        return "nothing is left to compute"
    return f"{clock(rest.wall(jobs))} with {max(jobs, 1)} jobs"


def _foot(grids: Sequence[tuple[Grid, Status]], rest: Rest, times: Times, jobs: int) -> list[str]:
    rows = sum(len(status.planned) for _, status in grids)
    to_do = sum(len(_rest(status)) for _, status in grids)
    lines = [f"{len(grids)} grids, {rows} rows, {to_do} to do: {_amount(rest, jobs)} (hours:minutes:seconds)."]
    if rest.seconds:
        lines.append(
            f"Work: {len(rest.seconds)} stages, {rest.work / 60:.0f} minutes of one core, about {rest.flop / 1e15:.3g} "
            "PFLOP."
        )
        used = ", ".join(
            f"{times.used[source]} by {source}" for source in (OWN, COMMITTED, GUESSED) if times.used[source]
        )
        lines.append(f"Times of stages: {used}; each is counted once, whoever shares it.")
    if rest.suites:
        lines.append(f"Suites that are not there yet: {rest.suites / 60:.0f} minutes of one core, a guess.")
    lines.append("7B TFLOP: LLM prefill of one video at the 7B configuration, 2 x MAC.")
    return lines
