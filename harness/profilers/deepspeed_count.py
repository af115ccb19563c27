"""A fourth count, by DeepSpeed's profiler: a real forward pass of a real model, on whatever device it is on.

DeepSpeed replaces torch's functions while the model runs and counts by their arguments. Its multiply-adds, times
two, are the closed form of `architectures.cost`, stage by stage, attention as the full square, with one
exception: it gives `einsum` none, so that a selector which matches frames with the question (`question_match`)
counts 2 FLOP less for every frame, place and channel. Its own "flops" are more than that: one for each number
that passes a GELU, a SiLU, a ReLU, a softmax, a pooling or a convolution's bias, five for a layer norm, and
einsum's; but none for what is written with Python's operators, such as RMS norms, residuals and rotary positions.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from architectures import SlowFastForConditionalGeneration
from architectures.cost import STAGES
from architectures.fusions import Fusion

FLOP_PER_MAC = 2
PARTS = {"encoder": "vision", "selector": "vision", "projector": "projector", "compressor": "compressor"}
PARTS |= {"time_positions": "compressor", "language_model.lm_head": "lm_head"}
SLOW = ("k_proj", "v_proj")  # what fusions call their projections of slow tokens


@dataclass(frozen=True)
class DeepspeedCount:
    """`stages`: FLOP = 2 x MAC by the stages of `architectures.cost`; `beyond`: what its "flops" have on top."""

    stages: dict[str, int]
    beyond: int


@torch.no_grad()
def deepspeed_prefill(
    model: SlowFastForConditionalGeneration, frames: int, text_tokens: int, every_logit: bool = False
) -> DeepspeedCount:
    """Counts one forward pass over a black video of `frames` frames with `text_tokens` tokens of text behind it."""
    size, config = model.encoder.image_size, model.config
    video_1F = torch.full((1, model.fast_token_count(frames)), config.video_token_id)
    text_1L = torch.full((1, text_tokens), int(config.video_token_id == 0))  # any token but the placeholder
    inputs = {
        "input_ids": torch.cat([video_1F, text_1L], dim=1).to(model.device),
        "frames": torch.zeros(1, frames, 3, size, size),
        "frame_times": torch.linspace(0, 1, frames)[None],
    }
    if model.selector.needs_question:
        inputs["questions"] = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with profiled(model) as profiler:
        model(**inputs, use_cache=False, logits_to_keep=0 if every_logit else 1)
        macs, flops = profiler.get_total_macs(), profiler.get_total_flops()
        stages = by_stage(model)
    return DeepspeedCount(stages, flops - FLOP_PER_MAC * macs)


@contextmanager
def profiled(model: nn.Module) -> Iterator[Any]:
    """DeepSpeed's profiler at work on `model`; torch's functions are its own again afterwards, come what may."""
    from deepspeed.profiling.flops_profiler import FlopsProfiler, profiler

    counting = FlopsProfiler(model)
    counting.start_profile()
    try:
        yield counting
    finally:
        counting.end_profile()
        for left in (profiler.module_flop_count, profiler.module_mac_count):
            left.clear()  # of modules that an error kept from ending


def by_stage(model: SlowFastForConditionalGeneration) -> dict[str, int]:
    """FLOPs by stage from what DeepSpeed noted at each module: multiply-adds in it and in none of its children."""
    fusions = {path: module for path, module in model.named_modules() if isinstance(module, Fusion)}
    stages: Counter[str] = Counter()
    for path, module in model.named_modules():
        stages[stage_of(path, fusions)] += FLOP_PER_MAC * module.__macs__
    return {stage: stages[stage] for stage in STAGES}


def stage_of(path: str, fusions: dict[str, Fusion]) -> str:
    """The stage of what a module does by itself."""
    for part, stage in PARTS.items():
        if path == part or path.startswith(f"{part}."):
            return stage
    for fusion in fusions:
        if path == fusion:
            return "cross_attention"
        if path.startswith(f"{fusion}."):
            return "slow_keys_values" if path.removeprefix(f"{fusion}.") in SLOW else "gate"
    return "self_attention" if path.endswith(".self_attn") else "linear"
