"""The mini world: its promises about flashes, its determinism, its speed, and what survives the codec."""

import time
from dataclasses import replace

import numpy as np
import pytest

from harness.errors import UserError
from harness.mini import clips
from harness.mini.world import (
    COLOUR_RGB,
    COLOURS,
    DEVELOPMENT_SEEDS,
    DISTRACTOR_MASK,
    EVALUATION_SEEDS,
    FRAMES,
    GLYPH_MASKS,
    GLYPH_SIZE,
    GLYPHS,
    MIN_ONSET_GAP,
    MOTIONS,
    PLACES,
    SIZE,
    TRAINING_SEEDS,
    Clip,
    World,
    development_seed,
    draw_clip,
    draw_dense_frames,
    evaluation_seed,
    render,
    training_seed,
)
from harness.video import read_frames

SEED = 5_000_000  # neither evaluated nor trained on
CLIPS = [draw_clip(SEED, index) for index in range(300)]
HALF = SIZE // 2


def recognise(patch_HWC: np.ndarray) -> tuple[int, int]:
    """The (glyph, colour) whose mask and RGB value explain a patch best, the rest being near its own mean."""
    pixels = patch_HWC.astype(float)
    errors = np.empty((len(GLYPHS), len(COLOURS)))
    for glyph, mask_HW in enumerate(GLYPH_MASKS):
        background = pixels[~mask_HW]
        rest = ((background - background.mean(0)) ** 2).sum()
        errors[glyph] = [((pixels[mask_HW] - rgb) ** 2).sum() + rest for rgb in COLOUR_RGB.astype(float)]
    glyph, colour = np.unravel_index(errors.argmin(), errors.shape)
    return int(glyph), int(colour)


def recovered(clip: Clip, frames_THWC: np.ndarray) -> list[bool]:
    """Per frame with a flash: are glyph and colour recognised?"""
    found = []
    for flash in clip.flashes:
        window = slice(flash.y, flash.y + GLYPH_SIZE), slice(flash.x, flash.x + GLYPH_SIZE)
        for t in range(flash.start, flash.start + flash.duration):
            found.append(recognise(frames_THWC[t][window]) == (flash.glyph, flash.colour))
    return found


def test_flashes_keep_their_promises():
    for clip in CLIPS:
        assert sorted(clip.counts) == [0, 1, 1, 1, 1, 1, 2, 3]
        assert [clip.counts[glyph] for glyph in clip.singles] == [1] * 5
        starts = [flash.start for flash in clip.flashes]
        assert min(np.diff(starts)) >= MIN_ONSET_GAP
        for flash in clip.flashes:
            assert flash.duration in (1, 2)
            assert 0 <= flash.start <= FRAMES - flash.duration
            assert flash.y % 2 == flash.x % 2 == 0  # aligned with chroma samples
            top, left = flash.place // 2 * HALF, flash.place % 2 * HALF
            assert top <= flash.y <= top + HALF - GLYPH_SIZE
            assert left <= flash.x <= left + HALF - GLYPH_SIZE


def test_singles_come_in_order_of_time():
    for clip in CLIPS:
        starts = [clip.flash_of(glyph).start for glyph in clip.singles]
        assert starts == sorted(starts)
    repeated = CLIPS[0].counts.index(3)
    with pytest.raises(ValueError, match="3 times"):
        CLIPS[0].flash_of(repeated)


@pytest.mark.parametrize("frames", [1, 2, 8, 32, 64])
def test_dwelling_flashes_keep_their_promises(frames: int):
    """Those asked about stay as long as they should, nothing overlaps in a quadrant, the order can be told."""
    for index in range(60):
        clip, plain = draw_clip(SEED, index, World((frames, frames))), CLIPS[index]
        assert clip.counts == plain.counts
        assert (clip.motion, clip.ball, clip.drift) == (plain.motion, plain.ball, plain.drift)
        stays = {flash.duration for flash in clip.flashes if clip.counts[flash.glyph] == 1}
        assert stays == {frames}
        assert all(flash.duration in (1, 2) for flash in clip.flashes if clip.counts[flash.glyph] > 1)
        assert min(np.diff([flash.start for flash in clip.flashes])) >= MIN_ONSET_GAP
        for place in range(len(PLACES)):
            shown = [t for f in clip.flashes if f.place == place for t in range(f.start, f.start + f.duration)]
            assert len(set(shown)) == len(shown)
            assert not shown or max(shown) < FRAMES
        for flash in clip.flashes:
            top, left = flash.place // 2 * HALF, flash.place % 2 * HALF
            assert top <= flash.y <= top + HALF - GLYPH_SIZE
            assert left <= flash.x <= left + HALF - GLYPH_SIZE


def test_a_range_of_dwelling_is_drawn_evenly_on_a_logarithmic_scale():
    stays = np.array([max(f.duration for f in draw_clip(SEED, i, World((4, 63))).flashes) for i in range(400)])
    assert stays.min() >= 4
    assert stays.max() <= 63
    counts = np.histogram(stays, [4, 8, 16, 32, 64])[0]
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100)


def test_dwelling_flashes_are_drawn_where_the_clip_says():
    clip = draw_clip(SEED, 3, World((32, 32)))
    assert all(recovered(clip, render(clip)))


def test_distractors_come_alone_and_change_nothing_else():
    frames_of = []
    for index in range(40):
        clip, plain = draw_clip(SEED, index, World(None, 24)), CLIPS[index]
        assert clip.flashes == plain.flashes
        flashing = {t for flash in clip.flashes for t in range(flash.start, flash.start + flash.duration)}
        frames = [t for t, _, _ in clip.distractors]
        assert len(set(frames)) == len(frames) == 24
        assert not flashing & set(frames)
        frames_of += frames
        if index < 5:
            changed = (render(clip) != render(plain)).any((1, 2, 3))
            assert set(np.flatnonzero(changed)) == set(frames)
    assert np.histogram(frames_of, 4, (0, FRAMES))[0].min() > 180  # of 240 each: all over the clip


def test_a_distractor_is_as_salient_as_a_flash_and_is_none_of_the_glyphs():
    """Its distance from the same pixels without it lies within that of the colours; no glyph explains it as well."""
    plain, distracted = render(CLIPS[0]).astype(float), draw_clip(SEED, 0, World(None, 24))
    with_patch = render(distracted).astype(float)
    from_patch = [np.abs(with_patch[t] - plain[t]).sum() for t, _, _ in distracted.distractors]
    bare = render(replace(CLIPS[0], flashes=())).astype(float)
    from_flash = [np.abs(plain[f.start] - bare[f.start]).sum() for f in CLIPS[0].flashes]
    assert min(from_flash) < np.mean(from_patch) < 1.5 * max(from_flash)
    overlaps = [(mask == DISTRACTOR_MASK).mean() for mask in GLYPH_MASKS]
    assert max(overlaps) < 0.75


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dwell": [0, 4], "distractors": 0}, "dwell is"),
        ({"dwell": [8, 4], "distractors": 0}, "dwell is"),
        ({"dwell": [1, 65], "distractors": 0}, "dwell is"),
        ({"dwell": None, "distractors": -1}, "distractors is -1"),
        ({"dwell": None}, "it has dwell and distractors"),
    ],
)
def test_a_world_that_cannot_be_is_refused(fields: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        World.of(fields)


def test_every_property_is_drawn_evenly():
    """Five standard deviations of a fair draw, for each glyph's count, colour, place, duration and motion."""
    flashes = [flash for clip in CLIPS for flash in clip.flashes]
    for values, kinds in (
        ([flash.colour for flash in flashes], len(COLOURS)),
        ([flash.place for flash in flashes], len(PLACES)),
        ([flash.duration - 1 for flash in flashes], 2),
        ([clip.motion for clip in CLIPS], len(MOTIONS)),
        ([clip.counts.index(0) for clip in CLIPS], len(GLYPHS)),
        ([clip.singles[0] for clip in CLIPS], len(GLYPHS)),
    ):
        expected = len(values) / kinds
        assert np.abs(np.bincount(values, minlength=kinds) - expected).max() < 5 * np.sqrt(expected)


def test_a_clip_is_a_pure_function_of_seed_and_index():
    again = draw_clip(SEED, 7)
    assert again == CLIPS[7]
    assert np.array_equal(render(again), render(CLIPS[7]))
    assert draw_clip(SEED, 8) != again
    assert draw_clip(SEED + 1, 7).flashes != again.flashes
    frames_THWC = render(again)
    assert frames_THWC.shape == (FRAMES, SIZE, SIZE, 3)
    assert frames_THWC.dtype == np.uint8


def test_the_ball_moves_the_way_the_clip_says():
    """The bright pixels' mean position goes up, down, left or right, by most of the frame, or stays."""
    seen = set()
    for clip in CLIPS[:40]:
        centre = []
        for frame_HWC in render(clip)[[24, 104]].astype(float):
            bright_HW = frame_HWC.min(2) > 92  # a flash has a low channel; the texture stays below 100 at worst
            assert bright_HW.sum() > 100
            centre.append([axis.mean() for axis in np.nonzero(bright_HW)])
        dy, dx = np.subtract(centre[1], centre[0])
        name = MOTIONS[clip.motion]
        expected = {"right": dx, "left": -dx, "down": dy, "up": -dy}
        if name == "still":
            assert abs(dy) < 8
            assert abs(dx) < 8
        else:
            assert expected[name] > 24, name
        seen.add(name)
    assert seen == set(MOTIONS)


def test_flashes_survive_the_codec():
    found = [ok for clip in CLIPS[:40] for ok in recovered(clip, clips.through_codec(render(clip)))]
    assert len(found) > 500
    assert np.mean(found) >= 0.995


def test_recognition_fails_without_the_flash():
    """The check above can fail: one frame earlier nothing is recognised."""
    found = [ok for clip in CLIPS[:4] for ok in recovered(clip, np.roll(render(clip), 3, axis=0))]
    assert np.mean(found) < 0.2


def test_training_frames_and_evaluation_files_decode_alike(tmp_path):
    frames_THWC = render(CLIPS[1])
    clips.write_mp4(tmp_path / "clip.mp4", frames_THWC)
    decoded = read_frames(tmp_path / "clip.mp4", FRAMES).frames_THWC
    assert np.array_equal(decoded, clips.through_codec(frames_THWC))
    assert clips.encode_mp4(frames_THWC) == (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        clips.encode_mp4(frames_THWC.astype(np.float32))


def test_dense_frames_are_labelled_rightly():
    frames_THWC, glyph_T4, colour_T4, ball_T2 = draw_dense_frames(SEED, 0)
    frames_THWC = clips.through_codec(frames_THWC)
    assert 0.35 < (glyph_T4 > 0).mean() < 0.55
    assert ((glyph_T4 == 0) == (colour_T4 == -100)).all()
    assert ball_T2.min() >= -1.3
    assert ball_T2.max() <= 1.3
    found = []
    for t, place in zip(*np.nonzero(glyph_T4[:32]), strict=True):
        top, left = place // 2 * HALF, place % 2 * HALF
        quadrant_HWC = frames_THWC[t, top : top + HALF, left : left + HALF].astype(float)
        corners = [(y, x) for y in range(0, 20, 2) for x in range(0, 20, 2)]
        rgb, mask_HW = COLOUR_RGB[colour_T4[t, place]], GLYPH_MASKS[glyph_T4[t, place] - 1]
        errors = [
            np.abs(quadrant_HWC[y : y + GLYPH_SIZE, x : x + GLYPH_SIZE][mask_HW] - rgb).mean() for y, x in corners
        ]
        y, x = corners[int(np.argmin(errors))]
        patch_HWC = quadrant_HWC[y : y + GLYPH_SIZE, x : x + GLYPH_SIZE]
        found.append(recognise(patch_HWC) == (glyph_T4[t, place] - 1, colour_T4[t, place]))
    assert len(found) > 40
    assert np.mean(found) >= 0.95
    assert np.array_equal(draw_dense_frames(SEED, 0)[0], draw_dense_frames(SEED, 0)[0])


def test_training_development_and_evaluation_never_share_a_clip():
    assert not range(max(EVALUATION_SEEDS.start, TRAINING_SEEDS.start), min(EVALUATION_SEEDS.stop, TRAINING_SEEDS.stop))
    for seed in (0, 1, 999_999):
        assert evaluation_seed(seed) in EVALUATION_SEEDS
        assert training_seed(seed) in TRAINING_SEEDS
        assert development_seed(seed) in DEVELOPMENT_SEEDS
    for wrong in (-1, 1_000_000):
        with pytest.raises(UserError, match="0 to 999999"):
            evaluation_seed(wrong)
        with pytest.raises(UserError, match="0 to 999999"):
            training_seed(wrong)
        with pytest.raises(UserError, match="0 to 999999"):
            development_seed(wrong)


def test_rendering_is_quick():
    """60 microseconds a frame are promised; a busy machine gets three times as much."""
    render(CLIPS[0])
    seconds = []
    for clip in CLIPS[:10]:
        start = time.process_time()
        render(clip)
        seconds.append(time.process_time() - start)
    assert min(seconds) / FRAMES < 180e-6
