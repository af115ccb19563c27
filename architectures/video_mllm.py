"""The whole path of a video, from frames to an answer.

    frames_BTCHW --encoder--> features_BTPV --projector, pooling--> tokens_BTHWD --+-- as they are -> slow_BSD
                                                                                   |                    |
                                                                                   +--compressor--> fast_BFD
                                                                                                       | |
    text + placeholders --embedding--> embeds_BLD --fast tokens spliced in--> decoder, whose hybrid layers
                                                                   let text read the slow tokens --> answer

The self-attention baseline is the same class: placement "none", compressor "identity".
"""

from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from architectures.compressors import COMPRESSORS
from architectures.configuration import SlowFastConfig
from architectures.cross_attention import CrossAttention, SlowMemory, initialise_keys_values
from architectures.encoders import ENCODERS
from architectures.hybrid import SlowFastCache, hybrid_name, make_hybrid, remember
from architectures.placement import PLACEMENTS
from architectures.projectors import Projector, pool_grid, pool_space
from architectures.scope import scope_of
from architectures.time_positions import TIME_POSITIONS
from architectures.tokens import Readers, VideoTokens


class SlowFastForConditionalGeneration(PreTrainedModel, GenerationMixin):
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
        self.projector = Projector(self.encoder.width, width, config.projector_depth)
        self.time_positions = torch.nn.ModuleDict(  # by name: equal names share their weights
            {spec["name"]: TIME_POSITIONS.build(spec, width=width) for spec in (config.fast_time, config.slow_time)}
        )
        self.compressor = COMPRESSORS.build(config.compressor, width=width)
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config, attn_implementation=hybrid_name(config._attn_implementation or "sdpa")
        )
        self.hybrid_layers = PLACEMENTS.build(config.placement, n_layers=config.text_config.num_hidden_layers)
        make_hybrid(self.language_model.model, self.hybrid_layers, config.gate)
        self.scope = scope_of(config.scope)
        self.post_init()
        for _, cross in self.cross_attentions():  # the decoder's own initialisation overwrote the gates'
            cross.gate.reset_parameters()

    # ---------------------------------------------------------------------------------- the path of a video

    def encode_video(self, frames_BTCHW: torch.Tensor) -> torch.Tensor:
        """Frames to encoder features, `features_BTPV`, which can be kept while the encoder is frozen."""
        return self.encoder(frames_BTCHW.to(self.dtype))

    def watch(self, features_BTPV: torch.Tensor) -> torch.Tensor:
        """Encoder features to one token per pooled patch, `tokens_BTHWD`, without time."""
        tokens_BTPD = self.projector(features_BTPV.to(self.dtype))
        return pool_space(tokens_BTPD.unflatten(2, self.encoder.grid), self.config.video_pooling)

    def fast_and_slow(self, tokens_BTHWD: torch.Tensor, times_BT: torch.Tensor) -> VideoTokens:
        """The two streams: compressed, and (if a layer reads them) as they are, each with its time."""
        fast_BFD = self.compressor(tokens_BTHWD + self.time_of(times_BT, self.config.fast_time))
        if not self.hybrid_layers:
            return VideoTokens(fast_BFD, None)
        slow_BTHWD = tokens_BTHWD + self.time_of(times_BT, self.config.slow_time)
        return VideoTokens(fast_BFD, slow_BTHWD.flatten(1, 3))

    def time_of(self, times_BT: torch.Tensor, spec: dict[str, Any]) -> torch.Tensor | float:
        """Time positions, shaped to be added to `tokens_BTHWD`."""
        position_BTD = self.time_positions[spec["name"]](times_BT)
        return position_BTD if isinstance(position_BTD, float) else position_BTD[:, :, None, None]

    def splice(self, input_ids_BL: torch.Tensor, fast_BFD: torch.Tensor) -> torch.Tensor:
        """Embeds the text and puts the fast tokens at their placeholders, in order."""
        embeds_BLD = self.get_input_embeddings()(input_ids_BL)
        self.expect_fast_tokens(input_ids_BL, fast_BFD.shape[0] * fast_BFD.shape[1])
        places_BL1 = (input_ids_BL == self.config.video_token_id)[..., None]
        return embeds_BLD.masked_scatter(places_BL1, fast_BFD.to(embeds_BLD.dtype))

    def expect_fast_tokens(self, input_ids_BL: torch.Tensor, given: int) -> None:
        """Raises ValueError unless the prompts hold a placeholder for each of the `given` fast tokens."""
        wanted = int((input_ids_BL == self.config.video_token_id).sum())
        if wanted != given:
            raise ValueError(f"The prompts hold {wanted} video placeholders, but the videos make {given} fast tokens.")

    def cache(self, past_key_values: Cache | None, use_cache: bool | None) -> SlowFastCache | None:
        """The given cache, or a new one where the decoder would make one that forgets slow tokens."""
        if past_key_values is None:
            wanted = getattr(self.config.text_config, "use_cache", True) if use_cache is None else use_cache
            return SlowFastCache(self.config.text_config) if wanted and not self.training else None
        if not isinstance(past_key_values, SlowFastCache):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}, which has no place for slow tokens: "
                "give a SlowFastCache, or none."
            )
        return past_key_values

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        frames: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        frame_times: torch.Tensor | None = None,
        slow_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (and the loss of `labels_BL`, shifted as usual) of prompts with videos.

        `input_ids_BL` holds a placeholder per fast token. A video comes as `frames_BTCHW` (normalised) or
        as the encoder's `features_BTPV`, with `frame_times_BT` in [0, 1]; without any, decoding goes on
        from the cache. `slow_features_BTPV` takes the slow tokens from another video than the fast ones (a
        control). Raises ValueError when placeholders and fast tokens differ in number.
        """
        decoder = self.language_model.model
        past_key_values = self.cache(past_key_values, use_cache)
        memory = past_key_values.slow_memory if past_key_values is not None else None
        prefill = frames is not None or features is not None
        if prefill:
            features = self.encode_video(frames) if features is None else features
            tokens = self.fast_and_slow(self.watch(features), frame_times)
            embeds = self.splice(input_ids, tokens.fast_BFD)
            slow = tokens.slow_BSD
            if slow is not None and slow_features is not None:
                slow = self.fast_and_slow(self.watch(slow_features), frame_times).slow_BSD
            memory = remember(decoder, self.hybrid_layers, slow) if slow is not None else None
            if past_key_values is not None:
                past_key_values.slow_memory = memory
        else:
            if past_key_values is None or past_key_values.get_seq_length() == 0:
                self.expect_fast_tokens(input_ids, 0)
            embeds = self.get_input_embeddings()(input_ids)
        outputs = decoder(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            slow_memory=memory,
            readers=self.readers(input_ids, prefill) if memory is not None else None,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.language_model.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def readers(self, input_ids_BL: torch.Tensor, prefill: bool) -> Readers | None:
        """Which tokens read the slow ones: a prompt's by scope; generated ones all, or (official) none."""
        if not prefill:
            if not self.config.generated_read_slow:
                return None
            return Readers(torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device).expand_as(input_ids_BL))
        padding = self.config.pad_token_id
        is_padding_BL = torch.zeros_like(input_ids_BL, dtype=torch.bool)
        if padding is not None:
            is_padding_BL = input_ids_BL == padding
        return Readers.from_mask(self.scope(input_ids_BL == self.config.video_token_id, is_padding_BL))

    # ------------------------------------------------------------------------------------------- generation

    def generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As Hugging Face's `generate`, with a cache that keeps the slow memory too."""
        if kwargs.get("use_cache", True) and kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = SlowFastCache(self.config.text_config)
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A video is watched at the first step only; later ones read the cache."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for name in ("frames", "features", "frame_times", "slow_features"):
                inputs.pop(name, None)
        return inputs

    # ------------------------------------------------------------------------------------ variants of a model

    @classmethod
    def from_base(cls, base: "SlowFastForConditionalGeneration", **changes: Any) -> "SlowFastForConditionalGeneration":
        """A variant that starts from a trained `base`: its weights, `changes` to its configuration.

        New cross-attention keys and values are initialised by `kv_init`; time positions and compressors may
        be new. Any other weight that the base lacks, or that the variant has no place for, is a ValueError.
        """
        config = SlowFastConfig.from_dict({**base.config.to_dict(), **changes})
        variant = cls(config)
        missing, unexpected = variant.load_state_dict(base.state_dict(), strict=False)
        new = (".cross_attention.", "time_positions.", "compressor.")
        strange = [name for name in missing if not any(part in name for part in new)]
        if strange or unexpected:
            raise ValueError(
                "The variant does not fit its base: "
                f"missing there {strange[:3] or 'nothing'}, left over {list(unexpected)[:3] or 'nothing'}."
            )
        for attention, cross in variant.cross_attentions():
            initialise_keys_values(cross, attention, config.kv_init)
        return variant

    def cross_attentions(self) -> list[tuple[torch.nn.Module, CrossAttention]]:
        """(self-attention, its cross-attention) of every hybrid layer."""
        attentions = [self.language_model.model.layers[index].self_attn for index in self.hybrid_layers]
        return [(attention, attention.cross_attention) for attention in attentions]

    def close_gates_(self) -> None:
        """A control: shuts every gate, so that the model is its fast-token self without the slow path."""
        for _, cross in self.cross_attentions():
            cross.gate.close_()

    def fast_token_count(self, frames: int) -> int:
        """Fast tokens that a video of `frames` frames makes."""
        return self.compressor.n_tokens(frames, *pool_grid(self.encoder.grid, self.config.video_pooling))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_output_embeddings()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


__all__ = ["SlowFastForConditionalGeneration", "SlowMemory"]
