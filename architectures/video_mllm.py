"""The whole path of a video, from frames to an answer.

    frames_BTCHW --encoder--> features_BTPV --projector, pooling--> tokens_BTHWD --+-- as they are -> slow_SD
                                                                                   |                    |
                                                                                   +--compressor--> fast_FD
                                                                                                       | |
    text + placeholders --embedding--> embeds_BLD --fast tokens spliced in--> decoder, whose hybrid layers
                                                                   let text read the slow tokens --> answer

The self-attention baseline is the same class: placement "none", compressor "identity".
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from architectures.compressors import COMPRESSORS
from architectures.configuration import SlowFastConfig
from architectures.encoders import ENCODERS
from architectures.fusions import Fusion
from architectures.gates import Gate
from architectures.generation import SlowFastGeneration
from architectures.hybrid import SUFFIX, fusions, hybrid_name, make_hybrid, remember
from architectures.placement import PLACEMENTS
from architectures.projectors import Projector, pool_grid, pool_space
from architectures.prompts import (
    Videos,
    by_length,
    context_of,
    positions_of,
    real_tokens,
    start_places,
    uniform_times,
    videos_of_rows,
)
from architectures.scope import scope_of
from architectures.selectors import SELECTORS
from architectures.selectors.base import pick
from architectures.slow_memory import Readers, SlowMemory
from architectures.time_positions import TIME_POSITIONS
from architectures.tokens import VideoTokens


class SlowFastForConditionalGeneration(PreTrainedModel, SlowFastGeneration, GenerationMixin):
    """A video MLLM with fast tokens in its sequence and slow tokens beside it (paper, figure 2)."""

    config_class = SlowFastConfig
    config: SlowFastConfig
    main_input_name = "input_ids"
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}

    def __init__(self, config: SlowFastConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.encoder = ENCODERS.build(config.vision)
        normalisation = {"image_mean": self.encoder.image_mean, "image_std": self.encoder.image_std}
        self.selector = SELECTORS.build(config.selector, vocab_size=config.text_config.vocab_size, **normalisation)
        self.projector = Projector(self.encoder.width, width, config.projector_depth)
        self.time_positions = nn.ModuleDict(  # by name: equal names share their weights
            {spec["name"]: TIME_POSITIONS.build(spec, width=width) for spec in (config.fast_time, config.slow_time)}
        )
        if self.time_positions[config.fast_time["name"]].rotates_keys:
            raise ValueError("Fast tokens have the decoder's rotary positions already: choose another fast_time.")
        self.compressor = COMPRESSORS.build(config.compressor, width=width)
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, attn_implementation=hybrid_name(config._attn_implementation or "sdpa")
        )
        self.hybrid_layers = PLACEMENTS.build(config.placement, n_layers=config.text_config.num_hidden_layers)
        make_hybrid(self.language_model.model, self.hybrid_layers, config.fusion, config.gate)
        self.scope = scope_of(config.scope)
        self.post_init()
        for gate in self.gates():  # the decoder's own initialisation overwrote the gates'
            gate.reset_parameters()

    # ---------------------------------------------------------------------------------- the path of a video

    def select(
        self, frames_BTCHW: torch.Tensor, times_BT: torch.Tensor, question_BW: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The frames that the encoder will see, and their times."""
        if self.selector.n_frames(frames_BTCHW.shape[1]) == frames_BTCHW.shape[1]:
            return frames_BTCHW, times_BT
        index_BK = self.selector(frames_BTCHW.to(self.device), question_BW).to(frames_BTCHW.device)
        return pick(frames_BTCHW, index_BK), pick(times_BT, index_BK)

    def encode_video(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        """Frames to encoder features, `features_BTPV`, which can be kept while the encoder is frozen."""
        return self.encoder(frames_BTCHW.to(self.dtype))

    def watch(self, features_BTPV: torch.Tensor, pooling: int) -> torch.Tensor:
        """Encoder features to one token per pooled patch, `tokens_BTHWD`, without time."""
        tokens_BTPD = self.projector(features_BTPV.to(self.dtype))
        return pool_space(tokens_BTPD.unflatten(2, self.encoder.grid), pooling)

    def fast_and_slow(self, tokens_BTHWD: torch.Tensor, times_BT: torch.Tensor) -> list[VideoTokens]:
        """The two streams: compressed, and (if a layer reads them) as they are, each with its time."""
        config = self.config
        fast_BFD = self.compressor(self.timed(tokens_BTHWD, times_BT, config.fast_time))
        if not self.hybrid_layers:
            return [VideoTokens(fast_FD) for fast_FD in fast_BFD]
        kept = slow_frames(tokens_BTHWD.shape[1], config.slow_frames)
        tokens_BTHWD, times_BT = tokens_BTHWD[:, kept], times_BT[:, kept]
        slow_BTHWD = pool_space(self.timed(tokens_BTHWD, times_BT, config.slow_time), config.slow_pooling)
        times_BTHW = times_BT[:, :, None, None].expand(slow_BTHWD.shape[:4])
        slow = zip(fast_BFD, slow_BTHWD.flatten(1, 3), times_BTHW.flatten(1, 3), strict=True)
        return [VideoTokens(*tokens) for tokens in slow]

    def see(
        self,
        frames: Videos | None,
        features: Videos | None,
        frame_times: Videos | None,
        questions: Videos | None = None,
    ) -> list[VideoTokens]:
        """Every video to its tokens; videos of one length go together, `frames_at_once` of their frames."""

        def path(video_BT: torch.Tensor, times_BT: torch.Tensor, *question_BW: torch.Tensor) -> list[VideoTokens]:
            if frames is not None:
                video_BT, times_BT = self.select(video_BT, times_BT, *question_BW)
            T = video_BT.shape[1]
            parts = (part.to(self.device) for part in video_BT.split(self.config.frames_at_once or T, dim=1))
            seen = (part if frames is None else self.encode_video(part) for part in parts)
            tokens = (self.watch(features_BTPV, self.config.pooling_of(T)) for features_BTPV in seen)
            return self.fast_and_slow(joined(tokens, T), times_BT.to(self.device))

        videos = features if frames is None else frames
        times = uniform_times(videos) if frame_times is None else frame_times
        return by_length(path, videos, times, *([] if questions is None else [questions]))

    def timed(self, tokens_BTHWD: torch.Tensor, times_BT: torch.Tensor, spec: dict[str, Any]) -> torch.Tensor:
        """The tokens with their time position; themselves, not a copy, where there is none to add."""
        position_BT11D = self.time_of(times_BT, spec)
        return tokens_BTHWD if isinstance(position_BT11D, float) else tokens_BTHWD + position_BT11D

    def time_of(self, times_BT: torch.Tensor, spec: dict[str, Any]) -> torch.Tensor | float:
        """Time positions, shaped to be added to `tokens_BTHWD`."""
        position_BTD = self.time_positions[spec["name"]](times_BT)
        return position_BTD if isinstance(position_BTD, float) else position_BTD[:, :, None, None]

    def splice(self, input_ids_BL: torch.Tensor, fast: list[torch.Tensor]) -> torch.Tensor:
        """Embeds the text and puts the videos' fast tokens at their placeholders, in order."""
        is_video_BL = input_ids_BL == self.config.video_token_id
        embeds_BLD = self.get_input_embeddings()(input_ids_BL.masked_fill(is_video_BL, 0))
        if not fast:
            return embeds_BLD
        return embeds_BLD.masked_scatter(is_video_BL[..., None], torch.cat(fast).to(embeds_BLD.dtype))

    def memorise(
        self, prompts: list[list[VideoTokens]], is_video_BL: torch.Tensor, position_BL: torch.Tensor | None
    ) -> SlowMemory:
        """The slow keys and values of each prompt's videos; positions (None: as they come) are for rotary keys."""
        starts: list[list[int] | None] = [None] * len(prompts)
        if self.time_positions[self.config.slow_time["name"]].rotates_keys:
            if position_BL is None:
                position_BL = torch.arange(is_video_BL.shape[1])[None]
            position_BL = position_BL.to(is_video_BL.device).expand_as(is_video_BL)
            starts = [start_places(*row) for row in zip(is_video_BL, position_BL, prompts, strict=True)]
        contexts = [context_of(*prompt) for prompt in zip(prompts, starts, strict=True)]
        return remember(self.language_model.model, contexts, self.config.slow_chunk, self.config.slow_device)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        frames: Videos | None = None,
        features: Videos | None = None,
        frame_times: Videos | None = None,
        slow_features: Videos | None = None,
        questions: Videos | None = None,
        rows_per_prompt: int = 1,
        may_read: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits (and the loss of `labels_BL`, shifted as usual) of prompts with any number of videos.

        `input_ids_BL` holds a placeholder per fast token, padding where `attention_mask_BL` is 0. Videos come
        as `frames_BTCHW` (normalised) or the encoder's `features_BTPV`, with `frame_times_BT` in [0, 1]
        (None: uniform): as one tensor if equally long, else a list of one tensor per video, in the order of
        their placeholders. Without any, decoding goes on from the cache. `slow_features` takes the slow
        tokens from other videos than the fast ones (a control). `questions` are word ids per video, padded
        with -1, for selectors that need them (in a list, all of one length). `rows_per_prompt` equal rows in
        turn share their prompt's videos (beams). `may_read_BL` excludes tokens from reading, whatever the
        scope. `num_items_in_batch` is what the loss's sum is divided by (the Trainer's, for accumulation).
        Raises ValueError when placeholders and fast tokens differ in number.
        """
        if input_ids is None:
            raise ValueError("Give input_ids: the places of videos are found by their id, which embeddings lack.")
        decoder = self.language_model.model
        cache = self.cache(past_key_values, use_cache)
        if position_ids is None:
            position_ids = positions_of(attention_mask, input_ids.shape[1])
        if cache is not None and cache.get_seq_length():
            self.expect_no_video(input_ids, frames, features)
            fast, memory = [], cache.slow_memory if self.config.generated_read_slow else None
            one_each = torch.ones(input_ids.shape, dtype=torch.bool)  # known without asking the device
            reads_BL = one_each if input_ids.shape[1] == 1 else real_tokens(attention_mask, input_ids)
        else:
            is_video_BL, each = input_ids == self.config.video_token_id, slice(None, None, rows_per_prompt)
            videos = [] if frames is None and features is None else self.see(frames, features, frame_times, questions)
            prompts, memory = videos_of_rows(is_video_BL[each], videos), None
            fast = [video.fast_FD for prompt in prompts for _ in range(rows_per_prompt) for video in prompt]
            if self.hybrid_layers and videos:
                if slow_features is not None:
                    prompts = videos_of_rows(is_video_BL[each], self.see(None, slow_features, frame_times))
                positions = position_ids[each] if position_ids is not None else None
                memory = self.memorise(prompts, is_video_BL[each], positions).repeat(rows_per_prompt)
            reads_BL = self.scope(is_video_BL, ~real_tokens(attention_mask, input_ids))
            if cache is not None:
                cache.slow_memory = memory
            del videos, prompts  # the slow tokens: from here on their keys and values serve
        if may_read is not None:
            reads_BL = reads_BL & may_read
        outputs = decoder(
            inputs_embeds=self.splice(input_ids, fast),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache,
            slow_memory=memory,
            readers=Readers.of(reads_BL, memory).to(input_ids.device) if memory is not None else None,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.language_model.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits, labels, vocab_size, num_items_in_batch=num_items_in_batch)
        answer = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )
        return answer if return_dict else answer.to_tuple()

    # ------------------------------------------------------------------------------------ variants of a model

    @classmethod
    def from_base(cls, base: "SlowFastForConditionalGeneration", **changes: Any) -> "SlowFastForConditionalGeneration":
        """A variant that starts from a trained `base`: its weights, `changes` to its configuration.

        New cross-attention keys and values are initialised by `kv_init`, a hybrid base's own are kept; time
        positions, compressors and selectors may be new. Any other weight that the base lacks, that the variant
        has no place for, or of another shape, is a ValueError.
        """
        config = SlowFastConfig.from_dict({**base.config.to_dict(), **changes})
        variant, weights = cls(config).to(base.dtype), base.state_dict()
        shapes = {name: tensor.shape for name, tensor in variant.state_dict().items()}
        other = [name for name, tensor in weights.items() if shapes.get(name, tensor.shape) != tensor.shape]
        if other:
            raise ValueError(f"The variant does not fit its base: {other[0]} has another shape there.")
        missing, unexpected = variant.load_state_dict(weights, strict=False)
        new = (".cross_attention.", ".cross_block.", "time_positions.", "compressor.", "selector.")
        strange = [name for name in missing if not any(part in name for part in new)]
        if strange or unexpected:
            raise ValueError(
                "The variant does not fit its base: "
                f"missing there {strange[:3] or 'nothing'}, left over {list(unexpected)[:3] or 'nothing'}."
            )
        before = fusions(base.language_model.model)
        for layer, fusion in variant.hybrid():
            if fusion.layer_index not in before:
                fusion.initialise_(layer, config.kv_init)
        return variant

    def hybrid(self) -> list[tuple[nn.Module, Fusion]]:
        """(decoder layer, its fusion) of every hybrid layer."""
        decoder = self.language_model.model
        return [(decoder.layers[index], fusion) for index, fusion in fusions(decoder).items()]

    def gates(self) -> list[Gate]:
        """Every gate, in the order of the layers."""
        return [module for _, fusion in self.hybrid() for module in fusion.modules() if isinstance(module, Gate)]

    def close_gates_(self) -> None:
        """A control: shuts every gate, so that the model is its fast-token self without the slow path."""
        for gate in self.gates():
            gate.close_()

    def fast_token_count(self, frames: int) -> int:
        """Fast tokens that a video of `frames` frames makes."""
        frames = self.selector.n_frames(frames)
        return self.compressor.n_tokens(frames, *pool_grid(self.encoder.grid, self.config.pooling_of(frames)))

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        """As Hugging Face's; the decoder's attention stays hybrid, and a backend that can't be is a ValueError."""
        given = attn_implementation
        name = given.get("text_config", given.get("", "sdpa")) if isinstance(given, dict) else given
        hybrid = hybrid_name(name)
        super().set_attn_implementation(name.removesuffix(SUFFIX), *args, **kwargs)
        self.language_model.config._attn_implementation = hybrid

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs: Any) -> None:
        """As Hugging Face's; reentrant checkpointing, which would go through the slow memory twice, is refused."""
        if self.hybrid_layers and (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError("Hybrid layers share the slow memory: checkpoint gradients with use_reentrant False.")
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def joined(parts: Iterator[torch.Tensor], T: int) -> torch.Tensor:
    """Parts of `(B, T, ...)` along T as one tensor, each written to its place at once: never held twice."""
    whole, start = None, 0
    for part in parts:
        if part.shape[1] == T:
            return part
        whole = part.new_empty(part.shape[0], T, *part.shape[2:]) if whole is None else whole
        whole[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return whole


def slow_frames(T: int, budget: int | None) -> torch.Tensor | slice:
    """The frames whose tokens are slow tokens: all, or `budget` of them, evenly spaced, first and last included."""
    if budget is None or budget >= T:
        return slice(None)
    if budget < 1:
        raise ValueError(f"slow_frames is {budget}, must be at least 1.")
    return torch.linspace(0, T - 1, budget).round().long()
