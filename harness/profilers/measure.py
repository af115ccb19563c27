"""Time and memory of models stage by stage, measured beside their roofline: a row per model, frames and stage.

Every (model, frames) is one cell, and all cells take turns in one process. The middle of the rounds is reported with
its quartiles; a cell that runs out of memory or time, or for which there is no kernel, says so in its `error`.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.cost import decode_cost
from harness.errors import Crashed
from harness.profilers.attention import kernel, use_attention
from harness.profilers.machine import Machine
from harness.profilers.operators import Operator, totals
from harness.profilers.random_weights import RandomWeights
from harness.profilers.roofline import Roof, name_of, predict, roof_of
from harness.profilers.timing import Clock, RefusedError, Rounds, Timed, interleaved
from harness.profilers.workload import PREFILL, Workload, counted_parts
from harness.progress import SILENT, Progress
from harness.video import read_frames

STAGES = {  # what a row is about: the parts of a workload that it sums
    "vision": ("vision",),
    "projector": ("projector",),
    "slow_keys_values": ("slow_keys_values",),
    "decoder": ("decoder",),
    "lm_head": ("lm_head",),
    "prefill": PREFILL,
    "model": ("vision", "projector", *PREFILL),
    "decode": ("decode",),
    "end_to_end": ("vision", "projector", *PREFILL, "decode"),
}
VIDEO_DECODING = "video_decoding"
PEAK_KINDS = {"cuda": "CUDA allocator, weights of all models", "cpu": "torch's allocator, weights of this model"}


@dataclass(frozen=True)
class Options:
    """How it is measured. `attention` as in `harness.profilers.attention`; `compile`: a backend of torch.compile."""

    device: torch.device
    dtype: torch.dtype
    rounds: Rounds
    text_tokens: Sequence[int] = (64,)
    new_tokens: int = 8
    attention: str = "sdpa"
    compile: str | None = None
    seed: int = 0


@dataclass
class Subject:
    """A model to be measured, built when it is first needed: then its size is a result too."""

    name: str
    config: SlowFastConfig
    weights: RandomWeights
    options: Options

    @cached_property
    def model(self) -> SlowFastForConditionalGeneration:
        """The model on the device; RefusedError for an attention that is not to be had here."""
        model = self.weights.model(self.config)
        try:
            use_attention(model, self.options.attention)
        except (ImportError, ValueError) as error:
            raise RefusedError(f"attention '{self.options.attention}': {error}") from error
        if self.options.compile is not None:
            for module in (model.encoder, model.language_model.model):
                module.compile(backend=self.options.compile, dynamic=True)
        return model

    @cached_property
    def shape(self) -> SlowFastForConditionalGeneration:
        """The model on the meta device."""
        return RandomWeights("meta", self.options.dtype).model(self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(parameter.nbytes for parameter in self.model.parameters())


@dataclass(frozen=True)
class Cell:
    """A model, a number of frames and of text tokens."""

    subject: Subject
    frames: int
    text_tokens: int

    def run(self, clock: Clock) -> None:
        """One round."""
        model, options = self.subject.model, self.subject.options
        with kernel(options.attention):
            Workload(model, self.frames, self.text_tokens, options.new_tokens).run(clock)

    def counted(self) -> dict[str, list[Operator]]:
        """The operators of each part."""
        options = self.subject.options
        return counted_parts(Workload(self.subject.shape, self.frames, self.text_tokens, options.new_tokens))


@dataclass
class Measured:
    """The rows; why there is no prediction ("": there is one); a word on the video file ("": none was read).

    `crashes`: tracebacks of cells that a mistake in the code ended; the others' rows are whole.
    """

    rows: pd.DataFrame
    roof: Roof | None
    unpredicted: str
    machine: Machine
    video: str = ""
    crashes: list[str] = field(default_factory=list)

    def complain(self) -> None:
        """Crashed, with the tracebacks on stderr, if there were any: to be called when everything is written."""
        if self.crashes:
            print(*self.crashes, sep="\n", file=sys.stderr)
            raise Crashed(f"{len(self.crashes)} cells crashed, see above; all other rows are written")


def measure(
    configs: Mapping[str, SlowFastConfig],
    frames: Sequence[int],
    options: Options,
    video: Path | None = None,
    progress: Progress = SILENT,
) -> Measured:
    """Rows of every model at every number of frames; with a `video` file also of reading its frames.

    The rounds' time is that of all of it, counting included.
    """
    started = time.monotonic()
    weights = RandomWeights(options.device, options.dtype, options.seed)
    subjects = [Subject(name, config, weights, options) for name, config in configs.items()]
    cells = [Cell(subject, n, text) for text in options.text_tokens for n in frames for subject in subjects]
    readings = [] if video is None else [partial(_read, video, n) for n in frames]
    counted = [cell.counted() for cell in progress.track(cells, "counting operators")]
    roof, unpredicted = roof_of(options.device, options.dtype)
    runs: list[Callable[[Clock], None]] = [*(cell.run for cell in cells), *readings]
    rounds = options.rounds.after(time.monotonic() - started)
    crashes: list[str] = []
    timed = interleaved(runs, rounds, options.device, progress, crashes=crashes)
    machine = Machine.of(options.device)  # now, while its clocks are those of work
    rows = []
    for cell, parts, result in zip(cells, counted, timed, strict=False):
        rows += _rows(cell, parts, result, roof)
    for n, result in zip(frames, timed[len(cells) :], strict=False):
        rows.append(_reading_row(n, result))
    common = {
        "dtype": name_of(options.dtype),
        "attention": options.attention,
        "compile": options.compile,
        "new_tokens": options.new_tokens,
        **machine.fields(),
    }
    return Measured(pd.DataFrame(rows).assign(**common), roof, unpredicted, machine, crashes=crashes)


def _rows(cell: Cell, parts: dict[str, list[Operator]], timed: Timed, roof: Roof | None) -> list[dict[str, Any]]:
    """A row per stage of one cell."""
    options = cell.subject.options
    caches = decode_cost(cell.subject.config, cell.frames, cell.text_tokens, options.dtype.itemsize)
    rows = []
    for stage, of_stage in STAGES.items():
        repeats = {"decode": options.new_tokens} if stage == "end_to_end" else {}
        operators = [each * repeats.get(part, 1) for part in of_stage for each in parts[part]]
        flop, moved = totals(operators)
        per = options.new_tokens if stage == "decode" else 1
        row = {"architecture": cell.subject.name, "frames": cell.frames, "text_tokens": cell.text_tokens}
        row |= {"stage": stage, **_times(timed, of_stage, per), "peak_bytes": _peak(cell, timed, of_stage)}
        row |= {"peak_kind": PEAK_KINDS[options.device.type], "kv_bytes": caches.kv_bytes}
        row |= {"slow_kv_bytes": caches.slow_kv_bytes, "flop": flop, "bytes": moved}
        rows.append(row | _prediction(operators, roof, name_of(options.dtype), row["median_ms"]))
    return rows


def _times(timed: Timed, parts: Sequence[str], per: int) -> dict[str, Any]:
    """Median and quartiles of the sum of some parts, in milliseconds, over `per`; none of a cell that failed."""
    summed = Timed(rounds=timed.rounds)
    if timed.rounds and not timed.error:
        summed.seconds["all"] = [sum(each) / per for each in zip(*(timed.seconds[p] for p in parts), strict=True)]
        middle, low, high = summed.quartiles_ms("all")
    else:
        middle = low = high = None
    return {"median_ms": middle, "q1_ms": low, "q3_ms": high, "rounds": timed.rounds, "error": timed.error}


def _peak(cell: Cell, timed: Timed, parts: Sequence[str]) -> int | None:
    """Peak bytes of some parts, weights included; None where no round was watched, or one failed."""
    if timed.error or not set(parts) <= set(timed.peaks):
        return None
    largest = max(timed.peaks[part] for part in parts)
    return largest + (cell.subject.nbytes if cell.subject.options.device.type == "cpu" else 0)


def _prediction(operators: list[Operator], roof: Roof | None, dtype: str, median_ms: float | None) -> dict[str, Any]:
    """The roofline's columns; empty for a stage without operators, or a device without a roof."""
    predicted = predict(operators, roof, dtype) if roof is not None and operators else None
    ms = None if predicted is None else 1000 * predicted.seconds
    return {
        "predicted_ms": ms,
        "bound": None if predicted is None else predicted.bound,
        "measured_over_predicted": median_ms / ms if ms and median_ms is not None else None,
    }


def _read(video: Path, frames: int, clock: Clock) -> None:
    """A round of reading a file's frames."""
    clock.start()
    read_frames(video, frames)
    clock.mark(VIDEO_DECODING)
    clock.stop()


def _reading_row(frames: int, timed: Timed) -> dict[str, Any]:
    return {
        "architecture": "",
        "frames": frames,
        "text_tokens": 0,
        "stage": VIDEO_DECODING,
        **_times(timed, [VIDEO_DECODING], 1),
    }
