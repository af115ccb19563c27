"""Where things live: generated suites in the user's cache, what is trained or measured under `runs_dir`."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from harness.errors import UserError

CACHE_VARIABLE = "SLOWFAST_HARNESS_CACHE"


def cache_dir() -> Path:
    """The folder of generated, content-addressed data: $SLOWFAST_HARNESS_CACHE or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    folder = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("slowfast-harness")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A temporary folder beside `final`, renamed to it when the block succeeds, removed when it fails.

    So a folder at `final` is always complete. If another process finished the same folder first, theirs is
    kept: use this for content-addressed folders only.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        work.chmod(0o755)  # mkdtemp makes it private; a finished folder is an ordinary one
        yield work
        try:
            work.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of it; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    work = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        work.chmod(0o644)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def expect_writable(file: Path) -> None:
    """UserError unless a file of that name can be written; makes its folder. Before minutes of work, not after them."""
    if file.is_dir():
        raise UserError(f"output={file}: it is a folder; name a CSV file in it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise UserError(
            f"nothing can be written to the folder {file.parent} ({error.strerror}); name another by output= or "
            "results_dir="
        ) from error
