"""The stages of mini training by the trainer of paper scale: see `harness.staged` for their plan."""

import shutil
from pathlib import Path
from typing import Any

from harness.finetune.export import RECORD
from harness.mini.annotations import ANNOTATIONS, Asked, PoolFeatures, write_annotations
from harness.mini.training import FEATURES, KINDS, quiet
from harness.mini.world import World
from harness.progress import Progress
from harness.staged import SAID, restored


def said_stage(out: Path, progress: Progress, seed: int, asked: dict[str, Any], world: dict[str, Any]) -> None:
    """What is said about the clips of the pool: an annotation file without the clips."""
    write_annotations(out / SAID, seed, Asked(**asked), World.of(world), videos=False, progress=progress)


def training_stage(
    out: Path, progress: Progress, settings: dict[str, Any], base: Path, said: Path, **pool: Path
) -> None:
    """One stage from the model in `base`, as the verb `finetune` trains it: a model's folder, with training.json.

    The pool's features stand in for the clips, as in the table's own adaptation. Killed, it goes on from its last
    whole checkpoint.
    """
    from harness.finetune.verb import train

    quiet()
    model, composed = out / "model", restored(settings)
    composed.start, composed.annotations = str(base), [str(said / SAID / ANNOTATIONS)]
    composed.runs_dir, composed.output = str(out / "work"), str(model)
    parts = sorted(name for name in pool if name.startswith(KINDS[0]))
    train(composed, PoolFeatures([pool[name] / FEATURES for name in parts], composed.frames), progress)
    for file in sorted(model.iterdir(), key=lambda file: file.name == RECORD):  # the record last: see `is_done`
        file.rename(out / file.name)
    model.rmdir()
    shutil.rmtree(out / "work")
