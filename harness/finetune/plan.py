"""What one training run is to do, as plain data, and the Trainer's arguments that say it."""

import dataclasses
import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import TrainingArguments

from harness.errors import UserError
from harness.finetune.parts import expect_parts

REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}  # and the package of each
PLACES_OF_TRACKIO = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # where it sends its log; without them it keeps it
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SCHEDULES = ("cosine", "linear", "constant_with_warmup", "constant")
ELSEWHERE = (  # settings that do not change what is learned: a run that is resumed may have others
    *("workers", "save_every", "keep", "log_every", "report_to", "online", "launch", "processes", "nodes"),
    *("partition", "minutes", "gigabytes", "dry_run", "runs_dir", "output", "features"),
)


@dataclass(frozen=True)
class Plan:
    """One stage of training; `zero` is the group's content, `lora` as well (rank 0: none).

    `steps` (None: `epochs` of the data) are optimiser steps of `batch_size` x `accumulation` x processes
    conversations. `warmup` is a share of the steps if below 1, else a number of them;
    `final_lr` above 0 makes of the schedule a cosine that ends at that share of each rate.
    """

    trains: tuple[str, ...]
    lr: float
    lr_of: dict[str, float | None] = field(default_factory=dict)
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    final_lr: float = 0.0
    warmup: float = 0.03
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 1
    accumulation: int = 1
    group_by_length: bool = False
    lora: dict[str, Any] = field(default_factory=lambda: {"rank": 0})
    zero: dict[str, Any] = field(default_factory=lambda: {"stage": 0})
    dtype: str = "float32"
    checkpointing: bool = False
    seed: int = 0
    workers: int = 0
    save_every: int = 500
    keep: int = 2
    log_every: int = 1
    report_to: tuple[str, ...] = ()
    online: bool = False
    name: str = "finetune"

    @classmethod
    def of(cls, settings: DictConfig, on_cpu: bool) -> "Plan":
        """The plan of composed settings; UserError, in a sentence, for one that cannot be followed."""
        recipe = OmegaConf.to_container(settings.recipe, resolve=True)
        known = {item.name for item in dataclasses.fields(cls)}
        chosen = {name: value for name, value in recipe.items() if name in known and name != "name"}
        dtype = settings.dtype.name if settings.dtype is not None else "float32" if on_cpu else "bfloat16"
        plan = cls(
            **{**chosen, "trains": tuple(recipe["trains"]), "betas": tuple(recipe["betas"])},
            steps=settings.steps,
            zero=OmegaConf.to_container(settings.zero, resolve=True),
            dtype=dtype,
            report_to=tuple(settings.report_to or ()),
            name=run_name(settings),
            **{name: settings[name] for name in ("checkpointing", "seed", "workers", "save_every", "keep")},
            **{name: settings[name] for name in ("log_every", "online")},
        )
        plan.check(on_cpu)
        return plan

    def check(self, on_cpu: bool) -> None:
        """UserError for what would fail later or be passed over."""
        expect_parts(self.trains, "recipe.trains")
        expect_parts(self.lr_of, "recipe.lr_of")
        for name in ("batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise UserError(f"recipe.{name}={getattr(self, name)}: it is at least 1")
        if self.schedule not in SCHEDULES:
            raise UserError(f"recipe.schedule={self.schedule}: choose one of {', '.join(SCHEDULES)}")
        if self.final_lr and self.schedule != "cosine":
            raise UserError(f"recipe.final_lr={self.final_lr} is a cosine's end: say recipe.schedule=cosine, or 0")
        if on_cpu and self.dtype != "float32":
            raise UserError(f"dtype={self.dtype}: there is no GPU here, and a CPU trains in float32: say dtype=float32")
        if self.lora["rank"] and "language_model" in self.trains:
            raise UserError(
                "recipe.lora.rank is above 0 and recipe.trains has language_model: either its weights learn or adapters"
            )
        for where in self.report_to:
            expect_reporter(where)

    @property
    def stage(self) -> int:
        """ZeRO's; 0: no DeepSpeed."""
        return self.zero["stage"]

    @property
    def loaded_dtype(self) -> torch.dtype:
        """The type that weights are loaded in: DeepSpeed keeps float32 ones itself, torch's autocast needs them."""
        return DTYPES[self.dtype] if self.stage else torch.float32

    def step_size(self, processes: int) -> int:
        """Conversations of one optimiser step."""
        return self.batch_size * self.accumulation * processes


def expect_reporter(where: str) -> None:
    """UserError for a place the log cannot go to: unknown, or its package is not installed."""
    if where not in REPORTERS:
        raise UserError(f"report_to={where}: choose of {', '.join(REPORTERS)}")
    if importlib.util.find_spec(REPORTERS[where]) is None:
        raise UserError(f"report_to={where}: its package is not installed: pip install {REPORTERS[where]}")


def run_name(settings: DictConfig) -> str:
    """The run's name: experiment, recipe, seed, and a hash of all settings that change what is learned."""
    content = OmegaConf.to_container(settings, resolve=True, enum_to_str=True)
    content = {key: value for key, value in content.items() if key not in ELSEWHERE}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"{settings.experiment.name}_{settings.recipe.name}_{settings.seed}_{digest}"


def arguments(
    plan: Plan, work: Path, deepspeed: dict[str, Any] | None, on_cpu: bool, launched: bool
) -> TrainingArguments:
    """The Trainer's arguments; checkpoints and local logs go to `work`."""
    if not plan.online:
        os.environ["WANDB_MODE"] = "offline"
        for name in PLACES_OF_TRACKIO:
            os.environ.pop(name, None)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(work / "tensorboard"))
    os.environ.setdefault("WANDB_DIR", str(work))
    joined = on_cpu and deepspeed is not None  # `distributed.join` has put this process among the others
    return TrainingArguments(
        output_dir=str(work),
        run_name=plan.name,
        max_steps=plan.steps or -1,
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=plan.lr,
        weight_decay=plan.weight_decay,
        lr_scheduler_type="cosine_with_min_lr" if plan.final_lr else plan.schedule,
        lr_scheduler_kwargs={"min_lr_rate": plan.final_lr} if plan.final_lr else None,
        warmup_steps=plan.warmup,
        max_grad_norm=plan.max_grad_norm,
        bf16=plan.dtype == "bfloat16",
        fp16=plan.dtype == "float16",
        tf32=True if not on_cpu and torch.cuda.get_device_capability()[0] >= 8 else None,
        seed=plan.seed,
        save_steps=plan.save_every,
        save_total_limit=plan.keep,
        logging_steps=plan.log_every,
        logging_nan_inf_filter=False,
        report_to=list(plan.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=plan.workers,
        dataloader_persistent_workers=plan.workers > 0,
        dataloader_drop_last=True,  # what is too few for all processes; `Order` gives none of it
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if on_cpu and launched and not joined else None,
        deepspeed=deepspeed,
        use_cpu=on_cpu and not joined,
        accelerator_config={"use_configured_state": True} if joined else None,
    )


def expect_enough(examples: int, plan: Plan, processes: int) -> None:
    """UserError where the data does not fill a single step."""
    if examples < plan.step_size(processes):
        raise UserError(
            f"there are {examples} conversations, but a step takes {plan.step_size(processes)} (recipe.batch_size x "
            "recipe.accumulation x processes): lower these, or name more annotations"
        )
