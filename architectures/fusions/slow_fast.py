"""The slow-fast hybrid layer: cross-attention of text queries over slow keys, inside self-attention.

With normalised slow tokens S, self-attention output a and rotary queries q of the reading tokens (paper,
section 3):

    K, V = Linear(RMSNorm_in(S))        the layer's own input norm; no rotary position on K
    c = softmax(q K' / sqrt(E)) V
    a <- a + gate(a) * c                before the layer's output projection
"""

from typing import Any

import torch
from torch import nn

from architectures.fusions.base import FUSIONS, AttentionFusion, add, key_norm
from architectures.slow_memory import KeyValue, Readers, SlowMemory


@FUSIONS.register("slow_fast")
class SlowFastFusion(AttentionFusion):
    """Slow key and value projections and a gate; queries and output projection are the self-attention's.

    `keys`: "per_layer" (the official design), or "shared": one projection, and so one memory, for all hybrid
    layers (the first one's). `query`: "self_attention" (official: its rotary queries), or "own": a projection
    of its own of the layer's normalised input, without rotary position (that of slow keys, if they have one,
    then says when in the video, not how long ago).
    """

    def __init__(
        self,
        layer: nn.Module,
        gate: dict[str, Any],
        index: int,
        first: bool = True,
        keys: str = "per_layer",
        query: str = "self_attention",
    ):
        super().__init__(layer, gate, index)
        if keys not in ("per_layer", "shared"):
            raise ValueError(f"fusion 'slow_fast': keys is '{keys}', choose per_layer or shared.")
        if query not in ("self_attention", "own"):
            raise ValueError(f"fusion 'slow_fast': query is '{query}', choose self_attention or own.")
        if query == "own" and hasattr(layer.self_attn, "q_norm"):
            raise ValueError("fusion 'slow_fast': query 'own' is not made for decoders that normalise their queries.")
        self.owns_keys = first or keys == "per_layer"
        if self.owns_keys:
            self.k_proj = like(layer.self_attn.k_proj)
            self.v_proj = like(layer.self_attn.v_proj)
        self.q_proj = like(layer.self_attn.q_proj) if query == "own" else None

    def attach(self, layer: nn.Module) -> None:
        super().attach(layer)
        if self.q_proj is not None:
            layer.self_attn.register_forward_pre_hook(pass_input, with_kwargs=True)

    def keys_values(self, slow_GSD: torch.Tensor, layer: nn.Module) -> KeyValue:
        normalised_GSD = layer.input_layernorm(slow_GSD)
        key_GSKE = key_norm(layer.self_attn, self.k_proj(normalised_GSD))
        value_GSKE = self.v_proj(normalised_GSD).unflatten(-1, (-1, self.head_dim))
        return key_GSKE.transpose(1, 2), value_GSKE.transpose(1, 2)

    def forward(
        self,
        attended_BLQE: torch.Tensor,
        query_BQLE: torch.Tensor,
        memory: SlowMemory,
        readers: Readers,
        scaling: float | None,
        input_BLD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for keys_values, who in memory.reading(self.layer_index, readers):
            attended_GNQE = attended_BLQE[who.row_GN, who.place_GN]
            if self.q_proj is None:
                query_GNQE = query_BQLE[who.row_GN, :, who.place_GN]
            else:
                query_GNQE = self.q_proj(input_BLD[who.row_GN, who.place_GN]).unflatten(-1, (-1, self.head_dim))
            crossed_GNQE = keys_values.attend(query_GNQE.transpose(1, 2), scaling).transpose(1, 2)
            attended_BLQE = add(attended_BLQE, who, self.combine(attended_GNQE, crossed_GNQE))
        return attended_BLQE

    def combine(self, attended_GNQE: torch.Tensor, crossed_GNQE: torch.Tensor) -> torch.Tensor:
        """What is added to the self-attention's output."""
        return self.gate(attended_GNQE) * crossed_GNQE

    @torch.no_grad()
    def initialise_(self, layer: nn.Module, how: str) -> None:
        """Initialises the projections from the self-attention's own.

        "copy": key from key, value from value, as the paper means it. "scrambled": what the official code
        does: it writes the heads as [K_0..K_n-1, V_0..V_n-1] and reads them as [K_0, V_0, K_1, V_1, ...], so
        that with 4 heads the pairs become (K0, K1), (K2, K3), (V0, V1), (V2, V3). "random": left as drawn.
        """
        super().initialise_(layer, how)
        if how == "random":
            return
        attention = layer.self_attn
        if self.q_proj is not None:
            self.q_proj.load_state_dict(attention.q_proj.state_dict())
        if not self.owns_keys:
            return
        for name in ("weight", "bias"):
            key, value = getattr(attention.k_proj, name), getattr(attention.v_proj, name)
            if key is None:
                continue
            if how == "scrambled":
                heads = torch.cat([key.unflatten(0, (-1, self.head_dim)), value.unflatten(0, (-1, self.head_dim))])
                key, value = heads[0::2].flatten(0, 1), heads[1::2].flatten(0, 1)
            getattr(self.k_proj, name).copy_(key)
            getattr(self.v_proj, name).copy_(value)

    def other_flops(self, N: int) -> int:
        own_query = 0 if self.q_proj is None else 2 * self.q_proj.weight.numel()
        return N * (self.gate.flops_per_token() + own_query)


def like(linear: nn.Linear) -> nn.Linear:
    """A new linear layer of the same shape."""
    return nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)


def pass_input(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """A hook before self-attention: its input goes on to the attention function as the argument `input_BLD`."""
    if kwargs.get("slow_memory") is None:
        return None
    return args, {**kwargs, "input_BLD": args[0] if args else kwargs["hidden_states"]}
