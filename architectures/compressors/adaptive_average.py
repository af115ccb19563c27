"""Adaptive pooling: whatever comes in, the same number of fast frames goes out."""

import torch
from torch.nn import functional as F

from architectures.compressors.base import COMPRESSORS, Compressor


@COMPRESSORS.register("adaptive_average")
class AdaptiveAverage(Compressor):
    """Averages time to `fast_frames` frames and leaves space as it is; windows may overlap by one frame."""

    def __init__(self, fast_frames: int = 16):
        super().__init__()
        if fast_frames < 1:
            raise ValueError(f"compressor 'adaptive_average': fast_frames is {fast_frames}, must be at least 1.")
        self.fast_frames = fast_frames

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return min(self.fast_frames, T) * H * W

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        B, T, H, W, D = tokens_BTHWD.shape
        series = tokens_BTHWD.reshape(B, T, H * W * D).transpose(1, 2)
        pooled = F.adaptive_avg_pool1d(series, min(self.fast_frames, T)).transpose(1, 2)
        return pooled.reshape(B, -1, D)
