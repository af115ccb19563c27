"""How often intervals hold the truth and tests reject it: on imagined suites, and on the main table's answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_rows import table_run

from harness import simulation, statistics
from harness.rows import read_samples
from harness.simulation import WORLDS, World, aa_rejections, coverage

ROWS = Path(__file__).parents[1] / "results" / "rows"
FAR = ["differences like the videos' error", "large differences", "large differences, 5 seeds"]


@pytest.mark.parametrize("name", [name for name in WORLDS if name not in FAR])
def test_intervals_hold_the_truth_as_often_as_they_say(name):
    found = coverage(WORLDS[name], suites=1500, draws=400)
    assert found.spread < 1
    assert 0.93 <= found.score <= 0.97
    assert 0.93 <= found.difference <= 0.97


def test_two_base_seeds_that_differ_much_are_too_few_and_by_how_much_is_known():
    two, five = (coverage(WORLDS[name], suites=500, draws=400) for name in FAR[1:])
    assert two.spread > 5
    for held in (two.score, two.difference):
        assert 0.5 <= held <= 0.7
    for held in (five.score, five.difference):
        assert 0.8 <= held <= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WORLDS))
def test_coverage_on_many_suites(name):
    found = coverage(WORLDS[name], suites=4000, draws=500, seed=1)
    expected = dict(zip(FAR, [(0.80, 0.93), (0.5, 0.7), (0.8, 0.93)], strict=True)).get(name, (0.93, 0.97))
    for held in (found.score, found.difference):
        assert expected[0] <= held <= expected[1]


def test_imagined_suites_have_the_truth_that_is_said_and_questions_that_hang_together():
    world = replace(World(), seed=0.2, luck=0.1)
    counts = simulation.imagine(world, 60, np.random.default_rng(0))
    estimate_KSN, _ = statistics.draw_videos(counts, 1, 0)
    averages_KRL = estimate_KSN[..., -1].reshape(2, 60, 2)
    error = averages_KRL.mean(0).std(0) / np.sqrt(60)
    assert (np.abs(averages_KRL.mean((0, 1)) - simulation.true_averages(world)) < 4 * error).all()
    seeds_apart = (averages_KRL[0] - averages_KRL[1])[:, 0].std() / np.sqrt(2)
    assert seeds_apart == pytest.approx(simulation.spread(world), rel=0.3)
    right_VS = counts["videomme"].right_VCKS[:, 0, 0]  # of three questions, by 120 lines
    share = right_VS.mean() / 3
    assert right_VS.var(0).mean() > 1.1 * 3 * share * (1 - share)  # more than independent answers would vary


def test_a_variant_differs_from_itself_in_one_of_twenty_splits():
    samples = read_samples(ROWS / "main_mini_seed0.samples.parquet")
    chosen = samples[samples["architecture"].eq("slow_fast") & samples["frames"].eq(128)]
    assert 0.03 <= aa_rejections(chosen, draws=1000) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_variant_of_the_main_table_differs_from_itself(seed):
    samples = read_samples(ROWS / f"main_mini_seed{seed}.samples.parquet")
    for _, chosen in samples.groupby(statistics.SETTING):
        assert 0.03 <= aa_rejections(chosen, draws=1000) <= 0.07


def test_a_split_halves_the_videos_and_pairs_those_that_were_asked_alike():
    _, samples = table_run(settings={("slow_fast", 128): (0.6, 64, 512, 1, 1, 1, 1, 1)})
    answers = statistics.answers_of(samples, statistics.SETTING)
    counts = answers.counts(simulation.CATEGORY_MEANS)
    for name, one in counts.items():
        groups = simulation._partners(answers, name)
        assert sorted(np.concatenate(groups)) == list(range(len(one.asked_VC)))
        assert all((one.asked_VC[group] == one.asked_VC[group[0]]).all() for group in groups)
        halves = simulation.split(one, groups, 3, np.random.default_rng(0))
        whole = [group for group in groups if len(group) % 2 == 0]
        assert halves.asked_VC.sum() == sum(one.asked_VC[group[: len(group) // 2]].sum() for group in groups)
        if len(whole) == len(groups):
            both_K = halves.right_VCKS.reshape(*halves.right_VCKS.shape[:3], 3, 2).sum((0, 1, 4))
            assert (both_K == one.right_VCKS.sum((0, 1))).all()


def test_a_variant_that_is_better_is_told_apart():
    world = replace(World(), ease=(0.9, 0.6))
    _, samples = table_run(settings={("slow_fast", 128): (0.6, 64, 512, 1, 1, 1, 1, 1)})
    easier = samples["video"].str.extract(r"(\d+)\.mp4", expand=False).astype(int) % 2 == 0
    assert (
        aa_rejections(samples.assign(correct=samples["correct"] | easier), draws=100) < 0.12
    )  # halves hold both kinds
    counts = simulation.imagine(world, 100, np.random.default_rng(1))
    estimate_KXL, videos_KBXL, weight_BK = simulation._drawn(counts, 300, np.random.default_rng(1))
    draws_BX = statistics.with_seeds(estimate_KXL @ [1, -1], videos_KBXL @ [1, -1], weight_BK)
    assert np.mean(statistics.p_values(draws_BX) < 0.05) > 0.9
    assert (draws_BX.mean(0) > 0).mean() > 0.95
