"""A small encoder that looks at every frame, so that the large one need not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from architectures.encoders import ENCODERS


class CheapEncoder(nn.Module):
    """Any encoder, on frames shrunk to its own `image_size`: `frames_BTCHW -> features_BTPV` (float32).

    Frames arrive normalised by `image_mean` and `image_std`, those of the model's own encoder, and are
    normalised anew for this one; None: they are the same. Its weights are frozen. Until others are loaded they
    are random, and a function of `seed` alone: so every process that builds a selector from the same options
    makes the same choices.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        seed: int = 0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.encoder = ENCODERS.build(spec).requires_grad_(False).eval()
        self.seed = seed
        self.mean = tuple(self.encoder.image_mean if image_mean is None else image_mean)
        self.std = tuple(self.encoder.image_std if image_std is None else image_std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights from `seed`, without touching the state of torch's generator."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            for module in self.encoder.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    def flops_per_frame(self) -> int:
        """FLOP of its matrix products and convolutions for one frame (2 x MAC)."""
        return self.encoder.flops_per_frame()

    def forward(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        size = self.encoder.image_size
        small_NCHW = F.adaptive_avg_pool2d(frames_BTCHW.flatten(0, 1).float(), size)
        if (self.mean, self.std) != (tuple(self.encoder.image_mean), tuple(self.encoder.image_std)):
            small_NCHW = self.encoder_normalised(small_NCHW)
        weight = next(self.encoder.parameters())
        features_NPV = self.encoder.encode(small_NCHW.to(weight.dtype)).float()
        return features_NPV.unflatten(0, frames_BTCHW.shape[:2])

    def encoder_normalised(self, small_NCHW: torch.Tensor) -> torch.Tensor:
        """From the model's own normalisation to this encoder's."""
        numbers = (self.mean, self.std, self.encoder.image_mean, self.encoder.image_std)
        mean, std, own_mean, own_std = (small_NCHW.new_tensor(each)[:, None, None] for each in numbers)
        return (small_NCHW * std + mean - own_mean) / own_std
