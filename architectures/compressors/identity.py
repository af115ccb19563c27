"""No compression: every token is a fast token (the self-attention baseline)."""

from typing import ClassVar

import torch

from architectures.compressors.base import COMPRESSORS, Compressor


@COMPRESSORS.register("identity")
class Identity(Compressor):
    """Every token of every frame, in time order."""

    budgets: ClassVar = {"strides": {}}

    def __init__(self):
        super().__init__()

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return T * H * W

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        return tokens_BTHWD.flatten(1, 3)
