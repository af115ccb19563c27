"""Where a number comes from: the harness's commit, the versions of what it stands on, the machine."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "lmms-eval", "av", "numpy", "datasets")
"""Packages that can move a number: model, answers, decoded frames, questions."""


WRITTEN = ("results", "ablations/README.md")  # tracked files that are no code


@dataclass(frozen=True)
class Provenance:
    code_commit: str | None
    code_dirty: bool | None
    versions: dict[str, str]
    device: str

    def fields(self) -> dict[str, Any]:
        """The four as fields of a row."""
        return asdict(self)


def provenance(source: Path = Path(__file__)) -> Provenance:
    """Commit of the checkout that tracks `source` (null if none does), versions, and this machine."""
    commit, dirty = code_state(source)
    return Provenance(commit, dirty, library_versions(), processor())


def library_versions() -> dict[str, str]:
    """Version of Python and of `PACKAGES`, by name."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def code_state(source: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it); (None, None) if git is absent or does not track it.

    What runs and reports write is no difference: a sweep that puts its first row would make the second one dirty.
    """
    try:
        if not _git(source, "ls-files", "--error-unmatch", source.name):
            return None, None
        commit = _git(source, "rev-parse", "HEAD")
    except FileNotFoundError:  # no git on this machine
        return None, None
    if commit is None:  # tracked, and nothing committed yet
        return None, None
    code = [":/", *(f":(top,exclude){path}" for path in WRITTEN)]
    return commit, bool(_git(source, "status", "--porcelain", "--untracked-files=no", "--", *code))


def processor() -> str:
    """Name of the processor, cores this process may use, memory: "AMD EPYC 7B13, 2 cores, 16 GiB"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = round(psutil.virtual_memory().total / 2**30)
    return f"{_processor_name()}, {cores} core{'s' if cores != 1 else ''}, {memory} GiB"


def _processor_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(source: Path, *arguments: str) -> str | None:
    """What git prints, or None where it answers with an error (not a checkout, not tracked, no commit)."""
    answer = subprocess.run(["git", *arguments], cwd=source.parent, capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None
