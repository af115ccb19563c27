"""Runs the notebooks of `notebooks/`, each in a fresh kernel of this very Python, in a temporary copy.

    python -m harness.notebooks [NAME ...] [--save]

In the copy's folder `results` leads to the checkout's: rows are read there, and what is trained stays in
`results/runs` for the next run. The environment variable SCALE says how much is trained: smoke (unless said
otherwise), test or mini. With `--save` the outputs are written into `notebooks/`, as they are read on the web:
`tidied` says what of them.

Exit codes: 0 done; 1 a notebook failed; 2 a mistake in what was asked; 130 stopped by Ctrl-C.
"""

import argparse
import asyncio
import base64
import io
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

from PIL import Image

from harness.cli import INTERRUPTED
from harness.compose import closest_first
from harness.errors import Crashed, UserError
from harness.jobs import THREAD_VARIABLES, THREADS
from harness.paths import write_text
from harness.progress import Display, Progress, clock

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
SCALES = ("test", "smoke", "mini")
PICTURE_BYTES = 150_000  # at most: pages with more load slowly, and every change of one stays in the history
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RICH = '<pre style="white-space:pre;overflow-x:auto'  # how rich begins what it shows of progress in a notebook


class CellFailed(Crashed):
    """A cell raised: the notebook's name, the cell's number and source, and its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named notebooks, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.notebooks", description="Run the notebooks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a notebook, without .ipynb; none: all")
    parser.add_argument("--save", action="store_true", help="write the outputs into notebooks/")
    parsed = parser.parse_args(arguments)
    failed = 0
    try:
        check_scale(os.environ)
        chosen = find(parsed.names)
        for path in chosen:
            failed += not _run_one(path, parsed.save)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; what was trained is kept, and the same command goes on from it", file=sys.stderr)
        return INTERRUPTED
    return int(failed > 0)


def check_scale(environment: Mapping[str, str]) -> None:
    """UserError if the variable SCALE is set to something that no notebook knows."""
    scale = environment.get("SCALE", "smoke")
    if scale not in SCALES:
        raise UserError(f"SCALE={scale}: the notebooks train at one of {', '.join(SCALES)}")


def find(names: Sequence[str], folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks' files, in the order of their names or as named; UserError for a name that none has."""
    there = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not there:
        raise UserError(f"{folder} holds no notebook: run this in a checkout of the repository")
    for name in names:
        if name not in there:
            raise UserError(f"there is no notebook '{name}' in {folder}; there are {closest_first(name, there)}")
    return [there[name] for name in names] if names else list(there.values())


def _run_one(path: Path, save: bool) -> bool:
    """Run one notebook and say how it went; whether it went well."""
    from nbformat import writes

    started = time.monotonic()
    try:
        with Display() as display:
            notebook = execute(path, progress=display.progress())
    except CellFailed as error:
        print(f"{path.stem}: failed after {clock(time.monotonic() - started)}\n{error}", file=sys.stderr)
        return False
    if save:
        write_text(path, writes(tidied(notebook, path.stem)) + "\n")
    print(f"{path.stem}: done in {clock(time.monotonic() - started)}{', saved' if save else ''}", flush=True)
    return True


# ---------------------------------------------------------------------------------------------------- execution


def execute(path: Path, results: Path = ROOT / "results", progress: Progress | None = None) -> "NotebookNode":
    """Run a notebook in a folder of its own, where `results` leads to the given one; returns it with outputs.

    Raises CellFailed for the first cell that raises, UserError where nbclient or ipykernel is not installed.
    """
    try:
        import ipykernel  # noqa: F401 - the kernel's own process imports it: better to miss it here
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, DeadKernelError
    except ImportError as error:
        raise UserError(f"notebooks need {error.name}: pip install -e '.[dev]', or make setup") from error
    notebook = nbformat.read(path, as_version=4)
    code = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    bar = (progress or Progress(lambda event: None)).bar(f"{path.stem}: cell", total=len(code))
    ran: list[int] = []

    def note(cell: Any, cell_index: int) -> None:
        ran.append(cell_index)
        bar.advance()

    with bar, surroundings(results) as (folder, environment):
        client = NotebookClient(
            notebook,
            timeout=None,
            km=kernel(folder),
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            on_notebook_start=lambda notebook: _let_interrupts_through(),
            on_cell_executed=lambda cell, cell_index, execute_reply: note(cell, cell_index),
        )
        try:
            client.execute(env=environment, cleanup_kc=True)
        except CellExecutionError as error:
            raise CellFailed(_about(notebook, code, ran, error.traceback)) from error
        except DeadKernelError as error:
            raise CellFailed(_about(notebook, code, ran, "its process died; out of memory?")) from error
    return notebook


def _let_interrupts_through() -> None:
    """Ctrl-C ends the run: nbclient would end the kernel only, and call the cell failed."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def _about(notebook: "NotebookNode", code: list[int], ran: list[int], trace: str) -> str:
    """The failing cell: the one after those that ran, or among them the one with an error among its outputs."""
    broken = [n for n in ran if any(output.output_type == "error" for output in notebook.cells[n].outputs)]
    number = broken[0] if broken else next(n for n in code if n not in ran)
    source = "\n".join(f"    {line}" for line in notebook.cells[number].source.splitlines())
    return f"cell {number + 1} of {len(notebook.cells)}:\n\n{source}\n\n{ANSI.sub('', trace).strip()}"


@contextmanager
def surroundings(results: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """An empty folder but for `results`, and the environment of a kernel that starts there.

    Nothing of the user's IPython or Jupyter shapes the outputs, and arithmetic has as many threads as in stages.
    """
    with TemporaryDirectory(prefix="notebooks-") as temporary:
        folder, private = Path(temporary) / "run", Path(temporary) / "jupyter"
        folder.mkdir()
        private.mkdir()
        (folder / "results").symlink_to(results.resolve(), target_is_directory=True)
        environment = {
            **os.environ,
            **dict.fromkeys(THREAD_VARIABLES, str(THREADS)),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "IPYTHONDIR": str(private),
            "JUPYTER_CONFIG_DIR": str(private),
            "JUPYTER_RUNTIME_DIR": str(private),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }
        yield folder, environment


def kernel(folder: Path) -> Any:
    """A manager of a kernel of the running interpreter, whatever kernels are installed on the machine."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    specs = KernelSpecManager(kernel_dirs=[])  # none but ipykernel's own: "python3", the running interpreter
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    manager.connection_file = str(folder.with_name("kernel.json"))
    if os.name == "posix":
        manager.transport = "ipc"  # sockets in the private folder: no ports, nobody else can listen
        manager.ip = str(folder.with_name("kernel"))
    return manager


# --------------------------------------------------------------------------------------------------- for the web


def tidied(notebook: "NotebookNode", name: str) -> "NotebookNode":
    """The notebook as it is committed: the same run gives the same bytes.

    Left out: what went to stderr and progress, metadata of cells, kernel and pictures. Cells are counted from 1.
    Raises UserError for a picture over 150 kB, and for an output that names a path of this machine.
    """
    import nbformat

    tidy = nbformat.from_dict({**notebook, "metadata": METADATA})
    code = [cell for cell in tidy.cells if cell.cell_type == "code"]
    for cell in tidy.cells:
        cell.metadata = {}
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        cell.outputs = [_tidied_output(output, count, name) for output in cell.outputs if not _is_noise(output)]
    nbformat.validate(tidy)
    return tidy


def _is_noise(output: "NotebookNode") -> bool:
    if output.output_type == "stream":
        return output.name == "stderr" or not output.text.strip()
    return output.get("data", {}).get("text/html", "").startswith(RICH)


def _tidied_output(output: "NotebookNode", count: int, name: str) -> "NotebookNode":
    if "execution_count" in output:
        output.execution_count = count
    if "data" in output:
        output.metadata = {}
        if "image/png" in output.data:
            output.data["image/png"] = _packed(output.data["image/png"], f"{name}, cell [{count}]")
    text = "".join([output.get("text", ""), *(its for kind, its in output.get("data", {}).items() if "text" in kind)])
    for place in machine_paths():
        if place in text:
            raise UserError(f"{name}, cell [{count}]: its output names {place}, a path of this machine; print less")
    return output


def machine_paths() -> list[str]:
    """What no output may name."""
    return [str(ROOT), str(Path.home()), sys.prefix, gettempdir() + os.sep]


def _packed(picture: str, where: str) -> str:
    """A base64 png packed tightly, without metadata; UserError if it is too large."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").save(packed, format="PNG", optimize=True)
    if packed.tell() > PICTURE_BYTES:
        raise UserError(
            f"{where}: its picture has {packed.tell() / 1e3:.0f} kB, at most {PICTURE_BYTES / 1e3:.0f} kB are saved; "
            "draw it smaller or with less detail"
        )
    return base64.b64encode(packed.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
