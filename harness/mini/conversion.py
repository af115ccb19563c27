"""What the plug-and-play study asks of training: which parameters train, and the model after certain steps."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import ProcessorMixin

from architectures import SlowFastForConditionalGeneration
from harness.progress import Progress

TRAINS = ("all", "new")


def new_parameters(model: nn.Module, base: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a converted model that the model it was made of does not have, by name."""
    known = {name for name, _ in base.named_parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if name not in known}


def choose_trained(model: SlowFastForConditionalGeneration, base: nn.Module, trains: str) -> dict[str, int]:
    """Leaves only the "new" parameters trainable, or "all" but the encoder's; returns counts of parameters.

    Raises ValueError for another word, or if there are no new parameters to train.
    """
    if trains not in TRAINS:
        raise ValueError(f"trains is '{trains}': choose one of {', '.join(TRAINS)}.")
    new = new_parameters(model, base)
    if trains == "new" and not new:
        raise ValueError("Only new parameters were to be trained, but the variant adds none to its base.")
    if trains == "new":
        model.requires_grad_(False)
        for parameter in new.values():
            parameter.requires_grad_(True)
    model.encoder.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen = {"trained": trained, "new": new.values(), "parameters": model.parameters()}
    return {f"n_{name}": sum(parameter.numel() for parameter in some) for name, some in chosen.items()}


class Snapshots:
    """Keeps a model in training as it is after certain steps, each as a folder that `from_pretrained` reads."""

    def __init__(self, model: nn.Module, processor: ProcessorMixin, out: Path, steps: Sequence[int]):
        self.model, self.processor, self.out, self.steps = model, processor, out, steps

    def take(self, step: int) -> None:
        """Keeps the model if `step` is wanted; one that an attempt before a kill took is the same, and stays."""
        final = snapshot_folder(self.out, step)
        if step not in self.steps or final.is_dir():
            return
        work = final.with_name(f".{final.name}.work")
        shutil.rmtree(work, ignore_errors=True)  # torn by a kill
        self.model.save_pretrained(work)
        self.processor.save_pretrained(work)
        work.rename(final)


def snapshot_folder(out: Path, step: int) -> Path:
    """Where a stage's model after so many steps is."""
    return out / f"step-{step}"


def snapshot_scores_stage(out: Path, progress: Progress, checkpoint: Path, step: int, **evaluation: Any) -> None:
    """`scores_stage` of the model that the stage in the folder `checkpoint` had after `step` steps."""
    from harness.table_stages import scores_stage

    scores_stage(out, progress, snapshot_folder(checkpoint, step), **evaluation)
