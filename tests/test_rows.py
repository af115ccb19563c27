"""Rows and samples: written, read back, checked, documented."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from synthetic_rows import MADE_BY, answers, evaluation, questions, row, table_run

from harness import provenance, results_readme
from harness.errors import UserError
from harness.rows import (
    KEYS,
    SAMPLE_COLUMNS,
    UNPARSED,
    Row,
    as_frame,
    read_rows,
    read_samples,
    rows_name,
    samples_name,
    tag_samples,
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
        (lambda fields: fields.update(schema_version=2), "line 2: field schema_version: Input should be 1"),
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
    source.write_text("one = 2\n")
    assert provenance.code_state(source) == (commit, True)


def test_a_row_says_where_it_was_made(measured):
    made = row(measured, made_by=None)
    assert {"python", "torch", "transformers", "lmms-eval", "av"} <= set(made.versions)
    assert "core" in made.device
    assert row(measured).device == MADE_BY.device


def test_every_field_is_documented_and_the_readme_is_current():
    assert all(field.description for field in Row.model_fields.values())
    readme = Path(__file__).parents[1] / results_readme.README
    assert readme.read_text() == results_readme.text(), "run `python -m harness.results_readme`"
