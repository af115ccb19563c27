"""The mini scale's encoder: 64 x 64 pixels to a 4 x 4 grid, small enough to train in a minute on a laptop."""

import torch
from torch import nn
from torch.nn import functional as F

from architectures.encoders.base import ENCODERS, Encoder


@ENCODERS.register("tiny")
class TinyEncoder(Encoder):
    """2x2 pixels to channels, three strided convolutions, a 1x1; learned position; unit features."""

    image_mean = (0.35, 0.35, 0.35)
    image_std = (0.24, 0.24, 0.24)

    def __init__(self, width: int = 48, image_size: int = 64):
        super().__init__()
        if image_size % 16:
            raise ValueError(f"encoder 'tiny': image_size is {image_size}, must be a multiple of 16.")
        self.width, self.image_size, self.grid = width, image_size, (image_size // 16, image_size // 16)
        self.edges = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.strokes = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.zeros(1, 32, image_size // 8, image_size // 8))
        self.shapes = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.out = nn.Conv2d(64, width, 1)
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))

    def reset_parameters(self) -> None:
        """What the convolutions do not reset themselves: no position yet, features as they come."""
        nn.init.zeros_(self.position)
        nn.init.zeros_(self.feature_mean)
        nn.init.ones_(self.feature_std)

    def encode(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.edges(F.pixel_unshuffle(images_NCHW, 2)))
        x = F.gelu(self.strokes(x) + self.position)
        features_NVHW = self.out(F.gelu(self.shapes(x)))
        return (features_NVHW.flatten(2).transpose(1, 2) - self.feature_mean) / self.feature_std

    def flops_per_frame(self) -> int:
        rows = self.image_size // 4  # of `edges`; half as many of `strokes`, a quarter of `shapes` and `out`
        edges, strokes, shapes = 9 * 12 * 16, 9 * 16 * 32, 9 * 32 * 64
        return 2 * (rows**2 * edges + (rows // 2) ** 2 * strokes + (rows // 4) ** 2 * (shapes + 64 * self.width))

    @torch.no_grad()
    def standardise_(self, images_NCHW: torch.Tensor) -> None:
        """Sets feature mean and spread from a sample of images, so that the projector meets unit features."""
        self.feature_mean.zero_()
        self.feature_std.fill_(1.0)
        features_NPV = self.encode(images_NCHW)
        self.feature_mean.copy_(features_NPV.mean((0, 1)))
        self.feature_std.copy_(features_NPV.std((0, 1)))
