"""Frames to mp4 and back with PyAV, on one thread so that the bytes are reproducible.

The pool of training clips passes through the same codec (`through_codec`) as the evaluation files.
"""

import io
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from harness.mini.world import FPS

# No B-frames and slices of one thread: quick to write, and the same bytes on every machine with this libx264.
ENCODER = "libx264"
ENCODER_OPTIONS = {"preset": "veryfast", "crf": "18", "bf": "0", "g": "32", "threads": "1"}
PIXEL_FORMAT = "yuv420p"


def encode_mp4(frames_THWC: np.ndarray, fps: int = FPS) -> bytes:
    """Encode uint8 RGB frames as an H.264 mp4 file in memory; height and width must be even."""
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames_THWC.dtype} {frames_THWC.shape}")
    buffer = io.BytesIO()
    to_yuv = VideoReformatter()  # one for all frames: PyAV would set up a new conversion for each
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(ENCODER, rate=fps, options=dict(ENCODER_OPTIONS))
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = PIXEL_FORMAT
        for frame_HWC in frames_THWC:
            frame = to_yuv.reformat(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24"), format=PIXEL_FORMAT)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(data: bytes) -> np.ndarray:
    """Decode every frame of an mp4 file in memory: uint8 RGB frames_THWC."""
    to_rgb = VideoReformatter()
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_count = 1
        frames = container.decode(video=0)
        return np.stack([to_rgb.reformat(frame, format="rgb24").to_ndarray() for frame in frames])


def write_mp4(path: Path, frames_THWC: np.ndarray, fps: int = FPS) -> bytes:
    """Encode frames to a file; returns the bytes written (for hashing)."""
    data = encode_mp4(frames_THWC, fps)
    Path(path).write_bytes(data)
    return data


def through_codec(frames_THWC: np.ndarray) -> np.ndarray:
    """What a reader of the mp4 file of these frames sees: uint8 frames_THWC of the same shape."""
    return decode_mp4(encode_mp4(frames_THWC))
