"""Heat maps of what was answered right: by category of each benchmark, and by kind of event.

    figures/book/categories.{svg,png}   the main table's rows against every category of the five benchmarks
    figures/book/families.{svg,png}     every cell of every grid against the five kinds of events

Every field has its number: colour repeats it, from dark to light, so that the maps read in grey as well.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.benchmarks import BENCHMARKS
from harness.reports.page_points import Part

COLOURS = "cividis"  # lightness rises evenly, and no colour blindness takes anything from it
LIGHT_FROM = 55  # percent from which fields are light and their numbers dark


def categories(rows: pd.DataFrame) -> pd.DataFrame:
    """Right and asked by cell, benchmark and category, base seeds added up: columns cell, ..., correct, asked, share.

    rows: with `cell` and `by_category`.
    """
    return _added_up(
        [
            (cell, benchmark, category, tally)
            for cell, found in zip(rows["cell"], rows["by_category"], strict=True)
            for benchmark, tallies in found.items()
            for category, tally in tallies.items()
        ],
        ["cell", "benchmark", "category"],
    )


def families(rows: pd.DataFrame) -> pd.DataFrame:
    """Right and asked by cell and kind of event, base seeds added up: columns cell, family, correct, asked, share."""
    return _added_up(
        [
            (cell, family, tally)
            for cell, found in zip(rows["cell"], rows["by_family"], strict=True)
            for family, tally in found.items()
        ],
        ["cell", "family"],
    )


def _added_up(lines: list[tuple], keys: list[str]) -> pd.DataFrame:
    made = pd.DataFrame(lines, columns=[*keys, "tally"])
    for name in ("correct", "asked"):
        made[name] = [_number(tally, name) for tally in made["tally"]]
    summed = made.groupby(keys, sort=False)[["correct", "asked"]].sum().reset_index()
    return summed.assign(share=100 * summed["correct"] / summed["asked"])


def _number(tally: object, name: str) -> int:
    return int(tally[name] if isinstance(tally, Mapping) else getattr(tally, name))


def category_map(part: Part) -> Figure:
    """One column per cell, one line per category; beside each category how many questions a cell was asked."""
    found = categories(part.rows)
    sizes = found.groupby("benchmark")["category"].nunique()
    names = [name for name in BENCHMARKS if name in sizes]
    cells = part.cells
    height = 0.155 * sizes.sum() + 0.35 * len(names) + 1.5
    figure = Figure(figsize=(3.2 + 0.62 * len(cells), height), layout="constrained")
    panels = figure.subplots(len(names), 1, height_ratios=[sizes[name] for name in names], squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        own = found[found["benchmark"].eq(name)]
        share = own.pivot(index="category", columns="cell", values="share").reindex(columns=cells)
        asked = own.groupby("category")["asked"].max()
        order = [each for each in BENCHMARKS[name].categories if each in share.index]
        drawn = _map(axes, share.loc[order])
        axes.set_yticks(range(len(order)), [f"{each}  ({asked[each]})" for each in order], fontsize=6.5)
        axes.set_xticks([])
        axes.set_title(f"{BENCHMARKS[name].title}  (answers, all base seeds)", loc="left", fontsize=8)
    _cells_on_top(panels[0], cells)
    figure.colorbar(drawn, ax=panels[-1], orientation="horizontal", location="bottom", shrink=0.6, label="right, %")
    return figure


def family_map(parts: list[Part]) -> Figure:
    """One line per cell of every grid, one column per kind of event with its number of answers; a panel per grid."""
    found = {part.stem: families(part.rows) for part in parts}
    heights = [len(part.cells) for part in parts]
    figure = Figure(figsize=(7.2, 0.165 * sum(heights) + 0.5 * len(parts) + 1.0), layout="constrained")
    panels = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, part in zip(panels, parts, strict=True):
        own = found[part.stem]
        share = own.pivot(index="cell", columns="family", values="share").reindex(part.cells)
        drawn = _map(axes, share)
        asked = own.groupby("family")["asked"].max()
        axes.set_yticks(range(len(share)), share.index, fontsize=6.5)
        axes.set_xticks([])
        axes.set_title(part.name, loc="left", fontsize=8)
        _cells_on_top(axes, [f"{name} ({asked[name]})" for name in share.columns], rotation=0)
    figure.colorbar(drawn, ax=panels[-1], orientation="horizontal", location="bottom", shrink=0.6, label="right, %")
    return figure


def _cells_on_top(axes: Axes, names: list[str], rotation: float = 40) -> None:
    axes.set_xticks(range(len(names)), names, rotation=rotation, ha="left" if rotation else "center", fontsize=7)
    axes.xaxis.tick_top()


def _map(axes: Axes, share: pd.DataFrame):
    """The fields with their numbers; a cell that was not asked a category stays empty."""
    drawn = axes.imshow(share.to_numpy(float), cmap=COLOURS, vmin=0, vmax=100, aspect="auto")
    for (line, column), value in np.ndenumerate(share.to_numpy(float)):
        if np.isfinite(value):
            ink = "black" if value >= LIGHT_FROM else "white"
            text = axes.text(column, line, f"{value:.0f}", ha="center", va="center", fontsize=6, color=ink)
            text.set_in_layout(False)  # hundreds of them: the layout would measure each
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return drawn
