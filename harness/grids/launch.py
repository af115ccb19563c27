"""Has a grid's missing rows computed: starts the Hydra app, watches it, and starts it again where a process died."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from harness.grids.estimate import unfinished
from harness.grids.grid import Grid
from harness.grids.guard import VARIABLE, end_children
from harness.grids.job import Asked, failure_of, work_on
from harness.grids.notes import Note, read_notes
from harness.grids.plans import code_at_start, code_on_disk
from harness.grids.status import TO_DO, Status
from harness.grids.view import View
from harness.jobs import THREAD_VARIABLES, THREADS
from harness.settings import Launcher

if TYPE_CHECKING:
    from harness.grids.verb import Command

DIED = "its process died, alone on the machine too: out of memory, or ended from outside; the sweep's log may say more"


def run_sweep(command: "Command", grid: Grid, status_now: Callable[[], Status]) -> None:
    """Work on all that is to do; by Hydra's launcher or, with jobs=0, in this process.

    A process that dies takes joblib's others with it. Then what is left is launched again, as long as rows or stages
    get done. Once none does, one row runs at a time; if one dies so, it is stored as failed and the others go on.
    """
    status = status_now()
    sweep = _folder(command, grid)
    mark = sweep / "begun"
    mark.touch()
    begun = mark.stat().st_mtime  # as the file system has it
    with View(grid, status, command.store(grid), command.runs, command.results, sweep, max(command.jobs, 1)) as view:
        if command.jobs == 0:
            _in_this_process(command, grid, status, sweep, begun, view)
            return
        alone = command.jobs == 1
        while status.rows(TO_DO):
            left = _left(status, command.runs)
            _launch(command, grid, status, view.sweep, begun, 1 if alone else command.jobs, view)
            status = status_now()
            died = read_notes(view.sweep)  # who ends takes its note away
            if not died or not status.rows(TO_DO) or not _is_launched_again(command):
                return
            if _left(status, command.runs) != left:
                alone = command.jobs == 1
            elif not alone:
                alone = True
            elif _record(command, grid, status, died):
                status = status_now()
                view.look(last=True)
            else:
                return
            view.sweep = _folder(command, grid)


def _left(status: Status, runs: Path) -> tuple[int, int]:
    """How many rows and stages are to do."""
    rows = status.rows(TO_DO)
    return len(rows), len(unfinished(rows, runs))


def _is_launched_again(command: "Command") -> bool:
    """Not on a cluster, which has its own rules for what dies; nor with code of which a launch would do nothing."""
    return command.settings.launcher is Launcher.joblib and code_on_disk() == code_at_start()


def _record(command: "Command", grid: Grid, status: Status, died: Sequence[Note]) -> int:
    """Store as failed the rows whose process died; how many."""
    content = {(row.cell, row.base_seed): row.content_hash for row in status.rows(TO_DO)}
    at_work = {(note.cell, note.base_seed): note for note in died if (note.cell, note.base_seed) in content}
    for key, note in at_work.items():
        stage = note.stage.rpartition("-")[0] or "plan"
        command.store(grid).fail(failure_of(*key, content[key], stage, DIED))
    return len(at_work)


def _folder(command: "Command", grid: Grid) -> Path:
    """A new folder for a launch."""
    when = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    (command.runs / "sweeps").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{grid.name}-{when}-", dir=command.runs / "sweeps"))
    folder.chmod(0o755)  # mkdtemp makes it private
    return folder


def _launch(command: "Command", grid: Grid, status: Status, sweep: Path, begun: float, jobs: int, view: View) -> None:
    """Run the Hydra app to its end, whatever that is."""
    with _launched(_arguments(command, grid, status, sweep, begun, jobs), sweep / "log.txt") as is_running:
        while is_running():
            view.look()
            time.sleep(0.5)
        view.look(last=True)


def _in_this_process(command: "Command", grid: Grid, status: Status, sweep: Path, begun: float, view: View) -> None:
    """For a debugger: one row after the other."""
    asked = Asked(
        grid=grid.name,
        scale=command.settings.scale.name,
        seed=command.settings.seed,
        typed=command.typed,
        suite=command.suite,
        runs=command.runs,
        results=command.results,
        sweep=sweep,
        begun=begun,
        code=code_at_start(),
    )
    for row in status.rows(TO_DO):
        work_on(asked, row.cell, row.base_seed)
        view.look(last=True)


def _arguments(command: "Command", grid: Grid, status: Status, sweep: Path, begun: float, jobs: int) -> list[str]:
    """The Hydra app's command line: a multirun over what is to do."""
    to_do = status.rows(TO_DO)
    cells = dict.fromkeys(row.cell for row in to_do)
    base_seeds = sorted({row.base_seed for row in to_do})
    wanted = {(row.cell, row.base_seed) for row in to_do}
    skip = [f"{cell}/{seed}" for cell in cells for seed in base_seeds if (cell, seed) not in wanted]
    # Cells vary slowest: a cell's base seeds run side by side, and with them the bases that everything waits for.
    return [
        "--multirun",
        f"grid={quoted(grid.name)}",
        f"cell={','.join(map(quoted, cells))}",
        f"base_seed={','.join(map(str, base_seeds))}",
        f"skip={_list(skip)}",
        f"settings={_list(command.typed)}",
        f"suite={'null' if command.suite is None else quoted(str(command.suite))}",
        f"runs_dir={quoted(str(command.runs))}",
        f"results_dir={quoted(str(command.results))}",
        f"folder={quoted(str(sweep))}",
        f"begun={begun!r}",
        f"code={quoted(code_at_start())}",
        *launcher_arguments(command.settings, jobs),
    ]


def launcher_arguments(settings: DictConfig, jobs: int) -> list[str]:
    """What chooses and sets up the launcher."""
    launcher = settings.launcher
    chosen = [f"hydra/launcher=sweep_{launcher.name}"]
    if launcher is Launcher.joblib:
        return [*chosen, f"hydra.launcher.n_jobs={jobs}"]
    if launcher is Launcher.submitit_local:
        return [*chosen, f"hydra.sweeper.max_batch_size={jobs}"]
    partition = "null" if settings.partition is None else quoted(settings.partition)
    return [
        *chosen,
        f"hydra.launcher.partition={partition}",
        f"hydra.launcher.timeout_min={settings.minutes}",
        f"hydra.launcher.mem_gb={settings.gigabytes}",
        f"hydra.launcher.gpus_per_node={settings.gpus}",
    ]


def quoted(text: str) -> str:
    """A text as Hydra's command line takes it, whatever is in it."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)  # backslashes count before a quote alone
    return "'" + re.sub(r"\\+$", lambda found: found[0] * 2, escaped) + "'"


def _list(texts: Sequence[str]) -> str:
    return f"[{','.join(map(quoted, texts))}]"


@contextmanager
def _launched(arguments: list[str], log: Path) -> Iterator[Callable[[], bool]]:
    """The Hydra app in a process of its own, ended on the way out; yields whether it still runs."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(THREADS)), VARIABLE: "1"}
    command = [sys.executable, "-m", "harness.grids.sweep", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
        try:
            yield lambda: process.poll() is None
        finally:
            if process.poll() is None:
                end_children()
            process.stdin.close()
            process.wait()
