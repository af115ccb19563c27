"""What training starts from: a model of ours made into the variant that is asked for, or a language model and a tower.

The model is put together once, by the first process, in a folder that all processes load (under ZeRO-3 each its share).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from architectures import SlowFastConfig, SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.encoders import ENCODERS, Encoder
from architectures.official import SYSTEM, TOWER, read_tower, read_weights
from architectures.official_names import IMAGE_TOKEN, tensors_from_official, tower_options
from architectures.processing import VIDEO_TOKEN
from harness.errors import UserError
from harness.finetune.checkpoints import wait_for
from harness.models import plain, variant_of
from harness.paths import new_directory

NEW = (".cross_attention.", ".cross_block.")  # parts of a decoder that a language model's own weights lack
CONVNEXT = "convnext_xxlarge"


def starting_folder(settings: DictConfig, runs: Path, first: bool) -> Path:
    """The folder of the model that training starts from; made by the `first` process while others wait.

    Raises UserError, in a sentence, for a start that is not there or cannot become the variant.
    """
    expect_start(settings)
    if settings.start is not None and not changes(settings):
        return Path(settings.start)
    folder = runs / "finetune" / "starts" / name_of(settings)
    if not first:
        wait_for(folder.is_dir, f"the model to start from, {folder},")
    elif not folder.is_dir():
        with new_directory(folder) as work:
            model, processor = built(settings)
            model.save_pretrained(work)
            processor.save_pretrained(work)
    return folder


def expect_start(settings: DictConfig) -> None:
    """UserError unless exactly one start is named, and is there."""
    if (settings.start is None) == (settings.decoder is None):
        raise UserError(
            "say what to start from: start=FOLDER, a saved model of ours, or decoder=FOLDER, a language model, with "
            "vision=FILE, its vision tower"
        )
    for key in ("start", "decoder"):
        if settings[key] is not None and not (Path(settings[key]) / "config.json").is_file():
            raise UserError(f"{key}={settings[key]}: no folder of a saved model (it has no config.json)")
    if settings.start is not None and settings.vision is not None:
        raise UserError("vision goes with decoder: a saved model of ours has its vision tower already")
    if settings.vision is not None and not Path(settings.vision).is_file():
        raise UserError(f"vision={settings.vision}: there is no such file; give the safetensors of the vision tower")


def changes(settings: DictConfig) -> dict[str, Any]:
    """The fields in which the variant that is asked for differs from the model in `settings.start`."""
    has = SlowFastConfig.from_pretrained(settings.start)
    return {name: value for name, value in variant_of(settings).items() if getattr(has, name) != value}


def name_of(settings: DictConfig) -> str:
    """A name for what is put together: of the same sources and choices the same."""
    sources = [Path(path).resolve() for path in (settings.start, settings.decoder, settings.vision) if path is not None]
    files = [file for source in sources for file in (sorted(source.iterdir()) if source.is_dir() else [source])]
    content = {
        "sources": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "variant": variant_of(settings),
        "vision": plain(settings.encoder),
        "sizes": [settings.scale.projector_depth, settings.scale.video_pooling, plain(settings.scale.fast_time)],
        "seed": settings.seed,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{settings.experiment.name}-{digest}"


def built(settings: DictConfig) -> tuple[SlowFastForConditionalGeneration, SlowFastProcessor]:
    """The model to start from and its processor; new weights are drawn by the seed."""
    torch.manual_seed(settings.seed)
    try:
        if settings.start is not None:
            return from_own(Path(settings.start), changes(settings))
        vision = None if settings.vision is None else Path(settings.vision)
        return from_language_model(Path(settings.decoder), vision, settings)
    except (ValueError, OSError) as error:
        raise UserError(f"{settings.start or settings.decoder} cannot be started from: {error}") from error


def from_own(folder: Path, variant: dict[str, Any]) -> tuple[SlowFastForConditionalGeneration, SlowFastProcessor]:
    """A saved model of ours as another variant: new cross-attention starts from the layer's own keys and values."""
    base = SlowFastForConditionalGeneration.from_pretrained(folder, dtype="auto")
    model = SlowFastForConditionalGeneration.from_base(base, **variant)
    before = SlowFastProcessor.from_pretrained(folder)
    options = {name: getattr(before, name) for name in ("system", "padding_side", "max_length", "truncation")}
    processor = SlowFastProcessor.for_model(model.config, model.encoder, before.tokenizer, **options)
    processor.video_processor = before.video_processor
    return model, processor


def from_language_model(
    folder: Path, vision: Path | None, settings: DictConfig
) -> tuple[SlowFastForConditionalGeneration, SlowFastProcessor]:
    """A new video model around a language model: its weights, the tower's, and for the rest new ones.

    The prompt is the official one. Raises ValueError for weights that do not fit, and without a tower.
    """
    if vision is None:
        raise ValueError("name its vision tower as well, vision=FILE (safetensors)")
    language_model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tower = read_weights(vision)
    config = SlowFastConfig(
        text_config=language_model.config,
        vision=vision_spec(plain(settings.encoder), vision),
        projector_depth=settings.scale.projector_depth,
        video_pooling=settings.scale.video_pooling,
        pool_single_frame=False,
        fast_time=plain(settings.scale.fast_time),
        video_token_id=placeholder_of(tokenizer),
        **variant_of(settings),
    )
    model = SlowFastForConditionalGeneration(config).to(language_model.dtype)
    fill(model, language_model.state_dict())
    fill_encoder(model.encoder, config.vision["name"], vision, tower)
    return model, SlowFastProcessor.for_model(config, model.encoder, tokenizer, system=SYSTEM)


def placeholder_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a fast token's placeholder: the tokenizer's own `<video>`, else the official one, no word at all.

    ValueError for a tokenizer that cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has no padding token")
    own = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    return IMAGE_TOKEN if own is None or own == tokenizer.unk_token_id else own


def fill(model: SlowFastForConditionalGeneration, weights: dict[str, torch.Tensor]) -> None:
    """Puts a language model's weights into the model, and starts the cross-attention from them."""
    missing, unexpected = model.language_model.load_state_dict(weights, strict=False)
    strange = [name for name in missing if not any(part in f".{name}" for part in NEW)]
    if strange or unexpected:
        raise ValueError(f"its weights do not fit: missing {strange[:3]}, left over {list(unexpected)[:3]}")
    for layer, fusion in model.hybrid():
        fusion.initialise_(layer, model.config.kv_init)


def vision_spec(spec: dict[str, Any], file: Path) -> dict[str, Any]:
    """The encoder that the settings name, with what the tower's file shows of it."""
    if spec["name"] != CONVNEXT:
        return spec
    return {**spec, **tower_options({name.removeprefix(TOWER): t.shape for name, t in read_tower(file).items()})}


def fill_encoder(encoder: Encoder, name: str, file: Path, weights: dict[str, torch.Tensor]) -> None:
    """Fills the encoder from a tower's file: timm's names, SigLIP's, or our own; ValueError if they do not fit."""
    if hasattr(ENCODERS.find(name), "load_tower_"):
        encoder.load_tower_(weights)
        return
    if name == CONVNEXT:
        named = tensors_from_official(read_tower(file), head_dim=1)  # no fused projection is among them
        weights = {key.removeprefix("encoder."): tensor for key, tensor in named.items()}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the tower in {file} does not fit encoder={name}: {str(error).splitlines()[-1].strip()}"
        ) from error
