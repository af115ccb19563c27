"""The five benchmarks in one registry: how lmms-eval runs, reads and scores each of them.

`BENCHMARKS` is what the mini suite has and the average is taken over; `harness.further_benchmarks` has those that are
only run on real data, and `all_benchmarks` both. Adding a benchmark that lmms-eval knows is one entry. A `doc` is a
row of a benchmark's table in its published schema; a `task` is the lmms-eval task it belongs to (MVBench has twenty,
the others one).
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
        columns: what the packaged task and this entry read of a doc; a table may have more.
        video_of: path of the doc's video below HF_HOME.
        endings: of video files, in the order in which the packaged task looks for them, `video_of` having the first;
            none where the doc names the file in full.
        target_of: index of the right option; None where the table has no answer, or there are no options.
        options_of: how many options a doc offers; 0 where the answer is open.
        option_counts: what `options_of` may give.
        right: whether the packaged task's per-sample metric counts an answer as right; None where it does not say.
        category_of, categories: the doc's category, and which there are; no `categories` where they are free.
        judge: every answer is scored by a language model that the packaged task asks over the network.
        letters_only: the packaged task asks such a judge about any answer that does not begin with a letter, so it is
            to be given the letter alone.
        submission: the answers are not public: predictions are written to a file (`harness.submission`).
    """

    name: str
    title: str
    definitions: dict[str, str]
    metric: str
    scale: int
    aggregation: Literal["samples", "categories"]
    hub: str
    split: str
    columns: tuple[str, ...]
    option_counts: tuple[int, ...]
    video_of: Callable[[Doc, str], str]
    target_of: Callable[[Doc], int | None]
    options_of: Callable[[Doc], int]
    category_of: Callable[[Doc, str], str]
    right: Callable[[Any], bool] | None
    config_of: Callable[[str], str | None] = lambda task: None
    categories: tuple[str, ...] = field(default=())
    endings: tuple[str, ...] = ()
    judge: bool = False
    letters_only: bool = False
    submission: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """The lmms-eval tasks to run."""
        return tuple(self.definitions)

    def target_letter(self, doc: Doc) -> str | None:
        """The right option's letter, "A" to "E"; None where the doc does not say or has no options."""
        target = self.target_of(doc)
        return None if target is None else LETTERS[target]

    def n_options(self, doc: Doc) -> int:
        """How many options the doc offers; 0 where the answer is open."""
        return self.options_of(doc)

    def find_video(self, doc: Doc, task: str, home: Path) -> Path | None:
        """The doc's video below `home` (HF_HOME) as the packaged task finds it; None if there is none."""
        path = home / self.video_of(doc, task)
        stem = path.name.removesuffix(self.endings[0]) if self.endings else ""
        others = (path.with_name(stem + ending) for ending in self.endings[1:])
        return next((found for found in (path, *others) if found.exists()), None)

    def is_correct(self, value: Any) -> bool:
        """Whether a per-sample value of `metric`, as lmms-eval keeps it, counts as right.

        Raises UserError where the packaged task does not know the answers.
        """
        if self.right is None:
            raise UserError(f"{self.name}: its answers are not public, so that no sample can be called right or wrong")
        return bool(self.right(value))

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
        """The expected score (0..100) of guessing uniformly among each sample's options; 0 where there are none."""
        n_options_N = np.asarray(n_options, float)
        return self.score(np.where(n_options_N > 0, 1 / np.maximum(n_options_N, 1), 0), categories)


def lettered_lines(question: str, mark: str) -> int:
    """How many lines of a question begin with a letter A to E in the form of `mark`, such as "({})" or "{}."."""
    letter = re.escape(mark).replace(re.escape("{}"), "[A-E]")
    return len(re.findall(f"^{letter}", question, re.MULTILINE))


def _mvbench_task(task: str) -> str:
    return task.removeprefix("mvbench_")


def _mvbench_target(doc: Doc) -> int:
    if doc["answer"] not in doc["candidates"]:
        raise UserError(
            f"MVBench: the answer {doc['answer']!r} about {doc['video']} is none of {doc['candidates']}; "
            "restore the table"
        )
    return doc["candidates"].index(doc["answer"])


VIDEOMME = Benchmark(
    name="videomme",
    title="Video-MME",
    definitions={"videomme": "videomme/videomme.yaml"},
    metric="videomme_perception_score",
    scale=100,
    aggregation="samples",
    hub="lmms-eval/Video-MME",
    split="test",
    columns=(
        *("videoID", "question_id", "duration", "domain", "sub_category", "task_type"),
        *("question", "options", "answer"),
    ),
    option_counts=(4,),
    video_of=lambda doc, task: f"videomme/data/{doc['videoID']}.mp4",
    target_of=lambda doc: LETTERS.index(doc["answer"]),
    options_of=lambda doc: len(doc["options"]),
    category_of=lambda doc, task: doc["task_type"],
    right=lambda value: value["pred_answer"] == value["answer"],
    endings=(".mp4", ".MP4", ".mkv"),
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
    columns=("video_name", "question", "answer", "task_type"),
    option_counts=(4,),
    video_of=lambda doc, task: f"mlvu/{doc['video_name']}",
    target_of=lambda doc: LETTERS.index(doc["answer"]),
    options_of=lambda doc: lettered_lines(doc["question"], "({})"),
    category_of=lambda doc, task: doc["task_type"],
    right=lambda value: value["pred_answer"] == value["answer"],
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
    columns=("video", "question", "candidates", "answer"),
    option_counts=(2, 3, 4, 5),
    video_of=lambda doc, task: f"mvbench_video/{MVBENCH_FOLDERS[_mvbench_task(task)]}/{doc['video']}",
    target_of=_mvbench_target,
    options_of=lambda doc: len(doc["candidates"]),
    category_of=lambda doc, task: _mvbench_task(task),
    right=lambda value: value["score"] == 1,
    config_of=_mvbench_task,
    categories=tuple(MVBENCH_FOLDERS),
)
EGOSCHEMA = Benchmark(
    name="egoschema",
    title="EgoSchema",
    # The subset has public answers; the full set's are a server's (harness.further_benchmarks).
    definitions={"egoschema_subset": "egoschema/egoschema_subset.yaml"},
    metric="score",
    scale=1,
    aggregation="samples",
    hub="lmms-eval/egoschema",
    split="test",
    columns=("video_idx", "question", "option", "answer"),
    option_counts=(5,),
    video_of=lambda doc, task: f"egoschema/videos/{doc['video_idx']}.mp4",
    target_of=lambda doc: int(doc["answer"]),
    options_of=lambda doc: len(doc["option"]),
    category_of=lambda doc, task: "all",
    right=lambda value: str(value["pred"]) == str(value["ground_truth"]),
    endings=(".mp4", ".MP4"),
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
    columns=(
        *("id", "video_path", "question", "option0", "option1", "option2", "option3", "option4", "correct_choice"),
        *("duration_group", "question_category"),
    ),
    option_counts=(2, 3, 4, 5),
    video_of=lambda doc, task: f"datasets/longvideobench/videos/{doc['video_path']}",
    target_of=lambda doc: int(doc["correct_choice"]),
    options_of=lambda doc: sum(doc[f"option{i}"] != "N/A" for i in range(5)),
    category_of=lambda doc, task: doc["question_category"],
    right=lambda value: value["parsed_pred"] == value["answer"],
    categories=(
        *("S2E", "S2O", "S2A", "E2O", "O2E", "T2E", "T2O", "T2A", "E3E"),
        *("O3O", "SSS", "SOS", "SAA", "T3E", "T3O", "TOS", "TAA"),
    ),
)
BENCHMARKS = {b.name: b for b in (VIDEOMME, MLVU, MVBENCH, EGOSCHEMA, LONGVIDEOBENCH)}


def all_benchmarks() -> dict[str, Benchmark]:
    """Every benchmark by name: the five, then the further ones."""
    from harness.further_benchmarks import FURTHER  # it is made of this module's parts

    return {**BENCHMARKS, **FURTHER}


def benchmark_named(name: str) -> Benchmark:
    """An entry of `all_benchmarks`, or a UserError that lists what there is."""
    known = all_benchmarks()
    if name not in known:
        raise UserError(f"unknown benchmark {name!r}: use one of {', '.join(known)}")
    return known[name]


def benchmark_of_task(task: str) -> Benchmark:
    """The benchmark that an lmms-eval task belongs to, or a UserError that lists the tasks."""
    benchmarks = all_benchmarks().values()
    for benchmark in benchmarks:
        if task in benchmark.definitions:
            return benchmark
    known = ", ".join(task for benchmark in benchmarks for task in benchmark.tasks)
    raise UserError(f"lmms-eval task {task!r} belongs to no benchmark of this harness: use one of {known}")
