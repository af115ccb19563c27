"""What a table at paper scale will take, told before anything is fetched or loaded: no GPU, data or network.

Counted at 7B from each model's configuration (`architectures.cost`, which the profilers' counter agrees with), and
assumed, each said under the plan: words of a question, words of an answer, and the share of a device's peak that is
reached. Numbers of questions and bytes are the catalogue's; what nobody has looked up is said to be not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from safetensors import SafetensorError

from architectures import SlowFastConfig
from architectures.cost import decode_cost, prefill_cost
from harness.benchmarks import Benchmark, benchmark_named
from harness.compose import compose
from harness.errors import UserError
from harness.models import model_config
from harness.paper.memory import Memory, checkpoint_bytes, evaluation_memory
from harness.paper.models import ModelSpec, is_official, read_config, tower_for, tower_shapes
from harness.paper.request import DTYPES, Request
from harness.profilers.roofline import DEVICES
from harness.real.catalogue import EXPECTED, Repository, repositories_of
from harness.real.checkpoints import CONFIG
from harness.real.checks import Needs
from harness.table import PAPER

TEXT_TOKENS = 128  # of a question with its options and the chat template
NEW_TOKENS = 8  # of an answer: a letter, or a few words around it
UTILISATION = 0.35  # share of a device's peak that is assumed to be reached
HOUR = 3600


@dataclass(frozen=True)
class Questions:
    """A benchmark's size: questions and videos, None where not known; `source` says whose numbers these are."""

    benchmark: Benchmark
    questions: int | None
    videos: int | None
    source: str

    @classmethod
    def of(cls, name: str, limit: int | None) -> "Questions":
        """As the catalogue has it, at most `limit` questions of each task."""
        benchmark, expected = benchmark_named(name), EXPECTED[name]
        at_most = None if limit is None else limit * len(benchmark.tasks)
        questions = expected.questions if at_most is None else min(expected.questions or at_most, at_most)
        videos = expected.videos if expected.videos is None or questions is None else min(expected.videos, questions)
        return cls(benchmark, questions, videos, expected.source)

    def encodings(self, batch: int) -> int | None:
        """How often a video is encoded, at most: anew in every batch that asks about it."""
        if self.questions is None:
            return None
        return self.questions if self.videos is None else min(self.questions, self.videos + self.questions // batch)


@dataclass(frozen=True)
class Work:
    """What one model's row takes.

    Attributes:
        config: its configuration, None where its code is not ours: then nothing is counted.
        questions: the benchmarks.
        size: bytes of a number.
    """

    spec: ModelSpec
    config: SlowFastConfig | None
    questions: Sequence[Questions]
    batch: int
    size: int

    @property
    def asked(self) -> int:
        """Questions, of the benchmarks whose number is known."""
        return sum(each.questions or 0 for each in self.questions)

    @cached_property
    def flop_of_video(self) -> int | None:
        """FLOP of encoding a video."""
        return None if self.config is None else prefill_cost(self.config, self.spec.frames, TEXT_TOKENS).vision

    @cached_property
    def flop_of_question(self) -> int | None:
        """FLOP of a question and its answer, its video being encoded: projector, compressor, prefill, new tokens."""
        if self.config is None:
            return None
        cost = prefill_cost(self.config, self.spec.frames, TEXT_TOKENS)
        step = decode_cost(self.config, self.spec.frames, TEXT_TOKENS).step
        return cost.model - cost.vision + NEW_TOKENS * step

    @property
    def flop(self) -> int | None:
        """FLOP of the whole row, of the benchmarks whose number of questions is known."""
        if self.config is None:
            return None
        encodings = sum(each.encodings(self.batch) or 0 for each in self.questions)
        return encodings * self.flop_of_video + self.asked * self.flop_of_question

    @cached_property
    def memory(self) -> Memory | None:
        """Of one process; None where its code is not ours."""
        if self.config is None:
            return None
        return evaluation_memory(self.config, self.spec.frames, TEXT_TOKENS, NEW_TOKENS, self.batch, self.size)


@dataclass(frozen=True)
class Fetch:
    """Something that the hub has: bytes, None where not known, and whether it is here already."""

    what: str
    bytes: int | None
    here: bool


@dataclass(frozen=True)
class Plan:
    """The plan of a request."""

    request: Request
    works: tuple[Work, ...]
    fetches: tuple[Fetch, ...]

    @property
    def questions(self) -> Sequence[Questions]:
        """The benchmarks."""
        return self.works[0].questions

    @property
    def flop(self) -> int:
        """Of all rows that can be counted."""
        return sum(work.flop or 0 for work in self.works)

    @property
    def to_fetch(self) -> int:
        """Bytes that are not here, as far as they are known."""
        return sum(fetch.bytes or 0 for fetch in self.fetches if not fetch.here)


def plan_of(request: Request) -> Plan:
    """The plan of a request; UserError for a model that cannot be counted."""
    questions = tuple(Questions.of(name, request.limit) for name in request.benchmarks)
    works = tuple(
        Work(spec, config_of(spec, request.data), questions, request.batch_size, DTYPES[request.dtype])
        for spec in request.models
    )
    fetches = [_fetch_of(repository, request.data) for repository in repositories_of(request.benchmarks)]
    fetches += [_weights_of(work, request.data) for work in works if work.spec.hub is not None]
    return Plan(request, works, tuple(fetches))


def needs_of(plan: Plan) -> Needs:
    """What the doctor compares the machine with: GPUs, memory of a process on its GPU and beside it, disk for weights.

    Every process holds a checkpoint in main memory before its GPU does. Those that are not here are still to be
    fetched; an import writes one once more.
    """
    counted = [work for work in plan.works if work.config is not None]
    sizes = [checkpoint_bytes(work.config) for work in counted]
    imported = [size for work, size in zip(counted, sizes, strict=True) if work.spec.kind == "released"]
    weights = [_weights_of(work, plan.request.data) for work in counted if work.spec.hub is not None]
    return Needs(
        disk=sum(imported) + sum(fetch.bytes for fetch in weights if not fetch.here),
        memory=max(sizes, default=0) * plan.request.processes or None,
        gpu_memory=max((work.memory.peak for work in counted), default=None),
        gpus=1 if plan.request.device.startswith("cpu") else plan.request.processes,
    )


def config_of(spec: ModelSpec, data: Path | None) -> SlowFastConfig | None:
    """A model's configuration: its checkpoint's if that is here, else that of its words at 7B.

    None for a model whose code is not ours. UserError for a checkpoint of another kind.
    """
    if spec.is_external:
        return None
    folder = spec.at(data)
    if folder is not None and (folder / CONFIG).is_file():
        return config_in(spec, folder, data or folder)
    if not spec.settings:
        raise UserError(f"{spec.name}: nothing says how large it is; give settings in its YAML, or its folder")
    return model_config(compose([*PAPER, *spec.settings]))


def config_in(spec: ModelSpec, folder: Path, data: Path) -> SlowFastConfig:
    """The configuration of a checkpoint in our layout or in the official one; UserError for any other.

    An official one's vision tower says its sizes by its tensors' shapes, which the heads of the files hold.
    """
    from architectures.official import config_of as official_config

    content = read_config(folder)
    try:
        if is_official(folder):
            return official_config(content, tower_shapes(folder, tower_for(spec, folder, data)))
        if content.get("model_type") != SlowFastConfig.model_type:
            raise ValueError(f"it is a '{content.get('model_type')}'")
        return SlowFastConfig.from_dict(content)
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{folder} holds no model that this project can run: {error}") from error


def device_hours(flop: int, dtype: str, utilisation: float = UTILISATION) -> dict[str, float]:
    """Hours of one device, by its title, at this share of its peak; of the devices whose peak in `dtype` is listed."""
    devices: Sequence[Mapping] = yaml.safe_load(DEVICES.read_text(encoding="utf-8"))
    return {
        device["title"]: flop / (device["tflop_per_s"][dtype] * 1e12 * utilisation) / HOUR
        for device in devices
        if dtype in device["tflop_per_s"]
    }


def _fetch_of(repository: Repository, data: Path | None) -> Fetch:
    here = data is not None and (data / "hub" / repository.name).is_dir()
    return Fetch(repository.name, repository.bytes, here)


def _weights_of(work: Work, data: Path | None) -> Fetch:
    """A checkpoint's tensors in half precision, as the released ones are; a file of its tower not counted twice."""
    folder = work.spec.at(data)
    size = None if work.config is None else checkpoint_bytes(work.config)
    return Fetch(work.spec.hub, size, folder is not None and (folder / CONFIG).is_file())
