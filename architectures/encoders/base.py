"""What every encoder is."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from architectures.registry import Registry

ENCODERS = Registry("encoder")


class Encoder(nn.Module, ABC):
    """`frames_BTCHW -> features_BTPV`; a subclass sees frames one by one, in `encode`."""

    grid: tuple[int, int]
    width: int
    image_size: int
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @abstractmethod
    def encode(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Images to `features_NPV`."""

    @abstractmethod
    def flops_per_frame(self) -> int:
        """FLOP of its matrix products and convolutions for one frame (2 x MAC)."""

    def forward(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        B, T = frames_BTCHW.shape[:2]
        return self.encode(frames_BTCHW.flatten(0, 1)).unflatten(0, (B, T))
