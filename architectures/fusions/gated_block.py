"""Flamingo's gated cross-attention block, in front of a decoder layer (arXiv 2204.14198, section 3.1.2, figure 4).

For the reading tokens y of the layer's input and slow tokens S:

    y <- y + tanh(alpha) * CrossAttention(queries of LN(y), keys and values of LN(S))
    y <- y + tanh(beta) * FFN(LN(y))

Everything in it is new and starts as drawn, whatever `kv_init`; alpha and beta start at zero, so that a new
block changes nothing. The layer behind it is left as it is.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from architectures.fusions.base import FUSIONS, Fusion, add
from architectures.gates import GATES
from architectures.slow_memory import KeyValue, Readers, SlowMemory

ACTIVATIONS = {"gelu": F.gelu, "squared_relu": lambda x: F.relu(x).square()}


class GatedFeedForward(nn.Module):
    """`gate * W2 activation(W1 LN(y))`, what is added to y; the gate sees LN(y) as one head of width D."""

    def __init__(self, width: int, expansion: int, activation: str, gate: dict[str, Any]):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, expansion * width, bias=False)
        self.down_proj = nn.Linear(expansion * width, width, bias=False)
        self.gate = GATES.build(gate, heads=1, head_dim=width)

    def forward(self, token_GND: torch.Tensor) -> torch.Tensor:
        normalised_GND = self.norm(token_GND)
        added_GND = self.down_proj(self.activation(self.up_proj(normalised_GND)))
        return self.gate(normalised_GND[:, :, None])[:, :, 0] * added_GND

    def flops_per_token(self) -> int:
        """FLOP of its matrix products for one reading token (2 x MAC)."""
        return 2 * (self.up_proj.weight.numel() + self.down_proj.weight.numel()) + self.gate.flops_per_token()


@FUSIONS.register("gated_block")
class GatedBlockFusion(Fusion):
    """Cross-attention and feed-forward of their own, at `layer.cross_block`; heads as the layer's, no biases.

    Gates: static_tanh is Flamingo's scalar. Any other gate fits too: the one of cross-attention sees the block's
    queries and works on its heads before the output projection, where a scalar does the same as behind it.
    `expansion` is the width of the feed-forward over D (4 in the paper), `activation` gelu or squared_relu. Flamingo
    has the squared ReLU in its new layers, by our memory of the paper's appendix (not looked up again); the YAML
    files choose it, and gelu is the default of this class only.

    Queries have no rotary position: that of slow keys, if they have one, says when in the video, not how long
    ago. Unlike the paper's, a block reads the slow tokens as they are (no resampler), all videos of its row.
    """

    def __init__(
        self, layer: nn.Module, gate: dict[str, Any], index: int, expansion: int = 4, activation: str = "gelu"
    ):
        super().__init__(layer, gate, index)
        if activation not in ACTIVATIONS:
            allowed = " or ".join(ACTIVATIONS)
            raise ValueError(f"fusion 'gated_block': activation is '{activation}', choose {allowed}.")
        if expansion < 1:
            raise ValueError(f"fusion 'gated_block': expansion is {expansion}, must be at least 1.")
        D = layer.self_attn.q_proj.in_features
        A, KE = self.heads * self.head_dim, self.key_heads * self.head_dim
        self.query_norm, self.slow_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.q_proj, self.o_proj = nn.Linear(D, A, bias=False), nn.Linear(A, D, bias=False)
        self.k_proj, self.v_proj = nn.Linear(D, KE, bias=False), nn.Linear(D, KE, bias=False)
        self.feed_forward = GatedFeedForward(D, expansion, activation, gate)

    def attach(self, layer: nn.Module) -> None:
        layer.cross_block = self
        layer.register_forward_pre_hook(read_first, with_kwargs=True)

    def keys_values(self, slow_GSD: torch.Tensor, layer: nn.Module) -> KeyValue:
        normalised_GSD = self.slow_norm(slow_GSD)
        key_GSKE, value_GSKE = (
            projection(normalised_GSD).unflatten(-1, (-1, self.head_dim)) for projection in (self.k_proj, self.v_proj)
        )
        return key_GSKE.transpose(1, 2), value_GSKE.transpose(1, 2)

    def forward(self, hidden_BLD: torch.Tensor, memory: SlowMemory, readers: Readers) -> torch.Tensor:
        """The layer's input, with what its readers read and made of it."""
        for keys_values, who in memory.reading(self.layer_index, readers):
            token_GND = hidden_BLD[who.row_GN, who.place_GN]
            query_GNQE = self.q_proj(self.query_norm(token_GND)).unflatten(-1, (-1, self.head_dim))
            crossed_GNQE = keys_values.attend(query_GNQE.transpose(1, 2), None).transpose(1, 2)
            read_GND = self.o_proj((self.gate(query_GNQE) * crossed_GNQE).flatten(2))
            hidden_BLD = add(hidden_BLD, who, read_GND + self.feed_forward(token_GND + read_GND))
        return hidden_BLD

    def other_flops(self, N: int) -> int:
        projections = 2 * (self.q_proj.weight.numel() + self.o_proj.weight.numel())
        return N * (projections + self.gate.flops_per_token() + self.feed_forward.flops_per_token())


def read_first(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """A hook before a decoder layer: its input passes the block first, if slow tokens come along."""
    memory, readers = kwargs.get("slow_memory"), kwargs.get("readers")
    if memory is None or readers is None:
        return None
    if args:
        return (layer.cross_block(args[0], memory, readers), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": layer.cross_block(kwargs["hidden_states"], memory, readers)}
