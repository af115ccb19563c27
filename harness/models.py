"""From settings to models: the one place where Hydra's words become a model's configuration."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from architectures import SlowFastConfig
from harness.errors import UserError


def plain(config: DictConfig) -> dict[str, Any]:
    """A group's settings as plain data."""
    return OmegaConf.to_container(config, resolve=True)


def variant_of(settings: DictConfig) -> dict[str, Any]:
    """What makes a variant differ from its base, as fields of `SlowFastConfig`."""
    return {
        "compressor": plain(settings.compressor),
        "placement": plain(settings.placement),
        "gate": plain(settings.gate),
        "scope": plain(settings.scope),
        "slow_time": plain(settings.slow_tokens.time),
        "kv_init": settings.architecture.kv_init,
        "generated_read_slow": settings.architecture.generated_read_slow,
    }


def model_config(settings: DictConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> SlowFastConfig:
    """The whole model's configuration; the tokenizer gives vocabulary and special tokens.

    Without one the decoder's own vocabulary is kept, which suffices for counting. A variant that cannot be is a
    UserError of one sentence.
    """
    decoder = plain(settings.scale.decoder)
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
