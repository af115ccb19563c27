"""The plug-and-play study: does it help to convert a trained self-attention baseline to slow-fast?

    encoder --> pool --> base --> baseline (the table's self_attention@16)
                          |           |
                          |           +--> baseline_further   the control: self-attention, trained further
                          |           +--> converted_new      slow-fast, only the new parameters trained
                          |           +--> converted_all      slow-fast, all but the encoder trained
                          +--> slow_fast                      the reference: slow-fast trained as such, as in the table

Each of the four curves is one training run with snapshots, each snapshot one evaluation. All stages up to the
baseline are the table's own, so that after `table` only the curves are left to run.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from harness.errors import UserError
from harness.foot import BASELINE
from harness.journal import UNPARSED
from harness.plug_and_play_points import CURVES, SAMPLES, Curve, Point
from harness.rows import CONTROLLED
from harness.staged import is_staged
from harness.stages import DESCRIPTION, Stage
from harness.table import Cell, Plan, model_name, read_json
from harness.video import SAMPLING_RULE


class Study:
    """The stages of the study under given settings, and what came of them.

    Raises UserError, before any work, as `Plan` does, and for steps that are not 0, ..., all of adaptation's.
    """

    def __init__(self, settings: DictConfig, overrides: Sequence[str]):
        self.settings = settings
        self.baseline, self.converted = Cell(*BASELINE), Cell(CONTROLLED[0], settings.frames)
        self.plan = Plan(settings, overrides, [self.baseline, self.converted])
        self.steps = list(settings.scale.plug_and_play.steps)
        check_steps(self.steps, settings.scale.adapt.steps)
        if is_staged(settings):
            raise UserError("the study's curves are those of the table's own adaptation: leave out training=...")
        if settings.architecture.name != CONTROLLED[0] or settings.placement.name == "none":
            raise UserError(
                f"the study converts to {CONTROLLED[0]} with hybrid layers: leave out architecture=... and "
                "placement=none, and choose its parts (gate=..., placement=..., compressor=..., frames=...)"
            )

    def on(self, suite: Path) -> "Study":
        """This study, scored on the suite in the folder `suite`."""
        study = copy(self)
        study.plan = self.plan.on(suite)
        return study

    def stages(self) -> list[Stage]:
        """Every stage, the table's included."""
        seeds = self.settings.base_seeds
        shared = self.plan.needed_by([model_name(self.baseline, seed) for seed in seeds])
        curves = [self.curve(curve, seed) for seed in seeds for curve in CURVES]
        scores = [self.scores(curve, step, seed) for seed in seeds for curve in CURVES for step in self.steps]
        return [*shared, *curves, *{stage.name: stage for stage in scores}.values()]

    def curve(self, curve: Curve, base_seed: int) -> Stage:
        """The training of a curve: the table's adaptation, of other weights or with snapshots."""
        made = self.plan.model(self.cell(curve), base_seed)
        further = {"nth": 2} if curve.start == "baseline" else {}
        start = model_name(self.baseline, base_seed) if further else made.needs["base"]
        return replace(
            made,
            name=curve_name(curve, base_seed),
            kwargs={**made.kwargs, **further, "trains": curve.trains, "snapshots": self.steps},
            needs={**made.needs, "base": start},
        )

    def scores(self, curve: Curve, step: int, base_seed: int) -> Stage:
        """The evaluation of a curve after some steps; two curves of one start share it."""
        cell = self.cell(curve)
        if step == 0 and curve.start == "baseline":
            if not curve.converted:
                return self.plan.scores(self.baseline, base_seed)  # the table's
            curve = next(each for each in CURVES if (each.start, each.converted) == ("baseline", True))
        made = self.plan.scores(cell, base_seed)
        return replace(
            made,
            name=f"{curve_name(curve, base_seed)}-{step}",
            function="harness.mini.conversion:snapshot_scores_stage",
            kwargs={**made.kwargs, "step": step},
            needs={"checkpoint": curve_name(curve, base_seed)},
            sources=(*made.sources, "harness.table_stages"),
        )

    def cell(self, curve: Curve) -> Cell:
        """Architecture and frames of a curve."""
        return self.converted if curve.converted else self.baseline

    def points(self, folders: dict[str, Path]) -> list[tuple[Point, pd.DataFrame]]:
        """Every point with its samples (columns as in SAMPLES), from the finished stages' folders."""
        seeds = self.settings.base_seeds
        return [self.point(folders, *each) for each in ((c, s, b) for b in seeds for c in CURVES for s in self.steps)]

    def point(self, folders: dict[str, Path], curve: Curve, step: int, base_seed: int) -> tuple[Point, pd.DataFrame]:
        """One point and its samples."""
        from harness.evaluate import load_evaluation
        from harness.mini.suite import load_suite

        scores = folders[self.scores(curve, step, base_seed).name]
        training = folders[curve_name(curve, base_seed)]
        evaluation, counts = load_evaluation(scores), read_json(training / "adapt.json")
        measured, trained = read_json(scores / DESCRIPTION), read_json(training / DESCRIPTION)
        point = Point(
            scale=self.settings.scale.name,
            seed=self.settings.seed,
            base_seed=base_seed,
            curve=curve.name,
            step=step,
            frames=self.cell(curve).frames,
            n_trained=counts["n_trained"],
            n_parameters=counts["n_parameters"],
            scores=evaluation.scores,
            average=sum(evaluation.scores.values()) / len(evaluation.scores),
            n_samples=len(evaluation.samples),
            failures=len(evaluation.failed),
            unparsed=int(evaluation.samples["failure"].eq(UNPARSED).sum()),
            training=trained["kwargs"],
            timings={"train": trained["seconds"], "evaluate": measured["seconds"]},
            content_hash=measured["key"],
            suite_fingerprint=load_suite(self.plan.suite)["fingerprint"],
            sampling=SAMPLING_RULE,
            disclosures=self.plan.disclosures(folders, base_seed),
            **measured["made_by"],
        )
        tagged = evaluation.samples.assign(curve=curve.name, step=step, base_seed=base_seed)
        return point, tagged[list(SAMPLES)]


def curve_name(curve: Curve, base_seed: int) -> str:
    """Stage name of a curve's training."""
    return f"study{base_seed}-{curve.name}"


def check_steps(steps: Sequence[int], last: int) -> None:
    """UserError unless the steps rise from 0 to the last of adaptation's."""
    if list(steps) != sorted(set(steps)) or not steps or (steps[0], steps[-1]) != (0, last):
        raise UserError(
            f"scale.plug_and_play.steps={list(steps)}: give rising steps, from 0 to the last of "
            f"scale.adapt.steps={last}, such as [0,{last}]"
        )
