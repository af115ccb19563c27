"""A row's training by the trainer of paper scale (`harness.finetune`): stages in the plan of a table.

    said (an annotation file) --+----------+
    pool -----------------------+----------+
    base ------------------> stage1 --> stage2 = the row's model

Why two trainers: the adaptation of tables and grids (`harness.train`) draws packed questions anew at every step, so
that a step is a pure function of the seed and one base serves hundreds of rows without a file of data; the trainer of
paper scale reads annotation files, any mixture of them, in any number of processes. Both are Hugging Face's Trainer.
The grid `training` compares what they reach.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.compose import compose
from harness.errors import UserError
from harness.finetune.settings import FINETUNE
from harness.models import plain
from harness.settings import Groups
from harness.stages import Stage

SAID = "said"  # stage name of the annotation file
STAGE = "harness.mini.staged:training_stage"
PER_VIDEO = 16  # conversations about a clip that share its tokens: eight questions, with options and without


def is_staged(settings: DictConfig) -> bool:
    """Whether rows are trained in stages."""
    return bool(settings.training.stages)


def said_stage(settings: DictConfig) -> Stage:
    """The annotation file about the training clips: as many visits of a clip as the adaptation makes."""
    adapt = settings.scale.adapt
    asked = {"clips": settings.scale.pool_clips, "visits": adapt.steps * adapt.videos, "questions": adapt.questions}
    kwargs = {"seed": settings.seed, "asked": asked, "world": plain(settings.world.training)}
    sources = (*(f"harness.mini.{name}" for name in ("annotations", "world", "clips", "questions", "stream")),)
    return Stage(SAID, "harness.mini.staged:said_stage", kwargs, weight=30, sources=(*sources, "harness.benchmarks"))


def training_stages(settings: DictConfig, frames: int, draws: int, model: Stage) -> list[Stage]:
    """The stages in which a row learns, in order; the last one bears the name of the row's model.

    Args:
        settings: of the row's architecture.
        draws: seed of the data's order.
        model: the row's adaptation, whose place they take: its name, its base, its pool.
    """
    chosen = settings.training.stages
    if settings.selector.name != "all":
        raise UserError("training=two_stages takes the frames that the encoder's pool has: leave out selector=...")
    names = [*(f"{model.name}-{stage.recipe}" for stage in chosen[:-1]), model.name]
    steps = shares([stage.share for stage in chosen], settings.scale.adapt.steps)
    stages, start = [], model.needs["base"]
    for name, stage, share in zip(names, chosen, steps, strict=True):
        kwargs = {"settings": stage_settings(settings, stage.recipe, frames, share, draws)}
        needs = {**model.needs, "base": start, SAID: SAID}
        sources = (*model.sources, "harness.finetune", "harness.mini.annotations")
        stages.append(Stage(name, STAGE, kwargs, needs, 0.3 * share, sources))
        start = name
    return stages


def stage_settings(settings: DictConfig, recipe: str, frames: int, steps: int, draws: int) -> dict[str, Any]:
    """The settings of the verb `finetune` for one stage, as plain data: the row's own groups, the recipe's rates."""
    typed = [f"recipe={recipe}", f"frames={frames}", f"steps={steps}", f"seed={draws}", f"per_video={PER_VIDEO}"]
    typed += [f"recipe.batch_size={settings.scale.adapt.videos}", "experiment=mini_slow_fast"]
    typed += ["fps=null", "workers=0", "dtype=float32", "checkpointing=false"]
    composed = compose(typed, root=FINETUNE)
    for group in fields(Groups):
        composed[group.name] = settings[group.name]
    return OmegaConf.to_container(composed, resolve=True, enum_to_str=True)


def restored(content: Mapping[str, Any]) -> DictConfig:
    """Settings of the verb `finetune` from what `stage_settings` made of them."""
    return OmegaConf.merge(OmegaConf.structured(FINETUNE.schema), OmegaConf.create(dict(content)))


def shares(of: list[float], steps: int) -> list[int]:
    """So many steps each, together `steps`; UserError if shares do not add up to one or a stage would get none."""
    ends = [round(steps * sum(of[: place + 1])) for place in range(len(of))]
    each = [end - before for before, end in zip([0, *ends], ends, strict=False)]
    if abs(sum(of) - 1) > 1e-6 or min(each) < 1:
        raise UserError(f"training: shares {of} of {steps} steps: they add up to 1, and each is a step at least")
    return each
