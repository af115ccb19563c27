"""Spatio-temporal convolution: the STC connector of VideoLLaMA 2 (arXiv 2406.07476)."""

from typing import ClassVar

import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn
from torch.nn import functional as F

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import expect_positive
from architectures.projectors import Projector


@COMPRESSORS.register("spatio_temporal_convolution")
class SpatioTemporalConvolution(Compressor):
    """Section 3.1 of arXiv 2406.07476: convolutions in space, one that shortens time and space, and again.

    `depth` RegStage blocks on each frame, a 3D convolution with a stride of `time_stride` frames and
    `space_stride` rows and columns, `depth` blocks on what is left, then `readout_depth` linear layers. Along
    an axis with a stride, one zero comes before (as in the source) and as many behind as fill the last
    window, so that nothing is dropped and any T and grid will do: n becomes ceil((n + 1) / stride).
    """

    budgets: ClassVar = {"strides": {}}

    def __init__(self, width: int, time_stride: int = 2, space_stride: int = 2, depth: int = 4, readout_depth: int = 2):
        super().__init__()
        strides = {"time_stride": time_stride, "space_stride": space_stride}
        expect_positive("spatio_temporal_convolution", **strides, depth=depth, readout_depth=readout_depth)
        self.strides = (time_stride, space_stride, space_stride)
        self.before = _blocks(depth, width)
        self.shorten = nn.Conv3d(width, width, kernel_size=self.strides, stride=self.strides)
        self.after = _blocks(depth, width)
        self.readout = Projector(width, width, readout_depth)

    def shortened(self, *sizes: int) -> tuple[int, ...]:
        """What is left of T, H and W."""
        return tuple(
            size if stride == 1 else -(-(size + 1) // stride) for size, stride in zip(sizes, self.strides, strict=True)
        )

    def n_tokens(self, T: int, H: int, W: int) -> int:
        frames, rows, columns = self.shortened(T, H, W)
        return frames * rows * columns

    def flops(self, T: int, H: int, W: int) -> int:
        fast, frames = self.n_tokens(T, H, W), self.shortened(T, H, W)[0]
        readout = sum(layer.weight.numel() for layer in self.readout if isinstance(layer, nn.Linear))
        macs = _macs(self.before, T, T * H * W) + _macs(self.after, frames, fast)
        return 2 * (macs + fast * (self.shorten.weight.numel() + readout))

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        seen_BDTHW = _on_frames(self.before, tokens_BTHWD.permute(0, 4, 1, 2, 3))
        short_BDTHW = F.silu(self.shorten(self.pad(seen_BDTHW)))
        fast_BDTHW = _on_frames(self.after, short_BDTHW)
        return self.readout(fast_BDTHW.flatten(2).transpose(1, 2))

    def pad(self, tokens_BDTHW: torch.Tensor) -> torch.Tensor:
        """Zeros around each axis that is shortened."""
        sizes = tokens_BDTHW.shape[2:]
        margins = []  # of the last axis first, as F.pad has it
        for size, left, stride in reversed(list(zip(sizes, self.shortened(*sizes), self.strides, strict=True))):
            margins += [0, 0] if stride == 1 else [1, left * stride - size - 1]
        return F.pad(tokens_BDTHW, margins)


def _blocks(depth: int, width: int) -> RegStage:
    """RegNet blocks with the source's norm and activation: each frame is by itself, batch or not."""
    return RegStage(depth, width, width, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)


def _macs(blocks: RegStage, frames: int, tokens: int) -> int:
    """Multiply-adds of `blocks`: squeeze-and-excitation works on one token per frame, the rest on all."""
    kernels = {name: conv.weight.numel() for name, conv in blocks.named_modules() if isinstance(conv, nn.Conv2d)}
    per_frame = sum(size for name, size in kernels.items() if ".se." in name)
    return frames * per_frame + tokens * (sum(kernels.values()) - per_frame)


def _on_frames(blocks: RegStage, tokens_BDTHW: torch.Tensor) -> torch.Tensor:
    """`blocks` on every frame: the shape stays."""
    B = tokens_BDTHW.shape[0]
    frames_NDHW = tokens_BDTHW.transpose(1, 2).flatten(0, 1)
    return blocks(frames_NDHW).unflatten(0, (B, -1)).transpose(1, 2)
