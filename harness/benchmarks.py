"""The five benchmarks in one registry: how lmms-eval runs, reads and scores each of them.

Adding a benchmark that lmms-eval knows is one entry in `BENCHMARKS`. A `doc` is a row of a benchmark's table
in its published schema; a `task` is the lmms-eval task it belongs to (MVBench has twenty, the others one).
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from harness.errors import UserError

LETTERS = string.ascii_uppercase[:5]
Doc = dict[str, Any]

MVBENCH_FOLDERS = {  # subtask -> folder of its videos, as the packaged task has it
    "action_sequence": "star/Charades_segment",
    "moving_count": "clevrer/video_validation",
    "action_prediction": "star/Charades_segment",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "scene_transition": "scene_qa/video",
    "object_shuffle": "perception/videos",
    "object_existence": "clevrer/video_validation",
    "fine_grained_pose": "nturgbd_convert",
    "unexpected_action": "FunQA_test/test",
    "moving_direction": "clevrer/video_validation",
    "state_change": "perception/videos",
    "object_interaction": "star/Charades_segment",
    "character_order": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "counterfactual_inference": "clevrer/video_validation",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "moving_attribute": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. The functions take a doc (and its task, where the doc alone does not say enough).

    Attributes:
        definitions: lmms-eval task name -> its YAML in the package's `tasks` folder, in the order they run.
        metric: the key of the score in lmms-eval's results (without ",none"); a perfect model scores `scale`.
        aggregation: what is averaged: all samples, or the accuracies of `categories` (an absent one as 0).
        hub, split: the dataset's name on the hub and the split that is evaluated.
        config_of: task -> the dataset's configuration, or None.
        video_of: path of the doc's video below HF_HOME.
        target_of: index of the right option.
    """

    name: str
    title: str
    definitions: dict[str, str]
    metric: str
    scale: int
    aggregation: Literal["samples", "categories"]
    hub: str
    split: str
    option_counts: tuple[int, ...]
    video_of: Callable[[Doc, str], str]
    target_of: Callable[[Doc], int]
    options_of: Callable[[Doc], int]
    category_of: Callable[[Doc, str], str]
    config_of: Callable[[str], str | None] = lambda task: None
    categories: tuple[str, ...] = field(default=())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The lmms-eval tasks to run."""
        return tuple(self.definitions)

    def target_letter(self, doc: Doc) -> str:
        """The right option's letter, "A" to "E"."""
        return LETTERS[self.target_of(doc)]

    def n_options(self, doc: Doc) -> int:
        """How many options the doc offers."""
        return self.options_of(doc)

    def score(self, values: Sequence[float], categories: Sequence[str]) -> float:
        """Per-sample values in 0..1 (correctness, or the chance of it) to this benchmark's score in 0..100.

        `categories` names each value's category; it matters only where the score is a mean over categories.
        """
        values_N = np.asarray(values, float)
        if len(values_N) == 0 or len(values_N) != len(categories):
            raise ValueError(f"{self.name}: {len(values_N)} values for {len(categories)} categories: give one of each")
        if self.aggregation == "samples":
            return 100 * float(values_N.mean())
        categories_N = np.asarray(categories, str)
        unknown = sorted(set(categories_N.tolist()) - set(self.categories))
        if unknown:
            raise ValueError(f"{self.name} has no category {unknown[0]!r}: use one of {', '.join(self.categories)}")
        present = set(categories_N.tolist())
        means = [values_N[categories_N == name].mean() if name in present else 0.0 for name in self.categories]
        return 100 * float(np.mean(means))

    def chance(self, n_options: Sequence[int], categories: Sequence[str]) -> float:
        """The expected score (0..100) of guessing uniformly among each sample's options."""
        return self.score(1 / np.asarray(n_options, float), categories)


def _mvbench_task(task: str) -> str:
    return task.removeprefix("mvbench_")


VIDEOMME = Benchmark(
    name="videomme",
    title="Video-MME",
    definitions={"videomme": "videomme/videomme.yaml"},
    metric="videomme_perception_score",
    scale=100,
    aggregation="samples",
    hub="lmms-eval/Video-MME",
    split="test",
    option_counts=(4,),
    video_of=lambda doc, task: f"videomme/data/{doc['videoID']}.mp4",
    target_of=lambda doc: LETTERS.index(doc["answer"]),
    options_of=lambda doc: len(doc["options"]),
    category_of=lambda doc, task: doc["task_type"],
    categories=(
        *("Temporal Perception", "Spatial Perception", "Attribute Perception", "Action Recognition"),
        *("Object Recognition", "OCR Problems", "Counting Problem", "Temporal Reasoning"),
        *("Spatial Reasoning", "Action Reasoning", "Object Reasoning", "Information Synopsis"),
    ),
)
MLVU = Benchmark(
    name="mlvu",
    title="MLVU",
    definitions={"mlvu_dev": "mlvu/mlvu_dev.yaml"},
    metric="mlvu_percetion_score",  # spelt so in lmms-eval
    scale=100,
    aggregation="categories",
    hub="sy1998/MLVU_dev",
    split="test",
    option_counts=(4,),
    video_of=lambda doc, task: f"mlvu/{doc['video_name']}",
    target_of=lambda doc: LETTERS.index(doc["answer"]),
    options_of=lambda doc: len(re.findall(r"^\([A-E]\)", doc["question"], re.MULTILINE)),
    category_of=lambda doc, task: doc["task_type"],
    categories=("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning"),
)
MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    definitions={f"mvbench_{name}": f"mvbench/mvbench_{name}.yaml" for name in MVBENCH_FOLDERS},
    metric="mvbench_accuracy",
    scale=100,
    aggregation="categories",  # the mean over its tasks, which lmms-eval leaves to its user
    hub="OpenGVLab/MVBench",
    split="train",
    option_counts=(2, 3, 4, 5),
    video_of=lambda doc, task: f"mvbench_video/{MVBENCH_FOLDERS[_mvbench_task(task)]}/{doc['video']}",
    target_of=lambda doc: doc["candidates"].index(doc["answer"]),
    options_of=lambda doc: len(doc["candidates"]),
    category_of=lambda doc, task: _mvbench_task(task),
    config_of=_mvbench_task,
    categories=tuple(MVBENCH_FOLDERS),
)
EGOSCHEMA = Benchmark(
    name="egoschema",
    title="EgoSchema",
    # The subset has public answers; the full set's task sends predictions to a server.
    definitions={"egoschema_subset": "egoschema/egoschema_subset.yaml"},
    metric="score",
    scale=1,
    aggregation="samples",
    hub="lmms-eval/egoschema",
    split="test",
    option_counts=(5,),
    video_of=lambda doc, task: f"egoschema/videos/{doc['video_idx']}.mp4",
    target_of=lambda doc: int(doc["answer"]),
    options_of=lambda doc: len(doc["option"]),
    category_of=lambda doc, task: "all",
    config_of=lambda task: "Subset",
    categories=("all",),
)
LONGVIDEOBENCH = Benchmark(
    name="longvideobench",
    title="LongVideoBench",
    definitions={"longvideobench_val_v": "longvideobench/longvideobench_val_v.yaml"},
    metric="lvb_acc",  # rounded to five decimals by lmms-eval
    scale=1,
    aggregation="samples",
    hub="longvideobench/LongVideoBench",
    split="validation",
    option_counts=(2, 3, 4, 5),
    video_of=lambda doc, task: f"datasets/longvideobench/videos/{doc['video_path']}",
    target_of=lambda doc: int(doc["correct_choice"]),
    options_of=lambda doc: sum(doc[f"option{i}"] != "N/A" for i in range(5)),
    category_of=lambda doc, task: doc["question_category"],
    categories=(
        *("S2E", "S2O", "S2A", "E2O", "O2E", "T2E", "T2O", "T2A", "E3E"),
        *("O3O", "SSS", "SOS", "SAA", "T3E", "T3O", "TOS", "TAA"),
    ),
)
BENCHMARKS = {b.name: b for b in (VIDEOMME, MLVU, MVBENCH, EGOSCHEMA, LONGVIDEOBENCH)}


def benchmark_named(name: str) -> Benchmark:
    """The registry's entry, or a UserError that lists what there is."""
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def benchmark_of_task(task: str) -> Benchmark:
    """The benchmark that an lmms-eval task belongs to, or a UserError that lists the tasks."""
    for benchmark in BENCHMARKS.values():
        if task in benchmark.definitions:
            return benchmark
    known = ", ".join(task for benchmark in BENCHMARKS.values() for task in benchmark.tasks)
    raise UserError(f"lmms-eval task {task!r} belongs to no benchmark of this harness: use one of {known}")
