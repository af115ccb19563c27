"""What a part of the bench measured: variants timed in turn, medians and quartiles, as table and as CSV rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.table import Table

from harness.profilers.machine import Machine
from harness.profilers.timing import NOT_RUN, Clock, Rounds, interleaved
from harness.progress import SILENT, Progress
from harness.provenance import provenance

MS = "ms"
CPU = torch.device("cpu")
RUN = "run"


@dataclass(frozen=True)
class Case:
    """One variant of something: `run` does it once; `amount` (frames, samples) is what a rate counts.

    Cases of one `what` are compared with the first of them.
    """

    what: str
    variant: str
    run: Callable[[], Any]
    amount: float | None = None
    threads: int = 1


@dataclass(frozen=True)
class Measurement:
    """Median and quartiles of one case: milliseconds, or amounts per second."""

    part: str
    what: str
    variant: str
    value: float
    quartile_1: float
    quartile_3: float
    unit: str
    rounds: int
    threads: int

    @property
    def is_rate(self) -> bool:
        """Whether more is faster."""
        return self.unit.endswith("/s")

    def times_as_fast_as(self, other: "Measurement") -> float:
        """How many times as fast as `other` this is."""
        return self.value / other.value if self.is_rate else other.value / self.value


def measure(
    part: str, cases: Sequence[Case], unit: str, rounds: Rounds, progress: Progress = SILENT
) -> list[Measurement]:
    """Run the cases in turn; `unit` is MS, or "SOMETHING/s" of the cases' amounts.

    A case that the time did not suffice for is left out; RuntimeError if one failed.
    """
    for _ in range(rounds.warmup):
        for case in cases:
            case.run()
    # Not its own warm-up, in which it traces every allocation: an evaluation makes too many.
    timed = interleaved([_cell(case) for case in cases], replace(rounds, warmup=0), CPU, progress, part)
    for case, result in zip(cases, timed, strict=True):
        if result.error not in ("", NOT_RUN):
            raise RuntimeError(f"{part}, {case.what}, {case.variant}: {result.error}")
    return [
        _summary(part, case, np.array(result.seconds[RUN]), unit)
        for case, result in zip(cases, timed, strict=True)
        if result.rounds
    ]


def table_of(measurements: Sequence[Measurement]) -> Table:
    """The measurements of one part; the last column compares with the first variant of the same thing."""
    table = Table(title=measurements[0].part, title_justify="left")
    table.add_column("what")
    table.add_column("variant")
    table.add_column(f"{measurements[0].unit}: median (quartiles)", justify="right", no_wrap=True)
    table.add_column("speed-up", justify="right", no_wrap=True)
    for what, group in groupby(measurements, key=lambda m: m.what):
        first, *others = group
        table.add_row(what, first.variant, _spread(first), "")
        for other in others:
            table.add_row("", other.variant, _spread(other), f"{_number(other.times_as_fast_as(first))} x")
        table.add_section()
    return table


def as_frame(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """One row per measurement, with what they were made with."""
    made_by = provenance()
    versions = {f"{name.replace('-', '_')}_version": version for name, version in made_by.versions.items()}
    machine = {name: value for name, value in Machine.of(CPU).fields().items() if name != "threads"}
    facts = {**machine, **versions, "code_commit": made_by.code_commit, "code_dirty": made_by.code_dirty}
    return pd.DataFrame([{**asdict(measurement), **facts} for measurement in measurements])


def _cell(case: Case) -> Callable[[Clock], None]:
    def cell(clock: Clock) -> None:
        clock.start()
        case.run()
        clock.mark(RUN)
        clock.stop()

    return cell


def _summary(part: str, case: Case, seconds_R: np.ndarray, unit: str) -> Measurement:
    values_R = 1000 * seconds_R if unit == MS else case.amount / seconds_R
    low, middle, high = (float(value) for value in np.quantile(values_R, [0.25, 0.5, 0.75]))
    return Measurement(part, case.what, case.variant, middle, low, high, unit, len(seconds_R), case.threads)


def _spread(measurement: Measurement) -> str:
    numbers = (measurement.value, measurement.quartile_1, measurement.quartile_3)
    middle, low, high = map(_number, numbers)
    return f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
