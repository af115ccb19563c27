"""A grid's answer in sentences, made from its comparisons."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from harness.layout import Interval
from harness.reports.grid_result import GridResult, Suite
from harness.statistics import AVERAGE, bootstrap

LEVEL = 0.05
FAR_APART = 5.0  # percentage points between base seeds' own differences


@dataclass(frozen=True)
class Answer:
    """What one suite's comparisons come to: a sentence on the reference, then a line on each group of cells."""

    reference: str
    groups: list[str]


def answers(result: GridResult) -> list[Answer]:
    """Which cells differ from the reference by how much, and which cannot be told apart; one answer a suite.

    A cell differs if its p, corrected for the whole grid, lies below 5%.
    """
    return [_of_suite(result, suite) for suite in result.suites]


def short(result: GridResult) -> str:
    """How many cells lie above the reference, below it, or cannot be told from it."""
    found = result.differences
    if found.empty:
        return "nothing to compare yet"
    each = ", in each world its own" if found["reference"].nunique() > 1 else ""
    return f"{counts(found)} (reference: `{result.grid.reference}`{each})"


def counts(found: pd.DataFrame) -> str:
    """The same in numbers, of comparisons with their `difference` and `p_holm`: `1 above, 3 not told apart`."""
    differs = found["p_holm"] < LEVEL
    above, below = int((differs & (found["difference"] > 0)).sum()), int((differs & (found["difference"] < 0)).sum())
    each = [(above, "above"), (below, "below"), (len(found) - above - below, "not told apart")]
    return ", ".join(f"{n} {what}" for n, what in each if n)


def _of_suite(result: GridResult, suite: Suite) -> Answer:
    if suite.reference is None:
        missing = f"Nothing to compare with yet: the reference, `{result.grid.reference}`, or its counterpart in this "
        return Answer(f"{missing}world has no rows.", [f"Cells: {_listed(suite.cells)}."])
    lead = f"`{suite.reference}` averages {_average(suite)}."
    if suite.differences.empty:
        return Answer(lead, [])
    found = result.differences[result.differences["reference"].eq(suite.reference)]
    found = found.assign(seeds=[_seeds_apart(result.rows, cell, suite.reference) for cell in found.index])
    differs, same = found["p_holm"] < LEVEL, found[["difference", "lo", "hi"]].eq(0).all(axis=1)
    apart = found[~differs & ~same]
    groups = [
        _group("Above it", found[differs & (found["difference"] > 0)]),
        _group("Below it", found[differs & (found["difference"] < 0)]),
        _group("Not told apart from it", apart) + _missed(apart),
        f"Right on the very questions that it is: {_listed(found.index[same])}" if same.any() else "",
    ]
    return Answer(lead, [f"{group}." for group in groups if group])


def _group(what: str, found: pd.DataFrame) -> str:
    """`Above it: a +3.0 [+1.1, +4.9] (p 0.002), ...`; empty for none."""
    if found.empty:
        return ""
    spelt = (
        f"`{cell}` {Interval(row['difference'], row['lo'], row['hi'], signed=True):wide} "
        f"({p_value(row['p_holm'])}{row['seeds']})"
        for cell, row in found.iterrows()
    )
    return f"{what}: {', '.join(spelt)}"


def _seeds_apart(rows: pd.DataFrame, cell: str, reference: str) -> str:
    """Each base seed's own difference where they lie so far apart that their mean is nobody's; else nothing."""
    own = rows.pivot(index="base_seed", columns="cell", values="average")
    differences = (own[cell] - own[reference]).dropna().sort_index()
    if len(differences) < 2 or differences.max() - differences.min() < FAR_APART:
        return ""
    return f"; by base seed {', '.join(f'{each:+.1f}' for each in differences)}"


def _missed(found: pd.DataFrame) -> str:
    """How small a difference would have gone unseen."""
    if found.empty:
        return ""
    low, high = found["detectable"].min(), found["detectable"].max()
    points = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
    return f"; differences below {points} points would often be missed (80% power)"


def _average(suite: Suite) -> str:
    scores = bootstrap(suite.scores)
    chosen = scores[scores["cell"].eq(suite.reference) & scores["benchmark"].eq(AVERAGE)].iloc[0]
    return f"{Interval(chosen['estimate'], chosen['lo'], chosen['hi']):wide}"


def p_value(p: float) -> str:
    """`p 0.012`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
