"""Published numbers with their sources, and which measured number each may stand beside (never in one column).

results/published/*.csv    columns COLUMNS
"""

from pathlib import Path

import pandas as pd

from harness.benchmarks import BENCHMARKS
from harness.errors import UserError

FOLDER = "published"
COLUMNS = {
    "model": "as its source names it",
    "frames": "frames of a video; empty where the source does not say",
    "benchmark": "the benchmark, or what else the number is about",
    "score": "the number",
    "metric": "its metric, unit and aggregation",
    "source": "where it is published",
    "harness": "which evaluation code it was made with",
    "note": "what else a reader should know",
}
ARCHITECTURES = {"Slow-Fast": "slow_fast", "Qwen2.5-VL": "self_attention"}  # a model's first word -> ours of its kind
SAID_OF_GAINS = {  # what is published about 128 frames over 16 -> the main table's column
    "average of five benchmarks": "relative_gain_pct",
    "LLM prefill FLOPs": "prefill_overhead_7b_pct",
}
MEASURED = ["measured_row", "measured", "measured_lo", "measured_hi", "measured_metric"]


def read_published(results: Path) -> pd.DataFrame:
    """Every published number, columns COLUMNS; UserError for a file with others, or a number without a source."""
    parts = []
    for path in sorted((Path(results) / FOLDER).glob("*.csv")):
        part = pd.read_csv(path)
        if list(part.columns) != list(COLUMNS):
            raise UserError(f"{path} has the columns {list(part.columns)}, not {list(COLUMNS)}.")
        part["score"] = pd.to_numeric(part["score"], errors="coerce")
        if part[["model", "benchmark", "score", "metric", "source", "harness"]].isna().any(axis=None):
            raise UserError(f"{path}: a number lacks its model, benchmark, score, metric, source or harness.")
        parts.append(part.astype({"frames": "Int64"}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def beside(published: pd.DataFrame, main_table: pd.DataFrame) -> pd.DataFrame:
    """The published numbers and, in columns MEASURED, ours of the same kind, benchmark and frames, if there is one."""
    ours = {(line["architecture"], line["frames"]): line for line in main_table.to_dict("records")}
    found = [_measured(each, ours) for each in published.to_dict("records")]
    return published.assign(**{name: [each.get(name) for each in found] for name in MEASURED})


def _measured(published: dict, ours: dict[tuple[str, int], dict]) -> dict:
    kind = next((name for word, name in ARCHITECTURES.items() if published["model"].startswith(word)), None)
    line = ours.get((kind, published["frames"])) if pd.notna(published["frames"]) else None
    if line is None:
        return {}
    row = {"measured_row": f"{line['architecture']}@{line['frames']}"}
    if column := SAID_OF_GAINS.get(published["benchmark"]):
        of = "relative gain of the average" if column.startswith("relative") else "growth of the count at 7B"
        return row | {"measured": line[column], "measured_metric": f"{of} over self_attention@16, %"}
    for name, benchmark in BENCHMARKS.items():
        if benchmark.title == published["benchmark"]:
            by_samples = line.get(f"{name}_samples")
            if "samples" in published["metric"] and by_samples is not None and pd.notna(by_samples):
                return row | {"measured": by_samples, "measured_metric": "accuracy %: mean over samples"}
            ends = {f"measured{end}": line[f"{name}{end}"] for end in ("", "_lo", "_hi")}
            return row | ends | {"measured_metric": f"accuracy %: mean over {benchmark.aggregation}"}
    return {}
