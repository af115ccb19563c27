"""The plug-in through which lmms-eval asks our models: `--model slowfast_mllm` on its own command line.

    python -m lmms_eval --model slowfast_mllm --model_args pretrained=DIR,frames=128 --tasks videomme,mlvu_dev

Questions are answered in batches of fixed composition (per task, sorted by video), so that a run resumed from
its journal computes the same floats; frames are decoded ahead in threads; a video is encoded once per batch,
however many questions it has.

A question fails if its video cannot be read, or the answer is empty; an answer without an offered option's
letter is `unparsed`. Either way lmms-eval is given a wrong option's letter: two of its parsers would draw one
at random, and MVBench's would drop an empty answer from the denominator.
"""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from harness.controls import control_of
from harness.decoders import DEFAULT as DEFAULT_DECODER
from harness.decoders import find_decoder
from harness.errors import UserError
from harness.features import Memo, Seen, encoding_key, see_ahead, watched_of
from harness.journal import EMPTY_ANSWER, SCORING, UNPARSED, Entry, Journal, Key, Watched
from harness.lmms_requests import (
    Question,
    cut,
    key_of,
    option_letter,
    plan_batches,
    read_questions,
    videos_of,
    with_companions,
)
from harness.progress import Display, Progress
from harness.provenance import library_versions
from harness.stages import code_hash
from harness.video import MISSING, SAMPLING_RULE, Decoded, VideoError, decode_ahead, decode_each

MODEL_ID = "slowfast_mllm"
DEFAULT_BATCH = 32
VIDEOS_AHEAD = 4  # for each thread, at most: they wait in memory
LEAST = {"workers": 0}  # of the numbers among the arguments; the others' is 1
Videos = dict[Path, Decoded | Seen | VideoError]


def manifest() -> Any:
    """What lmms-eval registers: the model's id and class.

    A function, for `lmms_eval.models` asks for it while it is being imported, perhaps by this very module.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=f"{__name__}.SlowFastMLLM")


class SlowFastMLLM(lmms):
    """lmms-eval's view of one checkpoint at one number of frames.

    Args:
        pretrained: folder of a checkpoint with its processor.
        frames: frames sampled from each video.
        control: a name in `harness.controls.CONTROLS`.
        journal: file that keeps the answers; a run with the same arguments continues it.
        batch: questions per batch, at most. lmms-eval's own `batch_size` does the same, but its command line
            always sends one, 1 by default, so 1 there means that nothing was chosen (32).
        workers: threads that decode videos ahead of the model; 0: none, each is decoded when its batch needs it.
        decoder: a name in `harness.decoders.DECODERS`.
        device: torch device; default: the first GPU, or the CPU.
        features: folder in which what the encoder made of videos is kept, and looked up (`harness.features`); it
            shapes no answer. None: videos are decoded and encoded each time.
        progress: where progress is reported; default: bars of its own on stderr.

    Raises UserError for a bad argument.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | Path,
        frames: int = 128,
        control: str = "none",
        journal: str | Path | None = None,
        batch: int | None = None,
        workers: int = 2,
        decoder: str = DEFAULT_DECODER,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        features: str | Path | None = None,
        progress: Progress | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        _check_arguments(unknown, frames=frames, batch=batch, workers=workers)
        self.controlled = control_of(control)
        self.checkpoint = _checkpoint(pretrained)
        self.frames, self.control, self.workers, self.decoder = frames, control, workers, decoder
        self.decoder_version = find_decoder(decoder).version()
        self.journal_path = None if journal is None else Path(journal)
        self.batch = batch or _lmms_eval_batch(batch_size)
        self.progress = progress
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.processor = _load(self.checkpoint, self.device)
        self._take_control()
        self.memo = None if features is None else Memo(features, self._encoding_key())
        self.entries: dict[Key, Entry] = {}
        self.watched: list[Watched] = []
        self.from_command_line = False

    @classmethod
    def create_from_arg_string(cls, *args: Any, **kwargs: Any) -> "SlowFastMLLM":
        """As lmms-eval's command line calls it: then a UserError ends the process with its sentence.

        That command line would print a traceback and exit with 0.
        """
        try:
            model = super().create_from_arg_string(*args, **kwargs)
        except UserError as error:
            sys.exit(f"{MODEL_ID}: {error}")
        model.from_command_line = True
        return model

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer lmms-eval's questions, of all tasks at once, greedily; the texts are in their order."""
        try:
            if self.progress is not None:
                return self._answer_all(requests, self.progress)
            with Display() as display:
                return self._answer_all(requests, display.progress())
        except UserError as error:
            if self.from_command_line:
                sys.exit(f"{MODEL_ID}: {error}")
            raise

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered, but lmms-eval's class demands it: the answers of the benchmarks here are generated."""
        raise NotImplementedError(f"{MODEL_ID} answers generate_until tasks only, not loglikelihood ones")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered, but lmms-eval's class demands it: the benchmarks here have one round."""
        raise NotImplementedError(f"{MODEL_ID} answers generate_until tasks only, not multi-round ones")

    # ------------------------------------------------------------------------------- from requests to answers

    def _answer_all(self, requests: list[Instance], progress: Progress) -> list[str]:
        questions = read_questions(requests, self.task_dict, other_video=self.controlled.other_video)
        if self.controlled.other_question:
            questions = with_companions(questions, self._n_tokens)
        batches = plan_batches(questions.values(), self.batch)
        journal = Journal.resume(self._journal_file(), self._belongs_to(questions.values()))
        pending = [batch for batch in batches if not journal.has(q.key for q in batch)]
        done = len(questions) - sum(map(len, pending))
        with progress.bar("answer", total=len(questions), done=done) as bar:
            for batch, videos in self._with_videos(pending):
                watched = [watched_of(path, video) for path, video in videos.items()]
                journal.append(self._answer(batch, videos), watched)
                bar.advance(len(batch))
        self.entries = {key: journal.entries[key] for key in questions}
        self.watched = sorted(journal.watched.values(), key=lambda watched: watched.video)
        _report_failures(self.entries.values(), progress)
        return [_text_to_score(self.entries[key_of(request)]) for request in requests]

    def _journal_file(self) -> Path | None:
        """Every process of a distributed run keeps a journal of its own."""
        if self.journal_path is None or self.world_size == 1:
            return self.journal_path
        return self.journal_path.with_suffix(f".{self.rank}-of-{self.world_size}{self.journal_path.suffix}")

    def _belongs_to(self, questions: Iterable[Question]) -> dict[str, str | int]:
        """What the answers depend on; videos by name and size."""
        ordered = sorted(questions, key=lambda q: q.key)
        sizes = {q.path: q.path.stat().st_size if q.path and q.path.is_file() else -1 for q in ordered}
        return {
            "checkpoint": hash_checkpoint(self.checkpoint),
            "frames": self.frames,
            "sampling": SAMPLING_RULE,
            "decoder": self.decoder_version,
            "control": self.control,
            "batch": self.batch,
            "code": code_hash(SCORING),
            "versions": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
            "prompts": _digest((*q.key, q.prompt, q.max_new_tokens, q.until) for q in ordered),
            "videos": _digest((*q.key, q.path.name if q.path else "", sizes[q.path]) for q in ordered),
        }

    def _with_videos(self, batches: list[list[Question]]) -> Iterator[tuple[list[Question], Videos]]:
        """Each batch with its videos, the next ones being decoded meanwhile if there are `workers`."""
        needed = [videos_of(batch) for batch in batches]
        stream = see_ahead([path for videos in needed for path in videos], self._decode, self.memo)
        for batch, videos in zip(batches, needed, strict=True):
            yield batch, {path: next(stream) for path in videos}

    def _decode(self, paths: Iterable[Path]) -> Iterator[Decoded | VideoError]:
        if self.workers:
            return decode_ahead(paths, self.frames, self.workers, VIDEOS_AHEAD * self.workers, self.decoder)
        return decode_each(paths, self.frames, self.decoder)

    # ------------------------------------------------------------------------------------------- one batch

    def _answer(self, batch: list[Question], videos: Videos) -> list[Entry]:
        started = time.perf_counter()
        errors = {q.key: _error_of(q, videos) for q in batch}
        asked = [q for q in batch if errors[q.key] is None]
        answers = dict(zip([q.key for q in asked], self._generate(asked, videos), strict=True))
        seconds = (time.perf_counter() - started) / len(batch)
        return [_entry(q, answers.get(q.key), errors[q.key], seconds) for q in batch]

    @torch.inference_mode()
    def _generate(self, questions: list[Question], videos: Videos) -> list[str]:
        """The model's answers; each video is encoded once."""
        if not questions:
            return []
        seen = {path: self._see(path, videos[path]) for path in videos_of(questions)}
        kept = self.model.selector.n_frames(self.frames)
        inputs = dict(self.processor(text=self.controlled.prompts(questions), n_frames=kept))
        inputs |= self.controlled.videos(questions, seen)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with self.controlled.asking(self.model):
            ids_BL = self.model.generate(**inputs, max_new_tokens=questions[0].max_new_tokens, do_sample=False)
        new_NL = ids_BL[: len(questions), inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(new_NL, skip_special_tokens=True)
        return [cut(text, q.until) for text, q in zip(texts, questions, strict=True)]

    def _see(self, path: Path, video: Decoded | Seen) -> Seen:
        """What the encoder makes of a video, kept if there is a memo to keep it in."""
        if isinstance(video, Seen):
            return video.to(self.device)
        seen = Seen(*self._encode(video), watched_of(path, video))
        if self.memo is not None:
            self.memo.save(path, seen)
        return seen

    def _encode(self, video: Decoded) -> tuple[torch.Tensor, torch.Tensor]:
        """One video's encoder features and frame times, features_BTPV and times_BT with B = 1.

        Of the frames that the model's selector keeps: the encoder sees no others.
        """
        shown = self.processor.watchable([video.frames_THWC], [video.times_T])
        frames_BTCHW, times_BT = (shown[name].to(self.device) for name in ("frames", "frame_times"))
        kept_BTCHW, times_BK = self.model.select(frames_BTCHW, times_BT)
        return self.model.encode_video(kept_BTCHW.to(self.model.dtype)), times_BK

    # ------------------------------------------------------------------------------------------ the model

    def _take_control(self) -> None:
        """Puts the loaded model under its control; UserError where that would change nothing."""
        if self.controlled.about_slow_tokens and not self.model.hybrid_layers:
            raise UserError(
                f"control={self.control}: the model in {self.checkpoint} has no slow path; use control=none"
            )
        self.controlled.prepare(self.model, self.processor, self.frames)

    def _encoding_key(self) -> str:
        return encoding_key(self.model, self.processor, self.frames, self.decoder_version)

    def _n_tokens(self, prompt: str) -> int:
        """Tokens of a prompt's row, its video counting as one."""
        return len(self.processor.tokenize(self.processor.chat(prompt)))


def hash_checkpoint(folder: Path) -> str:
    """sha256 over the files of a checkpoint that make its answers (names and contents)."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".json", ".jinja", ".txt", ".model"}:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_arguments(unknown: dict[str, Any], **counts: int | None) -> None:
    if unknown:
        known = "pretrained, frames, control, journal, batch, workers, decoder, device, features"
        raise UserError(f"unknown model argument {next(iter(unknown))!r}: use one of {known}")
    for name, value in counts.items():
        least = LEAST.get(name, 1)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UserError(f"model argument {name}={value!r}: give a whole number of at least {least}")


def _lmms_eval_batch(batch_size: int | str | None) -> int:
    if batch_size in (None, 1, "1", "auto"):
        return DEFAULT_BATCH
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise UserError(f"batch size {batch_size!r}: give a whole number of at least 1")
    return int(batch_size)


def _checkpoint(pretrained: str | Path) -> Path:
    folder = Path(pretrained)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint folder (no config.json in it): set pretrained=FOLDER")
    return folder


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """(model, processor) of a checkpoint, ready to answer."""
    from architectures import SlowFastForConditionalGeneration, SlowFastProcessor

    model = SlowFastForConditionalGeneration.from_pretrained(folder, local_files_only=True).to(device).eval()
    if model.selector.needs_question:
        raise UserError(
            f"the model in {folder} selects frames by the question ({model.config.selector['name']}), but a video is "
            "encoded once here for all of its questions: use a selector that sees the video alone"
        )
    return model, SlowFastProcessor.from_pretrained(folder, local_files_only=True)


def _error_of(question: Question, videos: Videos) -> VideoError | None:
    """Why a question cannot be asked, if so."""
    if question.path is None:
        return VideoError(question.problem, kind=MISSING)
    return next((videos[path] for path in question.videos if isinstance(videos[path], VideoError)), None)


def _entry(question: Question, answer: str | None, error: VideoError | None, seconds: float) -> Entry:
    letter = option_letter(answer, question.n_options) if answer else None
    failure, message = "", ""
    if error is not None:
        failure, message = error.kind, str(error)
    elif not answer:
        failure, message = EMPTY_ANSWER, "the model's answer is empty"
    elif letter is None:
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


def _text_to_score(entry: Entry) -> str:
    return entry.letter if entry.failure else entry.answer


def _digest(items: Iterable[tuple]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()[:16]


def _report_failures(entries: Iterable[Entry], progress: Progress) -> None:
    """Name each video that failed, once."""
    entries = list(entries)
    failed = [entry for entry in entries if entry.failure not in ("", UNPARSED)]
    for message in dict.fromkeys(entry.message for entry in failed):
        progress.say(f"failed: {message}")
    if failed:
        progress.say(f"{len(failed)} of {len(entries)} questions failed and are scored as wrong")
