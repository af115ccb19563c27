"""Which of a grid's rows are done, which failed, which are to do; and which stored ones are of other content."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.grids.plans import Planned
from harness.row_store import RowStore

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
    committed: its stages or not, for someone else computed it. Otherwise its stages must be there as well.
    """
    planned = list(planned)
    stored = {
        (row.cell, row.base_seed): row.content_hash for row in store.rows() if (store.folder / row.samples).is_file()
    }
    failed = {(failure.cell, failure.base_seed): failure.content_hash for failure in store.failures()}
    states = {}
    for row in planned:
        key = (row.cell, row.base_seed)
        if stored.get(key) == row.content_hash and (committed or not row.unfinished(runs)):
            states[key] = DONE
        else:
            states[key] = FAILED if failed.get(key) in ("", row.content_hash) else TO_DO
    return Status(planned, states)


def name_of(row: Planned) -> str:
    """A row's name in sentences and tables: cell/base seed."""
    return f"{row.cell}/{row.base_seed}"
