"""From a checkpoint's folder to a model that answers: on a device, in a precision."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from harness.errors import UserError
from harness.stages import DESCRIPTION

PRECISIONS = ("bfloat16", "float16", "float32")


def checkpoint_folder(pretrained: str | Path) -> Path:
    """The folder; UserError unless it is a checkpoint's."""
    folder = Path(pretrained)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint folder (no config.json in it): set pretrained=FOLDER")
    return folder


def load_model(folder: Path, device: torch.device, dtype: str | None) -> tuple[Any, Any]:
    """(model, processor) of a checkpoint, ready to answer; `dtype`: one of PRECISIONS, None: as it was saved.

    UserError for an unknown precision, or a model that cannot be evaluated here.
    """
    from architectures import SlowFastForConditionalGeneration, SlowFastProcessor

    if dtype is not None and dtype not in PRECISIONS:
        raise UserError(f"dtype={dtype!r}: use one of {', '.join(PRECISIONS)}, or none for the checkpoint's own")
    precision = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    model = SlowFastForConditionalGeneration.from_pretrained(folder, local_files_only=True, **precision)
    model = model.to(device).eval()
    if model.selector.needs_question:
        raise UserError(
            f"the model in {folder} selects frames by the question ({model.config.selector['name']}), but a video is "
            "encoded once here for all of its questions: use a selector that sees the video alone"
        )
    return model, SlowFastProcessor.from_pretrained(folder, local_files_only=True)


def device_name(device: torch.device) -> str:
    """What a device is, as far as it shapes numbers: "cpu", or the GPU's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def hash_checkpoint(folder: Path) -> str:
    """sha256 over the files of a checkpoint that make its answers (names and contents).

    Not over how long its training took: the same weights, trained again, are the same checkpoint.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".json", ".jinja", ".txt", ".model"} and path.name != DESCRIPTION:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
