"""What claims are decided by: differences between cells, gains, slopes, counted costs; each with its interval.

Everything is read from a results folder. What is not there is None, and the claim is owed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
SCALES = (MAIN_SCALE, "paper")  # that claims are decided at, in this order; others are for trying things out
AGAIN, KEPT = "slow K/V projected again", "slow K/V kept"  # as harness/speed/model.py calls them
PROJECTED_FRAMES = 128
SIXTEEN = f"{BASELINE[0]}@{BASELINE[1]}"


@dataclass(frozen=True)
class Finding:
    """A number with its interval, and what it was found on.

    Attributes:
        by_seed: each base seed's own figure.
        p_holm: p of "it is 0", corrected for all comparisons of its grid; None where that is not what is asked.
        members: of a figure that stands for several cells, each cell's own.
    """

    figure: float
    lo: float
    hi: float
    unit: str
    control: str
    scale: str
    n_samples: int | None = None
    seeds: int | None = None
    by_seed: tuple[float, ...] = ()
    p_holm: float | None = None
    members: tuple["Finding", ...] = ()

    def negated(self, control: str) -> "Finding":
        """The difference the other way round."""
        ends = {"figure": -self.figure, "lo": -self.hi, "hi": -self.lo}
        turned = tuple(each.negated(each.control) for each in self.members)
        return replace(self, **ends, control=control, by_seed=tuple(-each for each in self.by_seed), members=turned)


@dataclass(frozen=True)
class Pool:
    """Scores that cells are compared by, and the comparisons (by cell) that their grid makes of them anyway."""

    scores: Scores
    scale: str
    compared: pd.DataFrame = field(default_factory=pd.DataFrame)

    def corrected(self, p: float, first: str = "", second: str = "") -> float:
        """p after Holm over the grid's comparisons: as in its table if it stands there, else as one more of them."""
        for cell, other in ((first, second), (second, first)):
            if cell in self.compared.index and self.compared.loc[cell, "reference"] == other:
                return float(self.compared.loc[cell, "p_holm"])
        others = list(self.compared["p"]) if len(self.compared) else []
        return float(statistics.holm([*others, p])[-1])


Find = Callable[["Evidence"], Finding | None]


class Evidence:
    """A results folder, read when asked. Of each grid that is analysed, the first of SCALES and seeds is taken."""

    def __init__(self, results: Path, grids: Sequence[GridResult]):
        self.results = Path(results)
        self.grids: dict[str, GridResult] = {}
        known = [grid for grid in grids if grid.scale in SCALES]
        for grid in sorted(known, key=lambda each: (SCALES.index(each.scale), each.seed)):
            self.grids.setdefault(grid.grid.name, grid)

    def scores(self, grid: str, cells: Sequence[str]) -> Pool | None:
        """The scores that hold all of `cells`: a suite of the grid, else the main table's."""
        found = self.grids.get(grid)
        pools = [Pool(suite.scores, found.scale, found.differences) for suite in found.suites] if found else []
        if grid in ALSO_IN_MAIN and self.main is not None:
            pools.append(Pool(self.main, MAIN_SCALE))
        return next((pool for pool in pools if all((cell,) in pool.scores.settings for cell in cells)), None)

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
        return None if pool is None else _difference(pool, first, second)

    return find


def best_minus(grid: str, cells: Sequence[str], second: str) -> Find:
    """The best of `cells` minus `second`: the largest figure, the largest lower and the largest upper end.

    Each cell's interval is at 1 - 5% / their number, so that all hold together, and with them that of their largest.
    """

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, [*cells, second])
        return None if pool is None else _largest(_family(pool, cells, second))

    return find


def minus_best(grid: str, first: str, cells: Sequence[str]) -> Find:
    """One cell minus the best of `cells`: `best_minus` the other way round. It is above 0 if it is above each."""

    def find(evidence: Evidence) -> Finding | None:
        found = best_minus(grid, cells, first)(evidence)
        if found is None:
            return None
        p = max(each.p_holm for each in found.members)
        return replace(found.negated(f"the best of {', '.join(cells)}"), p_holm=p)

    return find


def farthest(grid: str, cells: Sequence[str], second: str) -> Find:
    """Every one of `cells` minus `second`: the figure that is farthest from 0, the lowest and the highest end."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, [*cells, second])
        if pool is None:
            return None
        members = _family(pool, cells, second)
        far = max(members, key=lambda each: abs(each.figure))
        lo, hi = min(each.lo for each in members), max(each.hi for each in members)
        control = f"{far.control}; the interval holds those of {', '.join(cells)}"
        return replace(far, lo=lo, hi=hi, control=control, members=tuple(members))

    return find


def relative_gain(grid: str, first: str, second: str) -> Find:
    """What one cell's average is over another's, in percent of the latter."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, [first, second])
        if pool is None:
            return None
        scores = pool.scores
        a, b = scores.of((first,)), scores.of((second,))
        estimate = 100 * (scores.estimate_SN[a, -1] / scores.estimate_SN[b, -1] - 1)
        draws_B = 100 * scores.difference_BN((first,), (second,))[:, -1] / scores.draws_BSN[:, b, -1]
        by_seed = 100 * (scores.estimate_KSN[:, a, -1] / scores.estimate_KSN[:, b, -1] - 1)
        found = _finding(pool, float(estimate), draws_B, "% of the control's average", second, by_seed)
        return replace(found, p_holm=_difference(pool, first, second).p_holm)

    return find


def minus_chance(grid: str, cell: str) -> Find:
    """A cell's average over what guessing gives, which is known exactly."""

    def find(evidence: Evidence) -> Finding | None:
        pool, found = evidence.scores(grid, [cell]), evidence.grids.get(grid)
        if pool is None or found is None or cell not in found.cells:
            return None
        scores, place = pool.scores, pool.scores.of((cell,))
        level = chance_line(found.samples[found.samples["cell"].eq(cell)])[AVERAGE]
        over, draws_B = scores.estimate_SN[place, -1] - level, scores.draws_BSN[:, place, -1] - level
        return _finding(pool, float(over), draws_B, POINTS, "chance", scores.estimate_KSN[:, place, -1] - level)

    return find


def slope(grid: str, cells: dict[str, int]) -> Find:
    """Points of the average gained per doubling of the frames: least squares over `cells`, name -> frames."""

    def find(evidence: Evidence) -> Finding | None:
        pool = evidence.scores(grid, list(cells))
        if pool is None:
            return None
        scores = pool.scores
        doublings = np.log2(list(cells.values()))
        weights = (doublings - doublings.mean()) / ((doublings - doublings.mean()) ** 2).sum()
        places = [scores.of((cell,)) for cell in cells]
        estimate_K = scores.estimate_KSN[:, places, -1] @ weights
        videos_KB = scores.videos_KBSN[:, :, places, -1] @ weights
        draws_B = statistics.with_seeds(estimate_K, videos_KB, scores.weight_BK)
        unit = f"{POINTS} per doubling of frames"
        control = f"{next(iter(cells))}, and onwards"
        return _finding(pool, float(estimate_K.mean()), draws_B, unit, control, estimate_K)

    return find


def study_minus(first: str, second: str) -> Find:
    """One point of the plug-and-play study, CURVE@STEPS, minus another."""

    def find(evidence: Evidence) -> Finding | None:
        scores = evidence.study
        if scores is None or not {(first,), (second,)} <= set(scores.settings):
            return None
        return _difference(Pool(scores, MAIN_SCALE), first, second)

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


def projecting_again_counted(evidence: Evidence) -> Finding | None:
    """A token of slow-fast generated behind 128 frames with slow keys and values projected again, over one with these
    kept: FLOPs at 7B, in percent. Counted, so without an interval."""
    table = evidence.profile("profile_paper.csv")
    if table is None:
        return None
    rows = table[table["architecture"].eq("slow_fast") & table["frames"].eq(PROJECTED_FRAMES)]
    if rows.empty:
        return None
    row = rows.iloc[0]  # both budgets have as many fast tokens at 128 frames
    more = 100 * (row["decode_step_flop_reprojecting"] / row["decode_step_flop"] - 1)
    unit = f"% more FLOPs a generated token, {PROJECTED_FRAMES} frames"
    return Finding(more, more, more, unit, KEPT, "7B, counted without weights")


def projecting_again_measured(evidence: Evidence) -> Finding | None:
    """The same of milliseconds; the range is that of the quartiles, one's first over the other's third and so on."""
    table = evidence.profile("bench.csv")
    if table is None:
        return None
    steps = table[table["part"].eq("decode step") & table["what"].eq(f"one token behind {PROJECTED_FRAMES} frames")]
    by_variant = steps.set_index("variant")
    if not {AGAIN, KEPT} <= set(by_variant.index):
        return None
    again, kept = by_variant.loc[AGAIN], by_variant.loc[KEPT]
    ends = (("value", "value"), ("quartile_1", "quartile_3"), ("quartile_3", "quartile_1"))
    more = [100 * (again[one] / kept[other] - 1) for one, other in ends]
    unit = f"% more time a generated token, {PROJECTED_FRAMES} frames (range: quartiles of {again['rounds']} rounds)"
    return Finding(*more, unit, KEPT, "mid-size model, measured")


def nothing(evidence: Evidence) -> None:
    """For claims that nothing here can decide."""


def _difference(pool: Pool, first: str, second: str, level: float = LEVEL) -> Finding:
    scores, a, b = pool.scores, pool.scores.of((first,)), pool.scores.of((second,))
    found = statistics.compare(scores, [((first,), (second,))], level).iloc[0]
    asked = scores.answers.right_QKS.shape
    by_seed = tuple((scores.estimate_KSN[:, a, -1] - scores.estimate_KSN[:, b, -1]).tolist())
    made = Finding(found["difference"], found["lo"], found["hi"], POINTS, second, pool.scale, asked[0] * asked[1])
    return replace(made, seeds=asked[1], by_seed=by_seed, p_holm=pool.corrected(found["p"], first, second))


def _family(pool: Pool, cells: Sequence[str], second: str) -> list[Finding]:
    """Each cell minus `second`, at a level that holds for all of them together; the control names the cell."""
    level = 1 - (1 - LEVEL) / len(cells)
    found = [(cell, _difference(pool, cell, second, level)) for cell in cells]
    return [replace(each, control=f"{second} ({cell} minus it)") for cell, each in found]


def _largest(members: Sequence[Finding]) -> Finding:
    """The largest of several differences. It is above 0 if any is: the least p of those above."""
    best = max(members, key=lambda each: each.figure)
    lo, hi = max(each.lo for each in members), max(each.hi for each in members)
    by_seed = tuple(map(max, *(each.by_seed for each in members))) if len(members) > 1 else best.by_seed
    p = min((each.p_holm for each in members if each.figure > 0), default=1.0)
    return replace(best, lo=lo, hi=hi, by_seed=by_seed, p_holm=p, members=tuple(members))


def _finding(pool: Pool, figure: float, draws_B: np.ndarray, unit: str, control: str, by_seed_K: np.ndarray) -> Finding:
    lo, hi = statistics.interval(draws_B)
    asked, p = pool.scores.answers.right_QKS.shape, pool.corrected(float(statistics.p_values(draws_B)))
    counts = {"n_samples": asked[0] * asked[1], "seeds": asked[1]}
    return Finding(
        figure, float(lo), float(hi), unit, control, pool.scale, **counts, by_seed=tuple(by_seed_K.tolist()), p_holm=p
    )
