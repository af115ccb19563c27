"""Spatial average: all frames, each of fewer tokens."""

from typing import ClassVar

import torch

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import average_windows, expect_positive, window_grid


@COMPRESSORS.register("spatial_average")
class SpatialAverage(Compressor):
    """Averages `stride` x `stride` neighbourhoods of every frame; a remainder of rows or columns is dropped.

    The spatial pooling of the paper's compression by itself (arXiv 2504.01328, section 3). A side shorter
    than the stride is one window.
    """

    budgets: ClassVar = {"strides": {}}

    def __init__(self, stride: int = 2):
        super().__init__()
        expect_positive("spatial_average", stride=stride)
        self.stride = stride

    def n_tokens(self, T: int, H: int, W: int) -> int:
        rows, columns = window_grid(H, W, self.stride)
        return T * rows * columns

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        return average_windows(tokens_BTHWD, self.stride).flatten(1, 3)
