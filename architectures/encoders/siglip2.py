"""SigLIP 2's vision towers by transformers (arXiv 2502.14786), without their pooling head."""

import torch
from torch import nn
from torch.nn import functional as F

from architectures.encoders.base import ENCODERS
from architectures.encoders.siglip import Siglip


@ENCODERS.register("siglip2")
class Siglip2(Siglip):
    """The checkpoints of fixed resolution (`siglip2-so400m-patch14-384` and its like): SigLIP's own tower.

    SigLIP 2 changed the training, the tokenizer and the text side; its vision tower of fixed resolution is
    `SiglipVisionModel` in transformers too.
    """

    name = "siglip2"


@ENCODERS.register("siglip2_naflex")
class Siglip2NaFlex(Siglip):
    """The checkpoints of native aspect ratio (`siglip2-so400m-patch16-naflex`), for square frames.

    Their learned positions are a grid of `position_rows` a side, resampled to the frame's own. An encoder has
    one grid for all frames here, so frames are square, as the processor resizes them, and no patch is padding:
    other aspect ratios, the point of NaFlex for images, are not offered.
    """

    name = "siglip2_naflex"

    def __init__(
        self,
        depth: int = 27,
        width: int = 1152,
        heads: int = 16,
        mlp_width: int = 4304,
        image_size: int = 384,
        patch_size: int = 16,
        position_rows: int = 16,
        select_layer: int = -1,
        final_norm: bool = True,
    ):
        self.position_rows = position_rows
        super().__init__(depth, width, heads, mlp_width, image_size, patch_size, select_layer, final_norm)

    def check(self, depth: int, width: int, heads: int, image_size: int, patch_size: int) -> None:
        super().check(depth, width, heads, image_size, patch_size)
        if image_size % patch_size:
            raise ValueError(
                f"encoder '{self.name}': image_size is {image_size}, must be a multiple of patch_size {patch_size}."
            )
        if self.position_rows < 1:
            raise ValueError(f"encoder '{self.name}': position_rows is {self.position_rows}, must be at least 1.")

    def build(self, **sizes: int | bool) -> nn.Module:
        from transformers import Siglip2VisionConfig, Siglip2VisionModel

        return Siglip2VisionModel(Siglip2VisionConfig(num_patches=self.position_rows**2, **sizes))

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        embeddings, side = self.tower.embeddings, self.patch_size
        # pixels of a patch in the order of its rows, columns, channels
        patches = images_NCHW.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1)
        tokens_NPV = embeddings.patch_embedding(patches.flatten(3).flatten(1, 2))
        return tokens_NPV + self.positions().to(tokens_NPV.dtype)

    def positions(self) -> torch.Tensor:
        """The learned positions, resampled to the frame's grid (bilinear, anti-aliased): `(P, V)`."""
        rows = self.position_rows
        learned_1VHW = self.tower.embeddings.position_embedding.weight.float().view(1, rows, rows, -1)
        learned_1VHW = learned_1VHW.permute(0, 3, 1, 2)
        resized = F.interpolate(learned_1VHW, self.grid, mode="bilinear", align_corners=False, antialias=True)
        return resized.flatten(2)[0].T
