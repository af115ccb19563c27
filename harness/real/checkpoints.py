"""Is a saved model complete? Looked at without loading it: files, their headers, names of tensors.

Works for folders of ours, for checkpoints in the official layout (whose vision tower may be a file of its own), and
for any other model that is saved as safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOWER_FILE = "vision_tower.safetensors"  # in a checkpoint's folder: its vision tower, if not among its tensors
OFFICIAL_TYPE = "llava_qwen_slow_fast"
OFFICIAL_TOWER = "model.vision_tower."  # how the names of a vision tower's tensors begin in an official checkpoint
TOWER_STARTS = ("stem.", "stages.", "head.", OFFICIAL_TOWER)  # and in a file of its own
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
"""Files that make a tokenizer, one set of them being enough."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a saved model and, if need be, the file of its vision tower; `model` is its name in conf/model."""

    folder: Path
    tower: Path | None = None
    model: str | None = None


@dataclass(frozen=True)
class Fault:
    """A part of a checkpoint that is missing or broken: config, weights, tokenizer or vision file."""

    part: str
    detail: str


def faults(checkpoint: Checkpoint) -> list[Fault]:
    """What keeps a checkpoint from being loaded, every fault that can be seen without loading it."""
    folder = checkpoint.folder
    if not folder.is_dir():
        return [Fault("folder", f"{folder} is not there")]
    config, problem = _json(folder / CONFIG)
    found = [Fault("config", problem)] if problem else []
    names, broken = _weights(folder)
    found += [Fault("weights", detail) for detail in broken]
    if not any(all((folder / file).is_file() for file in files) for files in TOKENIZERS):
        wanted = ", or ".join(" and ".join(files) for files in TOKENIZERS)
        found.append(Fault("tokenizer", f"{folder} has no {wanted}"))
    if config.get("model_type") == OFFICIAL_TYPE and names and not _has_tower(names):
        found += [Fault("vision file", detail) for detail in _tower_faults(checkpoint)]
    return found


def tower_of(checkpoint: Checkpoint) -> Path | None:
    """The file of an official checkpoint's vision tower: the given one, or the one that lies beside its shards.

    None if the shards hold the tower themselves, or if no such file is known of.
    """
    index, _ = _json(checkpoint.folder / INDEX)
    listed = {WEIGHTS, *map(str, index.get("weight_map", {}).values())}
    if _has_tower(set(index.get("weight_map", {})) or _tensors(checkpoint.folder / WEIGHTS)):
        return None
    if checkpoint.tower is not None and checkpoint.tower.is_file():
        return checkpoint.tower
    others = [file for file in sorted(checkpoint.folder.glob("*.safetensors")) if file.name not in listed]
    towers = [file for file in others if any(name.startswith(TOWER_STARTS) for name in _tensors(file))]
    return (towers or others or [checkpoint.tower])[0]


def _has_tower(names: set[str]) -> bool:
    return any(name.startswith(OFFICIAL_TOWER) for name in names)


def _tower_faults(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with the vision tower's own file."""
    tower = tower_of(checkpoint)
    if tower is None:
        return [f"the shards in {checkpoint.folder} hold no vision tower, and there is no file of it"]
    if not tower.is_file():
        return [f"{tower} is not there, and the shards in {checkpoint.folder} hold no vision tower"]
    names, problem = _open(tower)
    if problem:
        return [problem]
    return [] if all(name.startswith(TOWER_STARTS) for name in names) else [f"{tower} holds more than a vision tower"]


def _weights(folder: Path) -> tuple[set[str], list[str]]:
    """The names of all tensors of a checkpoint's weights, and what is wrong with their files."""
    if (folder / WEIGHTS).is_file():
        names, problem = _open(folder / WEIGHTS)
        return names, [problem] if problem else []
    if not (folder / INDEX).is_file():
        other = sorted(folder.glob("pytorch_model*.bin"))
        return set(), [f"{folder} has neither {WEIGHTS} nor {INDEX}" + (f", only {other[0].name}" if other else "")]
    index, problem = _json(folder / INDEX)
    weight_map = index.get("weight_map")
    if problem or not isinstance(weight_map, dict) or not weight_map:
        return set(), [problem or f"{folder / INDEX} has no weight_map"]
    wanted: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        wanted.setdefault(str(shard), set()).add(name)
    problems = [problem for shard, names in sorted(wanted.items()) if (problem := _shard(folder / shard, names))]
    return set(weight_map), problems


def _shard(file: Path, wanted: set[str]) -> str:
    """What is wrong with a shard that should hold these tensors; "" if nothing is."""
    if not file.is_file():
        return f"{file} is not there, though {INDEX} lists it"
    names, problem = _open(file)
    if not problem and (lacking := sorted(wanted - names)):
        problem = f"{file} lacks {lacking[0]}" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else "")
    return problem


def _tensors(file: Path) -> set[str]:
    return _open(file)[0] if file.is_file() else set()


def _open(file: Path) -> tuple[set[str], str]:
    """The names in a safetensors file, and why it cannot be read; its length is checked against its header."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return set(opened.keys()), ""
    except (SafetensorError, OSError) as error:
        return set(), f"{file} is not a readable safetensors file, or cut off ({error})"


def _json(file: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file, and why there is none."""
    if not file.is_file():
        return {}, f"{file} is not there"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return {}, f"{file} is not JSON ({error})"
    return (content, "") if isinstance(content, dict) else ({}, f"{file} holds no JSON object")
