"""What the intervals and tests are worth: how often they hold, on imagined suites and on the answers of real rows.

    python -m harness.simulation [ROWS.samples.parquet]     prints both

`coverage` imagines suites of the mini suite's shape whose true scores are known. `aa_rejections` splits the videos of
real answers in two, compares a variant with itself from half to half, and counts how often it "differs".

Letters in array names: R imagined suites or splits, L the two lines of each, V videos, A questions of a video; the
others as in `harness.statistics`.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from harness import statistics
from harness.benchmarks import BENCHMARKS
from harness.rows import read_samples
from harness.statistics import LEVEL, SETTING, Answers, Counts

AT_ONCE = 100  # suites or splits that share the draws of videos: more would not fit into memory
CATEGORY_MEANS = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.aggregation == "categories")
MINI = {"videomme": (80, 3), "mlvu": (119, 2), "mvbench": (240, 1), "egoschema": (240, 1), "longvideobench": (120, 2)}
"""Videos, and questions of each, in the mini suite."""


@dataclass(frozen=True)
class World:
    """Imagined answers: right where a sum of normal terms is above 0, so that true scores have a closed form.

    Attributes:
        ease: of the two lines, on the scale of the terms.
        video, question, category: standard deviations of what both lines and all base seeds share.
        seed: of what both lines share of a base seed; luck: of a line's own share of it.
            A term of standard deviation 1 is drawn for every answer.
    """

    ease: tuple[float, float] = (0.9, 0.5)
    video: float = 0.5
    question: float = 0.8
    category: float = 0.3
    seed: float = 0.02
    luck: float = 0.02
    base_seeds: int = 2


@dataclass(frozen=True)
class Coverage:
    """Share of imagined suites whose interval held the truth: of a score, and of a paired difference.

    Both are averages of the five benchmarks. `spread`: standard deviation, among base seeds, of a line's true average
    in percentage points.
    """

    score: float
    difference: float
    spread: float


def coverage(world: World, suites: int = 400, draws: int = 400, seed: int = 0, level: float = LEVEL) -> Coverage:
    """How often the interval of the first line's score, and of its paired difference to the second, holds the truth."""
    random = np.random.default_rng(seed)
    first, second = true_averages(world)
    held = []
    for number in _portions(suites):
        estimate_KRL, videos_KBRL, weight_BK = _drawn(imagine(world, number, random), draws, random)
        lines = ([1, 0], first), ([1, -1], first - second)
        held.append([_holds(estimate_KRL @ c, videos_KBRL @ c, weight_BK, truth, level) for c, truth in lines])
    score, difference = np.concatenate(held, axis=1).mean(1)
    return Coverage(float(score), float(difference), spread(world))


def aa_rejections(samples: pd.DataFrame, draws: int = 500, seed: int = 0, resamples: int = 1000) -> float:
    """Share of `draws` splits in which a variant is found, at 5%, to differ from itself: it should be 0.05.

    A split halves each benchmark's videos at random and pairs them across the halves, each with one of as many
    questions in the same categories; the halves are then compared as two variants that answered the same questions,
    base seeds drawn too. Videos without a partner are left out.

    samples: columns as in rows.SAMPLE_COLUMNS; each of its settings is split, the share is over all of them.
    """
    random = np.random.default_rng(seed)
    answers = statistics.answers_of(samples, SETTING)
    counts = answers.counts(CATEGORY_MEANS)
    rejected = []
    for number in _portions(draws):
        halves = {name: split(one, _partners(answers, name), number, random) for name, one in counts.items()}
        estimate_KXL, videos_KBXL, weight_BK = _drawn(halves, resamples, random)
        draws_BX = statistics.with_seeds(estimate_KXL @ [1, -1], videos_KBXL @ [1, -1], weight_BK)
        rejected.append(statistics.p_values(draws_BX) < 1 - LEVEL)
    return float(np.concatenate(rejected).mean())


# ------------------------------------------------------------------------------------------- imagined suites


def imagine(world: World, suites: int, random: np.random.Generator) -> dict[str, Counts]:
    """Right answers by benchmark; axis S holds the lines L of each suite R, R first."""
    by_seed_RK1 = random.normal(0, world.seed, (suites, world.base_seeds, 1))
    luck_RKL = by_seed_RK1 + random.normal(0, world.luck, (suites, world.base_seeds, 2))
    counts = {}
    for name in MINI:
        category_VA, effect_C = categories_of(world, name)
        shared_RVA = random.normal(0, world.video, (suites, len(category_VA), 1)) + effect_C[category_VA]
        shared_RVA = shared_RVA + random.normal(0, world.question, shared_RVA.shape)
        ease_RVAKL = shared_RVA[..., None, None] + luck_RKL[:, None, None] + np.asarray(world.ease)
        right_RVAKL = ease_RVAKL + random.standard_normal(ease_RVAKL.shape) > 0
        apart_VA = category_VA if name in CATEGORY_MEANS else np.zeros_like(category_VA)
        member_VAC = np.eye(apart_VA.max() + 1)[apart_VA]
        right_VCKRL = np.einsum("rvakl,vac->vckrl", right_RVAKL.astype(float), member_VAC, optimize=True)
        counts[name] = Counts(right_VCKRL.reshape(*right_VCKRL.shape[:3], -1), member_VAC.sum(1))
    return counts


def categories_of(world: World, name: str) -> tuple[np.ndarray, np.ndarray]:
    """category_VA of a benchmark's questions, in turn, and the categories' effect_C, spread evenly."""
    n = len(BENCHMARKS[name].categories)
    return np.arange(np.prod(MINI[name])).reshape(MINI[name]) % n, world.category * norm.ppf((np.arange(n) + 0.5) / n)


def true_averages(world: World) -> np.ndarray:
    """truth_L, percent: of videos, questions and base seeds without end."""
    scale = np.sqrt(1 + world.video**2 + world.question**2 + world.seed**2 + world.luck**2)
    return _averages(world, np.asarray(world.ease), scale)


def spread(world: World) -> float:
    """Standard deviation among base seeds of the first line's true average, percentage points: of 2001 quantiles."""
    scale = np.sqrt(1 + world.video**2 + world.question**2)
    luck = np.hypot(world.seed, world.luck) * norm.ppf((np.arange(2001) + 0.5) / 2001)
    return float(_averages(world, world.ease[0] + luck, scale).std())


def _averages(world: World, ease_X: np.ndarray, scale: float) -> np.ndarray:
    """The average of the benchmarks, percent, if terms of standard deviation `scale` are added to `ease`."""
    averages = []
    for name in MINI:
        category_VA, effect_C = categories_of(world, name)
        asked_C = np.bincount(category_VA.ravel(), minlength=len(effect_C))
        weight_C = asked_C > 0 if name in CATEGORY_MEANS else asked_C
        averages.append(np.average(100 * norm.cdf((ease_X[:, None] + effect_C) / scale), axis=1, weights=weight_C))
    return np.mean(averages, axis=0)


# ------------------------------------------------------------------------------------------- real answers, split


def split(counts: Counts, groups: list[np.ndarray], splits: int, random: np.random.Generator) -> Counts:
    """Two halves L of the videos, `splits` times, as lines that answered the same; axis S holds them, halves last.

    groups: the places of videos that can stand for each other.
    """
    halves = []
    for _ in range(splits):
        pairs = [random.permutation(group)[: len(group) // 2 * 2].reshape(2, -1) for group in groups]
        halves.append(np.concatenate(pairs, axis=1))
    halves_RLV = np.stack(halves)
    right_RLVCKS = counts.right_VCKS[halves_RLV]
    right_VCKRSL = np.transpose(right_RLVCKS, (2, 3, 4, 0, 5, 1))
    return Counts(right_VCKRSL.reshape(*right_VCKRSL.shape[:3], -1), counts.asked_VC[halves_RLV[0, 0]])


def _partners(answers: Answers, name: str) -> list[np.ndarray]:
    """Places, on axis V, of a benchmark's videos with as many questions in the same categories."""
    questions = answers.questions[answers.questions["benchmark"].eq(name)]
    kinds = questions["category"] if name in CATEGORY_MEANS else questions["benchmark"]
    asked = kinds.groupby(questions["video"], sort=True).agg(lambda each: "|".join(sorted(each)))
    return [np.flatnonzero(asked.eq(kind)) for kind in asked.unique()]


# ------------------------------------------------------------------------------------------- both


def _drawn(
    counts: dict[str, Counts], draws: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """estimate_KXL and videos_KBXL of the average of the benchmarks, and weight_BK."""
    estimate_KSN, videos_KBSN = statistics.draw_videos(counts, draws, int(random.integers(2**31)))
    weight_BK = statistics.draw_seeds(len(estimate_KSN), draws, int(random.integers(2**31)))
    estimate_KS, videos_KBS = estimate_KSN[..., -1], videos_KBSN[..., -1]
    return estimate_KS.reshape(len(estimate_KS), -1, 2), videos_KBS.reshape(*videos_KBS.shape[:2], -1, 2), weight_BK


def _holds(
    estimate_KR: np.ndarray, videos_KBR: np.ndarray, weight_BK: np.ndarray, truth: float, level: float
) -> np.ndarray:
    lo_R, hi_R = statistics.interval(statistics.with_seeds(estimate_KR, videos_KBR, weight_BK), level)
    return (lo_R <= truth) & (truth <= hi_R)


def _portions(number: int) -> Iterator[int]:
    while number > 0:
        yield min(number, AT_ONCE)
        number -= AT_ONCE


def coverage_table(worlds: Mapping[str, World], suites: int, draws: int = 1000) -> pd.DataFrame:
    """One line a world: columns world, base_seeds, spread, score, difference (percent of suites)."""
    lines = []
    for name, world in worlds.items():
        found = coverage(world, suites, draws)
        shares = {"score": 100 * found.score, "difference": 100 * found.difference}
        lines.append({"world": name, "base_seeds": world.base_seeds, "spread": found.spread, **shares})
    return pd.DataFrame(lines)


WORLDS = {
    "one base seed, held fixed": replace(World(), seed=0.0, luck=0.0, base_seeds=1),
    "base seeds alike": replace(World(), seed=0.0, luck=0.0),
    "small differences": World(),
    "differences like the videos' error": replace(World(), seed=0.06, luck=0.06),
    "large differences": replace(World(), seed=0.3, luck=0.3),
    "large differences, 5 seeds": replace(World(), seed=0.3, luck=0.3, base_seeds=5),
}
"""From what the intervals are made for to where two base seeds are too few."""


def main() -> None:
    """Print how often intervals hold in each of WORLDS, and how often the variants of a file differ from themselves."""
    print(coverage_table(WORLDS, suites=2000).round(1).to_string(index=False))
    for path in sys.argv[1:]:
        print(f"{path}: {aa_rejections(read_samples(Path(path))):.1%} of splits rejected")


if __name__ == "__main__":
    main()
