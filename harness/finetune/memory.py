"""How much memory one process of a training will need, in closed form, before anything is loaded.

With P numbers in all, K that learn, b bytes a number (2 under DeepSpeed's bfloat16 or float16, else 4), N processes:

                     weights                 gradients   optimiser    DeepSpeed's own buffers
    no DeepSpeed     b P                     b K         8 K          b K of DDP's buckets if N > 1
    ZeRO-2           b P                     b K / N     12 K / N     1 or 2 buckets of 5e8 numbers
    ZeRO-3           b (W + P / N)           b K / N     12 K / N     1 bucket; gathered: at most 1e9 numbers of P - W

12 = a copy of the weights and Adam's two averages in float32. W stays whole in every process, see
`distributed.whole_parameters`. Offloaded, gradients, optimiser and weights' shares are in the processor's memory. To
that comes the most of three moments that never coincide:

    the tower    a frozen one keeps nothing, but holds the largest moment of a batch's frames
    backward     what projector and slow keys keep, every layer's input (checkpointing; else all it computes), and
                 one layer computed again, or the loss: logits of all positions, three times in float32
    the step     gradients in float32, 4 K / N, beside those of 16 bits

Not counted: CUDA's context and libraries (about 1 GB), what the allocator leaves between tensors, workers' frames.
Letters: B rows of one video each, of T frames, S slow and L tokens; D, M, A, KE, V widths (`architectures.cost`).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.cost import Widths, on_meta, prefill_cost
from architectures.encoders import ENCODERS, Encoder
from architectures.selectors import SELECTORS
from harness.finetune.distributed import whole_parameters
from harness.finetune.parts import numel, trained
from harness.finetune.plan import DTYPES, Plan

FLOAT32 = 4
ADAM = 2 * FLOAT32  # two averages of each number that learns
BUCKET, LIVE = 500_000_000, 1_000_000_000  # DeepSpeed's reduce_bucket_size and stage3_max_live_parameters, in numbers
ASSUMED = (
    "every row of a batch has one video of full length and as many tokens as may be; flash attention; AdamW; "
    "without CUDA's own gigabyte, the allocator's gaps and the workers' frames"
)


@dataclass(frozen=True)
class States:
    """Bytes that one process holds all the time; `host` in the processor's memory, where something is offloaded."""

    weights: int
    gradients: int
    optimiser: int
    buffers: int
    step: int  # more, while the optimiser steps
    host: int = 0

    @property
    def held(self) -> int:
        """Those of the device, all the time."""
        return self.weights + self.gradients + self.optimiser + self.buffers


@dataclass(frozen=True)
class Activations:
    """Bytes of one batch of one process."""

    tower: int  # gone once the features are there, if the tower does not learn; else kept
    kept: int  # from forward to backward
    moment: int  # beside it: a layer computed again, or the loss


@dataclass(frozen=True)
class Need:
    """What one process needs, in bytes."""

    states: States
    activations: Activations
    tower_learns: bool

    @property
    def peak(self) -> int:
        """The most that is held at a time on the device."""
        seen = self.activations
        backward = seen.kept + seen.moment + (seen.tower if self.tower_learns else 0)
        return self.states.held + max(self.states.step, seen.tower, backward)

    def lines(self) -> list[str]:
        """What is printed of it."""
        parts = [(name, value) for name, value in asdict(self.states).items() if name != "host"]
        parts += asdict(self.activations).items()
        told = [f"memory of one process, in GB: {self.peak / 1e9:.1f} at most, by a closed form", f"  ({ASSUMED})"]
        told += [f"  {name:12} {value / 1e9:8.2f}" for name, value in parts]
        if self.states.host:
            told.append(f"  {self.states.host / 1e9:.1f} more of the processor's memory, offloaded")
        return told


def need(model: SlowFastForConditionalGeneration, plan: Plan, processes: int, frames: int, text_tokens: int) -> Need:
    """What each of the `processes` needs to train a model on batches of `frames` and `text_tokens`.

    The model is chosen to learn what the plan says, and may be on the meta device. ValueError for a decoder without a
    closed form.
    """
    return Need(states(model, plan, processes), activations(model.config, plan, frames, text_tokens), learns(plan))


def learns(plan: Plan) -> bool:
    """Whether the vision tower is trained."""
    return "encoder" in plan.trains


# ------------------------------------------------------------------------------------------------------- states


def states(model: nn.Module, plan: Plan, processes: int) -> States:
    """What a process holds of a model that is chosen to learn."""
    b, N = DTYPES[plan.dtype].itemsize if plan.stage else FLOAT32, processes
    sizes = [numel(parameter) for parameter in model.parameters()]
    P, K = sum(sizes), sum(numel(parameter) for _, parameter in trained(model))
    if not plan.stage:
        autocast = K * DTYPES[plan.dtype].itemsize if plan.dtype != "float32" else 0  # copies, kept during a step
        return States(b * P, b * K, ADAM * K, b * K * (N > 1) + autocast, 0)
    away = plan.zero.get("offload", ())
    master = (ADAM + FLOAT32) * K // N
    buckets = b * BUCKET * (2 if plan.stage == 2 else 1)
    weights, gathered = b * P, 0
    if plan.stage == 3:
        W = sum(size for size in sizes if size <= whole_parameters(model))
        gathered = b * min(LIVE, P - W)
        weights = b * W + (0 if "param" in away else b * P // N)
    host = b * P // N if "param" in away else 0
    if "optimizer" in away:
        return States(weights, 0, 0, buckets + gathered, 0, N * (host + master + FLOAT32 * K // N))
    step = FLOAT32 * K // N if b < FLOAT32 else 0
    return States(weights, b * K // N, master, buckets + gathered, step, N * host)


# -------------------------------------------------------------------------------------------------- activations


def activations(config: SlowFastConfig, plan: Plan, frames: int, text_tokens: int) -> Activations:
    """What a process computes of one batch, and how long it is kept."""
    a, B = DTYPES[plan.dtype].itemsize, plan.batch_size
    widths, cost = Widths.of(config), prefill_cost(config, frames, text_tokens)
    encoder = on_meta(ENCODERS, config.vision)
    T = on_meta(SELECTORS, config.selector, vocab_size=widths.vocabulary).n_frames(frames)
    L, S = cost.fast_tokens + text_tokens, cost.slow_tokens
    most, all_ = tower_numbers(encoder)
    tower = a * B * T * (all_ if learns(plan) else most)
    patches = T * encoder.grid[0] * encoder.grid[1]
    seen = a * patches * (encoder.width + (2 * config.projector_depth - 1) * widths.D)
    norm = widths.D * (FLOAT32 + 2 * a if a < FLOAT32 else 2 * a)
    slow = sum(S * (norm + 2 * a * widths.KE) for fusion in widths.fusions if fusion.owns_keys)
    layer = L * (2 * norm + a * (widths.D + 4 * widths.A + 4 * widths.KE + 4 * widths.M))
    inputs = widths.n * L * (a * widths.D if plan.checkpointing else layer // max(L, 1))
    again = (layer if plan.checkpointing else 0) + 2 * a * L * widths.M
    loss = L * widths.vocabulary * (a + 3 * FLOAT32)
    return Activations(tower, B * (seen + slow + inputs), B * max(again, loss))


def tower_numbers(encoder: Encoder) -> tuple[int, int]:
    """(most at a time, all) numbers that a vision tower on the meta device computes for one frame.

    At a time: what the modules that are at work were called with, and what the innermost one makes of it. All: what
    every module without further ones inside makes.
    """
    at_work: list[dict[int, int]] = []
    moments, made = [0], [0]

    def enter(module: nn.Module, given: tuple, named: dict[str, Any]) -> None:
        at_work.append(storages((*given, *named.values())))

    def leave(module: nn.Module, given: tuple, named: dict[str, Any], output: Any) -> None:
        new = storages(output if isinstance(output, tuple) else (output,))
        alive = {key: size for some in (*at_work, new) for key, size in some.items()}
        moments.append(sum(alive.values()))
        made.append(0 if any(True for _ in module.children()) else sum(new.values()))
        at_work.pop()

    with hooked(encoder, enter, leave), torch.no_grad():
        encoder(torch.empty(1, 1, 3, encoder.image_size, encoder.image_size, device="meta"))
    return max(moments), sum(made)


def storages(values: Iterable[Any]) -> dict[int, int]:
    """Numbers of each tensor among `values`, by its storage: views of one are counted once."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return {tensor.untyped_storage()._cdata: tensor.numel() for tensor in tensors}


@contextmanager
def hooked(module: nn.Module, enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    """Calls `enter` before and `leave` after every module's forward."""
    hooks = [part.register_forward_pre_hook(enter, with_kwargs=True) for part in module.modules()]
    hooks += [part.register_forward_hook(leave, with_kwargs=True) for part in module.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
