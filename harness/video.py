"""From a video file to the frames that a model sees: PyAV, uniform sampling, decoding ahead of the model.

A file is first read without decoding to know how many frames it shows (headers promise more or fewer), then
decoded once from the start; only the frames asked for are converted and kept, whatever the video's length.

Shapes: T sampled frames, H x W pixels, C = 3 colour channels (RGB).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from harness.errors import UserError

SAMPLING_RULE = "round(linspace(0, n - 1, frames)) over the n frames of the file, both ends included"
RGB = 3


MISSING, EMPTY, UNREADABLE, TRUNCATED = "missing video", "empty video", "unreadable video", "truncated video"


class VideoError(UserError):
    """A file that cannot be read as a video: its path and the reason, in a sentence, and the `kind` of it."""

    def __init__(self, sentence: str, kind: str = UNREADABLE) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class Decoded:
    """Sampled frames_THWC (uint8 RGB), their times_T (0: first, 1: last frame of the file) and indices_T."""

    frames_THWC: np.ndarray
    times_T: np.ndarray
    indices_T: np.ndarray


def uniform_indices(total: int, frames: int) -> np.ndarray:
    """`frames` indices spread evenly over 0 .. total - 1, both ends included; repeats where total < frames.

    Raises ValueError unless both are at least 1. A single frame is the first.
    """
    if total < 1 or frames < 1:
        raise ValueError(f"uniform_indices needs at least one frame of each, not total={total}, frames={frames}")
    return np.linspace(0, total - 1, frames).round().astype(np.int64)


def read_frames(path: str | Path, frames: int) -> Decoded:
    """Decode `frames` frames of a video, sampled by SAMPLING_RULE.

    Raises VideoError, naming the path and the reason, for a file that is missing, empty, not a video, or
    truncated (fewer frames can be decoded than the container promises).
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: there is no such video file; restore it or rebuild the suite", MISSING)
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the video file is empty (0 bytes); restore it or rebuild the suite", EMPTY)
    try:
        indices_T = uniform_indices(count_frames(path), frames)
        wanted, row_T = np.unique(indices_T, return_inverse=True)
        times_T = (indices_T / max(int(indices_T[-1]), 1)).astype(np.float32)
        return Decoded(_decode(path, wanted)[row_T], times_T, indices_T)
    except av.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video, or truncated ({error.strerror}); restore it") from error


def count_frames(path: Path) -> int:
    """The number of frames that a video file shows, counted from its packets.

    Raises VideoError if it holds fewer than its header promises, or a packet that was cut short.
    """
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        promised = stream.frames  # 0 where the format does not say
        packets = whole = shown = 0
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
                whole += not packet.is_corrupt
                shown += not packet.is_discard  # an edit list may hide some
    if whole < max(promised, packets):
        raise _truncated(path, whole, max(promised, packets))
    if not shown:
        raise VideoError(f"{path}: the video stream has no frames; restore the file")
    return shown


def decode_ahead(
    paths: Iterable[str | Path], frames: int, workers: int = 2, ahead: int = 16
) -> Iterator[Decoded | VideoError]:
    """Yield `read_frames` of each path in order, decoded in `workers` threads while the caller works.

    At most `ahead` videos wait for the caller. A video that cannot be read yields its VideoError instead of
    raising it, so that the others are not lost.
    """
    if workers < 1 or ahead < 1:
        raise ValueError(f"decode_ahead needs workers and ahead of at least 1, not {workers} and {ahead}")
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(_frames_or_error, path, frames))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # the caller left early
                future.cancel()


def _frames_or_error(path: str | Path, frames: int) -> Decoded | VideoError:
    try:
        return read_frames(path, frames)
    except VideoError as error:
        return error


def _decode(path: Path, wanted: np.ndarray) -> np.ndarray:
    """The frames at the ascending indices `wanted`: uint8 RGB frames_THWC; stops after the last of them."""
    frames_THWC = None
    index, found = -1, 0
    to_rgb = VideoReformatter()  # one for all frames: PyAV would set up a new conversion for each
    with av.open(str(path)) as container:
        stream = _video_stream(container, path)
        stream.thread_count = 1  # the parallelism is over videos
        for index, frame in enumerate(container.decode(stream)):
            if index < wanted[found]:
                continue
            if frame.is_corrupt:
                raise VideoError(f"{path}: frame {index} is damaged; restore the file")
            image_HWC = _image(to_rgb.reformat(frame, stream.width, stream.height, "rgb24"))
            if frames_THWC is None:
                frames_THWC = np.empty((len(wanted), *image_HWC.shape), np.uint8)
            frames_THWC[found] = image_HWC
            found += 1
            if found == len(wanted):
                return frames_THWC
    raise _truncated(path, index + 1, int(wanted[-1]) + 1)


def _image(frame: av.VideoFrame) -> np.ndarray:
    """An RGB frame's pixels as a view (H, W, C), without the padding at the end of its lines."""
    plane = frame.planes[0]
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: frame.height, : frame.width * RGB].reshape(frame.height, frame.width, RGB)


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    if not container.streams.video:
        raise VideoError(f"{path}: the file has no video stream; restore it")
    return container.streams.video[0]


def _truncated(path: Path, decodable: int, promised: int) -> VideoError:
    return VideoError(
        f"{path}: truncated, only {decodable} of {promised} frames can be decoded; restore the file", TRUNCATED
    )
