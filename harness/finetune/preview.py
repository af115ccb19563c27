"""What a training would do and need, in a few lines, without a start, data or a GPU: the verb `finetune`, dry_run."""

import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import AutoConfig

from architectures import SlowFastConfig
from architectures.cost import prefill_cost
from architectures.official import skeleton
from harness.errors import UserError
from harness.finetune import annotations, memory
from harness.finetune.adapters import add_adapters
from harness.finetune.dataset import together
from harness.finetune.distributed import World
from harness.finetune.parts import choose
from harness.finetune.plan import Plan
from harness.finetune.settings import Launch
from harness.finetune.start import expect_start
from harness.finetune.verb import spec_of
from harness.models import model_config, variant_of


def preview(settings: DictConfig) -> list[str]:
    """The lines that are printed, for GPUs (bfloat16 unless another dtype is asked for); UserError as the training."""
    plan, model = Plan.of(settings, on_cpu=False), skeleton(config_of(settings))
    processes, words = processes_of(settings, plan.stage), settings.recipe.text_tokens
    add_adapters(model, plan.lora, on_meta=True)
    counts = choose(model, plan.trains)
    try:
        cost = prefill_cost(model.config, settings.frames, words)
        need = memory.need(model, plan, processes, settings.frames, words).lines()
    except ValueError as error:
        raise UserError(f"dry_run: {error}") from error
    named = settings.start is not None or settings.decoder is not None
    return [
        f"run: {plan.name}" + ("" if named else f" (no start is named: at the sizes of scale={settings.scale.name})"),
        f"video: at most {settings.frames} frames, {cost.fast_tokens} fast and {cost.slow_tokens} slow tokens; "
        f"beside it at most {words} tokens of text",
        *learning(counts, plan),
        *steps(settings, plan, processes),
        *need,
    ]


def config_of(settings: DictConfig) -> SlowFastConfig:
    """The model's configuration: of what it would start from, or at the scale's own sizes where none is named."""
    if settings.start is not None or settings.decoder is not None:
        expect_start(settings)
    if settings.start is not None:
        has = SlowFastConfig.from_pretrained(settings.start).to_dict()
        return SlowFastConfig.from_dict({**has, **variant_of(settings)})
    config = model_config(settings)
    if settings.decoder is None:
        return config
    text = AutoConfig.from_pretrained(settings.decoder, local_files_only=True).to_dict()
    return SlowFastConfig.from_dict({**config.to_dict(), "text_config": text})


def processes_of(settings: DictConfig, stage: int) -> int:
    """How many processes would train: those that were launched, would be, or that ZeRO needs."""
    world = World.of()
    if world.launched:
        return world.size
    return settings.processes * settings.nodes if stage or settings.launch is not Launch.here else 1


def learning(counts: dict[str, tuple[int, int]], plan: Plan) -> list[str]:
    """Which parts learn, how many numbers each has, and at which rate; `counts` is of `parts.choose`."""
    some = [(part, number) for part, (number, _) in counts.items() if number]
    told = [f"  {part:16} {number:15,} numbers at {rate_of(plan, part):g}" for part, number in some]
    return [f"learns, of {sum(all_ for _, all_ in counts.values()):,} numbers:", *told]


def rate_of(plan: Plan, part: str) -> float:
    """A part's highest learning rate."""
    rate = plan.lr_of.get(part)
    return plan.lr if rate is None else rate


def steps(settings: DictConfig, plan: Plan, processes: int) -> list[str]:
    """What a step takes, and how many there are, as far as the data is named."""
    size = plan.step_size(processes)
    told = f"a step: {plan.batch_size} x {plan.accumulation} accumulated x {processes} processes = {size} conversations"
    if plan.steps is not None:
        return [f"{told}; {plan.steps} steps"]
    if not settings.annotations:
        return [f"{told}; {plan.epochs:g} x the annotations"]
    specs: list[Any] = [spec_of(text) for text in settings.annotations]
    media = None if settings.media is None else Path(settings.media)
    items = len(together(annotations.load(specs, media, settings.seed), settings.per_video))
    return [f"{told}; {plan.epochs:g} x {items} of them: {math.ceil(plan.epochs * (items // size))} steps"]
