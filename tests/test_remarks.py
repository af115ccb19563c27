"""What is said of single cells: their budget of fast tokens at 7B, as the architecture has it, and no hybrid layer."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console
from synthetic_rows import SETTINGS, answers, evaluation, questions, row

from harness.grids.grid import Grid
from harness.reports import ablations, grids, remarks
from harness.reports.grid_result import analyse
from harness.reports.grid_table import table
from harness.reports.html import render
from harness.reports.page_points import grid_parts, left_out, points
from harness.row_store import RowStore

SHAPE = {"videomme": (12, 2), "mlvu": (14, 2), "egoschema": (12, 1)}
A_TOKEN = 28 * 2 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)  # Qwen2-7B's 28 layers: q, o; k, v; the MLP
FOUR = {"architecture": {"name": "slow_fast"}, "placement": {"name": "every", "n": 2}}
NONE = {"architecture": {"name": "slow_fast"}, "placement": {"name": "none"}}
# cell -> architecture, fast tokens at mini scale and at 7B, configuration
CELLS = {
    "slow_fast": ("slow_fast", 64, 1296, FOUR),
    "halved": ("slow_fast", 32, 648, FOUR),
    "two_stream": ("two_stream", 168, 938, NONE),
    "without": ("slow_fast", 64, 1296, NONE),
    "compressor_only": ("compressor_only", 64, 1296, NONE),
}


def stages(tokens: float) -> dict[str, float]:
    """A row's FLOPs at 7B with so many fast tokens, of the stages that matter here."""
    return {"linear": (tokens + 64) * A_TOKEN / 1e12, "self_attention": 1.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A grid of CELLS, with everything that is made of it."""
    folder = tmp_path_factory.mktemp("results")
    store = RowStore(folder, "fusion", "mini", 0)
    described = {"order": 1, "question": "Which fusion?", "paper": "one", "cost": "none", "time": "none"}
    store.begin(Grid(name="fusion", reference="slow_fast", cells={cell: {} for cell in CELLS}, **described))
    asked = questions(SHAPE)
    _, _, slow, mini, prefill, model, *_ = SETTINGS["slow_fast", 128]
    for number, (cell, (architecture, here, there, config)) in enumerate(CELLS.items()):
        samples = answers(asked, 0.6, seed=number)
        cost = {"fast_tokens": here, "slow_tokens": slow, "prefill_mflop_mini": mini, "flop_stages": stages(there)}
        cost |= {"prefill_tflop_7b": prefill, "model_tflop_7b": model}
        fields = {"grid": "fusion", "cell": cell, "content_hash": cell, "cost": cost, "config": config}
        made = row(evaluation(samples), **fields).model_copy(update={"architecture": architecture})
        store.put(made, samples)
    return folder


@pytest.fixture(scope="module")
def result(results):
    return analyse(RowStore(results, "fusion", "mini", 0))


@pytest.fixture(scope="module")
def printed(results, result):
    said = io.StringIO()
    paths = grids.write(result, results, Console(file=said, width=80))
    return {path.suffix: path for path in paths}, said.getvalue()


@pytest.mark.parametrize(
    "typed",
    [
        ["architecture=self_attention", "frames=32"],
        ["architecture=two_stream", "frames=128"],
        ["architecture=slow_and_faster", "frames=128"],
        ["architecture=flamingo", "frames=64"],
        ["architecture=slow_fast", "compressor=perceiver_resampler", "compressor.depth=2", "frames=128"],
        ["architecture=slow_fast", "compressor.fast_frames=4", "placement=all", "frames=16"],
    ],
    ids=" ".join,
)
def test_fast_tokens_at_7b_are_the_architectures(typed):
    from architectures.cost import prefill_cost
    from harness.compose import compose
    from harness.models import model_config
    from harness.table import PAPER, TEXT_TOKENS

    settings = compose([*PAPER, *typed])
    cost = prefill_cost(model_config(settings), settings.frames, TEXT_TOKENS)
    in_a_row = {stage: flop / 1e12 for stage, flop in cost.stages().items()}
    assert remarks.fast_tokens_7b(in_a_row) == cost.fast_tokens > 0
    assert remarks.TEXT_TOKENS == TEXT_TOKENS


def test_rows_that_do_not_say_have_no_number():
    assert math.isnan(remarks.fast_tokens_7b({}))
    assert math.isnan(remarks.fast_tokens_7b({"linear": 17.7}))  # of a decoder of other sizes
    assert remarks.fast_tokens_7b(stages(1296)) == 1296


def test_budgets_are_the_references_or_in_proportion_or_other(result):
    made = remarks.budgets(result.rows, "slow_fast")
    expected = {"slow_fast": "same", "halved": "scaled", "two_stream": "other", "without": "same"}
    assert made["budget_7b"].to_dict() == expected | {"compressor_only": "same"}
    assert made["fast_tokens_7b"].to_dict() == {cell: there for cell, (_, _, there, _) in CELLS.items()}
    assert set(remarks.budgets(result.rows, "not there")["budget_7b"]) == {""}
    unknown = result.rows.assign(flop_stages=[{} for _ in range(len(result.rows))])
    assert set(remarks.budgets(unknown, "slow_fast")["budget_7b"]) == {""}
    assert remarks.lines(unknown, "slow_fast") == remarks.sentences(unknown, "slow_fast")


def test_every_table_shows_and_marks_them(result, printed):
    paths, text = printed
    read = pd.read_csv(paths[".csv"]).set_index("cell")
    assert read["fast_tokens_7b"].dropna().to_dict() == {cell: there for cell, (_, _, there, _) in CELLS.items()}
    assert read["budget_7b"].dropna().to_dict() == table(result).set_index("cell")["budget_7b"].dropna().to_dict()
    assert ",1296," in paths[".csv"].read_text()
    assert re_cell(paths[".md"].read_text(), "two_stream").startswith("| two_stream | 938‡ |")
    assert re_cell(paths[".md"].read_text(), "without").startswith("| without | 1,296 |")
    assert "two\\_stream & 938$^\\ddagger$ &" in paths[".tex"].read_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "648‡" in text
    flat = " ".join(text.split())
    assert "‡: not as many as those of slow_fast, 1,296." in flat
    assert "two_stream (168 at mini scale, 938 at 7B); slow_fast has 64 and 1,296." in flat
    assert "halved (" not in flat


def re_cell(markdown: str, cell: str) -> str:
    """A cell's line in the table of costs."""
    costs = markdown[markdown.index("**Cost of one video**") :]
    return next(line for line in costs.splitlines() if line.startswith(f"| {cell} "))


def test_a_cell_whose_architecture_has_hybrid_layers_and_that_has_none_is_named(result, printed):
    assert remarks.without_hybrid_layer(result.rows) == {"without": "slow_fast"}
    assert "No hybrid layer, so that nothing reads" in " ".join(printed[1].split())
    text = ablations.text([result.grid], [result], "../results")
    assert "(placement=none in the rows): without (architecture=slow_fast)." in text
    assert "two_stream (168 at mini scale" in text


def test_the_page_shows_them_too(results, printed):
    text = render(results, results / "report.html")
    assert '<a href="#row-fusion_mini-two_stream">938‡</a>' in text
    assert '<a href="#row-fusion_mini-without">1,296</a>' in text
    assert '<p class="remark">No hybrid layer' in text
    article = text[text.index('<article id="row-fusion_mini-without">') :]
    assert "<dt>hybrid layers</dt><dd>none" in article[: article.index("</article>")]


def test_points_of_another_budget_stand_apart_and_those_without_hybrid_layer_are_not_called_slow_fast(results, printed):
    book = points(grid_parts(results))
    assert left_out(book) == ["two_stream"]
    assert book.set_index("cell").loc["without", "architecture"] == "slow_fast, no hybrid layer"
    assert book.set_index("cell").loc["compressor_only", "architecture"] == "compressor_only"
