"""The paper's encoder: CLIP's ConvNeXt-XXLarge by timm, last stage without its final norm."""

import torch

from architectures.encoders.base import ENCODERS, Encoder

DEPTHS, WIDTHS = (
    (3, 4, 30, 3),
    (384, 768, 1536, 3072),
)  # blocks and channels of the stages, as timm builds them


@ENCODERS.register("convnext_xxlarge")
class ConvNextXXLarge(Encoder):
    """`(576, 576)` pixels to 18 x 18 patches of width 3072. Random weights, until others are loaded."""

    def __init__(self, image_size: int = 576):
        import timm  # seconds to import, and the mini scale never needs it

        super().__init__()
        if image_size % 32:
            raise ValueError(f"encoder 'convnext_xxlarge': image_size is {image_size}, must be a multiple of 32.")
        self.image_size, self.grid = image_size, (image_size // 32, image_size // 32)
        tower = timm.create_model("convnext_xxlarge", pretrained=False, num_classes=0)
        self.stem, self.stages, self.width = tower.stem, tower.stages, tower.num_features

    def encode(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.stages(self.stem(images_NCHW)).flatten(2).transpose(1, 2)

    def flops_per_frame(self) -> int:
        rows, incoming, macs = self.image_size // 4, 4 * 3 * 4, 0  # the stem's 4x4 pixels of 3 channels
        for depth, width in zip(DEPTHS, WIDTHS, strict=True):
            downsampling = incoming * width
            block = 7 * 7 * width + 2 * width * 4 * width  # 7x7 depthwise; two linear layers, 4 times as wide between
            macs += rows**2 * (downsampling + depth * block)
            rows, incoming = rows // 2, 2 * 2 * width
        return 2 * macs
