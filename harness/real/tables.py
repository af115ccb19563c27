"""A benchmark's table as it is on the hub, read from a data root and checked against the registry.

A table is parquet (in one or several files), JSON (a list of objects) or JSON lines. Its rows keep their order: row
number = `doc_id` in lmms-eval.
"""

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from harness.benchmarks import Benchmark, Doc
from harness.errors import UserError
from harness.real.catalogue import repository_of

NAMED = 3  # things that a message names before it counts the rest


@dataclass(frozen=True)
class Table:
    """The rows that one lmms-eval task evaluates, and the files they came from."""

    benchmark: Benchmark
    task: str
    files: tuple[Path, ...]
    rows: pa.Table

    @cached_property
    def docs(self) -> list[Doc]:
        """The rows as plain values."""
        return self.rows.to_pylist()


def fetch_command(data: Path, benchmark: str, online: bool = True) -> str:
    """What brings a benchmark's tables and videos; not `online`: what unpacks those that were downloaded."""
    asking = " online=true" if online else ""
    return f"python -m harness fetch data={shlex.quote(str(data))} benchmarks=[{benchmark}]{asking}"


def read_tables(data: Path, benchmark: Benchmark) -> list[Table]:
    """The tables of a benchmark's tasks, in order; UserError for one that is missing, unreadable or unfit."""
    return [read_table(data, benchmark, task) for task in benchmark.tasks]


def read_table(data: Path, benchmark: Benchmark, task: str) -> Table:
    """One task's table, checked. UserError says which file, what is wrong and what to do."""
    files = table_files(data, benchmark, task)
    table = Table(benchmark, task, tuple(files), pa.concat_tables(map(_read, files), promote_options="permissive"))
    check(table)
    return table


def table_files(data: Path, benchmark: Benchmark, task: str) -> list[Path]:
    """Where a task's rows are: where the catalogue says, or else where the repository's own card says.

    Raises UserError if nothing is there.
    """
    repository, config = repository_of(benchmark), benchmark.config_of(task)
    folder = Path(data) / "hub" / repository.name
    pattern = repository.tables.format(config=config, split=benchmark.split)
    found = sorted(folder.glob(pattern)) or _declared(folder, config, benchmark.split)
    if not found:
        raise UserError(
            f"{benchmark.name}: there is no table {folder / pattern}; fetch it: {fetch_command(data, benchmark.name)}"
        )
    return found


def _declared(folder: Path, config: str | None, split: str) -> list[Path]:
    """The files that a repository's README.md declares for a configuration and split; none if it does not."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    parts = card.read_text(encoding="utf-8").split("---\n")
    try:
        front = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    except yaml.YAMLError:
        return []  # a card is for people: what it does not say in YAML is not declared
    configs = front.get("configs", []) if isinstance(front, dict) else []
    for declared in configs:
        if (config is None and len(configs) == 1) or declared.get("config_name") == config:
            entries = declared.get("data_files", [])
            entries = [{"split": "train", "path": entries}] if isinstance(entries, str) else entries
            paths = [entry["path"] for entry in entries if entry.get("split") == split]
            paths = [path for given in paths for path in (given if isinstance(given, list) else [given])]
            return sorted(file for path in paths for file in folder.glob(path))
    return []


def _read(file: Path) -> pa.Table:
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        text = file.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line] if file.suffix == ".jsonl" else json.loads(text)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{file}: a table in JSON is a list of objects; fetch it again")
        return pa.Table.from_pylist(rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{file} cannot be read as a table ({_first_line(error)}); delete it and fetch it again"
        ) from error


def check(table: Table) -> None:
    """UserError unless every row has the columns, the options, the answer and the category that the registry reads."""
    benchmark, where = table.benchmark, f"{table.benchmark.name}: {table.files[0]}"
    mend = "it is not the table this version of lmms-eval reads: fetch it again, or report a changed layout"
    if missing := [name for name in benchmark.columns if name not in table.rows.column_names]:
        raise UserError(f"{where} has no column {' and no '.join(missing)}; {mend}")
    if table.rows.num_rows == 0:
        raise UserError(f"{where} has no rows; {mend}")
    for number, doc in enumerate(table.docs):
        if problem := _problem(benchmark, table.task, doc):
            raise UserError(f"{where}, row {number}: {problem}; {mend}")


def _problem(benchmark: Benchmark, task: str, doc: Doc) -> str:
    """What is wrong with a row, in a few words; "" if nothing is."""
    try:
        options, target = benchmark.n_options(doc), benchmark.target_of(doc)
        category, video = benchmark.category_of(doc, task), benchmark.video_of(doc, task)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return f"its answer, options or video cannot be read ({type(error).__name__}: {_first_line(error)})"
    if options not in benchmark.option_counts:
        allowed = " or ".join(map(str, benchmark.option_counts))
        return f"it has {options} options, not {allowed}"
    if target is not None and not 0 <= target < options:
        return f"its answer is option number {target + 1} of {options}"
    if benchmark.categories and category not in benchmark.categories:
        return f"its category {category!r} is not one of {', '.join(benchmark.categories[:NAMED])}, ..."
    if ".." in Path(video).parts or Path(video).is_absolute():
        return f"its video {video!r} would lie outside the data root"
    return ""


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
