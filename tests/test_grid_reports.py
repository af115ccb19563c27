"""Grids' tables, figures and answers from stored rows, and what is made when cells fail, lack or ask other suites."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.stats.contingency_tables as contingency
import statsmodels.stats.multitest as multitest
from rich.console import Console
from synthetic_rows import SETTINGS, answers, evaluation, questions, row

from harness.errors import UserError
from harness.grids.grid import Grid
from harness.layout import Block, Interval
from harness.reports import ablations, grid_figures, grid_foot, grid_table, grids, styles
from harness.reports.answers import answers as told
from harness.reports.answers import short
from harness.reports.grid_result import analyse, counterpart
from harness.row_store import Failure, RowStore, grids_in

SHAPE = {"videomme": (30, 2), "mlvu": (40, 2), "egoschema": (40, 1)}
# cell -> (settings, architecture and frames that lend costs, share right)
GATES = {
    "dynamic_tanh": ([], ("slow_fast", 128), 0.80),
    "sigmoid": (["gate=sigmoid"], ("slow_fast", 128), 0.80),
    "none": (["gate=none"], ("slow_fast", 128), 0.50),
    "self_attention@16": (["architecture=self_attention", "frames=16"], ("self_attention", 16), 0.45),
    "better": (["gate=per_head"], ("slow_fast", 64), 0.95),
}


def grid(cells, name="gates", **changes) -> Grid:
    described = {"order": 60, "question": "Does the gate matter?", "paper": "a gate", "cost": "none", "time": "minutes"}
    fields = {"name": name, "reference": next(iter(cells)), "cells": cells, **described, **changes}
    return Grid.model_validate(fields)


def put(store, cell, typed, made_of, share, base_seed=0, asked=None, number=0, **changes):
    """A row of about `share` right answers; all cells of a base seed share the noise, as models of one base do."""
    asked = questions(SHAPE) if asked is None else asked
    samples = answers(asked, share + 0.01 * base_seed, seed=100 * base_seed + number)
    content = f"{store.name}-{cell}-{base_seed}"
    fields = {"grid": store.name, "cell": cell, "overrides": typed, "content_hash": content, "base_seed": base_seed}
    shared = {"encoder": 100.0, "base": 200.0 + base_seed}
    fields["timings"] = {**shared, "adapt": 30.0 + len(cell), "evaluate": 5.0 + number}
    store.put(row(evaluation(samples), *made_of, **{**fields, **changes}), samples)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    store = RowStore(folder, "gates", "mini", 0)
    cells = {cell: {"set": typed} for cell, (typed, *_) in GATES.items()}
    store.begin(grid({**cells, "broken": ["gate=no"], "waiting": ["gate=static_tanh"]}, limits="All are trained."))
    for number, (cell, described) in enumerate(GATES.items()):
        for base_seed in (0, 1):
            put(store, cell, *described, base_seed=base_seed, number=number)
    put(store, "waiting", ["gate=static_tanh"], ("slow_fast", 128), 0.8, base_seed=0)
    error = {"stage": "model0-slow_fast-128", "error": "there is no gate no", "traceback": "", "when": "2026-01-01"}
    for base_seed in (0, 1):
        store.fail(Failure(cell="broken", base_seed=base_seed, code_commit=None, **error))
    return folder


@pytest.fixture(scope="module")
def result(results):
    return analyse(*grids_in(results))


@pytest.fixture(scope="module")
def table(result):
    return grid_table.table(result).set_index("cell", drop=False)


@pytest.fixture(scope="module")
def printed(results, result):
    said = io.StringIO()
    paths = grids.write(result, results, Console(file=said, width=80))
    return paths, said.getvalue()


def test_the_csv_has_exactly_the_documented_columns_and_the_grids_cells(printed):
    read = pd.read_csv(printed[0][0])
    assert list(read.columns) == [*grid_table.COLUMNS, "average_seed_0", "average_seed_1"]
    assert list(read["cell"]) == [*GATES, "chance"]
    assert read["rows"].tolist()[:2] == ["gates-dynamic_tanh-0 gates-dynamic_tanh-1", "gates-sigmoid-0 gates-sigmoid-1"]


def test_scores_are_the_rows_own_and_mlvu_stands_under_both_aggregations(result, table):
    for cell, group in result.rows.groupby("cell"):
        assert table.loc[cell, "average"] == pytest.approx(group["average"].mean())
        assert table.loc[cell, "average_lo"] < table.loc[cell, "average"] < table.loc[cell, "average_hi"]
        assert table.loc[cell, "average_seed_1"] == group.set_index("base_seed")["average"][1]
        both = [aggregations["mlvu"] for aggregations in group["aggregations"]]
        assert table.loc[cell, "mlvu"] == pytest.approx(np.mean([each["categories"] for each in both]))
        assert table.loc[cell, "mlvu_samples"] == pytest.approx(np.mean([each["samples"] for each in both]))


def test_chance_is_the_mean_over_the_options(result, table):
    asked = questions(SHAPE)
    mlvu = asked[asked["benchmark"].eq("mlvu")]
    assert table.loc["chance", "mlvu_samples"] == pytest.approx(100 * (1 / mlvu["n_options"]).mean())
    assert table.loc["chance", "average"] == table.loc["chance", "average_lo"]


def test_differences_are_to_the_reference_with_the_right_sign_and_p(result, table):
    others = [cell for cell in GATES if cell != "dynamic_tanh"]
    assert pd.isna(table.loc["dynamic_tanh", "difference"])
    for cell in others:
        expected = table.loc[cell, "average"] - table.loc["dynamic_tanh", "average"]
        assert table.loc[cell, "difference"] == pytest.approx(expected)
        assert table.loc[cell, "difference_lo"] < expected < table.loc[cell, "difference_hi"]
    assert table.loc["none", "difference"] < -20
    assert table.loc["better", "difference"] > 5
    corrected = multitest.multipletests(table.loc[others, "p"], method="holm")[1]
    assert table.loc[others, "p_holm"].to_numpy() == pytest.approx(corrected)


def test_mcnemar_is_statsmodels_largest_over_base_seeds(result, table):
    p = []
    for _, answered in result.samples.groupby("base_seed"):
        index = ["benchmark", "task", "doc_id"]
        right = {cell: group.set_index(index)["correct"] for cell, group in answered.groupby("cell")}
        cross = pd.crosstab(right["sigmoid"], right["dynamic_tanh"].loc[right["sigmoid"].index])
        p.append(contingency.mcnemar(cross, exact=True).pvalue)
    assert table.loc["sigmoid", "p_mcnemar"] == pytest.approx(max(p))


def test_overheads_are_over_the_reference_and_over_sixteen_frames(table):
    slow, sixteen = (SETTINGS[key] for key in (("slow_fast", 128), ("self_attention", 16)))
    found = table.loc["self_attention@16"]
    assert found["prefill_over_reference_pct"] == pytest.approx(100 * (sixteen[4] / slow[4] - 1))
    assert found["model_over_16_frames_pct"] == 0
    assert table.loc["none", "model_over_16_frames_pct"] == pytest.approx(100 * (slow[5] / sixteen[5] - 1))


def test_time_counts_each_stage_once(result):
    own = sum(30 + len(cell) for cell in GATES) + sum(5 + number for number in range(len(GATES)))
    assert result.seconds == {"own": pytest.approx(own), "shared": pytest.approx(100 + 200 + 201)}


def test_the_terminal_has_80_columns_and_says_what_failed_or_lacks(printed):
    text = printed[1]
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for said in (
        "Failed: broken, base seed 1, at model0-slow_fast-128: there is no gate no",
        "Not there yet: waiting, base seed 1.",
        "Where mini scale cannot tell: All are trained.",
        "Smallest difference of the average that this grid would find:",
        "180 questions on 110 videos",
        "Code: 0123456789ab",
        "Mini scale:",
    ):
        assert said in flat
    assert "waiting" not in flat.partition("Percent right")[0]


def test_a_wide_block_is_cut_into_narrow_ones_without_losing_a_column():
    columns = [("cell", ["c" * 40])] + [(f"head {n}", [Interval(50, 45, 55)]) for n in range(9)]
    parts = grids.fitted(Block("wide", columns, names=1))
    assert [head for part in parts for head, _ in part.columns[1:]] == [head for head, _ in columns[1:]]
    assert all(part.columns[0] == columns[0] for part in parts)
    assert all(grids._width(part.columns) <= 80 for part in parts)
    assert len(parts) > 1


def test_the_same_rows_give_the_same_bytes_and_every_file(results, result, printed):
    before = {path: path.read_bytes() for path in printed[0]}
    assert [path.suffix for path in before] == [".csv", ".md", ".tex", ".svg", ".png"]
    grids.write(result, results)
    assert {path: path.read_bytes() for path in before} == before
    assert "\\toprule" in printed[0][2].read_text()
    assert "self\\_attention@16" in printed[0][2].read_text()


def test_latex_has_a_float_per_block_labels_once_and_questions_without_a_full_stop(printed):
    text = printed[0][2].read_text()
    floats = text.split("\\begin{table*}")[1:]
    assert len(floats) == text.count("\\end{table*}") == text.count("\\end{tabular}\n\\end{table*}") >= 5
    assert all(part.count("\\toprule") == 1 for part in floats)
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert labels[0] == "tab:gates_mini"
    assert len(set(labels)) == len(labels) == len(floats)
    assert "matter? Scores" in text
    assert "?." not in text


def test_the_answer_names_what_is_above_below_and_not_told_apart(result):
    (answer,) = told(result)
    above, below, same = answer.groups
    assert answer.reference.startswith("`dynamic_tanh` averages ")
    assert re.match(r"Above it: `better` \+\d+\.\d \[\+.*\] \(p ", above)
    assert below.startswith("Below it: `none` -")
    assert "`self_attention@16` -" in below
    assert same.startswith("Not told apart from it: `sigmoid` ")
    assert "would often be missed" in same
    assert short(result) == "1 above, 2 below, 1 not told apart (reference: `dynamic_tanh`)"


def test_an_answer_gives_base_seeds_that_lie_far_apart_and_cells_that_answer_alike(tmp_path):
    store = RowStore(tmp_path, "gates", "mini", 0)
    cells = {name: {"set": [f"gate={name}"]} for name in ("dynamic_tanh", "alike", "torn")}
    store.begin(grid(cells))
    shares = {"dynamic_tanh": (0.8, 0.8), "alike": (0.8, 0.8), "torn": (0.2, 0.6)}
    for number, (cell, rights) in enumerate(shares.items()):
        for base_seed, right in enumerate(rights):
            alike = 0 if cell == "alike" else number
            put(store, cell, cells[cell]["set"], ("slow_fast", 128), right, base_seed=base_seed, number=alike)
    (analysed,) = map(analyse, grids_in(tmp_path))
    (answer,) = told(analysed)
    below, same = answer.groups
    average = analysed.rows.pivot(index="base_seed", columns="cell", values="average")
    first, second = average["torn"] - average["dynamic_tanh"]
    assert first < second - 5
    assert f"; by base seed {first:+.1f}, {second:+.1f})" in below
    assert same == "Right on the very questions that it is: `alike`."


def test_a_narrow_interval_has_two_decimals():
    assert f"{Interval(-0.25, -0.54, -0.011, signed=True):wide}" == "-0.25 [-0.54, -0.01]"
    assert f"{Interval(-2.5, -5.4, 0.11, signed=True):wide}" == "-2.5 [-5.4, +0.1]"


def test_a_spare_line_takes_no_architectures_look():
    looks = styles.styles_of(["self_attention_selected", "slow_fast", "slow_fast, no hybrid layer"])
    assert looks["self_attention_selected"] == styles.style_of("self_attention_selected")
    assert looks["slow_fast, no hybrid layer"] not in (looks["self_attention_selected"], looks["slow_fast"])


def test_the_figure_of_dots_shows_each_cell_with_interval_base_seeds_and_chance(result, table):
    (axes,) = grid_figures.dots(result, table).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(GATES)
    drawn = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() not in ("", "None", "|"))
    measured = table.drop("chance")
    expected = [*measured["average"], *measured["average_seed_0"], *measured["average_seed_1"]]
    assert drawn == pytest.approx(sorted(expected))
    assert any("chance" in text.get_text() for text in axes.texts)


def worlds(folder) -> RowStore:
    """Two models asked two suites, a line each."""
    cells, numbers = {}, iter(range(10))
    for dwell, asked in ((1, questions(SHAPE)), (64, questions(SHAPE, seed=1))):
        world = f"world.evaluation.dwell=[{dwell},{dwell}]"
        for key, share in ((("self_attention", 16), 0.4 if dwell == 1 else 0.8), (("slow_fast", 128), 0.8)):
            typed = [f"architecture={key[0]}", f"frames={key[1]}", world]
            cells[f"{key[0]}_{dwell}"] = ({"set": typed, "x": dwell, "line": key[0]}, key, share, asked, dwell)
    store = RowStore(folder, "dwell", "mini", 0)
    store.begin(grid({cell: described[0] for cell, described in cells.items()}, "dwell", axis="frames an event lasts"))
    for cell, (described, key, share, asked, dwell) in cells.items():
        suite = {"suite_fingerprint": f"{dwell:064d}", "world": "dwell"}
        put(store, cell, described["set"], key, share, asked=asked, number=next(numbers), **suite)
    return store


def test_cells_of_another_world_are_compared_with_the_reference_in_it(tmp_path):
    store = worlds(tmp_path)
    result = analyse(store)
    table = grid_table.table(result).set_index("cell")
    assert [suite.reference for suite in result.suites] == ["self_attention_1", "self_attention_64"]
    assert table.loc["slow_fast_1", "reference"] == "self_attention_1"
    assert table.loc["slow_fast_64", "reference"] == "self_attention_64"
    assert table.loc["slow_fast_1", "difference"] > 20 > 15 > abs(table.loc["slow_fast_64", "difference"])
    assert pd.isna(table.loc["self_attention_64", "difference"])
    assert [answer.reference[:20] for answer in told(result)] == ["`self_attention_1` a", "`self_attention_64` "]
    (axes,) = grid_figures.lines(result, grid_table.table(result)).axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "64"]
    assert "There is one base seed" in " ".join(grid_foot.lines(result))


def test_a_world_without_the_reference_is_not_compared():
    asked = grid({"a": ["gate=none"], "b": ["gate=none", "world=dwell"], "c": ["gate=sigmoid", "world=plain"]})
    assert counterpart(asked, ["b", "c"]) == "b"
    assert counterpart(asked, ["c"]) is None


def test_samples_of_another_run_are_refused(results, tmp_path):
    store = worlds(tmp_path)
    path = next((tmp_path / "rows" / "ablations" / "samples").glob("*.parquet"))
    samples = pd.read_parquet(path)
    samples.assign(correct=~samples["correct"]).to_parquet(path, index=False)
    with pytest.raises(UserError, match="rows and samples files are of different runs"):
        analyse(store)


def test_a_grid_without_rows_writes_nothing(tmp_path):
    RowStore(tmp_path, "gates", "mini", 0).begin(grid({"a": []}))
    assert grids.write_all(tmp_path) == []
    assert not (tmp_path / "tables").exists()


def test_the_book_says_what_is_answered_what_is_not_run_and_what_changed(result):
    book = [result.grid, grid({"a": []}, "later", question="And later?", order=70)]
    text = ablations.text(book, [result], "../results")
    assert "## Does the gate matter?" in text
    assert "[1 above, 2 below, 1 not told apart (reference: `dynamic_tanh`)](#gates)" in text
    assert "![Does the gate matter?](../results/figures/ablations/gates_mini.png)" in text
    assert "- Above it: `better` +" in text
    assert "**Not run at mini scale yet:** `make ablate GRID=later`" in text
    assert "has changed" not in text
    changed = result.grid.model_copy(update={"reference": "none"})
    assert "The YAML has changed since these rows were made" in ablations.text([changed], [result], "../results")


def test_a_results_folder_elsewhere_leaves_the_book_alone(tmp_path, result):
    (tmp_path / "ablations").mkdir()
    assert ablations.write_readme(tmp_path / "ablations", tmp_path / "deeper" / "results", [result]) is None
    assert not list((tmp_path / "ablations").iterdir())


def test_the_report_draws_the_main_table_of_every_scale_and_seed(tmp_path, monkeypatch):
    from harness.reports import verb

    names = ("rows/main_mini_seed0.jsonl", "rows/main_mini_seed1.jsonl", "rows/main_tiny_seed2.jsonl")
    for name in (*names, "rows/controls_mini_seed0.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    drawn = []
    monkeypatch.setattr(
        "harness.commands.plot",
        lambda settings, _: drawn.append((settings.results_dir, settings.scale.name, settings.seed)),
    )
    verb.report(SimpleNamespace(results_dir=str(tmp_path), jobs=1), [])
    assert drawn == [(str(tmp_path), "mini", 0), (str(tmp_path), "mini", 1), (str(tmp_path), "tiny", 2)]


def test_the_report_of_an_empty_folder_says_what_to_run(tmp_path):
    from harness.reports.verb import report

    settings = SimpleNamespace(results_dir=str(tmp_path), scale=SimpleNamespace(name="mini"), seed=0, jobs=1)
    with pytest.raises(UserError, match="there are no rows here"):
        report(settings, [])


def test_cells_of_several_machines_are_said_to_be(results, result):
    assert grid_foot.machines(result.rows) == []
    rows = result.rows.copy()
    rows.loc[rows["cell"].eq("none"), "device"] = "another processor"
    (told,) = grid_foot.machines(rows)
    assert told.endswith("another processor: none.")
    assert "Example CPU, 2 cores, 16 GiB: dynamic_tanh" in told
