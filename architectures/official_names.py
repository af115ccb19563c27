"""What official checkpoints call things, and what the same things are called here: tensors and configuration.

Official is the code of arXiv 2504.01328 (SHI-Labs repository, commit 69676a1). Tensors:

    official                                            here
    model.embed_tokens, model.layers.i, model.norm      language_model.model.*
    lm_head                                             language_model.lm_head
    model.mm_projector.i                                projector.i
    model.vision_tower.vision_tower.*                   encoder.*
      a block's layer scale `weight`                      timm's `gamma`
    ...self_attn.cross_attn_kv_proj                     ...self_attn.cross_attention.k_proj and .v_proj
    ...self_attn.cross_attn_gate_proj.0                 ...self_attn.cross_attention.gate.projection
    ...self_attn.cross_attn_warm_up_gate                ...self_attn.cross_attention.gate.warmup

The rows of `cross_attn_kv_proj` are read per key/value head, [K_0, V_0, K_1, V_1, ...].
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Qwen2Config

from architectures.configuration import SlowFastConfig
from architectures.encoders.convnext_xxlarge import DEPTHS, WIDTHS

MODEL_TYPE = "llava_qwen_slow_fast"
IMAGE_TOKEN = -200  # the official placeholder of a video, outside the vocabulary
TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
KV = ".cross_attn_kv_proj."
CROSS = ".self_attn.cross_attention."
LAST = 10**6  # after any layer

# Official gating type -> our gate, by whether text only cross-attends: the official branch in which all tokens do
# multiplies by the warm-up itself, the others by its tanh.
GATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole-dynamic-tanh-warmup": ({"name": "dynamic_tanh"}, {"name": "dynamic_tanh_linear_warmup"}),
    "whole-dynamic-tanh": ({"name": "dynamic_tanh_no_warmup"}, {"name": "dynamic_tanh_no_warmup"}),
    "whole-dynamic-warmup": ({"name": "dynamic", "warmup": "tanh"}, {"name": "dynamic", "warmup": "linear"}),
    "whole-dynamic": ({"name": "dynamic"}, {"name": "dynamic"}),
}
SCOPES = {
    "text-only-vanilla-flashattn": "text_only",
    "text-only-vanilla": "text_only",
    "text-only-vanilla-flashattn-masksystem": "text_after_video",
    "text-only-vanilla-masksystem": "text_after_video",
    "vanilla-flashattn": "all_tokens",
    "vanilla": "all_tokens",
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
SIZES += ("num_attention_heads", "num_key_value_heads")  # of the language model: never assumed
LANGUAGE_MODEL = (
    *SIZES,
    *("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "rope_theta", "use_sliding_window", "sliding_window", "max_window_layers"),
    *("attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
)
COMPRESSOR = {"sample_stride": 1, "average_stride": 4, "space_stride": 1, "min_fast_frames": 16}  # our defaults
PLACEMENT = {"n": 8, "minimum": 0, "maximum": None}
# Options here that the official code does not have, and the value that amounts to not having them.
COUNTERPARTS: dict[str, Any] = {
    "fusion": {"name": "slow_fast"},
    "fast_time": {"name": "none"},
    "slow_time": {"name": "none"},
    "selector": {"name": "all"},
    "slow_pooling": 1,
    "slow_frames": None,
    "pool_single_frame": False,
}
# What is assumed where an official field is absent, and the only values that are supported here.
ONLY: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "model_type": (MODEL_TYPE, (MODEL_TYPE,)),
    "mm_patch_merge_type": ("flat", ("flat",)),
    "mm_vision_select_feature": ("patch", ("patch",)),
    "mm_use_im_start_end": (False, (False,)),
    "mm_use_im_patch_token": (False, (False,)),
    "rope_scaling": (None, (None,)),
    "cross_attn_head_num": (None, (None, 0)),
    "cross_attn_kv_head_num": (None, (None, 0)),
    "cross_attn_use_mlp": (None, (None, False)),
    "tokenizer_padding_side": ("right", ("left", "right")),
    "image_aspect_ratio": (None, (None, "square", "pad")),
}


# ----------------------------------------------------------------------------------------- configuration


def config_from_official(official: Mapping[str, Any], vision: dict[str, Any] | None = None) -> SlowFastConfig:
    """Our configuration of an official `config.json`; `vision` replaces its vision tower.

    The official fields are kept in `config.official`, also those that play no part here: training switches
    (`tune_mm_mlp_adapter`, `mm_projector_lr`), what a ConvNeXt tower ignores (`mm_vision_select_layer`,
    `tile_image_input`), and what concerns the processor: `tokenizer_model_max_length` and
    `tokenizer_padding_side` at training, `image_aspect_ratio` (the official inference code crops whatever it
    says). Raises ValueError, in a sentence, for a value that the model here cannot honour, and for a size or
    a stride that is not there.
    """
    for field, (default, allowed) in ONLY.items():
        if official.get(field, default) not in allowed:
            raise ValueError(refusal(field, official[field], allowed))
    for field in SIZES:
        count(official, field)
    language_model = {name: official[name] for name in LANGUAGE_MODEL if official.get(name) is not None}
    scope = look_up(SCOPES, "cross_attn_implementation", official)
    return SlowFastConfig(
        text_config=Qwen2Config(**language_model),
        vision=vision or vision_from_official(official, {}),
        projector_depth=projector_depth(official.get("mm_projector_type")),
        video_pooling=count(official, "mm_video_pooling_stride", 1),
        pool_single_frame=False,
        compressor={
            "name": "official",
            "sample_stride": count(official, "fast_token_temporal_sampling_stride"),
            "average_stride": count(official, "fast_token_temporal_stride"),
            "space_stride": count(official, "fast_token_spatial_stride"),
            "min_fast_frames": official.get("min_fast_frames") or 1,
        },
        placement={
            "name": "every",
            "n": count(official, "cross_attn_every_n_layers"),
            "minimum": official.get("cross_attn_min_layer_depth") or 0,
            "maximum": official.get("cross_attn_max_layer_depth"),
        },
        gate=dict(look_up(GATES, "cross_attn_gating_type", official)[scope == "all_tokens"]),
        scope={"name": scope},
        kv_init="scrambled",
        generated_read_slow=False,
        video_token_id=IMAGE_TOKEN,
        official=dict(official),
    )


def config_to_official(config: SlowFastConfig) -> dict[str, Any]:
    """The official `config.json` of a configuration; fields that came with an import are kept as they were.

    `generated_read_slow` has no counterpart: the official code never lets generated tokens read. Raises
    ValueError, in a sentence, for anything else that the official code does not have.
    """
    written = {**vision_to_official(config.vision), "architectures": ["LlavaQwenSlowFastForCausalLM"]}
    if config.dtype is not None:
        written["torch_dtype"] = str(config.dtype).removeprefix("torch.")
    fields = {name: value for name, value in official_fields(config).items() if value is not None}
    kept = getattr(config, "official", None)
    if not kept:
        return {**fields, **written}
    as_imported = official_fields(config_from_official(kept, config.vision))  # a field has several ways to say a thing
    changed = {name: value for name, value in fields.items() if as_imported[name] != value}
    return {**kept, **changed, **written}


def official_fields(config: SlowFastConfig) -> dict[str, Any]:
    """What a configuration is in official words, but for its encoder."""
    expect_counterparts(config)
    text = config.text_config.to_dict()
    text["rope_theta"] = config.text_config.rope_parameters["rope_theta"]
    compressor, placement = {**COMPRESSOR, **config.compressor}, {**PLACEMENT, **config.placement}
    implementation, gating = implementation_and_gating(config.scope["name"], config.gate)
    return {
        **{name: text.get(name) for name in LANGUAGE_MODEL},
        "model_type": MODEL_TYPE,
        "mm_projector_type": f"mlp{config.projector_depth}x_gelu",
        "mm_patch_merge_type": "flat",
        "mm_vision_select_feature": "patch",
        "mm_video_pooling_stride": config.video_pooling,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "cross_attn_every_n_layers": placement["n"],
        "cross_attn_min_layer_depth": placement["minimum"],
        "cross_attn_max_layer_depth": placement["maximum"],
        "cross_attn_implementation": implementation,
        "cross_attn_gating_type": gating,
        "min_fast_frames": compressor["min_fast_frames"],
        "fast_token_spatial_stride": compressor["space_stride"],
        "fast_token_temporal_stride": compressor["average_stride"],
        "fast_token_temporal_sampling_stride": compressor["sample_stride"],
    }


def expect_counterparts(config: SlowFastConfig) -> None:
    """Raises ValueError for what the official code does not have."""
    for field, wanted in COUNTERPARTS.items():
        if getattr(config, field, wanted) != wanted:
            raise ValueError(no_counterpart(field, getattr(config, field), wanted))
    names = {
        "text_config": (config.text_config.model_type, "qwen2"),
        "compressor": (config.compressor["name"], "official"),
        "placement": (config.placement["name"], "every"),
    }
    for field, (name, wanted) in names.items():
        if name != wanted:
            raise ValueError(no_counterpart(field, name, wanted))


def implementation_and_gating(scope: str, gate: dict[str, Any]) -> tuple[str, str]:
    """The official names of a scope and a gate; the gate's `bias` is an initial value and plays no part."""
    if scope not in SCOPES.values():
        raise ValueError(no_counterpart("scope", scope, ", ".join(sorted(set(SCOPES.values())))))
    gate = {
        option: value for option, value in gate.items() if (option, value) != ("warmup", "none") and option != "bias"
    }
    pairs = {gating: gates[scope == "all_tokens"] for gating, gates in GATES.items()}
    for gating, ours in pairs.items():
        if ours == gate:
            return next(name for name, known in SCOPES.items() if known == scope), gating
    known = ", ".join(sorted({ours["name"] for ours in pairs.values()}))
    raise ValueError(no_counterpart(f"gate (with scope {scope})", gate["name"], known))


def vision_from_official(official: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The encoder that `mm_vision_tower` names, a ConvNeXt and its pixels ("convnext-576"), with its `options`."""
    name = str(official.get("mm_vision_tower"))
    match = re.fullmatch(r"convnext-(\d+)", name)
    if match is None:
        raise ValueError(refusal("mm_vision_tower", name, ("convnext-576",)))
    width = options.get("widths", WIDTHS)[-1]
    if official.get("mm_hidden_size", width) != width:
        raise ValueError(refusal("mm_hidden_size", official["mm_hidden_size"], (width,)))
    return {"name": "convnext_xxlarge", "image_size": int(match[1]), **options}


def vision_to_official(vision: dict[str, Any]) -> dict[str, Any]:
    """`mm_vision_tower` and `mm_hidden_size` of an encoder."""
    if vision["name"] != "convnext_xxlarge":
        raise ValueError(no_counterpart("vision", vision["name"], "convnext_xxlarge"))
    return {
        "mm_vision_tower": f"convnext-{vision.get('image_size', 576)}",
        "mm_hidden_size": vision.get("widths", WIDTHS)[-1],
    }


def tower_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The encoder options that a tower's tensors (official names without their prefix) show.

    The official configuration has no word for them: blocks and channels of the stages, classes of the unused
    head.
    """
    depths, widths = [0] * len(DEPTHS), [0] * len(WIDTHS)
    for name, shape in shapes.items():
        match = re.fullmatch(r"stages\.([0-3])\.blocks\.(\d+)\.conv_dw\.bias", name)
        if match is not None:
            stage = int(match[1])
            depths[stage], widths[stage] = max(depths[stage], int(match[2]) + 1), shape[0]
    options: dict[str, Any] = {}
    if (tuple(depths), tuple(widths)) != (DEPTHS, WIDTHS):
        options = {"depths": depths, "widths": widths}
    if "head.fc.weight" in shapes:
        options["head_classes"] = shapes["head.fc.weight"][0]
    return options


def projector_depth(kind: Any) -> int:
    """Linear layers of an `mm_projector_type` such as "mlp2x_gelu".

    "linear", which the official code assumes where the field is absent, is refused: its tensors are called
    otherwise (`mm_projector.weight`).
    """
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", kind) if isinstance(kind, str) else None
    if match is None:
        raise ValueError(refusal("mm_projector_type", kind, ("mlp2x_gelu", "mlp3x_gelu", "...")))
    return int(match[1])


def count(official: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """An official field that counts something, at least 1."""
    value = official.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = f"{field} is {value!r}" if field in official else f"{field} is missing"
        raise ValueError(f"The official config's {found}: it must be an integer of at least 1.")
    return value


def look_up(table: Mapping[str, Any], field: str, official: Mapping[str, Any]) -> Any:
    """The table's entry for an official field's value."""
    if official.get(field) not in table:
        raise ValueError(refusal(field, official.get(field), tuple(table)))
    return table[official[field]]


def refusal(field: str, value: Any, allowed: tuple[Any, ...]) -> str:
    """The sentence for an official value that has no place here."""
    return f"The official config's {field} is {value!r}, which is not supported: it must be {listed_or(allowed)}."


def no_counterpart(field: str, value: Any, wanted: Any) -> str:
    """The sentence for a value of ours that the official code does not have."""
    return f"The official code has no counterpart of {field} = {value!r}: an export needs {wanted}."


def listed_or(values: tuple[Any, ...]) -> str:
    """Values as an alternative."""
    return " or ".join(repr(value) if not isinstance(value, str) else value for value in values)


# ----------------------------------------------------------------------------------------------- tensors


def tensors_from_official(official: Mapping[str, torch.Tensor], head_dim: int) -> dict[str, torch.Tensor]:
    """Official tensors under our names; fused key/value projections are split, head by head of `head_dim`."""
    ours = {}
    for name, tensor in official.items():
        if KV not in name:
            ours[name_from_official(name)] = tensor
            continue
        pairs = tensor.unflatten(0, (-1, 2, head_dim))
        prefix, kind = name.split(KV)
        for index, projection in enumerate(("k_proj", "v_proj")):
            ours[f"language_model.{prefix}.cross_attention.{projection}.{kind}"] = pairs[:, index].flatten(0, 1)
    return ours


def name_from_official(name: str) -> str:
    """Our name of an official tensor that is the same tensor here."""
    if name.startswith(TOWER):
        return "encoder." + re.sub(r"(blocks\.\d+)\.weight$", r"\1.gamma", name.removeprefix(TOWER))
    if name.startswith(PROJECTOR):
        return "projector." + name.removeprefix(PROJECTOR)
    name = name.replace(".self_attn.cross_attn_gate_proj.0.", CROSS + "gate.projection.")
    return "language_model." + name.replace(".self_attn.cross_attn_warm_up_gate", CROSS + "gate.warmup")


def tensors_to_official(ours: Mapping[str, torch.Tensor], head_dim: int, tied: bool) -> dict[str, torch.Tensor]:
    """Our tensors under official names and in the official order; `tied`: without the output embedding."""
    official = {}
    for name, tensor in ours.items():
        if f"{CROSS}v_proj." in name or (tied and name == "language_model.lm_head.weight"):
            continue
        if f"{CROSS}k_proj." in name:
            value = ours[name.replace(f"{CROSS}k_proj.", f"{CROSS}v_proj.")]
            heads = [part.unflatten(0, (-1, head_dim)) for part in (tensor, value)]
            tensor = torch.stack(heads, dim=1).flatten(0, 2)
            name = name.replace(f"{CROSS}k_proj.", f".self_attn{KV}")
        official[name_to_official(name)] = tensor
    return dict(sorted(official.items(), key=lambda item: official_order(item[0])))


def name_to_official(name: str) -> str:
    """The official name of a tensor of ours; an unknown one is kept, and so shows as one that is extra."""
    if name.startswith("encoder."):
        return TOWER + re.sub(r"(blocks\.\d+)\.gamma$", r"\1.weight", name.removeprefix("encoder."))
    if name.startswith("projector."):
        return PROJECTOR + name.removeprefix("projector.")
    name = name.replace(CROSS + "gate.projection.", ".self_attn.cross_attn_gate_proj.0.")
    return name.removeprefix("language_model.").replace(CROSS + "gate.warmup", ".self_attn.cross_attn_warm_up_gate")


def official_order(name: str) -> tuple[int, int, int]:
    """Sorts tensors, stably, as official checkpoints have them: language model, tower, projector, output."""
    part = 3 if name.startswith("lm_head.") else 2 if name.startswith(PROJECTOR) else 1 if name.startswith(TOWER) else 0
    layer = re.match(r"model\.layers\.(\d+)\.(.*)", name)
    if layer is None:
        return part, -1 if "embed_tokens" in name else LAST, 0
    starts = ("self_attn.cross_attn_warm_up_gate", "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")
    starts += ("self_attn.cross_attn_kv_proj", "self_attn.cross_attn_gate_proj", "")
    return part, int(layer[1]), next(place for place, start in enumerate(starts) if layer[2].startswith(start))
