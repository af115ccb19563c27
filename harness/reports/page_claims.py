"""The page's table of claims: verdicts with their figures, each leading to where its rows or tables are."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from harness.layout import NONE
from harness.reports.page_tables import Cell, Table

CLAIMS = "claims.csv"
KINDS = {"reproduced": "up", "refuted": "down"}
PARTS = {
    "make profile": "profiles",
    "make scaling": "profiles",
    "make bench": "profiles",
    "make plug-and-play": "plug-and-play",
}
"""Commands of no grid -> the id of the page's section that shows what they make."""
FIRST = ("claim", "verdict", "figure", "control", "p_holm", "by_seed", "scale")
LAST = ("id",)


def claims_table(results: Path, places: Mapping[str, str], sections: set[str]) -> Table | None:
    """The table; None without claims.csv.

    Args:
        places: grid -> its place on the page.
        sections: ids of the page's other sections.
    """
    path = Path(results) / CLAIMS
    if not path.is_file():
        return None
    claims = pd.read_csv(path)
    shown = [name for name in claims if name not in ("lo", "hi", "unit")]
    others = [name for name in shown if name not in (*FIRST, *LAST)]
    columns = [name for name in (*FIRST, *others, *LAST) if name in shown]
    lines = []
    for claim in claims.to_dict("records"):
        to = place_of(claim.get("command"), places, sections)
        lines.append([_cell(name, claim, to) for name in columns])
    counted = ", ".join(f"{count} {verdict}" for verdict, count in claims["verdict"].value_counts().items())
    caption = (
        f"{counted}. Each verdict is of the scale named and follows from its rule; owed: there are no rows yet, or "
        "they cannot tell. Figures and commands lead to what decided it."
    )
    return Table(caption, [(name.replace("_", " "), "") for name in columns], lines, numeric=False)


def place_of(command: object, places: Mapping[str, str], sections: set[str]) -> str:
    """Where on the page the rows or tables of a command are; "" if nowhere."""
    if not isinstance(command, str):
        return ""
    named = re.search(r"\bgrid=(\w+)", command, re.IGNORECASE)
    if named:
        return places.get(named[1], "")
    part = PARTS.get(command, "")
    return f"#{part}" if part in sections else ""


def _cell(name: str, claim: dict, to: str) -> Cell:
    value = claim[name]
    if pd.isna(value):
        return Cell(NONE)
    if name == "figure":
        return Cell(_with_ends(claim), float(value), to)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    key = float(value) if isinstance(value, (int, float)) else text
    return Cell(text, key, to if name == "command" else "", KINDS.get(text, "") if name == "verdict" else "")


def _with_ends(claim: dict) -> str:
    """A figure with its interval and unit."""
    figure, lo, hi, unit = (claim.get(name) for name in ("figure", "lo", "hi", "unit"))
    ends = "" if pd.isna(lo) or pd.isna(hi) or lo == hi else f" [{lo:.4g}, {hi:.4g}]"
    return f"{figure:.4g}{ends}{'' if pd.isna(unit) else f' {unit}'}"
