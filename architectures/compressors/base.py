"""What every compressor is."""

import torch
from torch import nn

from architectures.registry import Registry

COMPRESSORS = Registry("compressor")


class Compressor(nn.Module):
    """`tokens_BTHWD -> fast_BFD`, with F = `n_tokens(T, H, W)`."""

    def n_tokens(self, T: int, H: int, W: int) -> int:
        """Fast tokens made of T frames of H x W tokens."""
        raise NotImplementedError

    def flops(self, T: int, H: int, W: int) -> int:
        """FLOP of its matrix products and convolutions (2 x MAC); averages have none."""
        return 0

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError
