"""What was measured on a device, as a table for the README and the terminal, and as a figure."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.figures import FURTHER, SETTINGS, STYLES, Style, frames_axis, log_cost_axis, save
from harness.profilers.measure import VIDEO_DECODING, Measured

COLUMNS = (
    "frames",
    "architecture",
    "prefill ms (quartiles)",
    "x roof",
    "decode ms/token",
    "x roof",
    "peak GB",
    "KV GB",
)
WIDTH = 100  # of the terminal's table
GB = 1e9
KEY = ["text_tokens", "frames", "architecture"]
KINDS = ("measured", "roofline", "keys and values (counted)")  # of lines in the figure


def as_table(measured: Measured) -> list[list[str]]:
    """A line per number of text tokens, frames and architecture, under `COLUMNS`."""
    return [
        [f"{frames:,}", name, *_cells(group.set_index("stage"))]
        for (_, frames, name), group in _of_models(measured).groupby(KEY, sort=False)
    ]


def _cells(row: pd.DataFrame) -> list[str]:
    """Of one cell: times, their multiples of the roofline, memory; or why there are none."""
    prefill, decode, whole = row.loc["prefill"], row.loc["decode"], row.loc["end_to_end"]
    caches = f"{(whole['kv_bytes'] + whole['slow_kv_bytes']) / GB:#.3g}"
    if whole["error"]:
        return [whole["error"].partition(":")[0], "", "", "", "", caches]
    spread = f"{number(prefill['median_ms'])} ({number(prefill['q1_ms'])}-{number(prefill['q3_ms'])})"
    peak = whole["peak_bytes"]
    return [
        spread,
        _multiple(prefill),
        number(decode["median_ms"]),
        _multiple(decode),
        f"{peak / GB:#.3g}" if pd.notna(peak) else "",
        caches,
    ]


def as_markdown(measured: Measured) -> str:
    """The README's table "measured on <device>", with what it was measured with."""
    lines = [f"Measured on {about(measured)}", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " ---: | :--- |" + " ---: |" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(cells) + " |" for cells in as_table(measured)]
    lines += ["", legend(measured), ""]
    if sentence := reading(measured):
        lines += [sentence, ""]
    return "\n".join(lines)


def show(measured: Measured) -> None:
    """Print the table, at most `WIDTH` columns wide."""
    table = Table(
        title=f"Measured on {about(measured)}", caption=legend(measured), caption_justify="left", box=SIMPLE_HEAD
    )
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if place == 1 else "right")
    for cells in as_table(measured):
        table.add_row(*cells)
    Console(width=WIDTH).print(table, highlight=False)
    if sentence := reading(measured):
        print(sentence)


def about(measured: Measured) -> str:
    """Device, type, versions, clocks."""
    first, machine = measured.rows.iloc[0], measured.machine
    facts = [machine.device, first["dtype"], f"attention {first['attention']}"]
    facts += [f"torch.compile by {first['compile']}"] if first["compile"] else []
    facts += [f"torch {machine.torch_version}", f"{machine.threads} CPU threads"]
    facts += [f"driver {machine.driver}"] if machine.driver else []
    facts += [f"{machine.clock_mhz:.0f} MHz"] if machine.clock_mhz else []
    facts += [f"limit {machine.power_limit_w:.0f} W"] if machine.power_limit_w else []
    return ", ".join(facts)


def legend(measured: Measured) -> str:
    """What the columns mean."""
    rows = _of_models(measured)
    rounds = rows.loc[rows["error"].eq(""), "rounds"]
    least, most = (rounds.min(), rounds.max()) if len(rounds) else (0, 0)
    counted = f"{least if least == most else f'{least} to {most}'} rounds, all cells in turn"
    roof = (
        f"x roof: measured over the roofline's prediction ({measured.roof.title}: {measured.roof.source})."
        if measured.roof is not None
        else measured.unpredicted
    )
    return (
        f"{rows['text_tokens'].iloc[0]} text tokens; medians of {counted}. Prefill: slow keys and values, decoder, "
        f"lm_head on the last position. Peak: of the whole path from frames to {rows['new_tokens'].iloc[0]} tokens "
        f"({rows['peak_kind'].iloc[0]}). KV: keys and values of both caches, counted. Warm-up runs the same "
        f"lengths, so that what a kernel prepares for a new length is left out. {roof}"
    )


def reading(measured: Measured) -> str:
    """The time of reading a file's frames, in a sentence; "" where it was not measured."""
    rows = measured.rows[measured.rows["stage"].eq(VIDEO_DECODING)]
    times = [f"{number(row.median_ms)} ms for {row.frames:,}" for row in rows.itertuples() if pd.notna(row.median_ms)]
    return f"Reading them from a file ({measured.video}): {', '.join(times)} frame(s)." if times else ""


def number(value: float) -> str:
    """Milliseconds with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def draw(measured: Measured, stem: Path) -> list[Path]:
    """Prefill, decoding and peak memory against frames, measured and predicted; writes `stem`.svg and .png."""
    rows = _of_models(measured)
    rows = rows[rows["text_tokens"].eq(rows["text_tokens"].iloc[0])]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.0, 3.5), layout="constrained")
        prefill, decode, memory = figure.subplots(1, 3)
        for place, (name, group) in enumerate(rows.groupby("architecture", sort=False)):
            style = STYLES.get(name, FURTHER[place % len(FURTHER)])
            _draw_times(prefill, group[group["stage"].eq("prefill")], name, style)
            _draw_times(decode, group[group["stage"].eq("decode")], name, style)
            _draw_memory(memory, group[group["stage"].eq("end_to_end")], name, style)
        for axes, label in ((prefill, "prefill, ms"), (decode, "decoding, ms per token"), (memory, "peak memory, GB")):
            _finish(axes, sorted(rows["frames"].unique()), label)
        drawn = [line for axes in (prefill, memory) for line in zip(*axes.get_legend_handles_labels(), strict=True)]
        drawn.sort(key=lambda line: KINDS.index(line[1].partition(", ")[2]))
        figure.legend(*zip(*drawn, strict=True), loc="outside lower center", ncols=len(KINDS))
        figure.suptitle(f"{measured.machine.device}, {rows['dtype'].iloc[0]} (bars: quartiles)", fontsize=9)
        return save(figure, stem)


def _draw_times(axes: Axes, rows: pd.DataFrame, name: str, style: Style) -> None:
    there = rows[rows["median_ms"].notna()]
    y = there["median_ms"]
    axes.errorbar(
        there["frames"],
        y,
        yerr=[y - there["q1_ms"], there["q3_ms"] - y],
        markersize=4.5,
        capsize=2.5,
        label=f"{name}, {KINDS[0]}",
        **style.look,
    )
    predicted = rows[rows["predicted_ms"].notna()]
    if len(predicted):
        _thin(axes, predicted["frames"], predicted["predicted_ms"], f"{name}, {KINDS[1]}", style)


def _draw_memory(axes: Axes, rows: pd.DataFrame, name: str, style: Style) -> None:
    there = rows[rows["peak_bytes"].notna()]
    axes.plot(
        there["frames"],
        there["peak_bytes"] / GB,
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        markersize=4.5,
        linewidth=1.2,
    )
    caches = (rows["kv_bytes"] + rows["slow_kv_bytes"]) / GB
    _thin(axes, rows["frames"], caches, f"{name}, {KINDS[2]}", style, face=style.colour, size=2)


def _thin(
    axes: Axes, x: pd.Series, y: pd.Series, label: str, style: Style, face: str = "white", size: float = 4
) -> None:
    """What is not measured: a thin line, hollow or small marks."""
    line = {"linestyle": (0, (1, 2)), "linewidth": 0.9, "color": style.colour}
    axes.plot(x, y, marker=style.marker, markersize=size, markerfacecolor=face, label=label, **line)


def _finish(axes: Axes, ticks: list[int], label: str) -> None:
    frames_axis(axes, ticks, ",")
    log_cost_axis(axes, (1, 2, 5))
    axes.set_xlabel("frames")
    axes.set_ylabel(label)


def _of_models(measured: Measured) -> pd.DataFrame:
    """The rows without those about files."""
    return measured.rows[measured.rows["stage"].ne(VIDEO_DECODING)]


def _multiple(row: pd.Series) -> str:
    value = row["measured_over_predicted"]
    return f"{value:.2f}" if pd.notna(value) else ""
