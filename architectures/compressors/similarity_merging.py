"""Similarity merging: near-duplicate neighbouring frames become one (MovieChat, arXiv 2307.16449)."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import expect_positive


@COMPRESSORS.register("similarity_merging")
class SimilarityMerging(Compressor):
    """Merges the two most similar adjacent frames until `fast_frames` are left (arXiv 2307.16449, section 3.3).

    Similarity is the mean cosine of the tokens at the same place. A merged frame is the mean of all frames it
    stands for (the source averages the two, whatever they stand for), so what is left is a cut of the video
    into `fast_frames` stretches, still ones long and eventful ones short. No weights; gradients pass through
    the averages, not through the choice.
    """

    budgets: ClassVar = {"fixed": {}}

    def __init__(self, fast_frames: int = 16):
        super().__init__()
        expect_positive("similarity_merging", fast_frames=fast_frames)
        self.fast_frames = fast_frames

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return min(self.fast_frames, T) * H * W

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        B, T, H, W, D = tokens_BTHWD.shape
        if self.fast_frames >= T:
            return tokens_BTHWD.flatten(1, 3)
        frames_BTX = tokens_BTHWD.flatten(2).to(torch.promote_types(tokens_BTHWD.dtype, torch.float32))
        stretch_BT = stretches(frames_BTX.detach().unflatten(2, (H * W, D)), self.fast_frames)
        sums_BTX = frames_BTX.new_zeros(B, self.fast_frames, H * W * D)
        sums_BTX = sums_BTX.scatter_add(1, stretch_BT[..., None].expand(-1, -1, H * W * D), frames_BTX)
        counts_BT = frames_BTX.new_zeros(B, self.fast_frames).scatter_add(
            1, stretch_BT, torch.ones_like(stretch_BT, dtype=frames_BTX.dtype)
        )
        return (sums_BTX / counts_BT[..., None]).to(tokens_BTHWD.dtype).reshape(B, -1, D)


def stretches(frames_BTPD: torch.Tensor, left: int) -> torch.Tensor:
    """Which of the `left` stretches each frame falls into, `(B, T)`, by greedy merging of neighbours.

    The stretches are a doubly linked list, each known by its first frame; a merge changes two similarities
    only, so that T frames cost T steps on one frame, not on all. The list has a dead place T behind its end.
    """
    B, T = frames_BTPD.shape[:2]
    device, rows = frames_BTPD.device, torch.arange(B, device=frames_BTPD.device)
    sums_BTPD = torch.cat([frames_BTPD, torch.zeros_like(frames_BTPD[:, :1])], dim=1)
    following_BT = torch.arange(1, T + 2, device=device).repeat(B, 1)
    previous_BT = torch.arange(-1, T, device=device).repeat(B, 1)
    begins_BT = torch.ones(B, T + 1, dtype=torch.bool, device=device)
    similarity_BT = frames_BTPD.new_full((B, T + 1), -torch.inf)  # of a stretch and the one that follows
    similarity_BT[:, : T - 1] = _similarity(frames_BTPD[:, :-1], frames_BTPD[:, 1:])
    for _ in range(T - left):
        kept_B = similarity_BT.argmax(1)
        gone_B = following_BT[rows, kept_B]
        next_B, before_B = following_BT[rows, gone_B], previous_BT[rows, kept_B]
        sums_BTPD[rows, kept_B] += sums_BTPD[rows, gone_B]
        following_BT[rows, kept_B], previous_BT[rows, next_B] = next_B, kept_B
        begins_BT[rows, gone_B] = False
        similarity_BT[rows, gone_B] = -torch.inf
        for first_B, second_B in ((before_B, kept_B), (kept_B, next_B)):
            neighbours_B = (first_B >= 0) & (second_B < T)
            alike_B = _similarity(sums_BTPD[rows, first_B], sums_BTPD[rows, second_B])
            similarity_BT[rows, first_B] = alike_B.masked_fill(~neighbours_B, -torch.inf)
    return begins_BT[:, :T].cumsum(1) - 1


def _similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean cosine of `(..., P, D)` place by place; a sum's is its mean's."""
    return F.cosine_similarity(first, second, dim=-1).mean(-1)
