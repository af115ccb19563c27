"""Is it really 3%? The paper's overhead of slow-fast at 128 frames against self-attention at 16, counted.

The paper states it of the LLM's prefill. Counted here with its conventions varied one at a time, and solved for what
would have to hold for 3.0%.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from architectures import SlowFastConfig
from architectures.cost import prefill_cost
from harness.models import model_config
from harness.profilers.grid import hybrid_layers, in_one_sentence
from harness.profilers.variants import REFERENCE, compose_variant, with_options

STATED = 0.03
FRAMES = 128
TEXT_TOKENS = (64, 128, 256, 1024)
SHORT = TEXT_TOKENS[0]
LEAST = {"solved_hybrid_layers": 1, "solved_text_tokens": 1, "solved_frames": FRAMES}
MOST_TEXT, MOST_FRAMES = 8192, 4096
"""From where and how far is looked for a number that gives what is stated."""


@dataclass(frozen=True)
class Finding:
    """One number; `x` is what was varied or solved for, `value` an overhead (0.03 is 3%) or the ratio that it names."""

    name: str
    x: int | None
    value: float | None


def findings(typed: Sequence[str] = ()) -> pd.DataFrame:
    """Every finding, in the order of the README's lines, under the settings that were typed.

    Raises UserError, one sentence, where they leave a model of the paper's that cannot be.
    """
    with in_one_sentence(f"'Is it really 3%?', {REFERENCE[0]} or slow_fast", FRAMES):
        return pd.DataFrame([asdict(finding) for finding in found_under(typed)]).astype({"x": "Int64"})


def found_under(typed: Sequence[str]) -> list[Finding]:
    """The findings themselves; raises ValueError."""

    def config(architecture: str, *changes: str) -> SlowFastConfig:
        return model_config(compose_variant(architecture, changes, typed))

    slow_fast, all_tokens = config("slow_fast"), config("slow_fast", "scope=all_tokens")
    overhead = Overhead(config(REFERENCE[0]))
    layers = slow_fast.text_config.num_hidden_layers
    some = config("slow_fast", "placement=evenly")
    evenly = [with_options(some, "placement", k=k) for k in range(1, layers + 1)]
    k = first(lambda k: overhead(evenly[k - 1], FRAMES, SHORT), 1, layers)
    text = first(lambda n: overhead(slow_fast, FRAMES, n), 1, MOST_TEXT)
    step = REFERENCE[1]  # multiples of it leave exactly as many fast frames: between them their number differs
    times = first(lambda n: overhead(slow_fast, n * step, SHORT), FRAMES // step, MOST_FRAMES // step)
    frames = times and times * step
    made = [Finding("llm_prefill", n, overhead(slow_fast, FRAMES, n)) for n in TEXT_TOKENS]
    made += [Finding("llm_prefill_all_logits", n, overhead(slow_fast, FRAMES, n, True)) for n in TEXT_TOKENS]
    made += [Finding("model", n, overhead(slow_fast, FRAMES, n, scope="model")) for n in TEXT_TOKENS]
    made += [
        Finding("hybrid_layers", len(hybrid_layers(slow_fast)), overhead(slow_fast, FRAMES, SHORT)),
        Finding("solved_hybrid_layers", k, k and overhead(evenly[k - 1], FRAMES, SHORT)),
        Finding("solved_text_tokens", text, text and overhead(slow_fast, FRAMES, text)),
        Finding("solved_frames", frames, frames and overhead(slow_fast, frames, SHORT)),
        Finding("all_tokens_read", SHORT, overhead(all_tokens, FRAMES, SHORT)),
        Finding("vision_over_llm_prefill", REFERENCE[1], vision_over_llm(overhead.baseline, REFERENCE[1])),
        Finding("vision_over_llm_prefill", FRAMES, vision_over_llm(slow_fast, FRAMES)),
    ]
    return made


@dataclass(frozen=True)
class Overhead:
    """A configuration's cost over the baseline's at 16 frames and as much text, minus 1."""

    baseline: SlowFastConfig

    def __call__(
        self,
        config: SlowFastConfig,
        frames: int,
        text_tokens: int,
        all_logits: bool = False,
        scope: str = "llm_prefill",
    ) -> float:
        ours = prefill_cost(config, frames, text_tokens, all_logits)
        theirs = prefill_cost(self.baseline, REFERENCE[1], text_tokens, all_logits)
        return getattr(ours, scope) / getattr(theirs, scope) - 1


def vision_over_llm(config: SlowFastConfig, frames: int) -> float:
    """The vision tower's FLOPs over those of the LLM's prefill."""
    cost = prefill_cost(config, frames, SHORT)
    return cost.vision / cost.llm_prefill


def first(overhead: Callable[[int], float], least: int, most: int) -> int | None:
    """Where in `least` .. `most` an overhead that grows first reaches what is stated; None if it never does."""
    found = least + bisect_left(range(least, most + 1), STATED, key=overhead)
    there = found <= most and overhead(found) >= STATED  # by bisection: one that shrinks is not found, but not believed
    return found if there and (found == least or overhead(found - 1) < STATED) else None


def sentences(found: pd.DataFrame) -> list[str]:
    """The README's five lines."""
    of = {name: group.set_index("x")["value"] for name, group in found.groupby("name")}

    def listed(name: str) -> str:
        return ", ".join(f"{overhead:+.{2 if overhead < 1 else 0}%} at {n}" for n, overhead in of[name].items())

    def solved(name: str, what: str) -> str:
        ((n, overhead),) = of[name].items()
        if pd.isna(n):
            return f"no number of {what} up to the limit"
        return f"{'at most ' if n == LEAST[name] else ''}{n:,} {what} ({overhead:+.2%})"

    (layers,), (everyone,) = of["hybrid_layers"].index, of["all_tokens_read"]
    before, after = of["vision_over_llm_prefill"]
    return [
        f"LLM prefill, by text tokens, lm_head on the last position: {listed('llm_prefill')}.",
        f"The same with lm_head on every position, as the official code: {listed('llm_prefill_all_logits')}.",
        f"The whole model, by text tokens: {listed('model')}. The vision tower takes {before:.1f} times the LLM's "
        f"prefill at {REFERENCE[1]} frames, {after:.1f} times at {FRAMES}.",
        f"For 3.0% in the first line, at {SHORT} text tokens: {solved('solved_hybrid_layers', 'hybrid layers')} "
        f"instead of {layers}, or {solved('solved_frames', 'frames')} instead of {FRAMES}.",
        f"Or {solved('solved_text_tokens', 'text tokens')} with {layers} layers and {FRAMES} frames. Were all tokens "
        f"to read the slow ones, it would be {everyone:+.2%} at {SHORT}.",
    ]
