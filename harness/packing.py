"""Several questions about one video in one sequence: parallel branches behind a shared video prefix.

A branch sees the prefix and itself, and its positions go on from the prefix's end, so that it computes exactly
what a sequence of its own would: a saving of training time, checked by a test.

    prefix: <|im_start|> user <video> ... <video>   | branch 0 (padded to M) | branch 1 | ... | branch Q-1
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from architectures import SlowFastForConditionalGeneration
from architectures.hybrid import hybrid_name, register_hybrid

IGNORED = -100
PACKED = "packed"


@dataclass(frozen=True)
class Packing:
    """How a sequence is laid out: `prefix` tokens (V), the first `text_prefix` of them text, then equal branches."""

    prefix: int
    text_prefix: int
    branches: int

    def cut(self, values_BLX: torch.Tensor) -> torch.Tensor:
        """Per-token values by branch: `(B, L, ...) -> (B, Q, M, ...)`."""
        return values_BLX[:, self.prefix :].unflatten(1, (self.branches, -1))


@dataclass(frozen=True)
class Packed:
    """Token ids and positions of B videos with equally many questions each, and their layout."""

    input_ids_BL: torch.Tensor
    position_ids_1L: torch.Tensor
    packing: Packing


def pack(prefix_ids: list[int], branch_ids: list[list[list[int]]], padding_id: int, text_prefix: int = 2) -> Packed:
    """Packs `branch_ids[video][question]`, equally many questions a video, behind the same prefix.

    The first `text_prefix` tokens of the prefix are text, the others the video's placeholders.
    """
    B, Q, V = len(branch_ids), len(branch_ids[0]), len(prefix_ids)
    M = max(len(ids) for video in branch_ids for ids in video)
    padded = [[ids + [padding_id] * (M - len(ids)) for ids in video] for video in branch_ids]
    prefix_BV = torch.tensor(prefix_ids).expand(B, V)
    input_ids_BL = torch.cat([prefix_BV, torch.tensor(padded).flatten(1)], dim=1)
    position_ids_L = torch.cat([torch.arange(V), V + torch.arange(M).repeat(Q)])
    return Packed(input_ids_BL, position_ids_L[None], Packing(V, text_prefix, Q))


def packed_logits(
    model: SlowFastForConditionalGeneration,
    packed: Packed,
    first_layer_reads: bool = False,
    **video: torch.Tensor,
) -> torch.Tensor:
    """Logits of all branches, `(B, Q, M, vocabulary)`; `video` holds `features` (or `frames`) and `frame_times`.

    `first_layer_reads` keeps text from reading the video in any layer but the first (a recipe of base training).
    """
    with _attention(model, hybrid_name(PACKED)):
        logits_BLW = model(
            input_ids=packed.input_ids_BL,
            position_ids=packed.position_ids_1L,
            attention_mask={"full_attention": None},
            may_read=packed.input_ids_BL != model.config.pad_token_id,
            packing=packed.packing,
            first_layer_reads=first_layer_reads,
            use_cache=False,
            **video,
        ).logits
    return packed.packing.cut(logits_BLW)


def packed_attention(
    module: nn.Module,
    query_BQLE: torch.Tensor,
    key_BKLE: torch.Tensor,
    value_BKLE: torch.Tensor,
    mask: None,
    *,
    packing: Packing,
    first_layer_reads: bool,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Self-attention of packed sequences: each branch against the prefix and itself, never against the others."""
    V, n = packing.prefix, packing.branches
    seen = packing.text_prefix if first_layer_reads and module.layer_idx > 0 else V

    def own(heads: torch.Tensor) -> torch.Tensor:
        return heads[:, :, V:].unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1)

    def with_prefix(heads: torch.Tensor) -> torch.Tensor:
        prefix = heads[:, None, :, :seen].expand(-1, n, -1, -1, -1).flatten(0, 1)
        return torch.cat([prefix, own(heads)], dim=2)

    heads = {"scale": scaling, "enable_gqa": query_BQLE.shape[1] != key_BKLE.shape[1]}
    prefix_BQVE = F.scaled_dot_product_attention(
        query_BQLE[:, :, :V], key_BKLE[:, :, :V], value_BKLE[:, :, :V], is_causal=True, **heads
    )
    query = own(query_BQLE)
    M = query.shape[2]
    sees_M = torch.ones(M, seen + M, dtype=torch.bool, device=query.device).tril(diagonal=seen)
    branches = F.scaled_dot_product_attention(
        query, with_prefix(key_BKLE), with_prefix(value_BKLE), attn_mask=sees_M, **heads
    )
    branches_BLQE = branches.unflatten(0, (-1, n)).transpose(2, 3).flatten(1, 2)
    return torch.cat([prefix_BQVE.transpose(1, 2), branches_BLQE], dim=1), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, AttentionMaskInterface()["sdpa"])
register_hybrid(PACKED)


@contextmanager
def _attention(model: SlowFastForConditionalGeneration, name: str) -> Iterator[None]:
    """The decoder's attention function, changed for a while."""
    config = model.language_model.config
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


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
