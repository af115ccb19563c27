"""Intervals and paired tests, under each benchmark's own aggregation.

The unit that is resampled is the video: questions about one video stand or fall together, and every setting
and base seed answered the same questions. So each draw picks the videos of each benchmark with replacement,
once for all settings; a difference between two settings is then taken within the draw. Base seeds are
averaged per question and held fixed: an interval says how far other videos would move the score, not other
trainings.

Letters in array names: B draws, V videos, C categories, S settings, N benchmarks (last: their average).
"""

import zlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from harness.errors import UserError

SETTING = ["architecture", "frames", "control"]
"""What a table's line stands for; base seeds are pooled."""
QUESTION = ["benchmark", "task", "doc_id"]
AVERAGE = "average"
DRAWS = 10_000
LEVEL = 0.95

Setting = tuple[str, int, str]


@dataclass(frozen=True)
class Scores:
    """Scores in percent of every setting: of the questions asked, and of `B` draws of videos."""

    settings: list[Setting]
    benchmarks: list[str]
    estimate_SN: np.ndarray
    draws_BSN: np.ndarray

    def of(self, setting: Setting) -> int:
        """The setting's place on axis S; UserError listing the settings if it has none."""
        if setting not in self.settings:
            raise UserError(f"no samples of {setting}; there are {', '.join(map(str, self.settings))}.")
        return self.settings.index(setting)


def resample(samples: pd.DataFrame, category_means: Collection[str], draws: int = DRAWS, seed: int = 0) -> Scores:
    """Score every setting in `samples`, and score it again for `draws` draws of videos.

    samples: columns SETTING, QUESTION, base_seed, video, category, correct (see rows.SAMPLE_COLUMNS).
    category_means: benchmarks scored by the mean over categories; the others by the mean over questions.
    Raises UserError if settings or base seeds did not answer the same questions.
    """
    questions = _correct_by_question(samples)
    settings = list(questions.columns)
    estimates, resampled, benchmarks = [], [], []
    for name, group in questions.groupby(level="benchmark", sort=False):
        score = _Benchmark.of(group, by_category=name in category_means)
        # The stream depends on the benchmark's name alone: adding a benchmark moves no other one's interval.
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        videos = score.asked_VC.shape[0]
        weight_BV = random.multinomial(videos, np.full(videos, 1 / videos), size=draws)
        estimates.append(score(np.ones((1, videos)))[0])
        resampled.append(score(weight_BV))
        benchmarks.append(name)
    estimate_SN, draws_BSN = np.stack(estimates, -1), np.stack(resampled, -1)
    return Scores(
        settings=settings,
        benchmarks=[*benchmarks, AVERAGE],
        estimate_SN=np.concatenate([estimate_SN, estimate_SN.mean(-1, keepdims=True)], -1),
        draws_BSN=np.concatenate([draws_BSN, draws_BSN.mean(-1, keepdims=True)], -1),
    )


def bootstrap(scores: Scores, level: float = LEVEL) -> pd.DataFrame:
    """Score and percentile interval of every setting: columns SETTING, benchmark, estimate, lo, hi (%)."""
    lo_SN, hi_SN = _interval(scores.draws_BSN, level)
    return pd.DataFrame(
        [
            (*setting, benchmark, scores.estimate_SN[s, n], lo_SN[s, n], hi_SN[s, n])
            for s, setting in enumerate(scores.settings)
            for n, benchmark in enumerate(scores.benchmarks)
        ],
        columns=[*SETTING, "benchmark", "estimate", "lo", "hi"],
    )


def paired(scores: Scores, first: Setting, second: Setting, level: float = LEVEL) -> pd.DataFrame:
    """`first` minus `second` on the same questions: columns benchmark, difference, lo, hi (% points)."""
    a, b = scores.of(first), scores.of(second)
    lo_N, hi_N = _interval(scores.draws_BSN[:, a] - scores.draws_BSN[:, b], level)
    return pd.DataFrame(
        {
            "benchmark": scores.benchmarks,
            "difference": scores.estimate_SN[a] - scores.estimate_SN[b],
            "lo": lo_N,
            "hi": hi_N,
        }
    )


def mcnemar(samples: pd.DataFrame, first: Setting, second: Setting) -> pd.DataFrame:
    """Exact two-sided McNemar test per base seed: columns base_seed, first_only, second_only, p.

    first_only counts the questions that `first` answered right and `second` wrong. The test takes questions
    as independent, which questions about one video are not: read it beside the interval, not instead of it.
    """
    rows = []
    for base_seed, group in samples.groupby("base_seed", sort=True):
        questions = _correct_by_question(group)
        a, b = questions[first].to_numpy() > 0.5, questions[second].to_numpy() > 0.5
        first_only, second_only = int((a & ~b).sum()), int((b & ~a).sum())
        rows.append((base_seed, first_only, second_only, exact_mcnemar(first_only, second_only)))
    return pd.DataFrame(rows, columns=["base_seed", "first_only", "second_only", "p"])


def exact_mcnemar(first_only: int, second_only: int) -> float:
    """p of a split this uneven among discordant pairs if either side were as likely; 1 without such pairs."""
    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


@dataclass(frozen=True)
class _Benchmark:
    """Right answers and questions asked per video and category; called, it scores a weighting of videos."""

    right_VCS: np.ndarray
    asked_VC: np.ndarray

    @classmethod
    def of(cls, questions: pd.DataFrame, by_category: bool) -> "_Benchmark":
        """questions: rows indexed by question (levels video and category used), one column per setting."""
        video, videos = pd.factorize(questions.index.get_level_values("video"), sort=True)
        category, categories = pd.factorize(questions.index.get_level_values("category"), sort=True)
        if not by_category:
            category, categories = np.zeros_like(category), [None]
        right_VCS = np.zeros((len(videos), len(categories), questions.shape[1]))
        asked_VC = np.zeros((len(videos), len(categories)))
        np.add.at(right_VCS, (video, category), questions.to_numpy())
        np.add.at(asked_VC, (video, category), 1)
        return cls(right_VCS, asked_VC)

    def __call__(self, weight_BV: np.ndarray) -> np.ndarray:
        """score_BS in percent: right over asked within each category, then the mean over categories.

        A draw may leave a category without a video; it then averages the others.
        """
        right_BCS = np.tensordot(weight_BV, self.right_VCS, axes=1)
        asked_BC1 = (weight_BV @ self.asked_VC)[..., None]
        share_BCS = np.divide(right_BCS, asked_BC1, out=np.full_like(right_BCS, np.nan), where=asked_BC1 > 0)
        return 100 * np.nanmean(share_BCS, axis=1)


def _correct_by_question(samples: pd.DataFrame) -> pd.DataFrame:
    """Share of base seeds that answered each question right.

    Index benchmark, category, video, task, doc_id; one column per setting.
    """
    pairs = samples.groupby([*SETTING, "base_seed"]).size().reset_index()[SETTING]
    if samples.duplicated([*SETTING, "base_seed", *QUESTION]).any():
        raise UserError("a question is answered twice by one row; the samples hold a row more than once.")
    if pairs.value_counts().nunique() > 1:
        raise UserError(f"settings differ in their number of base seeds: {_counts(pairs)}.")
    index = ["benchmark", "category", "video", "task", "doc_id"]
    filled = samples.assign(category=samples["category"].fillna(""), correct=samples["correct"].astype(float))
    answered = filled.groupby([*index, *SETTING], sort=False)["correct"].agg(["mean", "size"])
    seeds = int(pairs.value_counts().iloc[0])
    table = answered["mean"].unstack(SETTING)
    if table.isna().any(axis=None) or (answered["size"] != seeds).any():
        counts = samples.groupby([*SETTING, "base_seed"]).size().to_dict()
        raise UserError(f"settings were not asked the same questions, so they cannot be compared: {counts}.")
    return table.sort_index()


def _counts(pairs: pd.DataFrame) -> str:
    return ", ".join(f"{' '.join(map(str, key))}: {n}" for key, n in pairs.value_counts(sort=False).items())


def _interval(draws_BX: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - level) / 2
    return tuple(np.quantile(draws_BX, [tail, 1 - tail], axis=0))
