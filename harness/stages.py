"""A stage: one resumable piece of work whose result is a folder named by everything that determined it.

A stage's function is called as `function(out=..., progress=..., **folders, **kwargs)`, where `folders` are
the finished folders of the stages it needs. It writes into `out`; when it returns, `out` gets its final name.
After a kill the next attempt finds in `out` what was left there: training goes on from its last checkpoint.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.paths import write_text
from harness.progress import Progress
from harness.provenance import library_versions, provenance

DESCRIPTION = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One piece of work, `name` unique among the stages of a run."""

    name: str
    function: str  # "package.module:function"
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # anything JSON can hold
    needs: Mapping[str, str] = field(default_factory=dict)  # parameter of the function -> name of a stage
    weight: float = 1.0  # expected seconds: for the order and the time left, nothing else
    # Modules and packages besides the function's own whose code shapes the result.
    sources: tuple[str, ...] = ()
    # Further arguments that do not shape the result, such as a number of threads.
    aside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """A stage with everything resolved that a worker needs to run it."""

    stage: Stage
    key: str
    final: Path
    folders: Mapping[str, Path]  # parameter -> finished folder

    @property
    def work(self) -> Path:
        """Where the stage writes until it is done."""
        return self.final.with_name(f".{self.final.name}.work")

    @property
    def traceback(self) -> Path:
        """Where the traceback of a failed attempt is left."""
        return self.final.with_name(f"{self.final.name}.traceback.txt")

    @property
    def lock(self) -> Path:
        """Held by the process that works on the stage; the system lets go of it when that process dies."""
        return self.final.with_name(f".{self.final.name}.lock")


def resolve(stages: Iterable[Stage], directory: Path, versions: Mapping[str, str] | None = None) -> dict[str, Attempt]:
    """Every stage's folder under `directory`, in an order in which each comes after what it needs.

    versions: of Python and the libraries, by name; None: those in use.
    Raises ValueError for two stages of one name, a need that is no stage, or a circle.
    """
    waiting = list(stages)
    names = [stage.name for stage in waiting]
    if len(set(names)) < len(names):
        raise ValueError(f"two stages share a name: {sorted(n for n in set(names) if names.count(n) > 1)}")
    versions = library_versions() if versions is None else versions
    attempts: dict[str, Attempt] = {}
    codes: dict[tuple[str, ...], str] = {}
    while waiting:
        ready = [stage for stage in waiting if set(stage.needs.values()) <= set(attempts)]
        if not ready:
            wanted = {need for stage in waiting for need in stage.needs.values()} - set(attempts)
            unknown = sorted(wanted - set(names))
            raise ValueError(f"no such stage: {unknown}" if unknown else f"a circle among {sorted(wanted)}")
        for stage in ready:
            modules = tuple(sorted({stage.function.partition(":")[0], *stage.sources}))
            if modules not in codes:
                codes[modules] = code_hash(modules)
            needs = {parameter: attempts[need].key for parameter, need in stage.needs.items()}
            key = stage_key(stage, needs, codes[modules], versions)
            folders = {parameter: attempts[need].final for parameter, need in stage.needs.items()}
            attempts[stage.name] = Attempt(stage, key, directory / f"{stage.name}-{key}", folders)
        waiting = [stage for stage in waiting if stage not in ready]
    return attempts


def stage_key(stage: Stage, needs: Mapping[str, str], code: str, versions: Mapping[str, str]) -> str:
    """A hash of what determines a result: function, arguments, what it builds on, the code, the libraries."""
    determined_by = [stage.function, dict(stage.kwargs), dict(needs), code, dict(versions)]
    return hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()[:12]


def code_hash(modules: Iterable[str]) -> str:
    """A hash of the code of modules and packages; comments, docstrings and layout do not change it."""
    files: list[Path] = []
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"there is no module {name!r} to take the code of")
        origin = Path(spec.origin)
        files += sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{_what_it_does(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache  # by text: the plan of a book of grids reads the same files hundreds of times
def _what_it_does(code: str) -> str:
    """The syntax tree of a module's code without its docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_docstring(line)]
    return ast.dump(tree)


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def find_function(path: str) -> Callable[..., Any]:
    """The function that "package.module:function" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def _held(attempt: Attempt, progress: Progress) -> Iterator[None]:
    """The stage's lock, once whoever works on the stage has let go of it.

    Taken once and let go of once: a lock taken again by `with` would be let go of when it happens to be collected.
    """
    lock = FileLock(attempt.lock)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress.say(f"{attempt.stage.name}: another run is at work on it; waiting for that one")
        lock.acquire(timeout=-1, blocking=True)
    try:
        yield
    finally:
        lock.release()


def attempt_stage(attempt: Attempt, progress: Progress) -> float:
    """Run a stage to its end in this process; the seconds it took, 0 if another run finished it meanwhile."""
    attempt.final.parent.mkdir(parents=True, exist_ok=True)
    with _held(attempt, progress):
        if attempt.final.is_dir():
            return 0.0
        attempt.work.mkdir(exist_ok=True)
        made_by, started = provenance(), time.monotonic()
        arguments = {**attempt.folders, **attempt.stage.kwargs, **attempt.stage.aside}
        find_function(attempt.stage.function)(out=attempt.work, progress=progress, **arguments)
        seconds = time.monotonic() - started
        description = {
            "name": attempt.stage.name,
            "key": attempt.key,
            "function": attempt.stage.function,
            "kwargs": dict(attempt.stage.kwargs),
            "needs": {parameter: folder.name for parameter, folder in attempt.folders.items()},
            "seconds": round(seconds, 2),  # of the attempt that finished it
            "made_by": made_by.fields(),  # of that attempt, too
        }
        write_text(attempt.work / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        attempt.work.rename(attempt.final)
        attempt.traceback.unlink(missing_ok=True)
    return seconds
