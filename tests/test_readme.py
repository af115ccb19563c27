"""README.md says what results/ and the code say: its computed blocks are those of the committed tables."""

import re
from pathlib import Path

import pandas as pd
import pytest

from harness import readme
from harness.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_blocks_are_those_of_the_committed_tables():
    assert readme.fill(TEXT, readme.blocks(ROOT / "results")) == TEXT, "run `make readme`"


def test_a_changed_score_changes_the_block():
    table = pd.read_csv(ROOT / "results" / "tables" / "main_mini.csv")
    before = readme.main_block(table)
    table.loc[0, "average"] += 1
    assert readme.main_block(table) != before


def test_every_category_stands_in_the_table_of_families():
    block = readme.families_block()
    named = {cell for line in block.splitlines() for cell in line.strip("| ").split(" | ")[-1].split(", ")}
    categories = {c for name, b in BENCHMARKS.items() if name != "egoschema" for c in b.categories}
    assert categories <= named


def test_missing_markers_are_named():
    with pytest.raises(ValueError, match="<!-- table -->"):
        readme.fill("no markers", {"table": "x"})


@pytest.mark.parametrize("path", ["README.md", "ablations/README.md"])
def test_what_is_linked_is_there(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    missing = [link for link in links if not (ROOT / path).parent.joinpath(link).exists()]
    assert not missing
