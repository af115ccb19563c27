"""From the encoder's width to the decoder's, and the 2x2 "video pooling" of the paper's section 3."""

import torch
from torch import nn
from torch.nn import functional as F


class Projector(nn.Sequential):
    """`depth` linear layers and GELUs ("mlp2x_gelu" at depth 2): `[..., vision_width] -> [..., width]`."""

    def __init__(self, vision_width: int, width: int, depth: int = 2):
        if depth < 1:
            raise ValueError(f"projector depth is {depth}, must be at least 1.")
        layers: list[nn.Module] = [nn.Linear(vision_width, width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width, width)]
        super().__init__(*layers)


def pool_grid(grid: tuple[int, int], stride: int) -> tuple[int, int]:
    """The grid that `pool_space` leaves of `grid`; a remainder of rows or columns is dropped (floor)."""
    return grid[0] // stride, grid[1] // stride


def expect_token_left(grid: tuple[int, int], stride: int, what: str = "pooling") -> None:
    """Raises ValueError unless `pool_grid` leaves a token; `what` names the option to lower."""
    if min(pool_grid(grid, stride)) < 1:
        raise ValueError(
            f"{what} is {stride}, but a frame is {grid[0]} x {grid[1]} tokens: no token is left, lower it."
        )


def pool_space(tokens_BTHWD: torch.Tensor, stride: int) -> torch.Tensor:
    """Averages s x s neighbourhoods of each frame: `(B, T, H, W, D) -> (B, T, H // s, W // s, D)`.

    Raises ValueError for a stride beyond the frame, of which no token would be left.
    """
    if stride == 1:
        return tokens_BTHWD
    expect_token_left(tokens_BTHWD.shape[2:4], stride)
    B, T = tokens_BTHWD.shape[:2]
    pooled = F.avg_pool2d(tokens_BTHWD.flatten(0, 1).permute(0, 3, 1, 2), stride)
    return pooled.permute(0, 2, 3, 1).unflatten(0, (B, T))
