"""Progress with time left, from the process at the terminal and from its workers alike.

Work reports to a `Progress`, which turns every report into a small picklable event; a `Display` in the main
process draws the events: bars on a terminal, a line every 15 seconds elsewhere.

    with Display() as display:
        for clip in display.progress().track(clips, "render"): ...

    def train(out: Path, progress: Progress = SILENT):
        with progress.bar("train", total=320) as bar:
            bar.advance()
"""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

Item = TypeVar("Item")
SECONDS_BETWEEN_EVENTS = 0.1
SECONDS_BETWEEN_LINES = 15.0
PRIOR_FRACTION = 0.05  # an expected duration counts as much as having seen this part of the work


@dataclass(frozen=True)
class Event:
    """One thing that happened to one bar; `amount` counts units since the bar's last event."""

    bar: str  # unique over all processes; "" for a line of text
    kind: Literal["start", "advance", "finish", "say"]
    name: str = ""
    total: float = 0.0
    amount: float = 0.0
    share: float = 1.0
    expected_s: float | None = None
    stage: str = ""


@dataclass
class Bar:
    """One counter, a context manager. Its advances are sent at most ten times a second."""

    send: Callable[[Event], None]
    key: str
    total: float
    stage: str = ""
    done: float = 0.0
    pending: float = 0.0
    sent_at: float = field(default_factory=time.monotonic)

    def advance(self, amount: float = 1.0) -> None:
        """Count `amount` more of the bar's units as done."""
        self.done += amount
        self.pending += amount
        if time.monotonic() - self.sent_at >= SECONDS_BETWEEN_EVENTS or self.done >= self.total:
            self.flush()

    def flush(self) -> None:
        """Send what has been counted but not sent."""
        if self.pending:
            self.send(Event(self.key, "advance", amount=self.pending, stage=self.stage))
        self.pending = 0.0
        self.sent_at = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self.send(Event(self.key, "finish", stage=self.stage))


class Progress:
    """What work reports to; `send` takes each event to a display, a pipe to the main process, or nowhere."""

    def __init__(self, send: Callable[[Event], None], stage: str = "") -> None:
        self.send = send
        self.stage = stage
        self.numbers = itertools.count()

    def bar(
        self,
        name: str,
        total: float,
        done: float = 0.0,
        share: float = 1.0,
        expected_s: float | None = None,
    ) -> Bar:
        """A new bar of `total` units, `done` of which were done before (a resumed run).

        Args:
            share: the part (0 to 1) of the enclosing stage's work that this bar stands for; the shares of the
                bars of one stage should add up to 1.
            expected_s: how many seconds the whole bar is expected to take, if anyone knows; it steadies the
                time left until enough has been seen.
        """
        key = f"{os.getpid()}.{id(self)}.{next(self.numbers)}"
        self.send(Event(key, "start", name, total, done, share, expected_s, self.stage))
        return Bar(self.send, key, total, stage=self.stage, done=done)

    def track(self, items: Iterable[Item], name: str, total: float | None = None, share: float = 1.0) -> Iterator[Item]:
        """Yield `items` while a bar counts them; `total` is needed where `items` has no length."""
        if total is None:
            if not isinstance(items, Sized):
                raise TypeError(f"progress.track({name!r}): give total=, since the items have no length")
            total = len(items)
        with self.bar(name, total, share=share) as bar:
            for item in items:
                yield item
                bar.advance()

    def say(self, text: str) -> None:
        """A line of text for the person, above the bars."""
        self.send(Event("", "say", text, stage=self.stage))


def _ignore(event: Event) -> None:
    """Where nobody watches, progress goes nowhere."""


SILENT = Progress(_ignore)


@dataclass
class Counter:
    """What a display knows of one bar."""

    name: str
    total: float
    share: float
    stage: str
    done: float
    skipped: float  # done before this run, so no evidence of its speed
    expected_s: float | None = None
    started: float = field(default_factory=time.monotonic)
    finished: bool = False

    def fraction(self) -> float:
        """The part done, 0 to 1."""
        if self.finished or self.total <= 0:
            return 1.0
        return min(self.done / self.total, 1.0)

    def seconds_left(self) -> float | None:
        """Time left at the mean speed since the start, or None while nothing is known."""
        if self.total <= 0:
            return 0.0
        seen = (self.done - self.skipped) / self.total
        seconds = time.monotonic() - self.started
        if self.expected_s is not None:
            seen += PRIOR_FRACTION
            seconds += PRIOR_FRACTION * self.expected_s
        return (1.0 - self.fraction()) * seconds / seen if seen > 0 else None


def clock(seconds: float | None) -> str:
    """Seconds as 1:02:03 or 2:03, and -:-- where it is not known."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TimeLeft(ProgressColumn):
    """Time left at the mean speed since the start: steadier over unequal steps than a moving window."""

    def render(self, task: RichTask) -> Text:
        """The column's text for one bar."""
        return Text(f"{clock(task.fields['counter'].seconds_left())} left", style="cyan")


class Display:
    """Draws events in the main process, on stderr: bars on a terminal, elsewhere a line every 15 seconds."""

    def __init__(self, console: Console | None = None, every_s: float = SECONDS_BETWEEN_LINES) -> None:
        self.console = console or Console(file=sys.stderr)
        self.every_s = every_s
        self.lock = threading.Lock()
        self.counters: dict[str, Counter] = {}
        self.spoken_at = time.monotonic()
        self.rows: dict[str, int] = {}
        self.bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def progress(self, stage: str = "") -> Progress:
        """A `Progress` for work in this process."""
        return Progress(self.handle, stage)

    def handle(self, event: Event) -> None:
        """Take one event, from any thread."""
        with self.lock:
            if event.kind == "start":
                self._start(event)
            elif event.kind == "advance":
                self._advance(event)
            elif event.kind == "finish":
                self.counters[event.bar].finished = True
                self.bars.remove_task(self.rows.pop(event.bar))
            else:
                self._print(event.name)
            self._speak()

    def stage_fraction(self, stage: str) -> float:
        """The part (0 to 1) of a stage's work that its bars report as done."""
        with self.lock:
            return min(1.0, sum(c.share * c.fraction() for c in self.counters.values() if c.stage == stage))

    def forget(self, stage: str) -> None:
        """Drop the bars of a stage that has ended, even those that a dead process left open."""
        with self.lock:
            for key in [key for key, counter in self.counters.items() if counter.stage == stage]:
                del self.counters[key]
                if key in self.rows:
                    self.bars.remove_task(self.rows.pop(key))

    def _start(self, event: Event) -> None:
        name = f"{event.stage}: {event.name}" if event.stage else event.name
        counter = Counter(name, event.total, event.share, event.stage, event.amount, event.amount, event.expected_s)
        self.counters[event.bar] = counter
        self.rows[event.bar] = self.bars.add_task(name, total=event.total, completed=event.amount, counter=counter)

    def _advance(self, event: Event) -> None:
        counter = self.counters[event.bar]
        counter.done += event.amount
        self.bars.update(self.rows[event.bar], completed=round(counter.done, 1))

    def _speak(self) -> None:
        """Off a terminal: the line that stands for the bars, when it is due."""
        now = time.monotonic()
        if self.console.is_terminal or now - self.spoken_at < self.every_s:
            return
        open_bars = [counter for counter in self.counters.values() if not counter.finished]
        if open_bars:
            self.spoken_at = now
            self._print(" | ".join(f"{c.name} {c.fraction():.0%} ({clock(c.seconds_left())} left)" for c in open_bars))

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
