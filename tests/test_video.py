"""Decoding: the sampling rule by hand, frames against a plain decode, and every way a file can be broken."""

import io
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from harness import video
from harness.mini.clips import decode_mp4, encode_mp4
from harness.mini.world import draw_clip, render
from harness.video import Decoded, VideoError, decode_ahead, read_frames, uniform_indices

DATA = encode_mp4(render(draw_clip(11, 0)))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(DATA)
    return path


def moov_first(data: bytes, folder: Path) -> bytes:
    """The same packets with the index in front, so that a cut file still opens and promises 128 frames."""
    path = folder / "moov_first.mp4"
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("total", "frames", "expected"),
    [
        (128, 2, [0, 127]),
        (10, 4, [0, 3, 6, 9]),
        (9, 4, [0, 3, 5, 8]),  # 0, 2.67, 5.33, 8
        (3, 6, [0, 0, 1, 1, 2, 2]),  # 0, 0.4, 0.8, 1.2, 1.6, 2
        (7, 1, [0]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_uniform_indices_by_hand(total: int, frames: int, expected: list[int]) -> None:
    assert uniform_indices(total, frames).tolist() == expected


@pytest.mark.parametrize(("total", "frames"), [(0, 4), (4, 0)])
def test_uniform_indices_refuses_nothing(total: int, frames: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        uniform_indices(total, frames)


@pytest.mark.parametrize("frames", [1, 5, 16, 128, 200])
def test_sampled_frames_are_those_of_a_full_decode(clip: Path, frames: int) -> None:
    decoded = read_frames(clip, frames)
    expected = decode_mp4(DATA)[uniform_indices(128, frames)]
    assert decoded.frames_THWC.dtype == np.uint8
    np.testing.assert_array_equal(decoded.frames_THWC, expected)
    np.testing.assert_allclose(decoded.times_T, uniform_indices(128, frames) / 127, rtol=1e-6)


def test_width_that_is_no_multiple_of_the_line_alignment(tmp_path: Path) -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 255, (8, 34, 50, 3), dtype=np.uint8)
    path = tmp_path / "odd.mp4"
    path.write_bytes(encode_mp4(frames_THWC))
    np.testing.assert_array_equal(read_frames(path, 8).frames_THWC, decode_mp4(path.read_bytes()))


def test_matroska_without_a_frame_count_in_its_header(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(io.BytesIO(DATA)) as source, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    np.testing.assert_array_equal(read_frames(path, 128).frames_THWC, decode_mp4(DATA))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4: there is no such video file"):
        read_frames(tmp_path / "gone.mp4", 16)


def test_zero_byte_file(clip: Path) -> None:
    clip.write_bytes(b"")
    with pytest.raises(VideoError, match=r"clip\.mp4: the video file is empty"):
        read_frames(clip, 16)


def test_not_a_video(clip: Path) -> None:
    clip.write_bytes(b"no video at all" * 100)
    with pytest.raises(VideoError, match=r"clip\.mp4: not a readable video"):
        read_frames(clip, 16)


def test_no_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        read_frames(path, 16)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("index", ["at the end", "in front"])
def test_truncated_file(clip: Path, tmp_path: Path, kept: float, index: str) -> None:
    whole = DATA if index == "at the end" else moov_first(DATA, tmp_path)
    clip.write_bytes(whole)
    assert len(read_frames(clip, 128).frames_THWC) == 128
    clip.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(VideoError, match=r"clip\.mp4: .*truncated"):
        read_frames(clip, 16)


def test_truncated_by_one_byte_of_the_last_frame(clip: Path, tmp_path: Path) -> None:
    clip.write_bytes(moov_first(DATA, tmp_path)[:-1])
    with pytest.raises(VideoError, match="only 127 of 128 frames"):
        read_frames(clip, 16)


def test_decode_ahead_keeps_order_and_hands_errors_over(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mp4" for i in range(6)]
    for i, path in enumerate(paths):
        if i != 3:
            path.write_bytes(encode_mp4(np.full((4, 32, 32, 3), 30 * i, np.uint8)))
    results = list(decode_ahead(paths, 4, workers=3, ahead=2))
    assert [type(r) for r in results] == [Decoded, Decoded, Decoded, VideoError, Decoded, Decoded]
    greys = [round(float(r.frames_THWC.mean()) / 30) for r in results if isinstance(r, Decoded)]
    assert greys == [0, 1, 2, 4, 5]
    assert str(paths[3]) in str(results[3])


def test_decode_ahead_is_bounded_and_concurrent(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=20)
    started = []

    def slow(path: str, frames: int, decoder: str, sampling: str) -> str:
        started.append(path)
        if path in "01":
            both.wait()  # passes only if two decodes run at once
        return path

    monkeypatch.setattr(video, "read_frames", slow)
    stream = decode_ahead([str(i) for i in range(100)], 4, workers=2, ahead=8)
    assert next(stream) == "0"
    stream.close()
    assert 2 <= len(started) <= 8
