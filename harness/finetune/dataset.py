"""Conversations with their videos, decoded when a DataLoader's worker asks for them.

An item is one conversation, or (for packing) several about the same video. What cannot be used - a broken video, a
question longer than `max_length` - is said once, counted, and replaced by the next conversation that can; once more
than 1% of all is like that, the run ends.

Shapes: T frames, C = 3 channels, H x W pixels; P patches a frame, V the encoder's width.
"""

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from architectures import SlowFastConfig, SlowFastProcessor
from architectures.processing import VIDEO_TOKEN
from harness.decoders import DEFAULT
from harness.errors import UserError
from harness.finetune.annotations import IMAGE, Example, Medium
from harness.finetune.examples import ExampleError, Tokens, fit, tokenize
from harness.packets import MISSING, VideoError
from harness.sampling import SAMPLING_RULE, NoFrameRate, uniform_indices
from harness.video import read_frames

BROKEN_AT_MOST = 0.01
SEEN, BROKEN, SHORTENED = 1, 2, 4
UNREADABLE_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises

T = TypeVar("T")
logger = logging.getLogger(__name__)


class TooManyBroken(UserError):
    """More videos are broken than a run may go on with.

    A DataLoader hands on a worker's error as the text of its traceback: of that the sentence is taken.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())


class Features(Protocol):
    """Where kept encoder features come from: `harness.features.Memo`, or the mini pool's."""

    def load(self, path: Path) -> Any:
        """What the encoder made of a file's sampled frames: `features_BTPV` and `times_BT`, B = 1; None: not kept."""


@dataclass(frozen=True)
class FrameRule:
    """How many frames are shown: `fps` a second, at least `min_frames` (if the video has them), at most `frames`.

    A rule of `harness.sampling`: they are spread evenly over the file. Without `fps` always `frames`, as by the uniform
    rule of evaluation. UserError for numbers that do not fit.
    """

    frames: int
    fps: float | None = None
    min_frames: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.frames:
            raise UserError(f"min_frames={self.min_frames} and frames={self.frames}: give 1 <= min_frames <= frames")
        if self.fps is not None and not self.fps > 0:
            raise UserError(f"fps={self.fps}: give a number above 0, or null for all {self.frames} frames always")

    @property
    def formula(self) -> str:
        """The rule in words."""
        if self.fps is None:
            return SAMPLING_RULE
        bounds = f"at least {self.min_frames} and at most {self.frames} or the file's own"
        return f"{self.fps:g} frames a second, {bounds}, evenly over the file, both ends included"

    def indices(self, total: int, fps: Fraction | None, frames: int) -> np.ndarray:
        """As `harness.sampling.Rule.indices`."""
        if self.fps is None:
            return uniform_indices(total, frames)
        if not fps:
            raise NoFrameRate("the file states no frame rate, which fps needs; leave the entry out, or set fps=null")
        wanted = round(float(total / fps) * self.fps)
        return uniform_indices(total, min(total, frames, max(self.min_frames, wanted)))


@dataclass
class Item:
    """What a batch is made of: conversations about the same media.

    Attributes:
        rows: (input_ids, labels) of each, a placeholder for every fast token.
        prefix: how many of their first tokens all of them share; 0 for a single one.
        videos: each medium as `frames_TCHW`, or the encoder's `features_TPV` if `encoded`.
        times: of each medium's frames, in [0, 1].
        questions: word ids of the first question for each medium, for selectors that need them; else empty.
    """

    rows: list[tuple[list[int], list[int]]]
    prefix: int
    videos: list[torch.Tensor]
    times: list[torch.Tensor]
    encoded: bool
    questions: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How many different items were asked for so far, and what became of them."""

    asked: int
    broken: int
    shortened: int


class Kept(Generic[T]):
    """A sequence of anything as one array of bytes: workers share it, where lists are copied page by page."""

    def __init__(self, values: Sequence[T]) -> None:
        pickled = [pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values]
        self.ends = np.cumsum([len(bytes_) for bytes_ in pickled], dtype=np.int64)
        self.content = np.frombuffer(b"".join(pickled), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> T:
        start = 0 if index == 0 else int(self.ends[index - 1])
        return pickle.loads(self.content[start : int(self.ends[index])].tobytes())


class ConversationDataset(torch.utils.data.Dataset):
    """Items by number.

    Args:
        examples: of `annotations.load`.
        processor, config: of the model that is trained.
        frames, fps, min_frames: see `FrameRule`.
        max_length: tokens of a conversation at most, its video's included; see `examples.fit`.
        per_video: conversations of one item, at most: above 1, those about the same media come together.
        features: looked up instead of decoding, if given; then it must hold every video and image.
        decoder: a name in `harness.decoders.DECODERS`.
        processes: that share this data, each seeing its part: so many broken videos fewer end the run.
        dtype: of `frames`; bf16 halves what workers send.

    Raises UserError where processor and model do not fit, or packing is asked for that cannot be.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        processor: SlowFastProcessor,
        config: SlowFastConfig | None = None,
        *,
        frames: int = 64,
        fps: float | None = None,
        min_frames: int = 1,
        max_length: int | None = None,
        per_video: int = 1,
        features: Features | None = None,
        decoder: str = DEFAULT,
        processes: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not examples:
            raise UserError("there are no conversations to train on: name annotation files with entries")
        if config is not None and config.video_token_id != processor.placeholder():
            raise UserError(
                f"the processor's placeholder is token {processor.placeholder()}, the model's {config.video_token_id}: "
                "take the processor from the model's folder"
            )
        self.asks = processor._chooser().needs_question
        if self.asks and (per_video > 1 or features is not None):
            raise UserError("a selector that reads the question needs per_video=1 and no kept features")
        self.processor, self.rule = processor, FrameRule(frames, fps, min_frames)
        self.max_length, self.features, self.decoder, self.dtype = max_length, features, decoder, dtype
        self.groups: Kept[list[Example]] = Kept(together(examples, per_video))
        self.allowed = int(BROKEN_AT_MOST * len(self.groups) / processes)
        self.flags = torch.zeros(len(self.groups), dtype=torch.uint8).share_memory_()  # written by workers
        self.lengths = [self._length(group) for group in map(self.groups.__getitem__, range(len(self.groups)))]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Item:
        """Item `index`, or the next one that is not broken. TooManyBroken once those are over the limit."""
        for place in ((index + step) % len(self) for step in range(len(self))):
            if self.flags[place] & BROKEN:
                continue
            try:
                item = self._item(place)
            except (VideoError, ExampleError) as error:
                self._note_broken(place, error)
            else:
                self.flags[place] |= SEEN
                return item
        raise TooManyBroken(f"none of the {len(self)} conversations can be used: mend the videos")

    def outcome(self) -> Outcome:
        """What was asked for so far, by this process and its workers."""
        counts = [int((self.flags & flag != 0).sum()) for flag in (SEEN | BROKEN, BROKEN, SHORTENED)]
        return Outcome(*counts)

    def expect_few_broken(self) -> None:
        """TooManyBroken if more than 1% of this process's share of all items is broken."""
        broken = self.outcome().broken
        if broken > self.allowed:
            raise TooManyBroken(
                f"{broken} of {len(self)} conversations have a broken video or no room for an answer, more than "
                f"{BROKEN_AT_MOST:.0%}: mend what was named above, or leave those entries out"
            )

    # -------------------------------------------------------------------------------------------- one item

    def _item(self, place: int) -> Item:
        group = self.groups[place]
        seen = [self.look(medium) for medium in group[0].media]
        counts = [self.processor.fast_token_count(len(times_T)) for _, times_T in seen]
        whole = [tokenize(example, self.processor) for example in group]
        kept = [
            fit(tokens, counts, self.max_length, example.source) for tokens, example in zip(whole, group, strict=True)
        ]
        if kept != whole:
            self.flags[place] |= SHORTENED
        placeholder = self.processor.placeholder()
        return Item(
            rows=[tokens.spread(placeholder, counts) for tokens in kept],
            prefix=shared_prefix(kept, counts, placeholder) if len(kept) > 1 else 0,
            videos=[video for video, _ in seen],
            times=[times_T for _, times_T in seen],
            encoded=self.features is not None,
            questions=self._questions(group[0]) if self.asks else [],
        )

    def look(self, medium: Medium) -> tuple[torch.Tensor, torch.Tensor]:
        """(video, times) of a medium: kept features_TPV, else frames_TCHW. VideoError if it cannot be read."""
        if self.features is not None:
            kept = self.features.load(medium.path)
            if kept is None:
                raise VideoError(f"{medium.path}: no encoder features of it are kept; encode the media first", MISSING)
            return kept.features_BTPV[0], kept.times_BT[0]
        frames_THWC, times_T = self.decode(medium)
        shown = self.processor.watchable([frames_THWC], [times_T], one_each=False)
        return shown["frames"][0].to(self.dtype), shown["frame_times"][0]

    def decode(self, medium: Medium) -> tuple[np.ndarray, np.ndarray]:
        """A medium's sampled frames (uint8, THWC) and their times; an image is one frame."""
        if medium.kind == IMAGE:
            return read_image(medium.path)[None], np.zeros(1, np.float32)
        decoded = read_frames(medium.path, self.rule.frames, self.decoder, sampling=self.rule)
        return decoded.frames_THWC, decoded.times_T

    def _questions(self, example: Example) -> list[list[int]]:
        """The first question, without its marks, for each medium."""
        bare = example.turns[0].question.replace(f"{VIDEO_TOKEN}\n", "").replace(VIDEO_TOKEN, "")
        return [self.processor.tokenizer(bare)["input_ids"]] * len(example.media)

    def _note_broken(self, place: int, error: Exception) -> None:
        self.flags[place] |= BROKEN
        source = self.groups[place][0].source
        said = str(error)
        logger.warning("left out: %s", said if source in said else f"{source}: {said}")
        self.expect_few_broken()

    def _length(self, group: list[Example]) -> int:
        """An estimate without decoding: words, and the fast tokens of every video as if it were of full length."""
        words = sum(len(f"{turn.question} {turn.answer}".split()) for example in group for turn in example.turns)
        frames = [1 if medium.kind == IMAGE else self.rule.frames for medium in group[0].media]
        return words + sum(map(self.processor.fast_token_count, frames))


def together(examples: Sequence[Example], at_most: int) -> list[list[Example]]:
    """Conversations that may share a video's tokens, `at_most` in a group; others alone. In order of their first.

    They have the same media, all in the first question, and the same text before the last of them.
    """
    if at_most < 1:
        raise UserError(f"per_video={at_most}: give a number of at least 1")
    groups: list[list[Example]] = []
    open_groups: dict[Any, list[Example]] = {}
    for example in examples:
        first = example.turns[0]
        if not example.media or first.places != len(example.media):
            groups.append([example])
            continue
        key = (example.media, example.system, first.question.rpartition(VIDEO_TOKEN)[0])
        group = open_groups.get(key)
        if group is None or len(group) == at_most:
            open_groups[key] = group = []
            groups.append(group)
        group.append(example)
    return groups


def shared_prefix(conversations: Sequence[Tokens], fast_counts: Sequence[int], placeholder: int) -> int:
    """How many of the first tokens, spread, are the same in all: up to the last place of their videos."""
    ids = conversations[0].input_ids
    last = max(place for place, token in enumerate(ids) if token == placeholder)
    if any(tokens.input_ids[: last + 1] != ids[: last + 1] for tokens in conversations):
        raise ValueError("Conversations about one video differ before it: they cannot share a prefix.")
    return last + 1 + sum(fast_counts) - len(fast_counts)


def read_image(path: Path) -> np.ndarray:
    """An image's pixels, uint8 HWC, three colours. VideoError if it cannot be read."""
    if not path.is_file():
        raise VideoError(f"{path}: there is no such image; restore it", MISSING)
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except UNREADABLE_IMAGE as error:
        raise VideoError(f"{path}: not a readable image ({error}); restore it") from error
