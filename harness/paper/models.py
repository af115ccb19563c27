"""The models that the table can have rows of: one YAML each in conf/model, or a YAML of the user's own.

A model is `released` (an official checkpoint, imported before it is scored), `ours` (a folder of our own training, or
any folder in the official layout) or `external` (one of lmms-eval's own models, which its command line runs).
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.compose import CONF, closest_first
from harness.errors import UserError
from harness.real.checkpoints import CONFIG, Checkpoint, tower_of
from harness.real.fetch import MODELS

FOLDER = CONF / "model"
CHECKPOINT = "checkpoint"  # the model whose folder is typed
SAYS_NOTHING = re.compile(r"model|final|last|latest|checkpoints?(-\d+)?")  # names that every training's folders have


class Published(BaseModel):
    """A model's name in results/published, and how its numbers there were made; null or absent: not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    made_with: dict[str, str | int | None] = Field(default_factory=dict)


class ModelSpec(BaseModel):
    """One row's model.

    Attributes:
        name: names the row; the same model at other settings is another row.
        frames: frames of a video, at most.
        hub: repository of the weights on the hub; they lie in DATA/models/<hub>.
        tower: file below DATA/models with the vision tower, for a checkpoint that holds none.
        settings: words of the command line that make its configuration at 7B, for plans.
        lmms_model, model_args, frames_argument: `--model`, `--model_args` and which of these is the number of frames.
        folder: where the checkpoint is, if not below DATA/models.
        published: what it is called in results/published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    title: str
    kind: Literal["released", "ours", "external"]
    frames: int | None = Field(None, ge=1)
    hub: str | None = None
    tower: str | None = None
    settings: tuple[str, ...] = ()
    lmms_model: str | None = None
    model_args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    frames_argument: str | None = None
    folder: Path | None = None
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "ModelSpec":
        needed = {"released": ("frames", "hub"), "ours": (), "external": ("frames", "lmms_model")}[self.kind]
        missing = [field for field in needed if getattr(self, field) is None]
        if missing:
            raise ValueError(f"a model of kind {self.kind} needs {' and '.join(missing)}")
        return self

    @property
    def is_external(self) -> bool:
        """Whether lmms-eval's own code runs it."""
        return self.kind == "external"

    def at(self, data: Path | None) -> Path | None:
        """Where its weights are, or belong; None where only the hub knows."""
        if self.folder is not None or data is None or self.hub is None:
            return self.folder
        return data / MODELS / self.hub

    def arguments(self, data: Path | None) -> dict[str, Any]:
        """lmms-eval's `--model_args`: weights from DATA/models if they are there, else by their name on the hub."""
        here = self.at(data)
        weights = str(here) if here is not None and here.is_dir() else self.hub
        frames = {} if self.frames_argument is None else {self.frames_argument: self.frames}
        return {**({} if weights is None else {"pretrained": weights}), **self.model_args, **frames}


def model_names() -> list[str]:
    """The names of the models in conf/model."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_model(name: str) -> ModelSpec:
    """The model of a name in conf/model, or of a YAML file; UserError for another name, or a file that is none."""
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"models: there is no '{name}'; choose among {closest_first(name, model_names())}, or a YAML")
    try:
        return ModelSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path} describes no model: {_first(error)}; see {FOLDER}/released_64.yaml") from error


def own_model(folder: Path, frames: int) -> ModelSpec:
    """The row of the checkpoint in `folder`: its name is the folder's; UserError if there is none.

    With that of the folder around it where it says nothing: rows of one name take each other's place.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"checkpoint={folder}: no folder of a saved model (it has no {CONFIG}); name one that has")
    spec = load_model(CHECKPOINT)
    path = folder.resolve()
    parts = [path.name]
    while SAYS_NOTHING.fullmatch(parts[0]) and path.parent.name:
        path = path.parent
        parts.insert(0, path.name)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", "_".join(parts))
    return spec.model_copy(update={"name": name, "frames": frames, "folder": folder.resolve()})


def is_official(folder: Path) -> bool:
    """Whether a checkpoint is in the official layout, and must be imported."""
    from architectures.official_names import MODEL_TYPE

    return read_config(folder).get("model_type") == MODEL_TYPE


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; UserError if it is not there or no JSON."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no checkpoint (no {CONFIG}): download it, or name another folder") from error
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not JSON ({error}): download it again") from error


def tower_for(spec: ModelSpec, folder: Path, data: Path) -> Path | None:
    """The file of the vision tower that an import of `folder` needs; None if the checkpoint holds one.

    Raises UserError if it holds none and no file is there.
    """
    given = None if spec.tower is None else data / MODELS / spec.tower
    tower = tower_of(Checkpoint(folder, given, spec.name))
    if tower is None or tower.is_file():
        return tower
    raise UserError(f"{folder} holds no vision tower: put the official code's file of it at {tower}")


def tower_shapes(folder: Path, tower: Path | None) -> dict[str, tuple[int, ...]]:
    """The shapes of an official vision tower's tensors, by official names; no weights are read."""
    from safetensors import safe_open

    from architectures.official_names import TOWER

    files = sorted(folder.glob("*.safetensors")) if tower is None else [tower]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as content:
            wanted = [name for name in content.keys() if tower is not None or name.startswith(TOWER)]  # noqa: SIM118
            shapes |= {TOWER + name.removeprefix(TOWER): tuple(content.get_slice(name).get_shape()) for name in wanted}
    return shapes


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    return str(error).replace("\n", " ")
