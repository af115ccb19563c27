"""Prefill and per-token decode time of several models on this machine, interleaved: drift can't decide.

One video, 64 text tokens, one thread, weights as they are: time from the encoder's features to the
first token's logits (`prefill_ms`), and of one further token with the cache (`decode_ms`). Medians and
quartiles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from architectures import SlowFastForConditionalGeneration
from architectures.hybrid import SlowFastCache
from harness.profilers.timing import Clock, Rounds, Timed, interleaved, one_thread
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
def time_once(model: SlowFastForConditionalGeneration, frames: int, new_tokens: int, clock: Clock) -> None:
    """One prefill from features, and `new_tokens` decoded tokens."""
    grid, config = model.encoder.grid, model.config
    frames = model.selector.n_frames(frames)  # the features that a prefill starts from are of these
    features = torch.zeros(1, frames, grid[0] * grid[1], model.encoder.width)
    times = torch.linspace(0, 1, frames)[None]
    text = torch.full((1, TEXT_TOKENS), config.video_token_id + 1)
    video = torch.full((1, model.fast_token_count(frames)), config.video_token_id)
    cache = SlowFastCache(config.text_config)
    clock.start()
    model(
        input_ids=torch.cat([video, text], dim=1),
        features=features,
        frame_times=times,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    clock.mark("prefill")
    for _ in range(new_tokens):
        model(input_ids=text[:, :1], past_key_values=cache, use_cache=True)
    clock.mark("decode")
    clock.stop()


def measure(
    settings: Sequence[tuple[Path, int]],
    repeats: int = 30,
    warmup: int = 3,
    new_tokens: int = 8,
    progress: Progress = SILENT,
) -> list[Latency]:
    """Latency of each (checkpoint, frames), in turn, `repeats` times after `warmup` unmeasured rounds."""
    with one_thread():
        cells: list[Callable[[Clock], None]] = [
            partial(time_once, SlowFastForConditionalGeneration.from_pretrained(path).eval(), frames, new_tokens)
            for path, frames in settings
        ]
        timed = interleaved(cells, Rounds(repeats, warmup), torch.device("cpu"), progress, "latency")
    return [summary(each, new_tokens) for each in timed]


def summary(timed: Timed, new_tokens: int) -> Latency:
    """The rounds' middle and quartiles; RuntimeError with the reason where there are none."""
    if timed.error:
        raise RuntimeError(f"The latency of a model was not measured: {timed.error}.")
    prefill, *around_prefill = timed.quartiles_ms("prefill")
    decode, *around_decode = (value / new_tokens for value in timed.quartiles_ms("decode"))
    return Latency(prefill, tuple(around_prefill), decode, tuple(around_decode))
