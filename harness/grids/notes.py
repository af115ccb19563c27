"""What a job of a sweep says of itself while it works: a small file that the terminal view reads.

    SWEEP/running/HOST-PID.json    a `Note`

Files, because a job may run in any process of any machine that sees the results folder.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from rich.console import Console

from harness.progress import Display, Event, Progress

RUNNING = "running"
SECONDS_BETWEEN_NOTES = 1.0


@dataclass(frozen=True)
class Note:
    """What one process is at work on.

    Attributes:
        stage: the name that the stage's folder will have; "": none is at work.
        waits: for other processes; before that, it starts: seconds of imports.
        since: seconds of the epoch.
        fraction: of the stage, 0 to 1.
    """

    cell: str
    base_seed: int
    stage: str = ""
    since: float = 0.0
    fraction: float = 0.0
    waits: bool = False


class Notes:
    """Keeps this process's note while it works on a job; a context manager. Progress lines go to `log`."""

    def __init__(self, sweep: Path, cell: str, base_seed: int, log: TextIO):
        self.path = sweep / RUNNING / f"{socket.gethostname()}-{os.getpid()}.json"
        self.note = Note(cell, base_seed, since=time.time())
        self.display = Display(Console(file=log, width=120))
        self.written_at = 0.0

    def __enter__(self) -> "Notes":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def progress(self, stage: str) -> Progress:
        """What the stage reports to that begins now; "": none does."""
        if stage != self.note.stage or not (stage or self.note.waits):
            self.display.forget(self.note.stage)
            self.note = replace(self.note, stage=stage, since=time.time(), fraction=0.0, waits=not stage)
            self._write()
        return Progress(self._handle, stage)

    def _handle(self, event: Event) -> None:
        self.display.handle(event)
        if time.monotonic() - self.written_at >= SECONDS_BETWEEN_NOTES:
            self.note = replace(self.note, fraction=self.display.stage_fraction(self.note.stage))
            self._write()

    def _write(self) -> None:
        """Aside and renamed: a reader meets a whole note. Not flushed: nobody needs it after a crash."""
        self.written_at = time.monotonic()
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(asdict(self.note)), encoding="utf-8")
        aside.replace(self.path)


def read_notes(sweep: Path) -> list[Note]:
    """The notes of all processes of a sweep, by cell and base seed."""
    notes = []
    for path in (sweep / RUNNING).glob("*.json"):
        try:
            notes.append(Note(**json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:  # its job ended at this moment
            continue
    return sorted(notes, key=lambda note: (note.cell, note.base_seed, note.since))
