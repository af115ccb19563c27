"""The profile's rows as tables: overheads by frames, all numbers at one number of frames, the paper's two by frames."""

import pandas as pd
from rich.console import Console

from harness.layout import Block, Columns, markdown, print_table
from harness.profilers.grid import COLUMNS
from harness.profilers.variants import REFERENCE

PAPER = ("self_attention", "slow_fast")
HEADLINE_FRAMES = 128
BUDGETS = {
    "fixed": "fast tokens held at a number, however many frames",
    "strides": "fast tokens at fixed strides",
    "own": "fast tokens as typed",
}
SCOPES = {"llm_prefill": "LLM prefill", "model": "Whole model"}
NUMBERS = {
    "fast_tokens": ("fast\ntokens", 1, ","),
    "slow_tokens": ("slow\ntokens", 1, ","),
    "hybrid_layers": ("hybrid\nlayers", 1, ","),
    "llm_prefill_flop": ("LLM prefill\nTFLOP", 1e12, ",.2f"),
    "llm_prefill_overhead": ("\n+%", 1e-2, "percent"),
    "model_flop": ("model\nTFLOP", 1e12, ",.0f"),
    "model_overhead": ("\n+%", 1e-2, "percent"),
    "decode_step_flop": ("decode\nGFLOP", 1e9, ",.2f"),
    "kv_bytes": ("KV\nMB", 1e6, ",.0f"),
    "slow_kv_bytes": ("slow KV\nMB", 1e6, ",.0f"),
}
"""Column of the rows -> head, unit, format."""


def show(rows: pd.DataFrame) -> None:
    """Print the tables, at most 100 characters wide."""
    print_table(blocks(rows), title(rows), notes(rows), Console(width=max(100, Console().width)))


def as_markdown(rows: pd.DataFrame) -> str:
    """The same tables for a file."""
    columns = [f"{name}: {meaning}" for name, meaning in COLUMNS.items()]
    return markdown(blocks(rows), title(rows), [*notes(rows), "Columns of the CSV:", *columns])


def title(rows: pd.DataFrame) -> str:
    """What was counted."""
    typed = f"; typed: {one(rows, 'typed')}" if one(rows, "typed") else ""
    return f"Compute against frames, counted ({one(rows, 'scale')} scale, encoder {one(rows, 'encoder')}{typed})"


def notes(rows: pd.DataFrame) -> list[str]:
    """The conventions."""
    return [
        f"{one(rows, 'text_tokens')} text tokens behind one video. FLOP = 2 x MAC; attention as the full square; "
        "matrix products, convolutions and attention are counted, elementwise operations are not.",
        f"Overheads are against {REFERENCE[0]} at {REFERENCE[1]} frames and as much text. LLM prefill: until the first "
        "token, slow keys and values included, lm_head on the last position. Model: with vision tower, projector and "
        "compressor. Decode: one token more, slow keys and values kept.",
        "+ NAME: slow_fast with another compressor or placement. KV: 2 bytes a number, after prefill.",
        *held(rows),
        *(f"Fixed strides, {options}: {', '.join(named)}." for options, named in strides(rows).items()),
    ]


def held(rows: pd.DataFrame) -> list[str]:
    """What "held at a number" means."""
    if not rows["fast_budget"].eq("fixed").any():
        return []
    return [
        "Held at a number: that of 16 whole frames unless the fast tokens say otherwise; shorter videos keep all their "
        "frames. Strides must be whole, so that numbers of frames that are no multiple of 16 leave some more or fewer."
    ]


def strides(rows: pd.DataFrame) -> dict[str, list[str]]:
    """The options behind "fixed strides" -> the variants that have them, other than by their own YAML."""
    found: dict[str, list[str]] = {}
    for name in rows.loc[rows["fast_budget"].eq("strides"), "architecture"].unique():
        options = " ".join(text for text in name.split() if text.startswith("compressor."))
        if options:
            found.setdefault(options, []).append(short(name))
    return found


def blocks(rows: pd.DataFrame) -> list[Block]:
    """Every table, at the first number of text tokens, frames ascending."""
    rows = rows[rows["text_tokens"].eq(rows["text_tokens"].iloc[0])]
    shown = min(rows["frames"].unique(), key=lambda frames: abs(frames - HEADLINE_FRAMES))
    by_budget = [(meaning, rows[rows["fast_budget"].eq(budget)]) for budget, meaning in BUDGETS.items()]
    by_budget = [(meaning, of_budget) for meaning, of_budget in by_budget if len(of_budget)]
    at_once = [
        Block(f"{shown} frames; {meaning}", [names(some), *numbers(some)], names=1)
        for meaning, of_budget in by_budget
        for some in [of_budget[of_budget["frames"].eq(shown)]]
    ]
    growing = [
        Block(f"{what}, overhead in % by frames; {meaning}", by_frames(of_budget, f"{scope}_overhead"), names=1)
        for scope, what in SCOPES.items()
        for meaning, of_budget in by_budget
    ]
    paper = [
        Block(f"{name} by frames", [("frames", [f"{T:,}" for T in some["frames"]]), *numbers(some)], names=1)
        for name in PAPER
        for some in [rows[rows["architecture"].eq(name)].sort_values("frames")]
        if len(some)
    ]
    return [*at_once, *growing, *paper]


def names(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """The first column."""
    return "architecture", [short(name) for name in rows["architecture"]]


def numbers(rows: pd.DataFrame) -> Columns:
    """The columns of NUMBERS."""
    return [
        (head, [percent(value / unit) if form == "percent" else f"{value / unit:{form}}" for value in rows[column]])
        if unit != 1
        else (head, [f"{value:{form}}" for value in rows[column]])
        for column, (head, unit, form) in NUMBERS.items()
    ]


def by_frames(rows: pd.DataFrame, column: str) -> Columns:
    """A line per variant, a column per number of frames."""
    wide = rows.pivot(index="architecture", columns="frames", values=column).loc[rows["architecture"].unique()]
    cells = [(f"{frames:,}", [percent(100 * value) for value in wide[frames]]) for frames in wide.columns]
    return [("architecture", [short(name) for name in wide.index]), *cells]


def percent(value: float) -> str:
    """An overhead in percent with as many digits as it deserves."""
    return f"{value:+.2f}" if abs(value) < 10 else f"{value:+,.0f}"


def short(name: str) -> str:
    """A variant's name without the compressor's options: the note on strides gives them."""
    architecture, *changes = name.split()
    chosen = [text.removeprefix("compressor=") for text in changes if "." not in text.partition("=")[0]]
    return f"+ {' '.join(chosen)}".replace("=", " ") if chosen else architecture


def one(rows: pd.DataFrame, column: str) -> str:
    """The value of a column in the tables' rows."""
    return str(rows[column].iloc[0])
