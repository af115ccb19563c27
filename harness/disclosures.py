"""What a reader must know of the recipe behind a row; printed under tables."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from harness.mini.recipes import BaseTraining
from harness.models import plain
from harness.staged import is_staged


def disclosures_of(settings: DictConfig, base: Mapping[str, Any]) -> list[str]:
    """The sentences about a row of composed `settings` on a base that measured `base` (its base.json)."""
    recipe, adapt = settings.scale.base, settings.scale.adapt
    families = ", ".join(f"{family} {share:.0%}" for family, share in base["accuracy"].items())
    passed = "passes" if base["passed"] else "FAILS"
    return [
        _first_layer(recipe.first_layer_reading),
        *_world(settings.world),
        *_stages(settings),
        f"Base training further: clips of 5 to {BaseTraining.FRAMES_AT_MOST} frames chosen to hold the events "
        f"asked about (full length from step {recipe.all_frames_from}), captions of single frames for "
        f"{recipe.alignment_steps} steps, {recipe.text_only:.1%} text-only questions, families drawn by running "
        f"loss + {recipe.balance:g}, frames in random order with their true times in {recipe.shuffle:.0%} of "
        "batches, queries initialised like keys. Adaptation and evaluation sample uniformly.",
        "One encoder and one pool of training clips (features kept as float16) serve all base seeds, one base all "
        f"rows of its seed. Every row gets the same {adapt.steps} adaptation steps, data order and "
        f"learning rates (gates: times {adapt.gate_lr_factor:g}), whether or not it has converged by "
        "then. Losses: word, letter, end, and the word right after the question.",
        f"Gate of the hybrid layers, slow_fast_official's too: {plain(settings.gate)} (the official code's "
        "dynamic gate starts at bias 0).",
        "Answers are a word, then the option's letter; each benchmark's fixed instruction is one token.",
        f"Its words on held-out key frames are right in {base['mean']:.0%} of cases ({families}): it {passed} the "
        f"threshold of {base['threshold']:.0%}.",
    ]


def _first_layer(share: float) -> str:
    if share == 0:
        return (
            "First-layer reading: base training is without that rule here (scale.base.first_layer_reading is 0): in no "
            "batch is text kept from reading the video after the decoder's first layer. The grid base_reading compares "
            "such bases with those of the rule."
        )
    return (
        f"First-layer reading: in {share:.0%} of base training's batches text may read the "
        "video in the decoder's first layer only (scale.base.first_layer_reading), for slow-fast's copied keys and "
        "values to profit from. The grid base_reading asks whether they need it."
    )


def _stages(settings: DictConfig) -> list[str]:
    """How rows learn where they do not learn by the table's own adaptation."""
    if not is_staged(settings):
        return []
    told = ", ".join(f"{stage.recipe} for {stage.share:.0%}" for stage in settings.training.stages)
    return [
        f"Trained in stages ({told} of the adaptation's steps) by the trainer of paper scale on an annotation file, "
        "not by the adaptation described here."
    ]


def _world(world: DictConfig) -> list[str]:
    """What the videos show beside what is asked about, in adaptation and evaluation; bases know the plain world."""
    adapted, scored = world.training, world.evaluation
    told = []
    if adapted.distractors == scored.distractors == 0:
        told.append(
            "What is salient is what is asked about here, so that a selector of 16 frames (self_attention_selected) "
            "can do without a slow path. Distractors, which it would select as well, are not in this world."
        )
    else:
        told.append(
            "Distractors: grey patches that no question is about, about as salient as what is asked about, flash in "
            f"{adapted.distractors} frames of an adaptation clip and {scored.distractors} of an evaluation clip; a "
            "selector of frames may select them as well. Base and encoder are those of the plain world."
        )
    if adapted.dwell is not None or scored.dwell is not None:
        told.append(
            f"Glyphs that flash once stay for {_frames(adapted.dwell)} in adaptation and {_frames(scored.dwell)} in "
            "evaluation, all of a clip equally long. Base and encoder are those of the plain world."
        )
    return told


def _frames(dwell: Any) -> str:
    least, most = (1, 2) if dwell is None else dwell
    return f"{least} to {most} frames"
