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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.foot import BASELINE
from harness.journal import UNPARSED
from harness.rows import CONTROLLED, SAMPLE_COLUMNS, rows_name, samples_name, write_file, write_rows
from harness.stages import DESCRIPTION, Stage
from harness.table import Cell, Plan, model_name, read_json
from harness.video import SAMPLING_RULE

TABLE = "plug_and_play"


@dataclass(frozen=True)
class Curve:
    """One training run: of which weights, as what, training what."""

    name: str
    start: Literal["base", "baseline"]
    converted: bool  # to slow-fast, or left as it is
    trains: Literal["all", "new"]
    meaning: str


CURVES = (
    Curve("baseline_further", "baseline", False, "all", "the trained baseline, trained further as it is"),
    Curve("converted_new", "baseline", True, "new", "the baseline made slow-fast, only the new parameters trained"),
    Curve("converted_all", "baseline", True, "all", "the baseline made slow-fast, all but the encoder trained"),
    Curve("slow_fast", "base", True, "all", "slow-fast trained as such, from the base, as in the main table"),
)
SAMPLES = {
    "curve": "name of the curve",
    "step": "steps trained before the evaluation",
    **{name: text for name, text in SAMPLE_COLUMNS.items() if name not in ("architecture", "frames", "control")},
}
"""The study's samples, column by column."""


class Point(BaseModel):
    """One evaluation: a curve after some steps, of one base seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: Literal[1] = Field(1, description="version of this schema")
    scale: str = Field(description="as in the main table's rows")
    seed: int = Field(ge=0, description="the command's SEED")
    base_seed: int = Field(ge=0, description="seed of the base under the curve")
    curve: str = Field(description=f"one of {', '.join(curve.name for curve in CURVES)}")
    step: int = Field(ge=0, description="steps trained before this evaluation")
    frames: int = Field(ge=1, description="frames sampled from each video")
    n_trained: int = Field(ge=0, description="parameters that the curve trains")
    n_parameters: int = Field(ge=1, description="parameters of its model, the encoder's included")
    scores: dict[str, float] = Field(description="benchmark -> lmms-eval's own metric, 0-100")
    average: float = Field(ge=0, le=100, description="unweighted mean of `scores`")
    n_samples: int = Field(ge=1, description="questions asked; failures stay in this denominator")
    failures: int = Field(ge=0, description="questions without an answer (video or generation failed): wrong")
    unparsed: int = Field(ge=0, description="answers without an option's letter, scored wrong, not failures")
    training: dict[str, Any] = Field(description="arguments of the curve's training stage")
    timings: dict[str, float] = Field(description="seconds of the whole curve's `train`, and of this `evaluate`")
    content_hash: str = Field(description="hash of all that the point depends on")
    suite_fingerprint: str = Field(description="sha256 over the suite's questions and video files")
    sampling: str = Field(description="which frames were shown to the model, as a formula")
    code_commit: str | None = Field(description="git commit of the harness; null outside a checkout")
    code_dirty: bool | None = Field(description="whether tracked files differed from that commit")
    versions: dict[str, str] = Field(description="Python and the packages that can move a number")
    device: str = Field(description="processor, cores and memory (or accelerator) of the measurement")
    disclosures: list[str] = Field(description="what a reader must know of the recipe; printed under the table")


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


def write(made: Sequence[tuple[Point, pd.DataFrame]], results: Path) -> None:
    """Stores points and samples in results/rows."""
    first = made[0][0]
    key = (TABLE, first.scale, first.seed)
    write_rows(results / "rows" / rows_name(*key), [point for point, _ in made])
    samples = pd.concat([samples for _, samples in made], ignore_index=True)
    path = results / "rows" / samples_name(*key)
    write_file(path, lambda file: samples.to_parquet(file, index=False, compression="zstd"))


def read(results: Path, scale: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points (a column per field) and samples as `write` stored them; UserError if they are not there."""
    key = (TABLE, scale, seed)
    path = results / "rows" / rows_name(*key)
    if not path.is_file():
        raise UserError(f"{path} does not exist; `python -m harness plug-and-play` writes it.")
    try:
        points = [Point.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValidationError as error:
        raise UserError(
            f"{path} does not hold the study's points ({error.errors()[0]['msg']}); make it again."
        ) from error
    samples = pd.read_parquet(results / "rows" / samples_name(*key))
    return pd.DataFrame([point.model_dump() for point in points]), samples


def meanings() -> dict[str, str]:
    """What each curve is, by name."""
    return {curve.name: curve.meaning for curve in CURVES}
