"""Cells that are timed in turn, stage by stage: clocks, rounds, time budget, and failures that end one cell only."""

import gc
import os
import re
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch.autograd.profiler import profile

from harness.progress import SILENT, Progress

NOT_RUN = "not run: time budget"
# What torch says, in errors of no type of their own, when an allocator has no more and when there is no kernel.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
NO_KERNEL = (
    *("o available kernel", "o viable backend", "not implemented for"),
    *("o execution plans support", "unable to find an engine"),  # cuDNN: of an attention, of a convolution
)
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports its every start and stop on stderr
MEMORY_EVENT = "[memory]"  # the profiler's name for an allocation (bytes above 0) or its end (below)


class RefusedError(RuntimeError):
    """What was asked for is not to be had on this machine: why."""


class Clock(Protocol):
    """Is told what just ended; knows seconds and peak bytes of each stage when the round is over."""

    def start(self) -> None:
        """The first stage begins."""

    def mark(self, stage: str) -> None:
        """`stage` ended and the next begins; a stage may come in several parts."""

    def stop(self) -> None:
        """Nothing more comes in this round."""

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds of the round."""

    def peaks(self) -> dict[str, int]:
        """Stage -> peak bytes; nothing where this clock measures none."""


class ProcessorClock:
    """Wall-clock time of work that is done when its call returns."""

    def start(self) -> None:
        self.taken: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.taken[stage] += now - self.last
        self.last = time.perf_counter()

    def stop(self) -> None:
        """Nothing to do."""

    def seconds(self) -> dict[str, float]:
        return dict(self.taken)

    def peaks(self) -> dict[str, int]:
        return {}


class EventClock:
    """CUDA events on the current stream: the device is waited for before and after a round, never within."""

    def __init__(self, device: torch.device):
        self.device = device

    def start(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.marks: list[tuple[str, torch.cuda.Event]] = []
        self.largest: dict[str, int] = defaultdict(int)
        self._record("")

    def mark(self, stage: str) -> None:
        self._record(stage)
        peak = torch.cuda.max_memory_allocated(self.device)  # the allocator's own count: no wait for the device
        self.largest[stage] = max(self.largest[stage], peak)
        torch.cuda.reset_peak_memory_stats(self.device)

    def stop(self) -> None:
        torch.cuda.synchronize(self.device)

    def seconds(self) -> dict[str, float]:
        taken: dict[str, float] = defaultdict(float)
        for (_, before), (stage, after) in zip(self.marks, self.marks[1:], strict=False):
            taken[stage] += before.elapsed_time(after) / 1000
        return dict(taken)

    def peaks(self) -> dict[str, int]:
        return dict(self.largest)

    def _record(self, stage: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self.marks.append((stage, event))


class AllocationClock(ProcessorClock):
    """Peak bytes on the CPU by torch's allocator, as its profiler tells it: slow, so of rounds that do not count.

    Bytes are those beside what was held when the round started.
    """

    profiler: profile | None = None

    def start(self) -> None:
        super().start()
        self.largest: dict[str, int] = defaultdict(int)
        self.held = 0
        self._listen()

    def mark(self, stage: str) -> None:
        listener = self.profiler
        self.stop()
        events = [e for e in listener.kineto_results.events() if e.name() == MEMORY_EVENT]
        changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        held = self.held + np.cumsum([0, *changes])
        self.largest[stage] = max(self.largest[stage], int(held.max()))
        self.held = int(held[-1])
        super().mark(stage)
        self._listen()

    def stop(self) -> None:
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)
        self.profiler = None

    def peaks(self) -> dict[str, int]:
        return dict(self.largest)

    def _listen(self) -> None:
        self.profiler = profile(profile_memory=True)
        self.profiler.__enter__()


@dataclass
class Timed:
    """What rounds of one cell gave: seconds of every round by stage, peak bytes; `error`: why there are no more."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peaks: dict[str, int] = field(default_factory=dict)
    error: str = ""
    rounds: int = 0
    last_s: float = 0.0  # of its last round, preparation too

    def quartiles_ms(self, stage: str) -> tuple[float, float, float]:
        """(median, first, third quartile) of a stage's milliseconds."""
        low, middle, high = np.quantile(1000 * np.array(self.seconds[stage]), [0.25, 0.5, 0.75])
        return float(middle), float(low), float(high)


@dataclass(frozen=True)
class Rounds:
    """How often each cell runs.

    measured: rounds of every cell if the time allows; warmup: unmeasured ones before them. at_least: rounds that
    long cells get too; further rounds only for cells that have used less than their equal share of the time.
    seconds: after which no round begins (None: no limit).
    """

    measured: int
    warmup: int
    at_least: int | None = None
    seconds: float | None = None

    def after(self, seconds: float) -> "Rounds":
        """The same where so much of the time is gone."""
        return self if self.seconds is None else replace(self, seconds=max(self.seconds - seconds, 0.0))


def interleaved(
    cells: Sequence[Callable[[Clock], None]],
    rounds: Rounds,
    device: torch.device,
    progress: Progress = SILENT,
    name: str = "measuring",
    crashes: list[str] | None = None,
) -> list[Timed]:
    """Run all cells in turn, round after round, every other round in reverse order, so that drift can't decide.

    A cell allocates what it needs, tells the clock its stages, and lets go of everything. Where memory does not
    suffice, or torch has no kernel for what is asked, that cell ends with the reason as its `error`. Any other
    exception is raised; with a list of `crashes` its traceback goes there instead, and only that cell ends.
    """
    results = [Timed() for _ in cells]
    started = time.monotonic()
    share_s = (rounds.seconds or 0.0) / max(len(cells), 1)
    with progress.bar(name, total=len(cells) * (rounds.warmup + rounds.measured)) as bar:
        for number in range(-rounds.warmup, rounds.measured):
            clock = _clock(device, unmeasured=number < 0)
            forwards = number < 0 or number % 2 == 0
            for index in range(len(cells)) if forwards else reversed(range(len(cells))):
                timed = results[index]
                left_s = None if rounds.seconds is None else rounds.seconds - (time.monotonic() - started)
                beyond = number >= (rounds.at_least or rounds.measured)
                if not timed.error and _fits(timed, left_s) and not (beyond and _used_s(timed) > share_s):
                    _one_round(cells[index], timed, clock, number >= 0, crashes)
                bar.advance()
    for timed in results:
        if not timed.rounds and not timed.error:
            timed.error = NOT_RUN
    return results


def _fits(timed: Timed, left_s: float | None) -> bool:
    """Whether a round as long as the cell's last one ends in time; of a new cell nothing is known."""
    return left_s is None or left_s > timed.last_s


def _used_s(timed: Timed) -> float:
    return timed.last_s * (timed.rounds + 1)


def _one_round(
    cell: Callable[[Clock], None], timed: Timed, clock: Clock, measured: bool, crashes: list[str] | None
) -> None:
    started = time.monotonic()
    try:
        cell(clock)
    except Exception as error:  # noqa: BLE001 - a mistake in one cell must not lose the others' minutes: see `crashed`
        timed.error = refusal(error) or crashed(error, crashes)
        clock.stop()
    else:
        for stage, peak in clock.peaks().items():
            timed.peaks[stage] = max(timed.peaks.get(stage, 0), peak)
        if measured:
            timed.rounds += 1
            for stage, seconds in clock.seconds().items():
                timed.seconds[stage].append(seconds)
    if timed.error:
        free_memory()
    timed.last_s = time.monotonic() - started


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of arithmetic: of several, each waits for the one that something else on the machine holds up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def refusal(error: Exception) -> str:
    """Why a cell ends, in a sentence, when memory does not suffice or what is asked for is not to be had.

    "" for an error of another kind: a mistake in the code is no result.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY):
        wanted = re.search(r"ried to allocate ([\d.]+ \w+)", text)
        return f"out of memory{f': {wanted[1]} more were asked for' if wanted else ''}"
    if isinstance(error, RefusedError) or any(words in text for words in NO_KERNEL):
        return f"not available: {_sentence(text)}"
    return ""


def crashed(error: Exception, crashes: list[str] | None) -> str:
    """Notes the traceback, as text so that it holds no memory, and says what happened; without a list, raises it."""
    if crashes is None:
        raise error
    crashes.append("".join(traceback.format_exception(error)))
    return f"crashed: {type(error).__name__}: {_sentence(str(error))}"


def free_memory() -> None:
    """Return what a failed round left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _sentence(text: str) -> str:
    """The first line up to its first full stop, without commas, so that it stays one cell of a table."""
    return text.strip().partition("\n")[0].partition(". ")[0].rstrip(".").replace(",", ";")


def _clock(device: torch.device, unmeasured: bool) -> Clock:
    if device.type == "cuda":
        return EventClock(device)
    return AllocationClock() if unmeasured else ProcessorClock()
