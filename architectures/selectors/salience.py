"""Frames that stand out to a cheap encoder."""

from collections.abc import Sequence
from typing import Any

import torch

from architectures.selectors.base import SELECTORS, Selector, largest_change
from architectures.selectors.cheap_encoder import CheapEncoder


@SELECTORS.register("salience")
class Salience(Selector):
    """Scores a frame by its features' largest distance from their median over the video, place by place.

    The features are a cheap encoder's; how well salience works is how well that encoder was trained, and
    untrained it is a random projection. The default is the mini scale's encoder at half its resolution.
    """

    def __init__(
        self,
        keep: int = 16,
        encoder: dict[str, Any] | None = None,
        seed: int = 0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        super().__init__(keep)
        self.cheap = CheapEncoder(encoder, seed, image_mean, image_std)

    def scores(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        features_BTPV = self.cheap(frames_BTCHW)
        return largest_change(features_BTPV - features_BTPV.median(dim=1, keepdim=True).values)

    def scoring_flops(self, T: int) -> int:
        return T * self.cheap.flops_per_frame()
