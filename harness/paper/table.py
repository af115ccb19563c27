"""Stored rows and samples to the table at paper scale: measured scores, each beside the published one, and costs.

Measured and published numbers are never in one column. The same rows and samples give the same bytes; nothing here
evaluates or measures.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from harness import foot, layout, statistics
from harness.benchmarks import BENCHMARKS, benchmark_named
from harness.errors import UserError
from harness.foot import MARK
from harness.layout import NONE, Block, Interval
from harness.paper.models import ModelSpec
from harness.paper.published import CATEGORIES, QUESTIONS, Beside, find_published, lettered
from harness.paper.rows import ITS_OWN, is_counted
from harness.paths import write_text
from harness.rows import KEYS, UNPARSED
from harness.statistics import AVERAGE

NAME = "paper"
WIDTH = 120
BOTH_WAYS = ("mlvu",)  # published as a mean over questions and as one over categories
TITLE = "Paper scale: measured, and beside it what is published"
SHORT = {
    "Video-MME": "Video-\nMME",
    "Video-MME with subtitles": "Video-MME\nsubtitles",
    "EgoSchema": "Ego-\nSchema",
    "LongVideoBench": "LongVideo-\nBench",
    "PerceptionTest": "Perception-\nTest",
    "ActivityNetQA": "Activity-\nNetQA",
    "TempCompass": "Temp-\nCompass",
}
COLUMNS = {
    "model": "the row's name, of conf/model or of a checkpoint's folder",
    "frames": "frames of a video, at most",
    "prompts": "how questions were put: `official`, `lmms_eval`, or lmms-eval's own model's way",
    "sampling": "which frames were shown: `official`, `uniform`, or lmms-eval's own model's way",
    "benchmark": "registry name, or `average`: the unweighted mean of the five, by lmms-eval's own metrics",
    "aggregation": "`samples`: mean over questions; `categories`: mean over categories",
    "questions": "questions asked; failures stay among them",
    "failures": "questions without an answer (video or generation failed), scored wrong",
    "unparsed": "answers without an option's letter, scored wrong, not failures",
    "measured": "score, 0-100",
    "measured_lo": "lower end of its 95% interval, by draws of videos",
    "measured_hi": "upper end of its 95% interval",
    "published": "the published score; empty where there is none of this model, benchmark and aggregation",
    "published_metric": "its metric, as its source has it",
    "published_source": "where it is published",
    "published_note": "what else its source says",
    "difference": "measured minus published",
    "difference_lo": "measured_lo minus published",
    "difference_hi": "measured_hi minus published",
    "differs_in": "what is known to differ in how the two were made, `; ` between",
    "not_known": "what is not known of how the published one was made",
    "suite": "fingerprint of the questions and videos",
}
"""The CSV, column by column, in order."""


def write_table(
    rows: pd.DataFrame,
    samples: pd.DataFrame,
    published: pd.DataFrame,
    specs: Mapping[str, ModelSpec],
    out_dir: Path,
    console: Console | None = None,
) -> pd.DataFrame:
    """Write out_dir/tables/paper.{csv,md}, print the table, and return what the CSV holds (COLUMNS).

    rows, samples: as `harness.paper.rows.read_all` gives them. specs: models by name, for their published names.
    Raises UserError if the samples do not add up to a row's scores.
    """
    lines = table_lines(rows, samples, published, specs)
    marks = lettered([*lines["differs"], *lines["unknown"]])
    blocks = [*score_blocks(lines), *beside_blocks(lines, marks), *cost_blocks(rows)]
    under = [*foot_lines(rows, samples), *(f"{mark}: {sentence}." for sentence, mark in marks.items())]
    table = lines.assign(differs_in=lines["differs"].map("; ".join), not_known=lines["unknown"].map("; ".join))
    table = table[list(COLUMNS)]
    stem = Path(out_dir) / "tables" / NAME
    write_text(stem.with_suffix(".csv"), table.round(4).to_csv(index=False, lineterminator="\n"))
    write_text(stem.with_suffix(".md"), layout.markdown(blocks, TITLE, under))
    layout.print_table(blocks, TITLE, under, console or Console(width=WIDTH))
    return table


# ------------------------------------------------------------------------------------------------------- lines


def table_lines(
    rows: pd.DataFrame, samples: pd.DataFrame, published: pd.DataFrame, specs: Mapping[str, ModelSpec]
) -> pd.DataFrame:
    """One line per row, benchmark, aggregation and published number, and one per row for the average of the five.

    Columns COLUMNS (but for the two lists of sentences: `differs`, `unknown`), and `line`, the row's number.
    """
    found = []
    for number, row in enumerate(rows.to_dict("records")):
        its = samples[_is_of(samples, row)]
        found += [{"line": number, **line} for line in _lines_of_row(pd.Series(row), its, published, specs)]
    return pd.DataFrame(found).reindex(columns=["line", *COLUMNS, "differs", "unknown"])


def _is_of(samples: pd.DataFrame, row: Mapping) -> pd.Series:
    same = samples["table"].eq(row["table"])
    for key in KEYS:
        same &= samples[key].eq(row[key])
    return same


def _lines_of_row(row: pd.Series, samples: pd.DataFrame, published: pd.DataFrame, specs: Mapping) -> list[dict]:
    scores = intervals(row, samples)
    record, spec = row["suite"], specs.get(row["architecture"])
    about = {"model": row["architecture"], "frames": row["frames"]}
    about |= {"prompts": record["prompts"], "sampling": record["sampling"]}
    lines = []
    for (name, aggregation), (value, lo, hi) in scores.items():
        own = samples if name == AVERAGE else samples[samples["benchmark"].eq(name)]
        own = own[own["benchmark"].isin(BENCHMARKS)] if name == AVERAGE else own
        failed = own["failure"].ne("") & own["failure"].ne(UNPARSED)
        line = {
            **about,
            "benchmark": name,
            "aggregation": aggregation,
            "questions": len(own),
            "failures": int(failed.sum()),
            "unparsed": int(own["failure"].eq(UNPARSED).sum()),
            "measured": value,
            "measured_lo": lo,
            "measured_hi": hi,
            "suite": record["fingerprints"].get(name, row["suite_fingerprint"]),
        }
        others: list[Beside] = []
        if spec is not None and name != AVERAGE:
            both = [scores[name, each][0] for each in (CATEGORIES, QUESTIONS) if (name, each) in scores]
            ambiguous = len(both) == 2 and abs(both[0] - both[1]) > 1e-6
            others = find_published(published, spec, row, name, aggregation, len(own), ambiguous)
        lines += [{**line, **_compared(line, each)} for each in others] or [{**line, "differs": (), "unknown": ()}]
    return lines


def _compared(line: Mapping, beside: Beside) -> dict:
    ends = {"difference": "measured", "difference_lo": "measured_lo", "difference_hi": "measured_hi"}
    return {
        "published": beside.score,
        "published_metric": beside.metric,
        "published_source": beside.source,
        "published_note": beside.note,
        **{to: line[of] - beside.score for to, of in ends.items()},
        "differs": beside.differs,
        "unknown": beside.unknown,
    }


def intervals(row: pd.Series, samples: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(benchmark, aggregation) -> score and its 95% interval; then the average, where all five were asked.

    Both aggregations of those in BOTH_WAYS. A judge may leave answers out of its average: there the score is the row's,
    and the interval that of the samples, moved to it. Raises UserError if other samples do not add up to the row's.
    """
    by_category = [name for name in row["scores"] if benchmark_named(name).aggregation == CATEGORIES]
    found = _resampled(samples, by_category)
    table = {}
    for name, score in row["scores"].items():
        benchmark, (value, lo, hi) = benchmark_named(name), found[name]
        if abs(value - score) > 1e-3 and not benchmark.judge:
            raise UserError(
                f"{row['architecture']}: the samples give {value} on {name}, the row {score}: rows and samples files "
                "are of different runs."
            )
        off = score - value if benchmark.judge else 0.0
        table[name, benchmark.aggregation] = (value + off, lo + off, hi + off)
    if both := [name for name in BOTH_WAYS if name in by_category]:
        over = _resampled(samples[samples["benchmark"].isin(both)], [])
        table |= {(name, QUESTIONS): over[name] for name in both}
    if AVERAGE in found:
        table[AVERAGE, ""] = found[AVERAGE]
    order = [*BENCHMARKS, *(name for name in row["scores"] if name not in BENCHMARKS), AVERAGE]
    return dict(sorted(table.items(), key=lambda item: order.index(item[0][0])))


def _resampled(samples: pd.DataFrame, by_category: list[str]) -> dict[str, tuple[float, float, float]]:
    """Benchmark -> score and interval; the average of the five where they are all there.

    As lmms-eval has it, a category without questions is a 0.
    """
    scores = statistics.resample(samples, by_category)
    names = scores.benchmarks[:-1]
    share_N = np.array([_present(samples, name) if name in by_category else 1.0 for name in names])
    estimate_N, draws_BN = (values[..., 0, :-1] * share_N for values in (scores.estimate_SN, scores.draws_BSN))
    if set(BENCHMARKS) <= set(names):
        five = [names.index(name) for name in BENCHMARKS]
        means = (values[..., five].mean(-1, keepdims=True) for values in (estimate_N, draws_BN))
        estimate_N, draws_BN = (
            np.append(values, mean, -1) for values, mean in zip((estimate_N, draws_BN), means, strict=True)
        )
        names = [*names, AVERAGE]
    lo_N, hi_N = statistics.interval(draws_BN)
    return {name: (estimate_N[n], lo_N[n], hi_N[n]) for n, name in enumerate(names)}


def _present(samples: pd.DataFrame, name: str) -> float:
    """The share of a benchmark's categories that were asked about: all of them, unless the questions were limited."""
    asked = samples.loc[samples["benchmark"].eq(name), "category"].nunique()
    return asked / len(benchmark_named(name).categories)


# ------------------------------------------------------------------------------------------------------ blocks


def score_blocks(lines: pd.DataFrame) -> list[Block]:
    """The measured scores: the five with their average, then the further ones that were asked."""
    first = lines.drop_duplicates(["line", "benchmark", "aggregation"])
    settings = list(dict.fromkeys(zip(first["benchmark"], first["aggregation"], strict=True)))
    five = [each for each in settings if each[0] in BENCHMARKS]
    order = [*BENCHMARKS]
    five.sort(key=lambda each: (order.index(each[0]), each[1]))
    further = sorted({each for each in settings if each[0] not in (*BENCHMARKS, AVERAGE)})
    five += [each for each in settings if each[0] == AVERAGE]
    captions = ("Measured, 0-100, with 95% intervals", "Measured, the paper's further columns")
    twice = {name for name, _ in settings if sum(each[0] == name for each in settings) > 1}
    return [
        Block(caption, [*_names(first), *(_scores(first, each, each[0] in twice) for each in chosen)], names=1)
        for caption, chosen in zip(captions, (five, further), strict=True)
        if chosen
    ]


def _names(first: pd.DataFrame) -> layout.Columns:
    """Each row's name, frames and way of asking."""
    rows = first.drop_duplicates("line")
    failed = first[first["benchmark"].ne(AVERAGE)].groupby("line")["failures"].sum()
    pairs = zip(rows["model"], rows["line"], strict=True)
    return [
        ("model", [name + (MARK if failed.get(line, 0) else "") for name, line in pairs]),
        ("frames", [str(frames) for frames in rows["frames"]]),
        ("prompts", [_way(line) for line in _dicts(rows)]),
    ]


def _way(line: Mapping) -> str:
    """The way of asking in a word or two."""
    if line["prompts"] == ITS_OWN:
        return "its own"
    return line["prompts"] if line["prompts"] == line["sampling"] else f"{line['prompts']}, {line['sampling']}"


def _scores(first: pd.DataFrame, setting: tuple[str, str], is_twice: bool) -> tuple[str, layout.Cells]:
    name, aggregation = setting
    at = {line["line"]: line for line in _dicts(first) if (line["benchmark"], line["aggregation"]) == setting}
    cells = [
        Interval(*(at[line][end] for end in ("measured", "measured_lo", "measured_hi"))) if line in at else NONE
        for line in first["line"].unique()
    ]
    title = "average" if name == AVERAGE else SHORT.get(_title(name), _title(name))
    over = {CATEGORIES: "by category", QUESTIONS: "by question"}.get(aggregation, "")
    return (f"{title}\n{over}" if is_twice else title), cells


def beside_blocks(lines: pd.DataFrame, marks: Mapping[str, str]) -> list[Block]:
    """Every measured score that has a published one, line by line."""
    both = lines[lines["published"].notna()]
    if both.empty:
        return []
    dicts, ways = _dicts(both), lines[["prompts", "sampling"]].drop_duplicates()
    several = len(ways[ways["prompts"].ne(ITS_OWN)]) > 1
    return [
        Block(
            "Beside the published: what differs (letters below), and what is not known of the published number",
            [
                ("model", [line["model"] + (f" ({_way(line)})" if several else "") for line in dicts]),
                ("frames", [str(line["frames"]) for line in dicts]),
                ("benchmark", [f"{_title(line['benchmark'])}{_over(line, lines)}" for line in dicts]),
                ("measured", [Interval(line["measured"], line["measured_lo"], line["measured_hi"]) for line in dicts]),
                ("published", [f"{line['published']:.1f}" for line in dicts]),
                (
                    "difference",
                    [
                        Interval(line["difference"], line["difference_lo"], line["difference_hi"], signed=True)
                        for line in dicts
                    ],
                ),
                ("questions", [f"{line['questions']:,}" for line in dicts]),
                ("failed", [f"{line['failures']:,}" for line in dicts]),
                ("differs", [" ".join(marks[each] for each in line["differs"]) or NONE for line in dicts]),
                ("not known", [" ".join(marks[each] for each in line["unknown"]) or NONE for line in dicts]),
            ],
            names=1,
        )
    ]


def _over(line: Mapping, lines: pd.DataFrame) -> str:
    own = lines[lines["benchmark"].eq(line["benchmark"])]
    if own["aggregation"].nunique() < 2:
        return ""
    return ", by category" if line["aggregation"] == CATEGORIES else ", by question"


def cost_blocks(rows: pd.DataFrame) -> list[Block]:
    """Tokens and FLOPs of one video, of the rows that are counted; nothing stands for those that are not."""
    each = rows.drop_duplicates(["architecture", "frames"])
    counted = [is_counted(row) for _, row in each.iterrows()]
    if not any(counted):
        return []

    def column(name: str, form: str) -> list[str]:
        return [format(value, form) if known else NONE for value, known in zip(each[name], counted, strict=True)]

    return [
        Block(
            "Cost of one video",
            [
                ("model", list(each["architecture"])),
                ("frames", [str(frames) for frames in each["frames"]]),
                ("fast tokens", column("fast_tokens", ",")),
                ("slow tokens", column("slow_tokens", ",")),
                ("prefill TFLOP", column("prefill_tflop_7b", ".2f")),
                ("model TFLOP", column("model_tflop_7b", ".1f")),
            ],
            names=1,
        )
    ]


def _title(name: str) -> str:
    return "average" if name == AVERAGE else benchmark_named(name).title


def _dicts(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


# -------------------------------------------------------------------------------------------------------- foot


def foot_lines(rows: pd.DataFrame, samples: pd.DataFrame) -> list[str]:
    """What stands under the table."""
    asked = samples.drop_duplicates(statistics.QUESTION)
    limits = sorted({record["limit"] for record in rows["suite"] if record["limit"] is not None})
    limited = f" NOT ALL OF THEM: limit={', '.join(map(str, limits))} questions of each task." if limits else ""
    return [
        f"Measured: lmms-eval's own metric of each benchmark, 0-100; 95% intervals by {statistics.DRAWS:,} draws of "
        "videos; one checkpoint each, so that they say nothing of other trainings. Differences: measured minus "
        "published; their intervals are the measured score's, for nothing is known of the published one's.",
        f"{len(asked):,} questions about {asked['video'].nunique():,} videos.{limited} Failures are scored wrong and "
        "stay in the denominator.",
        "MLVU is scored twice: as lmms-eval does now, the mean over categories, and as the official README does, the "
        "mean over questions; a published number stands beside the one of its own aggregation.",
        "prompts: whose, and whose rule of sampling frames where the two differ. Video-MME is without subtitles "
        "unless its column says so.",
        "FLOP: 2 x multiply-adds, attention as the full square, lm_head on the last position; prefill: the language "
        "model with its cross-attention; model: with vision tower and projector.",
        *foot.made_lines(rows),
        *foot.failure_lines(samples),
        *foot.disclosure_lines(rows),
    ]
