"""A journal of answers that survives `kill -9`: JSON lines, of questions and of videos, appended batch by batch.

The first line says what the answers depend on (checkpoint, frames, prompts, ...), so that a journal is only
continued by the run that it belongs to. A line that was cut off in the middle is dropped and answered again.

Processes that share a run write a part each, `journal.0-of-2.jsonl` beside `journal.jsonl`. Whoever resumes reads the
journal and all parts, of however many processes; at the end they become one file.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.errors import UserError
from harness.paths import write_text

UNPARSED = "unparsed"  # an answer without an offered option's letter: the model's mistake, not a failure
EMPTY_ANSWER = "empty answer"
WATCHED = "watched"  # the key of a line about a video

SCORING = (
    *(f"harness.{name}" for name in ("asking", "evaluate", "journal", "lmms_plugin", "lmms_requests", "benchmarks")),
    *(f"harness.{name}" for name in ("controls", "features", "video", "packets", "decoders")),
    *(f"harness.{name}" for name in ("further_benchmarks", "loading", "processes", "prompt_styles", "sampling")),
    "harness.submission",
    "architectures",
)
"""Modules and packages whose code shapes answers and scores."""

Key = tuple[str, int]
"""(lmms-eval task, number of the question within it)."""


@dataclass(frozen=True)
class Entry:
    """One answered question.

    Attributes:
        video: file name of the video asked about.
        answer: the model's own text; None if it was never asked.
        letter: the option that was scored; a wrong one where there is a failure.
        failure: UNPARSED, EMPTY_ANSWER, the kind of a `harness.video.VideoError`, or "" if there is none.
        message: one sentence about the failure.
        seconds: this question's share of its batch's wall time, without waiting for frames.
    """

    task: str
    doc_id: int
    video: str
    answer: str | None
    letter: str
    failure: str = ""
    message: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> Key:
        """What the entry answers."""
        return self.task, self.doc_id


@dataclass(frozen=True)
class Watched:
    """One video as it was read, the last time (`harness.features`: when its features were made).

    Attributes:
        video: its path, relative to HF_HOME where the tasks keep it there.
        decoder, reading, why, total, indices, seconds: as in `harness.video.Decoded`; empty where that failed.
        failure: the kind of the `harness.video.VideoError`, or "".
    """

    video: str
    decoder: str = ""
    reading: str = ""
    why: str = ""
    total: int = 0
    indices: tuple[int, ...] = ()
    seconds: float = 0.0
    failure: str = ""


@dataclass
class Journal:
    """Answers by question and videos by name, in memory and, if there is a `path`, on disk."""

    path: Path | None = None
    entries: dict[Key, Entry] = field(default_factory=dict)
    watched: dict[str, Watched] = field(default_factory=dict)

    @classmethod
    def resume(
        cls, path: str | Path | None, belongs_to: Mapping[str, str | int], rank: int = 0, world: int = 1
    ) -> "Journal":
        """The journal at `path`, started if there is none; `path` None: one that is not kept on disk.

        With the parts beside it. Process `rank` of `world` goes on writing its own part, or `path` if it is alone.
        Raises UserError if the journal belongs to something else, or is no journal.
        """
        if path is None:
            return cls()
        path, own = Path(path), part_of(Path(path), rank, world)
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = cls(own)
        for other in [path, *parts_of(path)]:
            if other != own:
                journal._take(_read(other, _whole_lines(other), belongs_to))
        if lines := _whole_lines(own, cut=True):
            journal._take(_read(own, lines, belongs_to))
        else:
            _append(own, [{"journal_of": dict(belongs_to)}])
        return journal

    def finish(self, path: str | Path | None, belongs_to: Mapping[str, str | int]) -> None:
        """Make one journal at `path` of all that is known here, and remove the parts; for one process, at the end."""
        if path is None or not (parts := parts_of(Path(path))):
            return
        records = [{"journal_of": dict(belongs_to)}, *map(_record, [*self.watched.values(), *self.entries.values()])]
        write_text(Path(path), _lines(records))
        for part in parts:
            part.unlink()
        self.path = Path(path)

    def append(self, entries: Iterable[Entry], watched: Iterable[Watched] = ()) -> None:
        """Add the answers of one batch, and the videos they are about.

        Once this returns, the death of the process does not lose them. The videos come first: what is answered
        was watched.
        """
        new: list[Entry | Watched] = [*watched, *entries]
        if self.path is not None:
            _append(self.path, map(_record, new))
        self._take(new)

    def _take(self, new: Iterable[Entry | Watched]) -> None:
        for item in new:
            if isinstance(item, Watched):
                self.watched[item.video] = item
            else:
                self.entries[item.key] = item


def part_of(path: Path, rank: int, world: int) -> Path:
    """Where process `rank` of `world` keeps its part of the journal at `path`."""
    return path if world == 1 else path.with_name(f"{path.stem}.{rank}-of-{world}{path.suffix}")


def parts_of(path: Path) -> list[Path]:
    """The parts beside a journal, of however many processes."""
    return sorted(path.parent.glob(f"{path.stem}.*-of-*{path.suffix}"))


def _record(item: Entry | Watched) -> dict:
    return {WATCHED: asdict(item)} if isinstance(item, Watched) else asdict(item)


def _lines(records: Iterable[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _append(path: Path, records: Iterable[dict]) -> None:
    try:
        with path.open("ab") as file:
            file.write(_lines(records).encode())
    except OSError as error:  # a full disk: what is half written is cut off by the next run
        raise UserError(
            f"{path}: answers cannot be kept ({error.strerror}); make room there, and the same command goes on"
        ) from error


def _whole_lines(path: Path, cut: bool = False) -> list[bytes]:
    """The complete lines of a file, if there is one; with `cut` a torn last one is cut off: the next gets its own."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if cut and len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.splitlines()


def _read(path: Path, lines: list[bytes], belongs_to: Mapping[str, str | int]) -> list[Entry | Watched]:
    """What a journal's lines hold; none where it was torn within its first line."""
    records = [_parse(path, number, line) for number, line in enumerate(lines, start=1)]
    if records:
        _check_header(path, records[0], belongs_to)
    return [_entry_or_video(path, number, record) for number, record in enumerate(records[1:], start=2)]


def _parse(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON; delete the file to start over") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number} is no journal entry; delete the file to start over")
    return record


def _check_header(path: Path, record: dict, belongs_to: Mapping[str, str | int]) -> None:
    found = record.get("journal_of")
    if not isinstance(found, dict):
        raise UserError(f"{path} is no answer journal; name another file for the journal")
    for name in sorted({*found, *belongs_to}):
        if found.get(name) != belongs_to.get(name):
            raise UserError(
                f"{path} is the journal of another run: its {name} is {found.get(name)}, this run's is "
                f"{belongs_to.get(name)}; delete it or name another file"
            )


def _entry_or_video(path: Path, number: int, record: dict) -> Entry | Watched:
    try:
        if WATCHED in record:
            return Watched(**{**record[WATCHED], "indices": tuple(record[WATCHED]["indices"])})
        return Entry(**record)
    except (TypeError, KeyError) as error:  # fields are missing, or strange ones there
        raise UserError(f"{path}, line {number} is no journal entry; delete the file to start over") from error
