"""Any Hugging Face decoder becomes hybrid: cross-attention modules, an attention function that calls them.

Recent decoders pass unknown keyword arguments from `forward` down to the attention function, so the slow
memory and the readers travel as arguments through unmodified decoder code.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from architectures.cross_attention import CrossAttention, SlowMemory
from architectures.tokens import Readers

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

    def attend(
        module: nn.Module,
        query_BQLE: torch.Tensor,
        key_BKME: torch.Tensor,
        value_BKME: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        scaling: float,
        slow_memory: SlowMemory | None = None,
        readers: Readers | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended_BLQE, weights = base(module, query_BQLE, key_BKME, value_BKME, mask, scaling=scaling, **kwargs)
        if slow_memory is None or readers is None or module.layer_idx not in slow_memory.layers:
            return attended_BLQE, weights
        key_values = slow_memory.layers[module.layer_idx]
        return module.cross_attention(attended_BLQE, query_BQLE, key_values, readers, scaling), weights

    return attend


def register_hybrid(backend: str) -> None:
    """Files the hybrid version of a registered attention function and its mask under `hybrid_name(backend)`."""
    AttentionInterface.register(backend + SUFFIX, hybrid_attention(backend))
    AttentionMaskInterface.register(backend + SUFFIX, AttentionMaskInterface()[backend])


for _backend in ("sdpa", "flash_attention_2", "flash_attention_3"):
    register_hybrid(_backend)


def make_hybrid(decoder: PreTrainedModel, layers: tuple[int, ...], gate: dict[str, Any]) -> None:
    """Attaches a `cross_attention` module to the self-attention of each of the `decoder`'s chosen `layers`.

    Nothing else of the decoder changes; with the gates' warm-up at zero it computes what it did before, to
    the bit.
    """
    for index in layers:
        attention = decoder.layers[index].self_attn
        attention.cross_attention = CrossAttention(attention, gate)


def remember(decoder: PreTrainedModel, layers: tuple[int, ...], slow_BSD: torch.Tensor) -> SlowMemory:
    """Projects the slow tokens to the keys and values of every hybrid layer, once."""
    memory = {}
    for index in layers:
        layer = decoder.layers[index]
        memory[index] = layer.self_attn.cross_attention.keys_values(layer.input_layernorm(slow_BSD))
    return SlowMemory(memory)


class SlowFastCache(DynamicCache):
    """The decoder's cache and, beside it, the slow memory: decoding never projects slow tokens again."""

    def __init__(self, config: Any):
        super().__init__(config=config)
        self.slow_memory: SlowMemory | None = None

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
