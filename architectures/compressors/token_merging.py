"""Token merging: the most similar tokens become one, wherever they are (ToMe, arXiv 2210.09461)."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import expect_positive

SCORES = 2**24  # similarities held at once: 64 MiB of float32, whatever the video's length


@COMPRESSORS.register("token_merging")
class TokenMerging(Compressor):
    """Bipartite soft matching (section 3 of arXiv 2210.09461), repeated until the budget is met.

    The budget is `tokens`, or without it as many as `fast_frames` whole frames have. In each round every
    second token is matched with the most similar of the others, and the most similar pairs are merged, half
    of all tokens at most; a token counts by how many it stands for, so that each fast token is the mean of
    its own. A merged token stands where its match stood: the others' order, and so time's, is kept.
    Similarity is the cosine of the tokens themselves (the source has a layer's keys). No weights; gradients
    pass through the averages, not through the choice.
    """

    budgets: ClassVar = {"fixed": {}}

    def __init__(self, width: int, fast_frames: int = 16, tokens: int | None = None):
        super().__init__()
        expect_positive("token_merging", fast_frames=fast_frames, tokens=tokens)
        self.width = width  # for the cost
        self.fast_frames = fast_frames
        self.tokens = tokens

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return min(T * H * W, self.fast_frames * H * W if self.tokens is None else self.tokens)

    def rounds(self, T: int, H: int, W: int) -> list[tuple[int, int]]:
        """(tokens before, tokens merged away) of each round."""
        rounds, left, budget = [], T * H * W, self.n_tokens(T, H, W)
        while left > budget:
            rounds.append((left, min(left // 2, left - budget)))
            left -= rounds[-1][1]
        return rounds

    def flops(self, T: int, H: int, W: int) -> int:
        return sum(2 * ((N + 1) // 2) * (N // 2) * self.width for N, _ in self.rounds(T, H, W))

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        B, T, H, W, _ = tokens_BTHWD.shape
        sums_BND = tokens_BTHWD.flatten(1, 3).to(torch.promote_types(tokens_BTHWD.dtype, torch.float32))
        sizes_BN1 = sums_BND.new_ones(B, T * H * W, 1)
        for _, merged in self.rounds(T, H, W):
            sums_BND, sizes_BN1 = merge(sums_BND, sizes_BN1, merged)
        return (sums_BND / sizes_BN1).to(tokens_BTHWD.dtype)


def merge(sums_BND: torch.Tensor, sizes_BN1: torch.Tensor, merged: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One round: `merged` of the tokens at even places go into their most similar ones at odd places.

    Tokens come and go as sums of what they stand for, with how many that are; a cosine does not see the
    difference between a sum and its mean.
    """
    similarity_BA, match_BA = best_matches(sums_BND.detach())
    order_BA = similarity_BA.argsort(dim=1, descending=True, stable=True)
    away_BM, stay = order_BA[:, :merged], order_BA[:, merged:]
    source_BM, target_BM = 2 * away_BM, 2 * match_BA.gather(1, away_BM) + 1
    odd = torch.arange(1, sums_BND.shape[1], 2, device=sums_BND.device).expand(len(sums_BND), -1)
    kept_BN = torch.cat([2 * stay, odd], dim=1).sort(dim=1).values

    def gathered(values: torch.Tensor) -> torch.Tensor:
        """Of sums or sizes, the kept ones with the merged added."""
        source, target, kept = (
            index[..., None].expand(-1, -1, values.shape[2]) for index in (source_BM, target_BM, kept_BN)
        )
        return values.scatter_add(1, target, values.gather(1, source)).gather(1, kept)

    return gathered(sums_BND), gathered(sizes_BN1)


def best_matches(tokens_BND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token at an even place: its greatest cosine with one at an odd place, and which (0 the first)."""
    even_BAD, odd_BCD = (F.normalize(tokens_BND[:, start::2], dim=-1) for start in (0, 1))
    rows = max(1, SCORES // (odd_BCD.shape[0] * odd_BCD.shape[1]))
    best = [(chunk @ odd_BCD.transpose(1, 2)).max(dim=-1) for chunk in even_BAD.split(rows, dim=1)]
    return torch.cat([each.values for each in best], dim=1), torch.cat([each.indices for each in best], dim=1)
