"""The terminal view of a sweep: rows done, time left, what runs, and each finished row as it comes.

It sees what the jobs leave in files (stage folders, notes, the row store), so it works with any launcher. On a
terminal it is drawn in place; elsewhere a line stands for it every 20 seconds.
"""

import math
import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.benchmarks import BENCHMARKS
from harness.grids.estimate import Times, unfinished, wall_seconds
from harness.grids.grid import Grid
from harness.grids.notes import Note, read_notes
from harness.grids.plans import Planned, StageFacts
from harness.grids.status import DONE, TO_DO, Status, tells_of
from harness.progress import clock
from harness.row_store import RowStore
from harness.rows import Row

SECONDS_BETWEEN_LINES = 20.0
SECONDS_BETWEEN_LOOKS = 2.0  # at all stage folders
NAME = 25


class View:
    """Watches the rows of `status` that are to do; a context manager. `look()` is called again and again."""

    def __init__(
        self, grid: Grid, status: Status, store: RowStore, runs: Path, results: Path, sweep: Path, jobs: int
    ) -> None:
        self.grid, self.status, self.store, self.runs, self.sweep, self.jobs = grid, status, store, runs, sweep, jobs
        self.to_do = status.rows(TO_DO)
        self.expected = {(row.cell, row.base_seed, row.content_hash): row for row in self.to_do}
        self.times = Times.recorded(runs, results)
        self.stages = {stage.folder: (stage, row) for row in self.to_do for stage in row.stages}
        self.told: set[tuple[str, int]] = {(row.cell, row.base_seed) for row in status.rows(DONE)}
        # Rows of this content that others computed, as those that came with a clone: not what this sweep has done.
        self.before = {row.model_dump_json() for row in store.rows()}
        self.told_failures = set(store.failures())
        self.stamp: tuple[int, ...] = ()  # of the store's files
        self.seconds_left: float = math.inf
        self.looked_at = -math.inf
        self.spoken_at = time.monotonic()
        self.console = Console(file=sys.stderr)
        self.live = Live(console=self.console, transient=True, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> "View":
        self.say(f"{self.grid.name}: {self.grid.question}")
        self.say(_header())
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self, last: bool = False) -> None:
        """Take in what has changed; `last`: everything, now."""
        self._tell_rows(last)
        now = time.monotonic()
        if not last and now - self.looked_at < SECONDS_BETWEEN_LOOKS:
            return
        self.looked_at = now
        notes = [] if last else read_notes(self.sweep)
        self.seconds_left = self._left(notes)
        if self.live is not None:
            self.live.update(self._drawing(notes), refresh=True)
        elif not last and now - self.spoken_at >= SECONDS_BETWEEN_LINES:
            self.spoken_at = now
            working = [self._in_words(note) for note in notes]
            self.say(" | ".join([f"{self._done()}, {clock(self.seconds_left)} left", *working]))

    # ------------------------------------------------------------------------------------------- what is there

    def _is_there(self, row: Row, planned: Planned) -> bool:
        return not planned.unfinished(self.runs) and tells_of(row, planned, self.runs)

    def _tell_rows(self, last: bool) -> None:
        """Print the rows and failures that have come since the last look."""
        stamp = (_stamp(self.store.path), _stamp(self.store.failures_path))
        if stamp == self.stamp and not last:
            return
        self.stamp = stamp
        for row in self.store.rows():
            key = (row.cell, row.base_seed)
            planned = self.expected.get((*key, row.content_hash))
            if planned is None or key in self.told:
                continue
            if row.model_dump_json() not in self.before or (last and self._is_there(row, planned)):
                self.told.add(key)
                self.say(_line(row))
        for failure in self.store.failures():
            if failure not in self.told_failures:
                self.told_failures.add(failure)
                self.say(f"{failure.cell}/{failure.base_seed} failed in {failure.stage}: {failure.error}")

    def _left(self, notes: list[Note]) -> float:
        """Seconds left by the plan: of what runs, what is left of it."""
        left = unfinished(self.to_do, self.runs)
        seconds = {folder: self.times.seconds(*both) for folder, both in left.items()}
        for note in notes:
            if note.stage in seconds:
                seconds[note.stage] = max(seconds[note.stage] * (1.0 - note.fraction), 1.0)
        return wall_seconds(seconds, {folder: stage.needs for folder, (stage, _) in left.items()}, self.jobs)

    def _expected(self, note: Note) -> tuple[StageFacts, Planned] | None:
        return self.stages.get(note.stage)

    # ------------------------------------------------------------------------------------------- what is drawn

    def _done(self) -> str:
        return f"{len(self.told)} of {len(self.status.planned)} rows"

    def _in_words(self, note: Note) -> str:
        if not note.stage:
            return f"{note.cell}/{note.base_seed} {_idle(note)}"
        elapsed, known = clock(time.time() - note.since), self._expected(note)
        expected = f" of {clock(self.times.seconds(*known))}" if known else ""
        return f"{note.cell}/{note.base_seed} {_name(note.stage)} {note.fraction:.0%} {elapsed}{expected}"

    def _drawing(self, notes: list[Note]) -> Group:
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=len(self.status.planned), completed=len(self.told), width=20)
        line.add_row(Text(self.grid.name, style="bold"), bar, self._done(), f"{clock(self.seconds_left)} left")
        running = Table.grid(padding=(0, 2))
        for note in notes:
            known = self._expected(note)
            expected = f"of {clock(self.times.seconds(*known))}" if known else ""
            elapsed = clock(time.time() - note.since)
            named = f"  {note.cell}/{note.base_seed}"
            running.add_row(named, _name(note.stage) or _idle(note), f"{note.fraction:.0%}", elapsed, expected)
        return Group(line, running)

    def say(self, text: str) -> None:
        """Print a line above what is drawn."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _stamp(path: Path) -> int:
    """When a file was last changed; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _idle(note: Note) -> str:
    return "waits" if note.waits else "starts"


def _name(folder: str) -> str:
    """A stage's name, which its folder begins with."""
    return folder.rpartition("-")[0]


def _header() -> str:
    names = "".join(f"{name[:9]:>{_width(name)}}" for name in BENCHMARKS)
    return f"{'cell/base seed':{NAME}}{'average':>8}{names}{'min':>6}"


def _line(row: Row) -> str:
    """A finished row: average, benchmarks, minutes of its own stages."""
    scores = "".join(f"{row.scores[name]:>{_width(name)}.1f}" for name in BENCHMARKS)
    minutes = (row.timings["adapt"] + row.timings["evaluate"]) / 60
    return f"{f'{row.cell}/{row.base_seed}':{NAME}.{NAME}}{row.average:>8.1f}{scores}{minutes:>6.1f}"


def _width(name: str) -> int:
    return min(len(name), 9) + 1
