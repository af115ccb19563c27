"""The page's sections beside main table and grids: controls, the plug-and-play study, the profiles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from harness.layout import NONE
from harness.reports.page_tables import Cell, Table

SECTIONS = {
    "controls": ("Controls: what the gain over the compressor is made of", "tables", "controls_*.csv", None),
    "plug-and-play": (
        "Plug-and-play: trained baselines converted",
        "tables",
        "plug_and_play_*.csv",
        "figures/plug_and_play*.svg",
    ),
    "profiles": ("Profiles: what frames cost", "profiles", "scaling_slopes.csv", "profiles/figures/*.svg"),
}
"""Id -> title, folder and names of its tables (csv), names of its figures."""


def others(results: Path, figure_of: Callable[[Path, str], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The sections of which something is there: id, title, tables (name and table) and figures.

    figure_of: makes the page's figure of a file and its title.
    """
    made = []
    for name, (title, folder, tables, drawn) in SECTIONS.items():
        found = sorted((Path(results) / folder).glob(tables))
        figures = sorted(Path(results).glob(drawn)) if drawn else []
        if found or figures:
            made.append(
                {
                    "id": name,
                    "title": title,
                    "tables": [(_named(path), with_intervals(_named(path), pd.read_csv(path))) for path in found],
                    "figures": [figure_of(path, _named(path)) for path in figures],
                }
            )
    return made


def with_intervals(caption: str, table: pd.DataFrame) -> Table:
    """A table as it is, but for columns NAME, NAME_lo, NAME_hi, which are one: a number with its interval."""
    ends = {f"{name}{end}" for name in table for end in ("_lo", "_hi") if f"{name}_lo" in table}
    names = [name for name in table if name not in ends]
    lines = [[_cell(name, line) for name in names] for line in table.to_dict("records")]
    return Table(caption, [(name.replace("_", " "), "") for name in names], lines, [])


def _cell(name: str, line: dict) -> Cell:
    value = line[name]
    if pd.isna(value):
        return Cell(NONE)
    if isinstance(value, (bool, str)):
        return Cell(str(value), str(value))
    if f"{name}_lo" not in line:
        return Cell(f"{value:,}" if isinstance(value, int) else f"{value:.3g}", float(value))
    lo, hi = line[f"{name}_lo"], line[f"{name}_hi"]
    return Cell(f"{value:.1f}" + ("" if pd.isna(lo) or lo == hi else f" [{lo:.1f}, {hi:.1f}]"), float(value))


def _named(path: Path) -> str:
    return path.stem.replace("_", " ").capitalize()
