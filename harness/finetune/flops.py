"""What a training step computes, in closed form, from what is in its batches.

The convention is that of `architectures.cost` (FLOP = 2 x MAC, attention as the full square, tokens of padding not
counted, logits at every position), by stage, times

    3  for a part that learns: forward, the gradient of its inputs, the gradient of its weights
    2  for a part that does not learn but that gradients pass through (a frozen language model)
    1  for what comes before anything that learns (a frozen vision tower)

and 3 for attention's products of activations. What checkpointing computes a second time is not counted, so that the
share of a device's peak is that of useful work. Adapters (LoRA) count 6 x their parameters per token.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from architectures import SlowFastForConditionalGeneration
from architectures.cost import Widths, prefill_cost
from architectures.processing import IGNORED
from harness.finetune.parts import LORA, numel, part_of, trained

FORWARD, THROUGH, LEARNS = 1, 2, 3
STAGE_PARTS = {  # whose weights a stage multiplies with
    "vision": "encoder",
    "projector": "projector",
    "compressor": "compressor",
    "slow_keys_values": "cross_attention",
    "linear": "language_model",
    "gate": "gates",
    "lm_head": "language_model",
}
UPSTREAM = ("vision", "projector", "compressor")  # what comes before the decoder, in order


@dataclass(frozen=True)
class Row:
    """What one row of a batch holds: the frames of each of its videos, its tokens of text, those that read."""

    frames: tuple[int, ...]
    text_tokens: int
    readers: int


class StepCost:
    """Counts the FLOPs of batches for a model of which certain parts learn."""

    def __init__(self, model: SlowFastForConditionalGeneration):
        """Looks at the model as it is chosen to learn now; ValueError for a decoder without a closed form."""
        self.config, self.widths = model.config, Widths.of(model.config)
        self.factors = factors({part_of(name) for name, _ in trained(model)})
        self.adapters = sum(numel(parameter) for name, parameter in trained(model) if part_of(name) == LORA)
        self.fast_tokens, self.scope = model.fast_token_count, model.scope
        self.video = functools.cache(lambda frames: prefill_cost(model.config, frames, 0))

    def rows(self, inputs: Mapping[str, Any]) -> list[Row]:
        """The rows of a batch from which something is learned: not a black image that stands in for a video."""
        is_video_BL = (inputs["input_ids"] == self.config.video_token_id).cpu()
        real_BL = real_tokens(inputs).cpu()
        counts = (mask_BL.sum(1).tolist() for mask_BL in (is_video_BL, real_BL, self.scope(is_video_BL, ~real_BL)))
        waiting = iter(frames_of(inputs))
        rows = []
        for learns, placeholders, real, reads in zip(learning_rows(inputs).tolist(), *counts, strict=True):
            frames: list[int] = []
            while sum(map(self.fast_tokens, frames)) < placeholders:
                frames.append(next(waiting))
            rows += [Row(tuple(frames), real - placeholders, reads)] * learns
        return rows

    def flop(self, inputs: Mapping[str, Any]) -> int:
        """FLOPs of forward and backward of one batch."""
        seen = "features" not in inputs  # else the encoder has run long before
        stages: dict[str, int] = {}
        for row in self.rows(inputs):
            for stage, value in self.forward(row).items():
                stages[stage] = stages.get(stage, 0) + value * (seen or stage != "vision")
        adapted = 6 * self.adapters * int(real_tokens(inputs)[learning_rows(inputs)].sum())
        return sum(self.factors[stage] * value for stage, value in stages.items()) + adapted

    def forward(self, row: Row) -> dict[str, int]:
        """The forward FLOPs of one row, by stage."""
        videos = [self.video(frames) for frames in row.frames]
        L = row.text_tokens + sum(video.fast_tokens for video in videos)
        S = sum(video.slow_tokens for video in videos)
        return {
            **{stage: sum(getattr(video, stage) for video in videos) for stage in UPSTREAM},
            "slow_keys_values": self.widths.slow_keys_values(S),
            **self.widths.layers(L, L, row.readers if S else 0, S),
            "lm_head": self.widths.lm_head(L),
        }


def factors(learning: set[str]) -> dict[str, int]:
    """How often a stage's forward FLOPs come in a step, by stage, where the parts `learning` learn."""
    found: dict[str, int] = {}
    gradient = False  # whether what comes out of the stages so far has one
    for stage in UPSTREAM:
        learns = STAGE_PARTS[stage] in learning
        found[stage] = LEARNS if learns else THROUGH if gradient else FORWARD
        gradient = gradient or learns
    for stage in ("slow_keys_values", "linear", "gate", "lm_head"):
        found[stage] = LEARNS if STAGE_PARTS[stage] in learning else THROUGH
    return found | {"self_attention": LEARNS, "cross_attention": LEARNS}


def frames_of(inputs: Mapping[str, Any]) -> list[int]:
    """The number of frames of every video in a batch, in order."""
    videos: Sequence[torch.Tensor] | torch.Tensor = inputs.get("frames", inputs.get("features", ()))
    return [len(video) for video in videos]


def real_tokens(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Which tokens of a batch are not padding, `(B, L)`; where rows are packed, `may_read` says so."""
    mask = inputs.get("may_read", inputs.get("attention_mask"))
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return mask != 0
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool)


def learning_rows(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Which rows of a batch have a label, `(B,)`."""
    return (inputs["labels"] != IGNORED).any(1)
