"""Time positions: what tells a visual token when it was seen. `times_BT -> position_BTD`, times in [0, 1].

Slow keys carry no rotary position, so without one of these cross-attention cannot tell order.
"""

import math

import torch
from torch import nn

from architectures.registry import Registry

TIME_POSITIONS = Registry("time position")


@TIME_POSITIONS.register("none")
class NoTimePosition(nn.Module):
    """Adds nothing (the official model: rotary positions order the fast tokens, nothing the slow ones)."""

    def __init__(self, width: int):
        super().__init__()

    def flops_per_frame(self) -> int:
        """FLOP of its matrix products for one frame (2 x MAC)."""
        return 0

    def forward(self, times_BT: torch.Tensor) -> float:
        return 0.0


@TIME_POSITIONS.register("fourier")
class FourierTimePosition(nn.Module):
    """A learned linear map of `[2t - 1, cos(pi k t) for k = 1..harmonics]`: smooth in t, any frame count."""

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
