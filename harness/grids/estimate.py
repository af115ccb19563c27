"""How long stages will take: as long as the finished stages like them took.

Like a stage are those of the same function that share the most arguments with it. They are found among the finished
stages of the runs folder and, for a fresh clone, among the times of the committed rows and their replicates. Of those,
the lower quartile of the times per unit of work (a step of training, a clip of a pool, a question) times the stage's
units: whatever ran beside a stage made it longer; not the shortest, for of an interrupted stage the last attempt alone
is recorded. Of evaluations the median, since one that finds its videos' features in the memo is much shorter than the
first. Where there is nothing like it, a stage's weight stands, which is a guess.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from harness.grids.plans import Planned, StageFacts, flat
from harness.mini.suite import QUESTIONS_PER_VIDEO, SIZES
from harness.row_store import FAILURES_SUFFIX

OWN, COMMITTED, GUESSED = "finished stages like them", "committed rows", "guesses"
DESCRIPTION = "stage.json"
SCORES = "scores.json"  # see harness.evaluate, which takes seconds to import
SECONDS_PER_VIDEO = 0.035  # of one core, of a suite that has to be generated: 13 s for 799 clips by two processes
TRAINING = "harness.mini.training:"
REPLICATES = "replicates"  # see harness.reports.replicates
SCORING = "harness.table_stages:scores_stage"


@dataclass(frozen=True)
class Record:
    """A finished stage: its arguments, flat, its time in seconds and its units of work."""

    kwargs: Mapping[str, Any]
    seconds: float
    units: float
    source: str


@dataclass
class Times:
    """What is recorded, by function; `used` counts the sources of the estimates that were asked for."""

    records: dict[str, list[Record]]
    used: Counter = field(default_factory=Counter)
    known: dict[str, float] = field(default_factory=dict)

    @classmethod
    def recorded(cls, runs: Path, results: Path) -> "Times":
        """From the finished stages in `runs` and the rows in `results`."""
        records: dict[str, list[Record]] = defaultdict(list)
        for function, record in (*_of_stages(runs), *_of_rows(results)):
            records[function].append(record)
        return cls(records)

    def seconds(self, stage: StageFacts, row: Planned) -> float:
        """Expected seconds of a stage of a row."""
        if stage.folder not in self.known:
            self.known[stage.folder], source = self._estimate(stage, row)
            self.used[source] += 1
        return self.known[stage.folder]

    def _estimate(self, stage: StageFacts, row: Planned) -> tuple[float, str]:
        likeness = [(_likeness(record.kwargs, stage.kwargs), record) for record in self.records[stage.function]]
        if not likeness:
            return stage.weight, GUESSED
        best = max(alike for alike, _ in likeness)
        alike = [record for likeness_, record in likeness if likeness_ == best]
        alike = [record for record in alike if record.source == OWN] or alike
        units = questions_of(row.suite) if stage.function == SCORING else _units(stage.kwargs)
        times = [record.seconds / record.units for record in alike]
        typical = median(times) if stage.function == SCORING else _lower_quartile(times)
        return typical * units, alike[0].source


def _lower_quartile(times: Sequence[float]) -> float:
    return quantiles(times, n=4, method="inclusive")[0] if len(times) > 1 else times[0]


def unfinished(rows: Iterable[Planned], runs: Path) -> dict[str, tuple[StageFacts, Planned]]:
    """The stages that are left for `rows`, by folder: one that rows share is there once, with its first row."""
    left: dict[str, tuple[StageFacts, Planned]] = {}
    for row in rows:
        for stage in row.unfinished(runs):
            left.setdefault(stage.folder, (stage, row))
    return left


def wall_seconds(seconds: Mapping[str, float], needs: Mapping[str, Sequence[str]], jobs: int) -> float:
    """How long `jobs` workers take for stages of so many seconds, each after those it needs; longest chains first."""
    after = defaultdict(list)
    missing = {}
    for name in seconds:
        needed = [need for need in needs[name] if need in seconds]
        missing[name] = len(needed)
        for need in needed:
            after[need].append(name)
    chain: dict[str, float] = {}

    def chain_of(name: str) -> float:
        if name not in chain:
            chain[name] = seconds[name] + max(map(chain_of, after[name]), default=0.0)
        return chain[name]

    ready = [(-chain_of(name), name) for name in seconds if not missing[name]]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < max(jobs, 1):
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[name], name))
        now, finished = heapq.heappop(running)
        for name in after[finished]:
            missing[name] -= 1
            if not missing[name]:
                heapq.heappush(ready, (-chain_of(name), name))
    return now


def questions_of(suite: Mapping[str, Any]) -> int:
    """How many questions a suite of these parameters asks."""
    return sum(getattr(SIZES[suite["sizes"]], name) * asked for name, asked in QUESTIONS_PER_VIDEO.items())


def suite_seconds(rows: Iterable[Planned]) -> float:
    """Seconds to generate the suites that the rows need and that are not there."""
    missing = {json.dumps(dict(row.suite), sort_keys=True): row.suite["sizes"] for row in rows if not row.has_suite}
    return sum(SECONDS_PER_VIDEO * sum(vars(SIZES[sizes]).values()) for sizes in missing.values())


def _likeness(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """How many arguments are equal; those of the size of the work do not count: time is taken per unit."""
    apart = {"recipe.steps", "start", "stop", "seed", "base_seed"}
    return sum(key in other and other[key] == value for key, value in one.items() if key not in apart)


def _units(kwargs: Mapping[str, Any]) -> float:
    steps = kwargs.get("recipe.steps", kwargs.get("settings.steps"))
    if steps is not None:
        return max(steps, 1)
    return max(kwargs.get("stop", 1) - kwargs.get("start", 0), 1)


def _of_stages(runs: Path) -> Iterator[tuple[str, Record]]:
    for path in runs.glob(f"[!.]*/{DESCRIPTION}"):  # with a dot before it: at work, or about to get its name
        stage = json.loads(path.read_text(encoding="utf-8"))
        kwargs = dict(flat(stage["kwargs"]))
        units = _units(kwargs)
        if stage["function"] == SCORING:
            units = json.loads((path.parent / SCORES).read_text(encoding="utf-8"))["n_samples"]
        yield stage["function"], Record(kwargs, stage["seconds"], units, OWN)


def _of_rows(results: Path) -> Iterator[tuple[str, Record]]:
    for path in (path for folder in ("rows", REPLICATES) for path in (results / folder).rglob("*_seed*.jsonl")):
        if path.name.startswith(".") or path.name.endswith(FAILURES_SUFFIX):  # half-written, or no rows
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("timings") and "scale" in row.get("config", {}):
                yield from _of_row(row)


def _of_row(row: Mapping[str, Any]) -> Iterator[tuple[str, Record]]:
    """A row's times as those of its stages, with what it knows of their arguments."""
    scale, seconds = row["config"]["scale"], row["timings"]
    for function, name, recipe in (
        ("encoder_stage", "encoder", "encoder_training"),
        ("base_stage", "base", "base"),
        ("adapt_stage", "adapt", "adapt"),
    ):
        if name == "adapt" and row["config"].get("training", {}).get("stages"):  # several stages' time in one
            continue
        own = {"frames": row["frames"], "variant": row["config"]} if name == "adapt" else {}
        kwargs = dict(flat({"recipe": scale[recipe], **own}))
        yield f"{TRAINING}{function}", Record(kwargs, seconds[name], _units(kwargs), COMMITTED)
    clips = scale["pool_clips"] + min(100, scale["pool_clips"])
    yield f"{TRAINING}pool_stage", Record({}, seconds["pool"], clips, COMMITTED)
    asked = {"frames": row["frames"], "control": row["control"]}
    yield SCORING, Record(asked, seconds["evaluate"], row["n_samples"], COMMITTED)
