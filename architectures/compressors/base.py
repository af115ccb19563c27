"""What every compressor is."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from architectures.registry import Registry

COMPRESSORS = Registry("compressor")


class Compressor(nn.Module, ABC):
    """`tokens_BTHWD -> fast_BFD`, with F = `n_tokens(T, H, W)`.

    `budgets` says how F can depend on T, each way with its options: under "fixed" it does not grow with the video (16
    frames' worth where frames are kept); under "strides" time or space are reduced by factors, so that F grows with T.
    Without an entry the compressor is profiled as it is configured.
    """

    budgets: ClassVar[dict[str, dict[str, Any]]] = {}

    @abstractmethod
    def n_tokens(self, T: int, H: int, W: int) -> int:
        """Fast tokens made of T frames of H x W tokens."""

    def flops(self, T: int, H: int, W: int) -> int:
        """FLOP of its matrix products and convolutions (2 x MAC); averages have none."""
        return 0

    @abstractmethod
    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        """The fast tokens of all tokens."""
