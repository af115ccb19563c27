"""The official compression: take every s-th frame, then average t neighbours in time, then p x p in space."""

from typing import ClassVar

import torch

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.projectors import pool_grid, pool_space


@COMPRESSORS.register("sample_and_average")
class SampleAndAverage(Compressor):
    """Frame sampling, temporal and spatial average pooling (paper, section 3; released as s1t4, s1t6, s2t4).

    `sample_stride` (s) and `average_stride` (t) are fixed, or both None: then they are chosen so that about
    `fast_frames` frames remain, the average at most `longest_average` long, as in the released settings (64
    frames s1t4, 128 frames s2t4). A remainder of frames at the end is averaged with its own, shorter
    length.
    """

    budgets: ClassVar = {"fixed": {}, "strides": {"sample_stride": 2, "average_stride": 4}}

    def __init__(
        self,
        sample_stride: int | None = None,
        average_stride: int | None = None,
        space_stride: int = 1,
        fast_frames: int = 16,
        longest_average: int = 4,
    ):
        super().__init__()
        if (sample_stride is None) != (average_stride is None):
            raise ValueError(
                "compressor 'sample_and_average': give both sample_stride and average_stride, or neither "
                f"(got {sample_stride} and {average_stride})."
            )
        for option in ("sample_stride", "average_stride", "space_stride", "fast_frames", "longest_average"):
            value = locals()[option]
            if value is not None and value < 1:
                raise ValueError(f"compressor 'sample_and_average': {option} is {value}, must be at least 1.")
        self.fixed = None if sample_stride is None else (sample_stride, average_stride)
        self.space_stride = space_stride
        self.fast_frames = fast_frames
        self.longest_average = longest_average

    def strides(self, T: int) -> tuple[int, int]:
        """(s, t) for T frames: as fixed, or the released pattern that leaves `fast_frames` of them."""
        if self.fixed is not None:
            return self.fixed
        reduction = max(1, T // self.fast_frames)
        average = max(t for t in range(1, self.longest_average + 1) if reduction % t == 0)
        return reduction // average, average

    def n_tokens(self, T: int, H: int, W: int) -> int:
        sample, average = self.strides(T)
        H, W = pool_grid((H, W), self.space_stride)
        return -(-len(range(0, T, sample)) // average) * H * W

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        sample, average = self.strides(tokens_BTHWD.shape[1])
        sampled_BTHWD = tokens_BTHWD[:, ::sample]
        averaged = [chunk.mean(1) for chunk in sampled_BTHWD.split(average, dim=1)]
        return pool_space(torch.stack(averaged, dim=1), self.space_stride).flatten(1, 3)
