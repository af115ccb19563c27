"""Shape legend, and what a video becomes on its way to the decoder.

Letters in tensor names:

    B batch            T frames             C colour channels     H W pixels, or a grid's rows and columns
    P patches/frame    V encoder width      D decoder width       F fast tokens      S slow tokens
    L sequence length  N reading tokens     Q query heads         K key/value heads  E width of one head
    G contexts: the sets of slow tokens that a batch's rows read, each of them once

so that `slow_SD` is one video's slow tokens and `gate_GNQE` a number per reading token, head and channel (or
fewer, to be broadcast).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VideoTokens:
    """One video for the decoder: `fast_FD` in its sequence, `slow_SD` beside it (None: no slow path).

    `times_S` says when each slow token was seen, in [0, 1].
    """

    fast_FD: torch.Tensor
    slow_SD: torch.Tensor | None = None
    times_S: torch.Tensor | None = None


@dataclass(frozen=True)
class SlowContext:
    """All slow tokens that one row reads, of one video or several: `slow_SD`.

    `places_S`: where in the row's sequence each would stand, for keys with a rotary position (else None).
    """

    slow_SD: torch.Tensor
    places_S: torch.Tensor | None = None


@dataclass(frozen=True)
class ShelfReaders:
    """The tokens that read the contexts of one shelf, as `row_GN` and `place_GN` of the batch.

    `valid_GN` is None when no context was padded. Gathering the readers first keeps visual queries, most of
    the sequence, and rows without a video out of cross-attention's cost. Rows that share a context (beams)
    are readers of one context: its keys and values are never copied.
    """

    row_GN: torch.Tensor
    place_GN: torch.Tensor
    valid_GN: torch.Tensor | None = None

    @classmethod
    def of(cls, reads_BL: torch.Tensor, context_B: torch.Tensor, contexts: int) -> "ShelfReaders":
        """Readers of contexts 0 to `contexts` - 1; `context_B` names each row's (others: not on this shelf)."""
        row_N, place_N = reads_BL.nonzero(as_tuple=True)
        context_N = context_B[row_N]
        on_shelf_N = (context_N >= 0) & (context_N < contexts)
        row_N, place_N, context_N = row_N[on_shelf_N], place_N[on_shelf_N], context_N[on_shelf_N]
        order_N = torch.argsort(context_N, stable=True)
        count_G = torch.bincount(context_N, minlength=contexts)
        longest = int(count_G.max())
        if bool((count_G == longest).all()):
            return cls(row_N[order_N].view(contexts, -1), place_N[order_N].view(contexts, -1))
        valid_GN = torch.arange(longest, device=reads_BL.device)[None] < count_G[:, None]
        row_GN, place_GN = (torch.zeros_like(valid_GN, dtype=torch.long) for _ in range(2))
        row_GN[valid_GN], place_GN[valid_GN] = row_N[order_N], place_N[order_N]
        return cls(row_GN, place_GN, valid_GN)

    def to(self, device: torch.device | str) -> "ShelfReaders":
        """The same readers on another device."""
        valid_GN = None if self.valid_GN is None else self.valid_GN.to(device)
        return ShelfReaders(self.row_GN.to(device), self.place_GN.to(device), valid_GN)


def stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """`torch.stack`, which copies, but of one tensor a view."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]
