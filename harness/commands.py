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
PAPER = "paper"  # the scale of real benchmarks and released checkpoints
OF_REAL_DATA = (
    *("data", "benchmarks", "further", "models", "limit", "prompts", "sampling", "processes", "dtype", "device"),
    *("check", "source", "online", "submit"),
)
"""Settings of evaluation on real data, which a table of models trained from scratch does not read."""


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
    if settings.checkpoint is None:
        raise UserError("evaluate needs checkpoint=FOLDER, the folder of a saved model")
    checkpoint = Path(settings.checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint={checkpoint}: no folder of a saved model (it has no config.json)")
    from harness import evaluate as evaluation
    from harness.processes import evaluate_in_processes

    suite, asked = suite_of(settings), asked_of(settings)
    control, batch = settings.control.name, settings.batch_size
    differs = [str(value) for value in asked.values() if isinstance(value, str | int)]
    name = "_".join([checkpoint.resolve().name, str(settings.frames), control, suite.name, *differs])
    out = Path(settings.output or Path(settings.runs_dir) / "evaluations" / name)
    with Display() as display:
        done = evaluate_in_processes(
            settings.processes,
            checkpoint,
            suite,
            out,
            settings.frames,
            display.progress(),
            control=control,
            batch_size=batch,
            workers=settings.workers,
            device=settings.device,
            online=settings.online,
            **asked,
        )
    for benchmark, score in done.scores.items():
        print(f"{benchmark:24} {score:6.2f}")
    print(f"samples and scores: {out}")
    options = {name: asked[name] for name in ("prompts", "sampling", "dtype") if name in asked}
    command = evaluation.command_line(
        checkpoint, suite, settings.frames, control, batch, asked.get("benchmarks"), **options
    )
    print(f"by lmms-eval's own command line: {command}")
    complain_of(len(done.failed), len(done.samples), [str(video) for video in done.failed["video"].unique()])


def asked_of(settings: DictConfig) -> dict[str, Any]:
    """The arguments of an evaluation that were chosen; the others are its own."""
    asked = {
        "benchmarks": None if settings.benchmarks is None else list(settings.benchmarks),
        "prompts": settings.prompts,
        "sampling": settings.sampling,
        "limit": settings.limit,
        "dtype": None if settings.dtype is None else settings.dtype.name,
    }
    return {name: value for name, value in asked.items() if value is not None}


def plot(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Main table and figures again from the stored rows, and the other tables where they were run."""
    if settings.scale.name == PAPER:
        from harness.paper import verb

        return verb.again(settings, overrides)
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
    """Run whatever of the main table is not done yet; write rows, tables and figures, and print the table.

    At paper scale: real benchmarks, released and other checkpoints (`harness.paper`).
    """
    if settings.scale.name == PAPER:
        from harness.paper import verb

        return verb.table(settings, overrides)
    from harness import report, rows

    if settings.dry_run:
        return _print_stages(settings, overrides)
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
    expect_mini(settings, overrides)
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
    expect_mini(settings, overrides)
    from harness.jobs import run
    from harness.table import Cell, Plan, model_name

    cell = Cell(settings.architecture.name, settings.frames)
    plan = Plan(settings, overrides, [cell])
    wanted = [model_name(cell, base_seed) for base_seed in settings.base_seeds]
    folders = run(plan.needed_by(wanted), Path(settings.runs_dir), settings.jobs)
    print(*(folders[name] for name in wanted), sep="\n")


def annotations(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Write mini training clips and conversations about them as an annotation file, for the verb finetune; print it."""
    if "adapt" not in settings.scale:
        raise UserError(
            f"scale={settings.scale.name} has no clips of its own: choose scale=mini; annotation files of real videos "
            "go to finetune as they are"
        )
    expect_mini(settings, overrides)
    from harness.mini.annotations import Asked, write_annotations
    from harness.mini.world import World
    from harness.paths import cache_dir

    adapt, clips = settings.scale.adapt, settings.scale.pool_clips
    asked = Asked(clips, visits=adapt.steps * adapt.videos, questions=adapt.questions)
    sizes = f"{clips}x{asked.visits}x{asked.questions}"
    name = f"annotations-{settings.scale.name}-{settings.world.name}-{sizes}-seed{settings.seed}"
    folder = Path(settings.output or cache_dir() / name)
    with Display() as display:
        world = World.of(settings.world.training)
        print(write_annotations(folder, settings.seed, asked, world, progress=display.progress()))


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
    expect_mini(settings, overrides)
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


def _print_stages(settings: DictConfig, overrides: Sequence[str]) -> None:
    """What the main table consists of, what of it is done, and how long the rest takes at most: run nothing."""
    expect_mini(settings, overrides)
    from harness.compose import group_choices
    from harness.stages import resolve
    from harness.table import Cell, Plan

    cells = [Cell.parse(text, group_choices()["architecture"]) for text in settings.rows]
    plan = Plan(settings, overrides, cells).on(suite_of(settings))
    attempts = resolve([*plan.stages(), plan.latency()], Path(settings.runs_dir).absolute())
    left = 0.0
    for name, attempt in attempts.items():
        done = attempt.final.is_dir()
        left += 0.0 if done else attempt.stage.weight
        print(f"{name:44} {'done' if done else f'{attempt.stage.weight:6.0f} s'}")
    jobs = default_jobs() if settings.jobs is None else max(settings.jobs, 1)
    print(f"about {left / jobs / 60:.0f} minutes on {jobs} cores, by the seconds that each stage took on a slow one")


def suite_of(settings: DictConfig) -> Path:
    """The folder of the suite that the settings name, or of the data's, or that of their seed, made if need be."""
    from harness.mini.suite import SIZES, build_suite, load_suite
    from harness.mini.world import World

    if settings.suite is not None:
        load_suite(Path(settings.suite))
        return Path(settings.suite)
    if settings.data is not None or settings.scale.name == PAPER:
        from harness.real.suite import real_suite
        from harness.real.verb import benchmarks_of, data_root

        return real_suite(data_root(settings), benchmarks_of(settings), settings.limit)
    workers = default_jobs() if settings.jobs is None else max(settings.jobs, 1)
    with Display() as display:
        world = World.of(settings.world.evaluation)
        return build_suite(settings.seed, SIZES[settings.scale.suite], None, workers, display.progress(), world)


def expect_mini(settings: DictConfig, overrides: Sequence[str]) -> None:
    """UserError at paper scale, or for a setting that means nothing where models are trained from scratch."""
    if "adapt" not in settings.scale:
        raise UserError(
            f"scale={settings.scale.name}: this verb trains models from scratch; choose scale=mini or scale=smoke, or "
            "the verbs table, finetune and evaluate, which know real data"
        )
    for text in overrides:
        if (key := text.partition("=")[0]) in OF_REAL_DATA:
            raise UserError(f"{text} changes nothing here: {key} is for scale=paper or the verb evaluate; leave it out")


def complain_of(failures: int, asked: int, videos: list[str]) -> None:
    """Raise TooManyFailures if over 1% of the samples failed; all else must have been written before."""
    if failures > FAILURES_ALLOWED * asked:
        named = ", ".join(videos[:5]) + (f" and {len(videos) - 5} more" if len(videos) > 5 else "")
        raise TooManyFailures(
            f"{failures} of {asked} samples failed (over {FAILURES_ALLOWED:.0%}; scored as wrong): {named}; "
            "everything is written, but look at these before trusting it"
        )
