"""The mini encoder's pretraining: recognise glyphs, colours and the ball in frames (stands in for CLIP).

A selector's cheap encoder is pretrained in the same way, on the same frames, shrunk to its own size.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from architectures.encoders import ENCODERS, Encoder
from harness.mini.clips import through_codec
from harness.mini.world import COLOURS, GLYPHS, PLACES, draw_dense_frames

SAVE_EVERY = 100  # steps, some seconds


@dataclass(frozen=True)
class EncoderRecipe:
    """How the encoder is pretrained; `clips` clips of 128 unrelated labelled frames, through the codec."""

    clips: int = 480
    steps: int = 1200
    batch: int = 256
    lr: float = 4e-3
    warmup: int = 30
    weight_decay: float = 0.01


class Recogniser(nn.Module):
    """Heads over the 2x2-pooled features: glyph and colour of each quadrant, and where the ball is."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.glyph = nn.Linear(encoder.width, len(GLYPHS) + 1)
        self.colour = nn.Linear(encoder.width, len(COLOURS))
        self.ball = nn.Linear(len(PLACES) * encoder.width, 2)

    def forward(self, images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, columns = self.encoder.grid
        grid = self.encoder.encode(images_NCHW).transpose(1, 2).unflatten(2, (rows, columns))
        quadrants_N4V = F.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
        return self.glyph(quadrants_N4V), self.colour(quadrants_N4V), self.ball(quadrants_N4V.flatten(1))


def normalise(frames_THWC: np.ndarray | torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """`uint8 frames_THWC` to the `float frames_TCHW` that the encoder expects, as the processor does."""
    mean, std = torch.tensor(encoder.image_mean), torch.tensor(encoder.image_std)
    pixels = torch.as_tensor(frames_THWC).permute(0, 3, 1, 2).float() / 255
    return (pixels - mean[:, None, None]) / std[:, None, None]


def shrunk(frames_THWC: np.ndarray | torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """As `normalise`, and shrunk to the encoder's `image_size` as a selector's cheap encoder sees frames."""
    frames_TCHW = normalise(frames_THWC, encoder)
    if frames_TCHW.shape[-1] == encoder.image_size:
        return frames_TCHW
    return F.adaptive_avg_pool2d(frames_TCHW, encoder.image_size)


def labelled_frames(seed: int, clips: int, progress: Callable[[int, int], None]) -> list[torch.Tensor]:
    """`clips` x 128 frames as a reader of their mp4 sees them: frames_NHWC, glyph_N4, colour_N4, ball_N2."""
    parts = []
    for index in range(clips):
        frames, *labels = draw_dense_frames(seed, index)
        parts.append((through_codec(frames), *labels))
        progress(index + 1, clips)
    return [torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)]


def pretrain_encoder(
    vision: dict[str, Any],
    seed: int,
    recipe: EncoderRecipe,
    progress: Callable[[str, int, int], None],
    checkpoint: Path | None = None,
) -> tuple[Encoder, dict[str, float]]:
    """Trains an encoder from scratch; returns it frozen and standardised, with its accuracy on held-out frames.

    A plain loop: this stands in for a download, and needs nothing of the Trainer's. With a `checkpoint` file a
    killed run goes on from it, and takes the steps it would have taken.
    """
    torch.manual_seed(seed)
    frames_NHWC, glyph_N4, colour_N4, ball_N2 = labelled_frames(
        seed, recipe.clips, lambda done, total: progress("frames", done, total)
    )
    held_out = min(len(frames_NHWC) // 10, 4096)
    encoder = ENCODERS.build(vision)
    model = Recogniser(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    rng = np.random.default_rng(seed)
    for step in range(_resume(checkpoint, model, optimizer, rng), recipe.steps):
        decay = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1, (step + 1) / recipe.warmup) * decay
        pick = torch.from_numpy(rng.integers(held_out, len(frames_NHWC), recipe.batch))
        glyph, colour, ball = model(shrunk(frames_NHWC[pick], encoder))
        loss = (
            F.cross_entropy(glyph.flatten(0, 1), glyph_N4[pick].flatten())
            + F.cross_entropy(colour.flatten(0, 1), colour_N4[pick].flatten())
            + F.mse_loss(ball, ball_N2[pick])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if checkpoint is not None and (step + 1) % SAVE_EVERY == 0:
            _save(checkpoint, model, optimizer, rng, step + 1)
        progress("encoder", step + 1, recipe.steps)
    encoder.eval().requires_grad_(False)
    encoder.standardise_(shrunk(frames_NHWC[:512], encoder))
    return encoder, recognition(model, frames_NHWC[:held_out], glyph_N4[:held_out], colour_N4[:held_out])


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rng: np.random.Generator, steps: int) -> None:
    """Everything that later steps depend on; the file appears whole or not at all."""
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": steps}
    beside = path.with_suffix(".part")
    torch.save({**states, "rng": json.dumps(rng.bit_generator.state)}, beside)
    beside.replace(path)


def _resume(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, rng: np.random.Generator) -> int:
    """Restores what `_save` kept, if anything; the number of steps already done."""
    if path is None or not path.is_file():
        return 0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    rng.bit_generator.state = json.loads(saved["rng"])
    return saved["steps"]


@torch.no_grad()
def recognition(
    model: Recogniser, frames_NHWC: torch.Tensor, glyph_N4: torch.Tensor, colour_N4: torch.Tensor
) -> dict[str, float]:
    """Share of quadrants whose glyph (or emptiness), and of glyphs whose colour, is recognised.

    The heads were trained before standardisation; it is undone for them.
    """
    encoder = model.encoder
    mean, std = encoder.feature_mean.clone(), encoder.feature_std.clone()
    encoder.feature_mean.zero_()
    encoder.feature_std.fill_(1)
    outputs = [model(shrunk(part, encoder))[:2] for part in frames_NHWC.split(512)]
    encoder.feature_mean.copy_(mean)
    encoder.feature_std.copy_(std)
    glyph, colour = (torch.cat(part).argmax(-1) for part in zip(*outputs, strict=True))
    present = glyph_N4 > 0
    return {
        "glyph": (glyph == glyph_N4)[present].float().mean().item(),
        "empty": (glyph == glyph_N4)[~present].float().mean().item(),
        "colour": (colour == colour_N4)[present].float().mean().item(),
    }
