"""The trained model as a folder that `from_pretrained` reads, whatever it was sharded over."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer import TRAINING_ARGS_NAME

from architectures import SlowFastProcessor
from harness.errors import UserError
from harness.finetune.adapters import merge_adapters
from harness.finetune.distributed import summed
from harness.paths import write_text

if TYPE_CHECKING:
    from harness.finetune.trainer import FinetuneTrainer

RECORD = "training.json"
logger = logging.getLogger(__name__)


def export(trainer: "FinetuneTrainer", processor: SlowFastProcessor | None, out: Path) -> Mapping[str, Any]:
    """Writes the model, its processor and training.json; a folder at `out` is always whole. All processes take part.

    There must be nothing at `out`, or an empty folder: see `is_done`. Under ZeRO-3 the weights are gathered;
    adapters are added to the weights they belong to.
    """
    work = out.with_name(f".{out.name}.work")
    record = record_of(trainer)
    if trainer.is_world_process_zero():
        shutil.rmtree(work, ignore_errors=True)  # torn by a kill
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(work))
    if trainer.is_world_process_zero():
        (work / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if trainer.plan.lora["rank"]:
            merge_adapters(work, trainer.plan.lora)
        if processor is not None:
            processor.save_pretrained(work)
        write_text(work / RECORD, json.dumps(record, indent=2))
        work.rename(out)  # which refuses to replace a folder that holds anything
    trainer.accelerator.wait_for_everyone()
    return record


def is_done(out: Path, name: str) -> bool:
    """Whether the folder `out` holds the model of the run `name` already.

    UserError if it holds anything else: a training whose output is there would be passed over, or would replace it.
    """
    if (out / RECORD).is_file():
        held = json.loads((out / RECORD).read_text()).get("plan", {}).get("name")
        if held == name:
            return True
        raise UserError(f"output={out} holds the model of another run, {held}: remove it, or choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"output={out} holds something else than a training's model: choose another folder")
    return False


def record_of(trainer: "FinetuneTrainer") -> dict[str, Any]:
    """What was done: steps, processes, ZeRO's stage, the plan, what became of the data, and the log.

    The log has an entry per `log_every` steps. All processes take part.
    """
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "processes": trainer.world.size,
        "zero": trainer.plan.stage,
        "plan": dataclasses.asdict(trainer.plan),
        "data": outcome_of(trainer),
        "log": entries,
    }


def outcome_of(trainer: "FinetuneTrainer") -> dict[str, int] | None:
    """How many conversations were asked for since the last resumption, broken and replaced, or shortened to fit.

    Of all processes together; None for data that does not count.
    """
    if not hasattr(trainer.train_dataset, "outcome"):
        return None
    counts = dataclasses.asdict(trainer.train_dataset.outcome())
    totals = dict(zip(counts, map(int, summed(list(counts.values()), trainer.args.device)), strict=True))
    if totals["broken"] or totals["shortened"]:
        logger.warning("of %(asked)d conversations %(broken)d were left out, %(shortened)d cut to max_length", totals)
    return totals
