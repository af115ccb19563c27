"""Several questions about one video in one sequence: parallel branches behind a shared video prefix.

A branch sees the prefix and itself, and its positions go on from the prefix's end, so that it computes exactly
what a sequence of its own would: a saving of training time, checked by a test.

    prefix: <|im_start|> user <video> ... <video>   | branch 0 (padded to M) | branch 1 | ... | branch Q-1
"""

from dataclasses import dataclass

import torch

IGNORED = -100


@dataclass(frozen=True)
class Packed:
    """Model inputs of B videos with Q questions each; `later_mask` keeps text from reading the video."""

    input_ids_BL: torch.Tensor
    position_ids_1L: torch.Tensor
    mask_11LL: torch.Tensor
    later_mask_11LL: torch.Tensor
    prefix: int

    def branches(self, values_BLX: torch.Tensor, n_branches: int) -> torch.Tensor:
        """Cuts per-token values into branches: `(B, L, ...) -> (B, Q, M, ...)`."""
        return values_BLX[:, self.prefix :].unflatten(1, (n_branches, -1))


def pack(
    prefix_ids: list[int], branch_ids: list[list[list[int]]], padding_id: int, text_prefix: int = 2
) -> Packed:
    """Packs `branch_ids[video][question]`, equally many questions a video, behind the same prefix.

    The first `text_prefix` tokens of the prefix are text, the others the video's placeholders.
    """
    B, Q, V = len(branch_ids), len(branch_ids[0]), len(prefix_ids)
    M = max(len(ids) for video in branch_ids for ids in video)
    padded = [[ids + [padding_id] * (M - len(ids)) for ids in video] for video in branch_ids]
    prefix_BV = torch.tensor(prefix_ids).expand(B, V)
    input_ids_BL = torch.cat([prefix_BV, torch.tensor(padded).flatten(1)], dim=1)
    position_ids_L = torch.cat([torch.arange(V), V + torch.arange(M).repeat(Q)])
    block_L = torch.cat([torch.zeros(V, dtype=torch.long), 1 + torch.arange(Q).repeat_interleave(M)])
    place_L = torch.arange(V + Q * M)
    mask_LL = (place_L[:, None] >= place_L) & ((block_L == 0) | (block_L[:, None] == block_L))
    later_LL = mask_LL.clone()
    later_LL[V:, text_prefix:V] = False
    return Packed(input_ids_BL, position_ids_L[None], mask_LL[None, None], later_LL[None, None], V)


def answer_targets(branch_ids: list[list[list[int]]], answer_length: int) -> torch.Tensor:
    """Targets `(B, Q, M)` of the tokens that predict each branch's last `answer_length` tokens; else ignored.

    The target stands where its prediction is made, one place before the token itself.
    """
    M = max(len(ids) for video in branch_ids for ids in video)
    targets_BQM = torch.full((len(branch_ids), len(branch_ids[0]), M), IGNORED)
    for b, video in enumerate(branch_ids):
        for q, ids in enumerate(video):
            start = len(ids) - answer_length
            targets_BQM[b, q, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return targets_BQM
