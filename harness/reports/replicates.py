"""Grids that were trained again on another machine: how far scores move where nothing but rounding differs.

A replicate is a results folder of its own below results/replicates, NAME its machine:

    make ablate GRID=gates ARGS=results_dir=results/replicates/NAME

A row is compared with the book's if both are of equal content (code, settings, seeds, suite, libraries) and of
different devices. Neither is the right one: the book's rows stand in tables and figures, a replicate's only here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness import statistics
from harness.errors import UserError
from harness.layout import NONE, Block, latex, markdown
from harness.paths import write_text
from harness.reports.grid_result import GridResult, analyse
from harness.row_store import RowStore, grids_in

FOLDER, STEM = "replicates", "replicates"
TITLE = "Trained again on another machine"
LEVEL = 0.05
COLUMNS = {
    "replicate": "the folder below results/replicates: a machine",
    "grid": "the grid; `all` is every row once, also if grids share it",
    "device": "the replicate's",
    "book_device": "of the rows in tables and figures",
    "rows": "rows (cell and base seed) of equal content on both",
    "left_out": "rows of the replicate without an equal among the book's complete cells",
    "mean": "the replicate's average minus the book's, mean over rows, percentage points",
    "sd": "its standard deviation over rows",
    "least": "the smallest",
    "most": "the largest",
    "comparisons": "cells compared with their reference on both, all rows of both cells being of equal content",
    "largest_move": "how far such a difference, base seeds pooled, moved at most, percentage points",
    "changed": "cells whose difference is told apart from 0 (p below 0.05, Holm over these comparisons of the grid) on "
    "one machine only, or turned round",
}
WHOLE = "all"


@dataclass(frozen=True)
class Replicate:
    """A machine's grids beside the book's: rows on both, and comparisons on both.

    Attributes:
        pairs: grid, cell, base_seed, content_hash, device, book_device, moved (points), one line per row of equal
            content that different devices made.
        compared: grid, cell, moved (points), changed; one line per comparison that both make of such rows alone.
        left_out: grid -> number of rows without an equal in the book.
    """

    name: str
    pairs: pd.DataFrame
    compared: pd.DataFrame
    left_out: dict[str, int]


def replicates(results: Path, book: Sequence[GridResult]) -> list[Replicate]:
    """Every machine of which there are rows that the book has too."""
    ours = {(result.grid.name, result.scale, result.seed): result for result in book}
    found = []
    for folder in sorted(path for path in (Path(results) / FOLDER).glob("*") if path.is_dir()):
        pairs, compared, left_out = [], [], {}
        for store in grids_in(folder):
            mine = ours.get((store.name, store.scale, store.seed))
            again = None if mine is None else _analysed(store, folder)
            if again is None:
                continue
            equal = _equal(mine, again)
            both = equal[equal["device"] != equal["book_device"]]
            pairs.append(both)
            compared.append(_compared(mine, again, set(zip(both["cell"], both["base_seed"], strict=True))))
            left_out[store.name] = left_out.get(store.name, 0) + len(again.rows) - len(equal)
        if pairs and any(map(len, pairs)):
            found.append(Replicate(folder.name, pd.concat(pairs), pd.concat(compared), left_out))
    return found


def _analysed(store: RowStore, folder: Path) -> GridResult | None:
    try:
        return analyse(store)
    except UserError as error:
        raise UserError(f"{folder}, {store.name}: {error}") from error


def _equal(mine: GridResult, again: GridResult) -> pd.DataFrame:
    """The rows of equal content, one's beside the other's."""
    keys = ["cell", "base_seed", "content_hash"]
    book = mine.rows[[*keys, "device", "average"]].rename(columns={"device": "book_device", "average": "book_average"})
    both = again.rows[[*keys, "device", "average"]].merge(book, on=keys)
    return both.assign(grid=mine.grid.name, moved=both["average"] - both["book_average"])


def _compared(mine: GridResult, again: GridResult, paired: set[tuple[str, int]]) -> pd.DataFrame:
    """The comparisons in which every row has its pair, of the cell and of its reference."""
    lines = []
    if mine.seeds == again.seeds and len(mine.differences) and len(again.differences):
        whole = {cell for cell in mine.cells if all((cell, seed) in paired for seed in mine.seeds)}
        here, there = (
            result.differences[result.differences.index.isin(whole) & result.differences["reference"].isin(whole)]
            for result in (mine, again)
        )
        verdicts = [_verdicts(part) for part in (here, there)]
        for cell in (cell for cell in here.index if cell in there.index):
            moved = there["difference"][cell] - here["difference"][cell]
            changed = verdicts[0][cell] != verdicts[1][cell]
            lines.append({"grid": mine.grid.name, "cell": cell, "moved": moved, "changed": changed})
    return pd.DataFrame(lines, columns=["grid", "cell", "moved", "changed"])


def _verdicts(differences: pd.DataFrame) -> dict[str, str]:
    """Cell -> above or below its reference, or not told apart from it."""
    told = statistics.holm(differences["p"]) < LEVEL
    above = differences["difference"] > 0
    return {
        cell: ("above" if up else "below") if apart else "not told apart"
        for cell, apart, up in zip(differences.index, told, above, strict=True)
    }


def table(found: Sequence[Replicate]) -> pd.DataFrame:
    """COLUMNS: a line per machine and grid, and one of all."""
    lines = []
    for one in found:
        for grid, left_out in one.left_out.items():
            pairs, compared = (part[part["grid"].eq(grid)] for part in (one.pairs, one.compared))
            lines.append(_line(one.name, grid, pairs, compared, left_out))
        once = one.pairs.drop_duplicates("content_hash")
        lines.append(_line(one.name, WHOLE, once, one.compared, sum(one.left_out.values())))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _line(name: str, grid: str, pairs: pd.DataFrame, compared: pd.DataFrame, left_out: int) -> dict:
    moved = pairs["moved"]
    prefix = compared["grid"] + " " if grid == WHOLE else ""
    return {
        "replicate": name,
        "grid": grid,
        "device": "; ".join(pairs["device"].unique()),
        "book_device": "; ".join(pairs["book_device"].unique()),
        "rows": len(pairs),
        "left_out": left_out,
        "mean": moved.mean(),
        "sd": moved.std(),
        "least": moved.min(),
        "most": moved.max(),
        "comparisons": len(compared),
        "largest_move": compared["moved"].abs().max(),
        "changed": ", ".join((prefix + compared["cell"])[compared["changed"].astype(bool)]),
    }


def sentence(line: pd.Series) -> str:
    """A machine's line of all grids in words."""
    spread = f", standard deviation {line['sd']:.1f}, from {line['least']:+.1f} to {line['most']:+.1f}"
    rows = (
        f"{line['rows']} rows trained again on {line['device']} (the book: {line['book_device']}) average "
        f"{line['mean']:+.1f} points beside the book's{spread if line['rows'] > 1 else ''}"
    )
    if not line["comparisons"]:
        return f"{rows}."
    changed = f"another verdict: {line['changed']}" if line["changed"] else "none has another verdict"
    return (
        f"{rows}; of {line['comparisons']} comparisons with references {changed}, and a difference moved by at most "
        f"{line['largest_move']:.1f} points."
    )


def write(results: Path, book: Sequence[GridResult]) -> list[str]:
    """Write results/tables/replicates.{csv,md,tex}; a sentence per machine. Without a replicate, none is there."""
    made = table(replicates(results, book))
    there = Path(results) / "tables" / STEM
    if made.empty:
        for ending in (".csv", ".md", ".tex"):
            there.with_suffix(ending).unlink(missing_ok=True)
        return []
    whole = [sentence(line) for _, line in made[made["grid"].eq(WHOLE)].iterrows()]
    numbers = dict.fromkeys(("mean", "sd", "least", "most", "largest_move"), 2)
    write_text(there.with_suffix(".csv"), made.round(numbers).to_csv(index=False, lineterminator="\n"))
    lines = [*whole, *(f"{name}: {meaning}." for name, meaning in COLUMNS.items() if name in SHOWN)]
    write_text(there.with_suffix(".md"), markdown([block(made)], TITLE, lines))
    write_text(there.with_suffix(".tex"), latex([block(made)], TITLE, lines, label=STEM))
    return whole


SHOWN = {
    "replicate": "machine",
    "grid": "grid",
    "rows": "rows",
    "mean": "mean",
    "sd": "sd",
    "least": "least",
    "most": "most",
    "comparisons": "compa-\nrisons",
    "largest_move": "largest\nmove",
    "changed": "verdict\nchanged",
}
"""Columns for reading, and their heads."""


def block(made: pd.DataFrame) -> Block:
    """The table for reading."""
    signed, plain = ("mean", "least", "most"), ("sd", "largest_move")

    def spelt(name: str, value: object) -> str:
        if name in (*signed, *plain):
            return NONE if pd.isna(value) else f"{value:{'+' if name in signed else ''}.1f}"
        return str(value) if value != "" else NONE

    columns = [(head, [spelt(name, value) for value in made[name]]) for name, head in SHOWN.items()]
    return Block("The replicate's average minus the book's, percentage points", columns)
