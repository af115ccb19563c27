"""Every setting of the command line: its type, bounds and meaning; the values are in conf/config.yaml.

A new setting is one line here and one there; a new choice of a group is one YAML in the group's folder.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Control(Enum):
    """What is done to the slow tokens to see whether the answers depend on them."""

    none = "none"
    gate_closed = "gate_closed"
    other_video = "other_video"


def setting(meaning: str, least: int | None = None) -> Any:
    """A setting that config.yaml gives a value; `least` bounds a number, or each number of a list."""
    return field(default="???", metadata={"meaning": meaning, "least": least})


def group(meaning: str) -> Any:
    """A group: its content is the chosen YAML's, `{name: ..., option: value, ...}`."""
    return field(default_factory=dict, metadata={"meaning": meaning, "group": True})


@dataclass
class Settings:
    """The composed configuration, by name; verbs take it as their one argument."""

    seed: int = setting("of the suite's clips and of training", least=0)
    base_seeds: list[int] = setting("one base is trained for each", least=0)
    rows: list[str] = setting("of the table, each ARCHITECTURE@FRAMES")
    frames: int = setting("frames sampled uniformly from each video", least=1)
    control: Control = setting("gate_closed, other_video, or none")

    checkpoint: str | None = setting("folder of a saved model")
    suite: str | None = setting("folder of a suite; null: the one of this seed, generated if need be")
    batch_size: int = setting("questions answered together", least=1)
    workers: int = setting("threads that decode videos ahead of the model", least=1)

    benchmark: str = setting("whose sample is looked at")
    task: str | None = setting("its lmms-eval task, where the benchmark has several; null: the first")
    sample: int = setting("row in the task's table", least=0)

    jobs: int | None = setting("processes; null: what cores and memory allow; 0: none, for a debugger", least=0)
    runs_dir: str = setting("where trained and measured things go")
    results_dir: str = setting("where rows, tables and figures go")
    output: str | None = setting("file or folder of a verb that writes one; null: a place of its own")

    scale: dict[str, Any] = group("sizes of everything")
    architecture: dict[str, Any] = group("a row of the table: sets the groups below")
    selector: dict[str, Any] = group("which frames the encoder sees")
    encoder: dict[str, Any] = group("frames to features")
    compressor: dict[str, Any] = group("all tokens of a video to its fast tokens")
    slow_tokens: dict[str, Any] = group("what cross-attention reads")
    placement: dict[str, Any] = group("which layers are hybrid")
    fusion: dict[str, Any] = group("how a hybrid layer reads the slow tokens")
    gate: dict[str, Any] = group("how much cross-attention adds")
    scope: dict[str, Any] = group("which tokens cross-attend")
