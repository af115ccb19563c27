"""Rows and samples: written, read back, checked, documented."""

import json
import subprocess
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from synthetic_rows import MADE_BY, answers, evaluation, questions, row, table_run

from harness import provenance, results_readme
from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.grids.grid import Grid
from harness.row_store import Failure, RowStore
from harness.rows import (
    KEYS,
    SAMPLE_COLUMNS,
    SCHEMA_VERSION,
    UNPARSED,
    Row,
    as_frame,
    load_rows,
    read_rows,
    read_samples,
    rows_name,
    samples_name,
    tag_samples,
    upgrade,
    write_rows,
    write_samples,
)


@pytest.fixture(scope="module")
def measured():
    return evaluation(answers(questions(), 0.8, seed=0))


def test_a_row_counts_what_the_evaluation_holds(measured):
    made = row(measured)
    assert made.average == pytest.approx(sum(measured.scores.values()) / 5)
    assert made.n_samples == len(measured.samples) == sum(t.asked for t in made.by_family.values())
    per_benchmark = {name: sum(t.correct for t in group.values()) for name, group in made.by_category.items()}
    assert per_benchmark == measured.samples.groupby("benchmark")["correct"].sum().to_dict()
    assert len(made.by_category["mvbench"]) == 20
    assert (made.failures, made.failure_kinds, made.unparsed) == (0, {}, 0)


def test_failures_and_unparsed_answers_are_counted_apart(measured):
    samples = measured.samples.copy()
    samples.loc[:2, "failure"] = "truncated"
    samples.loc[3, "failure"] = "missing"
    samples.loc[4, "failure"] = UNPARSED
    made = row(evaluation(samples))
    assert (made.failures, made.unparsed) == (4, 1)
    assert made.failure_kinds == {"missing": 1, "truncated": 3}
    assert made.n_samples == len(samples)  # never dropped from the denominator


def test_rows_come_back_as_they_were_written(measured, tmp_path):
    made = [row(measured, base_seed=0), row(measured, base_seed=1)]
    path = write_rows(tmp_path / "rows" / rows_name("main", "mini", 0), made)
    assert path.name == "main_mini_seed0.jsonl"
    pd.testing.assert_frame_equal(read_rows(path), as_frame(made))
    assert list(read_rows(path).columns) == list(Row.model_fields)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_samples_come_back_and_stay_small(tmp_path):
    rows, samples = table_run()
    parts = [group for _, group in samples.groupby(["architecture", "frames", "base_seed"], sort=False)]
    path = write_samples(tmp_path / samples_name("main", "mini", 0), parts)
    assert path.name == rows["samples"].iloc[0]
    back = read_samples(path)
    assert list(back.columns) == list(SAMPLE_COLUMNS)
    keys = [*KEYS, "benchmark", "task", "doc_id"]
    expected = samples.sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(back, expected, check_dtype=False)
    assert path.stat().st_size < 300_000
    again = write_samples(tmp_path / "again.parquet", parts[::-1])
    assert again.read_bytes() == path.read_bytes()  # whatever order the rows finished in


def test_samples_keep_no_message_that_could_name_a_path(measured):
    samples = measured.samples.assign(message="/somewhere/on/this/machine.mp4 is empty")
    tagged = tag_samples(row(measured), samples)
    assert list(tagged.columns) == list(SAMPLE_COLUMNS)
    assert tagged["failure"].eq("").all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cost": {}}, "slow_fast @ 128 frames, base seed 0: field .*: Field required"),
        ({"seed": "0"}, "field seed: Input should be a valid integer"),
        ({"base_seed": -1}, "field base_seed: .*greater than or equal to 0"),
        ({"timings": {"base": float("nan")}}, r"field timings\.base: .*finite number"),
    ],
)
def test_a_wrong_field_is_named_with_its_row(measured, change, sentence):
    with pytest.raises(UserError, match=sentence):
        row(measured, **change)


def test_a_score_outside_the_scale_is_refused(measured):
    doubled = {name: 2 * score for name, score in measured.scores.items()}
    with pytest.raises(UserError, match=r"average|0-100"):
        row(type(measured)(scores=doubled, samples=measured.samples))


def test_an_unknown_cost_is_refused(measured):
    cost = {"fast_tokens": 1, "tokens": 2}
    with pytest.raises(UserError, match="field "):
        row(measured, cost=cost)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda fields: fields.pop("suite_fingerprint"), "line 2: field suite_fingerprint: Field required"),
        (lambda fields: fields.update(schema_version=3), "line 2: field schema_version: Input should be 2"),
        (lambda fields: fields.update(accuracy=3), "line 2: field accuracy: Extra inputs are not permitted"),
        (lambda fields: fields.update(failures=3), "line 2: field row: .*add up to 0, not 3"),
    ],
)
def test_a_line_of_another_schema_is_named(measured, tmp_path, spoil, sentence):
    path = write_rows(tmp_path / "rows.jsonl", [row(measured), row(measured)])
    first, second = path.read_text().splitlines()
    fields = json.loads(second)
    spoil(fields)
    path.write_text(first + "\n" + json.dumps(fields) + "\n")
    with pytest.raises(UserError, match=sentence):
        read_rows(path)


def test_a_torn_line_and_a_missing_file_are_told_in_a_sentence(measured, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [row(measured)])
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_rows(path)
    with pytest.raises(UserError, match="does not exist"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="does not exist"):
        read_samples(tmp_path / "none.parquet")


def test_provenance_is_that_of_the_checkout_that_tracks_the_file(tmp_path):
    source = tmp_path / "harness.py"
    source.write_text("one = 1\n")
    assert provenance.code_state(source) == (None, None)  # no checkout
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    assert provenance.code_state(source) == (None, None)  # a checkout that does not track it
    subprocess.run([*git, "add", "harness.py"], check=True)
    assert provenance.code_state(source) == (None, None)  # tracked, nothing committed
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    commit, dirty = provenance.code_state(source)
    assert (len(commit), dirty) == (40, False)
    written = tmp_path / "results" / "rows.jsonl"
    written.parent.mkdir()
    written.write_text("one\n")
    subprocess.run([*git, "add", "results"], check=True)
    assert provenance.code_state(source) == (commit, False)  # rows are no code
    source.write_text("one = 2\n")
    assert provenance.code_state(source) == (commit, True)


def test_a_row_says_where_it_was_made(measured):
    made = row(measured, made_by=None)
    assert {"python", "torch", "transformers", "lmms-eval", "av"} <= set(made.versions)
    assert "core" in made.device
    assert row(measured).device == MADE_BY.device


def test_a_rows_two_aggregations_are_both_means(measured):
    measured = evaluation(measured.samples.sample(frac=0.7, random_state=0))  # categories of different sizes
    made = row(measured)
    assert set(made.aggregations) == set(BENCHMARKS) - {"egoschema"}  # which has one category
    for name, both in made.aggregations.items():
        samples = measured.samples[measured.samples["benchmark"] == name]
        by_hand = samples.groupby("category")["correct"].mean()
        assert both["samples"] == pytest.approx(100 * samples["correct"].mean())
        assert both["categories"] == pytest.approx(100 * by_hand.sum() / len(BENCHMARKS[name].categories))
        own = "categories" if name in ("mlvu", "mvbench") else "samples"
        assert both[own] == pytest.approx(made.scores[name])
    assert made.aggregations["mlvu"]["samples"] != pytest.approx(made.aggregations["mlvu"]["categories"])


def test_a_category_that_the_suite_lacks_counts_as_nothing_right(measured):
    fewer = measured.samples[measured.samples["category"] != "needle"]
    both = row(type(measured)(scores=measured.scores, samples=fewer)).aggregations["mlvu"]
    left = fewer[fewer["benchmark"] == "mlvu"].groupby("category")["correct"].mean()
    assert len(left) == 6
    assert both["categories"] == pytest.approx(100 * left.sum() / 7)


def test_an_unknown_category_is_refused(measured):
    samples = measured.samples.replace({"category": {"needle": "thread"}})
    with pytest.raises(UserError, match="slow_fast @ 128 frames, base seed 0: mlvu has no category 'thread'"):
        row(type(measured)(scores=measured.scores, samples=samples))


def test_latency_may_be_left_out(measured, tmp_path):
    cost = {"fast_tokens": 1, "slow_tokens": 2, "prefill_mflop_mini": 3, "prefill_tflop_7b": 4, "model_tflop_7b": 5}
    made = row(measured, cost=cost, grid="gates", cell="none", overrides=["gate=none"], suite={"seed": 1})
    assert (made.prefill_ms, made.decode_ms_quartiles) == (None, None)
    assert (made.grid, made.cell, made.overrides, made.suite) == ("gates", "none", ["gate=none"], {"seed": 1})
    back = read_rows(write_rows(tmp_path / "rows.jsonl", [made]))
    assert back["prefill_ms"].isna().all()
    assert back["prefill_ms"].dtype == float


def test_a_row_of_version_1_is_read_as_the_same_row(measured, tmp_path):
    made = row(measured)
    old = json.loads(made.model_dump_json())
    for field in ("grid", "cell", "overrides", "world", "suite", "aggregations"):
        del old[field]
    old["schema_version"] = 1
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(old) + "\n")
    assert load_rows(path)[0].model_dump() == made.model_dump()
    assert "grid" not in old
    assert upgrade(json.loads(made.model_dump_json())) == json.loads(made.model_dump_json())


def test_samples_of_version_1_have_no_seconds(tmp_path):
    _, samples = table_run(base_seeds=(0,), shape={"egoschema": (20, 1)})
    path = tmp_path / "samples.parquet"
    samples.drop(columns="seconds").to_parquet(path)
    back = read_samples(path)
    assert back["seconds"].isna().all()
    pd.testing.assert_frame_equal(back.drop(columns="seconds"), samples.drop(columns="seconds"))
    samples.drop(columns="target").to_parquet(path)
    with pytest.raises(UserError, match="has the columns"):
        read_samples(path)


def test_every_committed_row_is_read():
    results = Path(__file__).parents[1] / "results"
    files = [*results.glob("rows/main*.jsonl"), *results.glob("rows/controls*.jsonl")]
    assert len(files) >= 3
    for path in files:
        rows = read_rows(path)
        assert rows["schema_version"].eq(SCHEMA_VERSION).all()
        for scores, both in zip(rows["scores"], rows["aggregations"], strict=True):
            assert both["mlvu"]["categories"] == pytest.approx(scores["mlvu"])
        assert len(read_samples(path.with_suffix(".samples.parquet"))) == rows["n_samples"].sum()


@pytest.mark.parametrize("what", [*results_readme.PANDAS, *results_readme.DUCKDB])
def test_the_readmes_lines_read_rows_and_samples(measured, tmp_path, monkeypatch, what):
    results = tmp_path / "results"
    for name in ("gates", "placement"):
        store = RowStore(results, name, "mini", 0)
        fields = {"question": "?", "paper": "", "cost": "", "time": ""}
        store.begin(
            Grid.model_validate({"name": name, "order": 1, "reference": "a", "cells": {"a": [], "b": []}, **fields})
        )
        for cell in "ab":
            made = row(measured, grid=name, cell=cell, content_hash=f"11223344556{'ab'.index(cell)}")
            store.put(made, measured.samples)
    store.fail(Failure(cell="b", base_seed=1, stage="", error="", traceback="", when="", code_commit=None))
    write_samples(results / "rows" / samples_name("main", "mini", 0), [tag_samples(row(measured), measured.samples)])
    monkeypatch.chdir(tmp_path)
    n = len(measured.samples)
    if what in results_readme.PANDAS:
        read = eval(results_readme.PANDAS[what], {"pandas": pd})
        expected = {"a grid's rows": 2, "the main table's samples": n, "all samples of all grids": 2 * n}
    else:
        read = duckdb.sql(results_readme.DUCKDB[what]).df()
        expected = {"all grids' rows": 4, "all grids' samples, by cell": 4 * n}
        assert set(zip(read["grid"], read["cell"], strict=True)) == {
            (g, c) for g in ("gates", "placement") for c in "ab"
        }
    assert len(read) == expected[what]
    if "correct" in read:
        assert read["correct"].mean() == pytest.approx(measured.samples["correct"].mean())
    elif "content_hash" in read:
        assert read["content_hash"].tolist() == ["112233445560", "112233445561"]


def test_every_field_is_documented_and_the_readme_is_current():
    assert all(field.description for field in Row.model_fields.values())
    readme = Path(__file__).parents[1] / results_readme.README
    assert readme.read_text() == results_readme.text(), "run `python -m harness.results_readme`"
