"""A grid whose stages take no time and need no torch: everything of a sweep is real but what a stage computes.

    python -m fake_grids RESULTS [KEY=VALUE ...]    one sweep of it, all in this process (PYTHONPATH must have tests/)

Each stage notes its call in RUNS/calls, a line each, so that a test can count. A stage called `broken` fails while
RUNS/broken is there; for a stage of any NAME, RUNS/hold-NAME makes it wait, RUNS/fail-NAME makes it fail, and
RUNS/kill-NAME kills its process.
"""

import copy
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig
from synthetic_rows import answers, evaluation, questions, row

from harness.compose import compose
from harness.errors import UserError
from harness.grids import cells, verb
from harness.grids.cells import content_hash, settings_of
from harness.grids.grid import Grid
from harness.progress import Progress
from harness.row_store import RowStore
from harness.settings import ABLATE, MAIN, Root
from harness.stages import Attempt, Stage

SHAPE = {"mlvu": (9, 1), "egoschema": (6, 1), "videomme": (4, 1), "mvbench": (20, 1), "longvideobench": (17, 1)}
COST = {"fast_tokens": 64, "slow_tokens": 512, "prefill_mflop_mini": 80, "prefill_tflop_7b": 20, "model_tflop_7b": 277}
HERE = __name__ if __name__ != "__main__" else "fake_grids"
FOLDERS = ("grids_dir=", "results_dir=", "runs_dir=", "suite=")
GRID = """
order: 7
question: Does the sweep work?
paper: nothing
cost: nothing
time: no time
reference: one
together: [frames=16]
cells:
  one: []
  two+: [gate=none]
  three@3: [gate=sigmoid, gate.bias=1]
"""


def note(out: Path, progress: Progress, name: str, seconds: float = 0.0, **needs: Path) -> None:
    """The work of every stage: note the call, take some time, write what it stands on."""
    with (out.parent / "calls").open("a") as calls:
        calls.write(f"{name}\n")
    for _ in progress.track(range(10), "noting"):
        time.sleep(seconds / 10)
    while (out.parent / f"hold-{name}").exists():
        time.sleep(0.05)
    if (out.parent / f"kill-{name}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (out.parent / f"fail-{name}").exists():
        raise ZeroDivisionError(f"in the middle of {name}")
    if name.startswith("broken") and (out.parent / "broken").exists():
        raise ZeroDivisionError("in the middle of it")
    if name.startswith("refused") and (out.parent / "broken").exists():
        raise UserError("the clips are missing; build the suite first")
    (out / "result.json").write_text(json.dumps(sorted(folder.name for folder in needs.values())))
    (out / "scores.json").write_text(json.dumps({"n_samples": 10}))


class FakePlan:
    """Stands in for `cells.CellPlan`: shared <- base (per base seed) <- model <- scores, and a cost."""

    def __init__(self, grid: Grid, name: str, typed, suite: Path | None):
        self.grid, self.name = grid, name
        self.settings = dict(text.split("=") for text in settings_of(grid, name, typed))
        self.seconds = 0.05 * int(self.settings.get("workers", 0))

    def stages(self, base_seed: int) -> list[Stage]:
        kind = {"none": "broken", "sigmoid": "refused"}.get(self.settings.get("gate"), "model")
        note_, time_ = f"{HERE}:note", {"seconds": self.seconds}
        shaping = {key: value for key, value in self.settings.items() if key not in ("base_seeds", "workers")}
        own = {"name": f"{kind}{base_seed}", "settings": shaping}
        return [
            Stage("shared", note_, {"name": "shared"}, aside=time_),
            Stage(f"base{base_seed}", note_, {"name": f"base{base_seed}"}, {"shared": "shared"}, 30, aside=time_),
            Stage(f"model{base_seed}", f"{HERE}:model", own, {"base": f"base{base_seed}"}, 20, aside=time_),
            Stage("cost", note_, {"name": "cost", "seconds": 0}, weight=5),
        ]

    def result_names(self, base_seed: int) -> tuple[str, str]:
        return f"model{base_seed}", "cost"

    def content_hash(self, attempts: dict[str, Attempt], base_seed: int) -> str:
        return content_hash(*(attempts[name].key for name in self.result_names(base_seed)))

    def flop(self, stage: Stage) -> float:
        return 1e9

    def prefill_tflop_7b(self) -> float:
        return 20.0

    def row(self, attempts: dict[str, Attempt], base_seed: int):
        number = len(self.name) + base_seed
        measured = evaluation(answers(questions(SHAPE), 0.3 + 0.02 * number, seed=number))
        identity = {"grid": self.grid.name, "cell": self.name, "base_seed": base_seed, "table": cells.TABLE}
        made = row(
            SimpleNamespace(scores=measured.scores, samples=measured.samples),
            **identity,
            content_hash=self.content_hash(attempts, base_seed),
            overrides=self.grid.cells[self.name].set,
            cost=COST,
            timings={"adapt": 1.0, "evaluate": 2.0},
        )
        return made, measured.samples


def model(out: Path, progress: Progress, name: str, settings: dict, seconds: float, base: Path) -> None:
    """The stage of a row's own."""
    note(out, progress, name, seconds, base=base)


def fake_suite(folder: Path) -> Path:
    """A folder that passes for a suite."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    (folder / "suite.json").write_text(json.dumps({"fingerprint": "0" * 64, "parameters": {}}))
    return folder


def sweep(results: Path, *overrides: str, grid: str = GRID, name: str = "fake") -> None:
    """One sweep of the grid in this process; folders below `results`. Raises what the verb raises."""
    folder = results / "ablations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(grid)
    where = [
        f"grids_dir={folder}",
        f"results_dir={results}",
        f"runs_dir={results / 'runs'}",
        f"suite={fake_suite(results / 'suite')}",
    ]
    typed = ["grid=fake", "jobs=0", "workers=0", *where, *overrides]
    typed = list({text.partition("=")[0]: text for text in typed}.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "CellPlan", FakePlan)
        patch.setattr(cells, "compose", settings_of_cell)
        verb.ablate(settings_of_verb(typed), typed)


@functools.cache
def composed_once(root: Root, *texts: str) -> DictConfig:
    """What `compose` says, half a second each; most tests' cells are the same."""
    return compose(texts, root=root)


def settings_of_cell(texts: list[str]) -> DictConfig:
    """A cell's settings; the base seeds, of which it knows nothing, are left out."""
    return composed_once(MAIN, *(text for text in texts if not text.startswith("base_seeds=")))


def settings_of_verb(typed: list[str]) -> DictConfig:
    """The verb's settings; its folders, which each test has for itself, are filled in afterwards."""
    folders = dict(text.split("=", 1) for text in typed if text.startswith(FOLDERS))
    settings = copy.deepcopy(composed_once(ABLATE, *(text for text in typed if not text.startswith(FOLDERS))))
    settings.update(folders)
    return settings


def surroundings(site: Path) -> dict[str, str]:
    """The environment of processes that find these stages: of `python -m fake_grids`, and of what the verb launches.

    A launched sweep plans its cells itself; a sitecustomize.py in the folder `site` has every Python process take
    FakePlan for that.
    """
    site.mkdir(parents=True, exist_ok=True)
    taken = "import sys\ntold = ' '.join(sys.orig_argv)\nif 'harness.grids.sweep' in told or 'popen_loky' in told:\n"
    taken += "    from fake_grids import FakePlan\n    from harness.grids import cells\n    cells.CellPlan = FakePlan\n"
    guard = f"import runpy\nrunpy.run_path({str(Path(__file__).parent / 'no_network' / 'sitecustomize.py')!r})\n"
    (site / "sitecustomize.py").write_text(guard + taken)
    paths = [str(site), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


ROWS = [(cell, seed) for cell in ("one", "two+", "three@3") for seed in (0, 1)]
"""The rows of GRID, in the order in which they are stored."""


def store(results: Path) -> RowStore:
    """The grid's store."""
    return RowStore(results, "fake", "mini", 0)


def rows(results: Path) -> list[tuple[str, int]]:
    """Cell and base seed of the rows that are there."""
    return [(row.cell, row.base_seed) for row in store(results).rows()]


def calls(results: Path) -> list[str]:
    """The stages that were computed, in order."""
    path = results / "runs" / "calls"
    return path.read_text().split() if path.is_file() else []


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    sweep(Path(sys.argv[1]), *sys.argv[2:])
