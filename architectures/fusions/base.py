"""What every fusion is."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from architectures.gates import GATES
from architectures.registry import Registry
from architectures.slow_memory import KeyValue, Readers, SlowMemory
from architectures.tokens import ShelfReaders

FUSIONS = Registry("fusion")
KV_INITS = ("copy", "scrambled", "random")
NEEDED = ("q_proj", "k_proj", "v_proj", "o_proj")


class Fusion(nn.Module, ABC):
    """What makes a decoder layer hybrid: keys and values of slow tokens, a gate, and its place in the layer.

    Its gate sees the state of the reading tokens, heads by channels (`attended_GNQE`). Subclasses say in `attach`
    where they live in the layer; what they compute there, and of which arguments, is theirs.
    """

    owns_keys = True  # False: another hybrid layer's keys and values are read

    def __init__(self, layer: nn.Module, gate: dict[str, Any], index: int):
        """Built for (not into) a Hugging Face decoder layer, number `index`, whose widths it follows."""
        super().__init__()
        self.layer_index = index
        attention = layer.self_attn
        self.head_dim: int = attention.head_dim
        self.heads: int = attention.o_proj.in_features // self.head_dim  # some query projections make a gate as well
        self.key_heads: int = attention.k_proj.out_features // self.head_dim
        self.gate = GATES.build(gate, heads=self.heads, head_dim=self.head_dim)

    @abstractmethod
    def keys_values(self, slow_GSD: torch.Tensor, layer: nn.Module) -> KeyValue:
        """Keys and values of slow tokens as the projector made them, `(key_GKSE, value_GKSE)`."""

    @abstractmethod
    def attach(self, layer: nn.Module) -> None:
        """Puts the fusion into its layer. What the layer computes changes only when slow tokens come along."""

    def initialise_(self, layer: nn.Module, how: str) -> None:
        """Initialises new weights from the layer's own, as far as the fusion has such a rule."""
        if how not in KV_INITS:
            raise ValueError(f"Unknown kv_init '{how}': choose one of {', '.join(sorted(KV_INITS))}.")

    def slow_flops(self, S: int, D: int) -> int:
        """FLOP of the keys and values of S slow tokens (2 x MAC)."""
        return 2 * S * 2 * D * self.key_heads * self.head_dim if self.owns_keys else 0

    def reading_flops(self, N: int, S: int) -> int:
        """FLOP of N readers' attention to S slow tokens, without the gate and without other projections."""
        return 4 * N * S * self.heads * self.head_dim

    def other_flops(self, N: int) -> int:
        """FLOP of what else N readers cost: gates, further projections."""
        return N * self.gate.flops_per_token()


class AttentionFusion(Fusion):
    """A fusion inside self-attention, at `layer.self_attn.cross_attention`: it works on the output of all heads.

    Called before the output projection. The queries are the self-attention's own, rotary position included;
    `input_BLD` is the layer's normalised input, for fusions that ask for it.
    """

    @abstractmethod
    def forward(
        self,
        attended_BLQE: torch.Tensor,
        query_BQLE: torch.Tensor,
        memory: SlowMemory,
        readers: Readers,
        scaling: float | None,
        input_BLD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The self-attention's output, with what the readers read of the slow tokens."""

    def attach(self, layer: nn.Module) -> None:
        layer.self_attn.cross_attention = self


def fusion_of(layer: nn.Module) -> Fusion | None:
    """The fusion attached to a decoder layer, or None."""
    return next((module for module in layer.modules() if isinstance(module, Fusion)), None)


def expect_layout(layer: nn.Module) -> None:
    """Raises ValueError, in a sentence, for a decoder layer that cannot become hybrid."""
    kind = type(layer).__name__
    attention = getattr(layer, "self_attn", None)
    if attention is None:
        raise ValueError(f"{kind} has no self_attn: only layers of softmax attention can become hybrid.")
    missing = [name for name in NEEDED if not hasattr(attention, name)]
    if missing or not hasattr(attention, "head_dim"):
        raise ValueError(
            f"The attention of {kind} has no {', '.join(missing) or 'head_dim'}: a hybrid layer needs separate "
            "query, key, value and output projections (fused or low-rank ones are not supported)."
        )
    if not hasattr(layer, "input_layernorm"):
        raise ValueError(f"{kind} has no input_layernorm, by which slow tokens are normalised.")


def key_norm(attention: nn.Module, key_GSA: torch.Tensor) -> torch.Tensor:
    """Keys as the layer's own would be normalised (Qwen3, Gemma3: per head; OLMo2: all heads), `key_GSKE`."""
    E = attention.head_dim
    norm = getattr(attention, "k_norm", None)
    if norm is None:
        return key_GSA.unflatten(-1, (-1, E))
    if norm.weight.shape[-1] == E:
        return norm(key_GSA.unflatten(-1, (-1, E)))
    return norm(key_GSA).unflatten(-1, (-1, E))


def add(values_BLX: torch.Tensor, who: ShelfReaders, added_GNX: torch.Tensor) -> torch.Tensor:
    """Adds to the readers' places; the padding of readers, which stands at place (0, 0), adds nothing."""
    if who.valid_GN is not None:
        added_GNX = added_GNX * who.valid_GN[(..., *[None] * (added_GNX.dim() - 2))]
    return values_BLX.index_put((who.row_GN, who.place_GN), added_GNX.to(values_BLX.dtype), accumulate=True)
