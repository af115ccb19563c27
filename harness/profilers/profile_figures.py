"""Two figures of the counted profile: overhead against frames, and where a forward pass's FLOPs go."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from architectures.cost import STAGES
from harness.figures import SETTINGS, Style, frames_axis, save
from harness.profilers.headline import STATED
from harness.profilers.variants import REFERENCE

SERIES = {
    "self_attention": Style("#000000", "s", "--"),
    "slow_fast": Style("#0072B2", "o", "-"),
    "slow_fast placement=all": Style("#56B4E9", "X", (0, (1, 1))),
    "slow_fast compressor.sample_stride=2 compressor.average_stride=4": Style("#D55E00", "^", "-."),
    "compressor_only": Style("#E69F00", "D", ":"),
    "flamingo": Style("#CC79A7", "P", (0, (5, 1))),
    "two_stream": Style("#009E73", "v", (0, (3, 1, 1, 1))),
}
"""The rows drawn against frames, as far as they are there."""

NAMES = {
    "slow_fast": "slow_fast, 16 fast frames",
    "slow_fast placement=all": "slow_fast, all layers hybrid",
    "slow_fast compressor.sample_stride=2 compressor.average_stride=4": "slow_fast at strides s2t4",
}
INITIALS = {"self_attention": "SA", "slow_fast": "SF"}
STACKED = tuple(INITIALS)
STACKED_FRAMES = (16, 32, 64, 128)
FILLS = {  # hatches tell stages apart that are alike in grey
    "vision": ("#F0E442", ""),
    "projector": ("#E69F00", "//"),
    "compressor": ("#999999", ""),
    "slow_keys_values": ("#D55E00", ""),
    "linear": ("#56B4E9", ""),
    "self_attention": ("#0072B2", "\\\\"),
    "cross_attention": ("#CC79A7", "xx"),
    "gate": ("#FFFFFF", ".."),
    "lm_head": ("#000000", ""),
}


def write(rows: pd.DataFrame, folder: Path, scale: str) -> list[Path]:
    """Draw both figures from the profile's rows; returns the four files."""
    rows = rows[rows["text_tokens"].eq(rows["text_tokens"].iloc[0])]
    with matplotlib.rc_context(SETTINGS):
        drawn = {"overhead": overhead_against_frames(rows, scale), "stages": by_stage(rows, scale)}
        return [path for name, figure in drawn.items() for path in save(figure, folder / f"profile_{name}_{scale}")]


def overhead_against_frames(rows: pd.DataFrame, scale: str) -> Figure:
    """Log-log, two panels: LLM prefill and whole model; overheads of zero and below cannot be drawn.

    Of the profile's variants those of `SERIES`.
    """
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, scope, name in ((left, "llm_prefill", "LLM prefill"), (right, "model", "whole model, vision included")):
        for series, style in SERIES.items():
            line = rows[rows["architecture"].eq(series) & rows[f"{scope}_overhead"].gt(0)].sort_values("frames")
            axes.plot(
                line["frames"],
                100 * line[f"{scope}_overhead"],
                markersize=4,
                label=NAMES.get(series, series),
                **style.look,
            )
        finish(axes, rows, name)
    left.axhline(100 * STATED, color="#666666", linewidth=0.9, linestyle=(0, (2, 2)))
    left.annotate("3% (paper)", (1, 100 * STATED), (0, 2), xycoords=("axes fraction", "data"), **SMALL)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(
        f"Overhead against {REFERENCE[0]} at {REFERENCE[1]} frames, counted ({scale} scale; zero and less: not drawn)",
        fontsize=9,
    )
    return figure


SMALL = {"textcoords": "offset points", "ha": "right", "fontsize": 7, "color": "#444444"}


def finish(axes: Axes, rows: pd.DataFrame, name: str) -> None:
    """Scales, ticks, titles."""
    ticks = sorted(rows["frames"].unique())
    frames_axis(axes, ticks, fontsize=6.5, rotation=45)
    if any(len(line.get_xdata()) for line in axes.lines):
        axes.set_yscale("log")
    else:
        say_empty(axes, "nothing above zero")
    axes.set_xlabel("frames")
    axes.set_ylabel("overhead, % of FLOPs")
    axes.set_title(name)


def say_empty(axes: Axes, sentence: str) -> None:
    """A panel without anything in it says so."""
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", fontsize=8, color="#444444")


def by_stage(rows: pd.DataFrame, scale: str) -> Figure:
    """Stacked bars, two panels: the whole model of both architectures, and the LLM of slow_fast over all frames."""
    figure = Figure(figsize=(7.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    frames = sorted(rows["frames"].unique())
    both = [(name, T) for T in frames if T in STACKED_FRAMES for name in STACKED]
    fewer = frames[: frames.index(REFERENCE[1])] if REFERENCE[1] in frames else []  # which leave fewer fast frames
    grows = [(STACKED[0], REFERENCE[1]), *((STACKED[1], T) for T in frames if T not in fewer)]
    by_bar = rows.set_index(["architecture", "frames"])
    stack(left, by_bar, [bar for bar in both if bar in by_bar.index], STAGES)
    stack(right, by_bar, [bar for bar in grows if bar in by_bar.index], STAGES[STAGES.index("slow_keys_values") :])
    left.set_title("whole model")
    right.set_title("LLM prefill of slow_fast")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(f"Where a forward pass's FLOPs go, counted ({scale} scale)", fontsize=9)
    return figure


def stack(axes: Axes, by_bar: pd.DataFrame, bars: list[tuple[str, int]], stages: tuple[str, ...]) -> None:
    """A bar per (architecture, frames), a part per stage."""
    if not bars:
        say_empty(axes, "not among the profiled variants and frames")
    base = pd.Series(0.0, index=range(len(bars)))
    for stage in stages:
        height = pd.Series([by_bar.loc[bar, f"{stage}_flop"] / 1e12 for bar in bars])
        colour, hatch = FILLS[stage]
        axes.bar(
            base.index,
            height,
            bottom=base,
            color=colour,
            hatch=hatch,
            edgecolor="#333333",
            linewidth=0.4,
            label=stage.replace("_", " "),
        )
        base += height
    axes.set_xticks(base.index, [f"{INITIALS[name]}\n{T}" for name, T in bars], fontsize=6.5)
    axes.set_xlabel(f"frames ({', '.join(f'{short}: {name}' for name, short in INITIALS.items())})")
    axes.set_ylabel("TFLOP")
    axes.grid(axis="x", visible=False)
