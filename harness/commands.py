"""What the verbs do: each takes the composed settings, has the modules do the work, and tells the outcome.

What a verb is asked for goes to stdout, progress and complaints go to stderr. Slow imports are inside the
verbs that need them.
"""

from pathlib import Path

from omegaconf import DictConfig

from harness.errors import TooManyFailures, UserError
from harness.jobs import default_jobs
from harness.progress import Display

FAILURES_ALLOWED = 0.01  # of a run's samples


def suite(settings: DictConfig) -> None:
    """Generate the suite, or find it in the cache, and print its folder."""
    print(suite_of(settings))


def contact_sheet(settings: DictConfig) -> None:
    """Draw one sample and print the picture's path."""
    from harness.mini import contact_sheet as sheet

    name = f"contact_sheet_{settings.task or settings.benchmark}_{settings.sample}.png"
    out = Path(settings.output or Path(settings.runs_dir) / name)
    print(sheet.contact_sheet(suite_of(settings), settings.benchmark, settings.sample, out, settings.task))


def evaluate(settings: DictConfig) -> None:
    """Score a checkpoint; print its scores, and lmms-eval's own command for the same numbers."""
    if settings.checkpoint is None:
        raise UserError("evaluate needs checkpoint=FOLDER, the folder of a saved model")
    from harness import evaluate as evaluation

    checkpoint, suite = Path(settings.checkpoint), suite_of(settings)
    control = settings.control.name
    name = f"{checkpoint.resolve().name}_{settings.frames}_{control}_{suite.name}"
    out = Path(settings.output or Path(settings.runs_dir) / "evaluations" / name)
    with Display() as display:
        done = evaluation.evaluate(
            checkpoint,
            suite,
            out,
            settings.frames,
            control,
            settings.batch_size,
            settings.workers,
            display.progress(),
        )
    for benchmark, score in done.scores.items():
        print(f"{benchmark:16} {score:6.2f}")
    print(f"samples and scores: {out}")
    command = evaluation.command_line(checkpoint, suite, settings.frames, control)
    print(f"by lmms-eval's own command line: {command}")
    complain_of(len(done.failed), len(done.samples), [str(video) for video in done.failed["video"].unique()])


def plot(settings: DictConfig) -> None:
    """Main table and figures again from the stored rows, and the controls' table where they were run."""
    import pandas as pd

    from harness import report, rows

    folder = Path(settings.results_dir) / "rows"
    scale, seed = settings.scale.name, settings.seed

    def read(table: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        samples = rows.read_samples(folder / rows.samples_name(table, scale, seed))
        return rows.read_rows(folder / rows.rows_name(table, scale, seed)), samples

    main = read("main")
    report.write_main_table(*main, Path(settings.results_dir))
    if (folder / rows.rows_name("controls", scale, seed)).is_file():
        together = [pd.concat(pair, ignore_index=True) for pair in zip(main, read("controls"), strict=True)]
        report.write_controls_table(*together, Path(settings.results_dir))


def suite_of(settings: DictConfig) -> Path:
    """The folder of the suite that the settings name, or that of their seed, made if it is not there."""
    from harness.mini.suite import SIZES, build_suite

    if settings.suite is not None:
        return Path(settings.suite)
    workers = default_jobs() if settings.jobs is None else max(settings.jobs, 1)
    with Display() as display:
        return build_suite(settings.seed, SIZES[settings.scale.suite], None, workers, display.progress())


def complain_of(failures: int, asked: int, videos: list[str]) -> None:
    """Raise TooManyFailures if over 1% of the samples failed; all else must have been written before."""
    if failures > FAILURES_ALLOWED * asked:
        named = ", ".join(videos[:5]) + (f" and {len(videos) - 5} more" if len(videos) > 5 else "")
        raise TooManyFailures(
            f"{failures} of {asked} samples failed (over {FAILURES_ALLOWED:.0%}; scored as wrong): {named}; "
            "everything is written, but look at these before trusting it"
        )
