"""Strided sampling: some frames whole, the others not at all."""

from typing import ClassVar

import torch

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import expect_positive, uniform_frames


@COMPRESSORS.register("strided_sampling")
class StridedSampling(Compressor):
    """Keeps every `stride`-th frame from the first on; without a stride, `fast_frames` of them.

    The sampling step of the paper's compression by itself (arXiv 2504.01328, section 3). The `fast_frames`
    are the middles of as many equal parts of the video.
    """

    budgets: ClassVar = {"fixed": {}, "strides": {"stride": 8}}

    def __init__(self, stride: int | None = None, fast_frames: int = 16):
        super().__init__()
        expect_positive("strided_sampling", stride=stride, fast_frames=fast_frames)
        self.stride = stride
        self.fast_frames = fast_frames

    def sampled(self, T: int) -> list[int]:
        """Indices of the frames kept of T."""
        return uniform_frames(T, self.fast_frames) if self.stride is None else list(range(0, T, self.stride))

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return len(self.sampled(T)) * H * W

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        return tokens_BTHWD[:, self.sampled(tokens_BTHWD.shape[1])].flatten(1, 3)
