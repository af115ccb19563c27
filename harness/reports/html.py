"""One page with everything: `write_page(results)` writes results/report.html.

The page holds its styles, its script and its figures, and loads nothing: it opens from disk without a network. The
same results give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from harness.paths import write_text
from harness.reports import remarks
from harness.reports.grid_foot import missing_rows
from harness.reports.grid_result import lacking
from harness.reports.grids import ABLATIONS
from harness.reports.page_claims import claims_table
from harness.reports.page_figures import BOOK, TITLES, kind_of, title_of
from harness.reports.page_others import others
from harness.reports.page_points import Part, grid_parts, main_parts
from harness.reports.page_rows import each_once, link, rows_of
from harness.reports.page_svg import Figures
from harness.reports.page_tables import (
    Table,
    answers,
    category_table,
    published_table,
    summary,
)
from harness.reports.published import beside, read_published
from harness.row_store import grids_in
from harness.rows import seed_suffix

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def write_page(results: Path) -> Path:
    """Write the page of a results folder; returns its path.

    Tables are those of `python -m harness report` and `plot`, figures those in figures/: make them before. What is
    not there is left out. Raises UserError where rows have no table yet.
    """
    results = Path(results)
    page = results / PAGE
    write_text(page, render(results, page))
    return page


def render(results: Path, page: Path) -> str:
    """The page's text."""
    mains, grids = main_parts(results), grid_parts(results)
    parts = [*mains, *grids]
    figures, places = Figures(), {}
    for part in grids:
        places.setdefault(part.name, f"#{part.stem}")
    sections = others(results, lambda path, title: _figure(figures, path, title, results))
    content = {
        "made": provenance(parts),
        "mains": [_main(part, figures, results) for part in mains],
        "grids": [_grid(part, figures, results) for part in grids],
        "book": _book(figures, results),
        "others": sections,
        "claims": claims_table(results, places, {section["id"] for section in sections}),
        "published": _published(results, mains),
        "failures": failures(results, parts),
        "rows": [rows_of(part, page) for part in parts],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(**content, glyphs=figures.glyphs)


def provenance(parts: Sequence[Part]) -> dict[str, Any]:
    """What the rows together say of where they come from: commits, suites, scales, versions, devices, base seeds."""
    if not parts:
        return {}
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    commits = [
        f"{(commit or 'no commit')[:12]}{' with uncommitted changes' if dirty else ''}"
        for commit, dirty in zip(rows["code_commit"], rows["code_dirty"], strict=True)
    ]
    return {
        "scales": each_once(rows["scale"]),
        "facts": [
            ("commit", each_once(commits)),
            ("suite fingerprint", each_once(rows["suite_fingerprint"])),
            ("base seeds", sorted(each_once(str(seed) for seed in rows["base_seed"]))),
            ("device", each_once(rows["device"])),
            ("versions", each_once(", ".join(f"{k} {v}" for k, v in sorted(row.items())) for row in rows["versions"])),
            ("sampling", each_once(rows["sampling"])),
            ("rows", [f"{len(rows)}, of {rows['n_samples'].sum():,} answers"]),
        ],
    }


def failures(results: Path, parts: Sequence[Part]) -> dict[str, list]:
    """Cells that failed, of grids without any row too, with their tracebacks, and rows in which answers failed."""
    cells = [
        {"part": f"{store.name}_{store.scale}{seed_suffix(store.seed)}", **failure.model_dump()}
        for store in grids_in(results)
        for failure in store.failures()
    ]
    answered = [
        {"part": part.stem, "cell": row["cell"], "base_seed": row["base_seed"], "kinds": row["failure_kinds"]}
        for part in parts
        for row in part.rows[part.rows["failures"] > 0].to_dict("records")
    ]
    return {"cells": cells, "answers": answered}


def _main(part: Part, figures: Figures, results: Path) -> dict[str, Any]:
    folder, suffix = results / "figures", part.stem.removeprefix(f"{part.name}_{part.scale}")
    names = {
        f"accuracy_vs_frames{suffix}": "Accuracy against frames",
        f"accuracy_vs_prefill_flops{suffix}": "Accuracy against prefill FLOPs",
    }
    return {
        "id": part.stem,
        "seed": part.seed,
        "scale": part.scale,
        "table": answers(part),
        "categories": category_table(part),
        "figures": [_figure(figures, folder / f"{name}.svg", title, results) for name, title in names.items()],
    }


def _grid(part: Part, figures: Figures, results: Path) -> dict[str, Any]:
    grid = part.store.grid()
    path = results / "figures" / ABLATIONS / f"{part.stem}.svg"
    title = f"Grid {part.name}: {grid.question}"
    return {
        "id": part.stem,
        "name": part.name,
        "scale": part.scale,
        "seed": part.seed,
        "grid": grid,
        "table": answers(part),
        "summary": summary(part),
        "remarks": remarks.lines(part.rows[part.rows["cell"].isin(part.cells)], grid.reference),
        "missing": missing_rows(part.store.failures(), lacking(grid, part.rows)[1]),
        "categories": category_table(part),
        "figure": _figure(figures, path, title, results),
    }


def _book(figures: Figures, results: Path) -> list[dict[str, Any]]:
    order = list(TITLES)
    paths = sorted((results / BOOK).glob("*.svg"), key=lambda path: (order.index(kind_of(path.stem)), path.stem))
    return [_figure(figures, path, title_of(path.stem), results) for path in paths]


def _figure(figures: Figures, path: Path, title: str, results: Path) -> dict[str, Any] | None:
    """A figure's svg, its title and its files; None if it is not drawn."""
    if not path.is_file():
        return None
    files = [path.with_suffix(ending) for ending in (".svg", ".png")]
    return {
        "id": "-".join(path.relative_to(results).with_suffix("").parts),
        "title": title,
        "svg": figures.inline(path, title),
        "files": [(file.suffix[1:], link(file, results / PAGE)) for file in files if file.is_file()],
    }


def _published(results: Path, mains: Sequence[Part]) -> Table | None:
    published = read_published(results)
    if published.empty:
        return None
    main = mains[0] if mains else None
    table = main.measured if main else pd.DataFrame(columns=["architecture", "frames"])
    return published_table(beside(published, table), main)
