"""Any Hugging Face decoder becomes hybrid: fusion modules, and an attention function that calls them.

Recent decoders pass unknown keyword arguments from `forward` down to the attention function, so the slow
memory and its readers travel as arguments through unmodified decoder code.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from architectures.fusions import FUSIONS, Fusion, fusion_of
from architectures.fusions.base import AttentionFusion, expect_layout
from architectures.slow_memory import KeyValue, Readers, SlowKeysValues, SlowMemory, in_chunks, on_shelves
from architectures.tokens import SlowContext, stacked

SUFFIX = "_slow_fast"


def hybrid_name(backend: str) -> str:
    """The registered name of `hybrid_attention(backend)`; a ValueError for a backend that has none."""
    backend = backend.removesuffix(SUFFIX)
    known = AttentionInterface()
    if backend + SUFFIX not in known:
        allowed = ", ".join(sorted(name.removesuffix(SUFFIX) for name in known if name.endswith(SUFFIX)))
        raise ValueError(f"attn_implementation '{backend}' has no hybrid layers: choose one of {allowed}.")
    return backend + SUFFIX


def hybrid_attention(backend: str) -> Callable:
    """The attention function `backend` (sdpa, ...), followed by a hybrid layer's cross-attention."""
    base = AttentionInterface()[backend]
    by_name = backend.startswith("flash")  # which loads what the module's configuration names

    def attend(
        module: nn.Module,
        query_BQLE: torch.Tensor,
        key_BKME: torch.Tensor,
        value_BKME: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        slow_memory: SlowMemory | None = None,
        readers: Readers | None = None,
        input_BLD: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        called = Under(module, config=Under(module.config, _attn_implementation=backend)) if by_name else module
        attended_BLQE, weights = base(called, query_BQLE, key_BKME, value_BKME, mask, scaling=scaling, **kwargs)
        fusion: AttentionFusion | None = getattr(module, "cross_attention", None)
        if fusion is None or slow_memory is None or readers is None:
            return attended_BLQE, weights
        return fusion(attended_BLQE, query_BQLE, slow_memory, readers, scaling, input_BLD), weights

    return attend


class Under:
    """An object seen with some attributes changed; nothing of it is."""

    def __init__(self, seen: Any, **changed: Any):
        self.__dict__.update(changed, _seen=seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


def register_hybrid(backend: str) -> None:
    """Files the hybrid version of a registered attention function and its mask under `hybrid_name(backend)`."""
    AttentionInterface.register(backend + SUFFIX, hybrid_attention(backend))
    AttentionMaskInterface.register(backend + SUFFIX, AttentionMaskInterface()[backend])


for _backend in ("sdpa", "flash_attention_2", "flash_attention_3"):
    register_hybrid(_backend)


def make_hybrid(
    decoder: PreTrainedModel, layers: tuple[int, ...], fusion: dict[str, Any], gate: dict[str, Any]
) -> None:
    """Attaches a fusion to each of the `decoder`'s chosen `layers`; nothing else of it changes.

    With gates that start closed it computes what it did before, to the bit. Raises ValueError for a decoder
    whose layers have no place for one.
    """
    for index in layers:
        layer = decoder.layers[index]
        expect_layout(layer)
        built = FUSIONS.build(fusion, layer=layer, gate=gate, index=index, first=index == layers[0])
        built.attach(layer)


def fusions(decoder: PreTrainedModel) -> dict[int, Fusion]:
    """The fusion of every hybrid layer, by layer."""
    found = {index: fusion_of(layer) for index, layer in enumerate(decoder.layers)}
    return {index: fusion for index, fusion in found.items() if fusion is not None}


def remember(
    decoder: PreTrainedModel,
    contexts_B: list[SlowContext | None],
    chunk: int | None = None,
    device: str | None = None,
) -> SlowMemory:
    """Projects each row's slow tokens (None: it has none) to keys and values of every hybrid layer, once.

    `chunk` slow tokens at a time are projected, and later attended to (None: all at once); `device` keeps the
    keys and values elsewhere than the decoder, as on "cpu".
    """
    shelves, context_B = on_shelves([None if c is None else c.slow_SD.shape[0] for c in contexts_B])
    memory = [_remember_shelf(decoder, [contexts_B[row] for row in rows], chunk, device) for rows in shelves]
    return SlowMemory(tuple(memory), tuple(map(len, shelves)), context_B)


def _remember_shelf(
    decoder: PreTrainedModel, contexts_G: list[SlowContext], chunk: int | None, device: str | None
) -> dict[int, SlowKeysValues]:
    """Keys and values of contexts of one length, by layer."""
    made: dict[int, SlowKeysValues] = {}
    for index, fusion in fusions(decoder).items():
        layer = decoder.layers[index]

        def project(part: slice, layer: nn.Module = layer, fusion: Fusion = fusion, index: int = index) -> KeyValue:
            home = next(fusion.parameters()).device
            key_GKSE, value_GKSE = fusion.keys_values(stacked([c.slow_SD[part] for c in contexts_G]).to(home), layer)
            if contexts_G[0].places_S is not None:
                places_GS = stacked([context.places_S[part] for context in contexts_G])
                key_GKSE = rotate(decoder, index, key_GKSE, places_GS.to(home))
            return key_GKSE, value_GKSE

        first = next(iter(made.values()), None)
        S = len(contexts_G[0].slow_SD)
        made[index] = in_chunks(S, project, chunk, device) if fusion.owns_keys else first
    return made


def rotate(decoder: PreTrainedModel, layer: int, key_GKSE: torch.Tensor, places_GS: torch.Tensor) -> torch.Tensor:
    """Rotates slow keys as the decoder would at (fractional) positions `places_GS` of its sequence."""
    rotary = decoder.rotary_emb
    per_kind = "layer_type" in inspect.signature(rotary.forward).parameters
    kind = {"layer_type": decoder.config.layer_types[layer]} if per_kind else {}
    if getattr(rotary, "mrope_section", None) is not None or "mrope_section" in str(decoder.config.rope_parameters):
        raise ValueError("Slow keys have no rotary position in decoders with multi-axis rotary positions: use another.")
    cos_GSE, sin_GSE = (table[:, None] for table in rotary(key_GKSE, places_GS, **kind))
    if cos_GSE.shape[-1] != key_GKSE.shape[-1]:
        raise ValueError("Slow keys have no rotary position in decoders that rotate a part of each head: use another.")
    left, right = key_GKSE.chunk(2, dim=-1)
    return key_GKSE * cos_GSE + torch.cat([-right, left], dim=-1) * sin_GSE


class RemembersSlow:
    """What a cache needs to keep the slow memory beside it: rows that move take their slow tokens along.

    Stands before a cache class among the bases. Cropping leaves the slow memory as it is: it belongs to the
    prompt.
    """

    slow_memory: SlowMemory | None = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        if self.slow_memory is not None:
            self.slow_memory = self.slow_memory.select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.slow_memory is not None:
            self.slow_memory = self.slow_memory.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.slow_memory is not None:
            self.slow_memory = self.slow_memory.repeat(repeats)


class SlowFastCache(RemembersSlow, DynamicCache):
    """The decoder's cache and, beside it, the slow memory: decoding never projects slow tokens again."""

    def __init__(self, config: Any):
        super().__init__(config=config)
