"""The page's sections beside main table and grids: controls, the plug-and-play study, the profiles."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.layout import NONE, TITLES
from harness.reports.page_tables import Cell, Table
from harness.statistics import AVERAGE


@dataclass(frozen=True)
class Shown:
    """A table of the page: its file (a pattern below the results), what is said of it, and which columns.

    Attributes:
        columns: those that are shown; none: all.
        signed: whether its scores are differences.
    """

    file: str
    caption: str
    columns: tuple[str, ...] = ()
    signed: bool = False


@dataclass(frozen=True)
class Section:
    """A section: its title, its tables, its figures (a pattern) and what these are called, by the file's name."""

    title: str
    tables: tuple[Shown, ...]
    figures: str = ""
    titles: tuple[tuple[str, str], ...] = ()


SECTIONS = {
    "controls": Section(
        "Controls: what the gain over the compressor is made of",
        (
            Shown(
                "tables/controls_*.csv",
                "slow_fast minus compressor_only at 128 frames, on the same questions, percentage points: as trained, "
                "and with its slow tokens taken away or swapped",
                signed=True,
            ),
        ),
    ),
    "plug-and-play": Section(
        "Plug-and-play: trained baselines converted",
        (
            Shown(
                "tables/plug_and_play_differences_*.csv",
                "first minus second, each after so many steps of training, percentage points",
                signed=True,
            ),
            Shown("tables/plug_and_play_[!d]*.csv", "each curve's points"),
        ),
        "figures/plug_and_play*.svg",
        (("plug_and_play", "Accuracy against steps of further training"),),
    ),
    "replicates": Section(
        "Replicates: the same training on another machine",
        (
            Shown(
                "tables/replicates.csv",
                "averages of rows of equal content, the replicate's minus the book's, percentage points; comparisons "
                "with the grid's reference, how far they moved at most, and which have another verdict",
                ("replicate", "grid", "rows", "mean", "sd", "least", "most", "comparisons", "largest_move", "changed"),
            ),
        ),
    ),
    "profiles": Section(
        "Profiles: what frames cost",
        (
            Shown(
                "profiles/scaling_slopes.csv", "slopes of the cost's logarithm against that of the frames; 1 is linear"
            ),
            Shown(
                "profiles/bench.csv",
                "this project's own speed on one processor: medians and quartiles of variants that were timed in turn",
                ("part", "what", "variant", "value", "quartile_1", "quartile_3", "unit", "rounds"),
            ),
        ),
        "profiles/figures/*.svg",
        (
            ("profile_overhead", "FLOPs at 7B over self-attention at 16 frames, counted"),
            ("profile_stages", "Which stages the FLOPs at 7B belong to, counted"),
            ("scaling", "Time and FLOPs against frames, measured and counted"),
        ),
    ),
}
"""Id -> section."""


def others(results: Path, figure_of: Callable[[Path, str], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The sections of which something is there: id, title, tables (name and table) and figures.

    figure_of: makes the page's figure of a file and its title.
    """
    made = []
    for name, section in SECTIONS.items():
        found = [(path, shown) for shown in section.tables for path in sorted(Path(results).glob(shown.file))]
        figures = sorted(Path(results).glob(section.figures)) if section.figures else []
        if found or figures:
            made.append(
                {
                    "id": name,
                    "title": section.title,
                    "tables": [(_named(path), table_of(path, shown)) for path, shown in found],
                    "figures": [figure_of(path, _title(path, section)) for path in figures],
                }
            )
    return made


def table_of(path: Path, shown: Shown) -> Table:
    """A file as a table: the average before the other scores, a score and its interval (NAME_lo, NAME_hi) in one."""
    table = pd.read_csv(path)
    ends = {f"{name}{end}" for name in table for end in ("_lo", "_hi") if f"{name}_lo" in table}
    names = [name for name in shown.columns or table if name not in ends]
    if AVERAGE in names:
        names.remove(AVERAGE)
        names.insert(next((place for place, name in enumerate(names) if name in TITLES), len(names)), AVERAGE)
    sign = "+" if shown.signed else ""
    lines = [[_cell(name, line, sign) for name in names] for line in table.to_dict("records")]
    heads = [(TITLES.get(name, name.replace("_", " ")), "") for name in names]
    return Table(f"{_named(path)}: {shown.caption}", heads, lines)


def _cell(name: str, line: dict, sign: str) -> Cell:
    value = line[name]
    if pd.isna(value):
        return Cell(NONE)
    if isinstance(value, bool | str):
        return Cell(str(value), str(value))
    if f"{name}_lo" not in line:
        return Cell(_number(name, value), float(value))
    lo, hi = line[f"{name}_lo"], line[f"{name}_hi"]
    ends = "" if pd.isna(lo) or lo == hi else f" [{lo:{sign}.1f}, {hi:{sign}.1f}]"
    return Cell(f"{value:{sign}.1f}{ends}", float(value))


def _number(name: str, value: float) -> str:
    if name.startswith("p_"):
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"


def _title(path: Path, section: Section) -> str:
    return next((title for name, title in section.titles if path.stem.startswith(name)), _named(path))


def _named(path: Path) -> str:
    return path.stem.replace("_", " ").capitalize()
