"""Temporal average: neighbouring frames become one."""

from typing import ClassVar

import torch

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import expect_positive


@COMPRESSORS.register("temporal_average")
class TemporalAverage(Compressor):
    """Averages windows of `window` frames, place by place; without one, the shortest that leave `fast_frames`.

    The temporal pooling of the paper's compression by itself (arXiv 2504.01328, section 3). A remainder of
    frames at the end is averaged with its own, shorter length.
    """

    budgets: ClassVar = {"fixed": {}, "strides": {"window": 8}}

    def __init__(self, window: int | None = None, fast_frames: int = 16):
        super().__init__()
        expect_positive("temporal_average", window=window, fast_frames=fast_frames)
        self.window = window
        self.fast_frames = fast_frames

    def window_of(self, T: int) -> int:
        """Frames per window of a video of T frames."""
        return -(-T // self.fast_frames) if self.window is None else self.window

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return -(-T // self.window_of(T)) * H * W

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        windows = tokens_BTHWD.split(self.window_of(tokens_BTHWD.shape[1]), dim=1)
        return torch.stack([window_BTHWD.mean(1) for window_BTHWD in windows], dim=1).flatten(1, 3)
