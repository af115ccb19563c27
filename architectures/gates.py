"""Gates: how much of the cross-attention is added to the self-attention. `attended_GNQE -> gate_GNQE`.

`attended_GNQE` is the self-attention's output a of the reading tokens, before the output projection. A gate's
own output has size 1 wherever it does not differ: (G, N, 1, 1) per token, (G, N, Q, 1) per head, (G, N, Q, E)
per channel. A below is Q x E, the width of all heads together.

The official code's gating types and what they are here, w . a + b being a learned linear map of A to 1 and
the warm-up a learned scalar that starts at zero:

    official                                     formula                           here
    whole-dynamic-tanh-warmup                    tanh(w . a + b) * tanh(warmup)    dynamic_tanh
    the same, where all tokens cross-attend      tanh(w . a + b) * warmup          dynamic_tanh_linear_warmup
    whole-dynamic-tanh                           tanh(w . a + b)                   dynamic_tanh_no_warmup
    whole-dynamic                                w . a + b                         dynamic
    whole-dynamic-warmup                         (w . a + b) * tanh(warmup)        dynamic, warmup: tanh
    the same, where all tokens cross-attend      (w . a + b) * warmup              dynamic, warmup: linear
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from architectures.registry import Registry

GATES = Registry("gate")
WARMUPS = ("linear", "none", "tanh")
NEVER = -1e4  # a logit whose sigmoid is exactly 0 in every floating point type: exp(-1e4) underflows in all


class Gate(nn.Module, ABC):
    """What every gate offers.

    `starts_closed` says whether a new gate is exactly zero, so that a converted model equals its base (paper,
    section 3). Where an option decides, the class says it of the default and the instance of itself.
    """

    starts_closed: bool

    @abstractmethod
    def reset_parameters(self) -> None:
        """The parameters of a new gate: linear weights as torch draws them, the rest as the class says."""

    def flops_per_token(self) -> int:
        """FLOP of its matrix products for one reading token (2 x MAC)."""
        return 0

    @abstractmethod
    def close_(self) -> None:
        """Shuts the gate: its output is exactly zero for every token, and still is once saved and loaded."""

    @abstractmethod
    def forward(self, attended_GNQE: torch.Tensor) -> torch.Tensor:
        """How much of what each token read is added, broadcastable to GNQE."""


class ProjectedGate(Gate):
    """`squash(W . a + b)`, one number per output of W, times a warm-up scalar or not.

    With a warm-up the gate starts at zero and only the warm-up has a gradient at first; W and b follow as
    soon as it has moved. `bias` is b's initial value (0 in the official code). `warmup`: "tanh" (the factor
    is tanh(warmup)), "linear" (warmup itself) or "none". ValueError for another `warmup`.
    """

    closed_logit = 0.0  # what `squash` makes exactly 0

    def __init__(self, attended_width: int, outputs: int, bias: float, warmup: str):
        super().__init__()
        if warmup not in WARMUPS:
            raise ValueError(f"The gate's warmup is '{warmup}': choose one of {', '.join(WARMUPS)}.")
        self.projection = nn.Linear(attended_width, outputs)
        self.initial_bias, self.warmup_kind = bias, warmup
        self.starts_closed = warmup != "none"
        if self.starts_closed:
            self.warmup = nn.Parameter(torch.zeros(1))
        self.reset_parameters()

    def squash(self, logits_GNX: torch.Tensor) -> torch.Tensor:
        """What is done to W . a + b."""
        return torch.tanh(logits_GNX)

    def reset_parameters(self) -> None:
        """Default linear weights, the chosen bias, warm-up zero."""
        self.projection.reset_parameters()
        nn.init.constant_(self.projection.bias, self.initial_bias)
        if self.starts_closed:
            nn.init.zeros_(self.warmup)

    def flops_per_token(self) -> int:
        return 2 * self.projection.weight.numel()

    def close_(self) -> None:
        if self.starts_closed:
            nn.init.zeros_(self.warmup)
        else:
            nn.init.zeros_(self.projection.weight)
            nn.init.constant_(self.projection.bias, self.closed_logit)

    def forward(self, attended_GNQE: torch.Tensor) -> torch.Tensor:
        gate_GNX = self.squash(self.projection(attended_GNQE.flatten(2)))
        if self.warmup_kind == "tanh":
            gate_GNX = gate_GNX * torch.tanh(self.warmup)
        elif self.warmup_kind == "linear":
            gate_GNX = gate_GNX * self.warmup
        return gate_GNX[..., None]


@GATES.register("dynamic_tanh")
class DynamicTanhGate(ProjectedGate):
    """`tanh(w . a + b) * tanh(warmup)` per token: the released models' gate."""

    starts_closed = True

    def __init__(self, heads: int, head_dim: int, bias: float = 0.0):
        super().__init__(heads * head_dim, 1, bias, "tanh")


@GATES.register("dynamic_tanh_linear_warmup")
class DynamicTanhLinearWarmupGate(ProjectedGate):
    """`tanh(w . a + b) * warmup` per token: the same gate in the official branch for all-token reading."""

    starts_closed = True

    def __init__(self, heads: int, head_dim: int, bias: float = 0.0):
        super().__init__(heads * head_dim, 1, bias, "linear")


@GATES.register("dynamic_tanh_no_warmup")
class DynamicTanhNoWarmupGate(ProjectedGate):
    """`tanh(w . a + b)` per token. It starts open: a converted model does not equal its base."""

    starts_closed = False

    def __init__(self, heads: int, head_dim: int, bias: float = 0.0):
        super().__init__(heads * head_dim, 1, bias, "none")


@GATES.register("dynamic")
class DynamicGate(ProjectedGate):
    """`w . a + b` per token, unbounded and of either sign; starts open unless it has a `warmup`."""

    starts_closed = False

    def __init__(self, heads: int, head_dim: int, bias: float = 0.0, warmup: str = "none"):
        super().__init__(heads * head_dim, 1, bias, warmup)

    def squash(self, logits_GNX: torch.Tensor) -> torch.Tensor:
        return logits_GNX


@GATES.register("sigmoid")
class SigmoidGate(ProjectedGate):
    """`sigmoid(w . a + b) * tanh(warmup)` per token: all tokens with one sign, which the warm-up decides.

    The gate of gated linear units (arXiv 1612.08083, section 2), as one scalar. With `warmup` false it is
    sigmoid(w . a + b): it starts half open, and a converted model does not equal its base.
    """

    starts_closed = True
    closed_logit = NEVER

    def __init__(self, heads: int, head_dim: int, bias: float = 0.0, warmup: bool = True):
        super().__init__(heads * head_dim, 1, bias, "tanh" if warmup else "none")

    def squash(self, logits_GNX: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(logits_GNX)


@GATES.register("per_head")
class PerHeadGate(ProjectedGate):
    """`tanh(W . a + b) * tanh(warmup)` with one output per head: a token may read with some heads only."""

    starts_closed = True

    def __init__(self, heads: int, head_dim: int, bias: float = 0.0):
        super().__init__(heads * head_dim, heads, bias, "tanh")


@GATES.register("static_tanh")
class StaticTanhGate(Gate):
    """`tanh(warmup)`: one scalar per layer, for every token (Flamingo, arXiv 2204.14198, section 3.1.2)."""

    starts_closed = True

    def __init__(self) -> None:
        super().__init__()
        self.warmup = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """Warm-up zero."""
        nn.init.zeros_(self.warmup)

    def close_(self) -> None:
        nn.init.zeros_(self.warmup)

    def forward(self, attended_GNQE: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.warmup).expand(*attended_GNQE.shape[:2], 1, 1)


@GATES.register("per_channel")
class PerChannelGate(Gate):
    """`tanh(scale_QE)`: one learned number per head and channel, for every token; all start at zero.

    A vector in place of Flamingo's scalar, as LayerScale's (arXiv 2103.17239, section 2) is of a residual branch.
    """

    starts_closed = True

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(heads, head_dim))

    def reset_parameters(self) -> None:
        """All zero."""
        nn.init.zeros_(self.scale)

    def close_(self) -> None:
        nn.init.zeros_(self.scale)

    def forward(self, attended_GNQE: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.scale).expand_as(attended_GNQE)


@GATES.register("none")
class NoGate(Gate):
    """1 for every token: cross-attention is added as it is. A converted model does not equal its base.

    Nothing in it is learned; `open` is 1, or 0 once closed, and is saved with the model.
    """

    starts_closed = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("open", torch.ones(1))

    def reset_parameters(self) -> None:
        """Open."""
        nn.init.ones_(self.open)

    def close_(self) -> None:
        nn.init.zeros_(self.open)

    def forward(self, attended_GNQE: torch.Tensor) -> torch.Tensor:
        return self.open.expand(*attended_GNQE.shape[:2], 1, 1)
