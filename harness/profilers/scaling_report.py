"""Slopes and overhead as tables for the terminal and the README, and the log-log figure."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.figures import FURTHER, SETTINGS, STYLES, frames_axis, log_cost_axis, save
from harness.profilers.machine import Machine
from harness.profilers.overhead import Overhead

SLOPE_COLUMNS = ("cost", "architecture", "slope [95%]", "first two", "last two")
PART_COLUMNS = ("part", "counted", "measured (quartiles)", "GFLOP/s")
TITLES = {"llm_prefill": "LLM prefill", "model": "whole model, vision included"}
WIDTH = 100  # of what is printed
COUNTED, MEASURED = "counted", "measured"  # how a point was found: what "counted at 7B" begins with


def slope_lines(slopes: pd.DataFrame) -> list[list[str]]:
    """A line per curve, under `SLOPE_COLUMNS`."""
    return [
        [
            f"{TITLES[row.scope].partition(',')[0]}, {row.how}",
            row.architecture,
            f"{row.slope:.2f} [{row.low:.2f}, {row.high:.2f}]",
            f"{row.local_first:.2f}",
            f"{row.local_last:.2f}",
        ]
        for row in slopes.sort_values(["scope", "how"], kind="stable").itertuples()
    ]


def part_lines(overhead: Overhead) -> list[list[str]]:
    """A line per part of the overhead, under `PART_COLUMNS`: % of the baseline's prefill."""
    return [
        [
            row.part,
            f"{row.counted:+.2f}%",
            f"{row.measured:+.2f}% ({row.q1:+.2f} to {row.q3:+.2f})",
            f"{row.gflop_per_s:.0f}" if pd.notna(row.gflop_per_s) else "",
        ]
        for row in overhead.rows.itertuples()
    ]


def answer(points: pd.DataFrame, slopes: pd.DataFrame) -> str:
    """Is it linear? In sentences, from the counted curves."""
    counted = points[points["self_attention_share"].notna() & points["scope"].eq("llm_prefill")]
    sentences = []
    for name, curve in counted.groupby("architecture", sort=False):
        low, high = (100 * curve["self_attention_share"].iloc[place] for place in (0, -1))
        first, last = curve["frames"].iloc[0], curve["frames"].iloc[-1]
        times = curve["value"].iloc[-1] / curve["value"].iloc[0]
        sentences.append(
            f"{name}: {last / first:,.0f} times the frames take {times:,.3g} times the LLM prefill "
            f"({curve['how'].iloc[0]}); the square of self-attention is {low:.0f}% of it at {first} frames and "
            f"{high:.0f}% at {last:,}."
        )
    sentences.append(
        "A sum of constant, linear and quadratic terms has no single slope: the interval says how far from a power "
        "law the curve is, and the last two columns are the slopes at its ends."
    )
    return " ".join(sentences)


def setup(points: pd.DataFrame, machine: Machine) -> str:
    """What the measured curves were measured with."""
    measured = points[points["how"].eq(MEASURED)]
    rounds = measured["rounds"].dropna().astype(int)
    missing = measured[measured["error"].fillna("").ne("")]
    left_out = f"; {len(missing)} cells without a result: {missing['error'].iloc[0]}" if len(missing) else ""
    return (
        f"Measured at {measured['decoder'].iloc[0]} on {machine.device}, {machine.threads} thread"
        f"{'s' if machine.threads > 1 else ''}, {measured['dtype'].iloc[0]}: medians of {rounds.min()} to "
        f"{rounds.max()} rounds, all cells in turn{left_out}. Its encoder is the tiny one, a far smaller part of the "
        "whole than ConvNeXt-XXLarge is at 7B."
    )


def as_markdown(points: pd.DataFrame, slopes: pd.DataFrame, overhead: Overhead, machine: Machine) -> str:
    """Both tables and their sentences."""
    lines = ["Slope of log(cost) against log(frames)", "", *_markdown(SLOPE_COLUMNS, slope_lines(slopes)), ""]
    lines += [answer(points, slopes), setup(points, machine), ""]
    if not overhead.error:
        lines += ["Overhead of slow tokens, by part", "", *_markdown(PART_COLUMNS, part_lines(overhead)), ""]
    return "\n".join([*lines, overhead.sentence(), ""])


def show(points: pd.DataFrame, slopes: pd.DataFrame, overhead: Overhead, machine: Machine) -> None:
    """Print both, at most `WIDTH` columns wide."""
    console = Console(width=WIDTH)
    console.print(_table("Is it linear? Slope of log(cost) against log(frames)", SLOPE_COLUMNS, slope_lines(slopes)))
    print(answer(points, slopes), setup(points, machine), sep="\n")
    if not overhead.error:
        title = "Overhead of slow tokens in % of the baseline's prefill, by part"
        console.print(_table(title, PART_COLUMNS, part_lines(overhead)))
    print(overhead.sentence())


def draw(points: pd.DataFrame, slopes: pd.DataFrame, stem: Path, machine: Machine) -> list[Path]:
    """Log-log: counted and measured, LLM prefill and whole model; writes `stem`.svg and .png."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.4, 6.2), layout="constrained")
        axes_22 = figure.subplots(2, 2, sharex=True)
        counted = next(how for how in points["how"].unique() if how.startswith(COUNTED))
        for row, (how, unit) in enumerate(((counted, "TFLOP"), (MEASURED, "seconds"))):
            for axes, (scope, title) in zip(axes_22[row], TITLES.items(), strict=True):
                part = points[points["how"].eq(how) & points["scope"].eq(scope) & points["value"].notna()]
                _curves(axes, part, slopes, 1000 if unit == "seconds" else 1)
                axes.set_title("" if row else title)
                axes.set_ylabel(f"{how}, {unit}" if row == 0 else f"{how} at mid-size, {unit}")
        for axes in axes_22[1]:
            axes.set_xlabel("frames")
        figure.suptitle(f"Cost against frames (legend: log-log slope; measured on {machine.device})", fontsize=9)
        return save(figure, stem)


def _curves(axes: Axes, part: pd.DataFrame, slopes: pd.DataFrame, divisor: float) -> None:
    for place, (name, curve) in enumerate(part.groupby("architecture", sort=False)):
        style = STYLES.get(name, FURTHER[place % len(FURTHER)])
        found = slopes[
            slopes["architecture"].eq(name)
            & slopes["how"].eq(curve["how"].iloc[0])
            & slopes["scope"].eq(curve["scope"].iloc[0])
        ]
        label = f"{name}: {found['slope'].iloc[0]:.2f}" if len(found) else name
        value = curve["value"].astype(float) / divisor
        if "q1" in curve and curve["q1"].notna().all():
            bars = [value - curve["q1"].astype(float) / divisor, curve["q3"].astype(float) / divisor - value]
        else:
            bars = None
        axes.errorbar(curve["frames"], value, yerr=bars, markersize=4.5, capsize=2.5, label=label, **style.look)
    _finish(axes, sorted(part["frames"].unique()))


def _finish(axes: Axes, ticks: list[int]) -> None:
    frames_axis(axes, ticks, ",", rotation=45)
    log_cost_axis(axes, (1, 3))
    axes.legend(loc="upper left")


def _markdown(columns: tuple[str, ...], lines: list[list[str]]) -> list[str]:
    head = ["| " + " | ".join(columns) + " |", "|" + " :--- |" + " ---: |" * (len(columns) - 1)]
    return [*head, *("| " + " | ".join(cells) + " |" for cells in lines)]


def _table(title: str, columns: tuple[str, ...], lines: list[list[str]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    for cells in lines:
        table.add_row(*cells)
    return table
