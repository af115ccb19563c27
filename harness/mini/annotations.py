"""Mini training clips and conversations about them, as an annotation file that the paper's trainer reads.

    FOLDER/annotations.json     in LLaVA-Video's format (`harness.finetune.annotations`)
    FOLDER/clips/000012.mp4     clip 12 of the training seed: never one of the suite's
    FOLDER/about.json           the parameters

What is asked, and in whose words, is what the adaptation of the main table draws (`harness.mini.recipes`): a
family as good as any other, the prompt of a benchmark that takes it, an answer "word L". Its questions without options
("open") are conversations of their own here, since an annotation file has no labels inside a question.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.errors import UserError
from harness.mini.clips import write_mp4
from harness.mini.questions import FAMILIES, Question
from harness.mini.recipes import NEEDS_OPTIONS
from harness.mini.stream import QuestionStream, suite_tokenizer
from harness.mini.tokenizer import LETTERS
from harness.mini.world import FRAMES, PLAIN, Clip, World, draw_clip, render, training_seed
from harness.paths import new_directory
from harness.progress import SILENT, Progress
from harness.stages import code_hash
from harness.video import uniform_indices

ANNOTATIONS, ABOUT, CLIPS = "annotations.json", "about.json", "clips"
SOURCES = (
    *(f"harness.mini.{name}" for name in ("annotations", "world", "clips", "questions", "schema", "stream")),
    "harness.benchmarks",
)
"""Modules whose code shapes an annotation file and its clips."""


@dataclass(frozen=True)
class Asked:
    """What is asked about the clips.

    Attributes:
        clips: of the training seed, from the first on.
        visits: how often a clip is asked about, in all: visit v is about clip v % clips. None: each once.
        questions: of each visit.
        open: whether each question that has an answer without its options is asked without them, too.
        as_turns: the questions of a visit are turns of one conversation, not conversations of their own.
    """

    clips: int
    visits: int | None = None
    questions: int = 8
    open: bool = True
    as_turns: bool = False

    def __post_init__(self) -> None:
        for name in ("clips", "visits", "questions"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UserError(f"{name}={number} of mini annotations: give a number of at least 1")


def write_annotations(
    folder: Path,
    seed: int,
    asked: Asked,
    world: World = PLAIN,
    videos: bool = True,
    progress: Progress = SILENT,
) -> Path:
    """Writes the annotation file of an experiment seed and its clips, or finds them whole; returns the file.

    Without `videos` no clip is written, for where the pool's features stand in for them (`PoolFeatures`): then load it
    with `expect_media=False`. UserError if `folder` exists and holds anything else.
    """
    about = {"seed": seed, "asked": asdict(asked), "world": asdict(world), "videos": videos}
    about = json.loads(json.dumps({**about, "code": code_hash(SOURCES)}))
    if folder.exists():
        if not (folder / ABOUT).is_file() or json.loads((folder / ABOUT).read_text()) != about:
            raise UserError(f"{folder} exists and holds other annotations: remove it or choose another folder")
        return folder / ANNOTATIONS
    with new_directory(folder) as work:
        entries = list(conversations(seed, asked, world))
        (work / ANNOTATIONS).write_text(json.dumps(entries, indent=1) + "\n")
        (work / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        if videos:
            (work / CLIPS).mkdir()
            for index in progress.track(range(asked.clips), "write clips"):
                write_mp4(work / clip_name(index), render(draw_clip(training_seed(seed), index, world)))
    return folder / ANNOTATIONS


def conversations(seed: int, asked: Asked, world: World = PLAIN) -> Iterator[dict[str, Any]]:
    """The entries of the annotation file: a pure function of its arguments."""
    stream = QuestionStream(suite_tokenizer())
    for visit in range(asked.clips if asked.visits is None else asked.visits):
        index = visit % asked.clips
        clip, chance = draw_clip(training_seed(seed), index, world), random.Random(f"{seed} annotations {visit}")
        turns = list(_turns(stream, chance, clip, asked))
        together = [[pair for _, *pair in turns]] if asked.as_turns else [[pair] for _, *pair in turns]
        families = [" ".join(family for family, *_ in turns)] if asked.as_turns else [family for family, *_ in turns]
        for number, (pairs, family) in enumerate(zip(together, families, strict=True)):
            yield {
                "id": f"{visit:06d}-{number}",
                "video": clip_name(index),
                "family": family,
                "conversations": _said(pairs),
            }


def _turns(stream: QuestionStream, chance: random.Random, clip: Clip, asked: Asked) -> Iterator[tuple[str, str, str]]:
    """(family, prompt, answer) of a visit's questions; those without options come last."""
    drawn = [stream.draw(chance, clip, chance.choice(list(FAMILIES))) for _ in range(asked.questions)]
    for family, question, prompt in drawn:
        yield family, prompt, answer_of(question)
    for family, question, _ in drawn if asked.open else ():
        if family not in NEEDS_OPTIONS:
            yield f"open {family}", question.text, question.word


def answer_of(question: Question) -> str:
    """What the model learns to say: the right option's word and letter."""
    return f"{question.word} {LETTERS[question.answer]}"


def _said(pairs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    said = []
    for number, (prompt, answer) in enumerate(pairs):
        said.append({"from": "human", "value": prompt if number else f"<image>\n{prompt}"})
        said.append({"from": "gpt", "value": answer})
    return said


def clip_name(index: int) -> str:
    """A clip's path in the annotation file."""
    return f"{CLIPS}/{index:06d}.mp4"


@dataclass(frozen=True)
class PoolSeen:
    """Kept features of one clip: `features_BTPV` and `times_BT`, B = 1."""

    features_BTPV: torch.Tensor
    times_BT: torch.Tensor


@dataclass
class PoolFeatures:
    """The frozen encoder's features of the clips, from the pool that the main table trains on.

    `paths` are the files that `harness.mini.pool.write_features` made of consecutive ranges, from clip 0 on, of the
    same seed and world; `frames` are sampled uniformly from each clip. The clips' own files are not opened.
    """

    paths: Sequence[Path]
    frames: int
    _places: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._places = uniform_indices(FRAMES, self.frames)

    def load(self, path: Path) -> PoolSeen | None:
        """The features of the clip whose file has this name, float32; None for one that the pool lacks."""
        index = int(path.stem)
        for part in self._parts:
            if index < len(part):
                features_TPV = torch.from_numpy(part[index][self._places]).float()
                return PoolSeen(features_TPV[None], torch.from_numpy(self._places).float()[None] / (FRAMES - 1))
            index -= len(part)
        return None

    @cached_property
    def _parts(self) -> list[np.ndarray]:
        return [np.load(path, mmap_mode="r") for path in self.paths]

    def __getstate__(self) -> dict[str, Any]:
        """Without the opened files: each process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_parts"}
