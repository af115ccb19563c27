"""The compression of the official code, rule by rule: sampling, temporal pooling, spatial pooling."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import average_windows, expect_positive, window_grid


@COMPRESSORS.register("official")
class Official(Compressor):
    """The fast tokens of the official code (SHI-Labs repository, commit 69676a1), which the paper's section 3
    leaves open; `tests/reference/golden/fast_frame_tables.json` holds what it does. Its options there:
    `sample_stride` fast_token_temporal_sampling_stride, `average_stride` fast_token_temporal_stride,
    `space_stride` fast_token_spatial_stride. With T frames:

    1. T < `min_fast_frames`: all are taken. Else max(T // `sample_stride`, `min_fast_frames`) of them, evenly
       from the first on: the i-th at i times the fractional stride, rounded down.
    2. n taken frames are averaged by `average_stride`, and what remains at the end is dropped. Were fewer
       than `min_fast_frames` left, they are pooled adaptively to min(n, `min_fast_frames`) instead.
    3. Space is averaged by `space_stride`, a remainder dropped.

    One frame (T = 1) takes only the third. A grid smaller than `space_stride`, at which the official code
    fails, becomes one window.
    """

    budgets: ClassVar = {"strides": {"sample_stride": 2, "average_stride": 4}}

    def __init__(
        self, sample_stride: int = 1, average_stride: int = 4, space_stride: int = 1, min_fast_frames: int = 16
    ):
        super().__init__()
        expect_positive(
            "official",
            sample_stride=sample_stride,
            average_stride=average_stride,
            space_stride=space_stride,
            min_fast_frames=min_fast_frames,
        )
        self.sample_stride = sample_stride
        self.average_stride = average_stride
        self.space_stride = space_stride
        self.min_fast_frames = min_fast_frames

    def sampled(self, T: int) -> list[int]:
        """Indices of the frames taken of T."""
        taken = min(T, max(T // self.sample_stride, self.min_fast_frames))
        stride = T / taken  # a float, as the recorded indices were made
        return [min(int(i * stride), T - 1) for i in range(taken)]

    def n_fast_frames(self, T: int) -> int:
        """Frames that are left of T."""
        taken = len(self.sampled(T))
        averaged = taken // self.average_stride
        return averaged if averaged >= self.min_fast_frames else min(taken, self.min_fast_frames)

    def n_tokens(self, T: int, H: int, W: int) -> int:
        rows, columns = window_grid(H, W, self.space_stride)
        return self.n_fast_frames(T) * rows * columns

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        sampled_BTHWD = tokens_BTHWD[:, self.sampled(tokens_BTHWD.shape[1])]
        return average_windows(self.average_time(sampled_BTHWD), self.space_stride).flatten(1, 3)

    def average_time(self, sampled_BTHWD: torch.Tensor) -> torch.Tensor:
        """The second rule, for the frames that the first took."""
        B, taken, H, W, D = sampled_BTHWD.shape
        averaged = taken // self.average_stride
        if averaged >= self.min_fast_frames:
            whole_BTHWD = sampled_BTHWD[:, : averaged * self.average_stride]
            return whole_BTHWD.unflatten(1, (averaged, self.average_stride)).mean(2)
        series = sampled_BTHWD.reshape(B, taken, H * W * D).transpose(1, 2)
        pooled = F.adaptive_avg_pool1d(series, min(taken, self.min_fast_frames)).transpose(1, 2)
        return pooled.reshape(B, -1, H, W, D)
