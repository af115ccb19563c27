"""A journal of answers that survives `kill -9`: JSON lines, of questions and of videos, appended batch by batch.

The first line says what the answers depend on (checkpoint, frames, prompts, ...), so that a journal is only
continued by the run that it belongs to. A line that was cut off in the middle is dropped and answered again.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.errors import UserError

UNPARSED = "unparsed"  # an answer without an offered option's letter: the model's mistake, not a failure
EMPTY_ANSWER = "empty answer"
WATCHED = "watched"  # the key of a line about a video

SCORING = (
    *(f"harness.{name}" for name in ("evaluate", "journal", "lmms_plugin", "lmms_requests", "benchmarks")),
    *(f"harness.{name}" for name in ("controls", "features", "video", "packets", "decoders")),
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
    def resume(cls, path: str | Path | None, belongs_to: Mapping[str, str | int]) -> "Journal":
        """The journal at `path`, started if there is none; `path` None: one that is not kept on disk.

        Raises UserError if the journal belongs to something else, or is no journal.
        """
        if path is None:
            return cls()
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        if not lines:
            _append(path, [{"journal_of": dict(belongs_to)}])
            return cls(path)
        records = [_parse(path, number, line) for number, line in enumerate(lines, start=1)]
        _check_header(path, records[0], belongs_to)
        read = [_entry_or_video(path, number, record) for number, record in enumerate(records[1:], start=2)]
        journal = cls(path)
        journal._take(read)
        return journal

    def append(self, entries: Iterable[Entry], watched: Iterable[Watched] = ()) -> None:
        """Add the answers of one batch, and the videos they are about.

        Once this returns, the death of the process does not lose them. The videos come first: what is answered
        was watched.
        """
        new: list[Entry | Watched] = [*watched, *entries]
        if self.path is not None:
            _append(self.path, [{WATCHED: asdict(e)} if isinstance(e, Watched) else asdict(e) for e in new])
        self._take(new)

    def has(self, keys: Iterable[Key]) -> bool:
        """Whether every one of these questions is answered."""
        return all(key in self.entries for key in keys)

    def _take(self, new: Iterable[Entry | Watched]) -> None:
        for item in new:
            if isinstance(item, Watched):
                self.watched[item.video] = item
            else:
                self.entries[item.key] = item


def _append(path: Path, records: list[dict]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("ab") as file:
        file.write(text.encode())


def _whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file; a torn last one is cut off, so that the next gets its own."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.splitlines()


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
