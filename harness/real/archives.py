"""Archives unpacked: zip and tar, whole or in pieces, once, and never outside their folder.

Pieces (videos.tar.part.aa, .ab, ...; videos.zip.001, .002, ...) are read as one file without being joined on disk.
A member appears under its name only when it is complete, so that an interrupted run goes on where it stopped; a
finished archive leaves a stamp in FOLDER/.unpacked, and is not opened again while its files are there.
"""

import io
import json
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from harness.errors import UserError
from harness.paths import write_text
from harness.progress import SILENT, Progress

STAMPS = ".unpacked"
PIECE = re.compile(r"(?P<whole>.+\.(?:zip|tar))\.(?:part[.\-_]?)?(?P<number>[a-z]{2}|\d{2,3})$")
KINDS = (".zip", ".tar")
IGNORED = ("__MACOSX", ".DS_Store")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One archive: the name of the whole and the files it consists of, in order."""

    name: str
    pieces: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return sum(piece.stat().st_size for piece in self.pieces)


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    path: PurePosixPath
    bytes: int
    entry: zipfile.ZipInfo | tarfile.TarInfo


def find_archives(folder: Path, patterns: Sequence[str], left_out: Sequence[str] = ()) -> list[Archive]:
    """The archives in `folder` (not below it) that match a pattern and none of `left_out`, in order of name."""
    unwanted = {path for pattern in left_out for path in folder.glob(pattern)}
    files = {path for pattern in patterns for path in folder.glob(pattern)} - unwanted
    wholes: dict[str, list[Path]] = {}
    for file in sorted(files):
        piece = PIECE.fullmatch(file.name)
        wholes.setdefault(piece["whole"] if piece else file.name, []).append(file)
    return [Archive(name, tuple(pieces)) for name, pieces in sorted(wholes.items())]


def missing_members(archive: Archive, home: Path) -> list[str]:
    """The names of members that are not in `home` in full; reads the list of members, not their content."""
    stamped = _stamped(archive, home)
    if stamped is not None:
        return [name for name, size in stamped.items() if not _is_there(home / name, size)]
    with _opened(archive) as opened:
        return [str(m.path) for m in _members(archive, opened) if not _is_there(home / m.path, m.bytes)]


def changed(home: Path) -> set[Path]:
    """Files in `home` that have another size than the archive they came from; the archive itself may be gone."""
    stamps = [json.loads(path.read_text()) for path in sorted((home / STAMPS).glob("*.json"))]
    sizes = {home / name: size for stamp in stamps for name, size in stamp["files"].items()}
    return {file for file, size in sizes.items() if file.is_file() and not _is_there(file, size)}


def unpack(archive: Archive, home: Path, progress: Progress = SILENT) -> int:
    """Unpack what is not there in full; returns how many files were written.

    UserError for a damaged archive, for one that reaches outside `home`, and for a full disk.
    """
    if _stamped(archive, home) is not None and not missing_members(archive, home):
        return 0
    home.mkdir(parents=True, exist_ok=True)
    written = 0
    with _opened(archive) as opened:
        members = list(_members(archive, opened))
        _expect_room(archive, sum(m.bytes for m in members if not _is_there(home / m.path, m.bytes)), home)
        with progress.bar(f"unpack {archive.name}", total=len(members)) as bar:
            for member in members:
                if not _is_there(home / member.path, member.bytes):
                    _write(archive, opened, member, home / member.path)
                    written += 1
                bar.advance()
    stamp = {"bytes": archive.bytes, "files": {str(member.path): member.bytes for member in members}}
    write_text(_stamp(archive, home), json.dumps(stamp) + "\n")
    return written


def _stamp(archive: Archive, home: Path) -> Path:
    return home / STAMPS / f"{archive.name}.json"


def _stamped(archive: Archive, home: Path) -> dict[str, int] | None:
    """The files and sizes of an archive that was unpacked to its end; None if this very one was not."""
    path = _stamp(archive, home)
    stamp = json.loads(path.read_text()) if path.is_file() else {}
    return stamp["files"] if stamp.get("bytes") == archive.bytes else None


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _expect_room(archive: Archive, needed: int, home: Path) -> None:
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"{archive.name} needs {needed / 1e9:.1f} GB in {home}, where {free / 1e9:.1f} GB are free: make room, or "
            "put the data root on another disk (data=FOLDER)"
        )


@contextmanager
def _opened(archive: Archive) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """The archive, open; damage is a UserError wherever it shows."""
    if not archive.name.endswith(KINDS):
        raise UserError(f"{archive.pieces[0]} is no archive that is known here (one of {', '.join(KINDS)})")
    try:
        with _Joined(archive.pieces) as raw, io.BufferedReader(raw, CHUNK) as file, _reader(archive, file) as opened:
            yield opened
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(
            f"{' + '.join(str(piece) for piece in archive.pieces[:2])} is damaged or not complete ({error}): delete "
            "it and fetch it again"
        ) from error


def _reader(archive: Archive, file: IO[bytes]) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(file) if archive.name.endswith(".zip") else tarfile.open(fileobj=file, mode="r:")


def _members(archive: Archive, opened: zipfile.ZipFile | tarfile.TarFile) -> Iterator[Member]:
    """Every file of an archive; UserError for a name outside the folder, and for a link."""
    if isinstance(opened, zipfile.ZipFile):
        entries = [(e.filename, e.file_size, e, True) for e in opened.infolist() if not e.is_dir()]
    else:
        entries = [(e.name, e.size, e, e.isfile()) for e in opened.getmembers() if not e.isdir()]
    for name, size, entry, plain in entries:
        path = PurePosixPath(name)
        if path.parts and (path.parts[0] in IGNORED or path.name in IGNORED):
            continue
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise UserError(f"{archive.name} holds {name!r}, which would be written outside its folder: not unpacked")
        if not plain:
            raise UserError(f"{archive.name} holds {name!r}, which is a link or a device: not unpacked")
        yield Member(path, size, entry)


def _write(archive: Archive, opened: zipfile.ZipFile | tarfile.TarFile, member: Member, target: Path) -> None:
    """One member to a file: under another name first, so that what has the name is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.half")
    try:
        content = opened.open(member.entry) if archive.name.endswith(".zip") else opened.extractfile(member.entry)
        with content as source, half.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        if half.stat().st_size != member.bytes:
            raise UserError(f"{archive.name} ends within {member.path}: delete it and fetch it again")
        half.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): make room, or mend the folder") from error
    finally:
        half.unlink(missing_ok=True)


class _Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, pieces: Sequence[Path]) -> None:
        self.pieces = [piece.open("rb") for piece in pieces]
        self.sizes = [piece.stat().st_size for piece in pieces]
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: sum(self.sizes)}[whence]
        self.position = max(base + offset, 0)
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        start = 0
        for file, size in zip(self.pieces, self.sizes, strict=True):
            if start <= self.position < start + size:
                file.seek(self.position - start)
                read = file.readinto(memoryview(buffer)[: start + size - self.position])
                self.position += read
                return read
            start += size
        return 0

    def close(self) -> None:
        for file in self.pieces:
            file.close()
        super().close()
