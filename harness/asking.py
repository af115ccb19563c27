"""What is asked of a suite: which benchmarks, tasks and questions, under which environment, and which judge.

A suite's questions stand in its index; `harness.evaluate` asks our own models, `harness.external` lmms-eval's.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from harness.benchmarks import Benchmark, benchmark_named
from harness.errors import UserError
from harness.mini.suite import load_index
from harness.paths import cache_dir

JUDGE = ("OPENAI_API_URL", "https://api.openai.com/v1/chat/completions")  # where the packaged tasks look for theirs
LOOPBACK = ("127.0.0.1", "::1", "localhost")
COLUMNS = [
    *("benchmark", "task", "doc_id", "video", "category", "family", "n_options"),
    *("target", "prediction", "correct", "failure", "message", "answer", "seconds"),
]


def chosen_index(suite: Path, benchmarks: Sequence[str] | None = None, limit: int | None = None) -> pd.DataFrame:
    """The suite's questions of these benchmarks, the first `limit` of each task.

    UserError for a benchmark that it has none of, or none of whose videos could be there.
    """
    index = load_index(suite)
    known = set(index["benchmark"])
    for name in benchmarks or ():
        if benchmark_named(name).name not in known:
            raise UserError(f"benchmarks={name}: {suite} has no questions of it, only of {', '.join(sorted(known))}")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: give a whole number of at least 1, or none")
    index = index[index["benchmark"].isin(benchmarks or known)]
    index = index[index["doc_id"].astype(int) < limit] if limit else index
    for name, videos in index.groupby("benchmark", sort=False)["video"]:
        folders = {Path(video).parent for video in videos}
        if not any((suite / "home" / folder).is_dir() for folder in folders):  # lmms-eval would try to download them
            where = suite / "home" / min(folders)
            raise UserError(f"{name}: there is no folder {where}, in which its videos are looked for; restore them")
    return index.reset_index(drop=True)


def chosen_benchmarks(index: pd.DataFrame) -> dict[str, Benchmark]:
    """The benchmarks of an index, by name, in its order."""
    return {name: benchmark_named(name) for name in index["benchmark"].unique()}


def tasks_of(index: pd.DataFrame) -> dict[str, Benchmark]:
    """The lmms-eval tasks of an index, in the registry's order, each with its benchmark."""
    there = set(index["task"])
    return {task: b for b in chosen_benchmarks(index).values() for task in b.tasks if task in there}


def judge_hosts(benchmarks: dict[str, Benchmark], online: bool) -> list[str]:
    """Hosts of the language model that the packaged tasks of these benchmarks ask; none if there is no such task.

    UserError where that would reach the network unasked, or without a key.
    """
    judged = [name for name, benchmark in benchmarks.items() if benchmark.judge]
    if not judged:
        return []
    host = urlsplit(os.environ.get(*JUDGE)).hostname or ""
    if host not in LOOPBACK and not online:
        raise UserError(
            f"{', '.join(judged)}: answers are judged by a language model at {host}; allow it with online=true, point "
            f"{JUDGE[0]} at a server on this machine, or leave it out of benchmarks="
        )
    if host not in LOOPBACK and not os.environ.get("OPENAI_API_KEY"):
        raise UserError(f"{', '.join(judged)}: the judge at {host} wants a key; set OPENAI_API_KEY")
    return [host]


def keys_of(index: pd.DataFrame) -> list[tuple[str, int]]:
    """(task, doc_id) of every line of an index."""
    return list(zip(index["task"], index["doc_id"].astype(int), strict=True))


def with_questions(index: pd.DataFrame, answered: pd.DataFrame) -> pd.DataFrame:
    """What was answered beside what was asked (`COLUMNS`); real data has no families, some no targets."""
    asked = index.rename(columns={"answer": "target"})
    asked = asked.assign(target=asked["target"].fillna(""), family=asked.get("family", ""))
    return pd.concat([asked, answered], axis=1)[COLUMNS]


def variables_of(suite: Path, online: bool = False) -> dict[str, str]:
    """Environment variables under which the packaged tasks read a suite, and nothing asks the hub unless `online`."""
    return {
        "HF_HOME": str(suite.resolve() / "home"),
        "HF_HUB_OFFLINE": "0" if online else "1",
        "LMMS_EVAL_DATASETS_CACHE": str(cache_dir() / "datasets"),
    }
