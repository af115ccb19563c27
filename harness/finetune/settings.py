"""The settings of training at paper scale (conf/finetune.yaml), beside the groups that every verb has."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from harness.settings import Groups, Precision, Root, group, setting


class Launch(Enum):
    """Who starts the processes: nobody (this one, or whoever started it), torchrun, deepspeed, or a SLURM script."""

    here = "here"
    torchrun = "torchrun"
    deepspeed = "deepspeed"
    slurm = "slurm"


@dataclass
class FinetuneSettings(Groups):
    """The composed configuration of the verb `finetune`."""

    recipe: dict[str, Any] = group("a stage of training: which parts, at which rates, for how long")
    zero: dict[str, Any] = group("what DeepSpeed shards; none: no DeepSpeed")
    experiment: dict[str, Any] = group("a model of the paper's comparison: sets architecture, strides and frames")

    seed: int = setting("of the data's order, and of new weights")
    start: str | None = setting("folder of a saved model of ours that training starts from")
    decoder: str | None = setting("in place of start: folder of a language model in Hugging Face's layout")
    vision: str | None = setting("with decoder: safetensors file of the vision tower")
    annotations: list[str] | None = setting("annotation files, each FILE or FILE:WEIGHT")
    media: str | None = setting("folder that the annotations' videos and images are in; null: the annotations' own")

    frames: int = setting("at most so many frames of a video", least=1)
    fps: float | None = setting("frames per second of a video, between min_frames and frames; null: always frames")
    min_frames: int = setting("at least so many frames of a video, if it has them", least=1)
    per_video: int = setting("conversations about one video that are packed into its row; 1: a row for each", least=1)
    features: str | None = setting("folder that keeps a frozen encoder's features; null: encoded at every step")
    workers: int = setting("processes that decode ahead of each trainer; 0: none", least=0)

    dtype: Precision | None = setting("of weights and activations; null: bfloat16 on a GPU, float32 on a CPU")
    checkpointing: bool = setting("compute activations again in the backward pass instead of keeping them")
    steps: int | None = setting("optimiser steps; null: as many as the recipe's epochs have", least=1)
    save_every: int = setting("steps between checkpoints; a killed run repeats at most so many", least=1)
    keep: int = setting("newest checkpoints that are kept", least=2)
    log_every: int = setting("steps between entries of the log", least=1)
    report_to: list[str] | None = setting("where the log goes as well: tensorboard, wandb, trackio")
    online: bool = setting("whether reports may leave this machine; false: they are written to its disk only")

    launch: Launch = setting("who starts the processes: here, torchrun, deepspeed, or slurm, which writes a script")
    processes: int = setting("processes per node that launch starts, one per GPU", least=1)
    nodes: int = setting("nodes of the SLURM script", least=1)
    partition: str | None = setting("SLURM partition")
    minutes: int = setting("SLURM time of the job", least=1)
    gigabytes: int = setting("SLURM memory per node", least=1)

    dry_run: bool = setting("print what would be trained and the memory it needs, and train nothing")
    runs_dir: str = setting("where checkpoints and models go, under finetune/")
    output: str | None = setting("folder of the trained model; null: one of its own in runs_dir")


FINETUNE = Root("finetune", FinetuneSettings)
