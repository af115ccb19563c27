"""The tables and figures: columns, arithmetic, foot, failures, bytes."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from synthetic_rows import SETTINGS, SHAPE, SHARED_DISCLOSURE, SLOW_DISCLOSURE, table_run

from harness import foot, report
from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.rows import UNPARSED

NAMES = ["videomme", "mlvu", "mvbench", "egoschema", "longvideobench", "average"]
HEAD = ["architecture", "frames", "seeds", "fast_tokens", "slow_tokens"]
TAIL = ["relative_gain_pct", "n_samples", "failures", "prefill_mflop_mini", "prefill_tflop_7b"]
TAIL += ["prefill_overhead_7b_pct", "model_tflop_7b", "model_overhead_7b_pct", "prefill_ms"]
TAIL += ["decode_ms_per_token"]
BAD_VIDEO = "videomme/003.mp4"
SMALL = {"egoschema": (30, 1), "mlvu": (60, 2)}


@pytest.fixture(scope="module")
def run():
    return table_run()


@pytest.fixture(scope="module")
def table(run):
    return report.main_table(*run)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    said = io.StringIO()
    report.write_main_table(*run, out, Console(file=said, width=80))
    return out, said.getvalue()


def line(table, architecture, frames):
    return table[(table["architecture"] == architecture) & (table["frames"] == frames)].iloc[0]


def with_failures(samples):
    samples = samples.copy()
    samples.loc[samples["video"] == BAD_VIDEO, ["correct", "failure"]] = [False, "truncated"]
    samples.loc[500, ["correct", "failure"]] = [False, UNPARSED]
    return samples


def controls_run(control_share=0.68):
    """The main run at 128 frames, with slow_fast's two controls beside it."""
    rows, samples = table_run(shape=SMALL, settings={key: SETTINGS[key] for key in list(SETTINGS)[2:7:4]})
    parts = [(rows, samples)]
    for control in ("gate_closed", "other_video"):
        settings = {("slow_fast", 128): (control_share, *SETTINGS["slow_fast", 128][1:])}
        parts.append(table_run(shape=SMALL, settings=settings, control=control, table="controls"))
    return tuple(pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))


def test_the_csv_has_exactly_the_promised_columns_and_rows(written, table):
    read = pd.read_csv(written[0] / "tables" / "main_mini.csv")
    scores = [f"{name}{end}" for name in NAMES for end in ("", "_lo", "_hi")]
    assert list(read.columns) == [*HEAD, *scores, *TAIL] == list(report.COLUMNS)
    settings = list(zip(read["architecture"], read["frames"], strict=True))
    assert settings == [*SETTINGS, ("chance", 0)]
    assert read["seeds"].tolist() == [2] * 8 + [0]
    pd.testing.assert_frame_equal(read, table, check_dtype=False, atol=1e-4)


def test_scores_are_the_rows_own_within_their_intervals(run, table):
    rows, _ = run
    for architecture, frames in SETTINGS:
        found = line(table, architecture, frames)
        own = rows[(rows["architecture"] == architecture) & (rows["frames"] == frames)]
        assert found["average"] == pytest.approx(own["average"].mean())
        for name in NAMES:
            assert found[f"{name}_lo"] < found[name] < found[f"{name}_hi"]
        assert found["n_samples"] == 2 * 1198


def test_gain_and_overheads_are_against_self_attention_at_16_frames(table):
    base, best = line(table, "self_attention", 16), line(table, "slow_fast", 128)
    assert best["relative_gain_pct"] == pytest.approx(100 * (best["average"] - base["average"]) / base["average"])
    assert best["prefill_overhead_7b_pct"] == pytest.approx(100 * (20.32 - 19.97) / 19.97)
    assert best["model_overhead_7b_pct"] == pytest.approx(100 * (276.9 - 52.04) / 52.04)
    assert (base[["relative_gain_pct", "prefill_overhead_7b_pct", "model_overhead_7b_pct"]] == 0).all()


def test_without_the_baseline_gains_and_overheads_are_empty_and_the_foot_says_so(written, tmp_path):
    rows, samples = controls_run()
    table = report.write_main_table(rows, samples, tmp_path, Console(file=io.StringIO()))
    assert table[["relative_gain_pct", "prefill_overhead_7b_pct", "model_overhead_7b_pct"]].isna().all(axis=None)
    read = pd.read_csv(tmp_path / "tables" / "main_mini.csv")
    assert list(read.columns) == list(report.COLUMNS)
    text = (tmp_path / "tables" / "main_mini.md").read_text()
    assert foot.NO_BASELINE in text
    assert "nan" not in text
    assert foot.NO_BASELINE not in (written[0] / "tables" / "main_mini.md").read_text()
    assert (tmp_path / "figures" / "accuracy_vs_prefill_flops.png").stat().st_size > 10_000


def test_chance_is_each_benchmarks_own(run, table):
    _, samples = run
    guessing = line(table, "chance", 0)
    assert (guessing["videomme"], guessing["egoschema"]) == (pytest.approx(25), pytest.approx(20))
    asked = samples[(samples["benchmark"] == "mvbench")].drop_duplicates(["task", "doc_id"])
    expected = (100 / asked["n_options"]).groupby(asked["task"]).mean().mean()
    assert guessing["mvbench"] == pytest.approx(expected)
    assert guessing["average"] == pytest.approx(np.mean([guessing[name] for name in NAMES[:5]]))


def test_the_same_rows_give_the_same_bytes_in_any_order(run, written, tmp_path):
    rows, samples = run
    shuffled = rows.sample(frac=1, random_state=1), samples.sample(frac=1, random_state=1)
    assert shuffled[0]["architecture"].iloc[0] != rows["architecture"].iloc[0]
    report.write_main_table(*shuffled, tmp_path, Console(file=io.StringIO()))
    files = sorted(path.relative_to(written[0]) for path in written[0].rglob("*.*"))
    names = ["accuracy_vs_frames", "accuracy_vs_prefill_flops"]
    assert [path.name for path in files] == [
        *(f"{name}.{kind}" for name in names for kind in ("png", "svg")),
        *(f"main_mini.{kind}" for kind in ("csv", "md", "tex")),
    ]
    for path in files:
        assert (tmp_path / path).read_bytes() == (written[0] / path).read_bytes(), path


def test_what_is_printed_fits_a_terminal_and_is_not_cut(written):
    lines = written[1].splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in written[1]
    assert sum("slow_fast_official" in one for one in lines) >= 4  # a line in each block


def test_markdown_and_latex_show_every_row_with_its_interval(written, table):
    for kind in ("md", "tex"):
        text = (written[0] / "tables" / f"main_mini.{kind}").read_text().replace("\\_", "_")
        best = line(table, "slow_fast", 128)
        ends = f"[{best['average_lo']:.1f}, {best['average_hi']:.1f}]"
        assert f"{best['average']:.1f}" in text
        assert ends in text
        assert all(text.count(f"{name}") >= 4 for name, _ in SETTINGS)
    tex = (written[0] / "tables" / "main_mini.tex").read_text()
    assert tex.count("\\begin{") == tex.count("\\end{")
    assert not re.search(r"(?<!\\)[%_#](?!.*booktabs)", re.sub(r"\\label\{.*\}", "", tex))


def test_the_foot_states_conventions_and_provenance(written):
    for kind in ("md", "tex"):
        text = (written[0] / "tables" / f"main_mini.{kind}").read_text().replace("\\_", "_").replace("\\", "")
        for stated in (
            *("Mini scale", "FLOP: 2 x multiply-adds", "full square", "64 text tokens", "lm_head"),
            *("without vision tower", "ConvNeXt-XXLarge", "95%", "base seeds 0 and 1", "1,198 questions"),
            *("799 videos", "round(linspace(0, total - 1, frames))", "SEED=0", "torch 2.15.0"),
            *("Example CPU, 2 cores", "0123456789ab", "relative to self_attention at 16 frames"),
        ):
            assert stated in text, stated


def test_a_disclosure_stands_once_and_says_whose_it_is(run):
    lines = foot.foot(*run)
    assert len(lines) == len(set(lines))
    assert lines.count(SHARED_DISCLOSURE) == 1
    assert lines.count(f"slow_fast: {SLOW_DISCLOSURE}") == 1


def test_a_disclosure_of_one_base_seed_or_one_row_names_it(run):
    rows, _ = run
    weak, odd = "The base fell short of its threshold.", "Trained twice."
    changed = [
        [*old, *([weak] if seed == 1 else []), *([odd] if name == "compressor_only" and seed == 0 else [])]
        for old, seed, name in zip(rows["disclosures"], rows["base_seed"], rows["architecture"], strict=True)
    ]
    lines = foot.disclosure_lines(rows.assign(disclosures=changed))
    assert f"base seed 1: {weak}" in lines
    assert f"compressor_only @128 (base seed 0): {odd}" in lines


def test_failures_mark_their_row_and_name_the_video(tmp_path):
    rows, samples = table_run(shape=SHAPE, settings=dict(list(SETTINGS.items())[:2]), damage=with_failures)
    table = report.write_main_table(rows, samples, tmp_path, Console(file=io.StringIO()))
    assert table["failures"].tolist() == [6, 6, 0]  # three questions about the video, two base seeds; chance
    assert table["n_samples"].tolist() == [2396, 2396, 0]
    text = (tmp_path / "tables" / "main_mini.md").read_text()
    assert "self_attention† | 16" in text
    assert f"† 12 answers failed (truncated), counted as wrong: {BAD_VIDEO}." in text
    assert "| 2396 | 6 | 2 |" in text  # answers, failures, no option
    assert "chance†" not in text


def test_one_row_alone_makes_a_table(tmp_path):
    rows, samples = table_run((0,), settings={("slow_fast", 128): SETTINGS["slow_fast", 128]}, shape=SMALL)
    table = report.write_main_table(rows, samples, tmp_path, Console(file=io.StringIO()))
    assert table["relative_gain_pct"].isna().all()
    assert table["videomme"].isna().all()  # a benchmark that was not run stays empty
    assert "base seed 0 (" in (tmp_path / "tables" / "main_mini.md").read_text()
    assert (tmp_path / "figures" / "accuracy_vs_frames.png").stat().st_size > 10_000


def test_a_variant_that_the_table_does_not_know_gets_a_line_and_a_style(run, tmp_path):
    rows, samples = run
    renamed = {"slow_fast_official": "my_variant"}
    table = report.write_main_table(
        rows.replace({"architecture": renamed}),
        samples.replace({"architecture": renamed}),
        tmp_path,
        Console(file=io.StringIO()),
    )
    assert table["architecture"].tolist()[-2:] == ["my_variant", "chance"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows.assign(suite_fingerprint=rows.index.astype(str)), "different suites"),
        (lambda rows: rows.assign(slow_tokens=rows.index), "differ in slow_tokens"),
        (lambda rows: rows.iloc[:0], "no rows to report"),
        (
            lambda rows: rows.assign(scores=[{"mlvu": 1.0}] * len(rows)),
            "rows and samples files are of different",
        ),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(change, sentence):
    rows, samples = table_run(shape=SMALL)
    with pytest.raises(UserError, match=sentence):
        report.main_table(change(rows), samples)


def test_controls_are_compared_with_the_compressor_alone(tmp_path):
    rows, samples = controls_run()
    said = io.StringIO()
    table = report.write_controls_table(rows, samples, tmp_path, Console(file=said, width=80))
    assert table["control"].tolist() == ["none", "gate_closed", "other_video"]
    mean = rows.groupby(["architecture", "control"])["average"].mean()
    for control in table["control"]:
        found = table[table["control"] == control].iloc[0]
        gained = mean["slow_fast", control] - mean["compressor_only", "none"]
        assert found["average"] == pytest.approx(gained)
        assert found["average_lo"] <= gained <= found["average_hi"]
    assert table["gain"].tolist() == [True, False, False]
    assert table["p_largest"].iloc[0] < 0.05
    text = (tmp_path / "tables" / "controls_mini.md").read_text()
    assert "gate_closed" in text
    assert SHARED_DISCLOSURE in text
    assert max(map(len, said.getvalue().splitlines())) <= 80


def test_a_control_that_keeps_the_gain_is_not_called_gone():
    table = report.controls_table(*controls_run(control_share=0.9))
    assert table["gain"].tolist() == [True, True, True]


def test_controls_stay_out_of_the_main_table():
    rows, samples = controls_run()
    assert report.main_table(rows, samples)["architecture"].tolist() == [
        "compressor_only",
        "slow_fast",
        "chance",
    ]


def test_the_registry_and_the_table_name_the_same_benchmarks():
    assert [*BENCHMARKS, "average"] == NAMES


def test_another_seeds_files_have_names_of_their_own(tmp_path):
    rows, samples = table_run(seed=1)
    report.write_main_table(rows, samples, tmp_path, Console(file=io.StringIO()))
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"main_mini_seed1.{kind}" for kind in ("csv", "md", "tex")
    }
    assert (tmp_path / "figures" / "accuracy_vs_frames_seed1.svg").is_file()
    assert not (tmp_path / "figures" / "accuracy_vs_frames.svg").exists()
