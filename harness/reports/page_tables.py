"""The page's tables: cells of text with what they are sorted by and where they lead."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.benchmarks import BENCHMARKS
from harness.layout import NONE, TITLES
from harness.reports import heat, remarks
from harness.reports.answers import LEVEL, counts
from harness.reports.page_points import MAIN, Part
from harness.reports.page_rows import anchor
from harness.statistics import AVERAGE

MLVU_SAMPLES = "mlvu_samples"
MEANINGS = {
    "average": "unweighted mean of the five benchmarks, 0-100, base seeds pooled, with its 95% interval",
    "difference": "average minus that of the grid's reference on the same questions, percentage points; coloured "
    f"where p (Holm) is below {LEVEL:.0%}",
    "p (Holm)": "two-sided, from the same draws of videos and base seeds, corrected over the grid",
    "prefill 7B": "LLM prefill at the 7B configuration, TFLOP = 2 x MAC",
    "fast tokens 7B": f"video tokens in the prompt at the 7B configuration; {remarks.MARKED}: not as many as the "
    "grid's reference has",
    "model 7B": "whole model at the 7B configuration, vision tower included, TFLOP = 2 x MAC",
    "failed": "answers that failed, counted as wrong",
    "gain": "gain of the average over self_attention at 16 frames, percent of the latter",
}


@dataclass(frozen=True)
class Cell:
    """`text` as shown, `key` what it sorts by, `to` the id or file that it leads to, `kind` a class of its looks."""

    text: str
    key: str | float = ""
    to: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be sorted: heads (text, meaning), lines of cells, and lines that stay below (chance)."""

    caption: str
    heads: list[tuple[str, str]]
    lines: list[list[Cell]]
    fixed: list[list[Cell]] = field(default_factory=list)
    numeric: bool = True  # else its columns are of text


def answers(part: Part) -> Table:
    """A main table or a grid's answers, every number leading to its rows."""
    heads = columns(part)
    made = {True: [], False: []}
    for line in part.table.to_dict("records"):
        measured = line["seeds"] > 0
        to = f"#{anchor(part, line['cell'])}" if measured else ""
        name = line["cell"] if measured or part.store else "chance"
        made[measured].append([Cell(name, name, to), *(make(line, to) for make in heads.values())])
    caption = "Every number leads to its rows; a click on a head sorts."
    return Table(caption, [("cell", ""), *((head, MEANINGS.get(head, "")) for head in heads)], made[True], made[False])


def columns(part: Part) -> dict[str, Callable[[dict, str], Cell]]:
    """Head -> what makes a line's cell, for the columns that the part's table has: what is compared comes first."""
    made: dict[str, Callable[[dict, str], Cell]] = {AVERAGE: interval(AVERAGE)}
    if part.name == MAIN:
        made["gain"] = number("relative_gain_pct", "+.1f", "%")
    elif part.table["difference"].notna().any():
        made["difference"] = interval("difference", signed=True)
        made["p (Holm)"] = p_value("p_holm")
    made["prefill 7B"] = number("prefill_tflop_7b", ",.2f")
    if remarks.TOKENS in part.table and part.table[remarks.TOKENS].notna().any():
        made["fast tokens 7B"] = _tokens_7b
    made["model 7B"] = number("model_tflop_7b", ",.1f")
    made |= {TITLES[name]: interval(name) for name in BENCHMARKS if name in part.table}
    if MLVU_SAMPLES in part.table and part.table[MLVU_SAMPLES].notna().any():
        made["MLVU, mean over samples"] = interval(MLVU_SAMPLES)
    made["failed"] = number("failures", ".0f")
    return made


def summary(part: Part) -> str:
    """What a grid's comparisons come to, in a sentence; empty if nothing is compared."""
    found = part.measured[part.measured["difference"].notna()]
    if found.empty:
        return ""
    return (
        f"Against the reference: {counts(found)}. A difference of {found['detectable'].median():.1f} points (median "
        "over the comparisons) would be found with 80% power."
    )


def interval(name: str, signed: bool = False) -> Callable[[dict, str], Cell]:
    """A score or difference with its interval."""

    def make(line: dict, to: str) -> Cell:
        value, lo, hi = (line.get(f"{name}{end}") for end in ("", "_lo", "_hi"))
        if value is None or pd.isna(value):
            return Cell(NONE, "", "")
        sign = "+" if signed else ""
        ends = "" if pd.isna(lo) or lo == hi else f" [{lo:{sign}.1f}, {hi:{sign}.1f}]"
        return Cell(f"{value:{sign}.1f}{ends}", float(value), to, _direction(line, value) if signed else "")

    return make


def _direction(line: dict, difference: float) -> str:
    """Of a difference: up or down if its corrected p says that there is one, as in the grid's answer."""
    p = line.get("p_holm")
    if p is None or pd.isna(p) or p >= LEVEL:
        return ""
    return "up" if difference > 0 else "down"


def number(name: str, form: str, unit: str = "") -> Callable[[dict, str], Cell]:
    """A plain number."""

    def make(line: dict, to: str) -> Cell:
        value = line.get(name)
        if value is None or pd.isna(value) or line["seeds"] == 0:
            return Cell(NONE, "", "")
        return Cell(f"{value:{form}}{unit}", float(value), to, "alarm" if name == "failures" and value else "")

    return make


def _tokens_7b(line: dict, to: str) -> Cell:
    """Fast tokens at 7B, marked where they are not the reference's."""
    tokens = line[remarks.TOKENS]
    if pd.isna(tokens):
        return Cell(NONE, "", "")
    return Cell(remarks.marked(tokens, line[remarks.BUDGET]), float(tokens), to)


def p_value(name: str) -> Callable[[dict, str], Cell]:
    """A p value."""

    def make(line: dict, to: str) -> Cell:
        value = line.get(name)
        if value is None or pd.isna(value):
            return Cell(NONE, "", "")
        return Cell("<0.001" if value < 0.001 else f"{value:.3f}", float(value), to)

    return make


def category_table(part: Part) -> Table:
    """Percent right of every cell in every category, coloured; beside each category its number of answers."""
    found = heat.categories(part.rows)
    share = found.pivot(index=["benchmark", "category"], columns="cell", values="share")
    asked = found.groupby(["benchmark", "category"])["asked"].max()
    lines = []
    for name, benchmark in BENCHMARKS.items():
        for category in (each for each in benchmark.categories if (name, each) in share.index):
            count = int(asked[name, category])
            fields = [_field(share.loc[(name, category)].get(cell), part, cell) for cell in part.cells]
            lines.append([Cell(f"{benchmark.title}: {category}"), Cell(str(count), count), *fields])
    heads = [("category", ""), ("answers", "of one cell, all base seeds"), *((cell, "") for cell in part.cells)]
    return Table("Percent right; darker is less. Every number leads to its rows.", heads, lines)


def _field(share: float | None, part: Part, cell: str) -> Cell:
    if share is None or pd.isna(share):
        return Cell(NONE)
    return Cell(f"{share:.0f}", round(float(share), 2), f"#{anchor(part, cell)}", f"heat h{round(share / 10)}")


def published_table(beside: pd.DataFrame, main: Part | None) -> Table:
    """Published numbers and, in columns of their own, measured ones; those that have one beside them come first."""
    heads = [("model", "as published"), ("frames", "as published"), ("benchmark", ""), ("published", "")]
    scale = f"{main.scale} scale, with its 95% interval" if main else ""
    heads += [("measured here", scale), ("measured row", ""), ("metric, published", "")]
    heads += [("metric, measured", ""), ("source", ""), ("evaluation code", "of the published number"), ("note", "")]
    lines = []
    for each in beside.sort_values("measured", key=pd.isna, kind="stable").to_dict("records"):
        to = f"#{anchor(main, each['measured_row'])}" if main and pd.notna(each["measured_row"]) else ""
        measured = interval("measured")({name: each[name] for name in ("measured", "measured_lo", "measured_hi")}, to)
        digits = ".1f" if each["metric"].startswith("accuracy") else "g"
        lines.append(
            [
                *(Cell(_text(each["model"])), Cell(_text(each["frames"]), _key(each["frames"]))),
                *(Cell(_text(each["benchmark"])), Cell(f"{each['score']:{digits}}", float(each["score"]), "", "said")),
                *(measured, Cell(_text(each["measured_row"]), "", to)),
                *(Cell(_text(each[name])) for name in ("metric", "measured_metric", "source", "harness", "note")),
            ]
        )
    caption = "Published numbers, and measured ones of the same kind in columns of their own."
    return Table(caption, heads, lines, numeric=False)


def _text(value: Any) -> str:
    return NONE if value is None or pd.isna(value) else str(value)


def _key(value: Any) -> str | float:
    return "" if value is None or pd.isna(value) else float(value)
