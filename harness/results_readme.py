"""Writes results/README.md from the schemas: `python -m harness.results_readme` (in the checkout's root)."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from harness.foot import BASELINE
from harness.paths import write_text
from harness.plug_and_play_points import SAMPLES, Point, meanings
from harness.plug_and_play_report import COLUMNS as STUDY_COLUMNS
from harness.plug_and_play_report import DIFFERENCES
from harness.profilers.grid import COLUMNS as PROFILE_COLUMNS
from harness.report import COLUMNS, SCORES
from harness.reports import claims, grid_table, published, replicates
from harness.row_store import Failure
from harness.rows import REFERENCE, SAMPLE_COLUMNS, SCHEMA_VERSION, Row

README = Path("results") / "README.md"
INTRODUCTION = """# Results

Written by `python -m harness.results_readme`; a test compares it with the schemas it documents.

| path | what it is |
|---|---|
| `rows/TABLE_SCALE_seedSEED.jsonl` | the rows of one run of a table, one JSON object per (architecture, \
frames, base seed, control) |
| `rows/TABLE_SCALE_seedSEED.samples.parquet` | what each row answered to each question |
| `rows/ablations/GRID_SCALE_seedSEED.jsonl` | the rows of an ablation grid, one JSON object per (cell, base \
seed), in the grid's order |
| `rows/ablations/samples/CONTENT_HASH.parquet` | what a row of a grid answered; grids that share a cell share it |
| `rows/ablations/GRID_SCALE_seedSEED.grid.json` | the grid as it was asked: question, reference, cells |
| `rows/ablations/GRID_SCALE_seedSEED.failures.jsonl` | the cells that failed, if any |
| `rows/paper_PROMPTS_SAMPLING_paper_seedSEED.{jsonl,samples.parquet}` | rows on real benchmarks, one file pair for \
each way of asking (`paper_external`: lmms-eval's own models) |
| `tables/paper.{csv,md}` | measured beside published, and what differs in how they were made |
| `tables/main_SCALE.{csv,md,tex}` | the main table, base seeds pooled; conventions in the foot of md \
and tex |
| `tables/controls_SCALE.{csv,md,tex}` | slow_fast as trained, and with its slow tokens switched off or \
replaced, minus the compressor alone |
| `rows/plug_and_play_SCALE_seedSEED.{jsonl,samples.parquet}` | the points of the plug-and-play study, one JSON \
object per (curve, steps, base seed), and what each answered |
| `tables/plug_and_play_SCALE.{csv,md,tex}` | the study: average score by curve and training steps |
| `tables/plug_and_play_differences_SCALE.csv` | what its curves gained over each other |
| `figures/*.{svg,png}` | the main table, and the study's curves, drawn |
| `tables/ablations/GRID_SCALE.{csv,md,tex}` | a grid: its cells, scores, differences from its reference, costs |
| `figures/ablations/*.{svg,png}` | the grids drawn |
| `figures/book/*.{svg,png}` | everything measured against compute and frames, categories, where attention goes |
| `attention/NAME.{json,png}` | which frames a checkpoint's text reads for one question, and its thumbnails \
(`python -m harness attention checkpoint=DIR suite=DIR benchmark=mlvu sample=0`; `harness/reports/attention_file.py`) |
| `replicates/NAME/rows/ablations/` | rows of grids that another machine trained again, as in `rows/ablations/` |
| `tables/replicates.{csv,md,tex}` | how far their scores are from the book's |
| `claims.csv` | each claim of the paper and of this project: verdict, figure, interval, command |
| `published/*.csv` | published numbers, each with its source; never mixed into a measured column |
| `report.html` | all of this on one page that opens without network |
| `profiles/profile_SCALE.{csv,md}` | `make profile`: compute of every variant against frames, counted |
| `profiles/three_percent_SCALE.csv` | the paper's overhead, and what would have to hold for it |
| `profiles/scaling.csv` | `make scaling`: is cost linear in frames, counted and measured |
| `profiles/measured_DEVICE.{csv,md}` | `make profile-gpu`: times and memory, measured beside the roofline |
| `profiles/bench.csv` | `make bench`: this project's own speed |
| `profiles/figures/` | the profiles drawn |
| `runs/` | where training and evaluation keep their work; not in git |

Tables and figures of seed 0 have these plain names; those of any other seed N end in `_seedN`, as in
`tables/main_mini_seed1.csv` and `figures/accuracy_vs_frames_seed1.svg`.

Tables and figures are made from `rows/` (and `replicates/`) alone, and the same rows give the same bytes. Nothing else
reads their scores, unless `reuse=committed` is typed: a fresh clone trains, evaluates and measures for itself.
"""
ROWS, ONE_GRID = "results/rows/ablations/*[0-9].jsonl", "results/rows/ablations/gates_mini_seed0.jsonl"
PANDAS = {
    "a grid's rows": f'pandas.read_json("{ONE_GRID}", lines=True, dtype=False)',
    "the main table's samples": 'pandas.read_parquet("results/rows/main_mini_seed0.samples.parquet")',
    "all samples of all grids": 'pandas.read_parquet("results/rows/ablations/samples")',
}
DUCKDB = {
    "all grids' rows": f"SELECT grid, cell, base_seed, average, scores.mlvu FROM read_json('{ROWS}')",
    "all grids' samples, by cell": "SELECT grid, cell, r.base_seed, s.* EXCLUDE (base_seed, filename) "
    f"FROM read_json('{ROWS}') r JOIN read_parquet('results/rows/ablations/samples/*.parquet', filename = true) s "
    "ON s.filename = concat('results/rows/ablations/', r.samples)",
}
"""One line each, run in the checkout's root; a test runs them."""
CONTROLS_COLUMNS = {
    "architecture": "the model under control",
    "frames": "frames sampled from each video",
    "control": "`none`: as trained; `gate_closed`: warm-up scalars 0; `other_video`: another's slow tokens",
    "seeds": "number of base seeds pooled",
    "NAME, NAME_lo, NAME_hi": f"for NAME in {', '.join(SCORES)}: its score minus that of {REFERENCE[0]} at "
    f"{REFERENCE[1]} frames on the same questions, percentage points, and the 95% interval",
    "p_largest": "exact McNemar test over all questions, the largest p over base seeds",
    "gain": "whether the average's interval lies above 0",
}


SEED_COLUMN = f"{grid_table.SEED_COLUMN}N"


def text() -> str:
    """The whole of results/README.md."""
    return "\n".join(
        [
            INTRODUCTION,
            f"## Rows (schema version {SCHEMA_VERSION})\n",
            _table(["field", "type", "meaning"], _fields(Row)),
            "Rows of version 1, which `harness.rows.read_rows` reads too, lack `grid`, `cell`, `overrides`, `world`, "
            "`suite` and `aggregations`. All of this is read by a line each, in the checkout's root:\n",
            _table(["pandas", "reads"], ((f"`{line}`", what) for what, line in PANDAS.items())),
            _table(["DuckDB", "reads"], ((f"`{line}`", what) for what, line in DUCKDB.items())),
            "## Samples\n",
            _table(["column", "meaning"], _documented(SAMPLE_COLUMNS)),
            "## rows/ablations/GRID_SCALE_seedSEED.failures.jsonl\n",
            _table(["field", "type", "meaning"], _fields(Failure)),
            "## tables/main_SCALE.csv\n",
            f"One line per (architecture, frames); overheads and gain are against {BASELINE[0]} at "
            f"{BASELINE[1]} frames, and empty if it is not among the rows.\n",
            _table(["column", "meaning"], _documented(COLUMNS)),
            "## tables/controls_SCALE.csv\n",
            _table(["column", "meaning"], _documented(CONTROLS_COLUMNS)),
            "## tables/ablations/GRID_SCALE.csv\n",
            _table(["column", "meaning"], _documented(grid_table.COLUMNS | {SEED_COLUMN: grid_table.SEED_MEANING})),
            "## tables/replicates.csv\n",
            _table(["column", "meaning"], _documented(replicates.COLUMNS)),
            "## claims.csv\n",
            _table(["column", "meaning"], _documented(claims.COLUMNS)),
            "## published/*.csv\n",
            _table(["column", "meaning"], _documented(published.COLUMNS)),
            "## rows/plug_and_play_SCALE_seedSEED.jsonl\n",
            "Curves: " + "; ".join(f"`{name}`: {meaning}" for name, meaning in meanings().items()) + ".\n",
            _table(["field", "type", "meaning"], _fields(Point)),
            "## rows/plug_and_play_SCALE_seedSEED.samples.parquet\n",
            _table(["column", "meaning"], _documented(SAMPLES)),
            "## tables/plug_and_play_SCALE.csv\n",
            _table(["column", "meaning"], _documented(STUDY_COLUMNS)),
            "## tables/plug_and_play_differences_SCALE.csv\n",
            _table(["column", "meaning"], _documented(DIFFERENCES)),
            "## profiles/profile_SCALE.csv\n",
            _table(["column", "meaning"], _documented(PROFILE_COLUMNS)),
        ]
    )


def main() -> None:
    """Write the file."""
    write_text(README, text())
    print(README)


def _fields(schema: type[BaseModel]) -> Iterable[tuple[str, str, str]]:
    fields = schema.model_fields.items()
    return ((f"`{name}`", _type(field.annotation), field.description) for name, field in fields)


def _documented(columns: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((f"`{name}`", meaning) for name, meaning in columns.items())


def _table(heads: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _type(annotation: type) -> str:
    """An annotation as a reader of the JSON knows it."""
    spelt = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else ""
    named = spelt or str(annotation).replace("typing.", "").replace("harness.rows.", "")
    return named.replace("NoneType", "null").replace("None", "null").replace("|", "or")


if __name__ == "__main__":
    main()
