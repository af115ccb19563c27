"""Operations that a stage is expected to take, from closed forms (architectures/cost.py). Estimates, for a plan.

A training step is counted as three forward passes (forward, and twice that backward) of each of its questions with
its frames, as packed batches come near to; encoders, which see single frames, likewise. FLOP = 2 x MAC.
"""

from architectures import SlowFastConfig
from architectures.cost import Cost, prefill_cost
from harness.mini.recipes import BaseTraining
from harness.mini.suite import QUESTIONS_PER_VIDEO, SIZES
from harness.mini.world import FRAMES
from harness.stages import Stage
from harness.table import TEXT_TOKENS, Plan, mini_config

STEP = 3  # forward passes that a training step is worth


def prefill_tflop_7b(cost: Stage) -> float:
    """LLM prefill at 7B of the one row that a `cost` stage counts, TFLOP."""
    return _cost(cost.kwargs["paper"], cost.kwargs["frames"][0]).llm_prefill / 1e12


def flop_of(plan: Plan, stage: Stage) -> float:
    """FLOP of a stage of a plan of one row; 0 for stages that compute next to nothing."""
    (cell,), (settings,) = plan.cells, plan.of_architecture.values()
    kind = stage.function.partition(":")[2]
    if kind == "base_stage":
        return STEP * _answering(mini_config(plan.base_settings), BaseTraining.FRAMES_AT_MOST) * _questions(stage)
    if kind == "adapt_stage":
        return STEP * _answering(mini_config(settings), cell.frames) * _questions(stage)
    if kind == "training_stage":
        told = stage.kwargs["settings"]
        asked = told["recipe"]["batch_size"] * told["per_video"] * told["steps"]
        return STEP * _answering(mini_config(settings), cell.frames) * asked
    row = _cost(mini_config(settings), cell.frames)
    per_frame = row.vision / cell.frames
    if kind == "encoder_stage":
        return STEP * per_frame * stage.kwargs["recipe"]["batch"] * stage.kwargs["recipe"]["steps"]
    if kind == "pool_stage":
        return per_frame * FRAMES * (stage.kwargs["stop"] - stage.kwargs["start"])
    if kind == "scores_stage":
        sizes = SIZES[plan.scale.suite]
        return row.model * sum(getattr(sizes, name) * asked for name, asked in QUESTIONS_PER_VIDEO.items())
    return 0.0


def _cost(config: dict, frames: int) -> Cost:
    return prefill_cost(SlowFastConfig.from_dict(config), frames, TEXT_TOKENS)


def _answering(config: dict, frames: int) -> int:
    """One question of a video whose features are there."""
    cost = _cost(config, frames)
    return cost.model - cost.vision


def _questions(stage: Stage) -> int:
    recipe = stage.kwargs["recipe"]
    return recipe["videos"] * recipe["questions"] * recipe["steps"]
