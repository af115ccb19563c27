"""A data root as a suite: real benchmarks in the layout of the mini suites, so that one code evaluates both.

    SUITE/hub/<org>/<dataset>/    the tables' rows, one parquet file per task, and the README.md that declares them
    SUITE/home                    a link to DATA/home: HF_HOME
    SUITE/index.parquet           one row per question (`harness.mini.suite.INDEX_COLUMNS`, without the mini world's)
    SUITE/suite.json              what it was made of, fingerprint, versions

The tables are written again rather than linked: `datasets` keeps a local table under its folder's and files' names,
whatever is in it, so that a changed table would be served from its memory; and a suite of the first few questions
(`limit`) holds only these.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import yaml

from harness.benchmarks import Benchmark, benchmark_named
from harness.errors import UserError
from harness.mini.suite import INDEX_COLUMNS
from harness.paths import new_directory
from harness.real.catalogue import repository_of
from harness.real.tables import NAMED, Table, fetch_command, read_tables
from harness.real.videos import SUBTITLES, find_videos, subtitles

REAL_SUITE_VERSION = 1  # raise it whenever the same data would give another layout
REAL_COLUMNS = tuple(column for column in INDEX_COLUMNS if column not in ("family", "clip_seed", "clip_index"))
"""The columns of a real suite's index: real questions have no family, real videos no seed."""


def real_suite(data: Path, benchmarks: Sequence[str], limit: int | None = None) -> Path:
    """Make the suite of these benchmarks from a data root, or find it complete; returns its folder.

    Args:
        data: the data root (see `harness.real`).
        benchmarks: names in the registry.
        limit: the first so many questions of each task; None: all.

    Raises UserError, naming file, fault and remedy, for a table that is missing or unfit, and for missing videos
    or subtitles.
    """
    data = Path(data).resolve()
    if not benchmarks:
        raise UserError("benchmarks=[]: name at least one benchmark")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: a suite has at least one question of each task")
    chosen = [benchmark_named(name) for name in benchmarks]
    tables = [_first(table, limit) for benchmark in chosen for table in read_tables(data, benchmark)]
    index = pd.concat([_index(table, data / "home") for table in tables], ignore_index=True)
    parameters = {"benchmarks": list(benchmarks), "limit": limit, "real_suite_version": REAL_SUITE_VERSION}
    made_of = [parameters, [_digest(table) for table in tables], _sizes(index, data / "home")]
    made_of += [shown for table in tables if (shown := _subtitles(table, data / "home")) is not None]
    fingerprint = _sha256(made_of)
    folder = data / "suites" / f"real-{fingerprint[:16]}"
    if (folder / "suite.json").is_file():
        return folder
    try:
        folder.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.parent} cannot be made ({error.strerror}): a data root has to be writable") from error
    with new_directory(folder) as work:
        _write_tables(tables, work / "hub")
        # Relative, so that a data root may be moved as a whole.
        (work / "home").symlink_to(Path("..") / ".." / "home", target_is_directory=True)
        index.to_parquet(work / "index.parquet", index=False)
        summary = {
            "parameters": parameters,
            "fingerprint": fingerprint,
            "questions": index.groupby("benchmark", sort=False).size().to_dict(),
            "videos": int(index["video"].nunique()),
            "versions": {"python": platform.python_version(), "lmms_eval": metadata.version("lmms-eval")},
        }
        (work / "suite.json").write_text(json.dumps(summary, indent=2) + "\n")
    return folder


def _first(table: Table, limit: int | None) -> Table:
    rows = table.rows if limit is None else table.rows.slice(0, limit)
    return Table(table.benchmark, table.task, table.files, rows)


def _index(table: Table, home: Path) -> pd.DataFrame:
    """The rows of a table as questions; UserError if a video is not there."""
    benchmark, videos, rows = table.benchmark, find_videos([table], home), []
    if missing := videos.missing:
        rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(
            f"{benchmark.name}: {home} lacks {', '.join(missing[:NAMED])}{rest}; fetch them: "
            f"{fetch_command(home.parent, benchmark.name)} (python -m harness doctor says what is there)"
        )
    for number, doc in enumerate(table.docs):
        values = (
            benchmark.name,
            table.task,
            number,
            videos.found[benchmark.video_of(doc, table.task)].relative_to(home).as_posix(),
            benchmark.category_of(doc, table.task),
            benchmark.n_options(doc),
            benchmark.target_letter(doc),
            str(doc["question"]),
            options_of(benchmark, doc),
        )
        rows.append(dict(zip(REAL_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows)


def options_of(benchmark: Benchmark, doc: dict[str, Any]) -> list[str]:
    """The texts of a doc's options, as its table has them; none where they stand within the question."""
    for column in ("options", "candidates", "option"):
        if isinstance(doc.get(column), list):
            return [str(option) for option in doc[column]]
    names = [f"option{i}" for i in range(5)] if "option0" in doc else [f"a{i}" for i in range(5)]
    return [str(doc[name]) for name in names if doc.get(name) not in (None, "N/A")]


def _write_tables(tables: Sequence[Table], hub: Path) -> None:
    """One parquet file per configuration, named by its content, and per dataset the card that declares them."""
    configs: dict[str, dict[str, dict[str, Any]]] = {}
    for table in tables:
        benchmark = table.benchmark
        repository, config = repository_of(benchmark), benchmark.config_of(table.task) or "default"
        path = f"{config}/{benchmark.split}-{_digest(table)[:16]}.parquet"
        target = hub / repository.name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.rows, target)
        files = [{"split": benchmark.split, "path": path}]
        configs.setdefault(repository.name, {})[config] = {"config_name": config, "data_files": files}
    for name, declared in configs.items():
        front_matter = yaml.safe_dump({"configs": list(declared.values())}, sort_keys=False)
        (hub / name / "README.md").write_text(f"---\n{front_matter}---\nRows of {name}, as they were fetched.\n")


def _digest(table: Table) -> str:
    """A hash of a table's rows, whatever file they were in."""
    return _sha256([table.task, str(table.rows.schema.remove_metadata()), table.docs])


def _sizes(index: pd.DataFrame, home: Path) -> list[tuple[str, int]]:
    """Every video and its size in bytes, in order of name."""
    return [(video, (home / video).stat().st_size) for video in sorted(set(index["video"]))]


def _subtitles(table: Table, home: Path) -> list[tuple[str, int]] | None:
    """Every subtitle file that the table's task shows and its size; None for a task that shows none.

    UserError if there is not a single one, of any video: then the task would say so in each question.
    """
    files = subtitles(table.benchmark, find_videos([table], home), home)
    if files is not None and not any((home / SUBTITLES[table.benchmark.name]).glob("*.srt")):
        raise UserError(
            f"{table.benchmark.name}: {home / SUBTITLES[table.benchmark.name]} holds no subtitles; fetch them: "
            f"{fetch_command(home.parent, table.benchmark.name)}"
        )
    return None if files is None else [(file.name, file.stat().st_size) for file in sorted(files)]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
