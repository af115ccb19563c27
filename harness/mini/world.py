"""A small procedural world: 16-second clips in which short coloured flashes happen.

A clip is 128 frames of 64 x 64 RGB at 8 fps: a drifting blocky texture, a large ball that crosses the
frame (or rests), slight sensor noise, and ten *flashes*: a glyph in a saturated colour, inside one quadrant,
visible for one or two frames. Of the eight glyphs five flash exactly once, the others 0, 2 and 3 times.
A `World` changes this: glyphs that flash once may dwell, and grey distractors may flash that nobody asks about.

Everything is a pure function of (seed, index, world).

Shapes: T frames, H x W pixels, C = 3 channels, 4 quadrants, 2 = (y, x).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from harness.errors import UserError

FRAMES, SIZE, FPS = 128, 64, 8
GENERATOR_VERSION = 1  # raise it whenever the same (seed, index) would give other pixels or other flashes

# World seeds: clips to evaluate on, to train on, and to judge a base by come from disjoint ranges, one seed of
# each per experiment seed.
SEEDS = 1_000_000
EVALUATION_SEEDS, TRAINING_SEEDS = range(SEEDS, 2 * SEEDS), range(2 * SEEDS, 3 * SEEDS)
DEVELOPMENT_SEEDS = range(3 * SEEDS, 4 * SEEDS)

GLYPH_BITMAPS = {
    "plus": "0001000 0001000 0001000 1111111 0001000 0001000 0001000",
    "cross": "1000001 0100010 0010100 0001000 0010100 0100010 1000001",
    "square": "1111111 1000001 1000001 1000001 1000001 1000001 1111111",
    "triangle": "0001000 0001000 0011100 0011100 0111110 0111110 1111111",
    "circle": "0011100 0111110 1111111 1111111 1111111 0111110 0011100",
    "flag": "1111111 1111111 1111111 1100000 1100000 1100000 1100000",
    "corner": "1100000 1100000 1100000 1100000 1100000 1111111 1111111",
    "ladder": "1100011 1111111 1100011 1100011 1100011 1111111 1100011",
}
GLYPHS = tuple(GLYPH_BITMAPS)
GLYPH_SIZE = 14  # a 7 x 7 bitmap drawn twice as large, so that every stroke covers whole chroma samples
COLOUR_VALUES = {
    "red": (250, 30, 30),
    "green": (30, 220, 30),
    "blue": (50, 60, 250),
    "yellow": (245, 235, 30),
    "magenta": (240, 50, 240),
    "cyan": (40, 230, 240),
}
COLOURS = tuple(COLOUR_VALUES)
PLACES = ("northwest", "northeast", "southwest", "southeast")
MOTIONS = ("right", "left", "up", "down", "still")
COUNTS = ("zero", "one", "two", "three")

FLASH_COUNTS = (1, 1, 1, 1, 1, 0, 2, 3)  # dealt to a random permutation of the glyphs
MIN_ONSET_GAP = 3  # frames; leaves at least one frame without a flash between two flashes
BALL_RADIUS, BALL_BRIGHTNESS = 14, 70
TEXTURE_SIZE, TEXTURE_BLOCK = 112, 8
LAYOUTS_TRIED = 20_000  # of dwelling flashes; the longest fit in about one of a hundred
NOISE_SD = 2.5

GLYPH_MASKS = np.array([[[int(c) for c in row] for row in bits.split()] for bits in GLYPH_BITMAPS.values()])
GLYPH_MASKS = GLYPH_MASKS.repeat(2, 1).repeat(2, 2).astype(bool)  # (8, 14, 14)
COLOUR_RGB = np.array(list(COLOUR_VALUES.values()), np.uint8)  # (6, 3)
# As large as a glyph and about as different from the background, but none of the glyphs and of no colour.
DISTRACTOR_MASK = np.indices((7, 7)).sum(0) % 2 == 1
DISTRACTOR_MASK = DISTRACTOR_MASK.repeat(2, 0).repeat(2, 1)  # (14, 14)
DISTRACTOR_RGB = np.array((185, 185, 185), np.uint8)


@dataclass(frozen=True)
class World:
    """How clips differ from the plain ones.

    Attributes:
        dwell: (least, most) frames that the glyphs which flash once stay, the same for all of a clip and drawn
            evenly on a logarithmic scale; they may then overlap in time, in different quadrants. None: all flashes
            last one or two frames, and never overlap.
        distractors: frames without a flash that show a grey chequered patch, which no question is about.
    """

    dwell: tuple[int, int] | None = None
    distractors: int = 0

    def __post_init__(self) -> None:
        if self.dwell is not None and not (len(self.dwell) == 2 and 1 <= self.dwell[0] <= self.dwell[1] <= FRAMES // 2):
            raise UserError(
                f"world: dwell is {list(self.dwell)}, but takes two numbers from 1 to {FRAMES // 2}, rising"
            )
        if not 0 <= self.distractors <= FRAMES // 2:
            raise UserError(f"world: distractors is {self.distractors}, but takes a number from 0 to {FRAMES // 2}")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "World":
        """The world of plain data {dwell: [least, most] or null, distractors: n}; UserError for anything else."""
        if set(fields) != {"dwell", "distractors"}:
            raise UserError(f"world: it has dwell and distractors, not {', '.join(map(str, fields)) or 'nothing'}")
        dwell = fields["dwell"]
        return cls(None if dwell is None else tuple(map(int, dwell)), int(fields["distractors"]))


PLAIN = World()


@dataclass(frozen=True)
class Flash:
    """One appearance of a glyph; `start` and `duration` in frames, (y, x) its upper left pixel."""

    start: int
    duration: int
    glyph: int
    colour: int
    place: int
    y: int
    x: int


@dataclass(frozen=True)
class Clip:
    """What happens in one clip: the flashes, the ball's motion, where ball and texture are, and distractors."""

    seed: int
    index: int
    flashes: tuple[Flash, ...]  # in order of time
    motion: int
    ball: tuple[float, float, float]  # lateral position, resting position along the path, phase of the sway
    drift: tuple[int, int, int, int]  # texture origin (y, x) at the first and at the last frame
    distractors: tuple[tuple[int, int, int], ...] = ()  # frame and upper left pixel (y, x) of each

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How often each of the eight glyphs flashes."""
        shown = [flash.glyph for flash in self.flashes]
        return tuple(shown.count(glyph) for glyph in range(len(GLYPHS)))

    @cached_property
    def singles(self) -> tuple[int, ...]:
        """The glyphs that flash exactly once, in the order of their flashes."""
        return tuple(flash.glyph for flash in self.flashes if self.counts[flash.glyph] == 1)

    @cached_property
    def _single_flash(self) -> dict[int, Flash]:
        return {flash.glyph: flash for flash in self.flashes if self.counts[flash.glyph] == 1}

    def flash_of(self, glyph: int) -> Flash:
        """The only flash of a glyph in `singles`; ValueError for any other glyph."""
        if glyph not in self._single_flash:
            raise ValueError(f"the {GLYPHS[glyph]} flashes {self.counts[glyph]} times in this clip, not once")
        return self._single_flash[glyph]


def evaluation_seed(seed: int) -> int:
    """The world seed of the evaluation clips of experiment seed 0 to 999,999; UserError outside."""
    return _seed_in(EVALUATION_SEEDS, seed)


def training_seed(seed: int) -> int:
    """The world seed of the training clips of experiment seed 0 to 999,999; UserError outside."""
    return _seed_in(TRAINING_SEEDS, seed)


def development_seed(seed: int) -> int:
    """The world seed of the clips that a base's threshold is measured on; UserError outside 0 to 999,999."""
    return _seed_in(DEVELOPMENT_SEEDS, seed)


def _seed_in(seeds: range, seed: int) -> int:
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed {seed} is out of range: use one from 0 to {SEEDS - 1}")
    return seeds[seed]


def draw_clip(seed: int, index: int, world: World = PLAIN) -> Clip:
    """The clip number `index` of a seed (both >= 0) in a world: a pure function of the three."""
    rng = np.random.default_rng([seed, index])
    glyphs = rng.permutation(np.repeat(rng.permutation(len(GLYPHS)), FLASH_COUNTS))
    n = len(glyphs)
    slack = MIN_ONSET_GAP - 1
    onsets = np.sort(rng.choice(FRAMES - 1 - slack * (n - 1), n, replace=False)) + slack * np.arange(n)
    colours = rng.integers(0, len(COLOURS), n)
    places = rng.integers(0, len(PLACES), n)
    y, x = _glyph_corner(rng, places)
    durations = rng.integers(1, 3, n)
    columns = (onsets, durations, glyphs, colours, places, y, x)
    flashes = tuple(Flash(*row) for row in np.stack(columns, 1).tolist())
    motion = int(rng.integers(len(MOTIONS)))
    ball = (rng.uniform(10, SIZE - 10), rng.uniform(10, SIZE - 10), rng.uniform(0, 2 * np.pi))
    drift = tuple(rng.integers(0, TEXTURE_SIZE - SIZE + 1, 4).tolist())
    if world.dwell is not None:
        flashes = _dwelling(np.random.default_rng([seed, index, 3]), flashes, *world.dwell)
    distractors = _distractors(np.random.default_rng([seed, index, 4]), flashes, world.distractors)
    return Clip(seed, index, flashes, motion, ball, drift, distractors)


def _dwelling(rng: np.random.Generator, flashes: tuple[Flash, ...], least: int, most: int) -> tuple[Flash, ...]:
    """The flashes with those of glyphs that flash once made longer, all at new times and places, in order of time.

    In each quadrant one follows the other; starts keep their distance across quadrants.
    """
    glyphs = [flash.glyph for flash in flashes]
    stay = min(most, int(np.exp(rng.uniform(np.log(least), np.log(most + 1)))))
    durations = np.array([stay if glyphs.count(flash.glyph) == 1 else flash.duration for flash in flashes])
    for _ in range(LAYOUTS_TRIED):
        places = rng.integers(0, len(PLACES), len(flashes))
        starts = _starts(rng, durations, places)
        if starts is not None and np.diff(np.sort(starts)).min() >= MIN_ONSET_GAP:
            break
    else:
        raise RuntimeError(f"flashes of {stay} frames found no place in {LAYOUTS_TRIED} layouts")
    y, x = _glyph_corner(rng, places)
    laid = np.stack([starts, durations, glyphs, [flash.colour for flash in flashes], places, y, x], 1)
    return tuple(Flash(*row) for row in laid[np.argsort(starts)].tolist())


def _starts(rng: np.random.Generator, durations: np.ndarray, places: np.ndarray) -> np.ndarray | None:
    """Start frames at which the flashes of each quadrant follow each other in random order; None if they do not fit."""
    starts = np.empty(len(durations), int)
    for place in range(len(PLACES)):
        chosen = rng.permutation(np.flatnonzero(places == place))
        slack = FRAMES - durations[chosen].sum()
        if slack < 0:
            return None
        before = np.cumsum(durations[chosen]) - durations[chosen]
        starts[chosen] = before + np.sort(rng.integers(0, slack + 1, len(chosen)))
    return starts


def _distractors(rng: np.random.Generator, flashes: tuple[Flash, ...], n: int) -> tuple[tuple[int, int, int], ...]:
    """`n` distractors, each in a frame of its own that has no flash (as many as there are such frames)."""
    busy = {t for flash in flashes for t in range(flash.start, flash.start + flash.duration)}
    quiet = rng.permutation([t for t in range(FRAMES) if t not in busy])[:n].astype(int)
    y, x = _glyph_corner(rng, rng.integers(0, len(PLACES), len(quiet)))
    return tuple(sorted(zip(quiet.tolist(), y.tolist(), x.tolist(), strict=True)))


def render(clip: Clip) -> np.ndarray:
    """Draw a clip: uint8 frames_THWC (128, 64, 64, 3), always the same for the same clip."""
    rng = np.random.default_rng([clip.seed, clip.index, 1])
    origin_T2 = np.linspace(clip.drift[:2], clip.drift[2:], FRAMES).round().astype(int)
    frames_THWC = _scene(rng, origin_T2, _ball_track(clip))
    for flash in clip.flashes:
        for t in range(flash.start, flash.start + flash.duration):
            _stamp(frames_THWC[t], GLYPH_MASKS[flash.glyph], COLOUR_RGB[flash.colour], flash.y, flash.x)
    for t, y, x in clip.distractors:
        _stamp(frames_THWC[t], DISTRACTOR_MASK, DISTRACTOR_RGB, y, x)
    return frames_THWC


def draw_dense_frames(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """128 unrelated frames with many glyphs: labelled images to pretrain a frame encoder with.

    Returns frames_THWC (uint8), glyph_T4 (per quadrant: glyph + 1, or 0 where there is none), colour_T4
    (-100 where there is no glyph) and ball_T2 (the ball's centre, (y, x); the frame spans -1 to 1).
    """
    rng = np.random.default_rng([seed, index, 2])
    ball_T2 = rng.uniform(-8, SIZE + 8, (FRAMES, 2)).round()
    origin_T2 = rng.integers(0, TEXTURE_SIZE - SIZE + 1, (FRAMES, 2))
    textures = 8
    frames_THWC = np.concatenate(
        [_scene(rng, o, b) for o, b in zip(np.split(origin_T2, textures), np.split(ball_T2, textures), strict=True)]
    )
    present_T4 = rng.random((FRAMES, len(PLACES))) < 0.45
    glyph_T4 = np.where(present_T4, rng.integers(1, len(GLYPHS) + 1, present_T4.shape), 0)
    colour_T4 = np.where(present_T4, rng.integers(0, len(COLOURS), present_T4.shape), -100)
    y_T4, x_T4 = _glyph_corner(rng, np.broadcast_to(np.arange(len(PLACES)), present_T4.shape))
    for t, place in zip(*np.nonzero(present_T4), strict=True):
        at = t, place
        _stamp(frames_THWC[t], GLYPH_MASKS[glyph_T4[at] - 1], COLOUR_RGB[colour_T4[at]], y_T4[at], x_T4[at])
    return frames_THWC, glyph_T4, colour_T4, ((ball_T2 - SIZE / 2) / (SIZE / 2)).astype(np.float32)


def _glyph_corner(rng: np.random.Generator, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper left corners (y, x), even, that put a glyph fully inside each of these quadrants."""
    half = SIZE // 2
    steps = (half - GLYPH_SIZE) // 2 + 1
    y = places // 2 * half + 2 * rng.integers(0, steps, places.shape)
    x = places % 2 * half + 2 * rng.integers(0, steps, places.shape)
    return y, x


def _ball_track(clip: Clip) -> np.ndarray:
    """The ball's centre per frame, (y, x) in pixels: ball_T2."""
    lateral, rest, phase = clip.ball
    progress_T = np.linspace(0, 1, FRAMES)
    across_T = lateral + 3 * np.sin(6 * progress_T + phase)
    along_T = -8 + (SIZE + 16) * progress_T  # half of the ball is in view at either end
    name = MOTIONS[clip.motion]
    if name == "still":
        return np.tile([lateral, rest], (FRAMES, 1))
    if name in ("left", "up"):
        along_T = along_T[::-1]
    horizontal = name in ("left", "right")
    return np.stack([across_T, along_T] if horizontal else [along_T, across_T], 1)


def _scene(rng: np.random.Generator, origin_T2: np.ndarray, ball_T2: np.ndarray) -> np.ndarray:
    """Texture, ball and noise without flashes: uint8 frames_THWC.

    All sums stay inside 0..255 (30..100 texture, +70 ball, noise clipped at 12): bytes are added as they are.
    """
    blocks = TEXTURE_SIZE // TEXTURE_BLOCK
    texture_HWC = 30 + 35 * rng.random((blocks, blocks, 3)) + 35 * rng.random(3)
    texture_HWC = texture_HWC.astype(np.uint8).repeat(TEXTURE_BLOCK, 0).repeat(TEXTURE_BLOCK, 1)
    frames_THWC = _windows(texture_HWC, origin_T2)
    disc = _disc()
    frames_THWC += _windows(disc, disc.shape[0] // 2 - ball_T2.round().astype(int))
    noise = _noise()
    pixels = SIZE * SIZE * 3
    offset_T = rng.integers(0, len(noise) - pixels, len(frames_THWC))
    frames_THWC += sliding_window_view(noise, pixels)[offset_T].reshape(frames_THWC.shape)
    return frames_THWC


def _windows(image_HWC: np.ndarray, origin_T2: np.ndarray) -> np.ndarray:
    """Crops of SIZE x SIZE at the given corners: a new array (T, SIZE, SIZE, 3)."""
    width = image_HWC.shape[1]
    rows = sliding_window_view(image_HWC.reshape(-1), SIZE * 3)  # one row of pixels from any byte on
    start_TH = ((origin_T2[:, :1] + np.arange(SIZE)) * width + origin_T2[:, 1:]) * 3
    return rows[start_TH].reshape(-1, SIZE, SIZE, 3)


def _stamp(frame_HWC: np.ndarray, mask_HW: np.ndarray, rgb: np.ndarray, y: int, x: int) -> None:
    frame_HWC[y : y + GLYPH_SIZE, x : x + GLYPH_SIZE][mask_HW] = rgb


@cache
def _disc() -> np.ndarray:
    """The ball's brightness in the middle of a black canvas, large enough to crop any position from."""
    centre = SIZE + BALL_RADIUS
    axis = np.arange(2 * centre) - centre
    inside_HW = axis[:, None] ** 2 + axis**2 < BALL_RADIUS**2
    return np.repeat(inside_HW[..., None] * np.uint8(BALL_BRIGHTNESS), 3, 2)


@cache
def _noise() -> np.ndarray:
    """Sensor noise as bytes modulo 256; each frame reads it from an offset of its own."""
    noise = np.random.default_rng(7).normal(0, NOISE_SD, 64 * SIZE * SIZE * 3)
    return np.clip(noise.round(), -12, 12).astype(np.int8).view(np.uint8)
