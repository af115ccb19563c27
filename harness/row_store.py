"""Where grids keep their rows, whoever writes at once and whenever it is killed.

    results/rows/ablations/GRID_SCALE_seedSEED.jsonl            one line a (cell, base seed), fields as in `rows.Row`
    results/rows/ablations/GRID_SCALE_seedSEED.grid.json        the grid as it was asked
    results/rows/ablations/GRID_SCALE_seedSEED.failures.jsonl   the cells that failed, fields as in `Failure`
    results/rows/ablations/samples/CONTENT_HASH.parquet         what a row answered; grids that share a cell share it

A change is made under one lock of the whole folder: read, replace, write aside, flush, rename. So a file is the old
one or the new one, lines are whole, and none is there twice. Samples come before their row: a row that is there has
its samples. Reading takes no lock.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.rows import (
    KEYS,
    SAMPLE_COLUMNS,
    Row,
    as_frame,
    load_rows,
    read_samples,
    rows_name,
    stored_samples_name,
    tag_samples,
    write_file,
)

if TYPE_CHECKING:
    from harness.grids.grid import Grid

FOLDER = Path("rows") / "ablations"
GRID_SUFFIX, FAILURES_SUFFIX = ".grid.json", ".failures.jsonl"
LOCK = ".lock"
# What may differ between rows of equal content: the grid's own, and under which settings the same model came about;
# and what does only if another machine made them.
NAMES = ("table", "grid", "cell", "overrides", "scale", "world", "architecture", "config")
MEASURED = ("scores", "by_category", "device", "versions")


class Failure(BaseModel):
    """A cell that could not be computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    cell: str = Field(description="the grid's name of the cell")
    base_seed: int = Field(ge=0, description="seed of the base under it")
    stage: str = Field(description="the stage that failed, e.g. `model0-slow_fast-128`")
    error: str = Field(description="the error in one line")
    traceback: str = Field(description="all of it; empty where the error says enough")
    when: str = Field(description="UTC, ISO 8601")
    code_commit: str | None = Field(description="git commit of the harness; null outside a checkout")
    content_hash: str = Field(default="", description="what the row would have depended on; empty where unknown")


class RowStore:
    """The rows, samples and failures of one grid at one scale and seed; `results` is the results folder.

    Nothing is read or written before a method asks for it. Any number of processes may hold one.
    """

    def __init__(self, results: Path, grid: str, scale: str, seed: int):
        self.name, self.scale, self.seed = grid, scale, seed
        self.folder = Path(results) / FOLDER
        self.path = self.folder / rows_name(grid, scale, seed)
        self.grid_path = self.path.with_suffix(GRID_SUFFIX)
        self.failures_path = self.path.with_suffix(FAILURES_SUFFIX)

    def __repr__(self) -> str:
        return f"RowStore({str(self.path)!r})"

    # ------------------------------------------------------------------------------------------- the grid

    def begin(self, grid: "Grid") -> None:
        """Write the grid as it is asked now; rows that are there take its order. UserError for another's name."""
        if grid.name != self.name:
            raise UserError(f"{self.path} is for the grid {self.name}, not for {grid.name}.")
        with self._locked():
            _write(self.grid_path, grid.model_dump_json(indent=2) + "\n")
            if self.path.is_file():
                self._write_rows(self.rows())

    def grid(self) -> "Grid":
        """The grid as it was asked; UserError if none is there."""
        from harness.grids.grid import Grid

        try:
            return Grid.model_validate(self._asked())
        except ValidationError as error:
            raise UserError(f"{self.grid_path} holds no grid ({error.errors()[0]['msg']}); run it again.") from error

    # ------------------------------------------------------------------------------------------- the rows

    def put(self, row: Row, samples: pd.DataFrame, where: Path | None = None) -> None:
        """Store a row, in place of one of its cell and base seed; its failure, if there was one, is forgotten.

        samples: an evaluation's. They replace those of the same content, which another machine may have computed, and
        so does what was measured in the rows of other grids that share the content: a row fits its samples.
        where: the folder that a replaced row of other content is moved to, see `set_aside`; None: it is dropped.
        Raises UserError for a row of another grid, a cell that the grid has not, or samples of another form.
        """
        self._check(row)
        content = tag_samples(row, samples).to_parquet(index=False, compression="zstd")
        path = self.folder / row.samples
        with self._locked():
            rows, sharing = self.rows(), self._sharing(row)
            if not path.is_file() or path.read_bytes() != content:
                write_file(path, lambda file: file.write_bytes(content))
            for elsewhere, theirs in sharing.items():
                _write(elsewhere, _lines(theirs))
            others = [_following(other, row) for other in rows if _of(other) != _of(row)]
            old = [other for other in rows if _of(other) == _of(row) and other.content_hash != row.content_hash]
            self._replace(old, [*others, row], where)
            self._write_failures(failure for failure in self.failures() if _of(failure) != _of(row))

    def _sharing(self, row: Row) -> dict[Path, list[Row]]:
        """The files of other grids that share the row's content but not what was measured, as they must become."""
        found = {}
        for path in self.folder.glob("*.jsonl"):
            if path != self.path and _holds_rows(path) and row.content_hash in path.read_text(encoding="utf-8"):
                rows = load_rows(path)
                follow = [_following(other, row) for other in rows]
                if follow != rows:
                    found[path] = follow
        return found

    def rows(self) -> list[Row]:
        """The rows, in the order of the grid's cells, then by base seed; none if none is finished."""
        return load_rows(self.path) if self.path.is_file() else []

    def frame(self) -> pd.DataFrame:
        """The same as a table, a column per field."""
        return as_frame(self.rows())

    def samples(self) -> pd.DataFrame:
        """What every row answered: SAMPLE_COLUMNS and `cell`; UserError if a row's samples are gone."""
        parts = [self._samples_of(row) for row in self.rows()]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["cell", *SAMPLE_COLUMNS])

    def set_aside(self, keep: Collection[tuple[str, int, str]], where: Path) -> list[Row]:
        """Move the rows whose (cell, base seed, content hash) is not in `keep` to the folder `where`; return them.

        They are added to a file of this one's name there, their samples beside it. Samples that another row needs are
        copied.
        """
        with self._locked():
            rows = self.rows()
            moved = [row for row in rows if (*_of(row), row.content_hash) not in keep]
            if moved:
                self._replace(moved, [row for row in rows if row not in moved], where)
            return moved

    def _replace(self, old: list[Row], rows: list[Row], where: Path | None) -> None:
        """Write `rows`; the `old` ones that are none of them any more first go to the folder `where`."""
        if old and where is not None:
            there = Path(where) / self.path.name
            for row in old:
                if (self.folder / row.samples).is_file():
                    write_file(Path(where) / row.samples, _copy_of(self.folder / row.samples))
            aside = {row.model_dump_json(): None for row in [*(load_rows(there) if there.is_file() else []), *old]}
            _write(there, "".join(f"{line}\n" for line in aside))
        self._write_rows(rows)
        if old:
            files = [path for path in self.folder.glob("*.jsonl") if _holds_rows(path)]
            needed = {row.samples for path in files for row in load_rows(path)}
            for name in {row.samples for row in old} - needed:
                (self.folder / name).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------- failures

    def fail(self, failure: Failure) -> None:
        """Store a failure, in place of an earlier one of its cell and base seed."""
        with self._locked():
            self._write_failures([*(each for each in self.failures() if _of(each) != _of(failure)), failure])

    def failures(self) -> list[Failure]:
        """The failures, in the order of the rows."""
        try:
            lines = self.failures_path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:  # also if the last one is cleared at this moment
            return []
        try:
            return [Failure.model_validate_json(line) for line in lines]
        except ValidationError as error:
            told = error.errors()[0]["msg"]
            raise UserError(
                f"{self.failures_path} holds a line that is no failure ({told}); remove the file."
            ) from error

    def clear_failure(self, cell: str, base_seed: int) -> None:
        """Forget a failure, so that the cell is tried again; nothing happens if there is none."""
        with self._locked():
            self._write_failures(failure for failure in self.failures() if _of(failure) != (cell, base_seed))

    # ------------------------------------------------------------------------------------------- helpers

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in the folder, and rid of what a killed writer left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK):
            for left in [*self.folder.glob(".*.json*.*"), *self.folder.glob("samples/.*.parquet.*")]:
                left.unlink()
            yield

    def _asked(self) -> dict:
        if not self.grid_path.is_file():
            raise UserError(f"{self.grid_path} does not exist; `python -m harness ablate grid={self.name}` writes it.")
        return json.loads(self.grid_path.read_text(encoding="utf-8"))

    def _check(self, row: Row) -> None:
        named = f"the row {row.cell} of the grid {row.grid}, {row.scale} scale, seed {row.seed},"
        if (row.grid, row.scale, row.seed) != (self.name, self.scale, self.seed):
            raise UserError(f"{named} does not belong to {self.path}.")
        if row.cell not in self._asked()["cells"]:
            raise UserError(f"{named} is of a cell that {self.grid_path} has not; begin the grid first.")
        if row.samples != stored_samples_name(row.content_hash):
            raise UserError(f"{named} names its samples {row.samples}, not {stored_samples_name(row.content_hash)}.")

    def _in_order(self, records: Iterable) -> list:
        """Rows or failures by the grid's cells, those of no cell last, then by base seed."""
        place = {cell: number for number, cell in enumerate(self._asked()["cells"])}
        return sorted(records, key=lambda each: (place.get(each.cell, len(place)), each.cell, each.base_seed))

    def _write_rows(self, rows: Iterable[Row]) -> None:
        _write(self.path, _lines(self._in_order(rows)))

    def _write_failures(self, failures: Iterable[Failure]) -> None:
        lines = [failure.model_dump_json() + "\n" for failure in self._in_order(failures)]
        if lines:
            _write(self.failures_path, "".join(lines))
        else:
            self.failures_path.unlink(missing_ok=True)

    def _samples_of(self, row: Row) -> pd.DataFrame:
        """The stored samples under this row's names: they may have been stored for another grid's."""
        samples = read_samples(self.folder / row.samples)
        return samples.assign(**{key: getattr(row, key) for key in (*KEYS, "cell")})


def grids_in(results: Path) -> list[RowStore]:
    """The store of every grid that was ever begun in a results folder, in the book's order."""
    found = []
    for path in (Path(results) / FOLDER).glob(f"*{GRID_SUFFIX}"):
        asked = json.loads(path.read_text(encoding="utf-8"))
        parts = re.fullmatch(r"_(.+)_seed(\d+)", path.name.removesuffix(GRID_SUFFIX).removeprefix(asked["name"]))
        if parts is None:
            raise UserError(f"{path} holds the grid {asked['name']}; its name must be {asked['name']}_SCALE_seedSEED.")
        store = RowStore(results, asked["name"], parts[1], int(parts[2]))
        found.append((asked["order"], store.name, store.scale, store.seed, store))
    return [store for *_, store in sorted(found, key=lambda each: each[:-1])]


def _holds_rows(path: Path) -> bool:
    return not path.name.endswith(FAILURES_SUFFIX)


def _lines(rows: Iterable[Row]) -> str:
    return "".join(row.model_dump_json() + "\n" for row in rows)


def _following(other: Row, row: Row) -> Row:
    """`other`; or what `row` says, under other's names, if both are of one content and were measured differently."""
    if other.content_hash != row.content_hash or all(getattr(other, name) == getattr(row, name) for name in MEASURED):
        return other
    return row.model_copy(update={name: getattr(other, name) for name in NAMES})


def _of(record: Row | Failure) -> tuple[str, int]:
    return record.cell, record.base_seed


def _write(path: Path, text: str) -> None:
    write_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def _copy_of(source: Path) -> Callable[[Path], object]:
    return lambda file: shutil.copyfile(source, file)
