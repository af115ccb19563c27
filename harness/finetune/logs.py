"""What the log says beside the loss: throughput, memory, FLOPs of a step and their share of the device's peak.

Counted are rows with a label, their real tokens, and all frames, over all processes, between two entries of the log:
waiting for data included, writing checkpoints left out. `StepCost` says how FLOPs are counted.
"""

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from harness.finetune.flops import StepCost, frames_of, learning_rows, real_tokens
from harness.profilers.roofline import listed_roofs
from harness.progress import Bar, Progress

KEYS = ("samples_per_s", "frames_per_s", "tokens_per_s", "peak_memory_gb", "tflop_per_step", "share_of_peak")
SECONDS_BETWEEN_LOSSES = 30.0
Sum = Callable[[list[float]], list[float]]  # of one number per process, for each of several


class Meter(TrainerCallback):
    """Looks at every batch and at the clock, and says what there is to say at each entry of the log."""

    def __init__(
        self, cost: StepCost | None, peak_flop_per_s: float | None, clock: Callable[[], float] = time.monotonic
    ):
        """Without `cost` (a decoder that has no closed form) and peak (a device that is not listed): less is said.

        Args:
            peak_flop_per_s: of one process's device.
        """
        self.cost, self.peak, self.clock = cost, peak_flop_per_s, clock
        self.started = clock()
        self._reset()

    def _reset(self) -> None:
        self.samples = self.frames = self.tokens = self.flop = self.steps = 0
        self.seconds = 0.0

    def saw(self, inputs: Mapping[str, Any]) -> int:
        """Takes note of a batch of this process; its FLOPs (0 where they are not counted)."""
        flop = self.cost.flop(inputs) if self.cost is not None else 0
        learns_B = learning_rows(inputs)
        self.samples += int(learns_B.sum())
        self.frames += sum(frames_of(inputs))
        self.tokens += int(real_tokens(inputs)[learns_B].sum())
        self.flop += flop
        return flop

    def numbers(self, over_all: Sum, processes: int) -> dict[str, float]:
        """What has been seen since the last time, of all processes together; begins anew."""
        samples, frames, tokens, flop = over_all([self.samples, self.frames, self.tokens, self.flop])
        steps, seconds = max(self.steps, 1), max(self.seconds, 1e-9)
        said = {"samples_per_s": samples / seconds, "frames_per_s": frames / seconds, "tokens_per_s": tokens / seconds}
        said["peak_memory_gb"] = peak_memory() / 1e9
        if self.cost is not None:
            said["tflop_per_step"] = flop / steps / 1e12
            if self.peak is not None:
                said["share_of_peak"] = flop / seconds / (self.peak * processes)
        self._reset()
        return said

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        self.seconds += self.clock() - self.started
        self.started = self.clock()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.clock()


class ShownSteps(TrainerCallback):
    """Shows how many steps are done, from where a resumed run begins, and tells the loss, twice a minute at most."""

    def __init__(self, progress: Progress):
        self.progress, self.told = progress, time.monotonic()
        self.bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = self.progress.bar("steps", state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.advance(state.global_step - self.bar.done)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        now = time.monotonic()
        if "loss" in logs and now - self.told >= SECONDS_BETWEEN_LOSSES:
            self.progress.say(f"step {state.global_step}: loss {logs['loss']:.4f}")
            self.told = now

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.__exit__()


def peak_memory() -> int:
    """Most bytes that this process has held: of the GPU as torch allocates them, else of the processor's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """The FLOP/s that a GPU can do at best in `dtype` (conf/devices.yaml); None for one not listed, and for a CPU."""
    if device.type != "cuda":
        return None
    roof = listed_roofs().get(torch.cuda.get_device_name(device))
    return None if roof is None else roof.flop_per_s.get(str(dtype).removeprefix("torch."))
