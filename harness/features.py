"""What a frozen encoder made of videos, kept on disk: decoding and encoding are half of an evaluation.

    FOLDER/<key>/<video>-<hash of its path>.safetensors

The key is a hash of all that shapes the features besides the video (`encoding_key`). A file holds the features
`features_BTPV` and times `times_BT` of the frames that the selector keeps, in the model's own precision, and how
the video was read; it says which state of the video (size and time of change) it is of, and the sha256 of its
numbers. Features read back are equal to the bit. A file that is broken, or of another state, is as good as none.

On disk a video takes 4 T P V bytes in float32: 0.4 MB for 128 frames of the mini encoder (P = 16, V = 48). Where no
more can be written (a full disk), that is said once, and the rest is not kept.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from harness.errors import UserError
from harness.journal import Watched
from harness.progress import SILENT
from harness.provenance import library_versions
from harness.sampling import DEFAULT as DEFAULT_RULE
from harness.sampling import find_rule
from harness.stages import code_hash
from harness.video import Decoded, VideoError

SEEING = (
    *(f"architectures.{name}" for name in ("encoders", "selectors", "processing", "video_mllm")),
    *(f"harness.{name}" for name in ("features", "video", "sampling", "packets", "decoders")),
)
"""Modules and packages whose code shapes features."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

State = tuple[int, int] | None


@dataclass(frozen=True)
class Seen:
    """One video as the encoder saw it.

    Attributes:
        features_BTPV: of the kept frames, B = 1.
        times_BT: their times, as in `harness.video.Decoded`, B = 1.
        watched: how the video was read when it was decoded, its `seconds` then included.
    """

    features_BTPV: torch.Tensor
    times_BT: torch.Tensor
    watched: Watched

    def to(self, device: torch.device) -> "Seen":
        """The same on another device."""
        return replace(self, features_BTPV=self.features_BTPV.to(device), times_BT=self.times_BT.to(device))


class Memo:
    """Features by video, for one encoder and one way of seeing. Any number of processes may share the folder.

    Attributes:
        say: who is told, in a sentence, that no more can be kept.
        full: whether that was so.

    UserError if the folder cannot be made.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.folder = Path(folder) / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in NO_ROOM:  # else the first that is to be kept will say so
                raise UserError(f"features={folder}: no folder can be made there ({error.strerror})") from error
        self.states: dict[Path, State] = {}
        self.say: Callable[[str], None] = SILENT.say
        self.full = False

    def missing(self, paths: Iterable[Path]) -> list[Path]:
        """Those videos that must be decoded, each once, in order.

        Their states are noted: what is saved of a video that changes after this is not taken for the new one.
        """
        different = dict.fromkeys(paths)
        self.states |= {path: state_of(path) for path in different}
        return [path for path in different if self._about(path) is None]

    def load(self, path: Path) -> Seen | None:
        """What was kept of a video, or None."""
        about = self._about(path)
        if about is None:
            return None
        try:
            with safe_open(self._file(path), "pt") as content:
                features_BTPV, times_BT = (content.get_tensor(name) for name in ("features_BTPV", "times_BT"))
        except (FileNotFoundError, SafetensorError):  # gone or damaged meanwhile: as good as none
            return None
        if about["sha256"] != digest_of(features_BTPV, times_BT):
            return None
        watched = {**about["watched"], "video": video_name(path), "indices": tuple(about["watched"]["indices"])}
        return Seen(features_BTPV, times_BT, Watched(**watched))

    def save(self, path: Path, seen: Seen) -> None:
        """Keep what was made of a video that `missing` named; a reader sees the whole file or none.

        What cannot be written, on a full disk or in a folder that is gone, is not kept, nor is anything after it.
        """
        if self.full:
            return
        try:
            self._write(path, seen)
        except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
            self.full = True
            self.say(
                f"features of videos are not kept any further, and made again where they are needed: {self.folder} "
                f"cannot be written ({error}); make room there, or name another folder"
            )

    def _write(self, path: Path, seen: Seen) -> None:
        tensors = {"features_BTPV": seen.features_BTPV, "times_BT": seen.times_BT}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = {
            "state": self.states[path],
            "sha256": digest_of(*tensors.values()),
            "watched": asdict(seen.watched),
        }
        final = self._file(path)
        descriptor, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=self.folder)
        os.close(descriptor)
        work = Path(name)
        try:
            save_file(tensors, work, metadata={"about": json.dumps(about)})
            work.chmod(0o644)
            work.replace(final)
        finally:
            work.unlink(missing_ok=True)

    def _file(self, path: Path) -> Path:
        """Videos of one name in different folders are told apart."""
        where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        return self.folder / f"{path.stem}-{where}.safetensors"

    def _about(self, path: Path) -> dict[str, Any] | None:
        """What a whole file says of itself, if it is of the video's present state."""
        try:
            with safe_open(self._file(path), "pt") as content:
                about = json.loads((content.metadata() or {})["about"])
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):  # none, or broken: as good as none
            return None
        state = state_of(path)
        return about if state is not None and about["state"] == list(state) else None


def see_ahead(
    paths: list[Path], decode: Callable[[Iterable[Path]], Iterator[Decoded | VideoError]], memo: Memo | None
) -> Iterator[Decoded | Seen | VideoError]:
    """Yield each path's video in order: from the memo what it holds, and the others as `decode` reads them.

    `decode` gets the videos that the memo lacks at the start, and may read ahead. What comes again is in the memo
    by then, if the caller saves what it encodes; where it is not, it is decoded on the spot.
    """
    if memo is None:
        yield from decode(paths)
        return
    missing = memo.missing(paths)
    stream, coming = decode(missing), set(missing)
    for path in paths:
        if path in coming:
            coming.remove(path)
            yield next(stream)
        elif (seen := memo.load(path)) is not None:
            yield seen
        else:
            yield from decode([path])


def encoding_key(model: Any, processor: Any, frames: int, decoder: str, sampling: str = DEFAULT_RULE) -> str:
    """A hash of all that shapes features besides the video.

    Encoder and selector (configuration and weights), what the processor does to frames, how many are sampled and
    how, the decoder's version, precision, device and threads, the code and the libraries.
    """
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
    shaped_by = {
        "encoder": model.config.vision,
        "selector": model.config.selector,
        "weights": [weights_hash(model.encoder), weights_hash(model.selector)],
        "processing": processor.video_processor.to_dict(),
        "sampling": [frames, find_rule(sampling).formula],
        "decoder": decoder,
        "arithmetic": [str(model.dtype), device, torch.get_num_threads()],
        "code": code_hash(SEEING),
        "versions": library_versions(),
    }
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_hash(module: torch.nn.Module) -> str:
    """sha256 over a module's parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def digest_of(*tensors: torch.Tensor) -> str:
    """sha256 over the bytes of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's numbers as they are in memory, whatever their type."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def state_of(path: Path) -> State:
    """Size and time of change of a file, (bytes, ns); None if there is none."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def watched_of(path: Path, video: Decoded | Seen | VideoError) -> Watched:
    """What is kept of how a video was read; for one from a memo, of how it was when it was decoded."""
    if isinstance(video, Seen):
        return video.watched
    if isinstance(video, VideoError):
        return Watched(video_name(path), failure=video.kind)
    return Watched(
        video=video_name(path),
        decoder=video.decoder,
        reading=video.reading,
        why=video.why,
        total=video.total,
        indices=tuple(video.indices_T.tolist()),
        seconds=round(video.seconds, 6),
    )


def video_name(path: Path) -> str:
    """A video's path, relative to HF_HOME where it lies there."""
    home, real = os.environ.get("HF_HOME"), path.resolve()
    below = home is not None and real.is_relative_to(Path(home).resolve())
    return str(real.relative_to(Path(home).resolve())) if below else str(path)
