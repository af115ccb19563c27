"""Cross-attention of a hybrid layer: text queries over slow keys and values.

With normalised slow tokens S, self-attention output a and rotary queries q of the reading tokens (paper,
section 3):

    K, V = Linear(RMSNorm_in(S))        the layer's own input norm; no rotary position on K
    c = softmax(q K' / sqrt(E)) V
    a <- a + gate(a) * c                before the layer's output projection
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from architectures.gates import GATES
from architectures.tokens import Readers


@dataclass
class SlowMemory:
    """Slow keys and values of every hybrid layer, `layer index -> (key_BKSE, value_BKSE)`: once per video."""

    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]

    def select(self, index_B: torch.Tensor) -> "SlowMemory":
        """The memory of the batch rows `index_B` (beam search reorders, batches shrink)."""
        pick = {i: (k.index_select(0, index_B), v.index_select(0, index_B)) for i, (k, v) in self.layers.items()}
        return SlowMemory(pick)

    def repeat(self, times: int) -> "SlowMemory":
        """The memory with every batch row repeated `times` times in place."""
        spread = {
            i: (k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for i, (k, v) in self.layers.items()
        }
        return SlowMemory(spread)


class CrossAttention(nn.Module):
    """The parameters that make a decoder layer hybrid: slow key and value projections, and a gate."""

    def __init__(self, attention: nn.Module, gate: dict[str, Any]):
        """Built for (not into) a Hugging Face self-attention, whose head layout and biases it follows."""
        super().__init__()
        key, value = attention.k_proj, attention.v_proj
        self.head_dim = attention.head_dim
        self.k_proj = nn.Linear(key.in_features, key.out_features, bias=key.bias is not None)
        self.v_proj = nn.Linear(value.in_features, value.out_features, bias=value.bias is not None)
        self.gate = GATES.build(gate, attended_width=attention.o_proj.in_features)

    def keys_values(self, slow_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of normalised slow tokens, `(key_BKSE, value_BKSE)`."""
        heads = (*slow_BSD.shape[:2], -1, self.head_dim)
        return self.k_proj(slow_BSD).view(heads).transpose(1, 2), self.v_proj(slow_BSD).view(heads).transpose(1, 2)

    def forward(
        self,
        attended_BLQE: torch.Tensor,
        query_BQLE: torch.Tensor,
        key_values: tuple[torch.Tensor, torch.Tensor],
        readers: Readers,
        scaling: float,
    ) -> torch.Tensor:
        """Adds the gated cross-attention to the readers' self-attention output `attended_BLQE`."""
        Q, E = attended_BLQE.shape[2:]
        index_BN11 = readers.index_BN[:, :, None, None]
        query_BQNE = query_BQLE.gather(2, index_BN11.transpose(1, 2).expand(-1, Q, -1, E))
        attended_BNA = attended_BLQE.gather(1, index_BN11.expand(-1, -1, Q, E)).flatten(2)
        key_BKSE, value_BKSE = key_values
        crossed_BQNE = F.scaled_dot_product_attention(
            query_BQNE, key_BKSE, value_BKSE, scale=scaling, enable_gqa=key_BKSE.shape[1] != Q
        )
        added_BNA = self.gate(attended_BNA) * crossed_BQNE.transpose(1, 2).flatten(2)
        if readers.valid_BN is not None:
            added_BNA = added_BNA * readers.valid_BN[..., None]
        return attended_BLQE.scatter_add(1, index_BN11.expand(-1, -1, Q, E), added_BNA.unflatten(-1, (Q, E)))


@torch.no_grad()
def initialise_keys_values(cross: CrossAttention, attention: nn.Module, how: str) -> None:
    """Initialises `cross`'s key and value projections from the self-attention's.

    "copy": key from key, value from value, as the paper means it. "scrambled": what the official code does:
    it writes the heads as [K_0..K_n-1, V_0..V_n-1] and reads them as [K_0, V_0, K_1, V_1, ...], so that
    with 4 heads the pairs become (K0, K1), (K2, K3), (V0, V1), (V2, V3). "random": left as drawn.
    """
    if how == "random":
        return
    if how not in ("copy", "scrambled"):
        raise ValueError(f"Unknown kv_init '{how}': choose one of copy, random, scrambled.")
    for name in ("weight", "bias"):
        key, value = getattr(attention.k_proj, name), getattr(attention.v_proj, name)
        if key is None:
            continue
        if how == "scrambled":
            heads = torch.cat([key.unflatten(0, (-1, cross.head_dim)), value.unflatten(0, (-1, cross.head_dim))])
            key, value = heads[0::2].flatten(0, 1), heads[1::2].flatten(0, 1)
        getattr(cross.k_proj, name).copy_(key)
        getattr(cross.v_proj, name).copy_(value)
