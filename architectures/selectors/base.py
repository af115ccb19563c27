"""What every selector is, and the one way in which scores become a choice.

A selector sees what the encoder would: frames that are resized and normalised for it. Beside the legend of
`architectures.tokens`, K counts kept frames.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from architectures.registry import Registry

SELECTORS = Registry("selector")


class Selector(nn.Module, ABC):
    """Keeps the `keep` frames of a video with the highest scores, or all where there are no more.

    A choice has no gradient, so a selector is not trained along with the model that it chooses for: its
    weights, if any, do not require gradients. Frames are scored within their own video alone.
    """

    needs_question = False  # whether the choice depends on the question, so that a video has no choice by itself

    def __init__(self, keep: int = 16):
        super().__init__()
        if keep < 1:
            raise ValueError(f"selector: keep is {keep}, must be at least 1.")
        self.keep = keep

    @abstractmethod
    def scores(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        """How much each frame deserves to be kept, `scores_BT`; a question-aware selector reads word ids."""

    def scoring_flops(self, T: int) -> int:
        """FLOP of the matrix products and convolutions that score T frames (2 x MAC); differences have none."""
        return 0

    def n_frames(self, T: int) -> int:
        """Frames that are kept of T; what was kept is kept when it is offered again."""
        return min(T, self.keep)

    def flops(self, T: int) -> int:
        """FLOP of choosing among T frames (2 x MAC); nothing where all are kept."""
        return 0 if self.n_frames(T) == T else self.scoring_flops(T)

    @torch.no_grad()
    def forward(self, frames_BTCHW: torch.Tensor, question_BW: torch.Tensor | None = None) -> torch.Tensor:
        """The places of the kept frames, `index_BK` with K = `n_frames(T)`, ascending."""
        B, T = frames_BTCHW.shape[:2]
        if self.n_frames(T) == T:
            return torch.arange(T, device=frames_BTCHW.device).expand(B, T)
        return choose(self.scores(frames_BTCHW, question_BW), self.keep)


def choose(scores_BT: torch.Tensor, keep: int) -> torch.Tensor:
    """The places of the `keep` highest scores, `index_BK`, ascending; all of them where T <= keep.

    Of equal scores the earlier frame is kept. A score that is not a number is a ValueError: it has no rank.
    """
    if scores_BT.isnan().any():
        raise ValueError("selector: a frame's score is not a number; look for NaN in the frames or its weights.")
    ranked_BT = scores_BT.sort(dim=1, descending=True, stable=True).indices
    return ranked_BT[:, :keep].sort(dim=1).values


def pick(video_BT: torch.Tensor, index_BK: torch.Tensor) -> torch.Tensor:
    """The chosen entries of anything with one entry per frame (frames, times): `(B, T, ...) -> (B, K, ...)`."""
    return video_BT[torch.arange(len(video_BT), device=video_BT.device)[:, None], index_BK]


def cells(frames_BTCHW: torch.Tensor, size: int) -> torch.Tensor:
    """Frames as the mean colours of `size` x `size` cells, `(B, T, size * size, C)`; small frames as they are."""
    H, W = frames_BTCHW.shape[-2:]
    small = F.adaptive_avg_pool2d(frames_BTCHW.flatten(0, 1).float(), (min(size, H), min(size, W)))
    return small.flatten(2).transpose(1, 2).unflatten(0, frames_BTCHW.shape[:2])


def largest_change(change_BTPV: torch.Tensor) -> torch.Tensor:
    """How much the most changed place of each frame differs: squared length over V, greatest over P.

    Not the mean over places, where a large faint object outweighs a small vivid one.
    """
    return change_BTPV.square().sum(-1).amax(-1)
