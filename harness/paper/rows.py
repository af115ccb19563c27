"""Finished stages to rows and samples, and the files that keep them.

    results/rows/paper_PROMPTS_SAMPLING_paper_seedSEED.jsonl            one JSON object a row, fields as in `rows.Row`
    results/rows/paper_PROMPTS_SAMPLING_paper_seedSEED.samples.parquet  what each row answered

Each way of asking (prompts, sampling of frames; `paper_external`: lmms-eval's own models) has files of its own, in
which a model's new row takes the place of its old one; the table shows all of them. A row of lmms-eval's own models
has nothing counted: its five cost fields are null (see `is_counted`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from filelock import FileLock

from harness import rows as stored
from harness.benchmarks import benchmark_named
from harness.errors import UserError
from harness.paper.models import ModelSpec
from harness.paper.request import Request
from harness.paper.stages import RowStages, fingerprint_of
from harness.provenance import Provenance
from harness.rows import KEYS, Row, load_rows, make_row, tag_samples
from harness.sampling import find_rule
from harness.stages import DESCRIPTION

SCALE = "paper"
TABLE = "paper_"  # how the names of these tables' files begin
ITS_OWN = "lmms-eval's own model"  # of prompts and sampling: what the code of an external model does
COUNTED = ("fast_tokens", "slow_tokens", "prefill_mflop_mini", "prefill_tflop_7b", "model_tflop_7b")
"""The cost fields; null for a model whose code is not ours."""


@dataclass(frozen=True)
class Scored:
    """A benchmark's finished evaluation: its folder, scores by benchmark, samples."""

    folder: Path
    scores: dict[str, float]
    samples: pd.DataFrame

    @classmethod
    def of(cls, folder: Path) -> "Scored":
        """As the stage left it."""
        from harness.evaluate import load_evaluation

        found = load_evaluation(folder)
        return cls(folder, dict(found.scores), found.samples)

    @property
    def summary(self) -> dict[str, Any]:
        """What the evaluation wrote about itself."""
        from harness.evaluate import SCORES

        return json.loads((self.folder / SCORES).read_text(encoding="utf-8"))


def is_counted(row: Row | pd.Series) -> bool:
    """Whether a row's FLOPs and tokens are known."""
    return bool(pd.notna(row.model_tflop_7b))


def row_of(stages: RowStages, folders: Mapping[str, Path], seed: int = 0) -> tuple[Row, pd.DataFrame] | None:
    """A model's row of the benchmarks that are finished, and its samples; None if none has a score.

    folders: of the finished stages, by name.
    """
    request, spec = stages.request, stages.spec
    names = {name: stages.scores_name(name) for name in stages.asked}
    finished = {name: folders[stage] for name, stage in names.items() if stage in folders}
    scored = {name: Scored.of(folder) for name, folder in finished.items() if not benchmark_named(name).submission}
    scored = {name: each for name, each in scored.items() if name in each.scores}
    if not scored:
        return None
    samples = pd.concat([each.samples for each in scored.values()], ignore_index=True)
    scores = {name: each.scores[name] for name, each in scored.items()}
    evaluation = SimpleNamespace(scores=scores, samples=samples.fillna({"family": ""}))
    costs, reads_slow = _cost(stages, folders)
    prompts, sampling = _ways(request, spec)
    record = _record(stages, scored, reads_slow)
    row = make_row(
        evaluation,
        table=table_name(request, spec),
        scale=SCALE,
        architecture=spec.name,
        frames=spec.frames,
        base_seed=0,
        seed=seed,
        content_hash=_together(each.folder.name.rpartition("-")[2] for each in scored.values()),
        suite_fingerprint=_together(record["fingerprints"].values(), 64),
        suite=record,
        config={"model": spec.model_dump(mode="json"), "prompts": prompts, "sampling": sampling},
        overrides=[] if spec.is_external else [f"prompts={request.prompts}", f"sampling={request.sampling}"],
        world="real",
        sampling=find_rule(request.sampling).formula if not spec.is_external else ITS_OWN,
        cost=costs,
        timings=_timings(stages, folders, scored),
        disclosures=_disclosures(spec),
        made_by=Provenance(**_json(next(iter(scored.values())).folder / DESCRIPTION)["made_by"]),
    )
    return row, tag_samples(row, evaluation.samples)


def table_name(request: Request, spec: ModelSpec) -> str:
    """The table that a model's row belongs to, by the way of asking; lmms-eval's own models have but one."""
    return f"{TABLE}external" if spec.is_external else f"{TABLE}{request.prompts}_{request.sampling}"


def _ways(request: Request, spec: ModelSpec) -> tuple[str, str]:
    return (ITS_OWN, ITS_OWN) if spec.is_external else (request.prompts, request.sampling)


def _cost(stages: RowStages, folders: Mapping[str, Path]) -> tuple[dict[str, Any], bool | None]:
    """The cost fields, and whether generated tokens read slow tokens (None: not known)."""
    name = f"cost-{stages.spec.name}"
    if stages.spec.is_external or name not in folders:
        return dict.fromkeys(COUNTED), None
    counted = _json(folders[name] / "cost.json")
    return {field: counted[field] for field in (*COUNTED, "flop_stages")}, counted["generated_read_slow"]


def _record(stages: RowStages, scored: Mapping[str, Scored], reads_slow: bool | None) -> dict[str, Any]:
    """How the suites were made and read: the field `suite`, from which differences to published numbers are told."""
    request, spec = stages.request, stages.spec
    prompts, sampling = _ways(request, spec)
    benchmarks = {name: benchmark_named(name) for name in scored}
    summaries = {name: each.summary for name, each in scored.items()}
    return {
        "fingerprints": {name: fingerprint_of(stages.suites[name]) for name in scored},
        "limit": request.limit,
        "prompts": prompts,
        "sampling": sampling,
        "precision": next((summary["dtype"] for summary in summaries.values() if "dtype" in summary), None),
        "batch_size": None if spec.is_external else request.batch_size,
        "processes": request.processes,
        "decoder": {name: summary.get("decoder") for name, summary in summaries.items()},
        "generated_read_slow": reads_slow,
        "judge": {name: _json(each.folder / DESCRIPTION)["kwargs"].get("judge", "") for name, each in scored.items()},
        "split": {name: benchmark.split for name, benchmark in benchmarks.items()},
        "aggregation": {name: benchmark.aggregation for name, benchmark in benchmarks.items()},
    }


def _timings(stages: RowStages, folders: Mapping[str, Path], scored: Mapping[str, Scored]) -> dict[str, float]:
    seconds = {name: _json(each.folder / DESCRIPTION)["seconds"] for name, each in scored.items()}
    others = {"import": stages.import_name, "cost": f"cost-{stages.spec.name}"}
    own = {what: _json(folders[name] / DESCRIPTION)["seconds"] for what, name in others.items() if name in folders}
    return {**own, "evaluate": sum(seconds.values())}


def _disclosures(spec: ModelSpec) -> list[str]:
    if spec.is_external:
        arguments = ", ".join(f"{name}={value}" for name, value in spec.arguments(None).items())
        return [
            f"Run by lmms-eval's own model `{spec.lmms_model}` ({arguments}): its prompts and its sampling of frames "
            "are its own, and neither its tokens nor its FLOPs are counted here."
        ]
    return ["FLOPs: counted for the checkpoint's own sizes."]


def _together(parts: Iterable[str], length: int = 12) -> str:
    """One hash of several; of a single one, itself."""
    several = list(parts)
    return several[0] if len(several) == 1 else hashlib.sha256(" ".join(several).encode()).hexdigest()[:length]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------- their files


def keep(results: Path, made: Sequence[tuple[Row, pd.DataFrame]]) -> list[str]:
    """Store rows with their samples, each in the file of its way of asking, in place of the same model's older one.

    Returns a sentence for each row whose older one had more benchmarks.
    """
    fewer = []
    for name in sorted({(row.table, row.scale, row.seed) for row, _ in made}):
        fewer += _keep(results, name, [each for each in made if (each[0].table, each[0].scale, each[0].seed) == name])
    return fewer


def _keep(results: Path, name: tuple[str, str, int], made: Sequence[tuple[Row, pd.DataFrame]]) -> list[str]:
    rows = [row for row, _ in made]
    path, samples_path = _files(results, *name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        old, tagged = _read(path, samples_path)
        new = {_key(row) for row in rows}
        kept = [row for row in old if _key(row) not in new]
        parts = [part for key, part in tagged.items() if key in {_key(row) for row in kept}]
        stored.write_samples(samples_path, [*parts, *(samples for _, samples in made)])
        stored.write_rows(path, sorted([*kept, *rows], key=_key))
    before = {_key(row): row.scores for row in old}
    lost = {row.architecture: set(before.get(_key(row), {})) - set(row.scores) for row in rows}
    return [
        f"{path}: the row {model} was stored without {', '.join(sorted(names))}, which an older one had; the command "
        "for all benchmarks brings them back, and computes none again"
        for model, names in lost.items()
        if names
    ]


def read_all(results: Path, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every stored row of paper scale and this seed, and all samples; both with `table`, the way of asking.

    UserError if there are none.
    """
    paths = sorted((Path(results) / "rows").glob(f"{TABLE}*_{SCALE}_seed{seed}.jsonl"))
    found = [(row, samples) for path in paths for row, samples in _pairs(path)]
    if not found:
        raise UserError(f"{results}/rows holds no rows of paper scale; `make reproduce-table SCALE=paper` makes them")
    rows = stored.as_frame([row for row, _ in found])
    return rows, pd.concat([samples.assign(table=row.table) for row, samples in found], ignore_index=True)


def _pairs(path: Path) -> list[tuple[Row, pd.DataFrame]]:
    rows, tagged = _read(path, path.with_name(path.name.replace(".jsonl", ".samples.parquet")))
    return [(row, tagged[_key(row)]) for row in rows]


def _files(results: Path, table: str, scale: str, seed: int) -> tuple[Path, Path]:
    folder = Path(results) / "rows"
    return folder / stored.rows_name(table, scale, seed), folder / stored.samples_name(table, scale, seed)


def _read(path: Path, samples_path: Path) -> tuple[list[Row], dict[tuple, pd.DataFrame]]:
    """A file's rows, and their samples by key; UserError for a row without samples."""
    if not path.is_file():
        return [], {}
    rows = load_rows(path)
    tagged = dict(iter(stored.read_samples(samples_path).groupby(KEYS)))
    if missing := [row.architecture for row in rows if _key(row) not in tagged]:
        raise UserError(f"{samples_path} lacks the answers of {', '.join(missing)}; make these rows again.")
    return rows, tagged


def _key(row: Row) -> tuple:
    return tuple(getattr(row, key) for key in KEYS)
