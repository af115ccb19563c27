"""A small encoder that looks at every frame, so that the large one need not."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization

from architectures.encoders import ENCODERS

HALF_SIZE = {"name": "tiny", "width": 32, "image_size": 32}  # the mini scale's encoder at half its resolution


def visible_to_initialisation(module: nn.Module) -> None:
    """Gives a module without weights of its own something to be initialised.

    When transformers builds or completes a model it draws every module's weights anew, children before
    parents, and passes over parents that hold no weight themselves: their `reset_parameters` would not be
    called. An empty buffer, never saved, is weight enough.
    """
    module.register_buffer("empty", torch.empty(0), persistent=False)


def draw_(module: nn.Module, build: Callable[[], nn.Module], seed: int) -> None:
    """Sets `module`'s weights to those of a twin that `build` makes, a function of `seed` alone; freezes them.

    The twin is drawn on the CPU wherever `module` is, and torch's generator stays as it was. Weights that
    transformers has loaded from a checkpoint are kept; on the meta device there are none.
    """
    module.requires_grad_(False)  # transformers makes those that a checkpoint lacks anew, to be trained
    own = module.state_dict(keep_vars=True)
    if any(weight.is_meta for weight in own.values()):
        return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        twin = build().state_dict()
    for name, weight in own.items():
        initialization.copy_(weight, twin[name])


class CheapEncoder(nn.Module):
    """Any encoder, on frames shrunk to its own `image_size`: `frames_BTCHW -> features_BTPV` (float32).

    `spec` None: `HALF_SIZE`.

    Frames arrive normalised by `image_mean` and `image_std`, those of the model's own encoder, and are
    normalised anew for this one; None: they are the same. Its weights are frozen. Until others are loaded they
    are random, and a function of `seed` alone: so every process that builds a selector from the same options
    makes the same choices.
    """

    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        seed: int = 0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        super().__init__()
        spec = spec or HALF_SIZE
        self.encoder = ENCODERS.build(spec).eval()
        self.spec, self.seed = spec, seed
        self.mean = tuple(self.encoder.image_mean if image_mean is None else image_mean)
        self.std = tuple(self.encoder.image_std if image_std is None else image_std)
        visible_to_initialisation(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights from `seed`, without touching the state of torch's generator, and freezes them."""
        draw_(self.encoder, lambda: ENCODERS.build(self.spec), self.seed)

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
