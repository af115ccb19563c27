"""The table at paper scale from stored rows: scores, both aggregations, differences, and what explains them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from synthetic_rows import MADE_BY, answers, evaluation, questions

from harness.benchmarks import BENCHMARKS, benchmark_named
from harness.errors import UserError
from harness.layout import NONE
from harness.paper import published as comparing
from harness.paper import table
from harness.paper.models import Published, load_model, model_names
from harness.paper.rows import COUNTED, ITS_OWN, is_counted, keep, read_all
from harness.reports.published import read_published
from harness.rows import Row, make_row, tag_samples

RESULTS = Path(__file__).parents[1] / "results"
SPECS = {name: load_model(name) for name in model_names()}
COST = {
    "fast_tokens": 1296,
    "slow_tokens": 5184,
    "prefill_mflop_mini": 2.0e7,
    "prefill_tflop_7b": 20.2,
    "model_tflop_7b": 148.5,
    "flop_stages": {"vision": 128.3},
}
SHAPE = {"videomme": (20, 3), "mlvu": (40, 1), "mvbench": (40, 1), "egoschema": (20, 1), "longvideobench": (20, 2)}


def record(prompts: str = "official", sampling: str = "official", **changes: Any) -> dict[str, Any]:
    """A row's field `suite` with what the comparison reads."""
    made = {"fingerprints": dict.fromkeys(SHAPE, "f" * 64), "limit": None, "prompts": prompts, "sampling": sampling}
    made |= {"precision": "bfloat16", "batch_size": 1, "processes": 1, "generated_read_slow": False}
    return {**made, "decoder": dict.fromkeys(SHAPE, "pyav 15.1.0 (FFmpeg 7.1.1)"), **changes}


def made_row(
    name: str, shape: dict = SHAPE, share: float = 0.6, damage: Any = None, cost: dict = COST, **suite: Any
) -> tuple[Row, pd.DataFrame]:
    """A stored row of a model in conf/model, its questions answered right at about `share`."""
    samples = answers(questions(shape), share, seed=sum(map(ord, name)))
    samples = samples if damage is None else damage(samples)
    described = record(**suite)
    ways = (described["prompts"], described["sampling"])
    row = make_row(
        evaluation(samples),
        table="paper_external" if ITS_OWN in ways else f"paper_{ways[0]}_{ways[1]}",
        scale="paper",
        architecture=name,
        frames=SPECS[name].frames,
        base_seed=0,
        seed=0,
        content_hash=f"{name}-{described['prompts']}",
        suite_fingerprint="f" * 64,
        suite=described,
        sampling="a formula",
        cost=cost,
        disclosures=["FLOPs: counted for the checkpoint's own sizes."],
        made_by=MADE_BY,
    )
    return row, tag_samples(row, samples)


def stored(tmp_path: Path, *made: tuple[Row, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    for each in made:
        keep(tmp_path, [each])
    return read_all(tmp_path, 0)


def written(tmp_path: Path, rows: pd.DataFrame, samples: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table and what was printed of it."""
    console = Console(file=io.StringIO(), width=table.WIDTH)
    made = table.write_table(rows, samples, read_published(RESULTS), SPECS, tmp_path, console)
    return made, console.file.getvalue()


def line_of(made: pd.DataFrame, model: str, benchmark: str, aggregation: str) -> pd.Series:
    found = made[made["model"].eq(model) & made["benchmark"].eq(benchmark) & made["aggregation"].eq(aggregation)]
    assert len(found) == 1
    return found.iloc[0]


# ------------------------------------------------------------------------------------------------------ scores


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, str]:
    """Rows and samples of a released and of an external model, their table, and what was printed."""
    folder = tmp_path_factory.mktemp("results")
    external = made_row("qwen2_5_vl", cost=dict.fromkeys(COUNTED), prompts=ITS_OWN, sampling=ITS_OWN, precision=None)
    rows, samples = stored(folder, made_row("released_64"), external)
    return rows, samples, *written(folder, rows, samples)


def test_mlvu_is_scored_by_categories_and_by_questions(usual: tuple) -> None:
    _, samples, made, _ = usual
    own = samples[samples["architecture"].eq("released_64") & samples["benchmark"].eq("mlvu")]
    shares = [group["correct"].mean() for _, group in own.groupby("category")]
    assert line_of(made, "released_64", "mlvu", "categories")["measured"] == pytest.approx(100 * sum(shares) / 7)
    assert line_of(made, "released_64", "mlvu", "samples")["measured"] == pytest.approx(100 * own["correct"].mean())


def test_a_published_score_stands_beside_its_own_aggregation(usual: tuple) -> None:
    """The README's 67.3 is a mean over questions, Mavors' 60.4 one over categories."""
    _, _, made, _ = usual
    by_question, by_category = (line_of(made, "released_64", "mlvu", each) for each in ("samples", "categories"))
    assert (by_question["published"], by_category["published"]) == (67.3, 60.4)
    assert by_question["difference"] == pytest.approx(by_question["measured"] - 67.3)
    assert by_question["difference_lo"] == pytest.approx(by_question["measured_lo"] - 67.3)
    assert by_question["difference_hi"] == pytest.approx(by_question["measured_hi"] - 67.3)
    assert "frames: not stated" in by_category["not_known"]
    assert "frames" not in by_question["not_known"]
    assert line_of(made, "released_64", "videomme", "samples")["published"] == 60.2
    assert line_of(made, "released_64", "mvbench", "categories")["published"] == 68.9


def test_intervals_are_those_of_draws_of_videos(usual: tuple) -> None:
    """Against a plain loop: questions of one video stand or fall together."""
    _, samples, made, _ = usual
    own = samples[samples["architecture"].eq("released_64") & samples["benchmark"].eq("videomme")]
    by_video = [group["correct"].to_numpy(float) for _, group in own.groupby("video")]
    random = np.random.default_rng(1)
    draws = [
        100 * np.concatenate([by_video[i] for i in random.integers(0, len(by_video), len(by_video))]).mean()
        for _ in range(4000)
    ]
    line = line_of(made, "released_64", "videomme", "samples")
    assert (line["measured_lo"], line["measured_hi"]) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1.7)


def test_the_average_is_the_fives_by_their_own_metrics(usual: tuple) -> None:
    rows, _, made, _ = usual
    line = line_of(made, "released_64", "average", "")
    assert line["measured"] == pytest.approx(rows.set_index("architecture").loc["released_64", "average"])
    assert line["measured_lo"] < line["measured"] < line["measured_hi"]


def test_measured_and_published_are_never_in_one_column(usual: tuple) -> None:
    _, _, made, _ = usual
    assert made["measured"].notna().all()
    assert made.loc[made["published"].notna(), "published_source"].str.len().gt(0).all()
    assert made["published"].notna().sum() == 8  # six of the released model's, two of Qwen2.5-VL's at 64 frames
    assert made.loc[made["published"].isna(), "difference"].isna().all()


def test_a_limited_suite_counts_missing_categories_as_nothing(tmp_path: Path) -> None:
    """As lmms-eval does: three of MLVU's seven categories, all right, are 3/7."""

    def three(samples: pd.DataFrame) -> pd.DataFrame:
        kept = samples["category"].isin(["count", "ego", "needle"])
        return samples[kept].assign(correct=True)

    row, samples = made_row("released_64", {"mlvu": (40, 1)}, limit=3)
    kept = three(samples)
    scored = row.model_copy(update={"scores": {"mlvu": 100 * 3 / 7}, "n_samples": len(kept)})
    made, printed = written(tmp_path, *stored(tmp_path, (scored, kept)))
    line = line_of(made, "released_64", "mlvu", "categories")
    assert (line["measured"], line["measured_lo"], line["measured_hi"]) == pytest.approx([100 * 3 / 7] * 3)
    assert line_of(made, "released_64", "mlvu", "samples")["measured"] == 100
    assert "average" not in set(made["benchmark"])  # the other four were not asked
    assert "NOT ALL OF THEM: limit=3" in " ".join(printed.split())


def test_a_row_that_replaces_one_of_more_benchmarks_is_told(tmp_path: Path) -> None:
    row, samples = made_row("released_64")
    asked = ["mlvu", "videomme"]
    part = row.model_copy(update={"scores": {name: row.scores[name] for name in asked}})
    assert keep(tmp_path, [(row, samples)]) == keep(tmp_path, [(row, samples)]) == []
    (told,) = keep(tmp_path, [(part, samples[samples["benchmark"].isin(asked)])])
    assert "the row released_64 was stored without egoschema, longvideobench, mvbench, which an older one had" in told
    assert keep(tmp_path, [(row, samples)]) == []


def test_samples_of_another_run_are_refused(tmp_path: Path) -> None:
    row, samples = made_row("released_64")
    rows, kept = stored(tmp_path, (row, samples))
    spoiled = kept.assign(correct=~kept["correct"])
    with pytest.raises(UserError, match="rows and samples files are of different runs"):
        written(tmp_path, rows, spoiled)


# -------------------------------------------------------------------------------------------------- differences


def test_what_differs_is_told_entry_by_entry(usual: tuple) -> None:
    _, _, made, _ = usual
    line = line_of(made, "released_64", "videomme", "samples")
    assert line["differs_in"] == "precision: bfloat16 here, published: float16"
    assert "lmms-eval: 0.7.3 here, published: not known" in line["not_known"]
    assert "questions: 60 of 2,700 here, published: not known" in line["not_known"]


def test_prompts_differ_only_where_the_official_ones_are_others(tmp_path: Path) -> None:
    rows, samples = stored(tmp_path, made_row("released_64", prompts="lmms_eval", sampling="uniform"))
    made, _ = written(tmp_path, rows, samples)
    of_mlvu = line_of(made, "released_64", "mlvu", "samples")["differs_in"]
    of_videomme = line_of(made, "released_64", "videomme", "samples")["differs_in"]
    assert "prompts: as packaged here, published: official" in of_mlvu
    assert "prompts" not in of_videomme
    for line in (of_mlvu, of_videomme):
        assert "sampling: uniform here, published: official" in line
        assert "answer tokens: as each task has it here, published: 256" in line


def test_generated_tokens_that_read_slow_tokens_are_a_difference(tmp_path: Path) -> None:
    rows, samples = stored(tmp_path, made_row("released_64", generated_read_slow=True))
    made, _ = written(tmp_path, rows, samples)
    line = line_of(made, "released_64", "egoschema", "samples")
    assert "generated tokens: read slow tokens here, published: do not read slow tokens" in line["differs_in"]


def test_what_a_benchmark_has_besides_and_who_judged_it_is_told() -> None:
    described = record(judge={"activitynetqa": "some-model at judge.example"})
    described["decoder"] |= dict.fromkeys(("tempcompass", "activitynetqa"), "pyav 15.1.0")
    row = pd.Series({"frames": 64, "suite": described, "versions": {"lmms-eval": "0.7.3"}})
    published, spec, told = read_published(RESULTS), SPECS["released_64"], {}
    for name in ("tempcompass", "activitynetqa", "videomme"):
        (found,) = comparing.find_published(published, spec, row, name, "samples", 9, False)
        told[name] = [sentence for sentence in found.unknown if sentence.startswith(("tasks", "judge"))]
    assert told == {
        "tempcompass": ["tasks: its multiple choice, one of four here, published: not known"],
        "activitynetqa": ["judge: some-model at judge.example here, published: not known"],
        "videomme": [],
    }


def test_published_numbers_at_other_frames_are_not_compared() -> None:
    published, spec = read_published(RESULTS), SPECS["qwen2_5_vl"]
    row = pd.Series({"frames": 64, "suite": record(), "versions": {"lmms-eval": "0.7.3"}})
    found = comparing.find_published(published, spec, row, "mlvu", "categories", 40, True)
    assert [each.score for each in found] == [63.6]
    assert "aggregation: not stated" in found[0].unknown
    other = comparing.find_published(published, spec, row.replace(64, 48), "mlvu", "categories", 40, True)
    assert other == []


def test_an_entry_counts_as_known_only_if_the_yaml_says_so() -> None:
    benchmark = benchmark_named("videomme")
    ours = {"prompts": "as packaged", "sampling": "uniform", "generated tokens": ""}
    differs, unknown = comparing.differences(ours, Published(model="m", made_with={"sampling": "official"}), benchmark)
    assert differs == ("sampling: uniform here, published: official",)
    assert unknown == ("prompts: as packaged here, published: not known",)


@pytest.mark.parametrize(
    ("metric", "aggregation"),
    [
        ("accuracy %: mean over samples", "samples"),
        ("accuracy %: mean over 7 categories", "categories"),
        ("accuracy %", None),
    ],
    ids=["samples", "categories", "none"],
)
def test_a_metric_says_what_it_is_a_mean_over(metric: str, aggregation: str | None) -> None:
    assert comparing.aggregation_of(metric) == aggregation


def test_letters_go_on_after_z() -> None:
    marks = comparing.lettered([[f"sentence {i}" for i in range(28)], ["sentence 3"]])
    assert [marks[f"sentence {i}"] for i in (0, 3, 25, 26, 27)] == ["a", "d", "z", "aa", "ab"]


# ------------------------------------------------------------------------------------------------ how it is shown


def test_the_printed_table_fits_its_width_and_shows_what_is_not_counted(usual: tuple) -> None:
    rows, _, _, printed = usual
    assert max(map(len, printed.splitlines())) <= table.WIDTH
    assert "…" not in printed  # nothing was cut
    assert [is_counted(row) for _, row in rows.iterrows()] == [False, True]
    (costs,) = table.cost_blocks(rows)
    assert [cells[2:] for cells in costs.rows] == [[NONE] * 4, ["1,296", "5,184", "20.20", "148.5"]]
    assert "precision: bfloat16 here, published: float16" in printed
    assert "by category" in printed


def test_failures_are_marked_counted_and_named(tmp_path: Path) -> None:
    def damage(samples: pd.DataFrame) -> pd.DataFrame:
        broken = samples["video"].eq("videomme/003.mp4")
        return samples.assign(
            correct=samples["correct"] & ~broken, failure=np.where(broken, "unreadable", None), prediction="B"
        )

    made, printed = written(tmp_path, *stored(tmp_path, made_row("released_64", damage=damage)))
    line = line_of(made, "released_64", "videomme", "samples")
    assert (line["failures"], line["questions"]) == (3, 60)
    assert "released_64†" in printed
    assert "3 answers failed (unreadable), counted as wrong: videomme/003.mp4." in " ".join(printed.split())


def test_the_same_rows_give_the_same_files(usual: tuple, tmp_path: Path) -> None:
    rows, samples, made, _ = usual
    written(tmp_path / "a", rows, samples)
    written(tmp_path / "b", rows, samples)
    for name in ("paper.csv", "paper.md"):
        assert (tmp_path / "a" / "tables" / name).read_bytes() == (tmp_path / "b" / "tables" / name).read_bytes()
    read = pd.read_csv(tmp_path / "a" / "tables" / "paper.csv")
    assert list(read.columns) == list(table.COLUMNS)
    assert len(read) == len(made)


# -------------------------------------------------------------------------------------------------- their files


def test_a_models_new_row_replaces_its_old_one_and_no_other(tmp_path: Path) -> None:
    first, other = made_row("released_64", share=0.4), made_row("released_96", share=0.5)
    again, packaged = made_row("released_64", share=0.7), made_row("released_64", share=0.3, prompts="lmms_eval")
    rows, samples = stored(tmp_path, first, other, again, packaged)
    assert list(zip(rows["table"], rows["architecture"], strict=True)) == [
        ("paper_lmms_eval_official", "released_64"),
        ("paper_official_official", "released_64"),
        ("paper_official_official", "released_96"),
    ]
    assert rows["average"].tolist() == pytest.approx([each[0].average for each in (packaged, again, other)])
    assert len(samples) == 3 * sum(videos * asked for videos, asked in SHAPE.values())
    of_again = samples[samples["table"].eq(again[0].table) & samples["architecture"].eq("released_64")]
    assert of_again["correct"].sum() == again[1]["correct"].sum()
    assert len(written(tmp_path, rows, samples)[0].drop_duplicates(["model", "prompts"])) == 3


def test_without_rows_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows of paper scale"):
        read_all(tmp_path, 0)


def test_every_one_of_the_five_has_a_published_column_of_its_name() -> None:
    published = read_published(RESULTS)
    ours = published[published["model"].eq(SPECS["released_64"].published[0].model)]
    assert {benchmark.title for benchmark in BENCHMARKS.values()} <= set(ours["benchmark"])
    assert {"Video-MME with subtitles", "PerceptionTest", "NExT-QA", "TempCompass"} <= set(ours["benchmark"])
