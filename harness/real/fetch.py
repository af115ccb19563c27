"""Bring benchmarks to a data root: download their repositories, unpack the videos; both go on where they stopped.

Nothing here reaches the network unless `online` is true. Without it, what has been downloaded is unpacked, and what
has not is named. `source` is a folder that stands for the hub: SOURCE/<org>/<name>/ for each repository.
"""

import errno
import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from harness.benchmarks import benchmark_named
from harness.errors import UserError
from harness.progress import SILENT, Progress
from harness.real import archives
from harness.real.catalogue import Repository, repositories_of
from harness.real.tables import table_files

MODELS = "models"  # below a data root: checkpoints, in folders named as their repositories
UNAUTHORIZED, FORBIDDEN = 401, 403  # HTTP's words for a token that is not taken, or may not do this
SPARE = 1.02  # of the bytes that are asked for: file systems take some for themselves


def fetch(
    data: Path,
    benchmarks: Sequence[str],
    online: bool = False,
    source: Path | None = None,
    progress: Progress = SILENT,
) -> None:
    """Make a data root hold the tables and videos of these benchmarks.

    Every repository is checked for disk before its first byte comes. UserError for a full disk, for conditions that
    were not accepted, for a hub that cannot be reached, and, offline, for what is not there.
    """
    wanted = repositories_of(benchmarks)
    for repository in wanted:
        folder = Path(data) / "hub" / repository.name
        if source is not None:
            _copy(Path(source) / repository.name, folder, repository)
        elif online:
            _download(repository, folder)
    for name in benchmarks:
        benchmark = benchmark_named(name)
        for task in benchmark.tasks:
            table_files(Path(data), benchmark, task)  # before hours of unpacking
    for repository in wanted:
        unpack(Path(data), repository, progress)


def unpack(data: Path, repository: Repository, progress: Progress = SILENT) -> None:
    """Bring a repository's videos below DATA/home, where the packaged tasks look for them."""
    folder, home = data / "hub" / repository.name, data / "home" / repository.home
    for archive in archives.find_archives(folder, repository.archives, repository.left_out):
        archives.unpack(archive, home, progress)
    for name in repository.folders:
        _link(folder / name, home / name)


def fetch_checkpoint(data: Path, name: str, online: bool = False) -> Path:
    """The checkpoint `name` of the hub at DATA/models/<org>/<name>, downloaded as far as it is not there.

    UserError offline, if it is not there at all.
    """
    folder = Path(data) / MODELS / name
    if online:
        _snapshot(name, folder, "model", ["*.bin", "*.pt", "*.pth"], None)
    elif not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is no checkpoint; fetch it: python -m harness fetch data={data} models=[NAME] online=true"
        )
    return folder


def _download(repository: Repository, folder: Path) -> None:
    _snapshot(repository.name, folder, "dataset", [*repository.left_out], repository.revision)


def _snapshot(name: str, folder: Path, kind: str, left_out: list[str], revision: str | None) -> None:
    """A repository's files in `folder`; what is there already is not downloaded again."""
    from huggingface_hub import constants, snapshot_download

    # HTTPError is that of the library which this version of the hub's client speaks HTTP with, httpx or httpx2.
    from huggingface_hub.errors import GatedRepoError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    if constants.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be downloaded: run it again without that variable")
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    options = {"repo_type": kind, "revision": revision, "local_dir": folder, "ignore_patterns": left_out or None}
    try:
        planned = snapshot_download(name, dry_run=True, **options)
        expect_room(sum(file.file_size for file in planned if file.will_download), folder, name)
        snapshot_download(name, **options)
    except GatedRepoError as error:
        raise UserError(
            f"{name} is only for those who accepted its conditions: open {page}, accept them, and log in here with "
            "`hf auth login` (or set HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no {kind} {name}, or this token may not see it: look at {page}") from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        if status_of(error) == UNAUTHORIZED:
            raise UserError(
                f"{name} could not be downloaded: the hub takes this machine's token for invalid or expired; log in "
                "anew: `hf auth login --force` (or set HF_TOKEN)"
            ) from error
        if status_of(error) == FORBIDDEN:
            raise UserError(
                f"{name} could not be downloaded: the hub forbids it to this machine's token; open {page}, accept its "
                "conditions, and give the token the right to read gated repositories (huggingface.co/settings/tokens)"
            ) from error
        raise UserError(
            f"{name} could not be downloaded ({type(error).__name__}); the same command goes on where it stopped"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"{name} could not be downloaded: the disk of {folder} is full; make room, and the same command goes on "
            "where it stopped"
        ) from error


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of the hub's client tells of; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def expect_room(needed: int, folder: Path, what: str) -> None:
    """UserError unless the disk that `folder` is on, or will be, has `needed` bytes."""
    free = free_bytes(folder)
    if needed * SPARE > free:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on the disk of {folder}: make room, "
            "or put the data root on another disk (data=FOLDER)"
        )


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is or, not being there yet, will be."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _copy(source: Path, folder: Path, repository: Repository) -> None:
    """The files of a folder that stands for the hub's repository, as far as they are not there in full."""
    if not source.is_dir():
        raise UserError(f"source={source.parent.parent}: it has no folder {repository.name}")
    names = [file.relative_to(source) for file in sorted(source.rglob("*")) if file.is_file()]
    names = [name for name in names if not any(fnmatch(name.as_posix(), pattern) for pattern in repository.left_out)]
    lacking = [name for name in names if not _same_size(source / name, folder / name)]
    expect_room(sum((source / name).stat().st_size for name in lacking), folder, repository.name)
    for name in lacking:
        half = (folder / name).with_name(f".{name.name}.half")
        half.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, half)
        half.replace(folder / name)


def _same_size(one: Path, other: Path) -> bool:
    return other.is_file() and other.stat().st_size == one.stat().st_size


def _link(folder: Path, link: Path) -> None:
    """A relative link to a folder of videos, or nothing where there are videos already.

    The folder around it is a real one: lmms-eval takes a link there for its own and asks the hub for it.
    """
    if link.exists() or not folder.is_dir():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # a link to what is gone
    link.symlink_to(os.path.relpath(folder.resolve(), link.parent.resolve()), target_is_directory=True)
