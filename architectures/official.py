"""Official checkpoints (SHI-Labs repository, commit 69676a1; arXiv 2504.01328): import, export, and a check.

    python -m architectures.official import SRC DST          official folder to one of ours
    python -m architectures.official export SRC DST          and back
    python -m architectures.official --manifest FILE         our exporter's names and shapes against a list

`official_names.py` says what is called what. Files hold the tensors as they are: an import keeps half
precision, and an export of an import holds the same tensors, to the bit.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from architectures.configuration import SlowFastConfig
from architectures.official_names import (
    MODEL_TYPE,
    PROJECTOR,
    TOWER,
    config_from_official,
    config_to_official,
    tensors_from_official,
    tensors_to_official,
    tower_options,
    vision_from_official,
)
from architectures.processing import SlowFastProcessor
from architectures.video_mllm import SlowFastForConditionalGeneration

WEIGHTS, INDEX, PATTERN = "model.safetensors", "model.safetensors.index.json", "model{suffix}.safetensors"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
CONFIG = "config.json"
BARE_TOWER = ("stem.", "stages.", "head.")  # how a tower's own file begins its names
SYSTEM = "You are a helpful assistant."  # of the official conversation template "qwen_1_5"
NAMED = 3  # tensors that a message names before it counts the rest

Shapes = dict[str, tuple[int, ...]]


# ---------------------------------------------------------------------------------------------- import


def from_official(folder: str | Path, tower: str | Path | None = None) -> SlowFastForConditionalGeneration:
    """The model of an official checkpoint: `config.json` and one or several safetensors files in `folder`.

    `tower` is a safetensors file of the vision tower, for checkpoints without one (the official code always
    loads its tower from a file of its own, in timm's names). The model has the precision of most of the
    checkpoint's numbers. Raises FileNotFoundError for a file that is not there, and ValueError, in a
    sentence, for files that cannot be read, for a configuration that has no place here and for tensors that
    are missing, left over or of another shape.
    """
    folder = Path(folder)
    official = read_json(folder / CONFIG, f"an official checkpoint is a folder with {CONFIG} in it")
    if official.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise ValueError(f"{folder} holds a model of type {official['model_type']!r}: an import needs {MODEL_TYPE!r}.")
    tensors = read_tensors(folder)
    if tower is not None:
        if any(name.startswith(TOWER) for name in tensors):
            raise ValueError(f"{folder} has a vision tower of its own: leave out the separate file {tower}.")
        tensors |= read_tower(Path(tower))
    config = config_of(official, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with told_of(f"the key/value projections in {folder}"):
        ours = tensors_from_official(tensors, head_dim_of(config))
    return load(config, ours, str(folder))


def config_of(official: Mapping[str, Any], shapes: Shapes) -> SlowFastConfig:
    """Our configuration of an official one and of the shapes of its tensors, which say how big the tower is."""
    tower = {name.removeprefix(TOWER): shape for name, shape in shapes.items() if name.startswith(TOWER)}
    if not tower:
        raise ValueError("The official checkpoint holds no vision tower: give its safetensors file as well (tower).")
    with told_of("the official configuration"):
        return config_from_official(official, vision_from_official(official, tower_options(tower)))


def load(config: SlowFastConfig, tensors: dict[str, torch.Tensor], source: str) -> SlowFastForConditionalGeneration:
    """A model of `config` with exactly `tensors` (our names), in evaluation mode and most numbers' precision."""
    wanted = shapes_of(skeleton(config).state_dict())
    if config.text_config.tie_word_embeddings:
        wanted.pop("language_model.lm_head.weight", None)
        tensors.pop("language_model.lm_head.weight", None)
    problems = compare(wanted, shapes_of(tensors))
    if any(problems.values()):
        raise ValueError(f"{source} does not fit its configuration: {told(problems)}.")
    sizes = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.numel()
    dtype = sizes.most_common(1)[0][0]
    model = SlowFastForConditionalGeneration.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    return model.eval()


def skeleton(config: SlowFastConfig) -> SlowFastForConditionalGeneration:
    """The model without memory for its weights; ValueError if the configuration's values make none."""
    with told_of("the configuration"), torch.device("meta"):
        return SlowFastForConditionalGeneration(config)


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """What a value that nobody foresaw raises, as a ValueError that says what was being read."""
    kinds = (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
    try:
        yield
    except (*kinds, StrictDataclassError, SafetensorError) as problem:
        told_once = " ".join(str(problem).split()).rstrip(".")
        raise ValueError(f"Cannot make sense of {what}: {type(problem).__name__}: {told_once}.") from problem


def read_json(path: Path, needed: str) -> dict[str, Any]:
    """The object in a JSON file; `needed` completes the sentence for a file that is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: {needed}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path} is not JSON: {problem}.") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where a JSON object is needed.")
    return content


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, in one file or in the shards that its index lists."""
    if (folder / WEIGHTS).is_file():
        return read_weights(folder / WEIGHTS)
    index = read_json(folder / INDEX, f"the weights of a checkpoint are in {WEIGHTS}, or in shards that {INDEX} lists")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map from names of tensors to names of files.")
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise FileNotFoundError(f"{folder / shard} is not there, though {INDEX} lists it.")
        tensors |= read_weights(folder / shard)
    problems = compare(dict.fromkeys(weight_map, ()), dict.fromkeys(tensors, ()))
    if any(problems.values()):
        raise ValueError(f"The shards in {folder} are not what {INDEX} lists: {told(problems)}.")
    return tensors


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; ValueError for a file that is cut off or of another kind."""
    with told_of(f"the safetensors file {path}"):
        return load_file(path)


def read_tower(path: Path) -> dict[str, torch.Tensor]:
    """A vision tower's own file, under official names: its layer scales may be called `gamma` or `weight`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give the safetensors file of the vision tower.")
    tower = {}
    for name, tensor in read_weights(path).items():
        bare = name.removeprefix(TOWER)
        if not bare.startswith(BARE_TOWER):
            raise ValueError(f"{path} holds {name}: a vision tower's tensors begin with {', '.join(BARE_TOWER)}.")
        tower[TOWER + (bare.removesuffix("gamma") + "weight" if bare.endswith(".gamma") else bare)] = tensor
    return tower


# ---------------------------------------------------------------------------------------------- export


def to_official(model: SlowFastForConditionalGeneration, folder: str | Path, shard_size: int | str = "5GB") -> None:
    """Writes a model as an official checkpoint, shards of at most `shard_size` bytes (or "5GB").

    The weights of an earlier export in `folder` are replaced. Raises ValueError, in a sentence, for a model
    that the official code has no words for, and for a folder that holds any other model.
    """
    folder = Path(folder)
    official = config_to_official(model.config) | {"torch_dtype": str(model.dtype).removeprefix("torch.")}
    tensors = official_tensors(model)
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=PATTERN, max_shard_size=shard_size)
    expect_free(folder, MODEL_TYPE)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, official)
    remove_weights(folder)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def official_tensors(model: SlowFastForConditionalGeneration) -> dict[str, torch.Tensor]:
    """A model's tensors by official names, in the official order."""
    tied = model.config.text_config.tie_word_embeddings
    return tensors_to_official(model.state_dict(), head_dim_of(model.config), tied)


def expect_free(folder: Path, model_type: str) -> None:
    """Raises ValueError where a model of this type may not be written: over a file, or over another model."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder to write to.")
    has_config = (folder / CONFIG).is_file()
    found = read_json(folder / CONFIG, "").get("model_type") if has_config else None
    if found != model_type and (has_config or weight_files(folder)):
        kind = f"a model of type {found!r}" if has_config else f"weights without {CONFIG}"
        raise ValueError(f"{folder} holds {kind}, which would be overwritten: name another folder.")


def weight_files(folder: Path) -> list[Path]:
    """The files in a folder that hold or list the weights of a checkpoint."""
    if not folder.is_dir():
        return []
    return [file for file in folder.iterdir() if file.name in (WEIGHTS, INDEX) or SHARD.fullmatch(file.name)]


def remove_weights(folder: Path) -> None:
    """Removes the weights of an earlier model: other shards than the new ones, or one file that hides them."""
    for file in weight_files(folder):
        file.unlink()


def head_dim_of(config: SlowFastConfig) -> int:
    """Width of one attention head."""
    text = config.text_config
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As Hugging Face writes its configurations."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


# ----------------------------------------------------------------------------------------------- check


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def compare(wanted: Shapes, given: Shapes) -> dict[str, list[str]]:
    """What is missing, extra, or of another shape in `given`."""
    both = wanted.keys() & given.keys()
    return {
        "missing": sorted(wanted.keys() - given.keys()),
        "extra": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {given[name]}, not {wanted[name]}"
            for name in wanted
            if name in both and wanted[name] != given[name]
        ],
    }


def told(problems: dict[str, list[str]]) -> str:
    """`compare`'s result in a few words."""
    parts = []
    for kind, names in problems.items():
        if names:
            rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            parts.append(f"{kind} {', '.join(names[:NAMED])}{rest}")
    return "; ".join(parts)


def part_of(name: str) -> str:
    """The part of the model that an official tensor belongs to."""
    if name.startswith(TOWER):
        return "vision tower"
    if name.startswith(PROJECTOR):
        return "projector"
    return "cross-attention" if ".cross_attn_" in name else "language model"


def check_manifest(manifest: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, tuple[int, int]]]:
    """Our exporter's tensors against a manifest's `state_dict`, built from its `config_json` without memory.

    Returns `compare`'s result, and (tensors, parameters) of every part. Raises ValueError for a manifest
    without them.
    """
    for field in ("config_json", "state_dict"):
        if not isinstance(manifest.get(field), dict):
            raise ValueError(f"The manifest has no {field}: it must be a JSON object with config_json and state_dict.")
    with told_of("the shapes in the manifest's state_dict"):
        wanted = {name: tuple(shape) for name, shape in manifest["state_dict"].items()}
    exported = official_tensors(skeleton(config_of(manifest["config_json"], wanted)))
    counts: dict[str, tuple[int, int]] = {}
    for name, tensor in exported.items():
        tensors, parameters = counts.get(part_of(name), (0, 0))
        counts[part_of(name)] = (tensors + 1, parameters + tensor.numel())
    return compare(wanted, shapes_of(exported)), counts


def report_manifest(path: Path) -> int:
    """Prints `check_manifest`; the number of tensors that do not fit."""
    manifest = read_json(path, "give a JSON file with config_json and state_dict")
    problems, counts = check_manifest(manifest)
    print(f"{'':16} {'tensors':>8} {'parameters':>15}")
    totals = tuple(sum(column) for column in zip(*counts.values(), strict=True))
    for part, (tensors, parameters) in [*counts.items(), ("exported", totals)]:
        print(f"{part:16} {tensors:8} {parameters:15,}")
    print(f"{'listed':16} {len(manifest['state_dict']):8}")
    for kind, names in problems.items():
        print(f"{kind:16} {len(names):8}")
    if any(problems.values()):
        print(told(problems) + ".")
    return sum(map(len, problems.values()))


# ---------------------------------------------------------------------------------------- command line


def import_folder(source: Path, target: Path, tower: Path | None) -> None:
    """An official folder to one of ours, with a processor if the tokenizer's files are there."""
    expect_free(target, SlowFastConfig.model_type)
    model = from_official(source, tower)
    target.mkdir(parents=True, exist_ok=True)
    remove_weights(target)
    model.save_pretrained(target)
    if any((source / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        SlowFastProcessor.for_model(model.config, model.encoder, tokenizer, system=SYSTEM).save_pretrained(target)


def own_model(folder: Path) -> SlowFastForConditionalGeneration:
    """The model in a folder of ours, with exactly its configuration's tensors and in their precision.

    Raises FileNotFoundError or ValueError, in a sentence, for a folder that does not hold one that the
    official code has words for; this comes before the weights are read.
    """
    content = read_json(folder / CONFIG, f"an export needs a folder of ours, with {CONFIG} in it")
    if content.get("model_type") != SlowFastConfig.model_type:
        found = content.get("model_type")
        raise ValueError(f"{folder} holds a model of type {found!r}: an export needs {SlowFastConfig.model_type!r}.")
    with told_of(f"the configuration in {folder}"):
        config = SlowFastConfig.from_dict(content)
        config_to_official(config)
    return load(config, read_tensors(folder), str(folder))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m architectures.official", description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", type=Path, help="a JSON with config_json and state_dict (names and shapes)")
    verbs = parser.add_subparsers(dest="verb")
    for verb, help_text in (("import", "official folder to ours"), ("export", "ours to an official folder")):
        command = verbs.add_parser(verb, help=help_text)
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
        if verb == "import":
            command.add_argument("--tower", type=Path, help="safetensors of the vision tower, if the folder has none")
        else:
            command.add_argument("--shard-size", default="5GB")
    given = parser.parse_args(arguments)
    if (given.manifest is None) == (given.verb is None):
        parser.error("give either --manifest FILE, or one of import and export")
    try:
        if given.manifest is not None:
            return 1 if report_manifest(given.manifest) else 0
        if given.verb == "import":
            import_folder(given.source, given.target, given.tower)
        else:
            expect_free(given.target, MODEL_TYPE)
            to_official(own_model(given.source), given.target, given.shard_size)
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
