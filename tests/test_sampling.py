"""Rules of sampling: by hand, against exact arithmetic in a plain loop, and through files of known frame rates."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import videos

from harness import video
from harness.errors import UserError
from harness.packets import read_timeline
from harness.sampling import DEFAULT, RULES, SAMPLING_RULE, ByRate, NoFrameRate, find_rule, uniform_indices
from harness.video import Decoded, VideoError, decode_ahead, decode_each, read_frames

OFFICIAL = RULES["official"]
NTSC = Fraction(30000, 1001)


# ------------------------------------------------------------------------------------------------ the rules


@pytest.mark.parametrize(
    ("total", "fps", "frames", "expected"),
    [
        # every 15th of 300 at 30 a second: 20; of these (i + 1) 2.5 - 1 = 1.5, 4, 6.5, 9, ..., halves to even
        pytest.param(300, 30, 8, [15 * c for c in (2, 4, 6, 9, 12, 14, 16, 19)], id="halves"),
        pytest.param(300, 30, 20, list(range(0, 300, 15)), id="as-many"),
        pytest.param(300, 30, 21, list(range(0, 300, 15)), id="fewer"),
        pytest.param(300, 30, 1, [285], id="one-is-the-last"),
        pytest.param(40, 25, 8, [0, 12, 24, 36], id="12.5-rounds-to-12"),
        pytest.param(20, 7, 8, [0, 4, 8, 12, 16], id="3.5-rounds-to-4"),
        pytest.param(5, 1, 8, [0, 1, 2, 3, 4], id="no-step-below-1"),
        pytest.param(31, NTSC, 8, [0, 15, 30], id="29.97-steps-by-15"),
        pytest.param(25, Fraction(24000, 1001), 8, [0, 12, 24], id="23.976-steps-by-12"),
        pytest.param(1, 30, 8, [0], id="a-single-frame"),
    ],
)
def test_official_by_hand(total: int, fps: Fraction | int, frames: int, expected: list[int]) -> None:
    found = OFFICIAL.indices(total, Fraction(fps), frames)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def half_to_even(exact: Fraction) -> int:
    below = exact.numerator // exact.denominator
    rest = exact - below
    if rest == Fraction(1, 2):
        return below + below % 2
    return below + (rest > Fraction(1, 2))


def official_exactly(total: int, fps: Fraction, frames: int) -> list[Fraction]:
    """Slow truth: the exact places among the candidates, before they are rounded; all where there are too few."""
    step = max(half_to_even(fps / 2), 1)
    number = 0
    while number * step < total:
        number += 1
    if number < frames:
        return [Fraction(i) for i in range(number)]
    return [Fraction((i + 1) * number, frames) - 1 for i in range(frames)]


@pytest.mark.parametrize("frames", [1, 8, 16, 64, 128])
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30), NTSC, Fraction(15), Fraction(1)], ids=float)
def test_official_against_exact_arithmetic(frames: int, fps: Fraction) -> None:
    """Over a power of two the scale is exact in floats: the same to the last frame."""
    step = max(half_to_even(fps / 2), 1)
    for total in [*range(1, 200, 3), 899, 4_321, 107_892]:
        expected = [step * half_to_even(place) for place in official_exactly(total, fps, frames)]
        assert OFFICIAL.indices(total, fps, frames).tolist() == expected


@pytest.mark.parametrize("frames", [12, 96])
def test_other_numbers_of_frames_differ_from_exact_arithmetic_at_halves_only(frames: int) -> None:
    for total in range(1, 6_000, 7):
        found = OFFICIAL.indices(total, Fraction(2), frames).tolist()
        exact = official_exactly(total, Fraction(2), frames)
        assert len(found) == len(exact)
        for index, place in zip(found, exact, strict=True):
            assert index == half_to_even(place) or abs(index - place) == Fraction(1, 2)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("frames", [1, 5, 96])
def test_every_rule_gives_ascending_indices_of_the_file(name: str, frames: int) -> None:
    for total in (1, 7, 100, 4_321):
        found = find_rule(name).indices(total, NTSC, frames)
        assert 1 <= len(found) <= frames
        assert (np.diff(found) >= (name == "official")).all()
        assert found[0] >= 0
        assert found[-1] < total


def test_a_rate_is_a_parameter() -> None:
    assert ByRate(4).indices(61, Fraction(30), 64).tolist() == list(range(0, 61, 8))  # 7.5 rounds to 8
    assert "fps / 4" in ByRate(4).formula
    assert find_rule(ByRate(4)) == ByRate(4)


def test_uniform_is_the_default_and_says_so() -> None:
    assert find_rule(DEFAULT) is RULES["uniform"]
    assert RULES["uniform"].formula == SAMPLING_RULE == video.SAMPLING_RULE
    for total in (1, 9, 128):
        np.testing.assert_array_equal(RULES["uniform"].indices(total, None, 16), uniform_indices(total, 16))


def test_rules_say_how_they_differ() -> None:
    assert len({rule.formula for rule in (*RULES.values(), ByRate(4))}) == len(RULES) + 1


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UserError, match="unknown sampling rule 'random': use one of uniform, official"):
        find_rule("random")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("total", "frames"), [(0, 4), (4, 0)])
def test_nothing_is_refused(name: str, total: int, frames: int) -> None:
    with pytest.raises(ValueError, match="at least one frame of each"):
        find_rule(name).indices(total, Fraction(30), frames)


@pytest.mark.parametrize("fps", [None, Fraction(0)])
def test_official_needs_a_frame_rate(fps: Fraction | None) -> None:
    with pytest.raises(NoFrameRate, match="use sampling=uniform"):
        OFFICIAL.indices(10, fps, 4)


# ------------------------------------------------------------------------------------------------ from files


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 frames, 25 a second: every 12th is a candidate, 10 of them."""
    return videos.write(tmp_path_factory.mktemp("clips") / "clip.mp4", "mpeg4")


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(4, [24, 48, 72, 108]), (10, list(range(0, 120, 12))), (16, list(range(0, 120, 12)))],
)
def test_frames_read_by_the_official_rule(clip: Path, frames: int, expected: list[int]) -> None:
    seen = read_frames(clip, frames, sampling="official")
    assert seen.indices_T.tolist() == expected
    np.testing.assert_array_equal(seen.frames_THWC, videos.all_frames(clip)[expected])
    np.testing.assert_allclose(seen.times_T, [index / 119 for index in expected], rtol=1e-6)
    assert seen.total == 120


def test_every_way_of_decoding_takes_the_rule(clip: Path) -> None:
    expected = [24, 48, 72, 108]
    for stream in (
        decode_each([clip], 4, sampling="official"),
        decode_ahead([clip], 4, workers=1, sampling="official"),
        decode_each([clip], 4, sampling=OFFICIAL),
    ):
        (seen,) = stream
        assert isinstance(seen, Decoded)
        assert seen.indices_T.tolist() == expected
    (uniform,) = decode_each([clip], 4)
    assert uniform.indices_T.tolist() == [0, 40, 79, 119]


@pytest.mark.parametrize("rate", [10, 24, Fraction(30000, 1001)], ids=float)
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_the_frame_rate_is_the_files(tmp_path: Path, rate: Fraction | int, ending: str) -> None:
    path = tmp_path / f"clip.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for grey in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    timeline = read_timeline(path)
    assert float(timeline.fps) == pytest.approx(float(rate), rel=1e-3)
    step = {10: 5, 24: 12}.get(rate, 15)
    assert read_frames(path, 64, sampling="official").indices_T.tolist() == list(range(0, 30, step))


def without_a_rate(read: Callable) -> Callable:
    return lambda path: replace(read(path), fps=None)


def test_a_file_without_a_frame_rate_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "read_timeline", without_a_rate(read_timeline))
    with pytest.raises(VideoError, match=r"clip\.mp4: the file states no frame rate.*use sampling=uniform"):
        read_frames(clip, 4, sampling="official")
    assert len(read_frames(clip, 4).frames_THWC) == 4


def test_a_bad_number_of_frames_is_no_fault_of_the_video(clip: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame of each"):
        read_frames(clip, 0, sampling="official")
    with pytest.raises(UserError, match="unknown sampling rule"):
        read_frames(clip, 4, sampling="every second")
