"""Checkpoints that are damaged, of another kind or in the way: one sentence each, and nothing lost or made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_official_checkpoints import LARGE, TINY, official_weights, write

from architectures.official import check_manifest, from_official, main, to_official
from architectures.official_names import config_from_official

SHARD_BYTES = 30_000  # makes several shards of the small checkpoint
INDEX, FIRST = "model.safetensors.index.json", "model-00001-of-*.safetensors"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small official checkpoint in shards."""
    return write(tmp_path_factory.mktemp("official") / "tiny", official_weights(), TINY, SHARD_BYTES)


@pytest.fixture(scope="module")
def ours(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, imported."""
    folder = tmp_path_factory.mktemp("ours") / "tiny"
    assert main(["import", str(official), str(folder)]) == 0
    return folder


def duplicate(source: Path, target: Path) -> Path:
    """A copy of a folder, to be damaged."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def refused(capsys: pytest.CaptureFixture, *arguments: Any) -> str:
    """The one line that the command prints as it fails."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def edited(path: Path, change: Callable[[dict], Any]) -> None:
    """Changes a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------- import


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "num_attention_heads",
        "fast_token_temporal_sampling_stride",
        "fast_token_temporal_stride",
        "fast_token_spatial_stride",
        "cross_attn_every_n_layers",
    ],
)
def test_a_size_or_stride_is_never_assumed(field: str) -> None:
    without = {name: value for name, value in LARGE.items() if name != field}
    with pytest.raises(ValueError, match=f"^The official config's {field} is missing: it must be an integer of at "):
        config_from_official(without)
    for value in (0, -1, 2.5, "4", True, None, [4]):
        with pytest.raises(ValueError, match=f"^The official config's {field} is .*: it must be an integer of at "):
            config_from_official(LARGE | {field: value})


@pytest.mark.parametrize("kind", ["linear", "mlp0x_gelu", ["mlp2x_gelu"], None])
def test_a_projector_of_another_kind_is_refused_and_so_is_an_absent_one(kind: Any) -> None:
    """Where the field is absent the official code builds its "linear", whose tensors have other names."""
    with pytest.raises(ValueError, match=r"mm_projector_type is .* not supported: it must be mlp2x_gelu"):
        config_from_official(LARGE | {"mm_projector_type": kind})
    with pytest.raises(ValueError, match="mm_projector_type is None, which is not supported"):
        config_from_official({name: value for name, value in LARGE.items() if name != "mm_projector_type"})


def cut(file: Path) -> None:
    """Leaves half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "config.json").write_text("[1]"), "config.json holds a list where a JSON object is needed"),
        (lambda d: (d / "config.json").write_text('{"hidden_size": '), "config.json is not JSON"),
        (lambda d: (d / "config.json").unlink(), "config.json is not there: an official checkpoint is a folder"),
        (lambda d: edited(d / "config.json", lambda c: c.pop("hidden_size")), "hidden_size is missing"),
        (lambda d: edited(d / "config.json", lambda c: c.update(intermediate_size=50)), "does not fit its conf"),
        (lambda d: edited(d / "config.json", lambda c: c.update(num_attention_heads=3)), "key/value projections"),
        (lambda d: edited(d / "config.json", lambda c: c.update(hidden_act=["silu"])), "the official configuration"),
        (lambda d: edited(d / "config.json", lambda c: c.update(hidden_act="?")), "Cannot make sense of the config"),
        (lambda d: edited(d / "config.json", lambda c: c.update(model_type="qwen2")), "a model of type 'qwen2'"),
        (lambda d: edited(d / INDEX, lambda c: c.pop("weight_map")), f"{INDEX} has no weight_map"),
        (lambda d: edited(d / INDEX, lambda c: c.update(weight_map={"x": 1})), f"{INDEX} has no weight_map"),
        (lambda d: (d / INDEX).unlink(), f"{INDEX} is not there: the weights of a checkpoint are in"),
        (lambda d: cut(next(d.glob(FIRST))), "Cannot make sense of the safetensors file"),
    ],
)
def test_a_damaged_official_folder_is_told_in_a_line(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture, damage: Callable[[Path], Any], sentence: str
) -> None:
    folder = duplicate(official, tmp_path / "damaged")
    damage(folder)
    assert sentence in refused(capsys, "import", folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    with pytest.raises((ValueError, FileNotFoundError), match=r"^[^\n]*$"):
        from_official(folder)


def test_an_import_writes_over_no_file_and_no_other_model(
    official: Path, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("kept")
    assert "is a file: name a folder" in refused(capsys, "import", official, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    before = {file.name: file.read_bytes() for file in official.iterdir()}
    assert "which would be overwritten" in refused(capsys, "import", official, official)
    assert {file.name: file.read_bytes() for file in official.iterdir()} == before
    assert "holds a model of type 'slow_fast_video_mllm'" in refused(capsys, "import", ours, tmp_path / "again")


# ------------------------------------------------------------------------------------------------- export


def test_a_second_export_replaces_the_first(official: Path, tmp_path: Path) -> None:
    """One file first, then shards, then one file: each time what is read is what was written last."""
    model = from_official(official)
    folder = tmp_path / "export"
    (folder / "logs").mkdir(parents=True)
    (folder / "notes-model.safetensors").write_text("kept")
    for number, shard_size in enumerate(("5GB", SHARD_BYTES, "40KB", "5GB")):
        with torch.no_grad():
            model.language_model.model.norm.weight.fill_(float(number))
        to_official(model, folder, shard_size)
        assert (from_official(folder).language_model.model.norm.weight == number).all()
        listed = {*json.loads((folder / INDEX).read_text())["weight_map"].values()} if number in (1, 2) else set()
        weights = listed | {INDEX} if listed else {"model.safetensors"}
        kept = {"config.json", "logs", "notes-model.safetensors"}
        assert {file.name for file in folder.iterdir()} == weights | kept


def test_an_export_writes_over_no_file_and_no_other_model(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("kept")
    assert "is a file: name a folder" in refused(capsys, "export", ours, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    before = {file.name: file.read_bytes() for file in ours.iterdir()}
    assert "which would be overwritten" in refused(capsys, "export", ours, ours)
    assert {file.name: file.read_bytes() for file in ours.iterdir()} == before
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_text("kept")
    assert "holds weights without config.json" in refused(capsys, "export", ours, tmp_path / "weights")
    assert (tmp_path / "weights" / "model.safetensors").read_text() == "kept"


def test_only_a_folder_of_ours_is_exported(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sentence = "holds a model of type 'llava_qwen_slow_fast': an export needs 'slow_fast_video_mllm'"
    assert sentence in refused(capsys, "export", official, tmp_path / "export")
    nowhere = tmp_path / "nowhere"
    assert "an export needs a folder of ours" in refused(capsys, "export", nowhere, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def drop(file: Path, part: str) -> None:
    """Removes the first tensor with `part` in its name."""
    tensors = load_file(file)
    tensors.pop(next(name for name in sorted(tensors) if part in name))
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda d: drop(d / "model.safetensors", "cross_attention.k_proj"),
            "missing language_model.model.layers.0.self_attn.cross_attention.k_proj.bias",
        ),
        (
            lambda d: save_file(load_file(d / "model.safetensors") | {"x": torch.ones(1)}, d / "model.safetensors"),
            "does not fit its configuration: extra x.",
        ),
        (lambda d: (d / "model.safetensors").unlink(), "is not there: the weights of a checkpoint are in"),
        (lambda d: cut(d / "model.safetensors"), "Cannot make sense of the safetensors file"),
        (lambda d: edited(d / "config.json", lambda c: c.update(text_config=[])), "text_config is [], must be"),
        (lambda d: edited(d / "config.json", lambda c: c.update(slow_frames=8)), "no counterpart of slow_frames"),
    ],
)
def test_a_damaged_folder_of_ours_is_told_in_a_line(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture, damage: Callable[[Path], Any], sentence: str
) -> None:
    folder = duplicate(ours, tmp_path / "damaged")
    damage(folder)
    assert sentence in refused(capsys, "export", folder, tmp_path / "export")
    assert not (tmp_path / "export").exists()


# ------------------------------------------------------------------------------------------------- manifest


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps({"config_json": TINY}), "The manifest has no state_dict"),
        (json.dumps({"state_dict": {}}), "The manifest has no config_json"),
        (json.dumps({"config_json": TINY, "state_dict": {"model.norm.weight": 4}}), "shapes in the manifest"),
        ("[]", "list.json holds a list"),
        ("?", "list.json is not JSON"),
        (None, "list.json is not there: give a JSON file with config_json and state_dict"),
    ],
)
def test_a_damaged_manifest_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: str | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "list.json").write_text(content)
        if content.startswith("{"):
            with pytest.raises(ValueError, match=sentence):
                check_manifest(json.loads(content))
    assert sentence in refused(capsys, "--manifest", tmp_path / "list.json")
