"""Where attention goes, drawn from a record alone (see attention_record): frames x tokens above the contact sheet."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

PARTS = ("question", "answer")  # what is drawn; tokens before the video have not seen the question
LONGEST_TOKEN = 22
MARK = "#D55E00"
COLOURS = "Greys"
FLAT = 0.5  # the exponent of the colour scale: faint attention stays visible


def attention_figure(record: dict[str, Any]) -> Figure:
    """One panel per hybrid layer, frames from left to right and tokens from top to bottom; the frames below.

    Vertical lines mark the event that the question is about, the other flashes are ticks; beside each token its gate.
    """
    layers, sheet = record["layers"], record["sheet"]
    rows = [n for n, token in enumerate(record["tokens"]) if token["part"] in PARTS]
    count = len(record["thumbnails"])
    lines = -(-count // 16)
    heights = [0.155 * len(rows) + 0.25] * len(layers) + [0.7 * lines]
    figure = Figure(figsize=(9.6, sum(heights) + 0.45 * len(layers) + 1.2), layout="constrained")
    panels = figure.subplots(len(layers) + 1, 1, height_ratios=heights)
    top = max(np.asarray(read["attention"])[rows].max() for read in layers.values())
    for axes, (layer, read) in zip(panels, layers.items(), strict=False):
        drawn = _layer(axes, record, rows, read, PowerNorm(FLAT, 0, top))
        axes.set_title(f"hybrid layer {layer}", loc="left", fontsize=8, pad=12)
    panels[len(layers) - 1].set_xlabel("frame of the video")
    figure.colorbar(drawn, ax=list(panels[:-1]), label="share of the token's attention", shrink=0.7, pad=0.01)
    _sheet(panels[-1], record, sheet, lines)
    figure.suptitle(_title(record), fontsize=8.5)
    return figure


def _layer(axes: Axes, record: dict[str, Any], rows: list[int], read: dict[str, Any], norm: PowerNorm):
    frames = record["frames"]
    middle = (np.asarray(frames[1:]) + np.asarray(frames[:-1])) / 2
    edges = np.concatenate([[frames[0] - 0.5], middle, [frames[-1] + 0.5]])
    weight_NT = np.asarray(read["attention"])[rows]
    drawn = axes.pcolormesh(edges, np.arange(len(rows) + 1), weight_NT, cmap=COLOURS, norm=norm, rasterized=True)
    axes.invert_yaxis()
    texts = [record["tokens"][row]["text"] for row in rows]
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_short(text) for text in texts], fontsize=6.5)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if record["tokens"][row]["part"] == "answer" else "normal")
    for place, row in enumerate(rows):
        axes.annotate(
            f"{read['gate'][row]:+.2f}",
            (1.005, place + 0.5),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=5.5,
            color="#444444",
            annotation_clip=False,
        )
    axes.annotate("gate", (1.005, 1.01), xycoords="axes fraction", fontsize=6.5, color="#444444")
    for event in record["events"]:
        _event(axes, event)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    return drawn


def _event(axes: Axes, event: dict[str, Any]) -> None:
    start, stop = event["start"] - 0.5, event["start"] + event["duration"] - 0.5
    if event["asked"]:
        axes.axvline(start, color=MARK, linewidth=0.7)
        axes.axvline(stop, color=MARK, linewidth=0.7)
    axes.annotate(
        event["glyph"] if event["asked"] else "·",
        ((start + stop) / 2, 1.0),
        (0, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        fontsize=6.5,
        color=MARK if event["asked"] else "#444444",
        annotation_clip=False,
    )


def _sheet(axes: Axes, record: dict[str, Any], sheet: np.ndarray, lines: int) -> None:
    """The thumbnails in lines of 16, numbered; those that show the asked-about event are framed."""
    size, thumbnails = sheet.shape[0], record["thumbnails"]
    across, gap = min(16, len(thumbnails)), 22
    canvas = np.full((lines * (size + gap), across * (size + 4), 3), 255, np.uint8)
    asked = [event for event in record["events"] if event["asked"]]
    for place, index in enumerate(thumbnails):
        y, x = place // across * (size + gap) + gap, place % across * (size + 4)
        canvas[y : y + size, x : x + size] = sheet[:, place * size : (place + 1) * size]
        shows = any(event["start"] <= index < event["start"] + event["duration"] for event in asked)
        axes.text(x, y - 2, str(index), fontsize=6, color=MARK if shows else "#444444", va="bottom")
        if shows:
            axes.add_patch(_frame(x, y, size))
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()


def _frame(x: float, y: float, size: int):
    return Rectangle((x - 1, y - 1), size + 1, size + 1, fill=False, edgecolor=MARK, linewidth=1.6)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TOKEN else f"{text[: LONGEST_TOKEN - 2]} …"


def _title(record: dict[str, Any]) -> str:
    options = "   ".join(f"({'ABCDE'[n]}) {option}" for n, option in enumerate(record["options"]))
    right = "right" if record["letter"] == record["target"] else f"wrong: ({record['target']})"
    return (
        f"{record['question']}   {options}\n"
        f"the model answers “{record['answer']}”, {right}      {record['task']} {record['doc_id']}, "
        f"{record['checkpoint']}"
    )
