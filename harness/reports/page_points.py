"""Every measured point of the book, main table and grids alike, as one table: what figures and page are made from.

Scores, intervals and costs are those of tables/ (made from rows by `python -m harness report` and `plot`); what the
rows alone know, such as categories, is read from rows/.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.errors import UserError
from harness.reports import remarks
from harness.reports.grid_table import BOTH
from harness.reports.grid_table import SAMPLES as BY_SAMPLES
from harness.reports.grids import ABLATIONS
from harness.row_store import RowStore, grids_in
from harness.rows import read_rows, seed_suffix
from harness.statistics import AVERAGE

MAIN = "main"  # the source that is no grid
APART = ("scale.", "encoder.", "encoder=")
"""What sets cells apart from the others' scores or costs: another base, another encoder (whose 7B figures are not
its own). So does a budget of fast tokens at 7B that is not the measured one (see harness/reports/remarks.py)."""
SAME_POINT = ["suite_fingerprint", "architecture", "frames", AVERAGE, "prefill_tflop_7b", "model_tflop_7b"]
"""Rows that agree in these are one model, made for two tables by code of different days."""
POINTS = {
    "source": "`main`, or the grid's name",
    "cell": "ARCHITECTURE@FRAMES, or the grid's name of the cell",
    "line": "the line of the grid's figure that it lies on, else its architecture",
    "axis": "what the grid varies, if it is one number",
    "architecture": "as in the row; where that has hybrid layers and the cell has none, with these words",
    **dict.fromkeys(("frames", "control", "world", "suite_fingerprint"), "as in the row"),
    **{f"{AVERAGE}{end}": "as in the table" for end in ("", "_lo", "_hi")},
    "prefill_tflop_7b": "LLM prefill at 7B, TFLOP = 2 x MAC",
    "model_tflop_7b": "whole model at 7B, TFLOP = 2 x MAC",
    "prefill_over_pct": "LLM prefill over self_attention at 16 frames, percent",
    "model_over_pct": "whole model over the same, percent",
    remarks.BUDGET: "as in the grid's table",
    "overrides": "what the cell differs by, as typed",
    "hashes": "content hashes of its rows: equal hashes are equal points",
}


@dataclass(frozen=True)
class Part:
    """One part of the book: the main table of a seed, or a grid. `rows` are its `Row`s as a frame, with `cell`."""

    name: str
    scale: str
    seed: int
    rows: pd.DataFrame
    table: pd.DataFrame
    rows_file: Path
    store: RowStore | None = None

    @property
    def stem(self) -> str:
        """The name of its table and figure, without ending."""
        return f"{self.name}_{self.scale}{seed_suffix(self.seed)}"

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The table's lines of cells, without chance."""
        return self.table[self.table["seeds"] > 0]

    @cached_property
    def cells(self) -> list[str]:
        """Its cells, in the table's order."""
        return list(self.measured["cell"])


def main_parts(results: Path, strict: bool = True) -> list[Part]:
    """The main table of every scale and seed that has rows. Without its table: UserError if `strict`, else left out."""
    paths = sorted((results / "rows").glob(f"{MAIN}_*_seed*.jsonl"))
    return [part for path in paths if (part := _main(path, results, strict))]


def grid_parts(results: Path, strict: bool = True) -> list[Part]:
    """Every grid that has rows, in the book's order. Without its table: UserError if `strict`, else left out."""
    return [part for store in grids_in(results) if (part := _grid(store, results, strict)) is not None]


def points(parts: Iterable[Part]) -> pd.DataFrame:
    """One line per cell of the parts' tables, columns POINTS."""
    made = [_points(part) for part in parts]
    return pd.concat(made, ignore_index=True)[list(POINTS)] if made else pd.DataFrame(columns=list(POINTS))


def plain_points(book: pd.DataFrame) -> pd.DataFrame:
    """The points that can stand beside each other: no control, the plain world, none set apart, each row set once."""
    plain = book[_plain(book) & ~_apart(book)].drop_duplicates("hashes")
    return plain.drop_duplicates(SAME_POINT, ignore_index=True)


def left_out(book: pd.DataFrame) -> list[str]:
    """The cells that would be among `plain_points` if they were not set apart."""
    return list(dict.fromkeys(book[_plain(book) & _apart(book)]["cell"]))


def _plain(book: pd.DataFrame) -> pd.Series:
    return book["control"].eq("none") & book["world"].eq("plain")


def _apart(book: pd.DataFrame) -> pd.Series:
    typed = book["overrides"].map(lambda typed: any(text.startswith(APART) for text in typed.split())).astype(bool)
    return typed | book[remarks.BUDGET].eq(remarks.OTHER)


def _main(path: Path, results: Path, strict: bool) -> Part | None:
    rows = read_rows(path)
    if rows.empty:
        return None
    scale, seed = rows["scale"].iloc[0], int(rows["seed"].iloc[0])
    table = results / "tables" / f"{MAIN}_{scale}{seed_suffix(seed)}.csv"
    if not table.is_file() and not strict:
        return None
    if not table.is_file():
        raise UserError(f"{path} has no table {table}; `python -m harness plot` makes it.")
    rows = rows.assign(cell=_named(rows))
    made = pd.read_csv(table)
    made = made.assign(cell=_named(made))
    made[BY_SAMPLES] = made["cell"].map(_by_samples(rows))
    return Part(MAIN, scale, seed, rows, made, path)


def _by_samples(rows: pd.DataFrame) -> dict[str, float]:
    """By cell, the benchmark with two aggregations as the mean over questions, base seeds averaged."""
    told = rows["aggregations"].map(lambda both: both.get(BOTH, {}).get("samples", float("nan")))
    return told.groupby(rows["cell"]).mean().to_dict()


def _named(table: pd.DataFrame) -> pd.Series:
    return table["architecture"] + "@" + table["frames"].astype(str)


def _grid(store: RowStore, results: Path, strict: bool) -> Part | None:
    rows = store.frame()
    if rows.empty or not rows["cell"].isin(store.grid().cells).any():
        return None
    name = f"{store.name}_{store.scale}"
    table = results / "tables" / ABLATIONS / f"{name}{seed_suffix(store.seed)}.csv"
    if not table.is_file() and not strict:
        return None
    if not table.is_file():
        raise UserError(f"the grid {store.name} has rows but no table {table}; `python -m harness report` makes it.")
    made = pd.read_csv(table, keep_default_na=True)
    return Part(store.name, store.scale, store.seed, rows, made, store.path, store)


def _typed(rows: pd.DataFrame, cell: str) -> str:
    """What a cell differs by; rows older than that field say nothing."""
    typed = rows["overrides"][cell] if "overrides" in rows else None
    return " ".join(typed) if isinstance(typed, list) else ""


def _points(part: Part) -> pd.DataFrame:
    first = part.rows.drop_duplicates("cell").set_index("cell")
    table = part.measured[part.measured["cell"].isin(first.index)]
    of_row = {
        name: table["cell"].map(first[name]) if name in first else default
        for name, default in (("architecture", ""), ("frames", 0), ("control", "none"), ("world", "plain"))
    }
    without = table["cell"].isin(remarks.without_hybrid_layer(part.rows))
    of_row["architecture"] = of_row["architecture"].mask(without, of_row["architecture"] + ", no hybrid layer")
    ends = "overhead_7b_pct" if part.store is None else "over_16_frames_pct"
    hashes = part.rows.groupby("cell")["content_hash"].agg(lambda found: " ".join(sorted(found)))
    line = table["line"] if "line" in table else pd.Series(index=table.index, dtype=object)
    return table.assign(
        **of_row,
        source=part.name,
        axis=(part.store.grid().axis or "") if part.store else "",
        suite_fingerprint=table["cell"].map(first["suite_fingerprint"]),
        line=line.where(line.notna(), of_row["architecture"]),
        prefill_over_pct=table[f"prefill_{ends}"],
        model_over_pct=table[f"model_{ends}"],
        overrides=[_typed(first, cell) for cell in table["cell"]],
        **{remarks.BUDGET: table.get(remarks.BUDGET, "")},
        hashes=table["cell"].map(hashes),
    )
