"""Time positions: what tells a visual token when it was seen. `times_BT -> position_BTD`, times in [0, 1].

The position is added to the token. Slow keys carry no rotary position in the official model, so without one
of these cross-attention cannot tell order. `rotates_keys` marks the one that adds nothing and has slow keys
rotated instead.
"""

import math

import torch
from torch import nn

from architectures.registry import Registry

TIME_POSITIONS = Registry("time position")
LONGEST = 10000.0  # the slowest sine's period over the fastest's (arXiv 1706.03762, section 3.5)


@TIME_POSITIONS.register("none")
class NoTimePosition(nn.Module):
    """Adds nothing (the official model: rotary positions order the fast tokens, nothing the slow ones)."""

    rotates_keys = False

    def __init__(self, width: int):
        super().__init__()

    def flops_per_frame(self) -> int:
        """FLOP of its matrix products for one frame (2 x MAC)."""
        return 0

    def forward(self, times_BT: torch.Tensor) -> float:
        return 0.0


@TIME_POSITIONS.register("rotary")
class RotaryTimePosition(NoTimePosition):
    """Adds nothing: slow keys are rotated to the place, in the sequence, of the fast tokens of their time.

    Queries carry their rotary position already, so cross-attention then sees how far back a slow token is,
    as self-attention sees it of a fast one (arXiv 2104.09864, section 3.2).
    """

    rotates_keys = True


@TIME_POSITIONS.register("fourier")
class FourierTimePosition(nn.Module):
    """A learned linear map of `[2t - 1, cos(pi k t) for k = 1..harmonics]`: smooth in t, any frame count."""

    rotates_keys = False

    def __init__(self, width: int, harmonics: int = 8):
        super().__init__()
        self.harmonics = harmonics
        self.projection = nn.Linear(1 + harmonics, width, bias=False)

    def flops_per_frame(self) -> int:
        """FLOP of its matrix products for one frame (2 x MAC)."""
        return 2 * self.projection.weight.numel()

    def forward(self, times_BT: torch.Tensor) -> torch.Tensor:
        k = torch.arange(1, self.harmonics + 1, device=times_BT.device)
        waves_BTk = torch.cos(math.pi * k * times_BT[..., None])
        features_BTk = torch.cat([2 * times_BT[..., None] - 1, waves_BTk], dim=-1)
        return self.projection(features_BTk.to(self.projection.weight.dtype))


@TIME_POSITIONS.register("sinusoidal")
class SinusoidalTimePosition(nn.Module):
    """Sines and cosines of the time at fixed frequencies, times one learned scale (arXiv 1706.03762, section 3.5).

    Channel 2i is sin(p / 10000^(2i / width)), channel 2i + 1 the cosine, at position p = `steps` x t: a clip
    is as long as a text of `steps` tokens, whatever its number of frames (128: the frames of the longest
    released setting, each one position further). The scale, at first `initial_scale`, is learned because a
    sine's size has nothing to do with that of a projector's tokens: neither must drown the other.
    """

    rotates_keys = False

    def __init__(self, width: int, steps: float = 128.0, initial_scale: float = 1.0):
        super().__init__()
        if not steps > 0:
            raise ValueError(f"time position 'sinusoidal': steps is {steps}, must be above 0.")
        self.width, self.steps, self.initial_scale = width, steps, initial_scale
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The scale at its initial value."""
        nn.init.constant_(self.scale, self.initial_scale)

    def flops_per_frame(self) -> int:
        """FLOP of its matrix products for one frame (2 x MAC)."""
        return 0

    def forward(self, times_BT: torch.Tensor) -> torch.Tensor:
        even = torch.arange(0, self.width, 2, device=times_BT.device)
        angle_BTi = self.steps * times_BT[..., None].float() * LONGEST ** (-even / self.width)
        waves_BTD = torch.stack([angle_BTi.sin(), angle_BTi.cos()], dim=-1).flatten(-2)[..., : self.width]
        return self.scale * waves_BTD.to(self.scale.dtype)
