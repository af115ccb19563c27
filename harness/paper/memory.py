"""How much memory one process needs for an evaluation, in closed form, before anything is loaded.

The peak is that of the largest phase, on top of the weights. With b videos of T frames at once (A of them in the
encoder together), P patches of width V, D the decoder's width, M its MLP's, KE the width of its keys, L tokens in the
sequence, S slow tokens in h hybrid of n layers, and numbers of `size` bytes:

    vision     features of the b - 1 videos before; T frames (float32, and in the model's precision); A x the encoder's
    projector  features twice (as seen, and as given to the model); b A P (D + D) between its two linear layers
    slow       features twice; slow tokens, once more normalised, in float32 between; keys and values so far
    prefill    features twice; slow keys and values, h 2 S KE; keys and values, n 2 L KE; a layer's L (4 D + 3 M)
    decode     features twice; keys and values of prompt and answer; the logits

What an encoder holds at its peak is that of its widest place, a block's MLP between its two layers: see `ENCODERS`.
Left out: what the device's libraries take for themselves (a CUDA context and its kernels: about half a gigabyte to a
gigabyte), work space of single kernels, fragmentation. Attention is taken as fused: it holds no matrix of scores.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from architectures import SlowFastConfig
from architectures.cost import Widths, prefill_cost
from architectures.encoders import ENCODERS as REGISTERED
from architectures.encoders.base import Encoder
from harness.profilers.flops import model_on_meta

FLOAT32 = 4
COLOURS = 3


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: of the weights, and beside them of each phase at its peak."""

    weights: int
    phases: dict[str, int]

    @property
    def peak(self) -> int:
        """Of everything, in the largest phase."""
        return self.weights + max(self.phases.values())

    @property
    def largest(self) -> str:
        """The name of the largest phase."""
        return max(self.phases, key=self.phases.get)


def evaluation_memory(
    config: SlowFastConfig,
    frames: int,
    text_tokens: int,
    new_tokens: int,
    batch: int = 1,
    size: int = 2,
    at_once: int | None = None,
) -> Memory:
    """The memory of answering `batch` questions about as many videos.

    size: bytes of a number (2: half precision). at_once: frames in the encoder and projector together; None: what the
    configuration says, or all. Raises ValueError for an encoder or decoder without a closed form.
    """
    widths, cost = Widths.of(config), prefill_cost(config, frames, text_tokens)
    model = model_on_meta(config)
    encoder, text = model.encoder, config.text_config
    T = model.selector.n_frames(frames)
    A = min(at_once or config.frames_at_once or T, T)
    P, D = encoder.grid[0] * encoder.grid[1], widths.D
    L, S = cost.fast_tokens + text_tokens, cost.slow_tokens
    pixels = COLOURS * encoder.image_size**2

    seen = T * P * encoder.width * size  # features of a video
    tokens = T * (P // config.pooling_of(T) ** 2) * D * size
    images = T * pixels * (FLOAT32 + (size if size != FLOAT32 else 0))
    between = 2 * A * P * D * size if config.projector_depth > 1 else A * P * D * size
    slow_kv = widths.slow_kv_numbers(S) * size
    kv = 2 * widths.n * widths.KE * size  # of a token
    layer = L * (4 * D + 3 * widths.M) * size
    held = 2 * seen  # a batch's features: what the encoder made, and the model's own copy
    phases = {
        "vision": (batch - 1) * seen + images + A * encoder_numbers(encoder) * size,
        "projector": batch * (held + between + (tokens if A < T else 0)),
        "slow": batch * (held + tokens + _normed(S, D, size) + slow_kv),
        "prefill": batch * (held + slow_kv + L * kv + layer),
        "decode": batch * (held + slow_kv + (L + new_tokens) * kv + text.vocab_size * (size + FLOAT32)),
    }
    return Memory(weight_bytes(model, size), phases)


def weight_bytes(model: nn.Module, size: int) -> int:
    """Bytes of a model's weights with numbers of `size` bytes; tensors that are shared count once."""
    return size * sum(parameter.numel() for parameter in model.parameters())


def checkpoint_bytes(config: SlowFastConfig, size: int = 2) -> int:
    """Bytes of a checkpoint's tensors."""
    return weight_bytes(model_on_meta(config), size)


def _normed(S: int, D: int, size: int) -> int:
    """Slow tokens in the decoder's norm: two tensors of float32 at a time, and the result."""
    return S * D * (2 * FLOAT32 + size) if S else 0


# ---------------------------------------------------------------------------------------------------- encoders


def encoder_numbers(encoder: Encoder) -> int:
    """Numbers that an encoder holds for one frame at its peak, its input apart; ValueError where it is not known."""
    for name, numbers in ENCODERS.items():
        if isinstance(encoder, REGISTERED.find(name)):
            return numbers(encoder)
    raise ValueError(
        f"There is no closed form of the memory of the encoder '{type(encoder).__name__}', only of "
        f"{', '.join(ENCODERS)}: add one to harness/paper/memory.py."
    )


def _convnext(encoder: Encoder) -> int:
    """The widest stage: a block's residual, its MLP's input, the inner layer before and after its activation.

    The calls around hold their inputs: the stem's output, the stage's input, and what its first block got.
    """
    from architectures.encoders.convnext_xxlarge import EXPANSION, STEM

    rows = encoder.image_size // STEM
    maps = [(rows // 2**stage) ** 2 * width for stage, width in enumerate(encoder.widths)]
    peak = 0
    for stage, (numbers, depth) in enumerate(zip(maps, encoder.depths, strict=True)):
        inputs = maps[0] + (maps[stage - 1] if stage else 0)  # of all stages; of this one
        held = (inputs if stage else 0) + numbers  # what the first block got is of the same size
        if depth == 1:
            held -= numbers  # and is a lone block's residual
        peak = max(peak, held + (2 + 2 * EXPANSION) * numbers)
    return peak


def _transformer(encoder: Encoder) -> int:
    """A layer: its input, residual and the MLP's input, the inner layer before and after its activation.

    Or, where that is narrow, the attention's input, queries, keys, values and result.
    """
    P = math.prod(encoder.grid)
    return P * max(3 * encoder.width + 2 * encoder.mlp_width, 7 * encoder.width)


def _tiny(encoder: Encoder) -> int:
    """The first convolution: its unshuffled input and its output."""
    side = encoder.image_size
    return COLOURS * side**2 + 16 * (side // 4) ** 2


ENCODERS: dict[str, Callable[[Encoder], int]] = {
    "convnext_xxlarge": _convnext,
    "siglip": _transformer,
    "siglip2": _transformer,
    "siglip2_naflex": _transformer,
    "tiny": _tiny,
}
"""Numbers of one frame at the encoder's peak, by the encoder's name."""
