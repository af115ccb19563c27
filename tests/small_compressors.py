"""Compressors with seeded weights, and tokens for them."""

from typing import Any

import torch

from architectures.compressors import COMPRESSORS, Compressor


def built(width: int = 6, **spec: Any) -> Compressor:
    """The compressor of `spec`, its weights drawn from a fixed seed."""
    torch.manual_seed(0)
    return COMPRESSORS.build(spec, width=width)


def random_tokens(B: int, T: int, H: int, W: int, D: int = 6, seed: int = 1) -> torch.Tensor:
    """`tokens_BTHWD`."""
    return torch.randn(B, T, H, W, D, generator=torch.Generator().manual_seed(seed))


def mean(tokens: list[torch.Tensor]) -> torch.Tensor:
    """Their average, added up one by one."""
    return sum(tokens[1:], tokens[0]) / len(tokens)
