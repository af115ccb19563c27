"""Prefill and per-token decode time of several models on this machine, interleaved: drift can't decide.

One video, 64 text tokens, one thread, weights as they are: time from the encoder's features to the
first token's logits (`prefill_ms`), and of one further token with the cache (`decode_ms`). Medians and
quartiles.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from architectures import SlowFastForConditionalGeneration
from architectures.hybrid import SlowFastCache
from harness.progress import SILENT, Progress

TEXT_TOKENS = 64


@dataclass(frozen=True)
class Latency:
    """Milliseconds: median, and (first, third) quartile."""

    prefill_ms: float
    prefill_ms_quartiles: tuple[float, float]
    decode_ms_per_token: float
    decode_ms_quartiles: tuple[float, float]


@torch.no_grad()
def time_once(model: SlowFastForConditionalGeneration, frames: int, new_tokens: int) -> tuple[float, float]:
    """Seconds of one prefill, and of one decoded token (mean of `new_tokens`)."""
    grid, config = model.encoder.grid, model.config
    frames = model.selector.n_frames(frames)  # the features that a prefill starts from are of these
    features = torch.zeros(1, frames, grid[0] * grid[1], model.encoder.width)
    times = torch.linspace(0, 1, frames)[None]
    text = torch.full((1, TEXT_TOKENS), config.video_token_id + 1)
    video = torch.full((1, model.fast_token_count(frames)), config.video_token_id)
    cache = SlowFastCache(config.text_config)
    start = time.perf_counter()
    model(
        input_ids=torch.cat([video, text], dim=1),
        features=features,
        frame_times=times,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    middle = time.perf_counter()
    for _ in range(new_tokens):
        model(input_ids=text[:, :1], past_key_values=cache, use_cache=True)
    return middle - start, (time.perf_counter() - middle) / new_tokens


def measure(
    settings: Sequence[tuple[Path, int]],
    repeats: int = 30,
    warmup: int = 3,
    new_tokens: int = 8,
    progress: Progress = SILENT,
) -> list[Latency]:
    """Latency of each (checkpoint, frames), in turn, `repeats` times after `warmup` unmeasured rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = [(SlowFastForConditionalGeneration.from_pretrained(path).eval(), frames) for path, frames in settings]
        rounds = [
            [time_once(model, frames, new_tokens) for model, frames in models]
            for _ in progress.track(range(warmup + repeats), "latency")
        ]
    finally:
        torch.set_num_threads(threads)
    ms_RX2 = 1000 * np.array(rounds[warmup:])
    return [_summary(ms_RX2[:, i]) for i in range(len(models))]


def _summary(ms_R2: np.ndarray) -> Latency:
    (low_p, low_d), (prefill, decode), (high_p, high_d) = np.quantile(ms_R2, [0.25, 0.5, 0.75], axis=0)
    return Latency(float(prefill), (float(low_p), float(high_p)), float(decode), (float(low_d), float(high_d)))
