"""The plug-and-play study's curves, points and samples, and where they are stored; `plug_and_play` makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.rows import SAMPLE_COLUMNS, rows_name, samples_name, write_file, write_rows

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
    code_dirty: bool | None = Field(description="whether tracked files but results/ differed from that commit")
    versions: dict[str, str] = Field(description="Python and the packages that can move a number")
    device: str = Field(description="processor, cores and memory (or accelerator) of the measurement")
    disclosures: list[str] = Field(description="what a reader must know of the recipe; printed under the table")


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
