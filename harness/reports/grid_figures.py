"""One figure per grid: dots with intervals by cell, or lines along the grid's axis.

Styles are the main table's where a cell or line is one of its architectures, so that an architecture looks alike in
every figure. In a figure of dots, names stand beside them; lines are told apart by marker and dash as well as colour.
"""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from harness.figures import SETTINGS, frames_axis, save
from harness.reports.grid_result import GridResult
from harness.reports.grid_table import SEED_COLUMN
from harness.reports.styles import style_of, styles_of
from harness.statistics import AVERAGE

COLUMN = 4.6  # inches, the width of a figure
ROW = 0.25  # inches that a cell takes
GREY = "#666666"
OFF_AXIS = 1.5  # of the data's span: chance further away than that is named at the edge, not drawn
DODGE = 0.05  # of the axis' length between neighbouring lines of one place


def write(result: GridResult, table: pd.DataFrame, stem: Path) -> list[Path]:
    """Draw a grid to `stem`.svg and .png; returns the two.

    table: as `grid_table.table` gives it.
    """
    with matplotlib.rc_context(SETTINGS):
        return save(lines(result, table) if result.grid.axis else dots(result, table), stem)


def dots(result: GridResult, table: pd.DataFrame) -> Figure:
    """The average of every cell with its interval, base seeds as small hollow marks below it."""
    measured = table[table["seeds"] > 0]
    figure = Figure(figsize=(COLUMN, 1.25 + ROW * len(measured)), layout="constrained")
    axes = figure.add_subplot()
    _reference_band(axes, result, measured)
    for place, row in enumerate(measured.to_dict("records")):
        style, low, high = style_of(row["architecture"]), row[f"{AVERAGE}_lo"], row[f"{AVERAGE}_hi"]
        axes.errorbar(
            row[AVERAGE],
            place,
            xerr=[[row[AVERAGE] - low], [high - row[AVERAGE]]],
            fmt=style.marker,
            color=style.colour,
            markersize=5,
            capsize=2.5,
            elinewidth=1,
        )
        for name in _seed_columns(table):
            axes.plot(row[name], place + 0.3, style.marker, color=style.colour, **_HOLLOW)
    _mark_chance(axes, table, down=True)
    axes.set_yticks(range(len(measured)), measured["cell"])
    axes.set_ylim(len(measured) - 0.3, -0.7)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("average of five benchmarks, % (95% interval)")
    figure.supxlabel(_notes(result), fontsize=7)
    figure.suptitle(_title(result), fontsize=9)
    return figure


def lines(result: GridResult, table: pd.DataFrame) -> Figure:
    """The average against the grid's axis, one line per `line`, with intervals."""
    measured = table[table["seeds"] > 0].astype({"x": float})
    figure = Figure(figsize=(COLUMN, 3.8), layout="constrained")
    axes = figure.add_subplot()
    groups = list(measured.fillna({"line": ""}).groupby("line", sort=False))
    styles = styles_of([name for name, _ in groups])
    logarithmic = _powers_of_two(measured["x"])
    for number, (name, group) in enumerate(groups):
        group = group.sort_values("x")
        beside = (number - (len(groups) - 1) / 2) * DODGE / max(1, len(groups) - 1)
        x, y = _moved(group["x"], measured["x"], beside, logarithmic), group[AVERAGE]
        bars = [y - group[f"{AVERAGE}_lo"], group[f"{AVERAGE}_hi"] - y]
        style = styles[name]
        axes.errorbar(
            x, y, yerr=bars, markersize=4.5, capsize=2.5, elinewidth=0.9, label=name or "average", **style.look
        )
        for column in _seed_columns(table):
            seeds_x = _moved(group["x"], measured["x"], beside + 0.018, logarithmic)
            axes.plot(seeds_x, group[column], style.marker, color=style.colour, **_HOLLOW)
    _ticks(axes, measured["x"], logarithmic)
    axes.set_xlabel(result.grid.axis)
    axes.set_ylabel("average of five benchmarks, % (95% interval)")
    _mark_chance(axes, table, down=False)
    figure.suptitle(_title(result), fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        options = {"loc": "outside lower center", "ncols": 2 if len(labels) in (2, 4) else 3, "fontsize": 7}
        figure.legend(handles, labels, title=_hollow(result), title_fontsize=7, **options)
    else:
        figure.supxlabel(_hollow(result), fontsize=7)
    return figure


_HOLLOW = {"markersize": 3, "fillstyle": "none", "markeredgewidth": 0.7, "linestyle": "none"}


def _reference_band(axes: Axes, result: GridResult, measured: pd.DataFrame) -> None:
    """The reference's average as a line, its interval as a band; beside other suites' cells, their own reference's."""
    places = {cell: place for place, cell in enumerate(measured["cell"])}
    by_cell = measured.set_index("cell")
    for suite in result.suites:
        if suite.reference is None:
            continue
        rows = [places[cell] for cell in suite.cells]
        span = (min(rows) - 0.5, max(rows) + 0.5)
        low, high = by_cell.loc[suite.reference, [f"{AVERAGE}_lo", f"{AVERAGE}_hi"]]
        axes.fill_betweenx(span, low, high, color="#000000", alpha=0.07, linewidth=0)
        axes.plot([by_cell.loc[suite.reference, AVERAGE]] * 2, span, color=GREY, linewidth=0.8)


def _mark_chance(axes: Axes, table: pd.DataFrame, down: bool) -> None:
    """Chance as a dotted line, `down` the axes or across; where it is far off, a word at the axes' edge."""
    measured = table[table["seeds"] > 0]
    level, low, high = _chance(table), measured[f"{AVERAGE}_lo"].min(), measured[f"{AVERAGE}_hi"].max()
    far = low - level > OFF_AXIS * (high - low)
    if not far:
        (axes.axvline if down else axes.axhline)(level, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))
    arrow = {True: "← ", False: "↓ "}[down] if far else ""
    data, fraction = ("data", "axes fraction"), ("axes fraction", "data")
    if far:
        place, coordinates, aligned = ((0, 1) if down else (1, 0)), "axes fraction", "left" if down else "right"
    else:
        place, coordinates, aligned = ((level, 1), data, "center") if down else ((1, level), fraction, "right")
    options = {"textcoords": "offset points", "xycoords": coordinates, "ha": aligned, "fontsize": 7}
    axes.annotate(f"{arrow}chance {level:.1f}", place, (0, 2), color="#444444", **options)


def _chance(table: pd.DataFrame) -> float:
    """What guessing gives; where suites differ, their mean."""
    return float(table[table["seeds"] == 0][AVERAGE].mean())


def _title(result: GridResult) -> str:
    """The question, broken into lines that a column holds."""
    words, rows = f"{result.grid.question} ({result.scale} scale)".split(), [""]
    for word in words:
        if len(rows[-1]) + len(word) > 62:
            rows.append("")
        rows[-1] = f"{rows[-1]} {word}".strip()
    return "\n".join(rows)


def _hollow(result: GridResult) -> str:
    seeds = ", ".join(map(str, result.seeds))
    return f"hollow marks: base seed{'s' * (len(result.seeds) > 1)} {seeds}"


def _notes(result: GridResult) -> str:
    references = [suite.reference for suite in result.suites if suite.reference]
    told = f"; line and band: {references[0]}" if references else ""
    return f"{_hollow(result)}{told}{', in each world its own' if len(references) > 1 else ''}"


def _seed_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name.startswith(SEED_COLUMN)]


def _powers_of_two(x: pd.Series) -> bool:
    """Whether every x is a power of two, and they span more than a factor of four."""
    return bool(x.gt(0).all() and np.log2(x).mod(1).eq(0).all() and x.max() > 4 * x.min())


def _moved(x: pd.Series, every: pd.Series, beside: float, logarithmic: bool) -> pd.Series:
    """x moved by a share of the axis' length."""
    if logarithmic:
        return x * (every.max() / every.min()) ** beside
    return x + beside * (every.max() - every.min())


def _ticks(axes: Axes, x: pd.Series, logarithmic: bool) -> None:
    ticks = sorted(x.unique())
    if logarithmic:
        frames_axis(axes, ticks, "g")
    else:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
