"""The roofline: the least time a stage can take on a device, from its operators' FLOPs and bytes.

Each operator takes the longer of what its arithmetic takes at the device's peak and what its bytes take at the
memory's bandwidth, and one follows the other: the sum is the prediction. Elementwise operations, norms and launches
are not in it, so a measurement is above it; how far is `measured_over_predicted`.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from harness.profilers.operators import Operator

DEVICES = Path(__file__).parents[1] / "conf" / "devices.yaml"
PROBE_WIDTHS = (256, 512, 1024, 1536)  # of the square matrices that a processor multiplies, up to 7 GFLOP
PROBE_BYTES = 2**28  # that it copies, far more than its caches hold
PROBES = 5  # of which the fastest counts: a peak, not an average
LONG_PROBE_S = 0.05  # beyond which no larger product is tried: in a type without fast products it would take minutes


@dataclass(frozen=True)
class Roof:
    """A device's best: FLOP/s by type (names as in `torch.bfloat16`), bytes/s of its memory, and who says so."""

    title: str
    flop_per_s: dict[str, float]
    bytes_per_s: float
    source: str


@dataclass(frozen=True)
class Prediction:
    """Seconds by what binds: of the operators that arithmetic binds, and of those that memory does."""

    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.compute_s + self.memory_s

    @property
    def bound(self) -> str:
        """Where the larger part of the time goes: "compute" or "memory"."""
        return "compute" if self.compute_s >= self.memory_s else "memory"


def predict(operators: Iterable[Operator], roof: Roof, dtype: str) -> Prediction | None:
    """The least time of the operators in `dtype`; None where the roof does not say its peak."""
    if dtype not in roof.flop_per_s:
        return None
    bound = {"compute": 0.0, "memory": 0.0}
    for operator in operators:
        compute_s = operator.needed_flop / roof.flop_per_s[dtype]
        memory_s = operator.bytes / roof.bytes_per_s
        bound["compute" if compute_s >= memory_s else "memory"] += operator.times * max(compute_s, memory_s)
    return Prediction(bound["compute"], bound["memory"])


def listed_roofs(file: Path = DEVICES) -> dict[str, Roof]:
    """The roof of every device of the table, by the names under which torch knows it."""
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: _roof(entry) for entry in entries for name in entry["names"]}


def roof_of(device: torch.device, dtype: torch.dtype) -> tuple[Roof | None, str]:
    """The roof of a device, a processor's measured now; None, and why in a sentence, for one that is not listed."""
    if device.type == "cpu":
        return measured_roof(dtype), ""
    name = torch.cuda.get_device_name(device)
    roof = listed_roofs().get(name)
    if roof is not None:
        return roof, ""
    return None, f"'{name}' is not in {DEVICES.name}, so nothing is predicted for it: add its peak and bandwidth there."


def measured_roof(dtype: torch.dtype) -> Roof:
    """This processor's: a square matrix product in `dtype`, a copy (read and written), at the threads in use."""
    flop_per_s = 0.0
    for width in PROBE_WIDTHS:
        left, right = torch.randn(2, width, width).to(dtype)
        seconds = fastest(lambda left=left, right=right: left @ right)
        flop_per_s = max(flop_per_s, 2 * width**3 / seconds)
        if seconds > LONG_PROBE_S:
            break
    source, target = torch.ones(2, PROBE_BYTES // 2, dtype=torch.uint8)
    bytes_per_s = 2 * source.nbytes / fastest(lambda: target.copy_(source))
    threads = torch.get_num_threads()
    title = f"this processor, {threads} thread{'s' if threads > 1 else ''}"
    return Roof(title, {name_of(dtype): flop_per_s}, bytes_per_s, "measured just before")


def fastest(run: Callable[[], object], probes: int = PROBES) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    run()
    taken = []
    for _ in range(probes):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def name_of(dtype: torch.dtype) -> str:
    """A type's name without its module: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _roof(entry: dict) -> Roof:
    peak = {name: 1e12 * value for name, value in entry["tflop_per_s"].items()}
    return Roof(entry["title"], peak, 1e9 * entry["gb_per_s"], entry["source"])
