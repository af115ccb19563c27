"""What is asked of the table at paper scale: the settings it reads, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.benchmarks import BENCHMARKS, all_benchmarks, benchmark_named
from harness.errors import UserError
from harness.paper.models import ModelSpec, load_model, own_model
from harness.prompt_styles import find_style
from harness.sampling import find_rule

DEFAULTS: dict[str, Any] = {
    "models": ["released_64", "released_96"],
    "checkpoint": None,
    "frames": 128,
    "data": None,
    "benchmarks": None,
    "further": False,
    "limit": None,
    "prompts": "official",
    "sampling": "official",
    "processes": 1,
    "batch_size": 1,
    "workers": 2,
    "dtype": "bfloat16",
    "device": "auto",
    "online": False,
    "submit": False,
    "dry_run": False,
    "seed": 0,
    "jobs": None,
    "runs_dir": "results/runs",
    "results_dir": "results",
}
"""Every setting that is read, and its value where the composed settings have none, or null."""
TYPED_ONLY = ("batch_size",)
"""Settings whose composed value is the mini scale's, so that only a typed one counts: batches of 32 hold 32 videos."""
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Precisions of evaluation, and the bytes of a number."""


@dataclass(frozen=True)
class Request:
    """The settings of one table.

    Attributes:
        models: the rows; none but the checkpoint's where one is named and no models are.
        data: folder of real data (hub/, home/, models/), None if none was named.
        benchmarks: registry names, the five first.
        limit: questions of each task at most; None: all.
        prompts, sampling: names in `harness.prompt_styles` and `harness.sampling`; external models have their own.
        processes: that share each evaluation; results do not depend on it.
        batch_size: questions answered together by a process.
        online, submit: whether the hub may be asked, and predictions posted.
        jobs: stages at once; None: 1, for each may need all of a GPU's memory.
    """

    models: tuple[ModelSpec, ...]
    data: Path | None
    benchmarks: tuple[str, ...]
    limit: int | None
    prompts: str
    sampling: str
    processes: int
    batch_size: int
    workers: int
    dtype: str
    device: str
    online: bool
    submit: bool
    seed: int
    jobs: int | None
    runs: Path
    results: Path

    @classmethod
    def of(cls, settings: DictConfig, overrides: Sequence[str]) -> "Request":
        """The request in composed `settings`; `overrides` are those that were typed. UserError for a mistake."""
        asked = {name: _value(settings, overrides, name) for name in DEFAULTS}
        find_style(asked["prompts"])
        find_rule(asked["sampling"])
        if asked["dtype"] not in DTYPES:
            raise UserError(f"dtype={asked['dtype']}: choose one of {', '.join(DTYPES)}")
        for name in ("processes", "batch_size", "limit"):
            if asked[name] is not None and asked[name] < 1:
                raise UserError(f"{name}={asked[name]}: it is at least 1")
        benchmarks = _benchmarks(asked["benchmarks"], asked["further"], asked["online"])
        if asked["submit"]:
            _expect_submission(benchmarks, asked["limit"])
        return cls(
            models=_models(asked),
            data=None if asked["data"] is None else Path(asked["data"]).absolute(),
            benchmarks=benchmarks,
            runs=Path(asked["runs_dir"]).absolute(),
            results=Path(asked["results_dir"]).absolute(),
            **{
                name: asked[name]
                for name in ("limit", "prompts", "sampling", "processes", "batch_size", "workers", "dtype", "device")
            },
            **{name: asked[name] for name in ("online", "submit", "seed", "jobs")},
        )

    @property
    def where(self) -> Path:
        """The folder of real data; UserError if none was named."""
        if self.data is None:
            raise UserError("scale=paper needs data=FOLDER, the folder of the real benchmarks; `make doctor` says how")
        return self.data


def _value(settings: DictConfig, overrides: Sequence[str], name: str) -> Any:
    if name in TYPED_ONLY and not any(text.startswith(f"{name}=") for text in overrides):
        return DEFAULTS[name]
    value = OmegaConf.select(settings, name, default=DEFAULTS[name], throw_on_missing=False)
    value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if value is None:
        return [] if name == "models" and OmegaConf.select(settings, "checkpoint") is not None else DEFAULTS[name]
    return getattr(value, "name", value)  # an enumeration's word


def _models(asked: dict[str, Any]) -> tuple[ModelSpec, ...]:
    models = [load_model(name) for name in asked["models"]]
    if asked["checkpoint"] is not None:
        models.append(own_model(Path(asked["checkpoint"]), asked["frames"]))
    names = [model.name for model in models]
    if not models or len(set(names)) < len(names):
        raise UserError(f"models={names}: give at least one, each only once")
    for model in models:
        if model.frames is None:
            raise UserError(f"models: {model.name} has no frames of its own; give its folder as checkpoint=FOLDER")
    return tuple(models)


def _expect_submission(benchmarks: Sequence[str], limit: int | None) -> None:
    """UserError where there would be nothing to post, or a part of a set, whose rest counts as missing."""
    if not any(benchmark_named(name).submission for name in benchmarks):
        raise UserError("submit=true: no benchmark here has predictions to post; add benchmarks=[egoschema_full]")
    if limit is not None:
        raise UserError(f"submit=true: a set is posted whole; leave out limit={limit}")


def _benchmarks(chosen: Sequence[str] | None, further: bool, online: bool) -> tuple[str, ...]:
    """The five, or those chosen; `further` adds the paper's other columns.

    A judge is asked over the network, so that its benchmarks come with `online` only; a set without public answers
    has no column, and must be chosen by name.
    """
    if chosen is not None:
        if not chosen or len(set(chosen)) < len(chosen):
            raise UserError(f"benchmarks={list(chosen)}: give at least one, each only once")
        return tuple(benchmark_named(name).name for name in chosen)
    others = [b.name for b in all_benchmarks().values() if not b.submission and (online or not b.judge)]
    return tuple(name for name in others if further or name in BENCHMARKS)
