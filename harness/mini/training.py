"""The stages of mini training: encoder, pool, base, adapt. Each writes one folder; see `harness.stages`.

    encoder (per seed) --> pool (per seed, in parts) --> base (per base seed) --> adapt (per row and seed)
    cheap encoder (where a selector has one) --> selection (in parts, per row with a selector) ----^

The encoder and the pool are shared by the base seeds, a base by all rows, a row's selection by its base seeds.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from architectures import SlowFastConfig, SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.encoders import ENCODERS
from architectures.selectors import SELECTORS, Selector
from harness.errors import UserError
from harness.mini.conversion import Snapshots, choose_trained
from harness.mini.encoder import EncoderRecipe, pretrain_encoder
from harness.mini.initialise import initialise
from harness.mini.pool import Pool, read_choices, write_choices, write_features
from harness.mini.questions import FAMILIES
from harness.mini.recipes import (
    AdaptRecipe,
    AdaptTraining,
    BaseRecipe,
    BaseTraining,
    PackedQuestions,
    key_frames,
)
from harness.mini.stream import QuestionStream, suite_tokenizer
from harness.mini.world import World, development_seed, training_seed
from harness.packing import IGNORED
from harness.paths import write_text
from harness.progress import Progress
from harness.train import Optimisation, train

CLIP_SEEDS = {"training": training_seed, "development": development_seed}
WEIGHTS = "encoder.pt"
ENCODER_CHECKPOINT = "checkpoint.pt"
FEATURES = "features.npy"
CHOICES = "choices.npy"
CHECKPOINTS = "checkpoints"
KINDS = ("pool", "selection")  # of the stages in parts that adaptation needs, by the start of their names


def base_training_seed(seed: int, base_seed: int) -> int:
    """What draws a base's first weights, batches and questions: another for every SEED and base seed."""
    if not 0 <= base_seed < 1_000:
        raise UserError(f"base_seeds: {base_seed} is not between 0 and 999")
    return 10_000 * seed + base_seed


def adapt_training_seed(seed: int, base_seed: int, nth: int = 1) -> int:
    """What draws the batches and questions of adaptation, and of the `nth` one: the same for all rows of a base."""
    return 1_000 * nth + base_training_seed(seed, base_seed)


def encoder_stage(out: Path, progress: Progress, seed: int, vision: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Pretrains the encoder: `encoder.pt`, `accuracy.json` (on held-out frames)."""
    quiet()
    with (
        progress.bar("frames", recipe["clips"], share=0.25) as frames,
        progress.bar("steps", recipe["steps"], share=0.75) as steps,
    ):
        bars = {"frames": frames, "encoder": steps}
        encoder, accuracy = pretrain_encoder(
            vision,
            training_seed(seed),
            EncoderRecipe(**recipe),
            lambda bar, done, total: bars[bar].advance(done - bars[bar].done),
            out / ENCODER_CHECKPOINT,
        )
    torch.save({"weights": encoder.state_dict(), "vision": vision}, out / WEIGHTS)
    write_text(out / "accuracy.json", json.dumps(accuracy, indent=2))
    (out / ENCODER_CHECKPOINT).unlink(missing_ok=True)


def pool_stage(
    out: Path,
    progress: Progress,
    encoder: Path,
    seed: int,
    start: int,
    stop: int,
    clips: str,
    world: dict[str, Any],
) -> None:
    """Features of clips `start` to `stop` of the "training" or "development" seed in a world: `features.npy`."""
    quiet()
    with progress.bar("clips", stop - start) as bar:
        write_features(
            load_encoder(encoder),
            CLIP_SEEDS[clips](seed),
            start,
            stop,
            out / FEATURES,
            lambda done, total: bar.advance(),
            World.of(world),
        )


def selection_stage(
    out: Path,
    progress: Progress,
    seed: int,
    start: int,
    stop: int,
    vision: dict[str, Any],
    selector: dict[str, Any],
    frames: int,
    world: dict[str, Any],
    cheap_encoder: Path | None = None,
) -> None:
    """The frames of training clips `start` to `stop` that a selector keeps of `frames`: `choices.npy`.

    `vision` is the encoder that the frames are chosen for; `cheap_encoder` the folder of the selector's own.
    """
    quiet()
    encoder = ENCODERS.find(vision["name"])
    built = SELECTORS.build(selector, image_mean=encoder.image_mean, image_std=encoder.image_std).eval()
    load_cheap_encoder(built, cheap_encoder)
    with progress.bar("clips", stop - start) as bar:
        write_choices(
            built,
            encoder,
            training_seed(seed),
            range(start, stop),
            frames,
            out / CHOICES,
            lambda done, total: bar.advance(),
            World.of(world),
        )


def base_stage(
    out: Path,
    progress: Progress,
    encoder: Path,
    development: Path,
    seed: int,
    base_seed: int,
    config: dict[str, Any],
    recipe: dict[str, Any],
    **pool: Path,
) -> None:
    """Trains a base: a model folder with its processor, and `base.json`: its accuracy, its threshold."""
    quiet()
    recipe = dict(recipe)
    threshold, optimisation = recipe.pop("threshold"), Optimisation(recipe.pop("steps"), recipe.pop("lr"))
    stream = QuestionStream(suite_tokenizer())
    own_seed = base_training_seed(seed, base_seed)
    torch.manual_seed(own_seed)
    model = SlowFastForConditionalGeneration(SlowFastConfig.from_dict(config))
    model.encoder = load_encoder(encoder)
    initialise(model, own_seed)
    clips = Pool.open(training_seed(seed), [part / FEATURES for _, part in sorted(pool.items())])
    training = BaseTraining(BaseRecipe(**recipe), clips, stream, own_seed, model)
    outcome = run_training(model, training, optimisation, out, own_seed, progress)
    held_out = Pool.open(development_seed(seed), [development / FEATURES])
    accuracy = base_accuracy(model, held_out, stream)
    mean = sum(accuracy.values()) / len(accuracy)
    report = {
        "accuracy": accuracy,
        "mean": mean,
        "threshold": threshold,
        "passed": mean >= threshold,
        **outcome,
    }
    write_text(out / "base.json", json.dumps(report, indent=2))
    save(model, stream, out)
    if mean < threshold:
        progress.say(f"base seed {base_seed} reads {mean:.0%} of key-frame questions, under its {threshold:.0%}")


def adapt_stage(
    out: Path,
    progress: Progress,
    base: Path,
    seed: int,
    base_seed: int,
    frames: int,
    variant: dict[str, Any],
    recipe: dict[str, Any],
    world: dict[str, Any],
    cheap_encoder: Path | None = None,
    trains: str = "all",
    nth: int = 1,
    snapshots: Sequence[int] = (),
    **parts: Path,
) -> None:
    """Makes a variant of a base and trains all of it but the encoder: a model folder with its processor.

    `parts`: the folders "pool0", "pool1", ..., and "selection0", "selection1", ... where the variant has a
    selector; `cheap_encoder`: the selector's own, if any. For the plug-and-play study: `trains` only what is
    "new" to the base; `nth` adaptation of these weights, which draws anew; the model after the steps `snapshots`.
    """
    quiet()
    stream = QuestionStream(suite_tokenizer())
    torch.manual_seed(base_training_seed(seed, base_seed))
    start = SlowFastForConditionalGeneration.from_pretrained(base)
    model = SlowFastForConditionalGeneration.from_base(start, **variant)
    counts = choose_trained(model, start, trains)
    load_cheap_encoder(model.selector, cheap_encoder)
    pool, selection = ([parts[name] for name in sorted(parts) if name.startswith(kind)] for kind in KINDS)
    choices_NK = read_choices([part / CHOICES for part in selection]) if selection else None
    optimisation = Optimisation(recipe["steps"], recipe["lr"], lr_factors={".gate.": recipe["gate_lr_factor"]})
    chosen = AdaptRecipe(recipe["videos"], recipe["questions"])
    clips = Pool.open(training_seed(seed), [part / FEATURES for part in pool], World.of(world))
    draws = adapt_training_seed(seed, base_seed, nth)
    training = AdaptTraining(chosen, clips, stream, draws, model, frames, choices_NK)
    kept = Snapshots(model, processor_of(model, stream), out, snapshots)
    own_seed = base_training_seed(seed, base_seed)
    outcome = run_training(model, training, optimisation, out, own_seed, progress, kept.take)
    gates = [torch.tanh(gate.warmup).item() for gate in model.gates() if hasattr(gate, "warmup")]
    write_text(out / "adapt.json", json.dumps({**outcome, **counts, "gates": gates}, indent=2))
    save(model, stream, out)


def run_training(
    model: SlowFastForConditionalGeneration,
    recipe: Any,
    optimisation: Optimisation,
    out: Path,
    seed: int,
    progress: Progress,
    after_step: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """Trains with a progress bar that starts where a resumed run does.

    `after_step` is told how many steps are done, 0 at first; and, after a kill, some of them again.
    """
    state = {"bar": None, "done": 0}

    def report(done: int, total: int) -> None:
        after_step(done)
        if state["bar"] is None:
            state["bar"], state["done"] = progress.bar("steps", total, done=done - 1), done - 1
        state["bar"].advance(done - state["done"])
        state["done"] = done

    after_step(0)
    outcome = train(model, recipe, optimisation, out / CHECKPOINTS, seed, report)
    if state["bar"] is not None:
        state["bar"].__exit__()
    return outcome


def load_encoder(folder: Path) -> torch.nn.Module:
    """The frozen encoder that `encoder_stage` wrote."""
    saved = torch.load(folder / WEIGHTS, weights_only=True)
    encoder = ENCODERS.build(saved["vision"])
    encoder.load_state_dict(saved["weights"])
    return encoder.eval().requires_grad_(False)


def load_cheap_encoder(selector: Selector, folder: Path | None) -> None:
    """Gives a selector's cheap encoder the weights that `encoder_stage` wrote for it; None: it has none."""
    if folder is not None:
        selector.cheap.encoder.load_state_dict(load_encoder(folder).state_dict())


def save(model: SlowFastForConditionalGeneration, stream: QuestionStream, out: Path) -> None:
    """Model and processor, as `from_pretrained` reads them; then the checkpoints are needless."""
    model.eval().save_pretrained(out)
    processor_of(model, stream).save_pretrained(out)
    shutil.rmtree(out / CHECKPOINTS)


def processor_of(model: SlowFastForConditionalGeneration, stream: QuestionStream) -> SlowFastProcessor:
    """The processor that goes with a model of these questions."""
    return SlowFastProcessor.for_model(model.config, model.encoder, stream.tokenizer)


@torch.no_grad()
def base_accuracy(model: SlowFastForConditionalGeneration, clips: Pool, stream: QuestionStream) -> dict[str, float]:
    """Share of right words per family on held-out clips with key frames shown: can the base read at all?"""
    model.eval()
    rng, chance = np.random.default_rng(0), random.Random(0)
    questions = PackedQuestions(clips, stream, model)
    clips_B = np.arange(len(clips))
    frames_BT = np.stack([key_frames(rng, clip, BaseTraining.FRAMES_AT_MOST) for clip in clips.clips])
    branches = [stream.branches([stream.draw(chance, clip, family) for family in FAMILIES]) for clip in clips.clips]
    batch = questions.batch(clips_B, frames_BT, branches)
    right_BQM = questions.logits(model, batch).argmax(-1) == batch.answer_BQM
    word_BQ = right_BQM[batch.answer_BQM != IGNORED].unflatten(0, (*right_BQM.shape[:2], -1))[..., 0]
    return dict(zip(FAMILIES, word_BQ.float().mean(0).tolist(), strict=True))


def quiet() -> None:
    """Keeps transformers' own bars and advice off the terminal: the harness shows its progress itself."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
