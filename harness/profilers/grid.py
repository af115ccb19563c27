"""The compute of every variant against frames, in closed form: no weights, no forward pass.

FLOP = 2 x MAC; attention as the full square, not its causal half; matrix products, convolutions and attention are
counted, elementwise operations are not. `COLUMNS` says what each number is.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

from architectures import SlowFastConfig
from architectures.cost import STAGES, decode_cost, prefill_cost
from architectures.placement import PLACEMENTS
from harness.errors import UserError
from harness.profilers.variants import REFERENCE, Variant
from harness.progress import SILENT, Progress

FLOP_PER_MAC = 2
COLUMNS = {
    "architecture": "architecture and the settings in which it differs from its YAML; unique",
    "typed": "settings that were typed; they hold for all variants whose name says nothing else, and for the baseline",
    "fast_budget": "fast tokens as videos grow: fixed (at most a number), strides (time or space reduced by a factor), "
    "own (as typed)",
    "frames": "frames sampled from the video",
    "text_tokens": "text tokens behind the video",
    "fast_tokens": "video tokens in the LLM's sequence",
    "slow_tokens": "video tokens that cross-attention reads",
    "hybrid_layers": "layers that cross-attend",
    "llm_prefill_flop": "the LLM until the first token, slow keys and values included; lm_head on the last position",
    "llm_prefill_flop_all_logits": "the same with lm_head on every position, as the official code runs it",
    "llm_prefill_mac": "llm_prefill_flop / 2",
    "llm_prefill_overhead": f"llm_prefill_flop over that of {REFERENCE[0]} at {REFERENCE[1]} frames and as much text, "
    "minus 1",
    "model_flop": "llm_prefill_flop with vision tower, projector and compressor",
    "model_overhead": "the same for model_flop",
    "decode_step_flop": "one more token behind that prefill, slow keys and values kept",
    "decode_step_flop_reprojecting": "one more token as the official code: slow keys and values projected again",
    "kv_bytes": "self-attention's keys and values after prefill, 2 bytes a number",
    "slow_kv_bytes": "slow keys and values, 2 bytes a number",
    **{f"{stage}_flop": f"stage {stage} of model_flop" for stage in STAGES},
    "flop_per_mac": "the convention: a multiply-add is 2 FLOP",
    "attention_counted": "the convention: full square, not the causal half",
    "encoder": "vision tower",
    "scale": "sizes of the decoder",
}
"""The CSV, column by column, in order."""


def grid(
    variants: Sequence[Variant],
    baseline: Variant,
    frames: Iterable[int],
    text_tokens: Iterable[int],
    scale: str,
    progress: Progress = SILENT,
    typed: Sequence[str] = (),
) -> pd.DataFrame:
    """A row of `COLUMNS` for each variant, number of frames and of text tokens; overheads against `baseline`.

    Raises UserError, one sentence, for a variant that cannot be at a number of frames.
    """
    texts, frames = list(text_tokens), list(frames)
    with in_one_sentence(baseline, REFERENCE[1]):
        references = {text: prefill_cost(baseline.config, REFERENCE[1], text) for text in texts}
    cells = [(variant, T, text) for variant in variants for text in texts for T in frames]
    rows = []
    for variant, T, text in progress.track(cells, "profile"):
        with in_one_sentence(variant, T):
            row = cost_row(variant.config, T, text)
        for scope in ("llm_prefill", "model"):
            row[f"{scope}_overhead"] = row[f"{scope}_flop"] / getattr(references[text], scope) - 1
        named = {"architecture": str(variant), "typed": " ".join(typed), "fast_budget": variant.budget}
        sizes = {"frames": T, "text_tokens": text, "encoder": variant.config.vision["name"], "scale": scale}
        rows.append({**named, **sizes, **row})
    return pd.DataFrame(rows)[list(COLUMNS)]


@contextmanager
def in_one_sentence(what: object, frames: int) -> Iterator[None]:
    """What the closed form or a part of the model refuses, as a UserError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        sentence = str(error).partition("\n")[0]  # torch goes on with its signatures
        raise UserError(f"{what} at {frames} frames cannot be profiled: {sentence}") from error


def hybrid_layers(config: SlowFastConfig) -> tuple[int, ...]:
    """Its hybrid layers."""
    return PLACEMENTS.build(config.placement, n_layers=config.text_config.num_hidden_layers)


def cost_row(config: SlowFastConfig, frames: int, text_tokens: int) -> dict[str, Any]:
    """The columns that need no other variant."""
    cost = prefill_cost(config, frames, text_tokens)
    step = decode_cost(config, frames, text_tokens)
    return {
        "fast_tokens": cost.fast_tokens,
        "slow_tokens": cost.slow_tokens,
        "hybrid_layers": len(hybrid_layers(config)),
        "llm_prefill_flop": cost.llm_prefill,
        "llm_prefill_flop_all_logits": prefill_cost(config, frames, text_tokens, every_logit=True).llm_prefill,
        "llm_prefill_mac": cost.llm_prefill // FLOP_PER_MAC,
        "model_flop": cost.model,
        "decode_step_flop": step.step,
        "decode_step_flop_reprojecting": decode_cost(config, frames, text_tokens, reproject=True).step,
        "kv_bytes": step.kv_bytes,
        "slow_kv_bytes": step.slow_kv_bytes,
        **{f"{stage}_flop": getattr(cost, stage) for stage in STAGES},
        "flop_per_mac": FLOP_PER_MAC,
        "attention_counted": "full square",
    }
