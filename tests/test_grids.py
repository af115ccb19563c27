"""Grids: what a YAML may say, one sentence for each mistake, and which settings a cell ends up with."""

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.grids.cells import CellPlan, check_settings, check_typed, composed, settings_of
from harness.grids.grid import GRIDS, all_grids, load_grid
from harness.stages import resolve

GATES = """
# Which gate?
order: 60
question: Which gate?
paper: a dynamic one
cost: nothing
time: minutes
reference: dynamic
together: [architecture=slow_fast, frames=32]
cells:
  dynamic: []
  static: [gate=static_tanh]
"""


def written(folder: Path, text: str = GATES, name: str = "gates") -> Path:
    (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_grid_is_what_its_file_says(tmp_path: Path) -> None:
    grid = load_grid("gates", written(tmp_path))
    assert (grid.name, grid.order, grid.question, grid.reference) == ("gates", 60, "Which gate?", "dynamic")
    assert (grid.limits, grid.axis) == (None, None)
    assert list(grid.cells) == ["dynamic", "static"]
    assert (grid.cells["dynamic"].set, grid.cells["static"].set) == ([], ["gate=static_tanh"])


def test_cells_with_a_place_on_an_axis(tmp_path: Path) -> None:
    cells = "cells:\n  8: {set: [frames=8], x: 8, line: slow}\n  dynamic: {set: [], x: 32}\n"
    text = GATES.partition("cells:")[0].replace("reference: dynamic", "reference: 8") + "axis: frames\n" + cells
    grid = load_grid("gates", written(tmp_path, text))
    assert grid.reference == "8"
    assert (grid.cells["8"].x, grid.cells["8"].line, grid.cells["dynamic"].line) == (8.0, "slow", None)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("paper: a dynamic one\n", "", "paper: Field required"),
        ("paper:", "papr:", "papr is no key of a grid; there are order, question, paper"),
        ("order: 60", "name: x\norder: 60", "name: a grid's name is that of its file"),
        ("order: 60", "order: soon", "order: Input should be a valid integer"),
        ("reference: dynamic", "reference: none", "reference: there is no cell 'none'; there are dynamic, static"),
        ("  static:", "  a b:", "'a b' is no name for a cell; use letters, digits and _ . @ + -"),
        ("  static:", "  dynamic:", "'dynamic' is there twice"),
        ("[gate=static_tanh]", "{st: [gate=static_tanh]}", "cells.static.st: Extra inputs are not permitted"),
        ("[gate=static_tanh]", "{set: [gate=static_tanh], x: 1}", "static has an x and the grid no axis"),
        ("order: 60", "order: 60\naxis: frames", "dynamic has no x, its place on the axis 'frames'"),
        ("order: 60", "order: [", "it is not YAML"),
        ("gate=static_tanh", "gaet=static_tanh", "cell static: gaet=static_tanh: there is no setting 'gaet'"),
        ("gate=static_tanh", "gate=stat", "cell static: gate=stat: there is no gate 'stat'"),
        (
            "gate=static_tanh",
            "architecture=self_attention, compressor=identity",
            "cell static: compressor=identity changes nothing: compressor is fixed in self_attention; leave it out",
        ),
        ("architecture=slow_fast", "architecture=fast", "there is no architecture 'fast'"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_where(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in GATES
    with pytest.raises(UserError) as error:
        load_grid("gates", written(tmp_path, GATES.replace(old, new)))
    assert sentence in str(error.value)
    assert "gates" in str(error.value) or "fast" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no grids in .*: they are in a checkout"):
        load_grid("gates", tmp_path)
    with pytest.raises(UserError, match="there are no grids in"):
        all_grids(tmp_path)
    with pytest.raises(UserError, match=r"there is no .*gaets.yaml; choose one of all, gates"):
        load_grid("gaets", written(tmp_path))


def test_the_book_is_in_its_order(tmp_path: Path) -> None:
    written(tmp_path, GATES)
    written(tmp_path, GATES.replace("order: 60", "order: 7"), "zeroth")
    assert [grid.name for grid in all_grids(tmp_path, composed=False)] == ["zeroth", "gates"]


def test_the_shipped_book_is_well_formed() -> None:
    book = all_grids(GRIDS, composed=False)
    orders = [grid.order for grid in book]
    assert len(set(orders)) == len(orders)
    for grid in book:
        for name in grid.cells:
            settings_of(grid, name)  # refuses what an architecture fixes


def test_cells_of_different_suites_share_no_evaluation_before_these_are_made(tmp_path: Path) -> None:
    text = GATES.replace("static: [gate=static_tanh]", "static: [world.evaluation.distractors=3]")
    grid = load_grid("gates", written(tmp_path, text), composed=False)
    plans = [CellPlan(grid, name, ("scale=test",), None) for name in grid.cells]
    attempts = [resolve(plan.stages(0), tmp_path) for plan in plans]
    model, scores = ("model0-slow_fast-32", "scores0-slow_fast-32")
    assert attempts[0][model].key == attempts[1][model].key
    assert attempts[0][scores].key != attempts[1][scores].key


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_cell_of_the_shipped_book_can_be_composed() -> None:
    assert len(all_grids(GRIDS, composed=True)) > 10


def test_a_cells_own_settings_come_last_and_what_was_typed_before_them(tmp_path: Path) -> None:
    grid = load_grid("gates", written(tmp_path), composed=False)
    typed = ("frames=8", "gate=none", "scale=test")
    assert settings_of(grid, "dynamic", typed) == ["architecture=slow_fast", "frames=8", "gate=none", "scale=test"]
    settings = composed(grid, "static", typed)
    assert (settings.frames, settings.gate.name, settings.scale.name) == (8, "static_tanh", "test")


def test_a_typed_setting_passes_by_cells_whose_architecture_fixes_it(tmp_path: Path) -> None:
    text = GATES.replace("[gate=static_tanh]", "[architecture=compressor_only]")
    grid = load_grid("gates", written(tmp_path, text), composed=False)
    assert "placement=all" in settings_of(grid, "dynamic", ["placement=all"])
    assert "placement=all" not in settings_of(grid, "static", ["placement=all"])
    check_settings(grid, ["placement=all"])
    every = text.replace("dynamic: []", "dynamic: [architecture=slow_fast]")
    grid = load_grid("gates", written(tmp_path, every), composed=False)
    with pytest.raises(UserError, match="architecture=flamingo changes no cell"):
        check_typed(grid, ["architecture=flamingo"])
