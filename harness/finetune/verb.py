"""The verb `finetune`: trains a video model on annotation files, by itself or as one of several processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from harness.errors import UserError
from harness.finetune import launch
from harness.finetune.plan import Plan, run_name
from harness.finetune.settings import Launch
from harness.paths import write_text


def finetune(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Train; the first process prints the folder of the model. With launch=slurm: write a script and print its path."""
    launch.expect_one_node(settings)
    if settings.launch is Launch.slurm:
        name = run_name(settings)
        file = Path(settings.runs_dir) / "finetune" / name / "slurm.sh"
        write_text(file, launch.script(settings, overrides, name))
        print(file)
    elif settings.launch is Launch.here:
        train(settings)
    else:
        launch.run(settings, overrides)


def train(settings: DictConfig) -> None:
    """This process's part of a training."""
    from harness.finetune import start as starting
    from harness.finetune import trainer as training
    from harness.finetune.distributed import World, expect_launch
    from harness.mini.training import quiet

    quiet()
    world, on_cpu, runs = World.of(), not torch.cuda.is_available(), Path(settings.runs_dir)
    plan = Plan.of(settings, on_cpu)
    expect_launch(world, plan.stage, torch.cuda.device_count())
    work = runs / "finetune" / plan.name
    out = work / "model" if settings.output is None else Path(settings.output)
    if not (out / "config.json").is_file():
        folder = starting.starting_folder(settings, runs, first=world.rank == 0)
        data = data_of(settings, folder, plan, world.rank, world.size)
        training.run(training.trainer_of(folder, data, plan, work / "checkpoints"), data, out)
        data.dataset.expect_few_broken()
    if world.rank == 0:
        print(out)


def data_of(settings: DictConfig, folder: Path, plan: Plan, rank: int, processes: int) -> Any:
    """What the annotation files hold, for the model in a folder."""
    from architectures import SlowFastConfig, SlowFastForConditionalGeneration, SlowFastProcessor
    from harness.finetune import annotations, checkpoints, encoded
    from harness.finetune.collate import Collator
    from harness.finetune.dataset import ConversationDataset
    from harness.finetune.plan import DTYPES
    from harness.finetune.trainer import Data

    if not settings.annotations:
        raise UserError("annotations=[FILE,...]: name at least one annotation file to train on")
    processor, config = SlowFastProcessor.from_pretrained(folder), SlowFastConfig.from_pretrained(folder)
    examples = annotations.load([spec_of(text) for text in settings.annotations], settings.media, settings.seed)
    options = {
        "frames": settings.frames,
        "fps": settings.fps,
        "min_frames": min(settings.min_frames, settings.frames),
        "max_length": processor.fast_token_count(settings.frames) + settings.recipe.text_tokens,
        "per_video": settings.per_video,
        "processes": processes,
        "dtype": DTYPES[plan.dtype] if plan.stage else torch.float32,
    }
    dataset, shape = ConversationDataset(examples, processor, config, **options), None
    if settings.features is not None:
        if "encoder" in plan.trains:
            raise UserError("features keeps what a frozen encoder makes: leave it out, or encoder out of recipe.trains")
        model = SlowFastForConditionalGeneration.from_pretrained(folder).eval()
        shape = (model.encoder.grid[0] * model.encoder.grid[1], model.encoder.width)
        kept, done = Path(settings.features), Path(settings.features) / f"done-{plan.name}"
        if rank == 0:
            encoded.keep_features(dataset, model, kept)
            write_text(done, "")
        checkpoints.wait_for(done.is_file, "the encoder's features")
        memo = encoded.memo_of(dataset, model, kept)
        dataset = ConversationDataset(examples, processor, config, **options, features=memo)
    collator = Collator(processor, packing=settings.per_video > 1, always_watch=True, encoder_shape=shape)
    return Data(dataset, dataset.lengths, collator, processor)


def spec_of(text: str) -> str | dict[str, Any]:
    """An annotation file as `annotations.load` takes it; FILE:WEIGHT has its entries come so often."""
    file, _, weight = text.rpartition(":")
    try:
        return {"path": file, "weight": float(weight)} if file else text
    except ValueError:
        return text
