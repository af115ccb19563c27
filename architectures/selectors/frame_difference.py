"""Frames that differ from the one before: the oldest sign of a cut or of something happening."""

import torch

from architectures.selectors.base import SELECTORS, Selector, cells, largest_change


@SELECTORS.register("frame_difference")
class FrameDifference(Selector):
    """Scores a frame by its largest change in colour since the previous one, at `size` x `size` cells.

    The pixel comparison of shot detection (Zhang, Kankanhalli, Smoliar: Automatic partitioning of full-motion
    video, Multimedia Systems 1, 1993), used to rank frames. What vanishes counts like what appears, so that
    something brief costs two frames. The first frame has no predecessor and scores 0. No FLOP by this
    package's convention, which leaves out elementwise operations.
    """

    def __init__(self, keep: int = 16, size: int = 16):
        super().__init__(keep)
        if size < 1:
            raise ValueError(f"selector 'frame_difference': size is {size}, must be at least 1.")
        self.size = size

    def scores(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        cells_BTPV = cells(frames_BTCHW, self.size)
        change_BTPV = torch.zeros_like(cells_BTPV)
        change_BTPV[:, 1:] = cells_BTPV[:, 1:] - cells_BTPV[:, :-1]
        return largest_change(change_BTPV)
