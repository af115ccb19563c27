"""A video file's packets, read without decoding: how many frames it shows, when, and where decoding can start.

Headers promise more frames or fewer than there are, so the packets are counted. Their timestamps, sorted, say
which of them is the n-th frame shown; those at which every decoder state is set anew are where a reader may jump to.

Shapes: N frames shown, in the order in which they are shown; T wanted ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from harness.errors import UserError

MISSING, EMPTY, UNREADABLE, TRUNCATED = "missing video", "empty video", "unreadable video", "truncated video"

INTRA_ONLY = frozenset({"mjpeg", "ffv1", "prores", "dnxhd", "rawvideo"})
ONE_REFERENCE = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})  # what follows a key frame refers to it at most
KEY_RESETS_ALL = frozenset({"vp9", "av1"})
FLAGS_SUFFICE = INTRA_ONLY | ONE_REFERENCE | KEY_RESETS_ALL
"""Codecs in which every packet shows one frame, and those shown from a key frame on need nothing before it."""

STORES_TIMES = frozenset({"mov", "mp4", "matroska", "webm", "flv"})
"""Formats that store when each frame is shown, and find key frames by it. AVI numbers frames in decoding order;
transport streams have no index."""

NAL_START = b"\0\0\1"
H264_IDR = {5}  # Rec. ITU-T H.264, table 7-1: a coded slice of an IDR picture
HEVC_IRAP = set(range(16, 22))  # Rec. ITU-T H.265, table 7-1: BLA, IDR and CRA pictures
PARAMETER_SETS = {"h264": range(7, 9), "hevc": range(32, 35)}  # the same tables: what slices are read by
KIND_OF = {"h264": lambda byte: byte & 31, "hevc": lambda byte: byte >> 1 & 63}  # of a unit, from its first byte
NAL_LENGTH_BYTE = {"h264": 4, "hevc": 21}  # ISO/IEC 14496-15, decoder configuration record: its last two bits


class VideoError(UserError):
    """A file that cannot be read as a video: its path and the reason, in a sentence, and the `kind` of it."""

    def __init__(self, sentence: str, kind: str = UNREADABLE) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class Timeline:
    """What the packets of a video say.

    Attributes:
        total: frames shown.
        times_N: their timestamps in the stream's time base, ascending; empty where `distrust` says why.
        starts: ascending indices of the frames from which on decoding needs nothing that came before.
        stream: the video stream's number in the file.
        every_key_starts: whether the packets flagged as key are those of `starts`: who jumps by flags alone may
            else land among pictures that need others before them.
        distrust: why the file must be read through from its start; "" where jumping is safe.
        fps: the average frame rate that the file states; None where it states none.
    """

    total: int
    times_N: np.ndarray
    starts: np.ndarray
    stream: int = 0
    every_key_starts: bool = True
    distrust: str = ""
    fps: Fraction | None = None

    def index_of(self, time: int | None) -> int | None:
        """The index of the frame shown at a timestamp; None if no frame is."""
        if time is None:
            return None
        index = int(np.searchsorted(self.times_N, time))
        return index if index < self.total and self.times_N[index] == time else None

    def start_before(self, index: int) -> int:
        """The last frame at or before `index` from which decoding can start."""
        return int(self.starts[np.searchsorted(self.starts, index, side="right") - 1])


def read_timeline(path: Path) -> Timeline:
    """The timeline of a video file, from one pass over its packets.

    Raises VideoError if it holds fewer frames than its header promises, a packet that was cut short, or none.
    """
    with av.open(str(path)) as container:
        stream = video_stream(container, path)
        return replace(_read_packets(container, stream, path), fps=stream.average_rate)


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first video stream; VideoError if there is none."""
    if not container.streams.video:
        raise VideoError(f"{path}: the file has no video stream; restore it")
    return container.streams.video[0]


def truncated(path: Path, decodable: int, promised: int) -> VideoError:
    """The error of a file that ends before its last frame."""
    return VideoError(
        f"{path}: truncated, only {decodable} of {promised} frames can be decoded; restore the file", TRUNCATED
    )


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> Timeline:
    """The timeline of an opened file, its frame rate left out."""
    formats = container.format.name
    codec, index = stream.codec_context.codec.canonical_name, stream.index
    promised = stream.frames  # 0 where the format does not say
    can_start = _start_test(codec, stream.codec_context.extradata)
    brings_sets = _sets_test(codec, stream.codec_context.extradata)
    packets = whole = keys = 0
    sets_change = False
    times: list[int | None] = []  # of the frames shown, in the order of decoding
    starts: list[int | None] = []
    for packet in container.demux(stream):
        if packet.size:
            packets += 1
            whole += not packet.is_corrupt
            sets_change = sets_change or brings_sets(packet)
            if not packet.is_discard:  # an edit list may hide some
                times.append(packet.pts)
                keys += packet.is_keyframe
                if packet.is_keyframe and can_start(packet):
                    starts.append(packet.pts)
    if whole < max(promised, packets):
        raise truncated(path, whole, max(promised, packets))
    if not times:
        raise VideoError(f"{path}: the video stream has no frames; restore the file")
    if STORES_TIMES.isdisjoint(formats.split(",")):
        return _read_through(len(times), index, f"{formats} files are not jumped in")
    if packets > len(times):
        return _read_through(len(times), index, "an edit list hides frames")
    if sets_change:
        return _read_through(len(times), index, "parameter sets change on the way")
    if not starts:
        return _read_through(len(times), index, f"no {codec} frames that need nothing before them are known")
    return _timeline(index, times, starts, keys)


def _timeline(stream: int, times: list[int | None], starts: list[int | None], keys: int) -> Timeline:
    """Jumping is safe where the frames shown can be told apart by their timestamps, from the first one on."""
    if None in times:
        return _read_through(len(times), stream, "packets without timestamps")
    times_N = np.sort(np.array(times, np.int64))
    if (np.diff(times_N) == 0).any():
        return _read_through(len(times), stream, "packets share timestamps")
    at = np.searchsorted(times_N, np.sort(np.array(starts, np.int64)))
    if at[0] != 0:
        return _read_through(len(times), stream, "the first frame shown is no key frame")
    return Timeline(len(times), times_N, at, stream, every_key_starts=keys == len(starts))


def _read_through(total: int, stream: int, why: str) -> Timeline:
    return Timeline(total, np.empty(0, np.int64), np.zeros(1, np.int64), stream, False, why)


def _start_test(codec: str, extradata: bytes | None) -> Callable[[av.Packet], bool]:
    """Whether decoding can start at a key packet of a codec.

    H.264 may flag pictures as key that later ones reach behind (open groups of pictures, gradual refresh), so
    there its units are looked at; packets of codecs that are not listed above are never trusted.
    """
    if codec in FLAGS_SUFFICE:
        return lambda packet: True
    if codec == "h264":
        length = _length_bytes(codec, extradata)
        return lambda packet: _first_picture(packet, length, KIND_OF[codec], range(1, 6)) in H264_IDR
    if codec == "hevc":
        length = _length_bytes(codec, extradata)
        return lambda packet: _first_picture(packet, length, KIND_OF[codec], range(32)) in HEVC_IRAP
    return lambda packet: False


def _sets_test(codec: str, extradata: bytes | None) -> Callable[[av.Packet], bool]:
    """Whether a packet brings parameter sets that are not in the file's header.

    They hold until others come. A decoder that jumped over them reads what follows by the header's: other pixels,
    and seldom an error.
    """
    if codec not in PARAMETER_SETS:
        return lambda packet: False
    header, length, sets, kind_of = (
        extradata or b"",
        _length_bytes(codec, extradata),
        PARAMETER_SETS[codec],
        KIND_OF[codec],
    )

    def brings_sets(packet: av.Packet) -> bool:
        data = bytes(packet)
        return any(
            kind_of(data[first]) in sets and data[first:end].rstrip(b"\0") not in header
            for first, end in _units(data, length)
        )

    return brings_sets


def _length_bytes(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length before each unit of a packet; 0 where units are marked by NAL_START instead."""
    at = NAL_LENGTH_BYTE[codec]
    if extradata is None or len(extradata) <= at or extradata[0] != 1:  # the record's version
        return 0
    return (extradata[at] & 3) + 1


def _first_picture(packet: av.Packet, length: int, kind_of: Callable[[int], int], pictures: range) -> int | None:
    """The kind of the first unit of a packet that belongs to a picture; None if there is none."""
    data = bytes(packet)
    for first, _ in _units(data, length):
        if (kind := kind_of(data[first])) in pictures:
            return kind
    return None


def _units(data: bytes, length: int) -> Iterator[tuple[int, int]]:
    """Where each unit of a packet begins, and where it ends (zeros before the next mark included)."""
    if length == 0:
        at = data.find(NAL_START)
        while 0 <= at < len(data) - len(NAL_START):
            following = data.find(NAL_START, at + len(NAL_START))
            yield at + len(NAL_START), following if following >= 0 else len(data)
            at = following
        return
    at = 0
    while at + length < len(data):
        end = at + length + int.from_bytes(data[at : at + length], "big")
        yield at + length, end
        at = end
