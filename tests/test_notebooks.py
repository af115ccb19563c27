"""The notebooks: what is committed can be read on the web, every one runs, and the runner says what fails."""

import base64
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from synthetic_rows import answers, evaluation, questions, row

from harness import notebooks
from harness.errors import UserError
from harness.grids.grid import Grid
from harness.notebooks import CellFailed, execute, find, main, tidied
from harness.row_store import RowStore

ROOT = Path(__file__).parents[1]
NAMES = ["add_a_variant", "compute_vs_accuracy", "follow_one_video"]
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt|var|mnt|private)/|[A-Z]:\\\\")
OUTER_PICTURE = re.compile(r"!\[[^\]]*\]\(\s*https?:|<img[^>]+src=[\"']?https?:", re.IGNORECASE)


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code(notebook) for output in cell.outputs]


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    found = (output.get("data", {}).get("image/png") for output in outputs(notebook))
    return [base64.b64decode(picture) for picture in found if picture]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What was printed and what cells returned."""
    return [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]


def copy_of_rows(folder: Path) -> Path:
    """The committed rows in a folder `results` of their own."""
    shutil.copytree(ROOT / "results" / "rows", folder / "results" / "rows")
    return folder / "results"


# ------------------------------------------------------------------------------------------- what is committed


def test_there_are_three_notebooks():
    assert [path.stem for path in find([])] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_is_valid_and_was_run_from_top_to_bottom(name):
    notebook = committed(name)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata == notebooks.METADATA
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert "error" not in [output.output_type for output in outputs(notebook)]
    assert "stderr" not in [output.get("name") for output in outputs(notebook)]
    assert len(pictures(notebook)) >= 2
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_can_be_read_anywhere(name):
    notebook = committed(name)
    pages = [output.get("data", {}).get("text/html", "") for output in outputs(notebook)]
    assert not MACHINE_PATH.search(json.dumps([texts(notebook), pages]))
    assert not OUTER_PICTURE.search(json.dumps([pages, [cell.source for cell in notebook.cells]]))
    assert all(len(picture) <= notebooks.PICTURE_BYTES for picture in pictures(notebook))


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_explained(name):
    notebook = committed(name)
    kinds = [cell.cell_type for cell in notebook.cells]
    longest_run = max(map(len, re.findall("c+", "".join("c" if kind == "code" else "m" for kind in kinds))))
    assert longest_run <= 3
    lines = [len(cell.source.splitlines()) for cell in code(notebook) if not cell.source.startswith("%%writefile")]
    assert max(lines) <= 15


# ----------------------------------------------------------------------------------------------------- running


def test_results_alone_are_enough_for_compute_vs_accuracy(tmp_path):
    """In an empty folder with a copy of the rows: what is committed is what the committed rows say."""
    path = ROOT / "notebooks" / "compute_vs_accuracy.ipynb"
    done = tidied(execute(path, copy_of_rows(tmp_path)), path.stem)
    assert len(pictures(done)) >= 2
    assert texts(done) == texts(committed(path.stem)), "save it again: python -m harness.notebooks --save"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["rows"]


def test_runs_of_grids_stay_apart_and_cells_keep_their_names(tmp_path):
    """compute_vs_accuracy's cells on grids, with rows that the committed ones may lack."""
    shares = {("mini", 0): {"2": 0.5, "04": 0.9, "1e3": 0.7}, ("mini", 1): {"2": 0.3}, ("test", 0): {"2": 0.8}}
    asked, expected = questions({"videomme": (9, 1), "egoschema": (20, 1)}), {}
    for (scale, seed), cells in shares.items():
        store = RowStore(tmp_path, "hybrid_layers", scale, seed)
        told = {"order": 1, "question": "How many?", "paper": "two", "cost": "none", "time": "none", "reference": "2"}
        store.begin(Grid(name="hybrid_layers", cells={cell: {} for cell in cells}, **told))
        for number, (cell, share) in enumerate(cells.items()):
            for base_seed in (0, 1):
                samples = answers(asked, share, seed=10 * number + base_seed)
                identity = {"grid": "hybrid_layers", "cell": cell, "scale": scale, "seed": seed, "base_seed": base_seed}
                content = f"{scale}{seed}{cell}{base_seed}"
                store.put(row(evaluation(samples), **identity, content_hash=content), samples)
        expected[f"hybrid_layers_{scale}_seed{seed}"] = store.frame().groupby("cell")["average"].mean().to_dict()
    RowStore(tmp_path, "gates", "mini", 0).begin(Grid(name="gates", cells={"2": {}}, **told))  # begun, without rows
    shown = []
    around = {"RESULTS": tmp_path, "pd": pd, "plt": plt, "COLOURS": ["k"] * 3, "display": shown.append}
    sources = [cell.source for cell in code(committed("compute_vs_accuracy"))]
    first = next(place for place, source in enumerate(sources) if "grids_in(" in source)
    usual = plt.get_backend()
    plt.switch_backend("agg")
    try:
        with redirect_stdout(io.StringIO()) as said:
            for source in sources[first : first + 2]:
                exec(source, around)
        marks = [sorted(line.get_xdata()) for line in plt.gcf().axes[0].lines]
    finally:
        plt.close("all")
        plt.switch_backend(usual)
    assert said.getvalue() == f"3 runs of grids: {', '.join(expected)}\n"
    (made,) = shown
    assert made.loc["hybrid_layers_mini_seed0", ["lowest", "highest"]].tolist() == ["2", "04"]
    assert made["its average"].to_dict() == {name: round(min(cells.values()), 1) for name, cells in expected.items()}
    assert made["base seeds"].tolist() == [2, 2, 2]
    assert marks == [sorted(cells.values()) for cells in reversed(expected.values())]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_notebook_runs_at_test_scale(tmp_path, monkeypatch):
    """From nothing: one after the other, they share what is trained."""
    monkeypatch.setenv("SCALE", "test")
    results = copy_of_rows(tmp_path)
    for path in find([]):
        done = tidied(execute(path, results), path.stem)
        assert [output.output_type for output in outputs(done)].count("error") == 0
        assert len(pictures(done)) >= 2
    trained = {path.name.rpartition("-")[0] for path in (results / "runs").iterdir() if not path.name.startswith(".")}
    assert {"model0-slow_fast-128", "model0-compressor_only-128", "model0-most_different-128"} <= trained


def tiny(*cells: str) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_markdown_cell("# Tiny"), *(new_code_cell(source) for source in cells)])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of notebooks of its own, empty yet."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(find, "__defaults__", (tmp_path,))
    return tmp_path


def test_a_run_is_saved_as_it_is_read_and_leaves_nothing_else(folder, capsys, monkeypatch):
    monkeypatch.delenv("SCALE", raising=False)
    source = "import sys, os\nprint('seen', file=sys.stderr)\nprint(sorted(os.listdir()), sys.executable == {!r})"
    nbformat.write(tiny(source.format(notebooks.sys.executable), "6 * 7"), folder / "tiny.ipynb")
    assert main(["tiny", "--save"]) == 0
    first = (folder / "tiny.ipynb").read_bytes()
    saved = nbformat.reads(first, as_version=nbformat.NO_CONVERT)
    assert [output.get("text") for output in code(saved)[0].outputs] == ["['results'] True\n"]
    assert code(saved)[1].outputs[0].data == {"text/plain": "42"}
    assert [cell.execution_count for cell in code(saved)] == [1, 2]
    assert saved.metadata == notebooks.METADATA
    assert re.fullmatch(r"tiny: done in \d+:\d\d, saved\n", capsys.readouterr().out)
    assert main(["tiny", "--save"]) == 0
    assert (folder / "tiny.ipynb").read_bytes() == first
    assert [path.name for path in folder.iterdir()] == ["tiny.ipynb"]


def test_a_failing_cell_is_shown_with_its_number_source_and_traceback(folder, capsys):
    nbformat.write(tiny("width = 3", "width / (3 - width)", "print('never')"), folder / "broken.ipynb")
    before = (folder / "broken.ipynb").read_bytes()
    assert main(["--save"]) == 1
    said = capsys.readouterr().err
    assert "broken: failed after" in said
    assert "cell 3 of 4" in said  # the heading is a cell, too
    assert "    width / (3 - width)\n" in said
    assert "ZeroDivisionError: division by zero" in said
    assert "never" not in said
    assert "\x1b[" not in said
    assert (folder / "broken.ipynb").read_bytes() == before


def test_a_kernel_that_dies_is_reported_as_such(folder):
    nbformat.write(tiny("1 + 1", "import os\nos.kill(os.getpid(), 9)"), folder / "dies.ipynb")
    with pytest.raises(CellFailed, match=r"(?s)cell 3 of 3.*os\.kill.*process died"):
        execute(folder / "dies.ipynb")


def test_a_wrong_name_or_scale_is_one_sentence(folder, capsys, monkeypatch):
    nbformat.write(tiny("1"), folder / "follow.ipynb")
    assert main(["folow"]) == 2
    assert capsys.readouterr().err == f"error: there is no notebook 'folow' in {folder}; there are follow\n"
    monkeypatch.setenv("SCALE", "large")
    assert main([]) == 2
    assert "SCALE=large: the notebooks train at one of test, smoke, mini" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- tidying


def picture_of(pixels_HWC: np.ndarray) -> str:
    packed = io.BytesIO()
    made_by = PngInfo()
    made_by.add_text("Software", "a version that will change")
    Image.fromarray(pixels_HWC).save(packed, format="PNG", pnginfo=made_by)
    return base64.b64encode(packed.getvalue()).decode()


def ran(*its: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook whose only code cell, the seventh that was run in its kernel, has these outputs."""
    notebook = tiny("draw()")
    code(notebook)[0].update(outputs=list(its), execution_count=7, metadata={"execution": {"shell.reply": "now"}})
    return notebook


def test_progress_and_errors_on_the_side_are_left_out():
    rich = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">base0: done (3 of 9 stages)</pre>'
    kept = new_output("stream", name="stdout", text="two rows\n")
    noise = [
        new_output("stream", name="stderr", text="Loading weights"),
        new_output("stream", name="stdout", text="\n"),
        new_output("display_data", data={"text/html": rich, "text/plain": ""}),
    ]
    (cell,) = code(tidied(ran(*noise, kept), "tiny"))
    assert cell.outputs == [kept]
    assert cell.metadata == {}
    assert cell.execution_count == 1


def test_a_picture_keeps_its_pixels_and_loses_its_metadata():
    rows, columns = np.mgrid[:200, :300]
    pixels_HWC = np.stack([rows, columns // 2, (rows + columns) // 3], -1).astype(np.uint8)
    picture = new_output("display_data", data={"image/png": picture_of(pixels_HWC), "text/plain": "<Figure>"})
    (packed,) = pictures(tidied(ran(picture), "tiny"))
    image = Image.open(io.BytesIO(packed))
    assert image.info == {}
    np.testing.assert_array_equal(np.asarray(image), pixels_HWC)


def test_a_picture_that_is_too_large_names_its_cell():
    noise_HWC = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    picture = new_output("display_data", data={"image/png": picture_of(noise_HWC)})
    with pytest.raises(UserError, match=r"tiny, cell \[1\]: its picture has \d+ kB, at most 150 kB"):
        tidied(ran(picture), "tiny")


@pytest.mark.parametrize("kind", ["stream", "html"])
def test_an_output_that_names_this_machine_is_refused(kind):
    where = str(Path.home() / "somewhere" / "model")
    output = (
        new_output("stream", name="stdout", text=f"saved in {where}\n")
        if kind == "stream"
        else new_output("display_data", data={"text/html": f"<b>{where}</b>"})
    )
    with pytest.raises(UserError, match=r"tiny, cell \[1\]: its output names .*print less"):
        tidied(ran(output), "tiny")
