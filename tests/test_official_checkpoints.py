"""Official checkpoints, in and out: names, files, configuration, and the list of the 7B model's tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import tokenizer

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.official import (
    check_manifest,
    config_of,
    from_official,
    main,
    official_tensors,
    skeleton,
    to_official,
)
from architectures.official_names import GATES, IMAGE_TOKEN, SCOPES, TOWER, config_from_official, config_to_official

REFERENCE = Path(__file__).parent / "reference"
MANIFEST = json.loads((REFERENCE / "checkpoint_manifest_7b.json").read_text())
LARGE = MANIFEST["config_json"]
DEPTHS, WIDTHS, CLASSES = (1, 2, 1, 1), (4, 6, 8, 10), 5
HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, WORDS = 32, 48, 4, 2, 3, 40
TINY = LARGE | {
    **{"vocab_size": WORDS, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS},
    **{"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_window_layers": LAYERS},
    **{"mm_vision_tower": "convnext-64", "mm_hidden_size": WIDTHS[-1], "mm_video_pooling_stride": 1},
    **{"cross_attn_every_n_layers": 2, "cross_attn_max_layer_depth": LAYERS, "min_fast_frames": 2},
    **{"bos_token_id": 1, "eos_token_id": 2},
}


# ------------------------------------------------------------------------------------- a small checkpoint


def block_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """A ConvNeXt block's tensors."""
    return {
        "weight": (width,),
        "conv_dw.weight": (width, 1, 7, 7),
        "conv_dw.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """A small tower's tensors in the official order, head included."""
    first, last = WIDTHS[0], WIDTHS[-1]
    shapes = {
        "stem.0.weight": (first, 3, 4, 4),
        "stem.0.bias": (first,),
        "stem.1.weight": (first,),
        "stem.1.bias": (first,),
    }
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        if stage:
            before = WIDTHS[stage - 1]
            down = {"0.weight": (before,), "0.bias": (before,), "1.weight": (width, before, 2, 2), "1.bias": (width,)}
            shapes |= {f"stages.{stage}.downsample.{name}": shape for name, shape in down.items()}
        for block in range(depth):
            shapes |= {f"stages.{stage}.blocks.{block}.{name}": shape for name, shape in block_shapes(width).items()}
    head = {"norm.weight": (last,), "norm.bias": (last,), "fc.weight": (CLASSES, last), "fc.bias": (CLASSES,)}
    return shapes | {f"head.{name}": shape for name, shape in head.items()}


def layer_shapes(hybrid: bool) -> dict[str, tuple[int, ...]]:
    """A decoder layer's tensors in the official order."""
    kv = KV_HEADS * HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"self_attn.cross_attn_warm_up_gate": (1,)} if hybrid else {}
    for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
        shapes |= {f"self_attn.{name}_proj.weight": (rows, HIDDEN), f"self_attn.{name}_proj.bias": (rows,)}
    shapes["self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
    if hybrid:
        for name, rows in (("cross_attn_kv_proj", 2 * kv), ("cross_attn_gate_proj.0", 1)):
            shapes |= {f"self_attn.{name}.weight": (rows, HIDDEN), f"self_attn.{name}.bias": (rows,)}
    mlp = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    shapes |= {f"mlp.{name}.weight": shape for name, shape in mlp.items()}
    return shapes | {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}


def official_shapes() -> dict[str, tuple[int, ...]]:
    """All of a small official checkpoint's tensors, in the order of the real one's."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for layer in range(LAYERS):
        hybrid = layer % TINY["cross_attn_every_n_layers"] == 0
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes(hybrid).items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes |= {TOWER + name: shape for name, shape in tower_shapes().items()}
    for i, columns in ((0, WIDTHS[-1]), (2, HIDDEN)):
        shapes |= {f"model.mm_projector.{i}.weight": (HIDDEN, columns), f"model.mm_projector.{i}.bias": (HIDDEN,)}
    return shapes | {"lm_head.weight": (WORDS, HIDDEN)}


def official_weights(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Random tensors of a small official checkpoint."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in official_shapes().items():
        drawn = torch.randn(shape, generator=generator)
        scale = drawn[0].numel() ** -0.5 if len(shape) > 1 else 0.3
        weights[name] = (drawn * scale + float("norm" in name and name.endswith("weight"))).to(dtype)
    return weights


def write(folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any], shard_bytes: int | None) -> Path:
    """An official folder: shards of at most `shard_bytes`, filled in order, and their index; or one file."""
    folder.mkdir()
    shards: list[list[str]] = [[]]
    for name, tensor in weights.items():
        held = sum(weights[other].nbytes for other in shards[-1])
        if shard_bytes is not None and shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small official checkpoint, bfloat16, in shards."""
    return write(tmp_path_factory.mktemp("official") / "tiny", official_weights(), TINY, shard_bytes=30_000)


def run(model: SlowFastForConditionalGeneration) -> torch.Tensor:
    """Logits of a prompt with a video of 8 frames of noise."""
    generator = torch.Generator().manual_seed(1)
    frames_BTCHW = torch.randn(1, 8, 3, 64, 64, generator=generator)
    ids_BL = torch.tensor([[3, 4, *[IMAGE_TOKEN] * model.fast_token_count(8), 5, 6, 7]])
    with torch.no_grad():
        return model(input_ids=ids_BL, frames=frames_BTCHW).logits


# ---------------------------------------------------------------------------------------- in and out


def test_a_sharded_half_precision_checkpoint_loads_runs_and_is_exported_to_the_byte(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 2
    model = from_official(checkpoint)
    assert model.dtype == torch.bfloat16
    assert model.hybrid_layers == (0, 2)
    assert run(model).isfinite().all()
    to_official(model, tmp_path / "again", shard_size=30_000)
    assert {file.name for file in (tmp_path / "again").iterdir()} == {file.name for file in checkpoint.iterdir()}
    for file in checkpoint.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_import_and_export_on_the_command_line_are_inverse(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["import", str(checkpoint), str(tmp_path / "ours")]) == 0
    ours = SlowFastForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="auto")
    assert torch.equal(run(ours), run(from_official(checkpoint)))
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "back"), "--shard-size", "30KB"]) == 0
    for file in checkpoint.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_import_brings_the_tokenizer_and_the_official_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "official", official_weights(), TINY, shard_bytes=None)
    tokenizer().save_pretrained(source)
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    processor = SlowFastProcessor.from_pretrained(tmp_path / "ours")
    frames_THWC = np.zeros((8, 70, 90, 3), dtype=np.uint8)
    inputs = processor(text=["Where is red"], videos=[frames_THWC], times=[np.linspace(0, 1, 8)])
    model = from_official(source)
    assert (inputs["input_ids"] == IMAGE_TOKEN).sum() == model.fast_token_count(8)
    assert inputs["frames"].shape == (1, 8, 3, 64, 64)
    assert processor.chat("Where is red") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<video>\nWhere is red<|im_end|>\n<|im_start|>assistant\n"
    )


def test_float32_and_tied_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    weights = official_weights(torch.float32)
    weights.pop("lm_head.weight")
    tied = TINY | {"tie_word_embeddings": True, "torch_dtype": "float32"}
    model = from_official(write(tmp_path / "tied", weights, tied, shard_bytes=None))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    to_official(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("scale", ["gamma", "weight"])
@pytest.mark.parametrize("prefix", ["", TOWER])
def test_a_tower_may_come_in_a_file_of_its_own(tmp_path: Path, scale: str, prefix: str) -> None:
    """The official code always loads its tower from a separate file, in timm's names."""
    weights = official_weights()
    tower = {name.removeprefix(TOWER): weights.pop(name) for name in list(weights) if name.startswith(TOWER)}
    renamed = {
        prefix
        + (name.removesuffix("weight") + scale if name.split(".")[-2].isdigit() and "blocks" in name else name): t
        for name, t in tower.items()
    }
    save_file(renamed, tmp_path / "tower.safetensors")
    folder = write(tmp_path / "official", weights, TINY, shard_bytes=None)
    with pytest.raises(ValueError, match="holds no vision tower: give its safetensors file"):
        from_official(folder)
    model = from_official(folder, tower=tmp_path / "tower.safetensors")
    whole = from_official(write(tmp_path / "whole", official_weights(), TINY, shard_bytes=None))
    assert torch.equal(run(model), run(whole))
    with pytest.raises(ValueError, match="has a vision tower of its own"):
        from_official(tmp_path / "whole", tower=tmp_path / "tower.safetensors")


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    weights = official_weights()
    del weights["model.norm.weight"]
    weights["model.layers.1.self_attn.cross_attn_warm_up_gate"] = torch.zeros(1)
    weights["model.mm_projector.0.bias"] = torch.zeros(HIDDEN + 1)
    folder = write(tmp_path / "broken", weights, TINY, shard_bytes=None)
    with pytest.raises(ValueError, match="does not fit its configuration") as raised:
        from_official(folder)
    sentence = str(raised.value)
    assert "missing language_model.model.norm.weight;" in sentence
    assert "extra language_model.model.layers.1.self_attn.cross_attention.gate.warmup;" in sentence
    assert f"of another shape projector.0.bias ({HIDDEN + 1},), not ({HIDDEN},)" in sentence


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        from_official(tmp_path)
    folder = write(tmp_path / "official", official_weights(), TINY, shard_bytes=30_000)
    (folder / "model-00002-of-00004.safetensors").unlink(missing_ok=True)
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 2
    assert "is not there, though model.safetensors.index.json lists it" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- the manifest


def test_the_exporter_makes_all_tensors_of_the_7b_manifest() -> None:
    problems, counts = check_manifest(MANIFEST)
    assert not any(problems.values())
    listed = MANIFEST["parameter_counts"]
    assert sum(tensors for tensors, _ in counts.values()) == listed["total"]["tensors"] == 743
    for ours, theirs in (
        ("language model", "llm"),
        ("cross-attention", "cross_attention_extra"),
        ("vision tower", "vision_tower"),
        ("projector", "mm_projector"),
    ):
        assert counts[ours] == (listed[theirs]["tensors"], listed[theirs]["parameters"])


def test_the_exporter_keeps_the_official_order_and_configuration() -> None:
    shapes = {name: tuple(shape) for name, shape in MANIFEST["state_dict"].items()}
    config = config_of(LARGE, shapes)
    assert list(official_tensors(skeleton(config))) == list(shapes)
    assert config_to_official(config) == LARGE


def test_a_manifest_that_does_not_fit_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    listed = {name: list(shape) for name, shape in official_shapes().items()}
    del listed["model.norm.weight"]
    listed |= {"model.x": [1], "lm_head.weight": [1, HIDDEN]}
    (tmp_path / "list.json").write_text(json.dumps({"config_json": TINY, "state_dict": listed}))
    assert main(["--manifest", str(tmp_path / "list.json")]) == 1
    printed = capsys.readouterr().out
    for problem in (
        "missing model.x",
        "extra model.norm.weight",
        f"lm_head.weight ({WORDS}, {HIDDEN}), not (1, {HIDDEN})",
    ):
        assert problem in printed


# ------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("implementation", SCOPES)
@pytest.mark.parametrize("gating", GATES)
def test_every_scope_and_gating_type_goes_there_and_back(implementation: str, gating: str) -> None:
    official = LARGE | {"cross_attn_implementation": implementation, "cross_attn_gating_type": gating}
    config = config_from_official(official)
    assert config_to_official(config) == official
    config.official = None
    again = config_from_official(config_to_official(config))
    assert (again.scope, again.gate) == (config.scope, config.gate)


def test_a_change_of_ours_is_exported() -> None:
    config = config_from_official(LARGE)
    config.compressor["average_stride"], config.scope = 6, {"name": "all_tokens"}
    config.gate = {"name": "dynamic_tanh_linear_warmup"}
    assert config_to_official(config) == LARGE | {
        "fast_token_temporal_stride": 6,
        "cross_attn_implementation": "vanilla-flashattn",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llava_qwen"),
        ("mm_vision_tower", "google/siglip-so400m-patch14-384"),
        ("mm_hidden_size", 1152),
        ("mm_projector_type", "resampler"),
        ("mm_patch_merge_type", "spatial"),
        ("mm_vision_select_feature", "cls_patch"),
        ("cross_attn_implementation", "hyper"),
        ("cross_attn_gating_type", "channel-wise"),
        ("mm_use_im_start_end", True),
        ("mm_use_im_patch_token", True),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("cross_attn_kv_head_num", 14),
        ("image_aspect_ratio", "anyres"),
    ],
)
def test_an_official_value_without_a_place_here_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"The official config's {field} is .* not supported: it must be"):
        config_from_official(LARGE | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compressor", {"name": "identity"}),
        ("placement", {"name": "none"}),
        ("gate", {"name": "static_tanh"}),
        ("slow_time", {"name": "rotary"}),
        ("slow_pooling", 2),
        ("slow_frames", 8),
        ("pool_single_frame", True),
        ("vision", {"name": "tiny"}),
    ],
)
def test_an_option_that_the_official_code_lacks_is_not_exported(field: str, value: Any) -> None:
    config = config_from_official(LARGE)
    setattr(config, field, value)
    with pytest.raises(ValueError, match=f"The official code has no counterpart of {field}"):
        config_to_official(config)
