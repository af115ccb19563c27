"""What stands under a table: how each column was made, where, and what a reader must know of the recipe."""

from collections.abc import Iterable

import pandas as pd

from harness.benchmarks import BENCHMARKS
from harness.rows import UNPARSED
from harness.statistics import DRAWS, LEVEL, QUESTION

BASELINE = ("self_attention", 16)
MARK = "†"  # after the name of a row with failures

SCALES = {
    "mini": "Mini scale: a model of about a quarter of a million parameters, trained from scratch in minutes, on "
    "procedural videos in the five benchmarks' formats. The scores are not those of the published ones.",
}
GAIN = (
    f"gain: of the average, relative to {BASELINE[0]} at {BASELINE[1]} frames. chance: expected score of "
    "guessing among the options offered."
)
FLOPS = (
    "FLOP: 2 x multiply-adds; attention counted as the full square (causal attention's idle half included); "
    "64 text tokens beside the video's; lm_head on the last position only."
)
SCOPES = (
    "prefill: the language model with its cross-attention, without vision tower and projector (mini: the "
    "model measured; 7B: the same architecture at Qwen2-7B's sizes, counted without weights). model: with "
    "vision tower (ConvNeXt-XXLarge, 576 px, every frame), projector and compressor. Overheads (+%): against "
    f"{BASELINE[0]} at {BASELINE[1]} frames."
)
NO_BASELINE = (
    f"Gains and overheads are empty: {BASELINE[0]} at {BASELINE[1]} frames, which they are relative to, is not "
    "among the rows."
)
LATENCY = (
    "prefill ms, ms per token: median wall time on this machine of the mini model, one video, 64 text tokens, one "
    "thread, all architectures interleaved; prefill from the encoder's features to the first token's logits (so with "
    "projector and compressor, unlike the FLOP column), then of one further token."
)
CONTROLS = (
    "Differences: the line's score minus compressor_only's on the same questions, in percentage points. "
    "gate_closed: the warm-up scalars of the trained model set to 0; other_video: its slow tokens taken from "
    "another video of the same benchmark. A control passes if its average's interval does not lie above 0. p: "
    "exact McNemar test over all questions, the largest over base seeds; it takes questions as independent."
)


def foot(rows: pd.DataFrame, samples: pd.DataFrame) -> list[str]:
    """The lines under the main table; what all rows share is said once."""
    return [
        *(SCALES.get(scale, f"Scale: {scale}.") for scale in rows["scale"].unique()),
        scores_line(samples),
        seeds_line(rows, samples),
        GAIN,
        FLOPS,
        SCOPES,
        *([] if has_baseline(rows) else [NO_BASELINE]),
        LATENCY,
        *made_lines(rows),
        *failure_lines(samples),
        *disclosure_lines(rows),
    ]


def has_baseline(rows: pd.DataFrame) -> bool:
    """Whether the row is there that gains and overheads are relative to."""
    return bool((rows["architecture"].eq(BASELINE[0]) & rows["frames"].eq(BASELINE[1])).any())


def controls_foot(rows: pd.DataFrame, samples: pd.DataFrame) -> list[str]:
    """The lines under the controls: what was compared, how, and the recipe's disclosures."""
    return [
        *(SCALES.get(scale, f"Scale: {scale}.") for scale in rows["scale"].unique()),
        CONTROLS,
        scores_line(samples),
        f"Each line: base seeds {_and(sorted(rows['base_seed'].unique()))} pooled.",
        *made_lines(rows),
        *failure_lines(samples),
        *disclosure_lines(rows),
    ]


def scores_line(samples: pd.DataFrame) -> str:
    """Which metric, which interval."""
    present = [BENCHMARKS[name] for name in samples["benchmark"].unique()]
    averaged = " and ".join(sorted(b.title for b in present if b.aggregation == "categories"))
    means = f" ({averaged}: mean over categories; the others: over questions)" if averaged else ""
    return (
        f"Scores: lmms-eval's own metric of each benchmark, 0-100{means}; average: unweighted. Intervals: "
        f"{LEVEL:.0%}, {DRAWS:,} bootstrap draws of videos within each benchmark{_seeds_drawn(samples)}."
    )


def _seeds_drawn(samples: pd.DataFrame) -> str:
    """What the intervals do with the base seeds: of one nothing can be drawn."""
    n = samples["base_seed"].nunique()
    if n == 1:
        return "; the one base seed is held fixed, so that they say nothing of other trainings"
    few = "; where base seeds differ much, two are too few and the interval is too narrow" if n == 2 else ""
    return f" and of base seeds ({n - 1} of {n}, by as much as they differ beyond their answers' chance){few}"


def seeds_line(rows: pd.DataFrame, samples: pd.DataFrame) -> str:
    """Which base seeds were pooled, and how many questions and videos were asked."""
    seeds = sorted(rows["base_seed"].unique())
    asked, videos = len(samples.drop_duplicates(QUESTION)), samples["video"].nunique()
    pooled = f"base seeds {_and(seeds)} pooled" if len(seeds) > 1 else f"base seed {seeds[0]}"
    return (
        f'Each line: {pooled} (each one\'s average under "by base seed"). Answers: {asked:,} questions on '
        f"{videos:,} videos, per base seed. Failures: questions whose video or answer could not be had; they "
        "are scored wrong and stay in the denominator. No option: answers that named none, scored wrong too."
    )


def made_lines(rows: pd.DataFrame) -> list[str]:
    """Sampling rule, suite, versions, machine, commit."""
    versions = _unique(", ".join(f"{name} {v}" for name, v in each.items()) for each in rows["versions"])
    suites = _unique(
        f"SEED={seed}, suite {fingerprint[:12]}"
        for seed, fingerprint in zip(rows["seed"], rows["suite_fingerprint"], strict=True)
    )
    return [
        f"Frames: {'; '.join(_unique(rows['sampling']))}.",
        f"Made with {'; '.join(suites)}; {'; '.join(versions)}.",
        f"Machine: {'; '.join(_unique(rows['device']))}. Code: {'; '.join(_unique(_commits(rows)))}.",
    ]


def failure_lines(samples: pd.DataFrame) -> list[str]:
    """The videos that failed, by kind and name."""
    lines = []
    failed = samples[samples["failure"].ne("") & samples["failure"].ne(UNPARSED)]
    for kind, group in failed.groupby("failure", sort=True):
        videos = sorted(group["video"].unique())
        named = ", ".join(videos[:10]) + (f" and {len(videos) - 10} more" if len(videos) > 10 else "")
        lines.append(f"{MARK} {len(group)} answers failed ({kind}), counted as wrong: {named}.")
    return lines


def disclosure_lines(rows: pd.DataFrame) -> list[str]:
    """Every disclosure once: first what all rows share, then, beginning with their names, what some carry."""
    carried = list(_carriers(rows))
    shared = [line for line, carriers in carried if len(carriers) == len(rows)]
    return shared + [f"{_whose(some, rows)}: {line}" for line, some in carried if len(some) < len(rows)]


def _carriers(rows: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    for line in _unique(line for lines in rows["disclosures"] for line in lines):
        yield line, rows[[line in lines for lines in rows["disclosures"]]]


def _whose(some: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The shortest true name of `some` of the rows: whole base seeds, whole architectures, or one by one."""
    for column, title in (("base_seed", "base seed"), ("architecture", "")):
        values = _unique(some[column])
        if len(some) == rows[column].isin(values).sum():
            return f"{title} {_and(values)}".strip()
    return _and(f"{row.architecture} @{row.frames} (base seed {row.base_seed})" for row in some.itertuples(index=False))


def _commits(rows: pd.DataFrame) -> Iterable[str]:
    for commit, dirty in zip(rows["code_commit"], rows["code_dirty"], strict=True):
        yield "no commit" if commit is None else commit[:12] + (" with uncommitted changes" if dirty else "")


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _and(values: Iterable) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last
