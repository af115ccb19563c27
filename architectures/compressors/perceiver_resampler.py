"""Perceiver resampler: learned latents look at all tokens, and are the fast tokens (Flamingo, arXiv 2204.14198)."""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from architectures.compressors.base import COMPRESSORS, Compressor
from architectures.compressors.pooling import expect_positive


@COMPRESSORS.register("perceiver_resampler")
class PerceiverResampler(Compressor):
    """Section 3.1.1 of arXiv 2204.14198: any T x H x W tokens to `latents` fast tokens.

    A learned embedding of time is added to every frame, for any T interpolated from `time_slots` learned
    ones. In each of `depth` layers the latents attend to the tokens and to themselves, by `heads` heads of
    width `head_dim`, then pass a feed-forward layer `expansion` times as wide. The sizes of heads and the
    last norm are OpenFlamingo's (arXiv 2308.01390).
    """

    budgets: ClassVar = {"fixed": {}}

    def __init__(
        self,
        width: int,
        latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        expansion: int = 4,
        time_slots: int = 8,
    ):
        super().__init__()
        sizes = {"latents": latents, "depth": depth, "heads": heads, "head_dim": head_dim}
        expect_positive("perceiver_resampler", **sizes, expansion=expansion, time_slots=time_slots)
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.time_slots = nn.Parameter(torch.empty(time_slots, width))
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, head_dim, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws latents and time embeddings anew; the layers have their own."""
        nn.init.normal_(self.latents)
        nn.init.normal_(self.time_slots)

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return self.latents.shape[0]

    def flops(self, T: int, H: int, W: int) -> int:
        return sum(layer.flops(self.n_tokens(T, H, W), T * H * W) for layer in self.layers)

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        B, T = tokens_BTHWD.shape[:2]
        tokens_BND = (tokens_BTHWD + self.time_embedding(T)[:, None, None]).flatten(1, 3)
        fast_BFD = self.latents.repeat(B, 1, 1)
        for layer in self.layers:
            fast_BFD = layer(fast_BFD, tokens_BND)
        return self.norm(fast_BFD)

    def time_embedding(self, T: int) -> torch.Tensor:
        """One embedding per frame, `(T, D)`: the learned ones, stretched linearly from first to last."""
        slots_1DT = self.time_slots.t()[None]
        return F.interpolate(slots_1DT, size=T, mode="linear", align_corners=True)[0].t()


class ResamplerLayer(nn.Module):
    """Attention of the latents to tokens and latents, then a feed-forward layer, each beside a residual path."""

    def __init__(self, width: int, heads: int, head_dim: int, expansion: int):
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.token_norm, self.latent_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.up_proj = nn.Linear(width, expansion * width, bias=False)
        self.down_proj = nn.Linear(expansion * width, width, bias=False)

    def flops(self, latents: int, tokens: int) -> int:
        """FLOP for so many latents that read so many tokens, and themselves."""
        D, A, M = self.q_proj.in_features, self.q_proj.out_features, self.up_proj.out_features
        read = tokens + latents
        macs = {"q, o": 2 * latents * D * A, "k, v": 2 * read * D * A, "attention": 2 * latents * read * A}
        return 2 * (sum(macs.values()) + 2 * latents * D * M)

    def forward(self, latents_BFD: torch.Tensor, tokens_BND: torch.Tensor) -> torch.Tensor:
        latents_BFD = latents_BFD + self.attend(self.latent_norm(latents_BFD), self.token_norm(tokens_BND))
        hidden = F.relu(self.up_proj(self.mlp_norm(latents_BFD))).square()  # squared ReLU, as the source's
        return latents_BFD + self.down_proj(hidden)

    def attend(self, latents_BFD: torch.Tensor, tokens_BND: torch.Tensor) -> torch.Tensor:
        """What the latents read of both."""
        read_BND = torch.cat([tokens_BND, latents_BFD], dim=1)
        q, k, v = self.q_proj(latents_BFD), self.k_proj(read_BND), self.v_proj(read_BND)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        attended_BQFE = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(attended_BQFE.transpose(1, 2).flatten(2))
