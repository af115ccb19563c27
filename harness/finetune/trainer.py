"""Hugging Face's Trainer, told what is particular here: parts with rates of their own, an order of the data that
depends on nothing but the seed, checkpoints that are known to be whole, throughput and FLOPs in the log.

The loss of a step is the mean over all answer tokens of all processes and accumulated batches: the Trainer counts them
(`num_items_in_batch`), the model divides its sum by them, and DeepSpeed's mean over processes is made up for. So one
process and several take the same steps.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from harness.finetune import checkpoints
from harness.finetune.adapters import add_adapters
from harness.finetune.distributed import (
    World,
    deepspeed_config,
    expect_engine,
    expect_launch,
    gather_whole,
    join,
    leave_whole_alone,
    summed,
    whole_parameters,
)
from harness.finetune.export import export
from harness.finetune.flops import StepCost
from harness.finetune.logs import Meter, peak_of
from harness.finetune.optimise import Order, parameter_groups
from harness.finetune.parts import choose
from harness.finetune.plan import DTYPES, Plan, arguments, expect_enough

RECOMPUTED = {"use_reentrant": False, "determinism_check": "none"}  # under ZeRO-3 a weight's size differs in between


@dataclass(frozen=True)
class Data:
    """What is trained on: items, their estimated `lengths`, and what makes a batch of them."""

    dataset: Dataset
    lengths: Sequence[int]
    collator: Callable[[Sequence[Any]], dict[str, Any]]
    processor: SlowFastProcessor | None = None  # that is saved with the model


class Epochs(TrainerCallback):
    """Tells the order which epoch begins, also after a resumption, where accelerate does not get through to it."""

    def __init__(self, order: Order):
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.order.set_epoch(int(state.epoch or 0))


class Checks(TrainerCallback):
    """Looks, before the first step, at what has been put together: UserError unless it is what was asked for.

    Then sees to it that ZeRO-3 leaves alone what stays whole.
    """

    def __init__(self, trainer: "FinetuneTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        expect_engine(self.trainer, self.trainer.world, self.trainer.plan.stage)
        if self.trainer.plan.stage == 3:
            leave_whole_alone(self.trainer.deepspeed)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.plan.stage == 3:
            gather_whole(self.trainer.deepspeed)


class FinetuneTrainer(Trainer):
    """The Trainer, for a plan."""

    def __init__(self, plan: Plan, meter: Meter, order: Order, world: World, **kwargs: Any):
        self.plan, self.meter, self.order, self.world = plan, meter, order, world
        super().__init__(callbacks=[meter, Epochs(order), *kwargs.pop("callbacks", [])], **kwargs)
        self.add_callback(Checks(self))
        self.remove_callback(PrinterCallback)  # stdout is for what a verb was asked for

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a rate per part; once, for DeepSpeed's start asks twice."""
        if self.optimizer is None:
            plan = self.plan
            groups = parameter_groups(self.model if model is None else model, plan.lr, plan.lr_of, plan.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas)
        return self.optimizer

    def _get_train_sampler(self, *args: Any) -> Order:
        return self.order

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device; DeepSpeed's type for everything but times: bfloat16 does not tell late frames apart."""
        prepared = super()._prepare_inputs(inputs)
        if "frame_times" in inputs:
            prepared["frame_times"] = send_to_device(inputs["frame_times"], self.args.device)
        return prepared

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; without a cache of keys, and a tower that does not learn behaves as at evaluation."""
        if "encoder" not in self.plan.trains:
            self.model.encoder.eval()
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """What the Trainer asks of every batch: counted by `flops.StepCost`, not 6 x parameters x tokens."""
        return self.meter.saw(inputs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, to its history and to all that is reported to, with what the meter says."""
        if "loss" in logs:
            logs |= self.meter.numbers(functools.partial(summed, device=self.args.device), self.world.size)
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """As the Trainer's; of weights that are tied, which DeepSpeed hands over as copies, one is written."""
        if state_dict and self.model.config.tie_word_embeddings:
            state_dict = {name: state_dict[name] for name in state_dict if name not in self.model._tied_weights_keys}
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            checkpoints.mark_whole(folder, self.world.size, self.plan.stage, len(self.train_dataset))


def trainer_of(
    start: Path, data: Data, plan: Plan, work: Path, callbacks: Sequence[TrainerCallback] = ()
) -> FinetuneTrainer:
    """A Trainer of the model in the folder `start`, in every process that was launched.

    Each reads the whole model, 17 GB at 7B in bfloat16, before DeepSpeed takes what is not its share. UserError for a
    launch that would train something else.
    """
    world, on_cpu = World.of(), not torch.cuda.is_available()
    expect_launch(world, plan.stage, torch.cuda.device_count())
    expect_enough(len(data.dataset), plan, world.size)
    # Before the arguments, from which on ZeRO-3 shards whatever is built: gates could not initialise their weights.
    model = model_of(start, plan)
    cost = counting(model)
    join(world, plan.stage, on_cpu)
    told = arguments(plan, work, deepspeed_config(plan.zero, whole_parameters(model)), on_cpu, world.launched)
    lengths = data.lengths if plan.group_by_length else None
    return FinetuneTrainer(
        plan,
        Meter(cost, peak_of(told.device, DTYPES[plan.dtype])),
        Order(len(data.dataset), plan.seed, plan.step_size(world.size), lengths),
        world,
        model=model,
        args=told,
        train_dataset=data.dataset,
        data_collator=data.collator,
        callbacks=list(callbacks),
    )


def model_of(start: Path, plan: Plan) -> SlowFastForConditionalGeneration:
    """The model in a folder as the plan has it learn."""
    model = SlowFastForConditionalGeneration.from_pretrained(start, dtype=plan.loaded_dtype)
    torch.manual_seed(plan.seed)  # adapters are drawn alike, whatever this process has drawn before
    add_adapters(model, plan.lora)
    choose(model, plan.trains)
    if plan.checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of the name that 5.0 to 5.23 share
            model.gradient_checkpointing_enable(RECOMPUTED)
    return model


def counting(model: SlowFastForConditionalGeneration) -> StepCost | None:
    """What counts the model's FLOPs; None for a decoder that has no closed form."""
    try:
        return StepCost(model)
    except ValueError:
        return None


def run(trainer: FinetuneTrainer, data: Data, out: Path) -> Mapping[str, Any]:
    """Trains, from the last whole checkpoint if there is one, and writes the model to `out`. In every process.

    The checkpoints stay. `out` is a folder that `from_pretrained` reads, with the run's log in training.json; returns
    what that file says.
    """
    work = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        checkpoints.remove_torn(work)
    resumed = checkpoints.last_whole(work, trainer.world.size, trainer.plan.stage, len(data.dataset))
    trainer.train(resume_from_checkpoint=str(resumed) if resumed is not None else None)
    return export(trainer, data.processor, out)
