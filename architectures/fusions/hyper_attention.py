"""Hyper-attention of mPLUG-Owl3: self- and cross-attention in parallel, mixed (arXiv 2408.04840, section 3.2).

With self-attention output a and rotary queries q of the reading tokens, and slow tokens S under the layer's own
input norm:

    K, V = Linear(Norm_in(S))           projections of their own
    c = softmax(q K' / sqrt(E)) V
    a <- (1 - g) * a + g * c            before the layer's output projection

As slow-fast, then, but what is read *replaces* a part of the self-attention's output instead of being added.
"""

from typing import Any

import torch
from torch import nn

from architectures.fusions.base import FUSIONS
from architectures.fusions.slow_fast import SlowFastFusion
from architectures.gates import NoGate


@FUSIONS.register("hyper_attention")
class HyperAttentionFusion(SlowFastFusion):
    """A mixture of self- and cross-attention by any gate g, of which sigmoid keeps it a mixture (0 <= g <= 1).

    - sigmoid with `warmup` false is sigmoid(w . a + b), computed from the text's state: the paper's start, half
      open, so that a converted model does not equal its base. With `warmup` (ours, the default) g starts at 0.
    - The released code (mPLUG-Owl3-7B-240728) has a learned sigmoid per channel instead, which no text changes;
      that of 2411 has no gate at all but one softmax over both kinds of keys. Neither is offered here.
    - Their visual keys have the rotary position of their image's place in the text (MI-RoPE). Slow tokens with
      "rotary" time have that of the fast tokens of their time: the same idea, a video having many places.
    """

    def __init__(self, layer: nn.Module, gate: dict[str, Any], index: int):
        super().__init__(layer, gate, index)
        if isinstance(self.gate, NoGate):
            raise ValueError("fusion 'hyper_attention': gate 'none' leaves nothing of self-attention, choose another.")

    def combine(self, attended_GNQE: torch.Tensor, crossed_GNQE: torch.Tensor) -> torch.Tensor:
        return self.gate(attended_GNQE) * (crossed_GNQE - attended_GNQE)
