"""What a grid's rows take, as plain facts: their content hashes, their stages, what is known of each.

Finding them out takes torch and about a second a cell. They are a function of the code, the configuration and the
suite's state, so they are remembered under RUNS/sweeps/plans by a hash of these files' bytes: asking again whether a
grid is finished takes neither. A changed comment is found out anew, with the same outcome (see harness/stages.py).
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import harness
from harness.errors import UserError
from harness.grids import cells
from harness.grids.cells import composed, settings_of, where
from harness.grids.grid import Grid
from harness.grids.suites import made_suite, parameters_of, world_in
from harness.mini.suite import suite_state
from harness.mini.world import World
from harness.paths import write_text
from harness.provenance import library_versions
from harness.stages import resolve

PACKAGES = ("harness", "architectures")
ASIDE = Path("harness") / "reports"  # reads rows and makes none: who edits it need not stop a sweep


@dataclass(frozen=True)
class StageFacts:
    """What is known of a stage before it runs.

    Attributes:
        folder: its finished folder's name, under RUNS.
        function, kwargs: what runs; kwargs flat, "recipe.steps" -> 320.
        weight: expected seconds, where nothing is recorded.
        flop: expected operations, see harness/grids/flops.py.
        needs: folder names of the stages it needs.
    """

    folder: str
    function: str
    kwargs: Mapping[str, Any]
    weight: float
    flop: float
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """One row to be: a cell and a base seed. `has_suite`: whether the suite that it is scored on is there."""

    cell: str
    base_seed: int
    content_hash: str
    stages: tuple[StageFacts, ...]
    prefill_tflop_7b: float
    suite: Mapping[str, Any]
    has_suite: bool

    def unfinished(self, runs: Path) -> list[StageFacts]:
        """Its stages whose folder is not there yet."""
        return [stage for stage in self.stages if not (runs / stage.folder).is_dir()]


@dataclass(frozen=True)
class Planner:
    """Plans rows for settings that were typed, KEY=VALUE; `suite` is the folder of one, None: each cell's own."""

    runs: Path
    typed: tuple[str, ...] = ()
    suite: Path | None = None
    states: dict[Path, str] = field(default_factory=dict)  # of suites, read once: they have hundreds of files

    def rows(self, grid: Grid, base_seeds: tuple[int, ...]) -> list[Planned]:
        """Every (cell, base seed), cell by cell. UserError for a cell that cannot be."""
        return [row for name in grid.cells for row in self.cell(grid, name, base_seeds)]

    def cell(self, grid: Grid, name: str, base_seeds: tuple[int, ...]) -> list[Planned]:
        """A cell's rows."""
        texts = settings_of(grid, name, self.typed)
        parameters = self._suite_of(grid, name)
        self._expect_world(grid, name, parameters["world"])
        suite = self.suite or made_suite(parameters)
        depends_on = {"settings": texts, "suite": self._state(suite), "base_seeds": base_seeds}
        found = self._remembered(depends_on, lambda: _found_out(grid, name, self.typed, suite, base_seeds))
        return [
            Planned(
                cell=name,
                base_seed=base_seed,
                content_hash=facts["content_hash"],
                stages=tuple(StageFacts(**{**stage, "needs": tuple(stage["needs"])}) for stage in facts["stages"]),
                prefill_tflop_7b=facts["prefill_tflop_7b"],
                suite=parameters,
                has_suite=suite is not None,
            )
            for base_seed, facts in zip(base_seeds, found, strict=True)
        ]

    def has_suite(self, grid: Grid, name: str) -> bool:
        """Whether the suite that a cell is scored on is there."""
        return self.suite is not None or made_suite(self._suite_of(grid, name)) is not None

    def _suite_of(self, grid: Grid, name: str) -> dict[str, Any]:
        """The parameters of a cell's suite."""
        depends_on = {"suite of": settings_of(grid, name, self.typed)}
        return self._remembered(depends_on, lambda: parameters_of(composed(grid, name, self.typed)))

    def _expect_world(self, grid: Grid, name: str, world: Mapping[str, Any]) -> None:
        """UserError if the suite that was typed is of another world than the cell is evaluated in."""
        if self.suite is None:
            return
        its, wanted = world_in(self.suite), World.of(world)
        if its != wanted:
            raise UserError(
                f"{where(grid, name)}: suite={self.suite} shows {_in_words(its)}, but the cell is evaluated on "
                f"{_in_words(wanted)}; leave suite= out, and every cell gets its own"
            )

    def _state(self, suite: Path | None) -> str | None:
        if suite is None:
            return None
        if suite not in self.states:
            self.states[suite] = suite_state(suite)
        return self.states[suite]

    def _remembered(self, depends_on: Mapping[str, Any], find_out: Callable[[], Any]) -> Any:
        key = hashlib.sha256(json.dumps([code_at_start(), depends_on], sort_keys=True).encode()).hexdigest()[:24]
        path = self.runs / "sweeps" / "plans" / f"{key}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        found = json.loads(json.dumps(find_out()))  # as it will be read
        if code_on_disk() == code_at_start():  # else it may be true of other code
            write_text(path, json.dumps(found))
        return found


@functools.cache
def code_at_start() -> str:
    """`code_on_disk` as it was when this process first asked."""
    return code_on_disk()


def code_on_disk() -> str:
    """A hash of every byte of code and configuration but the reports', and of the versions that stages depend on."""
    digest = hashlib.sha256(json.dumps(library_versions(), sort_keys=True).encode())
    root = Path(harness.__file__).resolve().parent.parent
    for package in PACKAGES:
        for file in sorted(path for path in (root / package).rglob("*") if path.suffix in (".py", ".yaml")):
            if not file.is_relative_to(root / ASIDE):
                digest.update(f"{file.relative_to(root)}\n".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _found_out(
    grid: Grid, name: str, typed: tuple[str, ...], suite: Path | None, base_seeds: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Each base seed's facts, found by planning the cell."""
    plan = cells.CellPlan(grid, name, typed, suite)
    found = []
    for base_seed in base_seeds:
        attempts = resolve(plan.stages(base_seed), Path())
        stages = [
            StageFacts(
                folder=attempt.final.name,
                function=attempt.stage.function,
                kwargs=dict(flat(attempt.stage.kwargs)),
                weight=attempt.stage.weight,
                flop=plan.flop(attempt.stage),
                needs=tuple(folder.name for folder in attempt.folders.values()),
            )
            for attempt in attempts.values()
        ]
        facts = {"content_hash": plan.content_hash(attempts, base_seed), "stages": [asdict(stage) for stage in stages]}
        found.append({**facts, "prefill_tflop_7b": plan.prefill_tflop_7b()})
    return found


def _in_words(world: World) -> str:
    dwell = "flashes of one or two frames" if world.dwell is None else "flashes of {} to {} frames".format(*world.dwell)
    return f"{dwell} and {world.distractors} distractors"


def flat(kwargs: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Nested mappings with dotted keys; what is in lists stays."""
    items: list[tuple[str, Any]] = []
    for key, value in kwargs.items():
        items += flat(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", value)]
    return items
