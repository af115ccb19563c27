"""Every notebook runs, on the committed rows, from a clone."""

import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_committed_without_outputs(path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.chdir(ROOT)
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells), "clear the outputs before committing"
    names: dict = {}
    for cell in cells:  # the cells are plain Python: no kernel is needed to see whether they run
        exec("".join(cell["source"]), names)
    table = names["table"]
    assert {"slow_fast", "self_attention"} <= set(table["architecture"])
    assert (names["by_family"].stack() <= 100).all()
