"""SigLIP's vision tower by transformers (arXiv 2303.15343), without its pooling head."""

import torch
from torch import nn

from architectures.encoders.base import ENCODERS, Encoder

WHOLE = "embeddings.", "encoder.layers.", "post_layernorm."  # what a tower's checkpoint holds beside its head


@ENCODERS.register("siglip")
class Siglip(Encoder):
    """A plain vision transformer over patches in rows; the defaults are so400m-patch14-384.

    Random weights, until `load_tower_` fills them. 384 pixels are 27 patches of 14 a side: as in the released
    model, the remaining 6 pixels at the right and at the bottom are not seen.

    Args:
        depth: layers of the checkpoint. width, heads, mlp_width: of each.
        select_layer: whose output is taken, as an index into transformers' `hidden_states`: 0 is the
            embeddings, -1 the last layer's. Layers behind it are not built.
        final_norm: whether the tower's last norm follows; only after the last layer.
    """

    name = "siglip"
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        depth: int = 27,
        width: int = 1152,
        heads: int = 16,
        mlp_width: int = 4304,
        image_size: int = 384,
        patch_size: int = 14,
        select_layer: int = -1,
        final_norm: bool = True,
    ):
        super().__init__()
        self.check(depth, width, heads, image_size, patch_size)
        if not -depth - 1 <= select_layer <= depth:
            raise ValueError(
                f"encoder '{self.name}': select_layer is {select_layer}, must lie between {-depth - 1} and {depth}."
            )
        self.depth, self.layers_used = depth, select_layer if select_layer >= 0 else depth + 1 + select_layer
        if final_norm and self.layers_used < depth:
            raise ValueError(
                f"encoder '{self.name}': final_norm belongs behind the last layer, but select_layer is "
                f"{select_layer} of depth {depth}: set final_norm=false."
            )
        self.width, self.mlp_width, self.image_size, self.patch_size = width, mlp_width, image_size, patch_size
        self.grid = (image_size // patch_size,) * 2
        self.tower = self.build(
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=self.layers_used,
            num_attention_heads=heads,
            patch_size=patch_size,
            vision_use_head=False,
        )
        if not final_norm:
            self.tower.post_layernorm = nn.Identity()

    def check(self, depth: int, width: int, heads: int, image_size: int, patch_size: int) -> None:
        """ValueError for sizes that make no tower."""
        if depth < 1 or width < 1 or heads < 1 or width % heads:
            raise ValueError(
                f"encoder '{self.name}': depth is {depth}, width {width}, heads {heads}: each is at least 1, and "
                "width a multiple of heads."
            )
        if not 1 <= patch_size <= image_size:
            raise ValueError(
                f"encoder '{self.name}': patch_size is {patch_size}, must lie between 1 and image_size {image_size}."
            )

    def build(self, **sizes: int | bool) -> nn.Module:
        """transformers' tower of these sizes."""
        from transformers import SiglipVisionConfig, SiglipVisionModel

        return SiglipVisionModel(SiglipVisionConfig(image_size=self.image_size, **sizes))

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Images to the first layer's input, `tokens_NPV`, with their positions."""
        return self.tower.embeddings(images_NCHW)

    def encode(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        tokens_NPV = self.embed(images_NCHW)
        for layer in self.tower.encoder.layers:
            tokens_NPV = layer(tokens_NPV, None)
        return self.tower.post_layernorm(tokens_NPV)

    def flops_per_frame(self) -> int:
        P, V = self.grid[0] * self.grid[1], self.width
        patches = P * V * 3 * self.patch_size**2
        layer = P * (4 * V * V + 2 * V * self.mlp_width) + 2 * P * P * V  # q, k, v, out; the MLP; q k' and its values
        return 2 * (patches + self.layers_used * layer)

    def load_tower_(self, state: dict[str, torch.Tensor]) -> None:
        """Fills the tower from a checkpoint's tensors, those of a whole SigLIP or of its vision tower.

        The text tower, the pooling head, and what `select_layer` leaves out are passed over. Raises ValueError
        for a tensor that is missing, unknown or of another shape.
        """
        state = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
        own = self.tower.state_dict()
        state = {name: tensor for name, tensor in state.items() if name.startswith(WHOLE) and not self.unused(name)}
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
        if wrong:
            raise ValueError(
                f"encoder '{self.name}': the checkpoint does not fit these sizes, the first of {len(wrong)} "
                f"differences is '{wrong[0]}'; set depth, width, mlp_width, image_size and patch_size to its own."
            )
        self.tower.load_state_dict(state)

    def unused(self, name: str) -> bool:
        """Whether a checkpoint's tensor belongs to a part that was not built."""
        if name.startswith("encoder.layers."):
            return self.layers_used <= int(name.split(".")[2]) < self.depth
        return name.startswith("post_layernorm.") and isinstance(self.tower.post_layernorm, nn.Identity)
