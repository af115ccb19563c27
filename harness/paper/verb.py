"""What `table` and its dry run do at paper scale: composed settings in, the table or the plan on stdout."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import submission
from harness.benchmarks import benchmark_named
from harness.commands import complain_of
from harness.errors import UserError
from harness.jobs import StagesFailed, run
from harness.layout import NONE
from harness.paper.models import ModelSpec, load_model, model_names
from harness.paper.plan import (
    NEW_TOKENS,
    TEXT_TOKENS,
    UTILISATION,
    Plan,
    device_hours,
    plan_of,
)
from harness.paper.request import Request
from harness.paper.rows import keep, read_all, row_of
from harness.paper.stages import RowStages, suites_of
from harness.stages import Stage, resolve

CHECKOUT = Path(__file__).parents[2] / "results"
GB, PFLOP = 1e9, 1e15
WIDTH = 80


def table(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Run whatever is not done yet of the models' rows, store them, and print all rows of paper scale.

    With dry_run the plan instead. UserError for a mistake; StagesFailed after everything else is stored if a part
    failed; TooManyFailures if over 1% of the questions had no answer.
    """
    request = Request.of(settings, overrides)
    if _dry(settings):
        print_plan(plan_of(request))
        return
    rows_of = _row_stages(request)
    stages = [stage for each in rows_of for stage in each.all()]
    failed = None
    try:
        run(stages, request.runs, 1 if request.jobs is None else request.jobs)
    except StagesFailed as error:
        failed = error
    folders = finished(stages, request.runs)
    made = [row for each in rows_of if (row := row_of(each, folders, request.seed)) is not None]
    for sentence in keep(request.results, made):
        print(sentence, file=sys.stderr)
    if made:
        _print_table(request)
    empty = _tell_submissions(request, rows_of, folders)
    if failed is not None:
        raise failed
    if empty:
        raise UserError("; ".join(empty))
    _complain(made)


def plan(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Print what the table will take; nothing is run, fetched or written."""
    print_plan(plan_of(Request.of(settings, overrides)))


def again(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Print and write the table from stored rows; runs nothing."""
    _print_table(Request.of(settings, overrides))


def finished(stages: Sequence[Stage], runs: Path) -> dict[str, Path]:
    """The folders of the stages that are done, by name."""
    return {name: attempt.final for name, attempt in resolve(stages, runs).items() if attempt.final.is_dir()}


def _row_stages(request: Request) -> list[RowStages]:
    from harness.real.suite import real_suite

    suites = suites_of(request, real_suite)
    return [RowStages(request, spec, suites) for spec in request.models]


def _print_table(request: Request) -> None:
    from harness.paper.table import write_table

    rows, samples = read_all(request.results, request.seed)
    write_table(rows, samples, published_for(request.results), _specs(request), request.results)


def published_for(results: Path) -> pd.DataFrame:
    """The published numbers in `results`; those of this checkout where there are none, as in a new results_dir.

    UserError if there are none here either: measured scores are shown beside them.
    """
    from harness.reports.published import FOLDER, read_published

    for folder in (results, CHECKOUT):
        if not (found := read_published(folder)).empty:
            return found
    raise UserError(f"neither {results / FOLDER} nor {CHECKOUT / FOLDER} holds published numbers; restore one of them")


def _specs(request: Request) -> dict[str, ModelSpec]:
    """Every model that a stored row may be of, by name."""
    return {**{name: load_model(name) for name in model_names()}, **{spec.name: spec for spec in request.models}}


def _tell_submissions(request: Request, rows_of: Sequence[RowStages], folders: dict[str, Path]) -> list[str]:
    """Say where the predictions of sets without public answers are; send them if that was typed.

    Returns a sentence for each set of which there are none.
    """
    from harness.evaluate import SUBMISSION

    empty = []
    for each in rows_of:
        for name in each.suites:
            stage = each.scores_name(name)
            if not benchmark_named(name).submission or stage not in folders:
                continue
            file = folders[stage] / SUBMISSION
            if not file.is_file():
                empty.append(f"{each.spec.name}: no answer to {name} names an option: there is nothing to submit")
                continue
            print(f"{each.spec.name}, {name}: predictions in {file}")
            if request.submit:
                verdict = submission.submit(file, submission.SERVER, submit=True)
                print(f"{each.spec.name}, {name}: {verdict.accuracy} by {submission.SERVER} ({verdict})")
    return empty


def _complain(made: Sequence[tuple]) -> None:
    from harness.rows import UNPARSED

    failed = [samples[~samples["failure"].isin(["", UNPARSED])] for _, samples in made]
    videos = sorted({str(video) for each in failed for video in each["video"]})
    complain_of(sum(map(len, failed)), sum(len(samples) for _, samples in made), videos)


def _dry(settings: DictConfig) -> bool:
    from omegaconf import OmegaConf

    return bool(OmegaConf.select(settings, "dry_run", default=False))


# ---------------------------------------------------------------------------------------------------- the plan


def print_plan(made: Plan, console: Console | None = None) -> None:
    """The plan, at most 80 characters wide."""
    console = console or Console(width=WIDTH)
    console.print(Text("Plan of the table at paper scale: nothing has been run, fetched or written", style="bold"))
    for caption, table in (
        ("Questions", _questions(made)),
        ("Rows", _rows(made)),
        ("Hours of one device, all rows together", _hours(made)),
        ("To fetch", _fetches(made)),
    ):
        console.print(Text(f"\n{caption}", style="italic"))
        console.print(table)
    console.print()
    for line in _foot(made):
        console.print(Text(f"- {line}", style="dim"))


def _questions(made: Plan) -> Table:
    lines = [
        (each.benchmark.title, _number(each.questions), _number(each.videos), each.source or "not known")
        for each in made.questions
    ]
    return _grid(("benchmark", "questions", "videos", "source"), lines, texts=(0, 3))


def _rows(made: Plan) -> Table:
    lines = [
        (
            work.spec.name,
            str(work.spec.frames),
            _number(work.asked),
            *(
                (NONE,) * 4
                if work.config is None
                else (
                    f"{work.flop_of_video / 1e12:,.1f}",
                    f"{work.flop_of_question / 1e12:,.1f}",
                    f"{work.flop / PFLOP:,.0f}",
                    f"{work.memory.peak / GB:.1f}",
                )
            ),
        )
        for work in made.works
    ]
    heads = ("model", "frames", "questions", "TFLOP per\nvideo", "TFLOP per\nquestion", "PFLOP", "GB of one\nprocess")
    return _grid(heads, lines)


def _hours(made: Plan) -> Table:
    hours = device_hours(made.flop, made.request.dtype)
    processes = made.request.processes
    heads = ("device", "hours", *((f"with {processes}",) if processes > 1 else ()))
    return _grid(
        heads,
        [
            (title, f"{each:,.1f}", *((f"{each / processes:,.1f}",) if processes > 1 else ()))
            for title, each in hours.items()
        ],
    )


def _fetches(made: Plan) -> Table:
    lines = [
        (each.what, "not known" if each.bytes is None else f"{each.bytes / GB:,.1f}", "yes" if each.here else "no")
        for each in made.fetches
    ]
    return _grid(("repository", "GB", "here"), [*lines, ("still to fetch, known", f"{made.to_fetch / GB:,.1f}", "")])


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]], texts: Sequence[int] = (0,)) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for place, head in enumerate(heads):
        grid.add_column(head, justify="left" if place in texts else "right", overflow="fold")
    for line in lines:
        grid.add_row(*map(Text, line))
    return grid


def _foot(made: Plan) -> list[str]:
    """What the numbers rest on."""
    request = made.request
    unknown = [each.benchmark.title for each in made.questions if each.questions is None]
    external = [work.spec.name for work in made.works if work.config is None]
    largest = [f"{work.spec.name}: {work.memory.largest}" for work in made.works if work.memory is not None]
    return [
        f"FLOP: 2 x multiply-adds, counted from each configuration; {TEXT_TOKENS} tokens of text and {NEW_TOKENS} of "
        f"answer assumed; a video is encoded anew in each batch that asks about it (batch_size={request.batch_size}).",
        f"Hours: {UTILISATION:.0%} of the device's peak in {request.dtype} assumed, not measured; reading videos comes "
        "on top.",
        f"GB: weights and the largest phase ({'; '.join(largest)}) of one process, 10^9 bytes; a CUDA context and "
        "kernels' work space come on top. Checkpoints: their tensors in half precision.",
        *([f"Not known, so not in the sums: questions of {', '.join(unknown)}."] if unknown else []),
        *([f"Not counted, lmms-eval's own code: {', '.join(external)}."] if external else []),
        "Archives and what is unpacked of them need disk twice; `make doctor SCALE=paper` looks at what is there.",
    ]


def _number(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"
