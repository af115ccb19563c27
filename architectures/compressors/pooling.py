"""What several compressors share: a check of their options, choices of frames, averages over windows."""

import torch
from torch.nn import functional as F


def expect_positive(compressor: str, **options: int | None) -> None:
    """Raises ValueError for the first option that is not a whole number of at least 1; None passes."""
    for option, value in options.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"compressor '{compressor}': {option} is {value!r}, must be a whole number.")
        if value < 1:
            raise ValueError(f"compressor '{compressor}': {option} is {value}, must be at least 1.")


def uniform_frames(T: int, count: int) -> list[int]:
    """The middle frames of `count` equal parts of T frames, in time order; all frames where T is smaller."""
    count = min(count, T)
    return [(2 * i + 1) * T // (2 * count) for i in range(count)]


def window_grid(H: int, W: int, stride: int) -> tuple[int, int]:
    """The grid that `average_windows` leaves of H x W."""
    return max(1, H // stride), max(1, W // stride)


def average_windows(tokens_BTHWD: torch.Tensor, stride: int) -> torch.Tensor:
    """Averages s x s neighbourhoods of each frame, a remainder of rows or columns dropped.

    As `pool_space`, but a side shorter than s is one window, so that a frame always keeps a token:
    `(B, T, H, W, D) -> (B, T, max(1, H // s), max(1, W // s), D)`.
    """
    B, T, H, W, _ = tokens_BTHWD.shape
    frames_NDHW = tokens_BTHWD.flatten(0, 1).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(frames_NDHW, (min(stride, H), min(stride, W)))
    return pooled.permute(0, 2, 3, 1).unflatten(0, (B, T))


def average_to_grid(tokens_BTHWD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Averages each frame to `grid` = (H', W'), every row and column in a window: `-> (B, T, H', W', D)`."""
    B, T = tokens_BTHWD.shape[:2]
    pooled = F.adaptive_avg_pool2d(tokens_BTHWD.flatten(0, 1).permute(0, 3, 1, 2), grid)
    return pooled.permute(0, 2, 3, 1).unflatten(0, (B, T))
