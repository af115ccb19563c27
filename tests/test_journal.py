"""The answer journal: what survives a torn write, and what is refused."""

import errno
import io
import json
import os
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.journal import Entry, Journal

BELONGS_TO = {"checkpoint": "abc", "frames": 16}
ENTRIES = [Entry("mlvu_dev", i, f"{i}.mp4", f"red {letter}", letter) for i, letter in enumerate("ABC")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "journal.jsonl"
    journal = Journal.resume(path, BELONGS_TO)
    journal.append(ENTRIES[:2])
    journal.append(ENTRIES[2:])
    return path


def test_entries_come_back(path: Path) -> None:
    journal = Journal.resume(path, BELONGS_TO)
    assert journal.entries == {entry.key: entry for entry in ENTRIES}
    assert list(journal.entries) == [("mlvu_dev", 0), ("mlvu_dev", 1), ("mlvu_dev", 2)]


def test_every_append_is_on_disk_at_once(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    assert json.loads(lines[3])["answer"] == "red C"


@pytest.mark.parametrize("lost", [1, 10])
def test_a_torn_last_line_is_answered_again(path: Path, lost: int) -> None:
    path.write_bytes(path.read_bytes()[:-lost])
    journal = Journal.resume(path, BELONGS_TO)
    assert list(journal.entries) == [("mlvu_dev", 0), ("mlvu_dev", 1)]
    journal.append([ENTRIES[2]])
    assert Journal.resume(path, BELONGS_TO).entries == {entry.key: entry for entry in ENTRIES}


def test_a_torn_header_starts_over(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:7])
    assert Journal.resume(path, BELONGS_TO).entries == {}
    assert Journal.resume(path, BELONGS_TO).entries == {}


def test_the_last_answer_to_a_question_counts(path: Path) -> None:
    again = Entry("mlvu_dev", 1, "1.mp4", "red D", "D")
    Journal.resume(path, BELONGS_TO).append([again])
    assert Journal.resume(path, BELONGS_TO).entries[again.key] == again


@pytest.mark.parametrize(
    "other", [{"checkpoint": "abc", "frames": 32}, {"checkpoint": "abc"}, {**BELONGS_TO, "frames": "16"}]
)
def test_the_journal_of_another_run_is_refused(path: Path, other: dict) -> None:
    with pytest.raises(UserError, match="journal of another run: its frames is 16, this run's is"):
        Journal.resume(path, other)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"task": "mlvu_dev"', "line 3 is not JSON"),
        (b'{"task": "mlvu_dev"}', "line 3 is no journal entry"),
        (b"17", "line 3 is no journal entry"),
    ],
)
def test_a_damaged_line_in_the_middle_is_refused(path: Path, line: bytes, complaint: str) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
    with pytest.raises(UserError, match=complaint):
        Journal.resume(path, BELONGS_TO)


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that did not fit is torn; it is answered again."""
    journal, whole = Journal.resume(path, BELONGS_TO), path.read_bytes()
    again = Entry("mlvu_dev", 3, "3.mp4", "red D", "D")

    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:
            os.write(descriptor, data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    monkeypatch.setattr(Path, "open", lambda *args, **kwargs: Full())
    with pytest.raises(UserError, match=r"answers cannot be kept \(No space left on device\); make room there"):
        journal.append([again])
    monkeypatch.undo()
    os.close(descriptor)
    assert len(path.read_bytes()) == len(whole) + 20
    resumed = Journal.resume(path, BELONGS_TO)
    assert resumed.entries == {entry.key: entry for entry in ENTRIES}
    assert path.read_bytes() == whole


def test_some_other_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"architecture": "slow_fast"}\n')
    with pytest.raises(UserError, match="is no answer journal"):
        Journal.resume(path, BELONGS_TO)


def test_without_a_path_nothing_is_kept() -> None:
    journal = Journal.resume(None, BELONGS_TO)
    journal.append(ENTRIES)
    assert ("mlvu_dev", 2) in journal.entries
