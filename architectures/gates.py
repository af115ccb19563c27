"""Gates: how much of the cross-attention is added to the self-attention. `attended_BNA -> gate_BN1`.

A is the width of all heads together. Every gate starts exactly at zero, so that a converted model equals
its base.
"""

import torch
from torch import nn

from architectures.registry import Registry

GATES = Registry("gate")


class Gate(nn.Module):
    """A gate with a zero-initialised warm-up scalar (paper, section 3: conversion changes nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.warmup = nn.Parameter(torch.zeros(1))

    def flops_per_token(self) -> int:
        """FLOP of its matrix products for one reading token (2 x MAC)."""
        return 0

    def close_(self) -> None:
        """Shuts the gate for good: its output is exactly zero whatever the other parameters are."""
        nn.init.zeros_(self.warmup)


@GATES.register("dynamic_tanh")
class DynamicTanhGate(Gate):
    """`tanh(w . a + b) * tanh(warmup)`: one scalar per token, of the self-attention's output a.

    The official "whole-dynamic-tanh-warmup". `bias` is b's initial value (0 in the official code).
    """

    def __init__(self, attended_width: int, bias: float = 0.0):
        super().__init__()
        self.projection = nn.Linear(attended_width, 1)
        self.initial_bias = bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Default linear weights, the chosen bias, warm-up zero."""
        self.projection.reset_parameters()
        nn.init.constant_(self.projection.bias, self.initial_bias)
        nn.init.zeros_(self.warmup)

    def flops_per_token(self) -> int:
        return 2 * self.projection.in_features

    def forward(self, attended_BNA: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.projection(attended_BNA)) * torch.tanh(self.warmup)


@GATES.register("static_tanh")
class StaticTanhGate(Gate):
    """`tanh(warmup)`: one scalar per layer, for every token (Flamingo, arXiv 2204.14198, section 3.1.2)."""

    def reset_parameters(self) -> None:
        """Warm-up zero."""
        nn.init.zeros_(self.warmup)

    def forward(self, attended_BNA: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.warmup).expand(*attended_BNA.shape[:2], 1)
