"""The plug-in through which lmms-eval asks our models: `--model slowfast_mllm` on its own command line.

    python -m lmms_eval --model slowfast_mllm --model_args pretrained=DIR,frames=128 --tasks videomme,mlvu_dev

Questions are answered in batches of fixed composition (per task, sorted by video), so that a run resumed from
its journal computes the same floats; frames are decoded ahead in threads; a video is encoded once per batch,
however many questions it has. Where several processes share a run, each answers some of these same batches
(`harness.processes`).

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
from harness.journal import SCORING, UNPARSED, Entry, Journal, Key, Watched
from harness.lmms_requests import (
    Question,
    cut,
    entry_of,
    key_of,
    plan_batches,
    read_questions,
    text_to_score,
    videos_of,
    videos_of_tasks,
    with_companions,
    with_other_videos,
)
from harness.loading import checkpoint_folder, device_name, hash_checkpoint, load_model
from harness.processes import Peers, check_launch, device_for, exchange_device
from harness.progress import SILENT, Bar, Display, Progress
from harness.prompt_styles import DEFAULT as DEFAULT_STYLE
from harness.prompt_styles import find_style
from harness.provenance import library_versions
from harness.sampling import DEFAULT as DEFAULT_RULE
from harness.sampling import find_rule
from harness.stages import code_hash
from harness.video import MISSING, Decoded, VideoError, decode_ahead, decode_each

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
        device: torch device; default ("auto"): the GPU of this process, or the CPU.
        dtype: of weights and activations, one of `harness.loading.PRECISIONS`; None: as the checkpoint has it.
        prompts: a name in `harness.prompt_styles.STYLES`.
        sampling: a name in `harness.sampling.RULES`.
        answer_tokens: at most so many in an answer; None: as prompts and task say.
        limit: what lmms-eval was told, for the journal; it is lmms-eval that leaves questions out.
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
        dtype: str | None = None,
        prompts: str = DEFAULT_STYLE,
        sampling: str = DEFAULT_RULE,
        answer_tokens: int | None = None,
        limit: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_launch()
        _check_arguments(unknown, frames=frames, batch=batch, workers=workers, answer_tokens=answer_tokens)
        self.controlled = control_of(control)
        self.checkpoint = checkpoint_folder(pretrained)
        self.frames, self.control, self.workers, self.decoder = frames, control, workers, decoder
        self.prompts, self.sampling, self.answer_tokens, self.limit = prompts, sampling, answer_tokens, limit
        find_style(prompts)
        self.sampling_rule = find_rule(sampling).formula
        self.decoder_version = find_decoder(decoder).version()
        self.journal_path = None if journal is None else Path(journal)
        self.batch = batch or _lmms_eval_batch(batch_size)
        self.progress = progress
        self.place = device_for(device)
        self.model, self.processor = load_model(self.checkpoint, self.place, dtype)
        self.dtype = str(self.model.dtype).removeprefix("torch.")
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

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what it exchanges between processes."""
        return exchange_device(self.place)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer lmms-eval's questions, of all tasks at once, greedily; the texts are in their order."""
        try:
            if self.progress is not None:
                return self._answer_all(requests, self.progress)
            if Peers.here().rank:
                return self._answer_all(requests, SILENT)
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
        peers = Peers.here()
        questions = self._questions(requests, peers)
        batches = plan_batches(questions.values(), self.batch)
        belongs_to = self._belongs_to(questions.values())
        if self.memo is not None:
            self.memo.say = progress.say
        journal = Journal.resume(self.journal_path, belongs_to, peers.rank, peers.world)
        # Nobody writes before all have read: so all deal out the same batches.
        known = peers.merged(dict.fromkeys(journal.entries)).keys()
        pending = [batch for batch in batches if not known >= {q.key for q in batch}]
        done = (len(questions) - sum(map(len, pending))) // peers.world
        mine = pending[peers.rank :: peers.world]
        with progress.bar(peers.titled("answer"), sum(map(len, mine)) + done, done, 1 / peers.world) as bar:
            self._answer_batches(mine, journal, bar)
        journal.entries, journal.watched = peers.merged(journal.entries), peers.merged(journal.watched)
        self.entries = {key: journal.entries[key] for key in questions}
        self.watched = sorted(journal.watched.values(), key=lambda watched: watched.video)
        if peers.rank == 0:
            journal.finish(self.journal_path, belongs_to)
            _report_failures(self.entries.values(), progress)
        return [text_to_score(self.entries[key_of(request)]) for request in requests]

    def _questions(self, requests: list[Instance], peers: Peers) -> dict[Key, Question]:
        """All questions of the run, those of other processes too, as the control needs them."""
        own = read_questions(requests, self.task_dict, prompts=self.prompts, answer_tokens=self.answer_tokens)
        questions = peers.merged(own)
        if not questions:
            raise UserError("lmms-eval sent no questions; check --tasks and --limit")
        if self.controlled.other_video:
            questions = with_other_videos(questions, peers.merged(videos_of_tasks(requests, self.task_dict)))
        if self.controlled.other_question:
            questions = with_companions(questions, self._n_tokens)
        return questions

    def _answer_batches(self, batches: list[list[Question]], journal: Journal, bar: Bar) -> None:
        for batch, videos in self._with_videos(batches):
            watched = [watched_of(path, video) for path, video in videos.items()]
            journal.append(self._answer(batch, videos), watched)
            bar.advance(len(batch))

    def _belongs_to(self, questions: Iterable[Question]) -> dict[str, str | int]:
        """What the answers depend on; videos by name and size."""
        ordered = sorted(questions, key=lambda q: q.key)
        sizes = {q.path: q.path.stat().st_size if q.path and q.path.is_file() else -1 for q in ordered}
        return {
            "checkpoint": hash_checkpoint(self.checkpoint),
            "frames": self.frames,
            "sampling": self.sampling_rule,
            "prompt_style": self.prompts,
            "decoder": self.decoder_version,
            "control": self.control,
            "batch": self.batch,
            "dtype": self.dtype,
            "device": device_name(self.place),
            "limit": self.limit or "none",
            "questions": len(ordered),
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
            ahead = VIDEOS_AHEAD * self.workers
            return decode_ahead(paths, self.frames, self.workers, ahead, self.decoder, self.sampling)
        return decode_each(paths, self.frames, self.decoder, self.sampling)

    # ------------------------------------------------------------------------------------------- one batch

    def _answer(self, batch: list[Question], videos: Videos) -> list[Entry]:
        started = time.perf_counter()
        errors = {q.key: _error_of(q, videos) for q in batch}
        asked = [q for q in batch if errors[q.key] is None]
        answers = dict(zip([q.key for q in asked], self._generate(asked, videos), strict=True))
        seconds = (time.perf_counter() - started) / len(batch)
        return [entry_of(q, answers.get(q.key), errors[q.key], seconds) for q in batch]

    @torch.inference_mode()
    def _generate(self, questions: list[Question], videos: Videos) -> list[str]:
        """The model's answers; each video is encoded once."""
        if not questions:
            return []
        seen = {path: self._see(path, videos[path]) for path in videos_of(questions)}
        shown = self.controlled.videos(questions, seen)
        lengths = [len(video) for video in shown["features"]]
        inputs = {**self.processor(text=self.controlled.prompts(questions), n_frames=lengths), **shown}
        inputs = {name: _moved(value, self.place) for name, value in inputs.items()}
        with self.controlled.asking(self.model):
            ids_BL = self.model.generate(**inputs, max_new_tokens=questions[0].max_new_tokens, do_sample=False)
        new_NL = ids_BL[: len(questions), inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(new_NL, skip_special_tokens=True)
        return [cut(text, q.until) for text, q in zip(texts, questions, strict=True)]

    def _see(self, path: Path, video: Decoded | Seen) -> Seen:
        """What the encoder makes of a video, kept if there is a memo to keep it in."""
        if isinstance(video, Seen):
            return video.to(self.place)
        seen = Seen(*self._encode(video), watched_of(path, video))
        if self.memo is not None:
            self.memo.save(path, seen)
        return seen

    def _encode(self, video: Decoded) -> tuple[torch.Tensor, torch.Tensor]:
        """One video's encoder features and frame times, features_BTPV and times_BT with B = 1.

        Of the frames that the model's selector keeps: the encoder sees no others.
        """
        shown = self.processor.watchable([video.frames_THWC], [video.times_T])
        frames_BTCHW, times_BT = (shown[name].to(self.place) for name in ("frames", "frame_times"))
        kept_BTCHW, times_BK = self.model.select(frames_BTCHW, times_BT)
        at_once = self.model.config.frames_at_once or kept_BTCHW.shape[1]
        parts = (part.to(self.model.dtype) for part in kept_BTCHW.split(at_once, dim=1))
        return torch.cat([self.model.encode_video(part) for part in parts], dim=1), times_BK

    # ------------------------------------------------------------------------------------------ the model

    def _take_control(self) -> None:
        """Puts the loaded model under its control; UserError where that would change nothing."""
        if self.controlled.about_slow_tokens and not self.model.hybrid_layers:
            raise UserError(
                f"control={self.control}: the model in {self.checkpoint} has no slow path; use control=none"
            )
        self.controlled.prepare(self.model, self.processor, self.frames)

    def _encoding_key(self) -> str:
        return encoding_key(self.model, self.processor, self.frames, self.decoder_version, self.sampling)

    def _n_tokens(self, prompt: str) -> int:
        """Tokens of a prompt's row, its video counting as one."""
        return len(self.processor.tokenize(self.processor.chat(prompt)))


def _check_arguments(unknown: dict[str, Any], **counts: int | None) -> None:
    if unknown:
        known = (
            "pretrained, frames, control, journal, batch, workers, decoder, device, features, dtype, prompts, "
            "sampling, answer_tokens"
        )
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


def _moved(value: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor | list[torch.Tensor]:
    return value.to(device) if isinstance(value, torch.Tensor) else [tensor.to(device) for tensor in value]


def _error_of(question: Question, videos: Videos) -> VideoError | None:
    """Why a question cannot be asked, if so."""
    if question.path is None:
        return VideoError(question.problem, kind=MISSING)
    return next((videos[path] for path in question.videos if isinstance(videos[path], VideoError)), None)


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
