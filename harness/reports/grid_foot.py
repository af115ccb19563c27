"""What stands under a grid's table: what was measured, how intervals are made, what is missing, how long it took."""

from collections.abc import Mapping, Sequence

import pandas as pd

from harness import foot
from harness.reports import remarks
from harness.reports.grid_result import GridResult
from harness.row_store import Failure
from harness.statistics import DRAWS, LEVEL, QUESTION

INTERVALS = (
    f"Intervals: {LEVEL:.0%}, {DRAWS:,} bootstrap draws of the videos within each benchmark, the same for all cells of "
    "a suite, and of the base seeds, n - 1 of n with replacement (Rao and Wu, 1988), as far as these differ by more "
    "than the chance of their answers. They say how far other videos and other trainings would move a score; where "
    "two base seeds differ by more than that chance, they are too narrow: two say little of a third."
)
ONE_SEED = (
    f"Intervals: {LEVEL:.0%}, {DRAWS:,} bootstrap draws of the videos within each benchmark, the same for all cells of "
    "a suite. There is one base seed: they say nothing of how far other trainings would move a score."
)
COMPARED = (
    "difference: on the same questions, in percentage points. p: two-sided, from the same draws; p Holm: corrected for "
    "all comparisons of this grid; p McNemar: exact test over all questions, the largest over base seeds, which takes "
    "questions as independent and trainings as given: read it beside the interval. detectable: the smallest difference "
    "that would be found with 80% power at 5%."
)
SUITES = (
    "The cells were asked {n} suites: each is compared with the reference's counterpart in its own suite, the cell "
    "that differs from the reference by its world alone."
)
COSTS = (
    "prefill: the language model with its cross-attention, without vision tower and projector, of the same "
    "architecture at Qwen2-7B's sizes, counted without weights. model: with vision tower (ConvNeXt-XXLarge, 576 px, "
    "every frame that it sees), projector and compressor. over reference: over {reference}; over 16 frames: over "
    "self_attention at 16."
)
SEVERAL_MACHINES = (
    "Cells of several machines, which may round differently, so that equal training ends at other scores; differences "
    "between them hold that, too. {cells}."
)
TIME = (
    "Time of the grid: {own} of its cells' adaptation and evaluation, and {shared} of stages that other grids share "
    "(encoder, pool, bases), each once; sums of the stages' seconds, not of the wall's."
)


def lines(result: GridResult) -> list[str]:
    """The foot: all but the recipe's disclosures."""
    rows = result.rows
    return [
        foot.SCALES.get(result.scale, f"Scale: {result.scale}."),
        *_asked(result),
        INTERVALS if len(result.seeds) > 1 else ONE_SEED,
        *compared(result),
        foot.FLOPS,
        COSTS.format(reference=result.grid.reference),
        *remarks.lines(rows, result.grid.reference),
        *foot.made_lines(rows),
        *machines(rows),
        *foot.failure_lines(result.samples),
        *missing(result),
        time_line(result),
        *([f"Where {result.scale} scale cannot tell: {result.grid.limits}"] if result.grid.limits else []),
    ]


def disclosures(result: GridResult) -> list[str]:
    """What a reader must know of the recipe; what only some cells carry begins with their names."""
    return foot.disclosure_lines(result.rows.assign(architecture=result.rows["cell"]))


def compared(result: GridResult) -> list[str]:
    """How cells were compared, and what the grid could have found."""
    if result.differences.empty:
        return ["Nothing is compared: the reference's rows are not there, or no others."]
    smallest = result.differences["detectable"]
    found = f"Smallest difference of the average that this grid would find: {smallest.median():.1f} points"
    spread = f" (median over its comparisons; {smallest.min():.1f} to {smallest.max():.1f})" * (len(smallest) > 1)
    several = [SUITES.format(n=len(result.suites))] if len(result.suites) > 1 else []
    return [COMPARED, *several, f"{found}{spread}."]


def machines(rows: pd.DataFrame) -> list[str]:
    """Which cells are of which machine; nothing where all are of one."""
    cells = rows.groupby("device", sort=False)["cell"].unique()
    if len(cells) < 2:
        return []
    return [SEVERAL_MACHINES.format(cells="; ".join(f"{device}: {', '.join(its)}" for device, its in cells.items()))]


def missing(result: GridResult) -> list[str]:
    """The cells that failed, with their sentence, and those that are not there for another reason."""
    return missing_rows(result.failures, result.incomplete)


def missing_rows(failures: Sequence[Failure], incomplete: Mapping[str, Sequence[int]]) -> list[str]:
    """The same of failures and of the base seeds that cells lack."""
    failed = {(failure.cell, failure.base_seed) for failure in failures}
    told = [
        f"Failed: {failure.cell}, base seed {failure.base_seed}, at {failure.stage}: {failure.error}"
        for failure in failures
    ]
    for cell, seeds in incomplete.items():
        lacking = [seed for seed in seeds if (cell, seed) not in failed]
        if lacking:
            told.append(f"Not there yet: {cell}, base seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}.")
    return told


def time_line(result: GridResult) -> str:
    """The grid's time."""
    return TIME.format(**{name: duration(seconds) for name, seconds in result.seconds.items()})


def duration(seconds: float) -> str:
    """Seconds as a person says them: `45 s`, `12 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _asked(result: GridResult) -> list[str]:
    """What was asked: metric, questions, videos, base seeds."""
    counts = []
    for suite in result.suites:
        asked = result.samples[result.samples["cell"].eq(suite.cells[0])].drop_duplicates(QUESTION)
        counts.append((len(asked), asked["video"].nunique()))
    spelt = "; ".join(f"{questions:,} questions on {videos:,} videos" for questions, videos in dict.fromkeys(counts))
    each = "" if len(result.suites) == 1 else f" in each of {len(result.suites)} suites"
    seeds = ", ".join(map(str, result.seeds))
    scores = foot.scores_line(result.samples).partition(" Intervals:")[0]
    return [
        scores,
        f"Each line: base seed{'s' * (len(result.seeds) > 1)} {seeds}{' pooled' if len(result.seeds) > 1 else ''}. "
        f"Answers: {spelt}{each}, per base seed. Failures (no video, no answer) and answers that name no option are "
        "scored wrong and stay in the denominator. chance: expected score of guessing among the options offered.",
    ]
