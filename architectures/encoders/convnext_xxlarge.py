"""The paper's encoder: CLIP's ConvNeXt-XXLarge by timm, last stage without its final norm."""

import torch

from architectures.encoders.base import ENCODERS, Encoder


@ENCODERS.register("convnext_xxlarge")
class ConvNextXXLarge(Encoder):
    """`(576, 576)` pixels to 18 x 18 patches of width 3072. Random weights: released ones are loaded from outside."""

    def __init__(self, image_size: int = 576):
        import timm  # seconds to import, and the mini scale never needs it

        super().__init__()
        if image_size % 32:
            raise ValueError(
                f"encoder 'convnext_xxlarge': image_size is {image_size}, must be a multiple of 32."
            )
        self.image_size, self.grid = image_size, (image_size // 32, image_size // 32)
        tower = timm.create_model("convnext_xxlarge", pretrained=False, num_classes=0)
        self.stem, self.stages, self.width = tower.stem, tower.stages, tower.num_features

    def encode(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.stages(self.stem(images_NCHW)).flatten(2).transpose(1, 2)
