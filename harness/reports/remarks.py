"""What must be said of single cells beside their numbers: another budget of fast tokens at 7B, no hybrid layer.

Both are read from the rows. A row does not say how many fast tokens its model has at 7B, but what the decoder's linear
layers cost there, which is a fixed number of FLOPs a token of the sequence (see architectures/cost.py).
"""

import functools
from collections.abc import Iterable, Mapping

import pandas as pd
from omegaconf import OmegaConf

from harness.compose import CONF, group_choices, own_groups

TEXT_TOKENS = 64  # beside the video's, wherever a row's FLOPs are counted; harness.table has it too, and imports torch
TOKENS, BUDGET = "fast_tokens_7b", "budget_7b"
SAME, SCALED, OTHER = "same", "scaled", "other"
BUDGETS = {
    SAME: "as many as the reference",
    SCALED: "not as many, in the proportion that they have at the row's own scale",
    OTHER: "not as many as that proportion says: accuracy and FLOPs are of different budgets",
}
MARKED = "‡"  # after numbers of fast tokens that are not the reference's
WITHIN = 1e-9  # of a whole number: what is left of one that went through TFLOP and back


def fast_tokens_7b(stages: Mapping[str, float]) -> float:
    """Fast tokens at 7B of a row with these `flop_stages` (TFLOP); NaN if it has none, or of another decoder."""
    if "linear" not in stages:
        return float("nan")
    tokens = stages["linear"] * 1e12 / _linear_flop()
    return float(round(tokens) - TEXT_TOKENS) if abs(tokens - round(tokens)) < WITHIN * tokens else float("nan")


@functools.cache
def _linear_flop() -> int:
    """FLOP of all linear layers of the 7B decoder for one token: q, o; k, v; the gated MLP."""
    sizes = OmegaConf.load(CONF / "scale" / "paper.yaml").decoder
    D, A = sizes.hidden_size, sizes.hidden_size  # as wide as all query heads together, in Qwen2
    KE = A // sizes.num_attention_heads * sizes.num_key_value_heads
    return sizes.num_hidden_layers * 2 * (2 * D * A + 2 * D * KE + 3 * D * sizes.intermediate_size)


def budgets(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """By cell: `fast_tokens`, `fast_tokens_7b`, and `budget_7b`, which of BUDGETS these are ("" if that is not known).

    rows: `Row`s as a frame; reference: the cell that the others are measured by.
    """
    made = rows.drop_duplicates("cell").set_index("cell")[["fast_tokens", "flop_stages"]]
    made[TOKENS] = made.pop("flop_stages").map(fast_tokens_7b).astype(float)
    if reference not in made.index:
        return made.assign(**{BUDGET: ""})
    here, there = (made[name] / made.loc[reference, name] for name in ("fast_tokens", TOKENS))
    found = pd.Series(OTHER, index=made.index)
    found[(here / there - 1).abs() < WITHIN] = SCALED
    found[there.eq(1) & found.eq(SCALED)] = SAME
    return made.assign(**{BUDGET: found.mask(there.isna(), "")})


def marked(tokens: float, budget: str) -> str:
    """Fast tokens at 7B as a table shows them: marked where they are not the reference's."""
    return f"{int(tokens):,}{MARKED if budget in (SCALED, OTHER) else ''}"


def lines(rows: pd.DataFrame, reference: str) -> list[str]:
    """What stands under a grid's table: what the mark says, and `sentences`."""
    made = budgets(rows, reference)
    if not made[BUDGET].isin([SCALED, OTHER]).any():
        return sentences(rows, reference)
    mark = (
        "fast tokens 7B: video tokens in the prompt at Qwen2-7B's sizes. "
        f"{MARKED}: not as many as those of {reference}, {made.loc[reference, TOKENS]:,.0f}."
    )
    return [mark, *sentences(rows, reference)]


def sentences(rows: pd.DataFrame, reference: str) -> list[str]:
    """Which cells have another budget at 7B than at their own scale, and which have no hybrid layer.

    rows, reference: as in `budgets`; the frame has the rows of the cells to speak of.
    """
    told, made = [], budgets(rows, reference)
    others = made[made[BUDGET].eq(OTHER)]
    if len(others):
        its, scale = made.loc[reference], rows["scale"].iloc[0]
        spelt = ", ".join(
            f"{cell} ({counts['fast_tokens']:,} at {scale} scale, {counts[TOKENS]:,.0f} at 7B)"
            for cell, counts in others.to_dict("index").items()
        )
        told.append(
            f"Accuracy at {scale} scale and FLOPs at 7B are of different budgets of fast tokens: {spelt}; "
            f"{reference} has {its['fast_tokens']:,.0f} and {its[TOKENS]:,.0f}."
        )
    if cells := without_hybrid_layer(rows):
        named = ", ".join(f"{cell} (architecture={architecture})" for cell, architecture in cells.items())
        told.append(f"No hybrid layer, so that nothing reads the slow tokens (placement=none in the rows): {named}.")
    return told


def without_hybrid_layer(rows: pd.DataFrame) -> dict[str, str]:
    """Cell -> architecture, of cells that were given no hybrid layer though their architecture has them."""
    found = zip(rows["cell"], rows["architecture"], rows["config"], strict=True)
    return {cell: name for cell, name, config in found if _is_without(name, config)}


def _is_without(architecture: str, config: Mapping) -> bool:
    placement = config.get("placement") or {}
    return placement.get("name") == "none" and architecture in _open_architectures()


@functools.cache
def _open_architectures() -> frozenset[str]:
    """The architectures that leave it open which layers are hybrid."""
    names: Iterable[str] = group_choices()["architecture"]
    return frozenset(name for name in names if "placement" not in own_groups(name))
