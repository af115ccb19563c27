"""From a grid's cell to its settings, its stages, and its finished row.

A cell's settings are the grid's `together`, then what was typed for all cells, then the cell's own; of two about the
same key the later one stays. `architecture=`, `frames=` and `control=` say which row of a table it is, everything
else is that table's settings: a cell is a table of one row.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from harness.compose import CONF, compose, group_choices, own_groups
from harness.errors import UserError
from harness.grids.grid import Grid

if TYPE_CHECKING:
    import pandas as pd

    from harness.rows import Row
    from harness.stages import Attempt, Stage

ROW_KEYS = ("architecture", "frames", "control")
TABLE = "ablations"


def key_of(override: str) -> str:
    """The key of "KEY=VALUE"."""
    return override.partition("=")[0]


def group_of(override: str) -> str:
    """The group or setting that an override such as `gate.bias=0` is about."""
    return key_of(override).partition(".")[0]


def settings_of(grid: Grid, name: str, typed: Sequence[str] = ()) -> list[str]:
    """The settings of a cell as KEY=VALUE; of those `typed`, the ones that its architecture leaves open.

    UserError for one of the grid's own that the cell's architecture fixes.
    """
    own = grid.cells[name].set
    architecture = architecture_of([*grid.together, *typed, *own])
    fixed = own_groups(architecture)
    for text in (*grid.together, *own):
        if group_of(text) in fixed:
            what = f"{text} changes nothing: {group_of(text)} is fixed in {architecture}; leave it out"
            raise UserError(f"{where(grid, name)}: {what}")
    open_ = [text for text in typed if group_of(text) not in fixed]
    return list({key_of(text): text for text in (*grid.together, *open_, *own)}.values())


def architecture_of(overrides: Iterable[str]) -> str:
    """The architecture that overrides choose, the last one that is typed, or the usual one."""
    *_, name = [
        _usual_architecture(),
        *(text.partition("=")[2] for text in overrides if key_of(text) == "architecture"),
    ]
    if name not in group_choices()["architecture"]:
        compose([f"architecture={name}"])  # says what there is
    return name


@functools.cache
def _usual_architecture() -> str:
    chosen = (entry.get("architecture") for entry in OmegaConf.load(CONF / "groups.yaml").defaults)
    return next(name for name in chosen if name is not None)


def where(grid: Grid, name: str) -> str:
    """How an error's sentence begins."""
    return f"grid {grid.name}, cell {name}"


def composed(grid: Grid, name: str, typed: Sequence[str] = ()) -> DictConfig:
    """A cell's composed settings; UserError that names the cell."""
    texts = settings_of(grid, name, typed)
    try:
        return compose(texts)
    except UserError as error:
        raise UserError(f"{where(grid, name)}: {error}") from error


def check_settings(grid: Grid, typed: Sequence[str] = ()) -> None:
    """UserError for a cell with what is no setting, or for a typed setting that no cell takes."""
    for name in grid.cells:
        composed(grid, name, typed)
    check_typed(grid, typed)


def check_typed(grid: Grid, typed: Sequence[str]) -> None:
    """UserError for a typed setting that no cell takes."""
    taken = {text for name in grid.cells for text in settings_of(grid, name, typed)}
    for text in typed:
        if text not in taken:
            raise UserError(
                f"{text} changes no cell of the grid {grid.name}: each sets {key_of(text)} itself; leave it out"
            )


class CellPlan:
    """A cell as a table of one row: its stages, and its row once they are finished. Needs torch.

    suite: the folder of the suite that the cell is scored on; None: there is none yet, and this is a plan only.
    """

    def __init__(self, grid: Grid, name: str, typed: Sequence[str], suite: Path | None):
        from harness.grids.suites import parameters_of
        from harness.table import Cell, Plan  # torch: seconds

        self.grid, self.name = grid, name
        self.settings = composed(grid, name, typed)
        texts = [text for text in settings_of(grid, name, typed) if key_of(text) not in ROW_KEYS]
        self.cell = Cell(self.settings.architecture.name, self.settings.frames)
        self.control = self.settings.control.name
        try:
            self.plan = Plan(self.settings, texts, [self.cell])
        except UserError as error:
            raise UserError(f"{where(grid, name)}: {error}") from error
        if suite is None:
            # Cells of different suites must not share an evaluation.
            self.plan.suite_state = f"none yet: {json.dumps(parameters_of(self.settings), sort_keys=True)}"
        else:
            self.plan = self.plan.on(suite)

    def stages(self, base_seed: int) -> "list[Stage]":
        """What the row of one base seed needs, and nothing else: no latency, for cells run side by side."""
        from harness.table import model_name

        training = self.plan.needed_by([model_name(self.cell, base_seed)])
        scores = self.plan.scores(self.cell, base_seed, self.control)
        return [*training, scores, self.plan.cost(self.cell.architecture)]

    def content_hash(self, attempts: "Mapping[str, Attempt]", base_seed: int) -> str:
        """What the row depends on: its evaluation, and the count of its FLOPs."""
        return content_hash(*(attempts[name].key for name in self.result_names(base_seed)))

    def result_names(self, base_seed: int) -> tuple[str, str]:
        """The stages whose results the row holds: scores, cost."""
        from harness.table import scores_name

        return scores_name(self.cell, base_seed, self.control), f"cost-{self.cell.architecture}"

    def flop(self, stage: "Stage") -> float:
        """FLOP that one of its stages is expected to take."""
        from harness.grids.flops import flop_of

        return flop_of(self.plan, stage)

    def prefill_tflop_7b(self) -> float:
        """LLM prefill of one video at 7B, TFLOP."""
        from harness.grids.flops import prefill_tflop_7b

        return prefill_tflop_7b(self.plan.cost(self.cell.architecture))

    def row(self, attempts: "Mapping[str, Attempt]", base_seed: int) -> "tuple[Row, pd.DataFrame]":
        """The row of finished stages, and its samples."""
        folders = {name: attempt.final for name, attempt in attempts.items()}
        row, evaluation = self.plan.row(
            folders,
            self.cell,
            base_seed,
            TABLE,
            self.control,
            grid=self.grid.name,
            cell=self.name,
            overrides=self.grid.cells[self.name].set,
            content_hash=self.content_hash(attempts, base_seed),
        )
        return row, evaluation.samples


def content_hash(*keys: str) -> str:
    """One hash of several."""
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:12]
