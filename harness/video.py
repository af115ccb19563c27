"""From a video file to the frames that a model sees: sampling by a rule, decoding ahead of the model.

A file is first read without decoding (`harness.packets`) to know how many frames it shows and where decoding can
start; a rule (`harness.sampling`) chooses among them, and a decoder (`harness.decoders`) gets those chosen. Only these
are converted and kept: a video costs the memory of its sampled frames, and for each of its packets fewer than 140
bytes (the slow test's bound).

Shapes: T sampled frames, H x W pixels, C = 3 colour channels (RGB).
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np

from harness.decoders import DEFAULT, find_decoder
from harness.packets import EMPTY, MISSING, TRUNCATED, UNREADABLE, Timeline, VideoError, read_timeline
from harness.sampling import DEFAULT as DEFAULT_RULE
from harness.sampling import SAMPLING_RULE, NoFrameRate, Rule, find_rule, uniform_indices

__all__ = [
    "EMPTY",
    "MISSING",
    "SAMPLING_RULE",
    "TRUNCATED",
    "UNREADABLE",
    "Decoded",
    "VideoError",
    "count_frames",
    "decode_ahead",
    "decode_each",
    "read_frames",
    "uniform_indices",
]


@dataclass(frozen=True)
class Decoded:
    """Sampled frames and where they came from.

    Attributes:
        frames_THWC: uint8 RGB.
        times_T: 0 at the first, 1 at the last frame of the file.
        indices_T: their numbers among the file's `total` frames.
        decoder: its name and versions.
        reading: "seek", or "through": all frames up to the last sampled one were decoded; then `why`.
        seconds: wall time of reading and decoding.
    """

    frames_THWC: np.ndarray
    times_T: np.ndarray
    indices_T: np.ndarray
    total: int
    decoder: str
    reading: str
    why: str
    seconds: float


def read_frames(
    path: str | Path,
    frames: int,
    decoder: str = DEFAULT,
    threads: int = 1,
    seek: bool = True,
    sampling: str | Rule = DEFAULT_RULE,
) -> Decoded:
    """Decode at most `frames` frames of a video, chosen by a rule: the uniform one gives exactly so many.

    Args:
        decoder: a name in `harness.decoders.DECODERS`.
        threads: of the decoder for this one video; 1 where several are decoded side by side.
        seek: False: decode from the start, the slow truth. The frames are the same.
        sampling: a name in `harness.sampling.RULES`, or a rule.

    Raises VideoError, naming the path and the reason, for a file that is missing, empty, not a video, or
    truncated (fewer frames than the container promises, or a packet cut short: all packets are looked at).
    Pixels are checked only as far as they are decoded: damage between two sampled frames that a jump passes
    over stays unseen, and with `seek` False is an error wherever the decoder notices it.
    """
    started = time.perf_counter()
    path, library, rule = Path(path), find_decoder(decoder), find_rule(sampling)
    if not path.is_file():
        raise VideoError(f"{path}: there is no such video file; restore it or rebuild the suite", MISSING)
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the video file is empty (0 bytes); restore it or rebuild the suite", EMPTY)
    try:
        timeline = read_timeline(path)
        indices_T = _choose(rule, timeline, frames, path)
        wanted, row_T = np.unique(indices_T, return_inverse=True)
        clip = library.decode(path, timeline, wanted, threads, seek)
    except av.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video, or truncated ({error.strerror}); restore it") from error
    return Decoded(
        frames_THWC=clip.frames_WHWC if len(wanted) == len(indices_T) else clip.frames_WHWC[row_T],
        times_T=(indices_T / max(timeline.total - 1, 1)).astype(np.float32),
        indices_T=indices_T,
        total=timeline.total,
        decoder=clip.decoder,
        reading=clip.reading,
        why=clip.why,
        seconds=time.perf_counter() - started,
    )


def count_frames(path: Path) -> int:
    """The number of frames that a video file shows, counted from its packets.

    Raises VideoError if it holds fewer than its header promises, or a packet that was cut short.
    """
    return read_timeline(path).total


def decode_each(
    paths: Iterable[str | Path], frames: int, decoder: str = DEFAULT, sampling: str | Rule = DEFAULT_RULE
) -> Iterator[Decoded | VideoError]:
    """Yield `read_frames` of each path in order, each decoded when it is asked for: no threads.

    A video that cannot be read yields its VideoError instead of raising it, so that the others are not lost.
    """
    return map(partial(_frames_or_error, frames=frames, decoder=decoder, sampling=sampling), paths)


def decode_ahead(
    paths: Iterable[str | Path],
    frames: int,
    workers: int = 2,
    ahead: int = 16,
    decoder: str = DEFAULT,
    sampling: str | Rule = DEFAULT_RULE,
) -> Iterator[Decoded | VideoError]:
    """As `decode_each`, but decoded in `workers` threads while the caller works.

    At most `ahead` videos wait for the caller.
    """
    if workers < 1 or ahead < 1:
        raise ValueError(f"decode_ahead needs workers and ahead of at least 1, not {workers} and {ahead}")
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(_frames_or_error, path, frames, decoder, sampling))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # the caller left early
                future.cancel()


def _choose(rule: Rule, timeline: Timeline, frames: int, path: Path) -> np.ndarray:
    """The indices that a rule chooses; VideoError where the file does not say what the rule needs."""
    try:
        return rule.indices(timeline.total, timeline.fps, frames)
    except NoFrameRate as error:
        raise VideoError(f"{path}: {error}") from error


def _frames_or_error(path: str | Path, frames: int, decoder: str, sampling: str | Rule) -> Decoded | VideoError:
    try:
        return read_frames(path, frames, decoder, sampling=sampling)
    except VideoError as error:
        return error
