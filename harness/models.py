"""From settings to models: the one place where Hydra's words become a model's configuration."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.fusions.base import KV_INITS
from architectures.projectors import expect_token_left, pool_grid
from architectures.selectors import SELECTORS
from harness.errors import UserError

HEADS = ("num_attention_heads", "num_key_value_heads")
SIZES = ("hidden_size", "num_hidden_layers", *HEADS, "intermediate_size", "vocab_size")  # of a decoder


def plain(config: DictConfig) -> dict[str, Any]:
    """A group's settings as plain data."""
    return OmegaConf.to_container(config, resolve=True)


def variant_of(settings: DictConfig) -> dict[str, Any]:
    """What makes a variant differ from its base, as fields of `SlowFastConfig`."""
    return {
        "selector": plain(settings.selector),
        "compressor": plain(settings.compressor),
        "placement": plain(settings.placement),
        "fusion": plain(settings.fusion),
        "gate": plain(settings.gate),
        "scope": plain(settings.scope),
        "slow_time": plain(settings.slow_tokens.time),
        "slow_pooling": settings.slow_tokens.pooling,
        "slow_frames": settings.slow_tokens.frames,
        "kv_init": settings.architecture.kv_init,
        "generated_read_slow": settings.architecture.generated_read_slow,
    }


def model_config(settings: DictConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> SlowFastConfig:
    """The whole model's configuration; the tokenizer gives vocabulary and special tokens.

    Without one the decoder's own vocabulary is kept, which suffices for counting. A decoder that cannot be is
    a UserError of one sentence; whether the whole can be, `check_variant` says.
    """
    decoder = plain(settings.scale.decoder)
    expect_sizes(decoder)
    decoder["rope_parameters"] = {"rope_type": "default", "rope_theta": decoder.pop("rope_theta")}
    special: dict[str, Any] = {}
    if tokenizer is not None:
        decoder |= {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        }
        special["video_token_id"] = tokenizer.convert_tokens_to_ids("<video>")
    try:
        return SlowFastConfig(
            text_config=decoder,
            vision=plain(settings.encoder),
            projector_depth=settings.scale.projector_depth,
            video_pooling=settings.scale.video_pooling,
            fast_time=plain(settings.scale.fast_time),
            **variant_of(settings),
            **special,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def expect_sizes(decoder: dict[str, Any]) -> None:
    """UserError for sizes that no decoder can have."""
    for name in SIZES:
        if decoder.get(name, 1) < 1:
            raise UserError(f"scale.decoder.{name}={decoder[name]}: it is at least 1")
    heads = decoder.get("num_attention_heads", 1)
    for name, number, parts, whose in (
        ("num_attention_heads", heads, decoder.get("num_key_value_heads", heads), "key and value"),
        ("hidden_size", decoder.get("hidden_size", heads), 1 if "head_dim" in decoder else heads, "attention"),
    ):
        if number % parts:
            raise UserError(
                f"scale.decoder.{name}={number}: it must be a multiple of {parts}, the number of {whose} heads"
            )


def check_variant(settings: DictConfig, frames: int) -> None:
    """UserError of one sentence if the model of `settings` cannot be, or makes no tokens of so many frames.

    The model is built on the meta device, without weights: before any work starts.
    """
    where = f"{settings.architecture.name} at {frames} frames cannot be built"
    if (kv_init := settings.architecture.kv_init) not in KV_INITS:
        raise UserError(f"{where}: Unknown kv_init '{kv_init}': choose one of {', '.join(KV_INITS)}.")
    config = model_config(settings)
    fast, slow = config.fast_time, config.slow_time
    if fast["name"] == slow["name"] and fast != slow:
        raise UserError(
            f"{where}: fast and slow tokens share a time position of one name, so that scale.fast_time "
            f"({fast}) and slow_tokens.time ({slow}) must be equal."
        )
    try:
        if SELECTORS.find(config.selector["name"]).needs_question and "adapt" in settings.scale:
            raise UserError(
                f"{where}: selector '{config.selector['name']}' chooses by the question, but at mini scale each "
                "clip is encoded once for all of its questions; take a selector that sees the video alone."
            )
        with torch.device("meta"):
            model = SlowFastForConditionalGeneration(config)
        tokens = model.fast_token_count(frames)
        if tokens and model.hybrid_layers:
            grid = pool_grid(model.encoder.grid, config.pooling_of(model.selector.n_frames(frames)))
            expect_token_left(grid, config.slow_pooling, "slow_tokens.pooling")
    except (ValueError, TypeError) as error:  # what the registries and torch's layers say of a bad option
        sentence = str(error).partition("\n")[0]  # torch goes on with its signatures
        raise UserError(f"{where}: {sentence}") from error
    if tokens < 1:
        raise UserError(f"{where}: its compressor leaves no token; lower its strides or scale.video_pooling.")
