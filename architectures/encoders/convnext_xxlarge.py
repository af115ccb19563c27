"""The paper's encoder: CLIP's ConvNeXt-XXLarge by timm, last stage without its final norm."""

from collections.abc import Sequence

import torch
from torch import nn

from architectures.encoders.base import ENCODERS, Encoder

DEPTHS, WIDTHS = (3, 4, 30, 3), (384, 768, 1536, 3072)  # blocks and channels of the stages, as timm builds them
STEM, KERNEL, EXPANSION = 4, 7, 4  # pixels of a stem patch, depthwise kernel, width of a block's inner layer
TOTAL_STRIDE = STEM * 2**3  # three of the four stages halve the map


@ENCODERS.register("convnext_xxlarge")
class ConvNextXXLarge(Encoder):
    """`(576, 576)` pixels to 18 x 18 patches of width 3072 (ConvNeXt, arXiv 2201.03545). Random weights at first.

    `depths` and `widths` (blocks and channels of the four stages) make a smaller tower of the same kind.
    `norm_eps` is 1e-5 in the official tower. With `head_classes` the tower also holds CLIP's unused
    classification head (norm and linear layer, frozen), as official checkpoints do (1000 classes there), so
    that nothing of a checkpoint is lost between import and export.
    """

    resizing = "crop"  # shortest edge to the encoder's size, centre crop: what the official image processor does

    def __init__(
        self,
        image_size: int = 576,
        depths: Sequence[int] = DEPTHS,
        widths: Sequence[int] = WIDTHS,
        norm_eps: float = 1e-5,
        head_classes: int = 0,
    ):
        from timm.models.convnext import ConvNeXt  # seconds to import, and the mini scale never needs it

        super().__init__()
        if image_size % TOTAL_STRIDE:
            raise ValueError(
                f"encoder 'convnext_xxlarge': image_size is {image_size}, must be a multiple of {TOTAL_STRIDE}."
            )
        if len(depths) != len(DEPTHS) or len(widths) != len(WIDTHS) or min(*depths, *widths) < 1:
            raise ValueError(
                f"encoder 'convnext_xxlarge': depths {list(depths)} and widths {list(widths)} must be four "
                "positive numbers each."
            )
        self.image_size, self.grid = image_size, (image_size // TOTAL_STRIDE,) * 2
        self.depths, self.widths = tuple(depths), tuple(widths)
        tower = ConvNeXt(depths=self.depths, dims=self.widths, norm_eps=norm_eps, num_classes=0)
        self.stem, self.stages, self.width = tower.stem, tower.stages, tower.num_features
        if head_classes:
            self.head = nn.ModuleDict(
                {"norm": nn.LayerNorm(self.width, eps=norm_eps), "fc": nn.Linear(self.width, head_classes)}
            ).requires_grad_(False)

    def encode(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.stages(self.stem(images_NCHW)).flatten(2).transpose(1, 2)

    def flops_per_frame(self) -> int:
        rows, incoming, macs = self.image_size // STEM, STEM * STEM * 3, 0  # the stem's pixels of 3 channels
        for depth, width in zip(self.depths, self.widths, strict=True):
            downsampling = incoming * width
            block = KERNEL * KERNEL * width + 2 * width * EXPANSION * width  # depthwise; two linear layers
            macs += rows**2 * (downsampling + depth * block)
            rows, incoming = rows // 2, 2 * 2 * width
        return 2 * macs
