"""The stages of a table that are not training, and those of frame selection; the plan is in `table`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.models import plain
from harness.paths import write_text
from harness.progress import Progress
from harness.stages import Stage

SELECTING = ("architectures.encoders", "architectures.selectors", "harness.mini.encoder", "harness.mini.pool")


def selects(settings: DictConfig) -> bool:
    """Whether the encoder sees only some of a row's frames."""
    return settings.selector.name != "all"


def cheap_encoder_stages(settings: DictConfig, sources: Sequence[str]) -> list[Stage]:
    """The pretraining of a selector's own encoder, where it has one: as the encoder's, on smaller frames."""
    if "encoder" not in settings.selector:
        return []
    kwargs = {
        "seed": settings.seed,
        "vision": plain(settings.selector.encoder),
        "recipe": plain(settings.scale.encoder_training),
    }
    function = "harness.mini.training:encoder_stage"
    return [Stage(cheap_encoder_name(settings), function, kwargs, weight=60, sources=tuple(sources))]


def selection_stages(
    settings: DictConfig, frames: int, ranges: Sequence[tuple[int, int]], sources: Sequence[str]
) -> list[Stage]:
    """A row's choices of frames of the pool's clips, in the pool's parts."""
    if not selects(settings):
        return []
    needs = {"cheap_encoder": cheap_encoder_name(settings)} if "encoder" in settings.selector else {}
    kwargs = {
        "seed": settings.seed,
        "vision": plain(settings.encoder),
        "selector": plain(settings.selector),
        "frames": frames,
        "world": plain(settings.world.training),
    }
    function = "harness.mini.training:selection_stage"
    return [
        Stage(
            selection_name(settings, frames, part),
            function,
            {**kwargs, "start": start, "stop": stop},
            needs,
            weight=0.04 * (stop - start),
            sources=(*sources, *SELECTING, "harness.video", "harness.sampling"),
        )
        for part, (start, stop) in enumerate(ranges)
    ]


def selection_needs(settings: DictConfig, frames: int, parts: int) -> dict[str, str]:
    """What the adaptation of a row needs of the stages above: its parameter -> the stage."""
    if not selects(settings):
        return {}
    cheap = {"cheap_encoder": cheap_encoder_name(settings)} if "encoder" in settings.selector else {}
    return {**cheap, **{f"selection{part}": selection_name(settings, frames, part) for part in range(parts)}}


def cheap_encoder_name(settings: DictConfig) -> str:
    """Stage name of the encoder that an architecture's selector has of its own."""
    return f"cheap_encoder-{settings.architecture.name}"


def selection_name(settings: DictConfig, frames: int, part: int) -> str:
    """Stage name of a part of a row's choices."""
    return f"selection{part}-{settings.architecture.name}-{frames}"


def scores_stage(
    out: Path,
    progress: Progress,
    checkpoint: Path,
    suite: Path,
    suite_state: str,
    frames: int,
    control: str,
    batch_size: int,
    workers: int,
    features: Path | None = None,
) -> None:
    """Evaluates a checkpoint on the suite in the folder `suite`: `samples.parquet`, `scores.json`, the journal.

    `suite_state` stands for what is in that folder: another state makes this another stage. `suite`, `workers` and
    `features` (a folder of encoder features that evaluations share, see `harness.features`) shape no result: they
    are a stage's `aside`.
    """
    from harness.evaluate import evaluate
    from harness.mini.training import quiet

    quiet()
    evaluate(checkpoint, suite, out, frames, control, batch_size, workers, progress, features=features)


def cost_stage(
    out: Path,
    progress: Progress,
    frames: list[int],
    text_tokens: int,
    mini: dict[str, Any],
    paper: dict[str, Any],
) -> None:
    """Counts an architecture at both scales: `cost.json`, frames -> the row's FLOP fields."""
    from architectures import SlowFastConfig, SlowFastForConditionalGeneration
    from harness.profilers.flops import META, count_model

    with META:
        small = SlowFastForConditionalGeneration(SlowFastConfig.from_dict(mini))
        large = SlowFastForConditionalGeneration(SlowFastConfig.from_dict(paper))
    costs = {}
    for n in progress.track(frames, "counting"):
        here, at_7b = count_model(small, n, text_tokens), count_model(large, n, text_tokens)
        costs[n] = {
            "fast_tokens": here.fast_tokens,
            "slow_tokens": here.slow_tokens,
            "prefill_mflop_mini": here.llm_prefill / 1e6,
            "prefill_tflop_7b": at_7b.llm_prefill / 1e12,
            "model_tflop_7b": at_7b.model / 1e12,
            "flop_stages": {stage: flop / 1e12 for stage, flop in at_7b.stages().items()},
        }
    write_text(out / "cost.json", json.dumps(costs, indent=2))


def latency_stage(out: Path, progress: Progress, frames: list[int], **models: Path) -> None:
    """Times all models in turn: `latency.json`, a list in the order of the rows."""
    from harness.mini.training import quiet
    from harness.profilers.latency import measure

    quiet()
    settings = [(models[f"model{i}"], n) for i, n in enumerate(frames)]
    measured = [asdict(latency) for latency in measure(settings, progress=progress)]
    write_text(out / "latency.json", json.dumps(measured, indent=2))
