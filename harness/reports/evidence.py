"""What claims are decided by: differences between cells, gains, slopes, counted costs; each with its interval.

Everything is read from a results folder. What is not there is None, and the claim is owed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from harness import statistics
from harness.foot import BASELINE
from harness.plug_and_play_points import TABLE as STUDY
from harness.report import chance_line
from harness.reports.grid_result import BY, CATEGORY_MEANS, GridResult
from harness.rows import read_samples, samples_name
from harness.statistics import AVERAGE, LEVEL, Scores

POINTS = "percentage points"
MAIN_SCALE, MAIN_SEED = "mini", 0
SIXTEEN = f"{BASELINE[0]}@{BASELINE[1]}"


@dataclass(frozen=True)
class Finding:
    """A number with its interval, and what it was found on."""

    figure: float
    lo: float
    hi: float
    unit: str
    control: str
    scale: str
    n_samples: int | None = None
    seeds: int | None = None

    def negated(self, control: str) -> "Finding":
        """The difference the other way round."""
        return Finding(-self.figure, -self.hi, -self.lo, self.unit, control, self.scale, self.n_samples, self.seeds)


Find = Callable[["Evidence"], Finding | None]


class Evidence:
    """A results folder, read when asked; `grids` are its analysed grids, which of each the first is taken."""

    def __init__(self, results: Path, grids: Sequence[GridResult]):
        self.results = Path(results)
        self.grids: dict[str, GridResult] = {}
        for grid in grids:
            self.grids.setdefault(grid.grid.name, grid)

    def scores(self, grid: str, cells: Sequence[str]) -> tuple[Scores, str] | None:
        """The scores that hold all of `cells`, and their scale: a suite of the grid, else the main table's."""
        found = self.grids.get(grid)
        pools = [(suite.scores, found.scale) for suite in found.suites] if found else []
        if grid in ALSO_IN_MAIN and self.main is not None:
            pools.append((self.main, MAIN_SCALE))
        return next((pool for pool in pools if all((cell,) in pool[0].settings for cell in cells)), None)

    @cached_property
    def main(self) -> Scores | None:
        """The main table's rows, cells named as in the grid frames."""
        path = self.results / "rows" / samples_name("main", MAIN_SCALE, MAIN_SEED)
        if not path.is_file():
            return None
        samples = read_samples(path)
        cells = samples["architecture"] + "@" + samples["frames"].astype(str)
        return statistics.resample(samples.assign(cell=cells), CATEGORY_MEANS, by=BY)

    @cached_property
    def study(self) -> Scores | None:
        """The plug-and-play study's points, cells named CURVE@STEPS."""
        path = self.results / "rows" / samples_name(STUDY, MAIN_SCALE, MAIN_SEED)
        if not path.is_file():
            return None
        samples = pd.read_parquet(path)
        cells = samples["curve"] + "@" + samples["step"].astype(str)
        return statistics.resample(samples.assign(cell=cells), CATEGORY_MEANS, by=BY)

    def profile(self, name: str) -> pd.DataFrame | None:
        """A file of results/profiles."""
        path = self.results / "profiles" / name
        return pd.read_csv(path) if path.is_file() else None


ALSO_IN_MAIN = ("frames",)
"""Grids whose cells the main table has as well, under the same names."""


def minus(grid: str, first: str, second: str) -> Find:
    """One cell's average minus another's, on the same questions."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, [first, second])
        return None if pool is None else _difference(*pool, first, second)

    return find


def best_minus(grid: str, cells: Sequence[str], second: str) -> Find:
    """The best of `cells` minus `second`; the interval is at 1 - 5% / their number, for the best was chosen."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, [*cells, second])
        return None if pool is None else max(_family(*pool, cells, second), key=lambda each: each.figure)

    return find


def minus_best(grid: str, first: str, cells: Sequence[str]) -> Find:
    """One cell minus the best of `cells`; interval as in `best_minus`."""

    def find(evidence: Evidence) -> Finding | None:
        found = best_minus(grid, cells, first)(evidence)
        return None if found is None else found.negated(f"the best of {', '.join(cells)}")

    return find


def farthest(grid: str, cells: Sequence[str], second: str) -> Find:
    """Of `cells` minus `second`, the one whose interval, at 1 - 5% / their number, reaches farthest from 0."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, [*cells, second])
        if pool is None:
            return None
        return max(_family(*pool, cells, second), key=lambda each: max(abs(each.lo), abs(each.hi)))

    return find


def relative_gain(grid: str, first: str, second: str) -> Find:
    """What one cell's average is over another's, in percent of the latter."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, [first, second])
        if pool is None:
            return None
        scores, scale = pool
        a, b = scores.of((first,)), scores.of((second,))
        estimate = 100 * (scores.estimate_SN[a, -1] / scores.estimate_SN[b, -1] - 1)
        draws_B = 100 * scores.difference_BN((first,), (second,))[:, -1] / scores.draws_BSN[:, b, -1]
        return _finding(scores, scale, float(estimate), draws_B, "% of the control's average", second)

    return find


def minus_chance(grid: str, cell: str) -> Find:
    """A cell's average over what guessing gives, which is known exactly."""

    def find(evidence: Evidence) -> Finding | None:
        pool, found = evidence.scores(grid, [cell]), evidence.grids.get(grid)
        if pool is None or found is None or cell not in found.cells:
            return None
        scores, scale = pool
        level = chance_line(found.samples[found.samples["cell"].eq(cell)])[AVERAGE]
        over_S, draws_B = scores.estimate_SN[:, -1] - level, scores.draws_BSN[:, scores.of((cell,)), -1] - level
        return _finding(scores, scale, float(over_S[scores.of((cell,))]), draws_B, POINTS, "chance")

    return find


def slope(grid: str, cells: dict[str, int]) -> Find:
    """Points of the average gained per doubling of the frames: least squares over `cells`, name -> frames."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, list(cells))
        if pool is None:
            return None
        scores, scale = pool
        doublings = np.log2(list(cells.values()))
        weights = (doublings - doublings.mean()) / ((doublings - doublings.mean()) ** 2).sum()
        places = [scores.of((cell,)) for cell in cells]
        estimate_K = scores.estimate_KSN[:, places, -1] @ weights
        videos_KB = scores.videos_KBSN[:, :, places, -1] @ weights
        draws_B = statistics.with_seeds(estimate_K, videos_KB, scores.weight_BK)
        unit = f"{POINTS} per doubling of frames"
        return _finding(scores, scale, float(estimate_K.mean()), draws_B, unit, f"{next(iter(cells))}, and onwards")

    return find


def study_minus(first: str, second: str) -> Find:
    """One point of the plug-and-play study, CURVE@STEPS, minus another."""

    def find(evidence: Evidence) -> Finding | None:
        scores = evidence.study
        if scores is None or not {(first,), (second,)} <= set(scores.settings):
            return None
        return _difference(scores, MAIN_SCALE, first, second)

    return find


def counted_overhead(scope: str) -> Find:
    """Slow-fast at 128 frames over self-attention at 16, counted at 7B, in percent: with 64 text tokens the figure,
    over all numbers of text tokens that were counted the range."""

    def find(evidence: Evidence) -> Finding | None:
        table = evidence.profile("three_percent_paper.csv")
        if table is None:
            return None
        percent = table[table["name"].eq(scope)].set_index("x")["value"] * 100
        texts = f"text tokens: {percent.index[0]:g}, range over {', '.join(f'{x:g}' for x in percent.index)}"
        return Finding(
            percent.iloc[0], percent.min(), percent.max(), f"% ({texts})", SIXTEEN, "7B, counted without weights"
        )

    return find


def log_slope(architecture: str, scope: str, how: str) -> Find:
    """The slope of the cost's logarithm against that of the frames, from the profiles; 1 is linear."""

    def find(evidence: Evidence) -> Finding | None:
        table = evidence.profile("scaling_slopes.csv")
        if table is None:
            return None
        chosen = table["architecture"].eq(architecture) & table["scope"].eq(scope) & table["how"].str.startswith(how)
        if not chosen.any():
            return None
        row = table[chosen].iloc[0]
        frames = f"{row['from_frames']} to {row['to_frames']:,} frames"
        scale = row["how"] if row["how"].startswith("counted") else "mid-size model, measured"
        return Finding(row["slope"], row["low"], row["high"], f"log-log slope, {frames}", "1: linear", scale)

    return find


def nothing(evidence: Evidence) -> None:
    """For claims that nothing here can decide."""


def _difference(scores: Scores, scale: str, first: str, second: str, level: float = LEVEL) -> Finding:
    found = statistics.compare(scores, [((first,), (second,))], level).iloc[0]
    asked = scores.answers.right_QKS.shape
    return Finding(found["difference"], found["lo"], found["hi"], POINTS, second, scale, asked[0] * asked[1], asked[1])


def _family(scores: Scores, scale: str, cells: Sequence[str], second: str) -> list[Finding]:
    """Each cell minus `second`, at a level that holds for all of them together; the control names the cell."""
    level = 1 - (1 - LEVEL) / len(cells)
    found = [(cell, _difference(scores, scale, cell, second, level)) for cell in cells]
    return [Finding(**{**vars(each), "control": f"{second} ({cell} minus it)"}) for cell, each in found]


def _finding(scores: Scores, scale: str, figure: float, draws_B: np.ndarray, unit: str, control: str) -> Finding:
    lo, hi = statistics.interval(draws_B)
    asked = scores.answers.right_QKS.shape
    return Finding(figure, float(lo), float(hi), unit, control, scale, asked[0] * asked[1], asked[1])
