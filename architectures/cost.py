"""What an answer costs, in closed form: FLOPs by stage of prefill and decoded token, bytes of the caches.

Conventions: FLOP = 2 x MAC; attention as the full square, not its causal half; matrix products and
convolutions are counted, elementwise operations, norms and pooling are not. With L tokens in the sequence
(fast and text), S slow tokens, N reading tokens, A = Q x E the width of all query heads, and h hybrid of n
layers, the decoder's stages are

    slow_keys_values  h x 2 S (2 D KE)                      once per video
    linear            n x 2 L (2 D A + 2 D KE + 3 D M)      q, o; k, v; the gated MLP of width M
    self_attention    n x 4 L L A                           q k' and its product with v
    cross_attention   h x 4 N S A
    gate              h x N x what the gate (and a fusion's further projections) takes
    lm_head           2 D vocabulary                        of the last position, or of each

Before them come `vision` (with the choice of frames), `projector`, and `compressor` (with time positions).
Encoders, compressors, selectors and fusions say their own share (`flops`, `slow_flops`, ...), each beside its
code; of compressors that merge by similarity too: what they merge depends on the video, how much does not. A
token decoded behind that prefill has the decoder's stages with 1 query and L + 1 keys.
"""

import functools
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from architectures.compressors import COMPRESSORS
from architectures.configuration import SlowFastConfig
from architectures.encoders import ENCODERS
from architectures.fusions import FUSIONS, Fusion
from architectures.gates import GATES
from architectures.placement import PLACEMENTS
from architectures.projectors import expect_token_left, pool_grid
from architectures.registry import Registry
from architectures.scope import scope_of
from architectures.selectors import SELECTORS
from architectures.time_positions import TIME_POSITIONS

DENSE_GATED = ("llama", "mistral", "qwen2", "qwen3")  # decoders of q, k, v, o and a gated MLP in every layer
STEP_STAGES = ("slow_keys_values", "linear", "self_attention", "cross_attention", "gate", "lm_head")
STAGES = ("vision", "projector", "compressor", *STEP_STAGES)
FAMILIES = {registry.family: registry for registry in (COMPRESSORS, ENCODERS, SELECTORS, TIME_POSITIONS)}
KEPT = 256  # modules without weights, of recent configurations: a profile of all variants has fewer


@dataclass(frozen=True)
class Cost:
    """FLOPs by stage from one video's frames to the answer's first token, and the tokens behind them."""

    fast_tokens: int
    slow_tokens: int
    text_tokens: int
    vision: int  # with the choice of frames
    projector: int
    compressor: int  # with time positions
    slow_keys_values: int
    linear: int
    self_attention: int
    cross_attention: int
    gate: int
    lm_head: int

    def stages(self) -> dict[str, int]:
        """Stage -> FLOP, in the order of `STAGES`."""
        return {stage: getattr(self, stage) for stage in STAGES}

    @property
    def decoder(self) -> int:
        """The decoder's layers, slow keys and values excluded."""
        return self.linear + self.self_attention + self.cross_attention + self.gate

    @property
    def llm_prefill(self) -> int:
        """The LLM's share, which is what the paper's overhead speaks of."""
        return self.slow_keys_values + self.decoder + self.lm_head

    @property
    def model(self) -> int:
        """Everything, vision tower included."""
        return self.vision + self.projector + self.compressor + self.llm_prefill

    @property
    def causal_self_attention(self) -> int:
        """`self_attention` of what the causal mask leaves: L (L + 1) / 2 pairs of the full square's L x L.

        No sum above contains it: they all have the full square. Cross-attention has no mask.
        """
        L = self.fast_tokens + self.text_tokens
        return self.self_attention * (L + 1) // (2 * L)


@dataclass(frozen=True)
class DecodeCost:
    """FLOPs of one more token behind a prefill whose keys and values are kept, and the bytes of these.

    `slow_keys_values` is 0 unless slow keys and values are made anew for each token, as the official code does.
    """

    slow_keys_values: int
    linear: int
    self_attention: int
    cross_attention: int
    gate: int
    lm_head: int
    kv_bytes: int
    slow_kv_bytes: int

    def stages(self) -> dict[str, int]:
        """Stage -> FLOP, in the order of `STEP_STAGES`."""
        return {stage: getattr(self, stage) for stage in STEP_STAGES}

    @property
    def step(self) -> int:
        """All FLOPs of the token."""
        return sum(self.stages().values())


@dataclass(frozen=True)
class Widths:
    """The decoder's sizes under the letters of the formulas above, and the fusions of its hybrid layers."""

    D: int
    A: int
    KE: int
    M: int
    n: int
    vocabulary: int
    fusions: tuple[Fusion, ...]

    @classmethod
    def of(cls, config: SlowFastConfig) -> "Widths":
        """The sizes of `config`; a ValueError for a decoder whose layers have another shape."""
        text: PreTrainedConfig = config.text_config
        if text.model_type not in DENSE_GATED:
            raise ValueError(
                f"There is no closed form of the cost of a '{text.model_type}' decoder, only of "
                f"{', '.join(DENSE_GATED)}: add its layers' shape to architectures/cost.py, or count it."
            )
        E = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        A = E * text.num_attention_heads
        return cls(
            D=text.hidden_size,
            A=A,
            KE=E * text.num_key_value_heads,
            M=text.intermediate_size,
            n=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            fusions=fusions_on_meta(config),
        )

    def layers(self, L: int, keys: int, N: int, S: int) -> dict[str, int]:
        """FLOPs of all layers for L tokens that attend to `keys` tokens, N of them also to S slow ones."""
        return {
            "linear": self.n * 2 * L * (2 * self.D * self.A + 2 * self.D * self.KE + 3 * self.D * self.M),
            "self_attention": self.n * 4 * L * keys * self.A,
            "cross_attention": sum(fusion.reading_flops(N, S) for fusion in self.fusions),
            "gate": sum(fusion.other_flops(N) for fusion in self.fusions),
        }

    def slow_keys_values(self, S: int) -> int:
        """FLOPs of the slow keys and values of S tokens, in all hybrid layers."""
        return sum(fusion.slow_flops(S, self.D) for fusion in self.fusions)

    def lm_head(self, positions: int) -> int:
        """FLOPs of the logits of so many positions."""
        return 2 * positions * self.D * self.vocabulary

    def slow_kv_numbers(self, S: int) -> int:
        """Numbers that the slow keys and values of S tokens consist of."""
        return sum(2 * S * fusion.key_heads * fusion.head_dim for fusion in self.fusions if fusion.owns_keys)


def prefill_cost(config: SlowFastConfig, frames: int, text_tokens: int, every_logit: bool = False) -> Cost:
    """The cost of a video of `frames` frames with `text_tokens` tokens of text behind it.

    lm_head runs on the last position, as in `generate`; with `every_logit` on all, as the official code does.
    Raises ValueError for a pooling that leaves no token, and for a decoder without a closed form.
    """
    widths, video = Widths.of(config), _Video.of(config, frames)
    L, S = video.fast_tokens + text_tokens, video.slow_tokens
    is_video_BL = torch.arange(L)[None] < video.fast_tokens
    N = int(scope_of(config.scope)(is_video_BL, torch.zeros_like(is_video_BL)).sum())
    return Cost(
        text_tokens=text_tokens,
        **asdict(video),
        slow_keys_values=widths.slow_keys_values(S),
        **widths.layers(L, L, N, S),
        lm_head=widths.lm_head(L if every_logit else 1),
    )


def decode_cost(
    config: SlowFastConfig, frames: int, text_tokens: int, bytes_per_number: int = 2, reproject: bool = False
) -> DecodeCost:
    """The cost of the token after that prefill, and its caches' bytes (2 a number: bfloat16) before it.

    `reproject` is the official code's way: slow keys and values are made anew in that step, in all hybrid
    layers, and the cross-attention is computed even where generated tokens do not read (there its result is
    multiplied by zero). `slow_kv_bytes` are then those of the step's own slow keys and values.
    """
    widths, video = Widths.of(config), _Video.of(config, frames)
    L, S = video.fast_tokens + text_tokens, video.slow_tokens
    return DecodeCost(
        slow_keys_values=widths.slow_keys_values(S) if reproject else 0,
        **widths.layers(1, L + 1, int(reproject or config.generated_read_slow), S),
        lm_head=widths.lm_head(1),
        kv_bytes=widths.n * 2 * L * widths.KE * bytes_per_number,
        slow_kv_bytes=widths.slow_kv_numbers(S) * bytes_per_number,
    )


@dataclass(frozen=True)
class _Video:
    """What `Cost` says of the video's way to the decoder."""

    fast_tokens: int
    slow_tokens: int
    vision: int
    projector: int
    compressor: int

    @classmethod
    def of(cls, config: SlowFastConfig, frames: int) -> "_Video":
        text = config.text_config
        D, encoder = text.hidden_size, on_meta(ENCODERS, config.vision)
        compressor = on_meta(COMPRESSORS, config.compressor, width=D)
        selector = on_meta(SELECTORS, config.selector, vocab_size=text.vocab_size)
        choosing, frames = selector.flops(frames), selector.n_frames(frames)
        hybrid = bool(PLACEMENTS.build(config.placement, n_layers=text.num_hidden_layers))
        expect_token_left(encoder.grid, config.pooling_of(frames), "video_pooling")
        H, W = pool_grid(encoder.grid, config.pooling_of(frames))
        if hybrid:
            expect_token_left((H, W), config.slow_pooling, "slow_pooling")
        slow_H, slow_W = pool_grid((H, W), config.slow_pooling)
        slow_T = frames if config.slow_frames is None else min(frames, config.slow_frames)
        patches = frames * encoder.grid[0] * encoder.grid[1]
        times = [(config.fast_time, frames)] + ([(config.slow_time, slow_T)] if hybrid else [])
        timing = sum(n * on_meta(TIME_POSITIONS, spec, width=D).flops_per_frame() for spec, n in times)
        return cls(
            fast_tokens=compressor.n_tokens(frames, H, W),
            slow_tokens=slow_T * slow_H * slow_W if hybrid else 0,
            vision=choosing + frames * encoder.flops_per_frame(),
            projector=2 * patches * D * (encoder.width + (config.projector_depth - 1) * D),
            compressor=timing + compressor.flops(frames, H, W),
        )


def on_meta(registry: Registry, spec: dict[str, Any], **context: Any) -> Any:
    """The variant that `spec` names, without memory for its weights. For reading: the same one may come again."""
    return _on_meta(registry.family, _content(spec), tuple(context.items()), _registered())


@functools.lru_cache(maxsize=KEPT)
def _on_meta(family: str, spec: str, context: tuple[tuple[str, int], ...], registered: tuple) -> Any:
    with torch.device("meta"):
        return FAMILIES[family].build(json.loads(spec), **dict(context))


def fusions_on_meta(config: SlowFastConfig) -> tuple[Fusion, ...]:
    """The fusions of the hybrid layers, without memory for their weights: built for a decoder of one layer.

    For reading: the same ones may come again.
    """
    layers = PLACEMENTS.build(config.placement, n_layers=config.text_config.num_hidden_layers)
    specs = (_content(each) for each in (config.text_config.to_dict(), config.fusion, config.gate))
    return _fusions_on_meta(*specs, layers, _registered())


@functools.lru_cache(maxsize=KEPT)
def _fusions_on_meta(
    text: str, fusion: str, gate: str, layers: tuple[int, ...], registered: tuple
) -> tuple[Fusion, ...]:
    decoder = AutoConfig.for_model(**json.loads(text))
    decoder.num_hidden_layers = 1
    with torch.device("meta"):
        layer = AutoModelForCausalLM.from_config(decoder).model.layers[0]
        return tuple(
            FUSIONS.build(json.loads(fusion), layer=layer, gate=json.loads(gate), index=index, first=index == layers[0])
            for index in layers
        )


def _content(spec: dict[str, Any]) -> str:
    """What a part is built from, as text: equal texts, equal parts."""
    return json.dumps(spec, sort_keys=True)


def _registered() -> tuple:
    """Every variant there is, part of what the caches go by: a variant replaced or gone is never served again."""
    return tuple(pair for registry in (*FAMILIES.values(), FUSIONS, GATES) for pair in registry.items())
