"""The pool of training clips: frames through the codec, then the frozen encoder's features, kept on disk.

Beside them, for each row with a frame selector, which frames of every clip it keeps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from architectures.encoders import Encoder
from architectures.selectors import Selector
from harness.mini.clips import through_codec
from harness.mini.encoder import normalise
from harness.mini.world import FRAMES, PLAIN, Clip, World, draw_clip, render
from harness.video import uniform_indices


def write_features(
    encoder: Encoder,
    seed: int,
    start: int,
    stop: int,
    path: Path,
    progress: Callable[[int, int], None],
    world: World = PLAIN,
) -> None:
    """Clips `start` to `stop` of a seed and world, through codec and encoder, as `float16 features_NTPV` (npy)."""
    rows, columns = encoder.grid
    shape = (stop - start, FRAMES, rows * columns, encoder.width)
    features = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for index in range(start, stop):
        frames_THWC = through_codec(render(draw_clip(seed, index, world)))
        with torch.no_grad():
            features[index - start] = encoder.encode(normalise(frames_THWC, encoder)).numpy()
        progress(index - start + 1, stop - start)
    features.flush()


def write_choices(
    selector: Selector,
    encoder: type[Encoder] | Encoder,
    seed: int,
    clips: range,
    frames: int,
    path: Path,
    progress: Callable[[int, int], None],
    world: World = PLAIN,
) -> None:
    """Of `frames` frames sampled uniformly from each clip, those that are kept: `int16 choices_NK` (npy).

    They are places in the whole clip, ascending. `encoder` says how frames are normalised.
    """
    offered_T = uniform_indices(FRAMES, frames)
    choices_NK = np.empty((len(clips), selector.n_frames(frames)), np.int16)
    for row, index in enumerate(clips):
        frames_THWC = through_codec(render(draw_clip(seed, index, world)))[offered_T]
        choices_NK[row] = offered_T[selector(normalise(frames_THWC, encoder)[None])[0].numpy()]
        progress(row + 1, len(clips))
    np.save(path, choices_NK)


def read_choices(paths: list[Path]) -> np.ndarray:
    """The choices that `write_choices` made of consecutive ranges from clip 0 on: `int64 choices_NK`."""
    return np.concatenate([np.load(path) for path in paths]).astype(np.int64)


@dataclass(frozen=True)
class Pool:
    """Clips and their features; parts are memory-mapped, so that two trainings share one copy."""

    clips: list[Clip]
    parts: list[np.ndarray]

    @classmethod
    def open(cls, seed: int, paths: list[Path], world: World = PLAIN) -> "Pool":
        """The pool in the files that `write_features` made of consecutive ranges from clip 0 on."""
        parts = [np.load(path, mmap_mode="r") for path in paths]
        return cls([draw_clip(seed, index, world) for index in range(sum(map(len, parts)))], parts)

    def __len__(self) -> int:
        return len(self.clips)

    def features(self, clips_B: np.ndarray, frames_BT: np.ndarray) -> torch.Tensor:
        """The features of some frames of some clips, `features_BTPV`, float32."""
        starts = np.cumsum([0] + [len(part) for part in self.parts])
        which = np.searchsorted(starts, clips_B, side="right") - 1
        picked = [
            self.parts[part][clip - starts[part]][frames]
            for part, clip, frames in zip(which, clips_B, frames_BT, strict=True)
        ]
        return torch.from_numpy(np.stack(picked)).float()
