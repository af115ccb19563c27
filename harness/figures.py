"""Accuracy against frames and against prefill FLOPs, with intervals: svg for the paper, png for the README.

Colours are Okabe and Ito's, told apart with every common colour blindness; markers and line styles tell the
series apart in grey.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import offset_copy

from harness.paths import write_text
from harness.rows import write_file
from harness.statistics import AVERAGE

SETTINGS = {
    "svg.hashsalt": "slowfast-harness",  # ids in the svg that do not change from run to run
    "svg.fonttype": "path",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
MARGIN = 1.06
"""Between series that share a number of frames: drawn this factor apart, so that intervals stay readable."""


@dataclass(frozen=True)
class Style:
    """How a series is drawn. `label`: where a point's label stands, points right of and above it."""

    colour: str
    marker: str
    line: str | tuple
    label: tuple[float, float] = (5, -9)

    @property
    def look(self) -> dict[str, Any]:
        """Its line and marks, as matplotlib's options."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "linewidth": 1.2}


STYLES = {
    "self_attention": Style("#000000", "s", "--", (-5, -9)),
    "compressor_only": Style("#E69F00", "D", ":", (-6, -3)),
    "slow_fast": Style("#0072B2", "o", "-"),
    "slow_fast_official": Style("#D55E00", "^", "-."),
    "baseline_further": Style("#000000", "s", "--"),
    "converted_new": Style("#D55E00", "^", "-."),
    "converted_all": Style("#009E73", "D", ":"),
}
FURTHER = [
    Style("#009E73", "v", (0, (3, 1, 1, 1))),
    Style("#CC79A7", "P", (0, (5, 1))),
    Style("#56B4E9", "X", (0, (1, 1))),
    Style("#F0E442", "*", (0, (5, 5))),
]


def write_figures(table: pd.DataFrame, by_seed: pd.DataFrame, folder: Path, scale: str, suffix: str = "") -> list[Path]:
    """Draw both figures from the main table and each base seed's averages; returns the four files.

    suffix: of the files' names, before .svg and .png.
    """
    with matplotlib.rc_context(SETTINGS):
        drawn = {
            "accuracy_vs_frames": accuracy_vs_frames(table, by_seed, scale),
            "accuracy_vs_prefill_flops": accuracy_vs_prefill_flops(table, by_seed, scale),
        }
        return [path for name, figure in drawn.items() for path in save(figure, Path(folder) / f"{name}{suffix}")]


def accuracy_vs_frames(table: pd.DataFrame, by_seed: pd.DataFrame, scale: str) -> Figure:
    """One panel: average score over frames sampled, one line per architecture."""
    figure = Figure(figsize=(4.6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    measured = _measured(table, by_seed)
    dodge = _dodge(measured)
    for name, group in measured.groupby("architecture", sort=False):
        x, style = group["frames"] * dodge[name], _style(name, measured)
        _series(axes, x, group, style, name)
        _seed_marks(axes, x, group, style)
    ticks = sorted(measured["frames"].unique())
    frames_axis(axes, ticks)
    axes.set_xlabel("frames sampled from each video")
    axes.set_title(f"Accuracy against frames ({scale} scale)")
    _finish(axes, table)
    axes.legend(loc="upper left", title=_hollow(by_seed), title_fontsize=7, alignment="left")
    return figure


def accuracy_vs_prefill_flops(table: pd.DataFrame, by_seed: pd.DataFrame, scale: str) -> Figure:
    """Two panels, one accuracy: against the prefill of the model measured, and of the same rows at 7B."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    measured = _measured(table, by_seed)
    for axes, column in ((left, "prefill_mflop_mini"), (right, "prefill_tflop_7b")):
        for name, group in measured.groupby("architecture", sort=False):
            _series(axes, group[column], group, _style(name, measured), name)
            _label(axes, group[column], group, _style(name, measured))
        axes.margins(x=0.12)
    left.set_xlabel(f"LLM prefill, MFLOP per video ({scale}, as measured)")
    right.set_xlabel("LLM prefill, TFLOP per video (same rows at 7B sizes)")
    figure.suptitle(f"Accuracy against prefill compute ({scale} scale; labels: frames)", fontsize=9)
    for axes in (left, right):
        _finish(axes, table)
    right.set_ylabel("")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def write_curves(table: pd.DataFrame, by_seed: pd.DataFrame, stem: Path, scale: str) -> list[Path]:
    """Draw average score over training steps, one line per curve, to `stem`.svg and .png; returns the two.

    As in the main table's frame, but `architecture` names a curve and `frames` its steps.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.8, 3.8), layout="constrained")
        axes = figure.add_subplot()
        measured = _measured(table, by_seed)
        names, ticks = list(measured["architecture"].unique()), sorted(measured["frames"].unique())
        for name, group in measured.groupby("architecture", sort=False):
            beside = (names.index(name) - (len(names) - 1) / 2) * ticks[-1] / 90
            _series(axes, group["frames"] + beside, group, _style(name, measured), name)
            _seed_marks(axes, group["frames"] + beside, group, _style(name, measured))
        axes.set_xticks(ticks)
        axes.set_xlabel("training steps")
        axes.set_title(f"Plug-and-play: accuracy against training steps ({scale} scale)")
        _finish(axes, table)
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            title=_hollow(by_seed),
            title_fontsize=7,
        )
        return save(figure, Path(stem))


def _series(axes: Axes, x: pd.Series, group: pd.DataFrame, style: Style, name: str) -> None:
    y = group[AVERAGE]
    axes.errorbar(
        x,
        y,
        yerr=[y - group[f"{AVERAGE}_lo"], group[f"{AVERAGE}_hi"] - y],
        markersize=4.5,
        capsize=2.5,
        elinewidth=0.9,
        label=name,
        **style.look,
    )


def _seed_marks(axes: Axes, x: pd.Series, group: pd.DataFrame, style: Style) -> None:
    """Each base seed's own average, hollow, a little right of the pooled one."""
    beside = offset_copy(axes.transData, axes.figure, x=6, units="points")
    for seed in group.attrs["seeds"]:
        axes.plot(
            x,
            group[seed],
            style.marker,
            color=style.colour,
            markersize=3,
            fillstyle="none",
            markeredgewidth=0.7,
            transform=beside,
        )


def _label(axes: Axes, x: pd.Series, group: pd.DataFrame, style: Style) -> None:
    """Each point's number of frames beside it."""
    for point in zip(x, group[AVERAGE], group["frames"], strict=True):
        axes.annotate(
            str(point[2]),
            point[:2],
            style.label,
            textcoords="offset points",
            ha="left" if style.label[0] > 0 else "right",
            fontsize=6.5,
            color="#444444",
        )


def _finish(axes: Axes, table: pd.DataFrame) -> None:
    """Chance line, y axis and its unit."""
    guessing = table[table["seeds"] == 0][AVERAGE]
    if len(guessing):
        level = guessing.iloc[0]
        axes.axhline(level, color="#666666", linewidth=0.9, linestyle=(0, (2, 2)))
        axes.annotate(
            f"chance {level:.1f}",
            (1, level),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color="#444444",
        )
    axes.set_ylabel("average of five benchmarks, % (95% interval)")


def _hollow(by_seed: pd.DataFrame) -> str:
    """The legend's word on the hollow marks."""
    seeds = [str(seed) for seed in by_seed.columns[2:]]
    return f"hollow marks: base seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _measured(table: pd.DataFrame, by_seed: pd.DataFrame) -> pd.DataFrame:
    """The table without chance, each base seed's average beside it."""
    seeds = list(by_seed.columns[2:])
    joined = table[table["seeds"] > 0].merge(by_seed, on=["architecture", "frames"])
    joined.attrs["seeds"] = seeds
    return joined


def _dodge(measured: pd.DataFrame) -> dict[str, float]:
    """A factor on x per architecture, centred on 1."""
    names = list(measured["architecture"].unique())
    return {name: MARGIN ** (place - (len(names) - 1) / 2) for place, name in enumerate(names)}


def _style(name: str, measured: pd.DataFrame) -> Style:
    if name in STYLES:
        return STYLES[name]
    further = [each for each in measured["architecture"].unique() if each not in STYLES]
    return FURTHER[further.index(name) % len(FURTHER)]


def frames_axis(axes: Axes, ticks: list[int], form: str = "", **options: Any) -> None:
    """A logarithmic x axis with exactly these ticks; `form` is a number's format, `options` are those of its labels."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:{form}}" for tick in ticks], **options)


def log_cost_axis(axes: Axes, steps: tuple[int, ...]) -> None:
    """A logarithmic y axis with ticks at `steps` of each decade, as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem`.svg and .png; returns the two."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out now, and need not be again for each of the two files
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=200)
    write_text(stem.with_suffix(".svg"), svg.getvalue().decode())
    write_file(stem.with_suffix(".png"), lambda path: path.write_bytes(png.getvalue()))
    return [stem.with_suffix(".svg"), stem.with_suffix(".png")]
