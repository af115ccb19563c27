"""The verb `scaling`: is cost linear in frames? Counted at 7B, measured on this machine at a mid-size configuration.

The measured decoder is small and each frame has 9 tokens, so that at 1,536 frames self-attention outweighs the linear
layers about as it does at 7B with 81 tokens a frame (5.0 against 3.8 times their FLOPs): the same curve, within minutes
on one thread. A hybrid layer in every eight, as at 7B.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from architectures import SlowFastConfig
from architectures.bench import MEASURED as WIDTH_512
from architectures.cost import prefill_cost
from harness.paths import expect_writable, write_text
from harness.profilers import scaling_report
from harness.profilers.measure import Measured, measure
from harness.profilers.overhead import BASELINE, HYBRID, measure_overhead
from harness.profilers.profile_gpu import configs_of, options_of
from harness.profilers.scaling_report import COUNTED, MEASURED
from harness.profilers.slopes import slope_of
from harness.profilers.timing import Rounds, one_thread
from harness.progress import Display

MID_SIZE = {"model_type": "qwen2", "eos_token_id": None, **WIDTH_512}
TOKENS_9, TOKENS_81 = 96, 288  # pixels of which the tiny encoder makes 3 x 3 and 9 x 9 tokens, pooled by 2
AT_LEAST = 3  # rounds of every cell, as far as the time allows
OVERHEAD_PART = 0.15  # of the time for the overhead: cells of a second
OVERHEAD_ROUNDS = 25
PAIR = (BASELINE[0], HYBRID[0])
SCOPES = {"llm_prefill": "prefill", "model": "model"}  # of a cost, and the stage that is measured
AT_7B = "paper"  # the scale whose name people know


def scaling(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Measure (on one thread) and count against frames; print slopes and overhead, store and draw them."""
    configs, options = configs_of(settings, overrides), options_of(settings)
    folder = Path(settings.results_dir)
    for path in (folder / "scaling.md", Path(settings.output or folder / "scaling.csv")):
        expect_writable(path)
    long_s = (1 - OVERHEAD_PART) * settings.seconds
    rounds = Rounds(settings.rounds, settings.warmup, min(AT_LEAST, settings.rounds), long_s)
    with Display() as display, one_thread():
        overhead = measure_overhead(
            {name: mid_size(config, TOKENS_81) for name, config in configs_of(settings, overrides, PAIR).items()},
            options.device,
            options.dtype,
            settings.text_tokens[0],
            Rounds(OVERHEAD_ROUNDS, settings.warmup, seconds=OVERHEAD_PART * settings.seconds),
            display.progress(),
        )
        measured = measure(
            {name: mid_size(config, TOKENS_9) for name, config in configs.items()},
            sorted(settings.frames),
            replace(options, rounds=rounds, text_tokens=options.text_tokens[:1], new_tokens=1),
            progress=display.progress(),
        )
    points = pd.concat([counted_points(configs, settings), measured_points(measured)], ignore_index=True)
    slopes = slopes_of(points)
    write_text(Path(settings.output or folder / "scaling.csv"), points.to_csv(index=False))
    write_text(folder / "scaling_slopes.csv", slopes.to_csv(index=False))
    write_text(folder / "scaling_overhead.csv", overhead.rows.to_csv(index=False))
    write_text(folder / "scaling.md", scaling_report.as_markdown(points, slopes, overhead, measured.machine))
    figures = scaling_report.draw(points, slopes, folder / "figures" / "scaling", measured.machine)
    scaling_report.show(points, slopes, overhead, measured.machine)
    print(f"Rows: {folder / 'scaling'}*.csv, .md; figure: {', '.join(map(str, figures))}")
    measured.complain()


def mid_size(config: SlowFastConfig, image_size: int) -> SlowFastConfig:
    """The same variant with a decoder of `MID_SIZE` behind the tiny encoder."""
    changes: dict[str, Any] = {"text_config": dict(MID_SIZE), "vision": {"name": "tiny", "image_size": image_size}}
    changes["video_token_id"] = MID_SIZE["vocab_size"] - 1
    return SlowFastConfig.from_dict({**config.to_dict(), **changes})


def counted_points(configs: Mapping[str, SlowFastConfig], settings: DictConfig) -> pd.DataFrame:
    """FLOPs in closed form, in units of TFLOP."""
    rows, scale = [], settings.scale.name
    how = f"{COUNTED} at {'7B' if scale == AT_7B else f'{scale} scale'}"
    for name, config in configs.items():
        for frames in sorted(settings.frames):
            cost = prefill_cost(config, frames, settings.text_tokens[0])
            share = cost.self_attention / cost.llm_prefill
            for scope in SCOPES:
                rows.append([how, name, scope, frames, getattr(cost, scope) / 1e12, "TFLOP", share])
    columns = ["how", "architecture", "scope", "frames", "value", "unit", "self_attention_share"]
    return pd.DataFrame(rows, columns=columns)


def measured_points(measured: Measured) -> pd.DataFrame:
    """Milliseconds with quartiles, FLOPs of the same cells, and what they were measured with."""
    parts = []
    for scope, stage in SCOPES.items():
        rows = measured.rows[measured.rows["stage"].eq(stage)]
        renamed = rows.rename(columns={"median_ms": "value", "q1_ms": "q1", "q3_ms": "q3"})
        sizes = f"width {MID_SIZE['hidden_size']}, {MID_SIZE['num_hidden_layers']} layers"
        parts.append(renamed.assign(how=MEASURED, scope=scope, unit="ms", decoder=sizes).drop(columns="stage"))
    return pd.concat(parts, ignore_index=True)


def slopes_of(points: pd.DataFrame) -> pd.DataFrame:
    """The slope of every curve of three points or more; cells without a value are left out."""
    rows = []
    for key, curve in points.groupby(["how", "architecture", "scope"], sort=False):
        curve = curve[curve["value"].notna()].sort_values("frames")
        slope = slope_of(curve["frames"], curve["value"].astype(float))
        if slope is not None:
            ends = curve["frames"].iloc[0], curve["frames"].iloc[-1]
            rows.append([*key, *ends, slope.slope, slope.low, slope.high, slope.first, slope.last])
    columns = ["how", "architecture", "scope", "from_frames", "to_frames"]
    return pd.DataFrame(rows, columns=[*columns, "slope", "low", "high", "local_first", "local_last"])
