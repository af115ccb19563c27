"""Two streams in one list: a few frames in detail, all frames coarsely (SlowFast-LLaVA, arXiv 2407.15841)."""

from typing import ClassVar

import torch

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import (
    average_to_grid,
    average_windows,
    expect_positive,
    uniform_frames,
    window_grid,
)


@COMPRESSORS.register("two_stream")
class TwoStream(Compressor):
    """Section 3 of arXiv 2407.15841, which needs no training: first the detailed stream, then the coarse one.

    The paper's "Slow" pathway is `slow_frames` frames, uniformly chosen, their grid averaged by `slow_pooling`;
    its "Fast" pathway is every frame, averaged to 1 / `fast_pooling` of its rows and columns (but one at
    least). Both are tokens of the sequence: neither is what this library calls slow tokens.
    """

    budgets: ClassVar = {"strides": {}}

    def __init__(self, slow_frames: int = 10, slow_pooling: int = 1, fast_pooling: int = 6):
        super().__init__()
        expect_positive("two_stream", slow_frames=slow_frames, slow_pooling=slow_pooling, fast_pooling=fast_pooling)
        self.slow_frames = slow_frames
        self.slow_pooling = slow_pooling
        self.fast_pooling = fast_pooling

    def n_tokens(self, T: int, H: int, W: int) -> int:
        slow_rows, slow_columns = window_grid(H, W, self.slow_pooling)
        fast_rows, fast_columns = window_grid(H, W, self.fast_pooling)
        return min(self.slow_frames, T) * slow_rows * slow_columns + T * fast_rows * fast_columns

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        _, T, H, W, _ = tokens_BTHWD.shape
        detailed = average_windows(tokens_BTHWD[:, uniform_frames(T, self.slow_frames)], self.slow_pooling)
        coarse = average_to_grid(tokens_BTHWD, window_grid(H, W, self.fast_pooling))
        return torch.cat([detailed.flatten(1, 3), coarse.flatten(1, 3)], dim=1)
