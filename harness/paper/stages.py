"""The stages of a row at paper scale, resumable and shared like those of the mini table.

    import-MODEL --> scores-MODEL-BENCHMARK (one per benchmark) --> row
                 \\-> cost-MODEL ------------------------------------^
    scores-MODEL-BENCHMARK of lmms-eval's own models ---------------^

A checkpoint in our own layout needs no import. Each benchmark is a stage of its own: one that fails does not take the
others with it, and one that is added later leaves the finished ones as they are.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from harness.asking import JUDGE
from harness.benchmarks import benchmark_named
from harness.errors import UserError
from harness.journal import SCORING
from harness.paper.models import ModelSpec, is_official, tower_for
from harness.paper.plan import TEXT_TOKENS
from harness.paper.request import Request
from harness.paths import write_text
from harness.progress import Progress
from harness.real.checkpoints import CONFIG, WEIGHTS
from harness.stages import Stage

MODEL = "model"  # the folder of an import's result, below the stage's own
SHAPING = (".safetensors", ".json", ".jinja", ".txt", ".model")  # endings of a checkpoint's files that make answers
PROBES, PROBE_BYTES = 64, 2**16  # of a weight file: places that are read, evenly spaced, and how much at each
TENSOR_BYTES = 2**12  # that are read at a place in a tensor
HEAD_BYTES = 8  # of a safetensors file: the length of the JSON that follows them
TOKENIZERS = ("tokenizer.json", "vocab.json")
EXTERNAL = (
    *("harness.external", "harness.asking", "harness.evaluate", "harness.lmms_requests", "harness.processes"),
    *("harness.benchmarks", "harness.further_benchmarks", "harness.submission", "harness.real.videos"),
)
JUDGES_NAME = ("MODEL_VERSION", "gpt-4o-2024-11-20")  # where the packaged tasks look for the judge's, and their default


@dataclass(frozen=True)
class RowStages:
    """The stages of one model's row. `suites` are the benchmarks' suites, by name."""

    request: Request
    spec: ModelSpec
    suites: dict[str, Path]

    def all(self) -> list[Stage]:
        """Every stage, each after what it needs."""
        first = [] if self.spec.is_external else [*self.imports(), self.cost()]
        return [*first, *map(self.scores, self.asked)]

    @property
    def asked(self) -> list[str]:
        """The benchmarks that are evaluated: lmms-eval's own models would post what has no public answers."""
        return [name for name in self.suites if not (self.spec.is_external and benchmark_named(name).submission)]

    @cached_property
    def folder(self) -> Path:
        """The checkpoint's folder; UserError if it is not there."""
        folder = self.spec.at(self.request.data)
        if folder is None or not (folder / CONFIG).is_file():
            raise UserError(
                f"{self.spec.name}: its checkpoint is not at {folder}; fetch it (python -m harness fetch "
                f"models=[{self.spec.name}] online=true data=...), or leave the row out"
            )
        return folder

    @cached_property
    def imported(self) -> bool:
        """Whether the checkpoint has to be imported first."""
        return is_official(self.folder)

    @cached_property
    def state(self) -> str:
        """A hash of the checkpoint."""
        return checkpoint_state(self.folder)

    def imports(self) -> list[Stage]:
        """The import, where one is needed."""
        if not self.imported:
            return []
        tower = tower_for(self.spec, self.folder, self.request.where)
        state = self.state if tower is None else f"{self.state}-{file_state(tower)}"
        aside = {"source": self.folder, "tower": tower}
        function, sources = f"{__name__}:import_stage", ("architectures",)
        return [Stage(self.import_name, function, {"state": state}, {}, 60, sources, aside)]

    def scores(self, benchmark: str) -> Stage:
        """The evaluation of one benchmark."""
        request = self.request
        kwargs = {"suite_state": fingerprint_of(self.suites[benchmark]), "benchmark": benchmark}
        aside = {"suite": self.suites[benchmark], "processes": request.processes, "device": request.device}
        aside["online"] = request.online
        if judge := judge_of(benchmark):
            kwargs["judge"] = judge
        name = self.scores_name(benchmark)
        if self.spec.is_external:
            kwargs |= {"model": self.spec.lmms_model, "model_args": self.spec.arguments(None)}
            aside |= {"model_args_here": self.spec.arguments(request.data)}
            return Stage(name, f"{__name__}:external_stage", kwargs, {}, 600, EXTERNAL, aside)
        kwargs |= {
            "frames": self.spec.frames,
            "prompts": request.prompts,
            "sampling": request.sampling,
            "batch_size": request.batch_size,
            "dtype": request.dtype,
        }
        aside["workers"] = request.workers
        if self.imported:
            needs = {"imported": self.import_name}
        else:
            needs, kwargs["checkpoint_state"], aside["checkpoint"] = {}, self.state, self.folder
        return Stage(name, f"{__name__}:scores_stage", kwargs, needs, 600, SCORING, aside)

    def cost(self) -> Stage:
        """The count of the checkpoint's own configuration."""
        kwargs = {"frames": self.spec.frames, "text_tokens": TEXT_TOKENS}
        if self.imported:
            needs, aside = {"imported": self.import_name}, {}
        else:
            needs, kwargs["checkpoint_state"], aside = {}, self.state, {"checkpoint": self.folder}
        sources = ("architectures", "harness.profilers.flops")
        return Stage(f"cost-{self.spec.name}", f"{__name__}:cost_stage", kwargs, needs, 15, sources, aside)

    @property
    def import_name(self) -> str:
        """Stage name of the import."""
        return f"import-{self.spec.name}"

    def scores_name(self, benchmark: str) -> str:
        """Stage name of a benchmark's evaluation."""
        return f"scores-{self.spec.name}-{benchmark}"


def judge_of(benchmark: str) -> str:
    """The language model that the packaged task lets score its answers, and where; "" where there is none."""
    if not benchmark_named(benchmark).judge:
        return ""
    return f"{os.environ.get(*JUDGES_NAME)} at {urlsplit(os.environ.get(*JUDGE)).netloc}"


def fingerprint_of(suite: Path) -> str:
    """A suite's fingerprint: of its questions, its videos' names and sizes."""
    return json.loads((suite / "suite.json").read_text(encoding="utf-8"))["fingerprint"]


# ------------------------------------------------------------------------------------------------ what they do


def import_stage(out: Path, progress: Progress, source: Path, tower: Path | None, state: str) -> None:
    """Turns an official checkpoint into one of ours, OUT/model: weights as they are, configuration and processor.

    `state` stands for what is in `source` and `tower`. Raises UserError for a checkpoint that cannot be imported.
    """
    from architectures.official import import_folder
    from harness.mini.training import quiet

    quiet()
    if not any((source / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{source} holds no tokenizer ({' or '.join(TOKENIZERS)}): download the checkpoint again")
    target = out / MODEL
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was cut off
    progress.say(f"importing {source}")
    try:
        import_folder(source, target, tower)
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be imported: {error}") from error


def scores_stage(
    out: Path,
    progress: Progress,
    suite: Path,
    benchmark: str,
    frames: int,
    prompts: str,
    sampling: str,
    batch_size: int,
    dtype: str,
    processes: int,
    workers: int,
    device: str,
    online: bool,
    suite_state: str,
    imported: Path | None = None,
    checkpoint: Path | None = None,
    checkpoint_state: str = "",
    judge: str = "",
) -> None:
    """Evaluates one benchmark: `samples.parquet`, `scores.json`, the journal.

    The states stand for what is in the folders, `judge` for who scores the answers. Processes, workers, device and
    online shape no result.
    """
    from harness.mini.training import quiet
    from harness.processes import evaluate_in_processes

    quiet()
    evaluate_in_processes(
        processes,
        checkpoint if imported is None else imported / MODEL,
        suite,
        out,
        frames,
        progress,
        benchmarks=[benchmark],
        prompts=prompts,
        sampling=sampling,
        batch_size=batch_size,
        dtype=dtype,
        workers=workers,
        device=device,
        online=online,
    )


def external_stage(
    out: Path,
    progress: Progress,
    suite: Path,
    benchmark: str,
    model: str,
    model_args: dict[str, Any],
    model_args_here: dict[str, Any],
    processes: int,
    device: str,
    online: bool,
    suite_state: str,
    judge: str = "",
) -> None:
    """Evaluates one benchmark with one of lmms-eval's own models; the files are the same.

    `model_args` names the weights as the hub does, `model_args_here` where they are on this machine.
    """
    from harness.external import evaluate_external

    evaluate_external(
        model,
        model_args_here,
        suite,
        out,
        benchmarks=[benchmark],
        processes=processes,
        device=device,
        online=online,
        progress=progress,
    )


def cost_stage(
    out: Path,
    progress: Progress,
    frames: int,
    text_tokens: int,
    imported: Path | None = None,
    checkpoint: Path | None = None,
    checkpoint_state: str = "",
) -> None:
    """Counts a checkpoint's own configuration on the meta device: `cost.json`, the row's FLOP fields."""
    from architectures import SlowFastConfig
    from harness.profilers.flops import count_prefill

    folder = checkpoint if imported is None else imported / MODEL
    config = SlowFastConfig.from_pretrained(folder, local_files_only=True)
    cost = count_prefill(config, frames, text_tokens)
    fields = {
        "fast_tokens": cost.fast_tokens,
        "slow_tokens": cost.slow_tokens,
        "prefill_mflop_mini": cost.llm_prefill / 1e6,
        "prefill_tflop_7b": cost.llm_prefill / 1e12,
        "model_tflop_7b": cost.model / 1e12,
        "flop_stages": {stage: flop / 1e12 for stage, flop in cost.stages().items()},
    }
    reading = {"generated_read_slow": bool(config.generated_read_slow) and cost.slow_tokens > 0}
    write_text(out / "cost.json", json.dumps({**fields, **reading}, indent=2) + "\n")


# ---------------------------------------------------------------------------------------- what they depend on


def checkpoint_state(folder: Path) -> str:
    """A hash of a checkpoint's files that make its answers: small ones whole, weights by `file_state`."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in SHAPING):
        digest.update(f"{path.name}\n{file_state(path)}\n".encode())
    return digest.hexdigest()[:16]


def file_state(path: Path) -> str:
    """A hash of a file's size and content, of weights of its head, 64 places in it, and three in each tensor.

    17 GB would take minutes at each start. Another training may leave most tensors as they are (the first stage trains
    the projector and the cross-attention alone), but moves those it trains at many places.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if path.suffix != Path(WEIGHTS).suffix or size <= PROBES * PROBE_BYTES:
            digest.update(file.read())
        else:
            for place, length in [*_places(size), *_in_tensors(file, size)]:
                file.seek(place)
                digest.update(file.read(length))
    return digest.hexdigest()[:16]


def _places(size: int) -> Iterator[tuple[int, int]]:
    """Place and length of blocks evenly spaced, the first and the last of the file included."""
    return ((probe * (size - PROBE_BYTES) // (PROBES - 1), PROBE_BYTES) for probe in range(PROBES))


def _in_tensors(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Place and length of the first, middle and last block of each tensor; none where the head says nothing of them."""
    file.seek(0)
    begin = HEAD_BYTES + int.from_bytes(file.read(HEAD_BYTES), "little")
    try:
        head = json.loads(file.read(begin - HEAD_BYTES)) if begin <= size else {}
    except ValueError:
        return
    spans = [entry["data_offsets"] for name, entry in head.items() if name != "__metadata__"]
    for start, end in spans:
        length = min(TENSOR_BYTES, end - start)
        yield from ((begin + place, length) for place in (start, (start + end - length) // 2, end - length))


def suites_of(request: Request, build: Callable[[Path, Sequence[str], int | None], Path]) -> dict[str, Path]:
    """Each benchmark's suite, made of the real data by `build`; its mistakes are its own UserErrors."""
    return {name: build(request.where, [name], request.limit) for name in request.benchmarks}
