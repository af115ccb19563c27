"""One grid's rows and samples, resampled and compared: what its table, figure, answer and claims are made of.

Cells are compared with the grid's reference on the same questions. A grid may ask several suites (worlds): then each
cell is compared with the reference's counterpart in its own suite, the cell that differs from the reference by its
world alone. A cell that lacks a base seed which others have is left out, and named.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from harness import statistics
from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.foot import BASELINE
from harness.row_store import Failure, RowStore
from harness.statistics import Scores

if TYPE_CHECKING:
    from harness.grids.grid import Grid

BY = ["cell"]
CATEGORY_MEANS = [name for name, b in BENCHMARKS.items() if b.aggregation == "categories"]
TOLERANCE = 1e-3  # lmms-eval rounds one metric to 0.001 %
OWN_STAGES = ("adapt", "evaluate")
WORLD_GROUP = "world"


@dataclass(frozen=True)
class Suite:
    """The cells that were asked one suite's questions.

    Attributes:
        fingerprint: the suite's.
        reference: the cell that its cells are compared with; None if there is none in this suite.
        scores: its cells' samples, resampled.
        differences: a line per other cell: cell, reference and what `statistics.compare` finds of the average.
    """

    fingerprint: str
    cells: list[str]
    reference: str | None
    scores: Scores
    differences: pd.DataFrame


@dataclass(frozen=True)
class GridResult:
    """A grid that has rows.

    Attributes:
        rows, samples: of the cells that are complete, in the grid's order; columns as `RowStore` gives them.
        seeds: the base seeds of every complete cell.
        incomplete: cell -> the base seeds that it lacks; cells without any row are among them.
    """

    grid: "Grid"
    scale: str
    seed: int
    rows: pd.DataFrame
    samples: pd.DataFrame
    seeds: list[int]
    suites: list[Suite]
    failures: list[Failure]
    incomplete: dict[str, list[int]]

    @property
    def cells(self) -> list[str]:
        """The complete cells, in the grid's order."""
        return list(dict.fromkeys(self.rows["cell"]))

    def suite_of(self, cell: str) -> Suite:
        """The suite that a cell was asked; KeyError if it is not complete."""
        for suite in self.suites:
            if cell in suite.cells:
                return suite
        raise KeyError(cell)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """All suites' differences of the average from the reference, by cell, p corrected over the grid (Holm)."""
        parts = [suite.differences for suite in self.suites if len(suite.differences)]
        if not parts:
            return pd.DataFrame()
        found = pd.concat(parts).set_index("cell")
        found = found.assign(p_holm=statistics.holm(found["p"]))
        return found.loc[[cell for cell in self.cells if cell in found.index]]

    @property
    def detectable(self) -> float:
        """The median over its comparisons of the smallest difference found with 80% power; NaN without any."""
        return float(self.differences["detectable"].median()) if len(self.differences) else float("nan")

    @property
    def seconds(self) -> dict[str, float]:
        """Time of the grid: `own` of its cells, `shared` of what other grids need too; each stage once.

        Rows do not say which stage they share, but how long it took, to a hundredth of a second: equal stages with
        equal times are one.
        """
        stages = {pair for timings in self.rows["timings"] for pair in timings.items()}
        own = sum(seconds for stage, seconds in stages if stage in OWN_STAGES)
        return {"own": own, "shared": sum(seconds for _, seconds in stages) - own}

    @property
    def baseline(self) -> str | None:
        """The cell of self-attention at 16 frames, if the grid has one."""
        found = self.rows[
            self.rows["architecture"].eq(BASELINE[0])
            & self.rows["frames"].eq(BASELINE[1])
            & self.rows["control"].eq("none")
        ]
        return found["cell"].iloc[0] if len(found) else None


def analyse(store: RowStore) -> GridResult | None:
    """A grid's rows compared; None if no row is there yet.

    Raises UserError if the samples are not those of the rows, or cells of one suite differ in their questions.
    """
    grid, rows = store.grid(), store.frame()
    rows = rows[rows["cell"].isin(grid.cells)]
    if rows.empty:
        return None
    seeds, incomplete = lacking(grid, rows)
    place = {cell: number for number, cell in enumerate(grid.cells)}
    rows = rows[~rows["cell"].isin(incomplete) & rows["base_seed"].isin(seeds)]
    rows = rows.sort_values(["cell", "base_seed"], key=_by(place), kind="stable", ignore_index=True)
    samples = store.samples()
    samples = samples[~samples["cell"].isin(incomplete) & samples["base_seed"].isin(seeds)]
    suites = [_suite(grid, name, group, samples) for name, group in rows.groupby("suite_fingerprint", sort=False)]
    return GridResult(grid, store.scale, store.seed, rows, samples, seeds, suites, store.failures(), incomplete)


def lacking(grid: "Grid", rows: pd.DataFrame) -> tuple[list[int], dict[str, list[int]]]:
    """The base seeds that every cell must have, and which of them cells lack; `rows` must hold a cell of the grid."""
    there = rows[rows["cell"].isin(grid.cells)].groupby("cell")["base_seed"].agg(set).to_dict()
    seeds = _seeds(list(there.values()))
    incomplete = {
        cell: [seed for seed in seeds if seed not in there.get(cell, ())]
        for cell in grid.cells
        if not there.get(cell, set()) >= set(seeds)
    }
    return seeds, incomplete


def _seeds(there: list[set[int]]) -> list[int]:
    """The base seeds that cells must have: all that any has; those of the fullest cell if no cell has them all."""
    every = set.union(*there)
    return sorted(map(int, every if every in there else max(there, key=len)))


def _suite(grid: "Grid", fingerprint: str, rows: pd.DataFrame, samples: pd.DataFrame) -> Suite:
    """The cells of one suite, resampled and compared with the reference or its counterpart."""
    cells = list(dict.fromkeys(rows["cell"]))
    asked = samples[samples["cell"].isin(cells)]
    scores = statistics.resample(asked, CATEGORY_MEANS, by=BY)
    _check(rows, scores)
    reference = counterpart(grid, cells)
    others = [cell for cell in cells if cell != reference]
    if reference is None or not others:
        return Suite(fingerprint, cells, reference, scores, pd.DataFrame())
    found = statistics.compare(scores, [((cell,), (reference,)) for cell in others])
    found = found.assign(cell=[first[0] for first in found["first"]], reference=reference)
    return Suite(fingerprint, cells, reference, scores, found)


def counterpart(grid: "Grid", cells: list[str]) -> str | None:
    """Which of `cells` differs from the grid's reference by its world alone; None if none does."""
    if grid.reference in cells:
        return grid.reference
    wanted = _without_world(grid, grid.reference)
    return next((cell for cell in cells if _without_world(grid, cell) == wanted), None)


def _without_world(grid: "Grid", cell: str) -> set[str]:
    typed = grid.cells[cell].set
    return {text for text in typed if text.partition("=")[0].partition(".")[0] != WORLD_GROUP}


def _check(rows: pd.DataFrame, scores: Scores) -> None:
    """UserError unless the samples give the rows' scores."""
    for cell, group in rows.groupby("cell"):
        expected = pd.DataFrame(group["scores"].tolist()).mean()
        found = dict(zip(scores.benchmarks, scores.estimate_SN[scores.of((cell,))], strict=True))
        for name, score in expected.items():
            if not abs(found.get(name, float("nan")) - score) < TOLERANCE:
                raise UserError(
                    f"{cell}: the samples give {found.get(name)} on {name}, the rows {score}: rows and samples "
                    "files are of different runs; remove the cell's row and run the grid again."
                )


def _by(place: dict[str, int]):
    """A sort key: cells by their place, seeds as they are."""
    return lambda column: column.map(place) if column.name == "cell" else column
