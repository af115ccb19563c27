"""Which checkpoints of a run are whole, and whether this run can go on from one."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from harness.errors import UserError
from harness.paths import write_text

MARK = "whole.json"  # written last, when every process has written its share
PATIENCE_S = 24 * 3600.0  # how long others wait for the first process's preparations
GLANCE_S = 0.2


def mark_whole(checkpoint: Path, processes: int, stage: int, conversations: int) -> None:
    """Says of a checkpoint that all of it is there, how it is sharded, and how many conversations are learned from."""
    told = {"processes": processes, "zero": stage, "conversations": conversations}
    write_text(checkpoint / MARK, json.dumps(told))


def last_whole(work: Path, processes: int, stage: int, conversations: int) -> Path | None:
    """The newest whole checkpoint of a run.

    Raises UserError for one that was written by another number of processes, at another stage of ZeRO, or of another
    number of conversations: its shards do not fit, or the same step would see other data.
    """
    for checkpoint in newest_first(work):
        mark = checkpoint / MARK
        if not mark.is_file():
            continue
        written = json.loads(mark.read_text())
        if (written["zero"], written["processes"]) != (stage, processes):
            raise UserError(
                f"{checkpoint} was written by {written['processes']} processes with zero stage {written['zero']}, this "
                f"run has {processes} and {stage}: launch it as it was, or remove the folder {work} to begin anew"
            )
        if written.get("conversations", conversations) != conversations:
            raise UserError(
                f"{checkpoint} was written when the annotations had {written['conversations']} conversations, now they "
                f"have {conversations}, in another order: restore them, or remove the folder {work} to begin anew"
            )
        return checkpoint
    return None


def remove_torn(work: Path) -> None:
    """Removes what a kill left half written: only one process of a run may do this, before the others look."""
    for checkpoint in newest_first(work):
        if not (checkpoint / MARK).is_file():
            shutil.rmtree(checkpoint)


def newest_first(work: Path) -> list[Path]:
    """The folders of checkpoints, by their step."""
    return sorted(work.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True)


def wait_for(done: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Returns once something that the first process does is done; UserError if it does not come."""
    end = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > end:
            raise UserError(f"{what} did not come in {patience_s / 3600:g} hours: see what the first process says")
        time.sleep(GLANCE_S)
