"""The verb `finetune`: trains a video model on annotation files, by itself or as one of several processes."""

import hashlib
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
from harness.progress import SILENT, Display, Progress


def finetune(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Train; the first process prints the folder of the model.

    With launch=slurm: write a script and print its path. With dry_run: print what would be done, and what it needs.
    """
    launch.expect_one_node(settings)
    launch.expect_first(settings)
    if settings.dry_run:
        from harness.finetune.preview import preview

        print(*preview(settings), sep="\n")
    elif settings.launch is Launch.slurm:
        name = run_name(settings)
        file = Path(settings.runs_dir) / "finetune" / name / "slurm.sh"
        write_text(file, launch.script(settings, overrides, name))
        print(file)
    elif settings.launch is Launch.here:
        train_and_say(settings)
    else:
        launch.run(settings, overrides)


def train_and_say(settings: DictConfig) -> None:
    """This process's part of a training; the first of all shows how far it is, and prints the folder of the model."""
    from harness.finetune.distributed import World

    if World.of().rank:
        train(settings)
        return
    with Display() as display:
        out = train(settings, progress=display.progress())
    print(out)


def train(settings: DictConfig, features: Any = None, progress: Progress = SILENT) -> Path:
    """This process's part of a training; the folder of the model.

    Args:
        features: the encoder's features of all that is in the annotations (`harness.finetune.dataset.Features`), which
            nothing is then decoded of; None: as `settings.features` says.
    """
    from harness.finetune import start as starting
    from harness.finetune import trainer as training
    from harness.finetune.distributed import World, expect_launch
    from harness.finetune.export import is_done
    from harness.finetune.logs import ShownSteps
    from harness.mini.training import quiet

    quiet()
    world, on_cpu, runs = World.of(), not torch.cuda.is_available(), Path(settings.runs_dir)
    plan = Plan.of(settings, on_cpu)
    expect_launch(world, plan.stage, torch.cuda.device_count())
    work = runs / "finetune" / plan.name
    out = work / "model" if settings.output is None else Path(settings.output)
    if not is_done(out, plan.name):
        folder = starting.starting_folder(settings, runs, first=world.rank == 0)
        data = data_of(settings, folder, plan, world, features, progress)
        trainer = training.trainer_of(folder, data, plan, work / "checkpoints", [ShownSteps(progress)])
        training.run(trainer, data, out)
        data.dataset.expect_few_broken()
    return out


def data_of(
    settings: DictConfig, folder: Path, plan: Plan, world: Any, features: Any = None, progress: Progress = SILENT
) -> Any:
    """What the annotation files hold, for the model in a folder, in one process of the `world`; see `train`."""
    from architectures import SlowFastConfig, SlowFastForConditionalGeneration, SlowFastProcessor
    from harness.finetune import annotations
    from harness.finetune.collate import Collator
    from harness.finetune.dataset import ConversationDataset
    from harness.finetune.plan import DTYPES
    from harness.finetune.trainer import Data

    if not settings.annotations:
        raise UserError("annotations=[FILE,...]: name at least one annotation file to train on")
    if "encoder" in plan.trains and (features is not None or settings.features is not None):
        raise UserError("features keeps what a frozen encoder makes: leave it out, or encoder out of recipe.trains")
    processor, config = SlowFastProcessor.from_pretrained(folder), SlowFastConfig.from_pretrained(folder)
    files = [spec_of(text) for text in settings.annotations]
    examples = annotations.load(files, settings.media, settings.seed, expect_media=features is None)
    options = {
        "frames": settings.frames,
        "fps": settings.fps,
        "min_frames": min(settings.min_frames, settings.frames),
        "max_length": processor.fast_token_count(settings.frames) + settings.recipe.text_tokens,
        "per_video": settings.per_video,
        "processes": world.size,
        "dtype": DTYPES[plan.dtype] if plan.stage else torch.float32,
    }
    dataset, shape = ConversationDataset(examples, processor, config, **options, features=features), None
    if features is not None or settings.features is not None:
        model = SlowFastForConditionalGeneration.from_pretrained(folder).eval()
        shape = (model.encoder.grid[0] * model.encoder.grid[1], model.encoder.width)
        if features is None:
            kept = kept_features(settings, dataset, model, world, progress)
            dataset = ConversationDataset(examples, processor, config, **options, features=kept)
    collator = Collator(processor, packing=settings.per_video > 1, always_watch=True, encoder_shape=shape)
    return Data(dataset, dataset.lengths, collator, processor)


def kept_features(settings: DictConfig, dataset: Any, model: Any, world: Any, progress: Progress) -> Any:
    """The encoder's features of a dataset, in the folder `settings.features`; the first process makes what is missing.

    The others wait for a file that names the features: an older one, of other videos, lets nobody go on too soon.
    """
    from harness.finetune import checkpoints, encoded

    memo, media = encoded.memo_of(dataset, model, settings.features), encoded.media_of(dataset)
    named = hashlib.sha256("\n".join([memo.folder.name, *sorted(map(str, media))]).encode()).hexdigest()[:12]
    done = Path(settings.features) / f"done-{named}"
    if world.rank == 0:
        device = torch.device("cuda", max(world.local_rank, 0)) if torch.cuda.is_available() else torch.device("cpu")
        encoded.keep_features(dataset, model.to(device), settings.features, progress)
        write_text(done, "")
    checkpoints.wait_for(done.is_file, "the encoder's features")
    return memo


def spec_of(text: str) -> str | dict[str, Any]:
    """An annotation file as `annotations.load` takes it; FILE:WEIGHT has its entries come so often."""
    file, _, weight = text.rpartition(":")
    try:
        return {"path": file, "weight": float(weight)} if file else text
    except ValueError:
        return text
