"""ablations/README.md from the book and a results folder: question, answer with interval, figure, grid by grid."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from harness.layout import escaped_md
from harness.paths import write_text
from harness.reports import grids, remarks
from harness.reports.answers import answers, short
from harness.reports.grid_foot import duration, missing, missing_rows
from harness.reports.grid_result import OWN_STAGES, GridResult
from harness.row_store import grids_in

if TYPE_CHECKING:
    from harness.grids.grid import Grid

README = "README.md"
TEMPLATE = Path(__file__).with_name("ablations.md.jinja")


def text(
    book: "Sequence[Grid]",
    analysed: Sequence[GridResult],
    results: str,
    failed: Mapping[str, Sequence[str]] | None = None,
    again: Sequence[str] = (),
) -> str:
    """The whole file.

    Args:
        book: the grids, in order.
        analysed: those that have rows; of one grid's, the first is shown and the others are linked.
        results: path of the results folder, as seen from the file.
        failed: name of a grid without rows -> a line for each cell that failed.
        again: a sentence for each machine that trained grids again.
    """
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, autoescape=False, **options)  # markdown, not HTML
    environment.filters["md"] = escaped_md
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    known = {grid.name for grid in book}
    gone = [result.grid for result in analysed if result.grid.name not in known]
    entries = [
        _entry(grid, [r for r in analysed if r.grid.name == grid.name], (failed or {}).get(grid.name, []))
        for grid in [*book, *gone]
    ]
    return template.render(entries=entries, results=results, times=_times(analysed), again=again)


def write_readme(folder: Path, results: Path, analysed: Sequence[GridResult], again: Sequence[str] = ()) -> Path | None:
    """Write `folder`/README.md; None, and nothing written, where `folder` is no book beside these results.

    A results folder elsewhere has a book of its own or none: its answers are not those of this checkout.
    """
    folder, results = Path(folder), Path(results)
    if not folder.is_dir() or folder.resolve().parent != results.resolve().parent:
        return None
    from harness.grids.grid import all_grids

    failed = {
        store.name: missing_rows(store.failures(), {})
        for store in grids_in(results)
        if store.failures() and not store.rows()
    }
    made = text(all_grids(folder, composed=False), analysed, os.path.relpath(results, folder), failed, again)
    write_text(folder / README, made)
    return folder / README


def _entry(grid: "Grid", found: Sequence[GridResult], failed: Sequence[str]) -> dict:
    """What the template says of a grid."""
    entry = {"name": grid.name, "question": grid.question, "paper": sentence(grid.paper), "run": None}
    entry["failed"] = list(failed)
    entry["limits"] = sentence(grid.limits) if grid.limits else ""
    if not found:
        return entry | {"time": sentence(grid.time)}
    shown, *others = found
    seconds = shown.seconds
    entry["run"] = {
        "stem": grids.stem(shown),
        "scale": shown.scale,
        "answers": answers(shown),
        "short": short(shown),
        "remarks": remarks.sentences(shown.rows, shown.grid.reference),
        "missing": missing(shown),
        "changed": shown.grid != grid,
        "own": duration(seconds["own"]),
        "shared": duration(seconds["shared"]),
        "cells": len(shown.cells),
        "seeds": len(shown.seeds),
        "others": [grids.stem(other) for other in others],
    }
    return entry


def _times(analysed: Sequence[GridResult]) -> dict | None:
    """Cells, rows and hours of all grids together, what they share once; None without rows."""
    rows = {row.content_hash: row for result in analysed for row in result.rows.itertuples()}
    if not rows:
        return None
    stages = {pair for row in rows.values() for pair in row.timings.items()}
    own = sum(seconds for stage, seconds in stages if stage in OWN_STAGES)
    whole = sum(seconds for _, seconds in stages)
    return {"grids": len(analysed), "rows": len(rows), "own": duration(own), "shared": duration(whole - own)}


def sentence(text: str) -> str:
    """A field of a grid as a sentence: a capital first, a full stop last."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")
