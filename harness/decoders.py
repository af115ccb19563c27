"""Decoders of the sampled frames, by name: PyAV, which jumps between key frames, and torchcodec where installed.

Each gets a file, its timeline and the ascending indices of the frames wanted, and returns exactly these frames
and how it came by them: a `Clip`. A new decoder is a class with these methods and a line in DECODERS.

Shapes: W wanted frames, H x W pixels, C = 3 colour channels (RGB), written frames_WHWC.
"""

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from harness.errors import UserError
from harness.packets import Timeline, VideoError, truncated, video_stream

RGB = 3
SEEK, THROUGH = "seek", "through"
WORTH_A_SEEK = 16
"""Frames that a jump must save: as many as a decoder may hold back for reordering, which a jump throws away
(Rec. ITU-T H.264, A.3.1: MaxDpbFrames is at most 16)."""


@dataclass(frozen=True)
class Clip:
    """The wanted frames (uint8 RGB), what decoded them, `reading` SEEK or THROUGH, and `why` it was through."""

    frames_WHWC: np.ndarray
    decoder: str
    reading: str
    why: str = ""


class Decoder(Protocol):
    """What a decoder offers."""

    def problem(self) -> str:
        """Why it cannot be used here, in a few words; "" if it can."""

    def version(self) -> str:
        """Name and versions, as they are recorded: others may give other pixels."""

    def decode(self, path: Path, timeline: Timeline, wanted: np.ndarray, threads: int, seek: bool) -> Clip:
        """The frames at the ascending indices `wanted`; raises VideoError where they cannot be had."""


# ---------------------------------------------------------------------------------------------------- PyAV


class LostInSeeking(Exception):
    """After a jump the expected frames did not come; the message says what came."""


class PyAV:
    """FFmpeg as PyAV bundles it; jumps where the timeline is trusted and WORTH_A_SEEK frames are saved.

    If anything is amiss after a jump, the file is read through, and what that finds counts.
    """

    def problem(self) -> str:
        """None: it is required."""
        return ""

    def version(self) -> str:
        """For instance "pyav 15.1.0 (FFmpeg 7.1.1)"."""
        return f"pyav {av.__version__} (FFmpeg {av.ffmpeg_version_info})"

    def decode(self, path: Path, timeline: Timeline, wanted: np.ndarray, threads: int, seek: bool) -> Clip:
        """As `Decoder.decode`; read through, everything before the last wanted frame is decoded."""
        why = timeline.distrust if seek else "asked for"
        runs = [] if why else plan_runs(timeline, wanted)
        if len(runs) == 1 and runs[0].start == 0:
            why = "no jump would save enough"
        if not why:
            try:
                return Clip(_read_runs(path, timeline, runs, threads), self.version(), SEEK)
            except (LostInSeeking, av.FFmpegError) as error:
                why = f"seeking failed: {error}"
        return Clip(_read_through(path, wanted, threads), self.version(), THROUGH, why)


@dataclass(frozen=True)
class Run:
    """Frames wanted that are read without a jump between them, from `start`, where decoding can start, on."""

    start: int
    wanted: list[int]


def plan_runs(timeline: Timeline, wanted: Iterable[int], worth: int = WORTH_A_SEEK) -> list[Run]:
    """The runs in which ascending indices are read: a new one wherever a jump saves at least `worth` frames."""
    runs = [Run(0, [])]
    read = 0  # frames read so far, were all before decoded
    for index in map(int, wanted):
        start = timeline.start_before(index)
        if start - read >= worth:
            runs.append(Run(start, []))
        runs[-1].wanted.append(index)
        read = index + 1
    return [run for run in runs if run.wanted]


class _Pictures:
    """The wanted frames as RGB pixels; nothing else of a video is kept."""

    def __init__(self, count: int, stream: av.VideoStream) -> None:
        self.count, self.found = count, 0
        self.width, self.height = stream.width, stream.height
        self.frames_WHWC: np.ndarray | None = None
        self.to_rgb = VideoReformatter()  # one for all frames: PyAV would set up a new conversion for each

    def add(self, frame: av.VideoFrame) -> None:
        image_HWC = _image(self.to_rgb.reformat(frame, self.width, self.height, "rgb24"))
        if self.frames_WHWC is None:
            self.frames_WHWC = np.empty((self.count, *image_HWC.shape), np.uint8)
        self.frames_WHWC[self.found] = image_HWC
        self.found += 1


def _read_through(path: Path, wanted: np.ndarray, threads: int) -> np.ndarray:
    """Decode from the start, and stop after the last wanted frame: frames_WHWC."""
    index = -1
    with av.open(str(path)) as container:
        stream = _opened_stream(container, path, threads)
        pictures = _Pictures(len(wanted), stream)
        for index, frame in enumerate(container.decode(stream)):
            if index < wanted[pictures.found]:
                continue
            if frame.is_corrupt:
                raise VideoError(f"{path}: frame {index} is damaged; restore the file")
            pictures.add(frame)
            if pictures.found == len(wanted):
                return pictures.frames_WHWC
    raise truncated(path, index + 1, int(wanted[-1]) + 1)


def _read_runs(path: Path, timeline: Timeline, runs: list[Run], threads: int) -> np.ndarray:
    """Jump to the start of each run and decode to its last wanted frame: frames_WHWC."""
    with av.open(str(path)) as container:
        stream = _opened_stream(container, path, threads)
        pictures = _Pictures(sum(len(run.wanted) for run in runs), stream)
        for run in runs:
            if run.start:
                container.seek(int(timeline.times_N[run.start]), stream=stream)
            frames = _numbered(container, stream, timeline, landed_by=run.start)
            for index in run.wanted:
                pictures.add(_frame_at(index, frames))
    return pictures.frames_WHWC


def _numbered(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, landed_by: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their indices, from where a jump to frame `landed_by` landed on.

    Pictures before the key frame that the jump landed at may need others before it: they are left out.
    Raises LostInSeeking if it landed elsewhere, or if the frames' timestamps are not those of the next frames.
    """
    index = None
    for packet in container.demux(stream):
        if index is None:
            index = timeline.index_of(packet.pts)
            if index is None or index > landed_by or timeline.start_before(index) != index:
                raise LostInSeeking(f"a jump to frame {landed_by} did not land there or at a key frame before")
        for frame in packet.decode():
            if frame.pts is not None and frame.pts < timeline.times_N[index]:
                continue
            if timeline.index_of(frame.pts) != index:
                raise LostInSeeking(f"a frame of timestamp {frame.pts} came instead of frame {index}")
            yield index, frame
            index += 1


def _frame_at(index: int, frames: Iterator[tuple[int, av.VideoFrame]]) -> av.VideoFrame:
    """The next of the numbered frames, which come in order, that is `index`; LostInSeeking if it does not come."""
    for found, frame in frames:
        if found < index:
            continue
        if found > index:
            raise LostInSeeking(f"frame {found} came instead of frame {index}")
        if frame.is_corrupt:
            raise LostInSeeking(f"frame {index} is damaged")
        return frame
    raise LostInSeeking(f"frame {index} did not come")


def _opened_stream(container: av.container.InputContainer, path: Path, threads: int) -> av.VideoStream:
    stream = video_stream(container, path)
    stream.thread_type = "AUTO"  # frames side by side where the codec allows it, else slices
    stream.thread_count = threads
    return stream


def _image(frame: av.VideoFrame) -> np.ndarray:
    """An RGB frame's pixels as a view (H, W, C), without the padding at the end of its lines."""
    plane = frame.planes[0]
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: frame.height, : frame.width * RGB].reshape(frame.height, frame.width, RGB)


# ----------------------------------------------------------------------------------------------- torchcodec


class TorchCodec:
    """The torchcodec package with the FFmpeg libraries of the system; it seeks by its own rules.

    It finds frames by timestamps and jumps to whatever is flagged as key, and returns others, or damaged ones,
    without a word where these mislead. So such files are decoded by PyAV, and recorded so. With the same FFmpeg
    the pixels are PyAV's.
    """

    def problem(self) -> str:
        """Why torchcodec cannot be used."""
        try:
            major = self._library().ffmpeg_major_version
        except ImportError as error:
            return f"torchcodec is not installed ({error}): pip install '.[torchcodec]'"
        except (OSError, RuntimeError) as error:  # its message is pages long
            return f"torchcodec finds no FFmpeg libraries that fit ({str(error).strip().splitlines()[0]})"
        return "" if major else "torchcodec finds no FFmpeg libraries on this system; install FFmpeg"

    def version(self) -> str:
        """For instance "torchcodec 0.17.0 (FFmpeg 7)"."""
        return f"torchcodec {metadata.version('torchcodec')} (FFmpeg {self._library().ffmpeg_major_version})"

    def decode(self, path: Path, timeline: Timeline, wanted: np.ndarray, threads: int, seek: bool) -> Clip:
        """As `Decoder.decode`; without `seek` every frame up to the last wanted one is decoded in order."""
        if timeline.distrust or not timeline.every_key_starts:
            return DECODERS["pyav"].decode(path, timeline, wanted, threads, seek)
        open_video = importlib.import_module("torchcodec.decoders").VideoDecoder
        try:
            video = open_video(
                str(path), stream_index=timeline.stream, dimension_order="NHWC", num_ffmpeg_threads=threads
            )
            if len(video) != timeline.total:
                return DECODERS["pyav"].decode(path, timeline, wanted, threads, seek)
            if seek:
                return Clip(video.get_frames_at(wanted.tolist()).data.numpy(), self.version(), SEEK)
            return Clip(_in_order(video, wanted), self.version(), THROUGH, "asked for")
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise VideoError(f"{path}: torchcodec cannot read it ({reason}); restore the file") from error

    def _library(self) -> Any:
        return importlib.import_module("torchcodec")


def _in_order(video: Any, wanted: np.ndarray) -> np.ndarray:
    """The wanted frames of a torchcodec decoder that is asked for every frame up to the last of them."""
    kept = set(wanted.tolist())
    decoded = ((index, video[index]) for index in range(int(wanted[-1]) + 1))
    return np.stack([frame.numpy() for index, frame in decoded if index in kept])


DECODERS: dict[str, Decoder] = {"pyav": PyAV(), "torchcodec": TorchCodec()}
DEFAULT = "pyav"


def find_decoder(name: str) -> Decoder:
    """A decoder by name; UserError if there is none, or it cannot be used here."""
    if name not in DECODERS:
        raise UserError(f"unknown decoder {name!r}: use one of {', '.join(DECODERS)}")
    if problem := DECODERS[name].problem():
        raise UserError(f"decoder={name}: {problem}; or use decoder={DEFAULT}")
    return DECODERS[name]
