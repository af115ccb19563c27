"""FLOPs of a video's way to the first token, counted by torch on the meta device: no weights, no arithmetic.

Conventions, the same wherever an overhead is stated: FLOP = 2 x MAC; attention as the full square; lm_head
on the last position only (as `generate` runs it); matrix products, convolutions and attention are counted,
elementwise operations are not. `llm_prefill` is the decoder with its cross-attention, slow K/V projection
included; `model` adds vision tower, projector and compressor. Agrees with the closed form of
`architectures.cost` to the operation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.hybrid import remember
from architectures.slow_memory import Readers
from architectures.tokens import SlowContext, VideoTokens

META = torch.device("meta")


@dataclass(frozen=True)
class FlopCount:
    """FLOPs by stage, and the tokens behind them."""

    fast_tokens: int
    slow_tokens: int
    vision: int
    projector: int
    slow_keys_values: int
    decoder: int
    lm_head: int

    @property
    def llm_prefill(self) -> int:
        """The LLM's share: slow keys and values, decoder, lm_head."""
        return self.slow_keys_values + self.decoder + self.lm_head

    @property
    def model(self) -> int:
        """The whole model, vision tower included."""
        return self.vision + self.projector + self.llm_prefill

    def stages(self) -> dict[str, int]:
        """Stage -> FLOP."""
        names = ("vision", "projector", "slow_keys_values", "decoder", "lm_head")
        return {name: getattr(self, name) for name in names}


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run` returns, and the FLOPs it took."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def count_prefill(config: SlowFastConfig, frames: int, text_tokens: int) -> FlopCount:
    """Counts one video of `frames` frames with `text_tokens` tokens of text; the scope says who reads."""
    with META:
        model = SlowFastForConditionalGeneration(config)
    return count_model(model, frames, text_tokens)


def count_model(model: SlowFastForConditionalGeneration, frames: int, text_tokens: int) -> FlopCount:
    """As `count_prefill`, of a model on the meta device."""
    encoder, language = model.encoder, model.language_model
    size, width = encoder.image_size, model.config.text_config.hidden_size
    patches = encoder.grid[0] * encoder.grid[1]
    choosing, frames = count_choosing(model, frames), model.selector.n_frames(frames)
    with META:
        frame, times = torch.empty(1, 1, 3, size, size), torch.empty(1, frames)
        features = torch.empty(1, frames, patches, encoder.width)
    _, vision = counted(lambda: model.encode_video(frame))
    pooling = model.config.pooling_of(frames)
    (tokens,), projector = counted(lambda: model.fast_and_slow(model.watch(features, pooling), times))
    n_fast, n_slow = len(tokens.fast_FD), 0 if tokens.slow_SD is None else len(tokens.slow_SD)
    memory, readers, slow = None, None, 0
    if tokens.slow_SD is not None:
        context = SlowContext(tokens.slow_SD, places_of(model, tokens))
        memory, slow = counted(lambda: remember(language.model, [context]))
        is_video_BL = torch.arange(n_fast + text_tokens)[None] < n_fast
        readers = Readers.of(model.scope(is_video_BL, torch.zeros_like(is_video_BL)), memory).to(META)
    L = n_fast + text_tokens
    embeds = torch.empty(1, L, width, device=META)
    mask = torch.empty(1, 1, L, L, dtype=torch.bool, device=META)  # no decoder makes one on meta
    hidden, decoder = counted(
        lambda: (
            language.model(
                inputs_embeds=embeds,
                attention_mask=mask,
                use_cache=False,
                slow_memory=memory,
                readers=readers,
            ).last_hidden_state
        )
    )
    _, lm_head = counted(lambda: language.lm_head(hidden[:, -1:]))
    return FlopCount(n_fast, n_slow, choosing + vision * frames, projector, slow, decoder, lm_head)


def count_choosing(model: SlowFastForConditionalGeneration, frames: int) -> int:
    """FLOPs of choosing the frames that the encoder sees; the choice itself takes none."""
    selector, size = model.selector, model.encoder.image_size
    if selector.n_frames(frames) == frames:
        return 0
    with META:
        question = torch.zeros(1, 1, dtype=torch.long) if selector.needs_question else None
        return counted(lambda: selector.scores(torch.empty(1, frames, 3, size, size), question))[1]


def places_of(model: SlowFastForConditionalGeneration, tokens: VideoTokens) -> torch.Tensor | None:
    """Where slow tokens stand, for models that rotate slow keys by it."""
    rotates = model.time_positions[model.config.slow_time["name"]].rotates_keys
    return tokens.times_S if rotates else None
