"""Grids trained again on another machine: what is compared with the book's, and what is said of it."""

from pathlib import Path

import pandas as pd
import pytest
from synthetic_rows import answers, evaluation, questions, row

from harness.errors import UserError
from harness.grids.grid import Grid
from harness.reports import replicates
from harness.reports.grid_result import analyse
from harness.row_store import RowStore

SHAPE = {"videomme": (40, 2), "mlvu": (40, 2), "egoschema": (40, 1)}
COST = {"fast_tokens": 64, "slow_tokens": 512, "prefill_mflop_mini": 80, "prefill_tflop_7b": 20, "model_tflop_7b": 277}
SHARES = {"dynamic": 0.8, "sigmoid": 0.8, "none": 0.5}
ELSEWHERE = "another processor"


def fill(results: Path, shares: dict[str, float], device: str | None = None, content="same", name="gates") -> RowStore:
    """A grid whose cells answer about so many questions right, made on `device`."""
    told = {"question": "Which gate?", "paper": "Table 5", "cost": "nothing", "time": "minutes"}
    store = RowStore(results, name, "mini", 0)
    store.begin(Grid(name=name, order=60, reference="dynamic", cells={cell: {} for cell in SHARES}, **told))
    asked = questions(SHAPE)
    for cell, share in shares.items():
        for base_seed in (0, 1):
            measured = evaluation(answers(asked, share, seed=base_seed))
            fields = {"grid": name, "cell": cell, "base_seed": base_seed, "table": "ablations", "cost": COST}
            made = row(measured, content_hash=f"{content}-{cell}-{base_seed}", **fields)
            store.put(made.model_copy(update={"device": device or made.device}), measured.samples)
    return store


@pytest.fixture
def results(tmp_path) -> Path:
    fill(tmp_path, SHARES)
    return tmp_path


def book(results: Path) -> list:
    return [analyse(RowStore(results, "gates", "mini", 0))]


def other(results: Path, name="there") -> Path:
    return results / replicates.FOLDER / name


def test_nothing_is_said_without_a_replicate(results):
    assert replicates.write(results, book(results)) == []
    assert not (results / "tables").exists()


def test_how_far_scores_and_differences_moved(results):
    again = fill(other(results), SHARES | {"none": 0.9}, ELSEWHERE)
    (told,) = replicates.write(results, book(results))
    table = pd.read_csv(results / "tables" / "replicates.csv").set_index("grid")
    assert list(table.index) == ["gates", "all"]
    here = RowStore(results, "gates", "mini", 0).frame()["average"]
    moved = again.frame()["average"] - here  # both in the grid's order
    assert table.loc["gates", "rows"] == 6
    assert table.loc["gates", "mean"] == pytest.approx(moved.mean(), abs=0.006)
    assert table.loc["all", "sd"] == pytest.approx(moved.std(), abs=0.006)
    assert table.loc["gates", "most"] == pytest.approx(moved.max(), abs=0.006)
    assert table.loc["gates", "least"] == 0
    assert table.loc["gates", "largest_move"] == pytest.approx(moved[4:].mean(), abs=0.006)
    assert (table["changed"].tolist(), table["comparisons"].tolist()) == (["none", "gates none"], [2, 2])
    assert told.startswith(f"6 rows trained again on {ELSEWHERE} (the book: Example CPU")
    assert "of 2 comparisons with references another verdict: gates none" in told
    assert told in (results / "tables" / "replicates.md").read_text()


def test_equal_scores_elsewhere_change_no_verdict(results):
    fill(other(results), SHARES, ELSEWHERE)
    (told,) = replicates.write(results, book(results))
    assert "+0.0 points beside" in told
    assert "none has another verdict" in told


def test_a_difference_from_a_reference_of_other_content_is_not_compared(results):
    fill(other(results), SHARES | {"none": 0.9}, ELSEWHERE)
    fill(other(results), {"dynamic": 0.8}, ELSEWHERE, content="other")
    (found,) = replicates.replicates(results, book(results))
    assert (len(found.pairs), len(found.compared), found.left_out) == (4, 0, {"gates": 2})
    (told,) = replicates.write(results, book(results))
    assert "nan" not in told
    assert "comparisons" not in told


def test_tables_of_a_replicate_that_is_gone_are_removed(results):
    store = fill(other(results), SHARES, ELSEWHERE)
    replicates.write(results, book(results))
    store.path.unlink()
    assert replicates.write(results, book(results)) == []
    assert list((results / "tables").iterdir()) == []


def test_an_error_in_a_replicate_names_it(results):
    store = fill(other(results), SHARES, ELSEWHERE)
    (store.folder / store.rows()[0].samples).unlink()
    with pytest.raises(UserError, match=r"replicates/there, gates: "):
        replicates.write(results, book(results))


def test_rows_of_other_content_or_of_the_same_machine_are_no_replicates(results):
    fill(other(results, "same_machine"), SHARES)
    fill(other(results, "other_code"), SHARES, ELSEWHERE, content="other")
    assert replicates.write(results, book(results)) == []
    fill(other(results, "other_grid"), SHARES, ELSEWHERE, name="unknown")
    assert replicates.replicates(results, book(results)) == []


def test_rows_without_an_equal_are_counted(results):
    fill(other(results), {"dynamic": 0.8}, ELSEWHERE)
    fill(other(results), {"none": 0.5, "sigmoid": 0.8}, ELSEWHERE, content="other")
    (found,) = replicates.replicates(results, book(results))
    assert (len(found.pairs), found.left_out) == (2, {"gates": 4})
    assert found.compared.empty


def test_the_committed_replicates_are_of_this_book():
    results = Path("results")
    paths = sorted((results / replicates.FOLDER).glob("*/rows/ablations/*.grid.json"))
    assert paths
    for path in paths:
        name = path.name.partition("_mini")[0]
        ours, theirs = (RowStore(at, name, "mini", 0).rows() for at in (results, path.parents[2]))
        assert {row.content_hash for row in theirs} & {row.content_hash for row in ours}, f"{path} is stale: remove it"
        assert not any(row.code_dirty for row in theirs)
