"""What the verbs do: each takes the composed settings, has the modules do the work, and tells the outcome.

What a verb is asked for goes to stdout, progress and complaints go to stderr. Slow imports are inside the
verbs that need them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.errors import TooManyFailures, UserError
from harness.jobs import default_jobs
from harness.journal import UNPARSED
from harness.progress import Display

FAILURES_ALLOWED = 0.01  # of a run's samples


def suite(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Generate the suite, or find it in the cache, and print its folder."""
    print(suite_of(settings))


def contact_sheet(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Draw one sample and print the picture's path."""
    from harness.mini import contact_sheet as sheet

    name = f"contact_sheet_{settings.task or settings.benchmark}_{settings.sample}.png"
    out = Path(settings.output or Path(settings.runs_dir) / name)
    print(sheet.contact_sheet(suite_of(settings), settings.benchmark, settings.sample, out, settings.task))


def evaluate(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Score a checkpoint; print its scores, and lmms-eval's own command for the same numbers."""
    refuse_paper_scale(settings)
    if settings.checkpoint is None:
        raise UserError("evaluate needs checkpoint=FOLDER, the folder of a saved model")
    checkpoint = Path(settings.checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint={checkpoint}: no folder of a saved model (it has no config.json)")
    from harness import evaluate as evaluation

    suite = suite_of(settings)
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
    command = evaluation.command_line(checkpoint, suite, settings.frames, control, settings.batch_size)
    print(f"by lmms-eval's own command line: {command}")
    complain_of(len(done.failed), len(done.samples), [str(video) for video in done.failed["video"].unique()])


def plot(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Main table and figures again from the stored rows, and the other tables where they were run."""
    import pandas as pd

    from harness import plug_and_play_points as study
    from harness import plug_and_play_report as study_report
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
    if (folder / rows.rows_name(study.TABLE, scale, seed)).is_file():
        study_report.write_study(*study.read(Path(settings.results_dir), scale, seed), Path(settings.results_dir))


def table(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Run whatever of the main table is not done yet; write rows, tables and figures, and print the table."""
    from harness import report, rows

    made = _make_rows(settings, overrides, "main")
    report.write_main_table(rows.as_frame(made.rows), made.samples, Path(settings.results_dir))
    complain_of(*made.failed)


def controls(settings: DictConfig, overrides: Sequence[str]) -> None:
    """The controls beside the main table's rows: gate closed, slow tokens of another video."""
    import pandas as pd

    from harness import report, rows
    from harness.table import Cell

    needed = [str(Cell(*row[:2])) for row in (rows.CONTROLLED, rows.REFERENCE)]
    if missing := [row for row in needed if row not in settings.rows]:
        raise UserError(f"rows={list(settings.rows)}: controls need {' and '.join(missing)} among the rows")
    made = _make_rows(settings, overrides, "main")
    controlled = _make_rows(settings, overrides, "controls")
    together = rows.as_frame([*made.rows, *controlled.rows])
    samples = pd.concat([made.samples, controlled.samples], ignore_index=True)
    report.write_controls_table(together, samples, Path(settings.results_dir))
    complain_of(*controlled.failed)


def plug_and_play(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Convert trained baselines to slow-fast; measure by training steps, store the points, and print the table."""
    refuse_paper_scale(settings)
    from harness import plug_and_play_points as study
    from harness import plug_and_play_report as study_report
    from harness.jobs import run
    from harness.plug_and_play import Study

    planned = Study(settings, overrides).on(suite_of(settings))
    made = planned.points(run(planned.stages(), Path(settings.runs_dir), settings.jobs))
    study.write(made, Path(settings.results_dir))
    points, samples = study.read(Path(settings.results_dir), settings.scale.name, settings.seed)
    study_report.write_study(points, samples, Path(settings.results_dir))
    failed = samples[~samples["failure"].isin(["", UNPARSED])]
    complain_of(len(failed), len(samples), sorted(map(str, failed["video"].unique())))


def train(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Train the architecture at its frames, for each base seed; print the checkpoints' folders."""
    refuse_paper_scale(settings)
    from harness.jobs import run
    from harness.table import Cell, Plan, model_name

    cell = Cell(settings.architecture.name, settings.frames)
    plan = Plan(settings, overrides, [cell])
    wanted = [model_name(cell, base_seed) for base_seed in settings.base_seeds]
    folders = run(plan.needed_by(wanted), Path(settings.runs_dir), settings.jobs)
    print(*(folders[name] for name in wanted), sep="\n")


def cost(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Count the architecture at its frames, at this scale and at 7B, and print it as JSON."""
    from harness.jobs import run
    from harness.table import Cell, Plan, read_json

    cell = Cell(settings.architecture.name, settings.frames)
    stage = Plan(settings, overrides, [cell]).cost(cell.architecture)
    folders = run([stage], Path(settings.runs_dir), 0)
    print(json.dumps(read_json(folders[stage.name] / "cost.json")[str(cell.frames)], indent=2))


@dataclass(frozen=True)
class Made:
    """The rows of a table with their samples, and `failed`: how many of how many samples, of which videos."""

    rows: list[Any]
    samples: Any
    failed: tuple[int, int, list[str]]


def _make_rows(settings: DictConfig, overrides: Sequence[str], kind: str) -> Made:
    """Run the stages of the "main" table or of its "controls", and store their rows."""
    refuse_paper_scale(settings)
    import pandas as pd

    from harness import rows
    from harness.compose import group_choices
    from harness.jobs import run
    from harness.table import CONTROLS, Cell, Plan

    cells = [Cell.parse(text, group_choices()["architecture"]) for text in settings.rows]
    plan = Plan(settings, overrides, cells).on(suite_of(settings))
    stages = plan.stages(CONTROLS if kind == "controls" else ())
    runs = Path(settings.runs_dir)
    run(stages, runs, settings.jobs)
    folders = run([*stages, plan.latency()], runs, 1)  # alone, so that nothing else takes the machine
    wanted = [(cell, "none") for cell in cells]
    if kind == "controls":
        wanted = [(Cell(*rows.CONTROLLED[:2]), control) for control in CONTROLS]
    made = [
        plan.row(folders, cell, base_seed, kind, control)
        for base_seed in settings.base_seeds
        for cell, control in wanted
    ]
    tagged = [rows.tag_samples(row, evaluation.samples) for row, evaluation in made]
    folder, key = Path(settings.results_dir) / "rows", (kind, settings.scale.name, settings.seed)
    rows.write_rows(folder / rows.rows_name(*key), [row for row, _ in made])
    rows.write_samples(folder / rows.samples_name(*key), tagged)
    failed = pd.concat([evaluation.failed for _, evaluation in made])
    asked = sum(len(evaluation.samples) for _, evaluation in made)
    named = (len(failed), asked, sorted(map(str, failed["video"].unique())))
    return Made([row for row, _ in made], pd.concat(tagged, ignore_index=True), named)


def suite_of(settings: DictConfig) -> Path:
    """The folder of the suite that the settings name, or that of their seed, made if it is not there."""
    from harness.mini.suite import SIZES, build_suite, load_suite
    from harness.mini.world import World

    if settings.suite is not None:
        load_suite(Path(settings.suite))
        return Path(settings.suite)
    workers = default_jobs() if settings.jobs is None else max(settings.jobs, 1)
    with Display() as display:
        world = World.of(settings.world.evaluation)
        return build_suite(settings.seed, SIZES[settings.scale.suite], None, workers, display.progress(), world)


def refuse_paper_scale(settings: DictConfig) -> None:
    """The verbs that train or evaluate do so at scales that say how."""
    if "adapt" not in settings.scale:
        raise UserError(
            f"scale={settings.scale.name}: training and evaluation at {settings.scale.name} scale are not "
            "there yet; choose scale=mini or scale=smoke (the verb cost counts both scales)"
        )


def complain_of(failures: int, asked: int, videos: list[str]) -> None:
    """Raise TooManyFailures if over 1% of the samples failed; all else must have been written before."""
    if failures > FAILURES_ALLOWED * asked:
        named = ", ".join(videos[:5]) + (f" and {len(videos) - 5} more" if len(videos) > 5 else "")
        raise TooManyFailures(
            f"{failures} of {asked} samples failed (over {FAILURES_ALLOWED:.0%}; scored as wrong): {named}; "
            "everything is written, but look at these before trusting it"
        )
