"""Mini questions as rows in the five benchmarks' published schemas, and the prompts lmms-eval makes of them.

`FAMILY_OF` is the table that says what each published category asks about in the mini world.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.benchmarks import BENCHMARKS, LETTERS, Doc, benchmark_named
from harness.mini.questions import Question
from harness.mini.world import FPS, FRAMES

SECONDS = FRAMES / FPS

# benchmark -> published category -> family of the questions that carry it
FAMILY_OF = {
    "videomme": {
        "Temporal Perception": "order",
        "Spatial Perception": "where",
        "Attribute Perception": "needle",
        "Action Recognition": "motion",
        "Object Recognition": "where",
        "OCR Problems": "needle",
        "Counting Problem": "count",
        "Temporal Reasoning": "order",
        "Spatial Reasoning": "where",
        "Action Reasoning": "count",
        "Object Reasoning": "count",
        "Information Synopsis": "motion",
    },
    "mlvu": {
        "anomaly_reco": "needle",
        "count": "count",
        "ego": "where",
        "needle": "needle",
        "order": "order",
        "plotQA": "where",
        "topic_reasoning": "motion",
    },
    "mvbench": {
        "action_sequence": "order",
        "moving_count": "count",
        "action_prediction": "order",
        "episodic_reasoning": "needle",
        "action_antonym": "motion",
        "action_count": "count",
        "scene_transition": "order",
        "object_shuffle": "where",
        "object_existence": "count",
        "fine_grained_pose": "where",
        "unexpected_action": "needle",
        "moving_direction": "motion",
        "state_change": "needle",
        "object_interaction": "where",
        "character_order": "order",
        "action_localization": "where",
        "counterfactual_inference": "count",
        "fine_grained_action": "needle",
        "moving_attribute": "needle",
        "egocentric_navigation": "motion",
    },
    "longvideobench": {
        "S2E": "motion",
        "S2O": "count",
        "S2A": "needle",
        "E2O": "where",
        "O2E": "count",
        "T2E": "motion",
        "T2O": "count",
        "T2A": "needle",
        "E3E": "order",
        "O3O": "order",
        "SSS": "order",
        "SOS": "where",
        "SAA": "needle",
        "T3E": "order",
        "T3O": "order",
        "TOS": "where",
        "TAA": "count",
    },
}
# EgoSchema has no categories; these are the families that can offer its five options.
EGOSCHEMA_FAMILIES = ("needle", "order", "motion")

# MVBench's questions have as many options as their kind needs, such as 2 for existence and 5 for episodes.
MVBENCH_OPTIONS = {
    "object_existence": 2,
    "action_antonym": 3,
    "action_count": 3,
    "character_order": 3,
    "object_shuffle": 3,
    "state_change": 3,
    "episodic_reasoning": 5,
}
MVBENCH_OPTIONS_ELSEWHERE = 4

VIDEOMME_DURATIONS = ("short", "medium", "long")
VIDEOMME_SUB_CATEGORIES = {
    "Humanity & History": "Knowledge",
    "Literature & Art": "Knowledge",
    "Biology & Medicine": "Knowledge",
    "Finance & Commerce": "Knowledge",
    "Astronomy": "Knowledge",
    "Geography": "Knowledge",
    "Law": "Knowledge",
    "Life Tip": "Knowledge",
    "Technology": "Knowledge",
    "Animation": "Film & Television",
    "Movie & TV Show": "Film & Television",
    "Documentary": "Film & Television",
    "News Report": "Film & Television",
    "Esports": "Sports Competition",
    "Basketball": "Sports Competition",
    "Football": "Sports Competition",
    "Athletics": "Sports Competition",
    "Other Sports": "Sports Competition",
    "Stage Play": "Artistic Performance",
    "Magic Show": "Artistic Performance",
    "Variety Show": "Artistic Performance",
    "Acrobatics": "Artistic Performance",
    "Handicraft": "Life Record",
    "Food": "Life Record",
    "Fashion": "Life Record",
    "Daily Life": "Life Record",
    "Travel": "Life Record",
    "Pet & Animal": "Life Record",
    "Exercise": "Life Record",
    "Multilingual": "Multilingual",
}
LONGVIDEOBENCH_DURATION_GROUPS = (15, 60, 600, 3600)


def document(
    benchmark: str, question: Question, category: str, video: str, video_number: int = 0, number: int = 0
) -> Doc:
    """A question as a row of a benchmark's table.

    Args:
        category: one of the benchmark's categories.
        video: the video's name without folder or suffix.
        video_number: counts the benchmark's videos; a video's own labels (its length, its domain) follow it.
        number: counts the benchmark's questions.

    Raises ValueError if the benchmark has no such category or no questions with that many options.
    """
    entry = benchmark_named(benchmark)
    if category not in entry.categories:
        raise ValueError(f"{benchmark} has no category {category!r}: use one of {', '.join(entry.categories)}")
    if len(question.options) not in entry.option_counts:
        raise ValueError(f"{benchmark} questions have {entry.option_counts} options, not {len(question.options)}")
    return _WRITERS[benchmark](question, category, video, video_number, number)


def _videomme(question: Question, category: str, video: str, video_number: int, number: int) -> Doc:
    sub_category = list(VIDEOMME_SUB_CATEGORIES)[video_number % len(VIDEOMME_SUB_CATEGORIES)]
    return {
        "video_id": f"{video_number + 1:03d}",
        "duration": VIDEOMME_DURATIONS[video_number % len(VIDEOMME_DURATIONS)],
        "domain": VIDEOMME_SUB_CATEGORIES[sub_category],
        "sub_category": sub_category,
        "url": "",
        "videoID": video,
        "question_id": f"{video_number + 1:03d}-{number}",
        "task_type": category,
        "question": question.text,
        "options": [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)],
        "answer": LETTERS[question.answer],
    }


def _mlvu(question: Question, category: str, video: str, video_number: int, number: int) -> Doc:
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    return {
        "video_name": f"{video}.mp4",
        "duration": SECONDS,
        "question": "\n".join([question.text, *lines]),
        "answer": LETTERS[question.answer],
        "task_type": category,
    }


def _mvbench(question: Question, category: str, video: str, video_number: int, number: int) -> Doc:
    return {
        "video": f"{video}.mp4",
        "question": question.text,
        "candidates": list(question.options),
        "answer": question.word,
    }


def _egoschema(question: Question, category: str, video: str, video_number: int, number: int) -> Doc:
    return {
        "question_idx": str(number),
        "question": question.text,
        "video_idx": video,
        "option": [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)],
        "answer": str(question.answer),
    }


def _longvideobench(question: Question, category: str, video: str, video_number: int, number: int) -> Doc:
    padded = [*question.options, *["N/A"] * (5 - len(question.options))]
    return {
        "id": f"{video}_{number}",
        "video_id": video,
        "video_path": f"{video}.mp4",
        "duration": SECONDS,
        "duration_group": LONGVIDEOBENCH_DURATION_GROUPS[video_number % len(LONGVIDEOBENCH_DURATION_GROUPS)],
        "question_category": category,
        "question": question.text,
        **{f"option{i}": option for i, option in enumerate(padded)},
        "correct_choice": question.answer,
    }


_WRITERS = {
    "videomme": _videomme,
    "mlvu": _mlvu,
    "mvbench": _mvbench,
    "egoschema": _egoschema,
    "longvideobench": _longvideobench,
}


@cache
def packaged_doc_to_text(task: str) -> Callable[[Doc], str]:
    """The doc_to_text of lmms-eval's own task, with its default arguments (no model-specific wording).

    The first call imports parts of lmms-eval (seconds).
    """
    from lmms_eval.utils import load_yaml_config

    package = find_spec("lmms_eval").submodule_search_locations[0]
    (definition,) = (b.definitions[task] for b in BENCHMARKS.values() if task in b.definitions)
    config = load_yaml_config(str(Path(package) / "tasks" / definition), mode="full")
    arguments = config["lmms_eval_specific_kwargs"]["default"]
    return lambda doc: config["doc_to_text"](doc, arguments)


def prompt(benchmark: str, question: Question, task: str | None = None) -> str:
    """The text that lmms-eval will make of a question (all tasks of a benchmark word it alike)."""
    entry = benchmark_named(benchmark)
    doc = document(benchmark, question, entry.categories[0], video="video")
    return packaged_doc_to_text(task or entry.tasks[0])(doc)


@dataclass(frozen=True)
class PromptTemplate:
    """A benchmark's prompt for one number of options, as fixed texts: a fast `prompt`.

    `boilerplate` holds the text before the question, before each option, and after the last one.
    """

    benchmark: str
    n_options: int
    boilerplate: tuple[str, ...]

    def render(self, question: Question) -> str:
        """The same text as `prompt(benchmark, question)`."""
        if len(question.options) != self.n_options:
            raise ValueError(f"this template takes {self.n_options} options, not {len(question.options)}")
        parts = [self.boilerplate[0], question.text]
        for fixed, option in zip(self.boilerplate[1:], question.options, strict=False):
            parts += fixed, option
        return "".join([*parts, self.boilerplate[-1]])


@cache
def prompt_template(benchmark: str, n_options: int) -> PromptTemplate:
    """Find a benchmark's fixed texts by rendering marks in place of the question and the options once."""
    marks = ["<<question>>", *(f"<<option {i}>>" for i in range(n_options))]
    rest = prompt(benchmark, Question("needle", marks[0], tuple(marks[1:]), 0))
    boilerplate = []
    for mark in marks:
        if rest.count(mark) != 1:
            raise RuntimeError(f"the {benchmark} prompt has {mark} {rest.count(mark)} times: it cannot be a template")
        fixed, rest = rest.split(mark)
        boilerplate.append(fixed)
    return PromptTemplate(benchmark, n_options, (*boilerplate, rest))
