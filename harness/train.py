"""Training by Hugging Face's Trainer: any scale, any recipe, exact resumption after a kill.

A recipe says what a step's loss is. Everything random in it is a function of (seed, step), and what it learns
on the way (`recipe.state`) is saved with each checkpoint: a resumed run takes the steps the killed one would.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

LAST_STEPS = 20  # over which the loss that `train` returns is averaged


@dataclass(frozen=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay to `final_lr` of the peak.

    `lr_factors` multiply the rate of parameters whose name holds the part given.
    """

    steps: int
    lr: float
    warmup: int = 20
    final_lr: float = 0.05
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    lr_factors: dict[str, float] = field(default_factory=dict)
    save_every: int = 20


class Recipe(Protocol):
    """What a training stage computes. `state` is JSON: whatever later steps depend on."""

    state: dict[str, Any]

    def loss(self, model: PreTrainedModel, step: int) -> torch.Tensor:
        """The loss of one step, its batch drawn from (seed, step, state); may update `state`."""


class Steps(torch.utils.data.Dataset):
    """A dataset of step numbers: the recipe draws each batch when its step comes, not before."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"step": index}


class RecipeState(TrainerCallback, ExportableState):
    """Carries the recipe's state, and the last steps' losses, in and out of the Trainer's checkpoints."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.losses: list[float] = []

    def state(self) -> dict[str, Any]:
        attributes = {"recipe_state": self.recipe.state, "losses": self.losses[-LAST_STEPS:]}
        return {"args": {}, "attributes": attributes}

    def restore(self, checkpoint: Path) -> None:
        """Takes up what a checkpoint holds."""
        saved = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
        attributes = saved["stateful_callbacks"][type(self).__name__]["attributes"]
        self.recipe.state.update(attributes["recipe_state"])
        self.losses = attributes["losses"]


class ReportProgress(TrainerCallback):
    """Tells the caller after every step how many of how many are done."""

    def __init__(self, report: Callable[[int, int], None]):
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step, state.max_steps)


class RecipeTrainer(Trainer):
    """The Trainer, with the loss of a recipe and learning rates per part."""

    def __init__(self, recipe_state: RecipeState, optimisation: Optimisation, **kwargs: Any):
        self.recipe_state, self.optimisation = recipe_state, optimisation
        super().__init__(**kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        loss = self.recipe_state.recipe.loss(model, int(inputs["step"]))
        self.recipe_state.losses.append(loss.item())
        return loss

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """One group per learning rate; weight decay on matrices only."""
        chosen = self.optimisation
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in (model or self.model).named_parameters():
            if not parameter.requires_grad:
                continue
            factor = next((f for part, f in chosen.lr_factors.items() if part in name), 1.0)
            decay = chosen.weight_decay if parameter.dim() >= 2 and factor == 1.0 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "lr": chosen.lr * f, "weight_decay": d} for (f, d), p in groups.items()],
            lr=chosen.lr,
            betas=chosen.betas,
        )
        return self.optimizer

    def _get_train_sampler(self, *args: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(
    model: PreTrainedModel,
    recipe: Recipe,
    optimisation: Optimisation,
    work: Path,
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, float]:
    """Trains `model` in place, where it is (CPU or GPU); returns the last steps' mean loss and the steps.

    Checkpoints go to `work`, which the caller removes once it has kept the model: called again after a kill,
    it goes on from the last whole checkpoint. At most `save_every` steps are repeated, and come out the same.
    """
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=optimisation.steps,
        per_device_train_batch_size=1,
        learning_rate=optimisation.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": optimisation.final_lr},
        warmup_steps=optimisation.warmup,
        max_grad_norm=optimisation.max_grad_norm,
        save_steps=optimisation.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=model.device.type == "cpu",
    )
    if arguments.use_cpu:  # DeepSpeed, which accelerate imports, would else warn on stdout of the missing GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    state = RecipeState(recipe)
    trainer = RecipeTrainer(
        state,
        optimisation,
        model=model,
        args=arguments,
        train_dataset=Steps(optimisation.steps),
        data_collator=lambda items: {"step": torch.tensor(items[0]["step"])},
        callbacks=[state, ReportProgress(progress)],
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for what a verb was asked for
    checkpoint = last_whole_checkpoint(work)
    if checkpoint is not None:
        state.restore(checkpoint)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    last = state.losses[-LAST_STEPS:]
    return {"loss": sum(last) / len(last), "steps": result.global_step}


def last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that is whole; torn ones are removed."""
    while work.is_dir() and (newest := get_last_checkpoint(str(work))) is not None:
        if is_whole(Path(newest)):
            return Path(newest)
        shutil.rmtree(newest)
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint is there: its state file is written last, removal begins anywhere."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    others = all((checkpoint / name).is_file() for name in (OPTIMIZER_NAME, SCHEDULER_NAME))
    return others and any(checkpoint.glob("model*.safetensors"))
