"""The stages of a table that are not training: evaluation, FLOPs, latency; the plan is in `table`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.paths import write_text
from harness.progress import Progress


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
) -> None:
    """Evaluates a checkpoint on the suite in the folder `suite`: `samples.parquet`, `scores.json`, the journal.

    `suite_state` stands for what is in that folder: another state makes this another stage.
    """
    from harness.evaluate import evaluate
    from harness.mini.training import quiet

    quiet()
    evaluate(checkpoint, suite, out, frames, control, batch_size, workers, progress)


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
