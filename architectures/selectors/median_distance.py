"""Frames that differ from the video's usual look, its temporal median."""

import torch

from architectures.selectors.base import SELECTORS, Selector, cells, largest_change


@SELECTORS.register("median_distance")
class MedianDistance(Selector):
    """Scores a frame by its largest distance in colour from the median over time, at `size` x `size` cells.

    The median as a model of the background is Cucchiara, Grana, Piccardi, Prati: Detecting moving objects,
    ghosts, and shadows in video streams (PAMI 25(10), 2003); here the whole video's median (of an even number
    of frames the lower one) ranks frames instead of pixels. No FLOP by this package's convention, which
    leaves out elementwise operations and sorting.
    """

    def __init__(self, keep: int = 16, size: int = 32):
        super().__init__(keep)
        if size < 1:
            raise ValueError(f"selector 'median_distance': size is {size}, must be at least 1.")
        self.size = size

    def scores(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        cells_BTPV = cells(frames_BTCHW, self.size)
        return largest_change(cells_BTPV - cells_BTPV.median(dim=1, keepdim=True).values)
