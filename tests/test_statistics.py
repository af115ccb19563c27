"""Intervals and tests against closed forms, plain loops and statsmodels."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from statsmodels.regression.linear_model import OLS
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
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


def test_the_clustered_error_is_that_of_a_cluster_robust_regression():
    random = np.random.default_rng(4)
    asked = random.integers(1, 4, 150)  # videos of one to three questions
    video = np.repeat(np.arange(150), asked)
    correct = random.random(len(video)) < np.repeat(random.beta(2, 2, 150), asked)
    per_video = pd.Series(correct - correct.mean()).groupby(video).sum()
    closed_form = 100 * np.sqrt((per_video**2).sum()) / len(video)  # of a ratio of sums over videos
    fit = OLS(correct.astype(float), np.ones(len(video))).fit(
        cov_type="cluster", cov_kwds={"groups": video, "use_correction": False}
    )
    assert closed_form == pytest.approx(100 * fit.bse[0])
    assert standard_error(samples_of(correct, video)) == pytest.approx(closed_form, rel=0.04)


# ------------------------------------------------------------------------------------------- base seeds


def seeds_apart(*scores: int, setting=ONE, n=100) -> pd.DataFrame:
    """Base seeds that answer all questions right or all wrong: nothing but seeds varies."""
    return pd.concat([samples_of([score == 100] * n, base_seed=s, setting=setting) for s, score in enumerate(scores)])


@pytest.mark.parametrize("scores", [(100, 0), (100, 0, 0), (100, 100, 0, 0, 0)], ids=str)
def test_base_seeds_give_the_error_of_a_mean_of_n(scores):
    expected = np.std(scores, ddof=1) / np.sqrt(len(scores))  # n of n draws would make it sqrt((n - 1) / n) of this
    assert standard_error(seeds_apart(*scores)) == pytest.approx(expected, rel=0.03)


def test_base_seeds_can_be_held_fixed_and_one_always_is():
    samples = seeds_apart(100, 0)
    assert statistics.resample(samples, [], draws=200, seeds=False).draws_BSN.std() == 0
    correct = np.arange(200) < 60
    for seeds in (True, False):
        scores = statistics.resample(samples_of(correct), [], draws=4000, seeds=seeds)
        assert scores.draws_BSN[:, 0, 0].std() == pytest.approx(100 * np.sqrt(0.21 / 200), rel=0.04)


def test_a_base_seeds_effect_that_both_lines_share_is_not_in_their_difference():
    samples = pd.concat([seeds_apart(100, 0), seeds_apart(100, 0, setting=OTHER)])
    assert (statistics.resample(samples, [], draws=200).difference_BN(ONE, OTHER) == 0).all()
    crossed = pd.concat([seeds_apart(100, 0), seeds_apart(0, 100, setting=OTHER)])
    found = statistics.paired(statistics.resample(crossed, [], draws=2000), ONE, OTHER).set_index("benchmark")
    assert found.loc["average", "se"] == pytest.approx(100, rel=0.03)  # +100 and -100, one drawn


def test_what_base_seeds_differ_by_chance_is_counted_once():
    random = np.random.default_rng(2)
    first, second = random.random((2, 400)) < 0.5  # independent answers of two equal seeds: their mean has n = 800
    second[:] = np.r_[second[first.sum() :], second[: first.sum()]]
    samples = pd.concat([samples_of(first), samples_of(second, base_seed=1)])
    assert abs(first.mean() - second.mean()) < 0.05, "no more than chance"
    assert standard_error(samples) == pytest.approx(100 * np.sqrt(0.25 / 800), rel=0.06)


def test_seeds_move_the_draws_as_a_plain_loop_moves_them():
    random = np.random.default_rng(3)
    estimate_KX, videos_KBX = random.normal(50, 5, (3, 2)), random.normal(50, 1, (3, 300, 2))
    weight_BK = statistics.draw_seeds(3, 300, seed=1)
    assert set(np.unique(weight_BK)) == {0, 0.5, 1}
    assert weight_BK.sum(1) == pytest.approx(np.ones(300))
    drawn_BX = statistics.with_seeds(estimate_KX, videos_KBX, weight_BK)
    for x in range(2):
        deviation = [estimate - np.mean(estimate_KX[:, x]) for estimate in estimate_KX[:, x]]
        variances = [np.var(videos_KBX[k, :, x] - videos_KBX[:, :, x].mean(0)) for k in range(3)]
        beyond = 1 - (sum(variances) / 2) / (sum(d * d for d in deviation) / 2)
        assert beyond > 0
        for draw in range(0, 300, 50):
            moved = sum(weight_BK[draw, k] * deviation[k] * beyond**0.5 for k in range(3))
            assert drawn_BX[draw, x] == pytest.approx(videos_KBX[:, draw, x].mean() + moved)


# ------------------------------------------------------------------------------------------- comparisons


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


def test_mcnemar_is_that_of_statsmodels():
    for first_only, second_only in [(8, 2), (3, 3), (25, 11), (0, 6)]:
        theirs = contingency_tables.mcnemar([[20, first_only], [second_only, 5]], exact=True)
        assert statistics.exact_mcnemar(first_only, second_only) == pytest.approx(theirs.pvalue)


def test_holm_is_that_of_statsmodels():
    random = np.random.default_rng(0)
    for p in ([0.01, 0.04, 0.03], [0.5, 0.5, 0.2], [0.04], random.random(20) ** 3, []):
        theirs = multipletests(p, method="holm")[1] if len(p) else []
        assert statistics.holm(p) == pytest.approx(np.asarray(theirs))


def test_p_agrees_with_the_interval_and_with_the_normal_test():
    random = np.random.default_rng(5)
    draws_BX = random.normal(1, [0.3, 0.5, 0.52, 1, 10], (20_000, 5))
    p_X, (lo_X, hi_X) = statistics.p_values(draws_BX), statistics.interval(draws_BX)
    assert p_X == pytest.approx(2 * norm.sf(1 / np.array([0.3, 0.5, 0.52, 1, 10])), rel=0.1, abs=2e-3)
    assert ((p_X < 0.05) == ((lo_X > 0) | (hi_X < 0))).all()
    assert statistics.p_values(-draws_BX) == pytest.approx(p_X)
    assert statistics.p_values(np.zeros((99, 1)))[0] == 1
    assert statistics.p_values(np.ones((99, 1)))[0] == pytest.approx(2 / 100)


def test_the_detectable_difference_is_found_four_times_in_five():
    se = 1.7
    found = np.random.default_rng(6).normal(statistics.detectable(se), se, 20_000)
    assert np.mean(np.abs(found) > norm.ppf(0.975) * se) == pytest.approx(0.8, abs=0.01)
    assert statistics.detectable(1) == pytest.approx(2.80, abs=0.005)


def test_a_grids_cells_are_compared_with_one_and_corrected_together():
    _, samples = table_run(shape={"egoschema": (90, 1), "mlvu": (60, 2)})
    cells = samples["architecture"] + "@" + samples["frames"].astype(str)
    scores = statistics.resample(samples.assign(cell=cells), CATEGORY_MEANS, draws=1000, by=["cell"])
    assert scores.settings[:2] == [("self_attention@16",), ("self_attention@32",)]  # in the samples' order
    reference, others = scores.settings[-2], scores.settings[:-2]
    found = statistics.compare(scores, [(other, reference) for other in others])
    assert list(found) == list(statistics.COMPARED)
    assert found["first"].tolist() == others
    assert found["p_holm"].tolist() == pytest.approx(multipletests(found["p"], method="holm")[1])
    for line in found.itertuples():
        alone = statistics.paired(scores, line.first, reference).set_index("benchmark").loc["average"]
        assert (line.difference, line.lo, line.hi, line.p) == tuple(alone[["difference", "lo", "hi", "p"]])
        tests = statistics.mcnemar(samples.assign(cell=cells), line.first, reference, by=["cell"])
        assert (line.first_only, line.p_mcnemar) == (tests["first_only"].sum(), tests["p"].max())
        assert line.detectable == pytest.approx(statistics.detectable(line.se))
    assert found["difference"].iloc[0] < 0  # 16 frames of self-attention against 128 of slow-fast
    assert len(statistics.compare(scores, [])) == 0
    each = statistics.compare(scores, [(others[0], reference)], benchmarks=["egoschema", "mlvu"]).set_index("benchmark")
    whole = found.iloc[0]
    assert each["first_only"].sum() == whole["first_only"]
    assert each["difference"].mean() == pytest.approx(whole["difference"])


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
        (lambda table: table[~((table["frames"] == 16) & (table["base_seed"] == 1))], "differ in their base seeds"),
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
