"""The trained model as a folder that `from_pretrained` reads, whatever it was sharded over."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer import TRAINING_ARGS_NAME

from architectures import SlowFastProcessor
from harness.finetune.adapters import merge_adapters
from harness.paths import write_text

if TYPE_CHECKING:
    from harness.finetune.trainer import FinetuneTrainer

RECORD = "training.json"


def export(trainer: "FinetuneTrainer", processor: SlowFastProcessor | None, out: Path) -> Mapping[str, Any]:
    """Writes the model, its processor and training.json; a folder at `out` is always whole. All processes take part.

    Under ZeRO-3 the weights are gathered; adapters are added to the weights they belong to.
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
        shutil.rmtree(out, ignore_errors=True)
        work.rename(out)
    trainer.accelerator.wait_for_everyone()
    return record


def record_of(trainer: "FinetuneTrainer") -> dict[str, Any]:
    """What was done: steps, processes, ZeRO's stage, the plan, and the log, an entry per `log_every` steps."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "processes": trainer.world.size,
        "zero": trainer.plan.stage,
        "plan": dataclasses.asdict(trainer.plan),
        "log": entries,
    }
