"""Frames of two resolutions in time order: every s-th in detail, the others coarsely (LLaVA-Video)."""

from typing import ClassVar

import torch

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import average_windows, expect_positive, window_grid


@COMPRESSORS.register("slow_and_faster")
class SlowAndFaster(Compressor):
    """LLaVA-Video's video representation (arXiv 2410.02713): "slow" frames p x p, all others 2p x 2p pooled.

    From the first on, every `stride`-th frame (10: the default of its code) is averaged by `slow_pooling`,
    any other by `faster_pooling`. The source's p = 2 is this model's video pooling, which comes before: so 1
    and 2 are left for here. Both kinds are tokens of the sequence: neither is what this library calls slow
    tokens. The learned token that its code puts behind each frame is left out.
    """

    budgets: ClassVar = {"strides": {}}

    def __init__(self, stride: int = 10, slow_pooling: int = 1, faster_pooling: int = 2):
        super().__init__()
        expect_positive("slow_and_faster", stride=stride, slow_pooling=slow_pooling, faster_pooling=faster_pooling)
        self.stride = stride
        self.slow_pooling = slow_pooling
        self.faster_pooling = faster_pooling

    def n_tokens(self, T: int, H: int, W: int) -> int:
        slow_rows, slow_columns = window_grid(H, W, self.slow_pooling)
        faster_rows, faster_columns = window_grid(H, W, self.faster_pooling)
        slow_frames = -(-T // self.stride)
        return slow_frames * slow_rows * slow_columns + (T - slow_frames) * faster_rows * faster_columns

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        slow_BTPD = average_windows(tokens_BTHWD[:, :: self.stride], self.slow_pooling).flatten(2, 3)
        faster_BTPD = average_windows(tokens_BTHWD, self.faster_pooling).flatten(2, 3)
        frames = [
            faster_BTPD[:, t] if t % self.stride else slow_BTPD[:, t // self.stride]
            for t in range(tokens_BTHWD.shape[1])
        ]
        return torch.cat(frames, dim=1)
