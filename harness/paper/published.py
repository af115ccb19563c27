"""Each measured score beside the published one of the same model, and what differs in how the two were made.

A published number is compared with the score of its own aggregation: MLVU's is a mean over questions in one source and
over categories in another. What a source does not say is listed as not known; nothing is assumed in its favour.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.benchmarks import Benchmark, benchmark_named
from harness.paper.models import ModelSpec, Published
from harness.paper.rows import ITS_OWN
from harness.prompt_styles import OFFICIAL_TOKENS, PROMPTS
from harness.real.catalogue import EXPECTED

CATEGORIES, QUESTIONS = "categories", "samples"  # what a score is a mean over, in the registry's words
AS_PACKAGED = "as packaged"
AS_NAMED = "as named"  # of subtitles: the published column's name says whether there are any
PARTS = {"tempcompass": "its multiple choice, one of four"}  # what is asked of a benchmark that has more to ask
SUBTITLES = {"videomme": "without", "videomme_w_subtitle": "with", "longvideobench": "without"}


@dataclass(frozen=True)
class Beside:
    """A published number for a measured one; `differs` and `unknown` are sentences."""

    score: float
    metric: str
    source: str
    note: str
    differs: tuple[str, ...]
    unknown: tuple[str, ...]


def find_published(
    published: pd.DataFrame, spec: ModelSpec, row: pd.Series, name: str, aggregation: str, asked: int, ambiguous: bool
) -> list[Beside]:
    """What is published of a row's model on the benchmark `name` under `aggregation`.

    published: as `harness.reports.published.read_published` has it. asked: questions of ours. ambiguous: whether the
    benchmark's two aggregations differ, so that a source that names none leaves one open; it is then put beside
    lmms-eval's own.
    """
    benchmark = benchmark_named(name)
    found = []
    for its in spec.published:
        for line in published[published["model"].eq(its.model)].to_dict("records"):
            frames = line["frames"]
            stated = aggregation_of(line["metric"])
            if line["benchmark"] != benchmark.title or (pd.notna(frames) and frames != row["frames"]):
                continue
            if aggregation != (stated or benchmark.aggregation):
                continue
            open_points = ["frames"] if pd.isna(frames) else []
            open_points += ["aggregation"] if stated is None and ambiguous else []
            differs, unknown = differences(made_with(row, benchmark, asked), its, benchmark)
            note = "" if pd.isna(line["note"]) else line["note"]
            unknown = (*(f"{point}: not stated" for point in open_points), *unknown)
            found.append(Beside(line["score"], line["metric"], line["source"], note, differs, unknown))
    return found


def aggregation_of(metric: str) -> str | None:
    """What a published metric says it is a mean over; None where it does not say."""
    if re.search(r"mean over (samples|questions)", metric):
        return QUESTIONS
    return CATEGORIES if re.search(r"mean over (\d+ )?categories", metric) else None


def made_with(row: pd.Series, benchmark: Benchmark, asked: int) -> dict[str, str]:
    """How a row's score on a benchmark was made: the entries that published numbers are compared in."""
    record = row["suite"]
    return {
        "prompts": prompts_of(benchmark, record["prompts"]),
        "sampling": record["sampling"],
        "subtitles": SUBTITLES.get(benchmark.name, ""),
        "decoder": str(record["decoder"].get(benchmark.name) or "not known").partition(" ")[0],
        "answer tokens": tokens_of(record["prompts"]),
        "precision": str(record["precision"] or "its code's own"),
        "generated tokens": _reading(record["generated_read_slow"]),
        "lmms-eval": row["versions"]["lmms-eval"],
        "judge": record.get("judge", {}).get(benchmark.name, ""),
        "tasks": PARTS.get(benchmark.name, ""),
        "questions": questions_of(benchmark, asked, record["limit"]),
    }


def differences(
    ours: Mapping[str, str], its: Published, benchmark: Benchmark
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The entries in which the two differ, and those that are not known of the published number, as sentences."""
    differs, unknown = [], []
    for entry, value in ours.items():
        if value == "":  # does not apply
            continue
        theirs = its.made_with.get(entry)
        if theirs is None:
            unknown.append(f"{entry}: {value} here, published: not known")
            continue
        theirs = prompts_of(benchmark, str(theirs)) if entry == "prompts" else str(theirs)
        if theirs not in (value, AS_NAMED):
            differs.append(f"{entry}: {value} here, published: {theirs}")
    return tuple(differs), tuple(unknown)


def prompts_of(benchmark: Benchmark, style: str) -> str:
    """A style's name, or that it asks this benchmark's questions as packaged."""
    return AS_PACKAGED if style == "official" and not set(benchmark.tasks) & set(PROMPTS) else _packaged(style)


def tokens_of(style: str) -> str:
    """Tokens that an answer may have, at most."""
    return {"official": str(OFFICIAL_TOKENS), ITS_OWN: ITS_OWN}.get(style, "as each task has it")


def questions_of(benchmark: Benchmark, asked: int, limit: int | None) -> str:
    """How many questions were asked, and of how many, where that is another number or not known."""
    whole = EXPECTED[benchmark.name].questions
    if whole is None:
        return f"{asked:,}" + ("" if limit is None else f" (limit={limit})")
    return f"all {asked:,}" if asked == whole else f"{asked:,} of {whole:,}"


def lettered(sentences: Iterable[Sequence[str]]) -> dict[str, str]:
    """A mark for each different sentence, in order of appearance: a, b, ..., z, aa, ab, ..."""
    different = dict.fromkeys(sentence for several in sentences for sentence in several)
    return {sentence: _letters(number) for number, sentence in enumerate(different)}


def _letters(number: int) -> str:
    more, last = divmod(number, 26)
    return (_letters(more - 1) if more else "") + chr(ord("a") + last)


def _packaged(style: str) -> str:
    return AS_PACKAGED if style == "lmms_eval" else style


def _reading(reads: bool | None) -> str:
    return {None: "", True: "read slow tokens", False: "do not read slow tokens"}[reads]
