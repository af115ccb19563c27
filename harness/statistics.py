"""Intervals and paired tests, under each benchmark's own aggregation.

Two things are resampled. Videos: questions about one video stand or fall together, and every line of a table answered
the same questions; so each draw picks the videos of each benchmark with replacement, once for all lines. Base seeds:
every line stands on the same ones; each draw picks n - 1 of the n with replacement, once for all lines and
benchmarks (n of n would make the variance of a mean too small by (n - 1) / n: Rao & Wu 1988, J. Am. Stat. Assoc. 83).
A difference between two lines is taken within the draw. With one base seed it is held fixed: the interval then says
how far other videos would move the score, not other trainings.

Each base seed's score carries the chance of its own answers, which the draws of videos hold already. Drawing seeds as
they are would count it three times (Owen 2007, Ann. Appl. Stat. 1), so that what the videos explain of the spread
between seeds is taken off first (analysis of variance, never below nothing).

What the intervals are worth is measured by `harness.simulation` and asserted in tests/test_statistics_simulated.py.
With one base seed held fixed, and with two whose true averages differ little (by less than a point's standard
deviation at mini scale), 95% intervals of scores and of paired differences hold the truth in 93 to 97% of imagined
suites. With LARGE differences between base seeds two are too few: one or the other is drawn, and the interval holds
the truth in only 50 to 70% of suites (in half of them if nothing else varied: it then reaches from one to the other).
Five make it 80 to 93%. Read the base seeds' own scores beside such an interval.

Letters in array names: B draws, V videos, C categories, K base seeds, S lines ("settings"), Q questions, N benchmarks
(last: their average), X any further axes.
"""

import functools
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from harness.errors import UserError

SETTING = ["architecture", "frames", "control"]
"""What a table's line stands for; base seeds are pooled."""
QUESTION = ["benchmark", "task", "doc_id"]
AVERAGE = "average"
DRAWS = 10_000
LEVEL = 0.95
POWER = 0.80

Setting = tuple


@dataclass(frozen=True)
class Counts:
    """One benchmark's right answers and questions asked, by video and category (one where they do not matter)."""

    right_VCKS: np.ndarray
    asked_VC: np.ndarray

    def scores(self, weight_BV: np.ndarray) -> np.ndarray:
        """score_KBS in percent under weights of the videos: within each category, then the mean over categories.

        A draw may leave a category without a video; it then averages the others.
        """
        right_BCKS = np.tensordot(weight_BV, self.right_VCKS, axes=1)
        asked_BC11 = (weight_BV @ self.asked_VC)[..., None, None]
        if self.asked_VC.shape[1] == 1:
            return np.moveaxis(100 * right_BCKS[:, 0] / asked_BC11[:, 0], 1, 0)
        share_BCKS = np.divide(right_BCKS, asked_BC11, out=np.zeros_like(right_BCKS), where=asked_BC11 > 0)
        return np.moveaxis(100 * share_BCKS.sum(1) / (asked_BC11 > 0).sum(1), 1, 0)


@dataclass(frozen=True)
class Answers:
    """Which questions were answered right: one row of `questions` and of right_QKS each."""

    questions: pd.DataFrame  # benchmark, category, video, task, doc_id
    settings: list[Setting]
    base_seeds: list[int]
    right_QKS: np.ndarray

    def counts(self, category_means: Collection[str]) -> dict[str, Counts]:
        """By benchmark; the categories of those in `category_means` are kept apart."""
        found = {}
        for name, group in self.questions.groupby("benchmark", sort=False):
            video_Q, videos = pd.factorize(group["video"], sort=True)
            kept_apart = group["category"] if name in category_means else group["benchmark"]
            category_Q, categories = pd.factorize(kept_apart, sort=True)
            asked_VC = np.zeros((len(videos), len(categories)))
            right_VCKS = np.zeros((*asked_VC.shape, *self.right_QKS.shape[1:]))
            np.add.at(asked_VC, (video_Q, category_Q), 1)
            np.add.at(right_VCKS, (video_Q, category_Q), self.right_QKS[group.index])
            found[name] = Counts(right_VCKS, asked_VC)
        return found


@dataclass(frozen=True)
class Scores:
    """Scores in percent of every line: of the questions asked, and of `B` draws.

    Attributes:
        answers: what was resampled; its settings are tuples of the columns `by`.
        estimate_KSN: each base seed's scores.
        videos_KBSN: each base seed's scores under the draws of videos.
        weight_BK: the share of each base seed in each draw; all equal where base seeds are held fixed.
    """

    by: list[str]
    answers: Answers
    benchmarks: list[str]
    estimate_KSN: np.ndarray
    videos_KBSN: np.ndarray
    weight_BK: np.ndarray

    @property
    def settings(self) -> list[Setting]:
        """The lines, in the order of the samples."""
        return self.answers.settings

    @cached_property
    def estimate_SN(self) -> np.ndarray:
        """The mean over base seeds."""
        return self.estimate_KSN.mean(0)

    @cached_property
    def draws_BSN(self) -> np.ndarray:
        """Every line's draws. A difference has draws of its own: `difference_BN`."""
        return with_seeds(self.estimate_KSN, self.videos_KBSN, self.weight_BK)

    def difference_BN(self, first: Setting, second: Setting) -> np.ndarray:
        """Draws of `first` minus `second`: what the two share, videos and base seeds, is gone before it is drawn."""
        a, b = self.of(first), self.of(second)
        estimate_KN = self.estimate_KSN[:, a] - self.estimate_KSN[:, b]
        return with_seeds(estimate_KN, self.videos_KBSN[:, :, a] - self.videos_KBSN[:, :, b], self.weight_BK)

    def of(self, setting: Setting) -> int:
        """The setting's place on axis S; UserError listing the settings if it has none."""
        return _place(setting, self.settings)


def resample(
    samples: pd.DataFrame,
    category_means: Collection[str],
    draws: int = DRAWS,
    seed: int = 0,
    by: Sequence[str] = tuple(SETTING),
    seeds: bool = True,
) -> Scores:
    """Score every line in `samples`, and score it again for `draws` draws of videos and base seeds.

    samples: columns `by`, QUESTION, base_seed, video, category, correct (see rows.SAMPLE_COLUMNS).
    category_means: benchmarks scored by the mean over categories; the others by the mean over questions.
    by: the columns that name a line of the table; base seeds are pooled.
    seeds: draw base seeds too; they are held fixed if there is only one.
    Raises UserError if lines or base seeds did not answer the same questions.
    """
    answers = answers_of(samples, by)
    counts = answers.counts(category_means)
    estimate_KSN, videos_KBSN = draw_videos(counts, draws, seed)
    n = len(answers.base_seeds)
    weight_BK = draw_seeds(n, draws, seed) if seeds else np.full((draws, n), 1 / n)
    return Scores(list(by), answers, [*counts, AVERAGE], estimate_KSN, videos_KBSN, weight_BK)


def answers_of(samples: pd.DataFrame, by: Sequence[str]) -> Answers:
    """Right and wrong of every question, base seed and line; UserError where a line lacks one or has it twice."""
    by, index = list(by), ["benchmark", "category", "video", "task", "doc_id"]
    if samples.duplicated([*by, "base_seed", *QUESTION]).any():
        raise UserError("a question is answered twice by one row; the samples hold a row more than once.")
    pairs = samples[[*by, "base_seed"]].drop_duplicates()
    base_seeds = sorted(pairs["base_seed"].unique().tolist())
    if pairs.groupby(by).size().lt(len(base_seeds)).any():
        raise UserError(f"settings differ in their base seeds: {_counts(pairs, by)}.")
    filled = samples.assign(category=samples["category"].fillna(""), correct=samples["correct"].astype(float))
    table = filled.set_index([*index, *by, "base_seed"])["correct"].unstack([*by, "base_seed"]).sort_index()
    if table.isna().any(axis=None):
        raise UserError(
            f"settings were not asked the same questions, so they cannot be compared: {_counts(samples, by)}."
        )
    settings = list(dict.fromkeys(pairs[by].itertuples(index=False, name=None)))
    columns = [(*setting, base_seed) for base_seed in base_seeds for setting in settings]
    right_QKS = table[columns].to_numpy().reshape(len(table), len(base_seeds), len(settings))
    return Answers(table.index.to_frame(index=False), settings, base_seeds, right_QKS)


def draw_videos(counts: Mapping[str, Counts], draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """estimate_KSN of the videos asked, videos_KBSN of `draws` draws of them; the average of benchmarks last."""
    estimates, resampled = [], []
    for name, benchmark in counts.items():
        videos = len(benchmark.asked_VC)
        estimates.append(benchmark.scores(np.ones((1, videos)))[:, 0])
        resampled.append(benchmark.scores(_drawn_videos(name, videos, draws, seed)))
    return _with_average(np.stack(estimates, -1)), _with_average(np.stack(resampled, -1))


@functools.lru_cache(maxsize=8)  # a report asks for the same draws of the same suite 60 times; 20 MB each
def _drawn_videos(benchmark: str, videos: int, draws: int, seed: int) -> np.ndarray:
    """weight_BV: how often each of a benchmark's videos is drawn, to be read only.

    The stream depends on the benchmark's name alone: adding a benchmark moves no other one's interval.
    """
    random = np.random.default_rng([seed, zlib.crc32(benchmark.encode())])
    weight_BV = random.multinomial(videos, np.full(videos, 1 / videos), size=draws).astype(float)
    weight_BV.flags.writeable = False
    return weight_BV


def draw_seeds(n: int, draws: int, seed: int) -> np.ndarray:
    """weight_BK: n - 1 of n base seeds with replacement, as shares; the one there is if there is one."""
    if n == 1:
        return np.ones((draws, 1))
    random = np.random.default_rng([seed, zlib.crc32(b"base_seed")])
    return random.multinomial(n - 1, np.full(n, 1 / n), size=draws) / (n - 1)


def with_seeds(estimate_KX: np.ndarray, videos_KBX: np.ndarray, weight_BK: np.ndarray) -> np.ndarray:
    """draws_BX: those of videos, moved by the drawn base seeds as far as these differ beyond the answers' chance."""
    n = len(estimate_KX)
    mean_BX = videos_KBX.mean(0)
    if n == 1 or (weight_BK == 1 / n).all():
        return mean_BX
    deviation_KX = estimate_KX - estimate_KX.mean(0)
    spread_X = (deviation_KX**2).sum(0) / (n - 1)
    by_chance_X = (videos_KBX - mean_BX).var(1).sum(0) / (n - 1)
    share_X = np.divide(by_chance_X, spread_X, out=np.ones_like(spread_X), where=spread_X > 0)
    beyond_KX = deviation_KX * np.sqrt(np.clip(1 - share_X, 0, None))
    return mean_BX + np.tensordot(weight_BK, beyond_KX, axes=1)


# ------------------------------------------------------------------------------------------- tables


def bootstrap(scores: Scores, level: float = LEVEL) -> pd.DataFrame:
    """Score and percentile interval of every line: columns `by`, benchmark, estimate, lo, hi (%)."""
    lo_SN, hi_SN = interval(scores.draws_BSN, level)
    return pd.DataFrame(
        [
            (*setting, benchmark, scores.estimate_SN[s, n], lo_SN[s, n], hi_SN[s, n])
            for s, setting in enumerate(scores.settings)
            for n, benchmark in enumerate(scores.benchmarks)
        ],
        columns=[*scores.by, "benchmark", "estimate", "lo", "hi"],
    )


def paired(scores: Scores, first: Setting, second: Setting, level: float = LEVEL) -> pd.DataFrame:
    """`first` minus `second` on the same questions: columns benchmark, difference, lo, hi, se (% points), p.

    p: two-sided, of the same draws: twice the share on the far side of 0, each count with one more than was drawn.
    """
    draws_BN = scores.difference_BN(first, second)
    lo_N, hi_N = interval(draws_BN, level)
    return pd.DataFrame(
        {
            "benchmark": scores.benchmarks,
            "difference": scores.estimate_SN[scores.of(first)] - scores.estimate_SN[scores.of(second)],
            "lo": lo_N,
            "hi": hi_N,
            "se": draws_BN.std(0),
            "p": p_values(draws_BN),
        }
    )


COMPARED = {
    "first": "a line",
    "second": "the line that it is compared with, on the same questions",
    "benchmark": "the score compared, `average` for the mean of the benchmarks",
    "difference": "score of the first minus score of the second, percentage points",
    "lo": "lower end of its 95% interval",
    "hi": "upper end of its 95% interval",
    "se": "its standard error, percentage points",
    "p": "two-sided p of the clustered paired bootstrap, from the draws of the interval",
    "p_holm": "the same, corrected after Holm for all comparisons made together",
    "detectable": f"the smallest difference that would be found with {POWER:.0%} power at 5%: 2.80 standard errors",
    "first_only": "questions that the first answered right and the second wrong, base seeds together",
    "second_only": "questions the other way round",
    "p_mcnemar": "exact McNemar test, the largest p over base seeds; it takes questions as independent",
}
"""The columns of `compare`, in order."""


def compare(
    scores: Scores,
    pairs: Iterable[tuple[Setting, Setting]],
    level: float = LEVEL,
    benchmarks: Collection[str] = (AVERAGE,),
) -> pd.DataFrame:
    """Every pair's first line minus its second, for each of `benchmarks`: columns as in COMPARED.

    Holm's correction is over all lines of the answer: give the pairs of one question together.
    """
    lines = []
    for first, second in pairs:
        found = paired(scores, first, second, level).set_index("benchmark", drop=False)
        for benchmark in benchmarks:
            one = None if benchmark == AVERAGE else benchmark
            against = _mcnemar(scores.answers, first, second, one)
            split = {name: int(against[name].sum()) for name in ("first_only", "second_only")}
            names = {"first": first, "second": second}
            lines.append({**names, **found.loc[benchmark], **split, "p_mcnemar": against["p"].max()})
    table = pd.DataFrame(lines, columns=[name for name in COMPARED if name not in ("p_holm", "detectable")])
    return table.assign(p_holm=holm(table["p"]), detectable=detectable(table["se"]))[list(COMPARED)]


def interval(draws_BX: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends, lo_X and hi_X, of the percentile interval."""
    tail = (1 - level) / 2
    lo_X, hi_X = np.quantile(draws_BX, [tail, 1 - tail], axis=0)
    return lo_X, hi_X


def p_values(draws_BX: np.ndarray) -> np.ndarray:
    """p_X, two-sided, of "the difference is 0": 2 (r + 1) / (B + 1), r draws being on the far side of 0 or on it."""
    r_X = np.minimum((draws_BX <= 0).sum(0), (draws_BX >= 0).sum(0))
    return np.minimum(1.0, 2 * (r_X + 1) / (len(draws_BX) + 1))


def holm(p: Sequence[float]) -> np.ndarray:
    """p corrected for being one of several, Holm's (1979) step-down way, in the order given."""
    p_N = np.asarray(p, float)
    order_N = np.argsort(p_N, kind="stable")
    corrected_N = np.empty_like(p_N)
    corrected_N[order_N] = np.maximum.accumulate(p_N[order_N] * np.arange(len(p_N), 0, -1))
    return np.minimum(corrected_N, 1)


def detectable(se: float, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test at 1 - `level` finds with `power`: 2.80 standard errors."""
    return se * (norm.ppf((1 + level) / 2) + norm.ppf(power))


def mcnemar(samples: pd.DataFrame, first: Setting, second: Setting, by: Sequence[str] = tuple(SETTING)) -> pd.DataFrame:
    """Exact two-sided McNemar test per base seed: columns base_seed, first_only, second_only, p.

    first_only counts the questions that `first` answered right and `second` wrong. Base seeds are not pooled, for a
    question answered by two of them is not two questions: read the largest p. The test takes questions as
    independent, which questions about one video are not: read it beside the interval, not instead of it.
    """
    return _mcnemar(answers_of(samples, by), first, second)


def exact_mcnemar(first_only: int, second_only: int) -> float:
    """p of a split this uneven among discordant pairs if either side were as likely; 1 without such pairs."""
    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


# ------------------------------------------------------------------------------------------- helpers


def _mcnemar(answers: Answers, first: Setting, second: Setting, benchmark: str | None = None) -> pd.DataFrame:
    asked = slice(None) if benchmark is None else answers.questions["benchmark"].eq(benchmark).to_numpy()
    a_QK, b_QK = (answers.right_QKS[asked, :, _place(each, answers.settings)] > 0.5 for each in (first, second))
    only = zip((a_QK & ~b_QK).sum(0).tolist(), (b_QK & ~a_QK).sum(0).tolist(), strict=True)
    lines = [(seed, *split, exact_mcnemar(*split)) for seed, split in zip(answers.base_seeds, only, strict=True)]
    return pd.DataFrame(lines, columns=["base_seed", "first_only", "second_only", "p"])


def _place(setting: Setting, settings: list[Setting]) -> int:
    if setting not in settings:
        raise UserError(f"no samples of {setting}; there are {', '.join(map(str, settings))}.")
    return settings.index(setting)


def _with_average(score_XN: np.ndarray) -> np.ndarray:
    return np.concatenate([score_XN, score_XN.mean(-1, keepdims=True)], -1)


def _counts(records: pd.DataFrame, by: list[str]) -> str:
    counted = records.groupby([*by, "base_seed"]).size()
    return ", ".join(f"{' '.join(map(str, key[:-1]))} (base seed {key[-1]}): {n}" for key, n in counted.items())
