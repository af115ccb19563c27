"""Shape legend, and the two things that a video becomes.

Letters in tensor names:

    B batch            T frames             C colour channels     H W pixels, or a grid's rows and columns
    P patches/frame    V encoder width      D decoder width       F fast tokens      S slow tokens
    L sequence length  N reading tokens     Q query heads         K key/value heads  E width of one head

so that `slow_BSD` is a batch of slow tokens and `gate_BN1` one scalar per reading token.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VideoTokens:
    """A video for the decoder: `fast_BFD` in its sequence, `slow_BSD` beside it (None: no slow path)."""

    fast_BFD: torch.Tensor
    slow_BSD: torch.Tensor | None


@dataclass(frozen=True)
class Readers:
    """The tokens of a sequence that read the slow tokens: their places `index_BN`, and which are real.

    `valid_BN` is None when no row was padded. Gathering the readers first keeps visual queries, most of the
    sequence, out of cross-attention's cost.
    """

    index_BN: torch.Tensor
    valid_BN: torch.Tensor | None = None

    @classmethod
    def from_mask(cls, reads_BL: torch.Tensor) -> "Readers":
        """Readers of a boolean mask `reads_BL`; rows with fewer readers than the longest are padded."""
        count_B = reads_BL.sum(1)
        longest = int(count_B.max())
        index_BN = torch.argsort(reads_BL.logical_not().to(torch.uint8), dim=1, stable=True)[:, :longest]
        if bool((count_B == longest).all()):
            return cls(index_BN)
        return cls(index_BN, torch.arange(longest, device=reads_BL.device)[None] < count_B[:, None])
