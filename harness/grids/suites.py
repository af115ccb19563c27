"""The suites that cells are scored on: one for each seed, size and world of evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Private, since harness/mini/suite.py is part of what names a suite: a public name there would rename them all.
from harness.mini.suite import SIZES, _parameters, _sha256, build_suite, load_suite
from harness.mini.world import PLAIN, World
from harness.paths import cache_dir
from harness.progress import SILENT, Progress


def parameters_of(settings: DictConfig) -> dict[str, Any]:
    """What a cell's settings say of its suite, as plain data."""
    world = OmegaConf.to_container(settings.world.evaluation)
    return {"seed": settings.seed, "sizes": settings.scale.suite, "world": world}


def made_suite(parameters: Mapping[str, Any]) -> Path | None:
    """The suite's folder, or None if it is not there yet."""
    determined_by = _parameters(parameters["seed"], SIZES[parameters["sizes"]], World.of(parameters["world"]))
    folder = cache_dir() / "suites" / f"suite-{_sha256(determined_by)[:16]}"
    return folder.resolve() if folder.is_dir() else None


def world_in(suite: Path) -> World:
    """The world of a suite; the plain one for a suite from before there were others. UserError if it is no suite."""
    world = load_suite(suite)["parameters"].get("world")
    return PLAIN if world is None else World.of(world)


def make_suite(settings: DictConfig, workers: int = 1, progress: Progress = SILENT) -> Path:
    """The suite of a cell's settings, made if it is not there."""
    its = parameters_of(settings)
    return build_suite(its["seed"], SIZES[its["sizes"]], None, workers, progress, World.of(its["world"]))
