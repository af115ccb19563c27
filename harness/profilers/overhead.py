"""The overhead of slow tokens, measured beside the counted one, part by part: what explains their ratio.

Slow-fast at 128 frames against the self-attention baseline at 16, both with as many fast tokens, from their tokens to
the first answer token. Both run in turn, and the overhead is taken within each round: drift can't decide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from architectures import SlowFastConfig
from architectures.cost import Cost, prefill_cost
from harness.profilers.random_weights import RandomWeights
from harness.profilers.timing import Clock, Rounds, interleaved
from harness.profilers.workload import Workload
from harness.progress import SILENT, Progress

BASELINE, HYBRID = ("self_attention", 16), ("slow_fast", 128)  # the paper's: architecture and frames
NORM, PROJECTION, LAYOUT = "slow_norm", "slow_projection", "slow_layout"
DECODER, CROSS, GATE, ADDING, LM_HEAD = "decoder", "cross_attention", "gate", "adding", "lm_head"
LABELS = {
    NORM: "slow tokens: norm",
    PROJECTION: "slow tokens: projection to keys and values",
    LAYOUT: "slow tokens: keys and values laid out by head",
    CROSS: "cross-attention: gathering queries, attending",
    GATE: "gate",
    ADDING: "adding to the text's places",
    DECODER: "layers, more than the baseline's",
    LM_HEAD: "lm_head, more than the baseline's",
}
EXPLAINED = 3  # parts that a sentence names


@dataclass(frozen=True)
class Overhead:
    """Per part (`LABELS`, then "total"): counted and measured overhead in % of the baseline's prefill, GFLOP/s.

    rows: columns part, counted, measured, q1, q3, gflop_per_s. baseline_ms, hybrid_ms: median, first and third
    quartile of both prefills. The speeds are of both as a whole, in GFLOP/s; `counted_causal` is the total with causal
    attention counted as its half, which is all that a kernel computes. error: "" unless one could not be measured.
    """

    rows: pd.DataFrame
    baseline_ms: tuple[float, float, float]
    hybrid_ms: tuple[float, float, float]
    baseline_speed: float
    hybrid_speed: float
    rounds: int
    counted_causal: float = 0.0
    error: str = ""

    def sentence(self) -> str:
        """The ratio, and what makes it."""
        if self.error:
            return f"The overhead was not measured: {self.error}."
        total = self.rows.iloc[-1]
        parts = self.rows.iloc[:-1].assign(gap=lambda rows: rows["measured"] - rows["counted"])
        beyond_scatter = parts[(parts["counted"] < parts["q1"]) | (parts["counted"] > parts["q3"])]
        largest = beyond_scatter.sort_values("gap", key=abs, ascending=False).head(EXPLAINED)
        why = ", ".join(
            f"{row.gap:+.1f} points from {row.part}"
            + (f" ({row.gflop_per_s:.0f} GFLOP/s)" if np.isfinite(row.gflop_per_s) else " (not counted as FLOPs)")
            for row in largest.itertuples()
        )
        return (
            f"Prefill of {HYBRID[0]} at {HYBRID[1]} frames against {BASELINE[0]} at {BASELINE[1]}: "
            f"{total.measured:+.1f}% measured (quartiles {total.q1:+.1f} to {total.q3:+.1f}, {self.rounds} rounds), "
            f"{total.counted:+.1f}% counted ({self.counted_causal:+.1f}% with causal attention as the half that is "
            f"computed), ratio {total.measured / total.counted:.2f}. The baseline runs at {self.baseline_speed:.0f} "
            f"GFLOP/s; beyond the scatter of rounds, the gap is {why or 'nothing'}."
        )


def measure_overhead(
    configs: dict[str, SlowFastConfig],
    device: torch.device,
    dtype: torch.dtype,
    text_tokens: int,
    rounds: Rounds,
    progress: Progress = SILENT,
) -> Overhead:
    """Both prefills of `configs` ("self_attention" and "slow_fast"), part by part, with torch's choice of attention."""
    weights = RandomWeights(device, dtype)
    pairs = [(configs[name], frames) for name, frames in (BASELINE, HYBRID)]
    models = [weights.model(config) for config, _ in pairs]
    cells = [
        PrefillParts(Workload(model, frames, text_tokens, 0)).run
        for model, (_, frames) in zip(models, pairs, strict=True)
    ]
    timed = interleaved(cells, rounds, device, progress, "overhead")
    costs = [prefill_cost(config, frames, text_tokens) for config, frames in pairs]
    if errors := [each.error for each in timed if each.error]:
        return Overhead(pd.DataFrame(), (0, 0, 0), (0, 0, 0), 0, 0, 0, error=errors[0])
    complete = min(each.rounds for each in timed)
    parts = [_by_round(each.seconds, complete) for each in timed]
    return compare(*parts, *costs)


class PrefillParts:
    """A prefill whose modules tell the clock when a part of `LABELS` ends."""

    def __init__(self, workload: Workload):
        self.workload = workload
        self.clock: Clock | None = None
        self.remembering = False  # slow tokens pass the layer's own norm, and so does the sequence later
        for layer, fusion in workload.model.hybrid():
            layer.input_layernorm.register_forward_hook(self.ending(NORM, remembering=True))
            for projection in filter(None, (getattr(fusion, name, None) for name in ("k_proj", "v_proj"))):
                projection.register_forward_hook(self.ending(PROJECTION, remembering=True))
            fusion.register_forward_pre_hook(self.ending(DECODER))
            fusion.register_forward_hook(self.ending(ADDING))
            fusion.gate.register_forward_pre_hook(self.ending(CROSS))
            fusion.gate.register_forward_hook(self.ending(GATE))

    def ending(self, part: str, remembering: bool = False) -> Callable[..., None]:
        """A hook that marks the end of a part, in its phase."""

        def mark(*_: object) -> None:
            if self.clock is not None and self.remembering == remembering:
                self.clock.mark(part)

        return mark

    @torch.no_grad()
    def run(self, clock: Clock) -> None:
        """One prefill from the tokens of random features."""
        work, model = self.workload, self.workload.model
        patches = model.encoder.grid[0] * model.encoder.grid[1]
        shape = (1, work.seen, patches, model.encoder.width)
        tokens = work.tokens_of(torch.randn(shape, device=work.device, dtype=model.dtype))
        self.clock, self.remembering = clock, True
        clock.start()
        try:
            cache, memory, readers = work.remember(tokens)
            clock.mark(LAYOUT)
            self.remembering = False
            hidden_BLD = work.decoder(tokens, cache, memory, readers)
            clock.mark(DECODER)
        finally:
            self.clock = None
        work.first_token(hidden_BLD)
        clock.mark(LM_HEAD)
        clock.stop()


def compare(base: dict[str, np.ndarray], hybrid: dict[str, np.ndarray], of_base: Cost, of_hybrid: Cost) -> Overhead:
    """The overhead by part, of seconds by part and round (equally many of both) and the counted costs."""
    whole_base, whole_hybrid = sum(base.values()), sum(hybrid.values())
    counted = counted_parts(of_hybrid)
    extra = {part: hybrid[part] - base[part] for part in LABELS}
    more = dict(counted)
    for part, flop in counted_parts(of_base).items():
        more[part] -= flop
    rows = []
    for part in LABELS:
        own_s = float(np.median(hybrid[part]))
        speed = counted[part] / own_s / 1e9 if counted[part] and own_s else np.nan
        rows.append([LABELS[part], 100 * more[part] / of_base.llm_prefill, *_spread(extra[part] / whole_base), speed])
    total_s = float(np.median(whole_hybrid))
    counted_total = 100 * (of_hybrid.llm_prefill / of_base.llm_prefill - 1)
    speeds = of_base.llm_prefill / float(np.median(whole_base)) / 1e9, of_hybrid.llm_prefill / total_s / 1e9
    rows.append(["total", counted_total, *_spread(whole_hybrid / whole_base - 1), speeds[1]])
    columns = ["part", "counted", "measured", "q1", "q3", "gflop_per_s"]
    needed = [cost.llm_prefill - cost.self_attention / 2 for cost in (of_hybrid, of_base)]
    return Overhead(
        pd.DataFrame(rows, columns=columns),
        _milliseconds(whole_base),
        _milliseconds(whole_hybrid),
        *speeds,
        len(whole_base),
        100 * (needed[0] / needed[1] - 1),
    )


def counted_parts(cost: Cost) -> dict[str, int]:
    """FLOPs of the parts that a clock tells apart."""
    return {
        NORM: 0,
        PROJECTION: cost.slow_keys_values,
        LAYOUT: 0,
        CROSS: cost.cross_attention,
        GATE: cost.gate,
        ADDING: 0,
        DECODER: cost.linear + cost.self_attention,
        LM_HEAD: cost.lm_head,
    }


def _by_round(seconds: dict[str, list[float]], rounds: int) -> dict[str, np.ndarray]:
    return {part: np.array(seconds.get(part, [0.0] * rounds)[:rounds]) for part in LABELS}


def _spread(ratio_R: np.ndarray) -> tuple[float, float, float]:
    """(median, first, third quartile) in %."""
    low, middle, high = np.quantile(100 * ratio_R, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def _milliseconds(seconds_R: np.ndarray) -> tuple[float, float, float]:
    return _spread(10 * seconds_R)
