"""One video through one model, stage by stage, as it is timed on a device and counted on the meta device.

    vision            frames to features, some frames at a time; with the choice of frames, where there is one
    projector         features to fast and slow tokens: projector, pooling, time positions, compressor
    slow_keys_values  slow tokens to keys and values of the hybrid layers
    decoder           all layers, from fast tokens and text
    lm_head           on the last position
    decode            further tokens with the cache

The middle three are the prefill. Shapes as in `architectures.tokens`, batch 1, fast tokens before the text. Values
are random: only what they take is of interest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from architectures import SlowFastForConditionalGeneration
from architectures.hybrid import SlowFastCache
from architectures.slow_memory import Readers, SlowMemory
from architectures.tokens import VideoTokens
from architectures.video_mllm import joined
from harness.profilers.operators import Operator, operators_of
from harness.profilers.timing import Clock

PREFILL = ("slow_keys_values", "decoder", "lm_head")
PARTS = ("vision", "projector", *PREFILL, "decode")
FRAMES_AT_ONCE = 32  # in the encoder, where the configuration does not say: 2 GB of ConvNeXt-XXLarge's activations
QUESTION_WORDS = 8  # of the question that a selector may ask for


@dataclass(frozen=True)
class Workload:
    """A model, a number of frames, and the text behind them; `new_tokens` are decoded."""

    model: SlowFastForConditionalGeneration
    frames: int
    text_tokens: int
    new_tokens: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.get_input_embeddings().weight.device

    @property
    def seen(self) -> int:
        """Frames that the encoder sees."""
        return self.model.selector.n_frames(self.frames)

    @property
    def at_once(self) -> int:
        """Frames in the encoder and the projector together."""
        return min(self.model.config.frames_at_once or FRAMES_AT_ONCE, self.seen)

    @torch.no_grad()
    def run(self, clock: Clock) -> None:
        """Everything once, from frames that are on the device already to `new_tokens` tokens."""
        frames_BTCHW = self.random_frames()
        clock.start()
        features_BTPV = self.encode(frames_BTCHW)
        clock.mark("vision")
        tokens = self.tokens_of(features_BTPV)
        clock.mark("projector")
        del features_BTPV
        cache, memory, readers = self.remember(tokens)
        clock.mark("slow_keys_values")
        hidden_BLD = self.decoder(tokens, cache, memory, readers)
        clock.mark("decoder")
        id_B1 = self.first_token(hidden_BLD)
        clock.mark("lm_head")
        del tokens, hidden_BLD, memory, readers
        for _ in range(self.new_tokens):
            id_B1 = self.next_token(id_B1, cache)
        clock.mark("decode")
        clock.stop()

    # ------------------------------------------------------------------------------------------ stage by stage

    def random_frames(self) -> torch.Tensor:
        """Normalised frames: as many as the encoder takes at once, for every frame looks the same to a clock."""
        count = self.frames if self.chooses else self.at_once
        size = self.model.encoder.image_size
        return torch.randn(1, count, 3, size, size, device=self.device, dtype=self.model.dtype)

    @property
    def chooses(self) -> bool:
        """Whether a selector drops frames."""
        return self.seen < self.frames

    def encode(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        """The features of all frames that are seen, `features_BTPV`."""
        if self.chooses:
            frames_BTCHW = self.choose(frames_BTCHW)
        sizes = self.chunks()
        return joined((self.model.encode_video(frames_BTCHW[:, :size]) for size in sizes), self.seen)

    def choose(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        """The selector's choice; of the meta device, where scores have no rank, the scores and any frames."""
        words = torch.zeros(1, QUESTION_WORDS, dtype=torch.long, device=self.device)
        question = [words] if self.model.selector.needs_question else []
        if self.device.type == "meta":
            self.model.selector.scores(frames_BTCHW, *question)
            return frames_BTCHW[:, : self.seen]
        times_BT = torch.linspace(0, 1, self.frames, device=self.device)[None]
        return self.model.select(frames_BTCHW, times_BT, *question)[0]

    def chunks(self) -> list[int]:
        """Frames that go through the encoder together, chunk by chunk."""
        whole, rest = divmod(self.seen, self.at_once)
        return [self.at_once] * whole + [rest] * (rest > 0)

    def tokens_of(self, features_BTPV: torch.Tensor) -> VideoTokens:
        """Fast and slow tokens of the video."""
        pooling = self.model.config.pooling_of(self.seen)
        parts = (self.model.watch(part, pooling) for part in features_BTPV.split(self.at_once, dim=1))
        times_BT = torch.linspace(0, 1, self.seen, device=self.device)[None]
        return self.model.fast_and_slow(joined(parts, self.seen), times_BT)[0]

    def remember(self, tokens: VideoTokens) -> tuple[SlowFastCache, SlowMemory | None, Readers | None]:
        """An empty cache; the slow keys and values, and who reads them: known without asking the device."""
        model = self.model
        cache = SlowFastCache(model.config.text_config)
        if not model.hybrid_layers:
            return cache, None, None
        length = len(tokens.fast_FD) + self.text_tokens
        is_video_BL = torch.arange(length)[None] < len(tokens.fast_FD)
        cache.slow_memory = model.memorise([[tokens]], is_video_BL, None)
        readers = Readers.of(model.scope(is_video_BL, torch.zeros_like(is_video_BL)), cache.slow_memory)
        return cache, cache.slow_memory, readers.to(self.device)

    def decoder(
        self, tokens: VideoTokens, cache: SlowFastCache, memory: SlowMemory | None, readers: Readers | None
    ) -> torch.Tensor:
        """All layers over fast tokens and text, `hidden_BLD`; without a mask torch knows that it is causal."""
        ids_L = torch.zeros(self.text_tokens, dtype=torch.long, device=self.device)
        embeds_LD = torch.cat([tokens.fast_FD, self.model.get_input_embeddings()(ids_L)])
        decoder = self.model.language_model.model
        arguments: dict[str, Any] = {"slow_memory": memory, "readers": readers, "use_cache": True}
        return decoder(inputs_embeds=embeds_LD[None], past_key_values=cache, **arguments).last_hidden_state

    def first_token(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """The most likely token behind the prompt, `(1, 1)`; it stays on the device."""
        return self.model.language_model.lm_head(hidden_BLD[:, -1:]).argmax(-1)

    def next_token(self, id_B1: torch.Tensor, cache: SlowFastCache) -> torch.Tensor:
        """The most likely token behind it; the cache grows by one."""
        return self.model(input_ids=id_B1, past_key_values=cache, use_cache=True).logits.argmax(-1)


@torch.no_grad()
def counted_parts(workload: Workload) -> dict[str, list[Operator]]:
    """The operators of every part of a workload on the meta device; of "decode": the first of its tokens.

    Chunks of frames of one size cost the same, so each size is counted once.
    """
    found: dict[str, list[Operator]] = {}

    def count(part: str, run: Callable[[], Any]) -> Any:
        results = []
        found[part] = operators_of(lambda: results.append(run()))
        return results[0]

    model, sizes = workload.model, workload.chunks()
    frames_BTCHW = workload.random_frames()
    found["vision"] = operators_of(lambda: workload.choose(frames_BTCHW)) if workload.chooses else []
    for size in dict.fromkeys(sizes):
        chunk = operators_of(lambda size=size: model.encode_video(frames_BTCHW[:, :size]))
        found["vision"] += [operator * sizes.count(size) for operator in chunk]
    patches = model.encoder.grid[0] * model.encoder.grid[1]
    features_BTPV = frames_BTCHW.new_empty(1, workload.seen, patches, model.encoder.width)
    tokens = count("projector", lambda: workload.tokens_of(features_BTPV))
    remembered = count("slow_keys_values", lambda: workload.remember(tokens))
    hidden_BLD = count("decoder", lambda: workload.decoder(tokens, *remembered))
    id_B1 = count("lm_head", lambda: workload.first_token(hidden_BLD))
    count("decode", lambda: workload.next_token(id_B1, remembered[0]))
    return found
