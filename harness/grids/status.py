"""Which of a grid's rows are done, which failed, which are to do; and which stored ones are of other content."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.grids.estimate import SCORES, SCORING
from harness.grids.plans import Planned
from harness.row_store import RowStore
from harness.rows import Row
from harness.stages import DESCRIPTION

DONE, FAILED, TO_DO = "done", "failed", "to do"


@dataclass(frozen=True)
class Status:
    """The rows of a grid, each in one of the three states, in the grid's order."""

    planned: list[Planned]
    states: dict[tuple[str, int], str]

    def of(self, row: Planned) -> str:
        """The state of a row."""
        return self.states[row.cell, row.base_seed]

    def rows(self, state: str) -> list[Planned]:
        """The rows in a state."""
        return [row for row in self.planned if self.of(row) == state]


def status_of(planned: Iterable[Planned], store: RowStore, runs: Path, committed: bool = False) -> Status:
    """What the files say.

    A row is done if it is stored with this content and its samples; it failed if it did with this content.
    committed: its stages or not, for someone else computed it. Otherwise its stages must be there as well, and it
    must tell of them: equal content on another processor rounds differently, and training ends elsewhere.
    """
    planned = list(planned)
    stored = {(row.cell, row.base_seed): row for row in store.rows() if (store.folder / row.samples).is_file()}
    failed = {(failure.cell, failure.base_seed): failure.content_hash for failure in store.failures()}
    states = {}
    for row in planned:
        key = (row.cell, row.base_seed)
        found = stored.get(key)
        there = found is not None and found.content_hash == row.content_hash
        if there and (committed or (not row.unfinished(runs) and tells_of(found, row, runs))):
            states[key] = DONE
        else:
            states[key] = FAILED if failed.get(key) in ("", row.content_hash) else TO_DO
    return Status(planned, states)


def tells_of(stored: Row, planned: Planned, runs: Path) -> bool:
    """Whether a stored row has the scores, and is of the device, that finished stages in `runs` have."""
    for stage in planned.stages:
        if stage.function == SCORING:
            try:
                scores = json.loads((runs / stage.folder / SCORES).read_text(encoding="utf-8"))["scores"]
                made_by = json.loads((runs / stage.folder / DESCRIPTION).read_text(encoding="utf-8"))["made_by"]
            except (FileNotFoundError, KeyError, json.JSONDecodeError):  # made of them again, it says what is wrong
                return False
            if (stored.scores, stored.device) != (scores, made_by["device"]):
                return False
    return True


def name_of(row: Planned) -> str:
    """A row's name in sentences and tables: cell/base seed."""
    return f"{row.cell}/{row.base_seed}"
