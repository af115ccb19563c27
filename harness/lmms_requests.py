"""lmms-eval's requests as questions about videos: which file, which options, in which batches."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance

from harness.benchmarks import LETTERS, benchmark_of_task
from harness.errors import UserError
from harness.journal import Key

Datasets = Mapping[str, Mapping[str, Any]]
"""lmms-eval's `task_dict`: task -> split -> docs."""


@dataclass(frozen=True)
class Question:
    """One request of lmms-eval.

    Attributes:
        path: the video; None where the task itself found none: `problem` says why.
        other: the video whose slow tokens are shown instead (a control), or None.
        target: the right option's letter.
        companion: another question's prompt, whose queries read the slow tokens instead (a control), or "".
    """

    task: str
    doc_id: int
    prompt: str
    path: Path | None
    problem: str
    other: Path | None
    target: str
    n_options: int
    max_new_tokens: int
    until: tuple[str, ...]
    companion: str = ""

    @property
    def key(self) -> Key:
        """(task, doc_id)."""
        return self.task, self.doc_id

    @property
    def videos(self) -> tuple[Path, ...]:
        """The videos that must be read to ask it."""
        return tuple(path for path in (self.path, self.other) if path is not None)

    @property
    def wrong_letter(self) -> str:
        """An offered option that is not the right one."""
        return LETTERS[0] if self.target != LETTERS[0] else LETTERS[1]


def key_of(request: Instance) -> Key:
    """(task, doc_id) of one of lmms-eval's requests."""
    return request.args[4], request.args[3]


def read_questions(requests: Sequence[Instance], datasets: Datasets, other_video: bool = False) -> dict[Key, Question]:
    """The questions in lmms-eval's requests; one that is repeated (to pad a process's share) counts once.

    With `other_video`, each also gets the next of its benchmark's videos: see `_derangement`.
    Raises UserError for a task that is not in the registry, asks for sampling, or shows no video.
    """
    if not requests:
        raise UserError("lmms-eval sent no questions; check --tasks and --limit")
    next_video = _derangement(requests, datasets) if other_video else {}
    return {key_of(request): _question(request, datasets, next_video) for request in requests}


def with_companions(questions: Mapping[Key, Question], n_tokens: Callable[[str], int]) -> dict[Key, Question]:
    """The same questions, each with the prompt of another one of its benchmark.

    Of the prompts with equally many tokens if there is one (else the nearest number, of two the greater, so that the
    question meets no other token than the companion's) it is that with the fewest words in common, so that something
    else is asked; of several, one drawn by both texts. UserError where all of a benchmark's prompts are the same.
    """
    prompts: dict[str, set[str]] = {}
    for question in questions.values():
        prompts.setdefault(benchmark_of_task(question.task).name, set()).add(question.prompt)
    lengths = {prompt: n_tokens(prompt) for same in prompts.values() for prompt in same}
    for name, same in prompts.items():
        if len(same) == 1:
            raise UserError(f"control=other_question: {name} has a single prompt here, so there is no other one")
    chosen = {name: {prompt: _companion(prompt, same, lengths) for prompt in same} for name, same in prompts.items()}
    return {
        key: replace(question, companion=chosen[benchmark_of_task(question.task).name][question.prompt])
        for key, question in questions.items()
    }


def plan_batches(questions: Iterable[Question], size: int) -> list[list[Question]]:
    """Batches of at most `size` questions of one task, a video's questions side by side.

    A function of all the questions of a run, never of what is answered already.
    """
    ordered = sorted(questions, key=lambda q: (q.task, q.max_new_tokens, str(q.path or ""), q.doc_id))
    batches = []
    for _, group in groupby(ordered, key=lambda q: (q.task, q.max_new_tokens)):
        alike = list(group)
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches


def videos_of(questions: Iterable[Question]) -> list[Path]:
    """The videos that these questions need, each once, in order."""
    return list(dict.fromkeys(path for question in questions for path in question.videos))


def option_letter(answer: str, n_options: int) -> str | None:
    """The first offered option's letter that stands by itself ("red B", "B. red", "(B)"), or None.

    Narrower than each of lmms-eval's parsers, so that none of them has to guess at what passes here.
    """
    offered = LETTERS[:n_options]
    found = re.search(rf"\(([{offered}])\)|(?<!\S)([{offered}])(?=[. ]|[,!?;:']?\Z)", answer)
    return found and (found[1] or found[2])


def cut(text: str, until: Iterable[str]) -> str:
    """The text before the first stop string, without surrounding white space."""
    text = text.strip()
    stops = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(stops, default=len(text))].strip()


def _question(request: Instance, datasets: Datasets, next_video: Mapping[Path, Path]) -> Question:
    prompt, settings, doc_to_visual, doc_id, task, split = request.args
    if settings.get("do_sample") or settings.get("temperature") or settings.get("num_beams", 1) != 1:
        raise UserError(f"task {task}: answers are greedy here; drop do_sample, temperature and num_beams")
    doc = datasets[task][split][doc_id]
    benchmark = benchmark_of_task(task)
    path, problem = _video(doc_to_visual, doc, task)
    until = settings.get("until") or ()
    return Question(
        task=task,
        doc_id=doc_id,
        prompt=prompt,
        path=path,
        problem=problem,
        other=next_video.get(path),
        target=benchmark.target_letter(doc),
        n_options=benchmark.n_options(doc),
        max_new_tokens=settings.get("max_new_tokens", 16),
        until=(until,) if isinstance(until, str) else tuple(until),
    )


def _companion(prompt: str, prompts: Iterable[str], lengths: Mapping[str, int]) -> str:
    words = set(prompt.split())

    def distance(other: str) -> tuple[int, bool, int, str]:
        more = lengths[other] - lengths[prompt]
        drawn = hashlib.sha256(f"{prompt}\n{other}".encode()).hexdigest()
        return abs(more), more < 0, len(words & set(other.split())), drawn

    return min((other for other in prompts if other != prompt), key=distance)


def _derangement(requests: Sequence[Instance], datasets: Datasets) -> dict[Path, Path]:
    """For each video of a benchmark's tasks, asked about or not, the next in sorted order (cyclic)."""
    videos: dict[str, set[Path]] = {}
    for _, _, doc_to_visual, _, task, split in {request.args[4]: request.args for request in requests}.values():
        found = {_video(doc_to_visual, doc, task)[0] for doc in datasets[task][split]}
        videos.setdefault(benchmark_of_task(task).name, set()).update(found)
    next_video: dict[Path, Path] = {}
    for name, found in videos.items():
        ring = sorted(path for path in found if path is not None and path.is_file())
        if len(ring) == 1:
            raise UserError(f"control=other_video: {name} has a single video here, so there is no other one")
        next_video |= zip(ring, ring[1:] + ring[:1], strict=True)
    return next_video


def _video(doc_to_visual: Any, doc: Mapping[str, Any], task: str) -> tuple[Path | None, str]:
    """(path, "") of a doc's video, or (None, reason): some tasks end the process where a video is missing."""
    try:
        visuals = doc_to_visual(doc)
    except SystemExit as exit_:
        return None, str(exit_.code)
    if len(visuals) != 1 or not isinstance(visuals[0], str):
        raise UserError(f"task {task} shows something other than one video file; use a video task")
    return Path(visuals[0]), ""
