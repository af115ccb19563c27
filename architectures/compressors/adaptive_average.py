"""Adaptive pooling: whatever comes in, the same number of fast frames goes out."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import average_to_grid, expect_positive


@COMPRESSORS.register("adaptive_average")
class AdaptiveAverage(Compressor):
    """Averages time to `fast_frames` frames and each frame to `grid` x `grid` tokens (None: as it is).

    Windows may overlap by one frame, row or column; what is smaller already stays. PLLaVA (arXiv 2404.16994)
    pools time and space so.
    """

    budgets: ClassVar = {"fixed": {}}

    def __init__(self, fast_frames: int = 16, grid: int | None = None):
        super().__init__()
        expect_positive("adaptive_average", fast_frames=fast_frames, grid=grid)
        self.fast_frames = fast_frames
        self.grid = grid

    def grid_of(self, H: int, W: int) -> tuple[int, int]:
        """The grid that is left of H x W."""
        return (H, W) if self.grid is None else (min(self.grid, H), min(self.grid, W))

    def n_tokens(self, T: int, H: int, W: int) -> int:
        rows, columns = self.grid_of(H, W)
        return min(self.fast_frames, T) * rows * columns

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        B, T, H, W, D = tokens_BTHWD.shape
        series = tokens_BTHWD.reshape(B, T, H * W * D).transpose(1, 2)
        pooled = F.adaptive_avg_pool1d(series, min(self.fast_frames, T)).transpose(1, 2)
        if self.grid is None:
            return pooled.reshape(B, -1, D)
        return average_to_grid(pooled.reshape(B, -1, H, W, D), self.grid_of(H, W)).flatten(1, 3)
