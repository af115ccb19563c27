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
from harness.journal import EMPTY_ANSWER, UNPARSED, Entry, Key
from harness.prompt_styles import DEFAULT as DEFAULT_STYLE
from harness.prompt_styles import find_style
from harness.video import VideoError

Datasets = Mapping[str, Mapping[str, Any]]
"""lmms-eval's `task_dict`: task -> split -> docs."""
NO_ANSWER = "The question cannot be answered: the video was not seen."  # to a judge, which is asked about failures too


@dataclass(frozen=True)
class Question:
    """One request of lmms-eval.

    Attributes:
        path: the video; None where the task itself found none: `problem` says why.
        other: the video whose slow tokens are shown instead (a control), or None.
        target: the right option's letter; "" where the doc does not say, or there are no options.
        n_options: 0 where the answer is open.
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
        """An offered option that is not the right one; "" where there are no options."""
        if not self.n_options:
            return ""
        return LETTERS[0] if self.target != LETTERS[0] else LETTERS[1]


def key_of(request: Instance) -> Key:
    """(task, doc_id) of one of lmms-eval's requests."""
    return request.args[4], request.args[3]


def read_questions(
    requests: Sequence[Instance],
    datasets: Datasets,
    other_video: bool = False,
    prompts: str = DEFAULT_STYLE,
    answer_tokens: int | None = None,
) -> dict[Key, Question]:
    """The questions in lmms-eval's requests; one that is repeated (to pad a process's share) counts once.

    Args:
        other_video: each also gets the next of its benchmark's videos: see `with_other_videos`.
        prompts: a name in `harness.prompt_styles.STYLES`.
        answer_tokens: at most so many in an answer; None: as the style says.

    Raises UserError for a task that is not in the registry, asks for sampling, or shows no video.
    """
    questions = {key_of(request): _question(request, datasets, prompts, answer_tokens) for request in requests}
    return with_other_videos(questions, videos_of_tasks(requests, datasets)) if other_video else questions


def videos_of_tasks(requests: Sequence[Instance], datasets: Datasets) -> dict[str, list[Path]]:
    """task -> all of its videos that are there, asked about or not, of the tasks in lmms-eval's requests."""
    of_task = {request.args[4]: (request.args[2], request.args[5]) for request in requests}
    found = {
        task: {_video(doc_to_visual, doc, task)[0] for doc in datasets[task][split]} - {None}
        for task, (doc_to_visual, split) in of_task.items()
    }
    return {task: sorted(path for path in paths if path.is_file()) for task, paths in found.items()}


def with_other_videos(questions: Mapping[Key, Question], videos: Mapping[str, Iterable[Path]]) -> dict[Key, Question]:
    """The same questions, each with the next of its benchmark's videos in sorted order (cyclic) as the other one.

    `videos` are those of each task. UserError for a benchmark with a single video.
    """
    of_benchmark: dict[str, set[Path]] = {}
    for task, paths in videos.items():
        of_benchmark.setdefault(benchmark_of_task(task).name, set()).update(paths)
    next_video: dict[Path, Path] = {}
    for name, found in of_benchmark.items():
        ring = sorted(found)
        if len(ring) == 1:
            raise UserError(f"control=other_video: {name} has a single video here, so there is no other one")
        next_video |= zip(ring, ring[1:] + ring[:1], strict=True)
    return {key: replace(question, other=next_video.get(question.path)) for key, question in questions.items()}


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


def entry_of(question: Question, answer: str | None, error: VideoError | None, seconds: float) -> Entry:
    """What the journal keeps of a question: the model's answer (None: it was not asked), or why there is none."""
    letter = option_letter(answer, question.n_options) if answer else None
    failure, message = "", ""
    if error is not None:
        failure, message = error.kind, str(error)
    elif not answer:
        failure, message = EMPTY_ANSWER, "the model's answer is empty"
    elif question.n_options and letter is None:
        failure, message = UNPARSED, f"no offered option's letter in {answer!r}"
    return Entry(
        task=question.task,
        doc_id=question.doc_id,
        video=question.path.name if question.path else "",
        answer=answer,
        letter=letter or question.wrong_letter,
        failure=failure,
        message=message,
        seconds=round(seconds, 6),
    )


def text_to_score(entry: Entry) -> str:
    """What lmms-eval is given of an answer: a wrong option's letter after a failure, and never nothing.

    Where a packaged task would ask a judge about anything but a letter, it gets the letter alone.
    """
    if entry.letter and (entry.failure or benchmark_of_task(entry.task).letters_only):
        return entry.letter
    return NO_ANSWER if entry.failure else entry.answer


def _question(request: Instance, datasets: Datasets, prompts: str, answer_tokens: int | None) -> Question:
    packaged_text, settings, doc_to_visual, doc_id, task, split = request.args
    if settings.get("do_sample") or settings.get("temperature") or settings.get("num_beams", 1) != 1:
        raise UserError(f"task {task}: answers are greedy here; drop do_sample, temperature and num_beams")
    style, doc, benchmark = find_style(prompts), datasets[task][split][doc_id], benchmark_of_task(task)
    path, problem = _video(doc_to_visual, doc, task)
    until = settings.get("until") or ()
    return Question(
        task=task,
        doc_id=doc_id,
        prompt=style.prompt(task, doc, packaged_text),
        path=path,
        problem=problem,
        other=None,
        target=benchmark.target_letter(doc) or "",
        n_options=benchmark.n_options(doc),
        max_new_tokens=answer_tokens or style.answer_tokens(task, settings.get("max_new_tokens", 16)),
        until=style.stops(task, (until,) if isinstance(until, str) else tuple(until)),
    )


def _companion(prompt: str, prompts: Iterable[str], lengths: Mapping[str, int]) -> str:
    words = set(prompt.split())

    def distance(other: str) -> tuple[int, bool, int, str]:
        more = lengths[other] - lengths[prompt]
        drawn = hashlib.sha256(f"{prompt}\n{other}".encode()).hexdigest()
        return abs(more), more < 0, len(words & set(other.split())), drawn

    return min((other for other in prompts if other != prompt), key=distance)


def _video(doc_to_visual: Any, doc: Mapping[str, Any], task: str) -> tuple[Path | None, str]:
    """(path, "") of a doc's video, or (None, reason): where one is missing, some tasks end the process, some raise."""
    try:
        visuals = doc_to_visual(doc)
    except (SystemExit, FileNotFoundError) as missing:
        return None, str(missing)
    if len(visuals) != 1 or not isinstance(visuals[0], str):
        raise UserError(f"task {task} shows something other than one video file; use a video task")
    return Path(visuals[0]), ""
