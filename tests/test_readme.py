"""README.md says what results/ and the code say: its computed blocks are those of the committed tables."""

import re
from pathlib import Path

import hf_mllms
import hf_models
import pandas as pd
import pytest

from architectures.plug_and_play_checks import CHECKS
from harness import readme
from harness.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_blocks_are_those_of_the_committed_tables_and_the_registries():
    for file, text in readme.filled(ROOT).items():
        assert (ROOT / file).read_text(encoding="utf-8") == text, "run `make readme`"


def test_every_test_that_the_readme_cites_is_there():
    cited = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT))
    assert len({row for row in TEXT.splitlines() if "`test_" in row and row.startswith("|")}) >= 5
    missing = [(file, name) for file, name in cited if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert not missing


def test_every_converted_model_stands_in_the_table():
    text = (ROOT / "architectures" / "README.md").read_text(encoding="utf-8")
    for family in [*hf_models.DECODERS, *hf_mllms.MLLMS]:
        (line,) = [line for line in text.splitlines() if re.match(rf"{re.escape(family.name)} +(yes|-)", line)]
        assert len(re.findall(r"yes|- \[\d\]", line)) == len(CHECKS)


def test_a_changed_score_changes_the_block():
    table = pd.read_csv(ROOT / "results" / "tables" / "main_mini.csv")
    before = readme.main_block(table)
    table.loc[0, "average"] += 1
    assert readme.main_block(table) != before


def test_a_table_of_a_processor_is_not_the_one_of_a_gpu(tmp_path):
    columns = {"device": ["NVIDIA H200"], "driver": ["570.1"]}
    (tmp_path / "measured_amd.md").write_text("a processor's")
    pd.DataFrame({**columns, "driver": [None]}).to_csv(tmp_path / "measured_amd.csv")
    assert readme.measured_block(tmp_path) == readme.NO_GPU
    (tmp_path / "measured_nvidia.md").write_text("a GPU's\n")
    pd.DataFrame(columns).to_csv(tmp_path / "measured_nvidia.csv")
    assert readme.measured_block(tmp_path) == "a GPU's"


def test_the_bench_compares_with_the_first_of_its_kind():
    rows = pd.DataFrame(
        [
            ["decode step", "one token", "again", 20.0, "ms", 1],
            ["decode step", "one token", "kept", 5.0, "ms", 1],
            ["video decoding", "a file", "through", 10.0, "frames/s", 1],
            ["video decoding", "a file", "seek", 30.0, "frames/s", 1],
            ["video decoding", "a file", "seek, 2 threads", 31.0, "frames/s", 2],
        ],
        columns=["part", "what", "variant", "value", "unit", "threads"],
    ).assign(quartile_1=1.0, quartile_3=2.0)
    lines = readme.bench_block(rows).splitlines()[2:]
    assert [line.rsplit("|", 2)[1].strip() for line in lines] == ["1 x", "4 x", "1 x", "3 x"]


def test_every_category_stands_in_the_table_of_families():
    block = readme.families_block()
    named = {cell for line in block.splitlines() for cell in line.strip("| ").split(" | ")[-1].split(", ")}
    categories = {c for name, b in BENCHMARKS.items() if name != "egoschema" for c in b.categories}
    assert categories <= named


def test_missing_markers_are_named():
    with pytest.raises(ValueError, match="<!-- table -->"):
        readme.fill("no markers", {"table": "x"})


@pytest.mark.parametrize("path", ["README.md", "ablations/README.md", "architectures/README.md"])
def test_what_is_linked_is_there(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    missing = [link for link in links if not (ROOT / path).parent.joinpath(link).exists()]
    assert not missing
