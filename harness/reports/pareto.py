"""Accuracy against compute and against frames, and compute against frames, over everything that was measured.

    figures/book/pareto.{svg,png}               average score against FLOPs at 7B, both scopes, with the Pareto front
    figures/book/accuracy_vs_frames.{svg,png}   average score against frames, a panel per table that varies them
    figures/book/overhead_vs_frames.{svg,png}   FLOPs at 7B over self-attention at 16 frames, both scopes

Points of different suites were asked different questions: they have panels of their own. Cells whose base or encoder
is another, or whose budget of fast tokens at 7B is, are left out of the first, and named.
"""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from harness.figures import Style, frames_axis
from harness.reports.page_points import MAIN, left_out, plain_points
from harness.reports.styles import styles_of
from harness.statistics import AVERAGE

SCOPES = {"prefill_tflop_7b": "LLM prefill at 7B", "model_tflop_7b": "whole model at 7B, vision tower included"}
OVERHEADS = {"prefill_over_pct": "LLM prefill", "model_over_pct": "whole model, vision tower included"}
SCORE_LABEL = "average of five benchmarks, %"
OVERHEAD_TICKS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000)
OVER_CHEAPEST = (0, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
LISTED, LINE = 9, 0.042  # points of the front that a panel names, and what a line takes of its height
NEAR = 0.002  # of the cheapest cost: within it the axis of costs is about linear
TOO_NEAR = 0.035  # of a panel's sides: points of the front within it share a label
FAINT = "#666666"


def front(cost: pd.Series, score: pd.Series) -> np.ndarray:
    """Whether each point is on the Pareto front: none costs as little (or less) and scores as much (or more).

    Of points equal in both, all are. Points without a cost are never on it.
    """
    cost_N, score_N = cost.to_numpy(float), score.to_numpy(float)
    with np.errstate(invalid="ignore"):
        as_cheap_NN = cost_N[None] <= cost_N[:, None]
        as_good_NN = score_N[None] >= score_N[:, None]
        better_NN = (cost_N[None] < cost_N[:, None]) | (score_N[None] > score_N[:, None])
    return ~(as_cheap_NN & as_good_NN & better_NN).any(1) & np.isfinite(cost_N) & np.isfinite(score_N)


def pareto(book: pd.DataFrame) -> Figure:
    """A row of panels per suite (the main table's first), a column per scope."""
    plain = plain_points(book)
    suites = list(dict.fromkeys(plain["suite_fingerprint"]))
    figure = Figure(figsize=(9.4, 3.9 * len(suites) + 0.7), layout="constrained")
    panels = figure.subplots(len(suites), 2, squeeze=False, sharey="row")
    looks = styles_of(plain["architecture"])
    for row, suite in zip(panels, suites, strict=True):
        asked = plain[plain["suite_fingerprint"].eq(suite)]
        sources = list(dict.fromkeys(asked["source"]))
        named, named_points = "main table and grids" if MAIN in sources else "grids", 0
        for axes, (column, label) in zip(row, SCOPES.items(), strict=True):
            named_points = max(named_points, _pareto_panel(axes, asked, column, looks))
            axes.set_xlabel(f"{label}: TFLOP per video (2 x MAC),\nand over the cheapest cell (logarithmic in this)")
            axes.set_title(f"{named}: {len(asked)} cells, suite {suite[:8]}")
        row[0].set_ylabel(f"{SCORE_LABEL} (95% interval)")
        _leave_room(row[0], (named_points + 1) * LINE)
    handles = {}
    for axes in panels.flat:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    if apart := left_out(book):
        why = "for their base, their encoder or their budget of fast tokens at 7B is another"
        told = f"Left out, {why}: {', '.join(apart)}"
        figure.suptitle(textwrap.fill(told, 130), fontsize=7, color=FAINT)
    return figure


def _pareto_panel(axes: Axes, asked: pd.DataFrame, column: str, looks: dict[str, Style]) -> int:
    """One scope; returns how many lines the list of the front's points has below its head."""
    on_front = front(asked[column], asked[AVERAGE])
    _cost_axis(axes, asked[column])
    for name, group in asked.groupby("architecture", sort=True):
        best = on_front[asked.index.get_indexer(group.index)]
        _marks(axes, group[~best], column, looks[name], 0.45)
        _marks(axes, group[best], column, looks[name], 1)
        axes.plot([], [], looks[name].marker, color=looks[name].colour, markersize=5, label=name)
    best = asked[on_front].sort_values([column, AVERAGE])
    axes.step(best[column], best[AVERAGE], where="post", color="#222222", linewidth=1, zorder=1, label="Pareto front")
    _band(axes, best, column)
    axes.margins(x=0.05, y=0.08)
    return _number(axes, best, column)


def _leave_room(axes: Axes, share: float) -> None:
    """Raise the upper end of the y axis, so that a share of its height above all points is free for the list."""
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)]
    axes.set_ylim(low, low + (high - low) / (1 - share))
    axes.set_yticks(ticks)


def _cost_axis(axes: Axes, cost: pd.Series) -> None:
    """Costs on a logarithmic axis of what is paid over the cheapest: slow-fast's 2% and another's 1000% both show."""
    least, most = cost.min(), cost.max()

    def stretched(x: np.ndarray) -> np.ndarray:
        return np.log10(np.maximum(np.asarray(x, float) / least - 1, -NEAR / 2) + NEAR)

    axes.set_xscale("function", functions=(stretched, lambda place: least * (10 ** np.asarray(place) - NEAR + 1)))
    over = [each for each in OVER_CHEAPEST if least * (1 + each) <= most * 1.3]
    labels = [f"{least * (1 + each):,.4g}\n{100 * each:+.4g}%" if each else f"{least:,.4g}" for each in over]
    axes.set_xticks([least * (1 + each) for each in over], labels, fontsize=7)
    axes.xaxis.set_minor_locator(NullLocator())


def _marks(axes: Axes, group: pd.DataFrame, column: str, style: Style, strength: float) -> None:
    if group.empty:
        return
    y = group[AVERAGE]
    axes.errorbar(
        group[column],
        y,
        yerr=[y - group[f"{AVERAGE}_lo"], group[f"{AVERAGE}_hi"] - y],
        fmt=style.marker,
        color=style.colour,
        markersize=5.5 if strength == 1 else 4,
        elinewidth=0.8,
        capsize=2 if strength == 1 else 0,
        alpha=strength,
        zorder=3 if strength == 1 else 2,
    )


def _band(axes: Axes, best: pd.DataFrame, column: str) -> None:
    """What the intervals of the front's points leave open, as a band along it."""
    axes.fill_between(
        best[column],
        best[f"{AVERAGE}_lo"],
        best[f"{AVERAGE}_hi"],
        step="post",
        color="#888888",
        alpha=0.16,
        linewidth=0,
    )


def _number(axes: Axes, best: pd.DataFrame, column: str) -> int:
    """The front's points numbered, and named in a corner of the panel; returns the number of names."""
    for label, place in _labels(axes, list(zip(best[column], best[AVERAGE], strict=True))):
        axes.annotate(label, place, (-4, 5), textcoords="offset points", ha="right", fontsize=7, fontweight="bold")
    names = []
    for number, point in enumerate(best.itertuples(), start=1):
        where = "" if point.source == MAIN else f" ({point.source})"
        names.append(f"{number}  {point.cell}{where}")
    if len(names) > LISTED:
        names = [*names[: LISTED - 1], f"... and {len(names) - LISTED + 1} more"]
    axes.text(
        0.02,
        0.98,
        "\n".join(["on the front:", *names]),
        transform=axes.transAxes,
        ha="left",
        va="top",
        fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "#cccccc", "linewidth": 0.5, "alpha": 0.85},
    )
    return len(names)


def _labels(axes: Axes, points: list[tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    """Number and place of each point, from 1 on; neighbours that all but cover each other share one, as in 2-3."""
    axes.autoscale_view()
    drawn = axes.transAxes.inverted().transform(axes.transData.transform(points))
    together = [[0]]
    for number in range(1, len(points)):
        if abs(drawn[number] - drawn[together[-1][0]]).max() < TOO_NEAR:
            together[-1].append(number)
        else:
            together.append([number])
    return [
        (f"{each[0] + 1}" if len(each) == 1 else f"{each[0] + 1}-{each[-1] + 1}", points[each[-1]]) for each in together
    ]


def accuracy_vs_frames(book: pd.DataFrame) -> Figure:
    """A panel for the main table and for every grid whose axis is frames; a line per architecture or line."""
    varied = over_frames(book)
    sources = list(dict.fromkeys(zip(varied["source"], varied["suite_fingerprint"], strict=True)))
    columns = min(2, len(sources))
    lines = -(-len(sources) // columns)
    figure = Figure(figsize=(4.7 * columns + 0.2, 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    for axes, (source, suite) in zip(panels, sources, strict=False):
        shown = varied[varied["source"].eq(source) & varied["suite_fingerprint"].eq(suite)]
        _frames_lines(axes, shown)
        axes.set_title(f"{'main table' if source == MAIN else f'grid {source}'}, suite {suite[:8]}")
    for axes in list(figure.axes)[len(sources) :]:
        axes.set_visible(False)
    return figure


def _frames_lines(axes: Axes, shown: pd.DataFrame) -> None:
    looks, names = styles_of(shown["line"]), list(dict.fromkeys(shown["line"]))
    for place, name in enumerate(names):
        group = shown[shown["line"].eq(name)].sort_values("frames")
        y, beside = group[AVERAGE], 1.04 ** (place - (len(names) - 1) / 2)
        axes.errorbar(
            group["frames"] * beside,
            y,
            yerr=[y - group[f"{AVERAGE}_lo"], group[f"{AVERAGE}_hi"] - y],
            markersize=4.5,
            capsize=2,
            elinewidth=0.9,
            label=name,
            **looks[name].look,
        )
    frames_axis(axes, sorted(shown["frames"].unique()))
    axes.set_xlabel("frames sampled from each video")
    axes.set_ylabel(f"{SCORE_LABEL} (95% interval)")
    axes.legend(loc="upper left", fontsize=7)


def overhead_vs_frames(book: pd.DataFrame) -> Figure:
    """A panel per scope; counted, so without intervals. The axis is linear below 1% and logarithmic above."""
    varied = over_frames(book).dropna(subset=list(OVERHEADS))
    varied = varied.drop_duplicates(["line", "frames"])
    figure = Figure(figsize=(9.0, 4.1), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    looks = styles_of(varied["line"])
    for axes, (column, label) in zip(panels, OVERHEADS.items(), strict=True):
        for name, group in varied.groupby("line", sort=False):
            group = group.sort_values("frames")
            axes.plot(group["frames"], group[column], markersize=4.5, label=name, **looks[name].look)
        axes.set_yscale("symlog", linthresh=1, linscale=0.6)
        axes.yaxis.set_major_locator(FixedLocator(OVERHEAD_TICKS))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+,g}%" if y else "0"))
        axes.axhline(3, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        frames_axis(axes, sorted(varied["frames"].unique()))
        axes.set_xlabel("frames sampled from each video")
        axes.set_title(label)
    panels[0].annotate(
        "+3%: what the paper states for 128 frames",
        (0.02, 3),
        (0, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=6.5,
        color=FAINT,
    )
    panels[0].set_ylabel("FLOPs at 7B over self-attention at 16 frames")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def over_frames(book: pd.DataFrame) -> pd.DataFrame:
    """The points of the main table and of grids whose axis is frames."""
    plain = book[book["control"].eq("none") & book["world"].eq("plain")]
    return plain[plain["source"].eq(MAIN) | plain["axis"].eq("frames")]
