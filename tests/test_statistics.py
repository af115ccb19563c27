"""Intervals and tests against closed forms, and their coverage by simulation."""

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import CATEGORY_MEANS, evaluation, questions, table_run

from harness import statistics
from harness.errors import UserError

ONE = ("slow_fast", 128, "none")
OTHER = ("compressor_only", 128, "none")


def samples_of(correct, video=None, category="", setting=ONE, base_seed=0, benchmark="egoschema") -> pd.DataFrame:
    """One benchmark's samples from a vector of right and wrong; by default a video for each question."""
    correct = np.asarray(correct, bool)
    architecture, frames, control = setting
    return pd.DataFrame(
        {
            "architecture": architecture,
            "frames": frames,
            "control": control,
            "base_seed": base_seed,
            "benchmark": benchmark,
            "task": benchmark,
            "doc_id": np.arange(len(correct)),
            "video": np.arange(len(correct)).astype(str) if video is None else np.asarray(video).astype(str),
            "category": category,
            "n_options": 4,
            "correct": correct,
        }
    )


def standard_error(samples: pd.DataFrame, category_means=()) -> float:
    scores = statistics.resample(samples, category_means, draws=4000)
    return scores.draws_BSN[:, 0, 0].std()


def test_one_question_per_video_is_the_binomial_standard_error():
    correct = np.arange(200) < 60
    assert standard_error(samples_of(correct)) == pytest.approx(100 * np.sqrt(0.3 * 0.7 / 200), rel=0.04)


def test_questions_that_stand_and_fall_with_their_video_count_once():
    correct = np.repeat(np.arange(100) < 30, 4)
    video = np.repeat(np.arange(100), 4)
    per_video, per_question = 100 * np.sqrt(0.21 / 100), 100 * np.sqrt(0.21 / 400)
    assert standard_error(samples_of(correct, video)) == pytest.approx(per_video, rel=0.04)
    assert standard_error(samples_of(correct)) == pytest.approx(per_question, rel=0.04)


def test_a_category_mean_weighs_small_categories_up():
    # 20 questions at 50 % and 180 at 90 %: variance of the mean of two independent means
    correct = np.r_[np.arange(20) < 10, np.arange(180) < 162]
    category = np.r_[["few"] * 20, ["many"] * 180]
    samples = samples_of(correct, category=category, benchmark="mlvu")
    by_category = statistics.resample(samples, ["mlvu"], draws=4000)
    assert by_category.estimate_SN[0, 0] == pytest.approx(70)
    expected = 100 * np.sqrt(0.25 * (0.25 / 20 + 0.09 / 180))
    assert by_category.draws_BSN.std() == pytest.approx(expected, rel=0.06)
    assert statistics.resample(samples, []).estimate_SN[0, 0] == pytest.approx(86)


def test_the_average_is_over_benchmarks_and_its_errors_are_independent():
    samples = pd.concat(
        [
            samples_of(np.arange(100) < 50, benchmark="egoschema"),
            samples_of(np.arange(400) < 80, benchmark="mlvu"),
        ]
    )
    scores = statistics.resample(samples, [], draws=4000)
    assert scores.benchmarks == ["egoschema", "mlvu", "average"]
    assert scores.estimate_SN[0] == pytest.approx([50, 20, 35])
    expected = 50 * np.sqrt(0.25 / 100 + 0.16 / 400)
    assert scores.draws_BSN[:, 0, -1].std() == pytest.approx(expected, rel=0.05)


def test_base_seeds_are_averaged_per_question_not_counted_as_further_questions():
    correct = np.arange(200) < 60
    twice = pd.concat([samples_of(correct, base_seed=0), samples_of(correct, base_seed=1)])
    assert standard_error(twice) == pytest.approx(standard_error(samples_of(correct)))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    truth, covered, runs = 0.6, 0, 200
    for run in range(runs):
        share = random.beta(3, 2, 80)  # videos differ in difficulty: mean 0.6
        correct = random.random((80, 3)) < share[:, None]
        scores = statistics.resample(samples_of(correct.ravel(), np.repeat(np.arange(80), 3)), [], draws=400, seed=run)
        found = statistics.bootstrap(scores).iloc[0]
        covered += found["lo"] <= 100 * truth <= found["hi"]
    assert 0.90 <= covered / runs <= 0.99


def test_a_difference_is_first_minus_second_and_tighter_than_its_parts():
    random = np.random.default_rng(1)
    hard = random.random(400)
    first, second = samples_of(hard < 0.8), samples_of(hard < 0.7, setting=OTHER)
    scores = statistics.resample(pd.concat([first, second]), [])
    found = statistics.paired(scores, ONE, OTHER).set_index("benchmark").loc["average"]
    gained = np.mean((hard >= 0.7) & (hard < 0.8))
    assert found["difference"] == pytest.approx(100 * gained)
    half = 1.96 * 100 * np.sqrt(gained * (1 - gained) / 400)  # discordant pairs go one way only
    assert (found["hi"] - found["lo"]) / 2 == pytest.approx(half, rel=0.08)
    assert 0 < found["lo"] < found["difference"] < found["hi"]
    mirrored = statistics.paired(scores, OTHER, ONE).set_index("benchmark").loc["average"]
    assert mirrored["difference"] == -found["difference"]
    assert mirrored["hi"] == -found["lo"]


def test_equal_answers_differ_by_nothing():
    correct = np.arange(50) % 3 == 0
    scores = statistics.resample(pd.concat([samples_of(correct), samples_of(correct, setting=OTHER)]), [])
    assert (statistics.paired(scores, ONE, OTHER)[["difference", "lo", "hi"]] == 0).all(axis=None)


def test_mcnemar_is_the_exact_binomial_test_on_discordant_pairs():
    assert statistics.exact_mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert statistics.exact_mcnemar(2, 8) == statistics.exact_mcnemar(8, 2)
    assert statistics.exact_mcnemar(0, 0) == 1
    first = samples_of([1, 1, 1, 1, 1, 0, 0, 1])
    second = samples_of([0, 0, 0, 0, 0, 1, 0, 1], setting=OTHER)
    found = statistics.mcnemar(pd.concat([first, second]), ONE, OTHER).iloc[0]
    assert (found["first_only"], found["second_only"]) == (5, 1)
    assert found["p"] == pytest.approx(2 * (1 + 6) / 2**6)


def test_scores_equal_the_evaluators_own_on_a_whole_run():
    rows, samples = table_run()
    scores = statistics.resample(samples, CATEGORY_MEANS, draws=10)
    for s, (architecture, frames, _) in enumerate(scores.settings):
        mine = dict(zip(scores.benchmarks, scores.estimate_SN[s], strict=True))
        chosen = rows[(rows["architecture"] == architecture) & (rows["frames"] == frames)]
        theirs = pd.DataFrame(chosen["scores"].tolist()).mean()
        assert {name: mine[name] for name in theirs.index} == pytest.approx(theirs.to_dict())


def test_adding_a_benchmark_moves_no_other_interval():
    _, samples = table_run(base_seeds=(0,))
    fewer = samples[samples["benchmark"] != "mlvu"]
    whole = statistics.bootstrap(statistics.resample(samples, CATEGORY_MEANS, draws=500))
    part = statistics.bootstrap(statistics.resample(fewer, CATEGORY_MEANS, draws=500))
    shared = whole[whole["benchmark"].isin(["videomme", "egoschema"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        shared, part[part["benchmark"].isin(["videomme", "egoschema"])].reset_index(drop=True)
    )


def test_a_category_that_a_draw_leaves_out_is_left_out_of_its_mean():
    samples = samples_of([1, 0, 0, 0], category=["lone", "rest", "rest", "rest"], benchmark="mlvu")
    draws = statistics.resample(samples, ["mlvu"], draws=500).draws_BSN
    assert np.isfinite(draws).all()
    assert (draws.min(), draws.max()) == (0, 100)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda table: table.iloc[:-1], "not asked the same questions"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "answered twice"),
        (lambda table: table[~((table["frames"] == 16) & (table["base_seed"] == 1))], "number of base seeds"),
        (
            lambda table: table.assign(doc_id=table["doc_id"] + table["base_seed"]),
            "not asked the same questions",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(spoil, sentence):
    _, samples = table_run(shape={"egoschema": (20, 1)})
    with pytest.raises(UserError, match=sentence):
        statistics.resample(spoil(samples), CATEGORY_MEANS, draws=10)


def test_a_setting_without_samples_is_named():
    scores = statistics.resample(samples_of([1, 0]), [], draws=10)
    with pytest.raises(UserError, match=r"no samples of .*compressor_only.*there are .*slow_fast"):
        statistics.paired(scores, ONE, OTHER)


def test_the_imagined_suite_has_the_shape_of_a_real_one():
    asked = questions()
    assert (len(asked), asked["video"].nunique()) == (1198, 799)
    assert set(evaluation(asked.assign(correct=True)).scores.values()) == {100.0}
