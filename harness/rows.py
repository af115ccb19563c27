"""One row: everything known about one (architecture, frames, base seed), scored and costed.

    results/rows/<table>_<scale>_seed<SEED>.jsonl             one JSON object a row, fields as in `Row`
    results/rows/<table>_<scale>_seed<SEED>.samples.parquet   a line per row and question: `SAMPLE_COLUMNS`

Grids keep theirs in results/rows/ablations, in files of their own (see harness/row_store.py). Reports read these
files and nothing else. results/README.md is made from the schema below (see harness/results_readme.py): the
documentation of a field is its declaration.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.paths import write_text
from harness.provenance import Provenance, provenance

if TYPE_CHECKING:
    from harness.evaluate import Evaluation

SCHEMA_VERSION = 2
UNPARSED = "unparsed"  # an answer without an option's letter: the model's mistake, not a failure of the input
KEYS = ["architecture", "frames", "control", "base_seed"]
"""What tells one row of a table from another."""

CONTROLLED = ("slow_fast", 128, "none")
"""The row whose slow tokens the controls take away: architecture, frames, control."""
REFERENCE = ("compressor_only", 128, "none")
"""What a control is compared with: the same fast tokens, no cross-attention."""

SAMPLE_COLUMNS = {
    "architecture": "as in the row",
    "frames": "as in the row",
    "control": "as in the row",
    "base_seed": "as in the row",
    "benchmark": "registry name of the benchmark, e.g. `videomme`",
    "task": "lmms-eval's task name, e.g. `mvbench_action_antonym`",
    "doc_id": "the question's number within its task",
    "video": "the video asked about, relative to the suite; intervals are clustered by it",
    "category": "the category that the benchmark's own aggregation averages over; empty where it has none",
    "family": "the kind of event asked about: needle, order, count, where, motion",
    "n_options": "number of options offered; chance is 1 / n_options",
    "target": "the right option's letter",
    "prediction": "the letter scored (after a failure: a wrong one, so that no parser gives credit)",
    "correct": "whether the benchmark's own metric counts the answer as right",
    "failure": f"empty, or the kind of failure, or `{UNPARSED}` for an answer without an option's letter",
    "seconds": "the question's share of its batch's wall time, s; empty in files of schema version 1",
}


LATENCY = ("prefill_ms", "prefill_ms_quartiles", "decode_ms_per_token", "decode_ms_quartiles")
"""The fields that are null where rows are computed side by side."""
NULLABLE = ("prefill_ms", "decode_ms_per_token", "prefill_mflop_mini", "prefill_tflop_7b", "model_tflop_7b")
"""Numbers that a row may lack: not measured; or not counted, of a model whose code is not ours."""


class Tally(BaseModel):
    """How many of the questions asked were answered right."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    correct: int = Field(ge=0)
    asked: int = Field(ge=1)


class Row(BaseModel):
    """One finished (architecture, frames, base seed); see each field's description."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: Literal[2] = Field(SCHEMA_VERSION, description="version of this schema")
    table: str = Field(description="what the row was made for: `main`, `controls`, `ablations` or `paper_...`")
    grid: str = Field(description="name of the ablation grid; empty outside grids")
    cell: str = Field(description="the grid's name of the row's cell; empty outside grids")
    overrides: list[str] = Field(description="the settings in which the cell differs, as typed in the grid")
    scale: str = Field(description="`mini`: a model of a quarter of a million parameters on procedural videos; `paper`")
    architecture: str = Field(description="name in the Hydra group `architecture`")
    frames: int = Field(ge=1, description="frames sampled from each video")
    control: str = Field("none", description="`none`, or what was taken away or swapped at evaluation")
    base_seed: int = Field(ge=0, description="seed of the shared base (encoder and decoder) under the row")
    seed: int = Field(ge=0, description="the command's SEED: names the suite and derives the others")
    seeds: dict[str, int] = Field(description="every seed derived from SEED, by what it drives")
    config: dict[str, Any] = Field(description="the composed configuration of the row")
    content_hash: str = Field(description="hash of all that the row depends on but the machine and its rounding")
    code_commit: str | None = Field(description="git commit of the harness; null outside a checkout")
    code_dirty: bool | None = Field(description="whether tracked files but results/ differed from that commit")
    suite_fingerprint: str = Field(description="sha256 over the suite's questions and video files")
    world: str = Field(description="what the videos are like: `plain`, or another choice of the group `world`")
    suite: dict[str, Any] = Field(
        description="how the suite was made and read: `fingerprint`, `seed`, `sizes`, `world`, `prompts` (sha256 over "
        "all prompts), `sampling`, `decoder`, `split` and `aggregation` of each benchmark; empty in rows of version 1"
    )
    versions: dict[str, str] = Field(description="Python and the packages that can move a number")
    device: str = Field(description="processor, cores and memory (or accelerator) of the measurement")
    sampling: str = Field(description="which frames were shown to the model, as a formula")
    scores: dict[str, float] = Field(description="benchmark -> lmms-eval's own metric, 0-100")
    average: float = Field(ge=0, le=100, description="unweighted mean of `scores`")
    aggregations: dict[str, dict[str, float]] = Field(
        description="benchmark -> `categories`: the mean over categories, `samples`: the mean over questions, 0-100, "
        "whichever of the two its score is; of the benchmarks with more than one category"
    )
    by_category: dict[str, dict[str, Tally]] = Field(description="benchmark -> category -> right and asked")
    by_family: dict[str, Tally] = Field(description="event family -> right and asked, over all benchmarks")
    n_samples: int = Field(ge=1, description="questions asked; failures stay in this denominator")
    failures: int = Field(ge=0, description="questions without an answer (video or generation failed): wrong")
    failure_kinds: dict[str, int] = Field(description="kind of failure -> questions; sums to `failures`")
    unparsed: int = Field(ge=0, description="answers without an option's letter, scored wrong, not failures")
    fast_tokens: int | None = Field(ge=0, description="video tokens in the prompt, per video; null if not counted")
    slow_tokens: int | None = Field(
        ge=0, description="video tokens read by cross-attention, per video; null if not counted"
    )
    prefill_mflop_mini: float | None = Field(
        ge=0, description="LLM prefill of the model measured, MFLOP = 2 x MAC; null if not counted"
    )
    prefill_tflop_7b: float | None = Field(
        ge=0,
        description="LLM prefill at the 7B configuration, TFLOP = 2 x MAC; null if not counted",
    )
    model_tflop_7b: float | None = Field(
        ge=0,
        description="the same with vision tower, projector and compressor; null if not counted",
    )
    flop_stages: dict[str, float] = Field(description="stage -> TFLOP at the 7B configuration; may be empty")
    prefill_ms: float | None = Field(
        ge=0,
        description="median time from features to the first token's logits, ms; null in grids, whose cells run side "
        "by side",
    )
    prefill_ms_quartiles: list[float] | None = Field(description="first and third quartile of `prefill_ms`")
    decode_ms_per_token: float | None = Field(ge=0, description="median time of one further token, ms; null likewise")
    decode_ms_quartiles: list[float] | None = Field(description="first and third quartile of `decode_ms_per_token`")
    timings: dict[str, float] = Field(description="stage -> seconds it took; shared stages count once")
    disclosures: list[str] = Field(description="what a reader must know of the recipe; printed under the table")
    samples: str = Field(description="file with the row's samples, beside this one")

    @model_validator(mode="after")
    def _adds_up(self) -> "Row":
        if sum(self.failure_kinds.values()) != self.failures:
            raise ValueError(f"failure_kinds add up to {sum(self.failure_kinds.values())}, not {self.failures}")
        if self.failures + self.unparsed > self.n_samples:
            raise ValueError(f"{self.failures} failures + {self.unparsed} unparsed > {self.n_samples} samples")
        outside = {name: score for name, score in self.scores.items() if not 0 <= score <= 100}
        if outside:
            raise ValueError(f"scores must lie in 0-100, got {outside}")
        return self


def make_row(
    evaluation: "Evaluation",
    *,
    table: str,
    scale: str,
    architecture: str,
    frames: int,
    base_seed: int,
    seed: int,
    content_hash: str,
    suite_fingerprint: str,
    sampling: str,
    cost: Mapping[str, Any],
    control: str = "none",
    grid: str = "",
    cell: str = "",
    overrides: Iterable[str] = (),
    world: str = "plain",
    suite: Mapping[str, Any] | None = None,
    seeds: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
    timings: Mapping[str, float] | None = None,
    disclosures: Iterable[str] = (),
    made_by: Provenance | None = None,
) -> Row:
    """The row of one evaluation.

    evaluation: `harness.evaluate.Evaluation` (`scores` 0-100 by benchmark, `samples`).
    cost: fast_tokens, slow_tokens, prefill_mflop_mini, prefill_tflop_7b, model_tflop_7b; optional are flop_stages
        and, where latency was measured, prefill_ms, prefill_ms_quartiles, decode_ms_per_token, decode_ms_quartiles.
    grid, cell: where the row belongs to a grid; its samples then lie in the grids' store, by content hash.
    made_by: commit, versions and device; found out here when not given.
    Raises UserError naming the row and the field that is missing, unknown or out of range.
    """
    where = f"the row {architecture} @ {frames} frames, base seed {base_seed}"
    samples = evaluation.samples
    kinds = samples["failure"].fillna("").astype(str)
    failed = kinds[(kinds != "") & (kinds != UNPARSED)]
    by_category = {
        name: _tallies(group, group["category"].fillna("")) for name, group in samples.groupby("benchmark", sort=True)
    }
    fields = dict(
        schema_version=SCHEMA_VERSION,
        table=table,
        grid=grid,
        cell=cell,
        overrides=list(overrides),
        scale=scale,
        architecture=architecture,
        frames=frames,
        control=control,
        base_seed=base_seed,
        seed=seed,
        seeds=dict(seeds or {}),
        config=dict(config or {}),
        content_hash=content_hash,
        suite_fingerprint=suite_fingerprint,
        world=world,
        suite=dict(suite or {}),
        sampling=sampling,
        scores={name: float(score) for name, score in evaluation.scores.items()},
        average=float(sum(evaluation.scores.values()) / len(evaluation.scores)),
        aggregations=_aggregations(by_category, where),
        by_category=by_category,
        by_family=_tallies(samples, samples["family"]),
        n_samples=len(samples),
        failures=len(failed),
        failure_kinds={kind: int(n) for kind, n in failed.value_counts().sort_index().items()},
        unparsed=int((kinds == UNPARSED).sum()),
        timings={stage: float(seconds) for stage, seconds in (timings or {}).items()},
        disclosures=list(disclosures),
        samples=stored_samples_name(content_hash) if grid else samples_name(table, scale, seed),
        **(made_by or provenance()).fields(),
        **{"flop_stages": {}, **dict.fromkeys(LATENCY), **cost},
    )
    return _checked(fields, where)


def upgrade(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored row's fields as the present schema has them; those of the present version as they are.

    Version 1 knew one world and no grids; both aggregations follow from the tallies that it had.
    Raises ValidationError if these are none.
    """
    if fields.get("schema_version") != 1:
        return fields
    by_category = TypeAdapter(dict[str, dict[str, Tally]]).validate_python(fields.get("by_category", {}))
    added = {"grid": "", "cell": "", "overrides": [], "world": "plain", "suite": {}}
    both = _aggregations(by_category, "a row of schema version 1")
    return {**fields, **added, "aggregations": both, "schema_version": SCHEMA_VERSION}


def seed_suffix(seed: int) -> str:
    """What ends the names of tables and figures: "" for seed 0, "_seedN" for any other seed N."""
    return f"_seed{seed}" if seed else ""


def rows_name(table: str, scale: str, seed: int) -> str:
    """File name of a table run's rows, e.g. `main_mini_seed0.jsonl`."""
    return f"{table}_{scale}_seed{seed}.jsonl"


def samples_name(table: str, scale: str, seed: int) -> str:
    """File name of a table run's samples, e.g. `main_mini_seed0.samples.parquet`."""
    return f"{table}_{scale}_seed{seed}.samples.parquet"


def stored_samples_name(content_hash: str) -> str:
    """Where the grids' store keeps the samples of a content, beside its rows, e.g. `samples/8b46406e7dcb.parquet`."""
    return f"samples/{content_hash}.parquet"


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """Write the rows of one table run, one JSON object a line; the file appears complete or not at all."""
    lines = "".join(row.model_dump_json() + "\n" for row in rows)
    write_text(Path(path), lines)
    return Path(path)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of `path`, one column per field of `Row` (mappings and lists stay objects); version 1 is upgraded.

    Raises UserError naming file, line and field if a line is not a row.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; `python -m harness table` writes it.")
    return as_frame(load_rows(path))


def load_rows(path: Path) -> list[Row]:
    """The rows of `path` as `Row`s; see `read_rows`."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); make the table again.") from error
        rows.append(_checked(fields, f"{path}, line {number}"))
    return rows


def as_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as `read_rows` returns them, one column per field."""
    records = [row.model_dump() for row in rows]
    frame = pd.DataFrame(records, columns=list(Row.model_fields)).astype(dict.fromkeys(NULLABLE, float))
    unknown = [name for name in ("fast_tokens", "slow_tokens") if frame[name].isna().any()]
    return frame.astype(dict.fromkeys(unknown, "Int64"))


def tag_samples(row: Row, samples: pd.DataFrame) -> pd.DataFrame:
    """An evaluation's samples with the row's `KEYS` before them and the columns of `SAMPLE_COLUMNS` only."""
    missing = set(SAMPLE_COLUMNS) - set(KEYS) - set(samples.columns)
    if missing:
        raise UserError(f"the samples of {row.architecture} @ {row.frames} lack {', '.join(sorted(missing))}.")
    tagged = samples.assign(**{key: getattr(row, key) for key in KEYS})[list(SAMPLE_COLUMNS)]
    types = {
        **dict.fromkeys(("frames", "base_seed", "doc_id", "n_options"), "int64"),
        "correct": bool,
        "seconds": float,
    }
    texts = {name: tagged[name].fillna("").astype(str) for name in SAMPLE_COLUMNS if name not in types}
    return tagged.assign(**texts).astype(types)


def write_samples(path: Path, tagged: Iterable[pd.DataFrame]) -> Path:
    """Write the `tag_samples` frames of one table run as one compressed parquet file."""
    together = pd.concat(list(tagged), ignore_index=True).sort_values([*KEYS, "benchmark", "task", "doc_id"])
    return write_file(
        path,
        lambda temporary: together.to_parquet(temporary, index=False, compression="zstd"),
    )


def read_samples(path: Path) -> pd.DataFrame:
    """The samples of one table run, columns `SAMPLE_COLUMNS`; UserError if they are not there."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; `python -m harness table` writes it beside the rows.")
    samples = pd.read_parquet(path)
    if list(samples.columns) == [name for name in SAMPLE_COLUMNS if name != "seconds"]:
        samples["seconds"] = float("nan")  # schema version 1
    if list(samples.columns) != list(SAMPLE_COLUMNS):
        raise UserError(f"{path} has the columns {list(samples.columns)}, not {list(SAMPLE_COLUMNS)}.")
    return samples


def _tallies(samples: pd.DataFrame, key: pd.Series) -> dict[str, Tally]:
    correct = samples["correct"].astype(bool).groupby(key.astype(str), sort=True)
    return {name: Tally(correct=int(group.sum()), asked=len(group)) for name, group in correct}


def _aggregations(by_category: Mapping[str, Mapping[str, Tally]], where: str) -> dict[str, dict[str, float]]:
    """Both means of every benchmark with more than one category; `where` begins the error about an unknown one."""
    both = {}
    for name, tallies in by_category.items():
        if name not in BENCHMARKS or len(BENCHMARKS[name].categories) < 2:
            continue
        shares = [tally.correct / tally.asked for tally in tallies.values()]
        try:
            mean = replace(BENCHMARKS[name], aggregation="categories").score(shares, list(tallies))
        except ValueError as error:
            raise UserError(f"{where}: {error}.") from error
        right, asked = (sum(getattr(tally, part) for tally in tallies.values()) for part in ("correct", "asked"))
        both[name] = {"categories": mean, "samples": 100 * right / asked}
    return both


def _checked(fields: Any, where: str) -> Row:
    try:
        return Row.model_validate(upgrade(fields) if isinstance(fields, dict) else fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "row"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(f"{where}: field {field}: {first['msg']}{more}.") from error


def write_file(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call `write(temporary)` for a file beside `path`, then rename it: readers never meet half a file.

    Not even after a power cut: the bytes are on the disk before the name is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def flush(path: Path) -> None:
    """Have the system put a file, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
