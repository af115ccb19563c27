"""Several processes share one evaluation: lmms-eval's own sharding, by torchrun, on one machine or several.

    evaluate_in_processes(2, checkpoint, suite, out, frames)     # starts torchrun, waits, and reads the result
    torchrun --nnodes 2 --nproc_per_node 8 ... -m harness.processes ARGUMENTS.json     # by hand, on each machine

lmms-eval gives process r of n the questions r, r + n, ... of each task, and gathers their scores in the first. The
plug-in lets all processes know all questions, forms the very batches of a single process, and deals those: so answers
do not depend on n, and a video's questions stay together. Every process keeps a journal of its own; whatever n the
next run has, it reads all of them. When a process dies, torchrun ends the others.

Launches that look like several processes and are none, or several that know nothing of one another, are refused
(`check_launch`).
"""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import UserError
from harness.progress import SILENT, Display, Event, Progress

if TYPE_CHECKING:
    import torch

    from harness.evaluate import Evaluation

Thing = TypeVar("Thing")
PATIENCE = timedelta(days=7)  # for a slower process; that of a dead one is ended by torchrun
REPORTING = "SLOWFAST_HARNESS_EVENTS"  # set: a process reports to the one that started it, on stdout
BY_OTHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # srun's, mpirun's: processes side by side
GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
REPORT = re.compile(r"^\s*rank\s*:\s*(\d+).*?^\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE | re.DOTALL)


# --------------------------------------------------------------------------------- among the processes of a run


@dataclass(frozen=True)
class Peers:
    """This process among those that share a run: number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> "Peers":
        """As torch knows them; a process by itself is the only one."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def titled(self, name: str) -> str:
        """A bar's name, with this process's number where there are others."""
        return name if self.world == 1 else f"{name}, process {self.rank + 1} of {self.world}"

    def gather(self, thing: Thing) -> list[Thing]:
        """Everyone's thing, in order of rank, in every process. All must call it, and nobody returns before all did."""
        if self.world == 1:
            return [thing]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, thing, group=_on_cpu())
        return found

    def merged(self, mapping: Mapping[Any, Thing]) -> dict[Any, Thing]:
        """Everyone's mapping as one; of a key that several have, the last one's."""
        together: dict[Any, Thing] = {}
        for each in self.gather(mapping):
            together |= each
        return together

    def from_first(self, make: Callable[[], Thing]) -> Thing:
        """What the first process makes, in every process."""
        import torch.distributed as dist

        thing = [make() if self.rank == 0 else None]
        if self.world > 1:
            dist.broadcast_object_list(thing, src=0, group=_on_cpu())
        return thing[0]


@functools.cache
def _on_cpu() -> Any:
    """The processes' connection for Python objects, in the memory of the CPU: the default one may be a GPU's."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=PATIENCE)


def check_launch() -> None:
    """UserError if this process was started as one of several that do not work together.

    Each would do the whole, and all would write the same files; or only one was started where several were asked
    for. Measured: `accelerate launch --cpu --num_processes 2` starts a single process, leaves WORLD_SIZE unset and
    sets MASTER_ADDR (not so for one process, nor where it starts torchrun's own).
    """
    world = _whole_number("WORLD_SIZE")
    if world > 1 and Peers.here().world != world:
        raise UserError(
            f"WORLD_SIZE={world} says that this is one of {world} processes, but it is not connected to the others and "
            f"would do everything by itself; start it once, with processes={world}, or unset WORLD_SIZE"
        )
    if world > 1:
        return
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes and started a single one, as it does on a CPU; use "
            "processes=N, or ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m lmms_eval ..."
        )
    for name in BY_OTHERS:
        if (tasks := _whole_number(name)) > 1:
            raise UserError(
                f"{name}={tasks}: {tasks} processes were started side by side, each of which would do everything by "
                "itself; start one, with processes=N, or one torchrun for each machine"
            )


def device_for(device: str | None = None) -> "torch.device":
    """The torch device of this process; by default ("auto", None) its own GPU, or the CPU.

    UserError if there are fewer GPUs than processes on this machine, or no such device.
    """
    import torch

    try:
        found = torch.device(device_type(device) if device in (None, "auto") else device)
    except RuntimeError as error:
        raise UserError(f"device={device}: torch knows no such device; use cpu, cuda or cuda:1") from error
    if found.type != "cuda":
        return found
    here, gpus = _whole_number("LOCAL_WORLD_SIZE"), torch.cuda.device_count()
    if max(here, (found.index or 0) + 1) > gpus:
        _refuse_gpus(max(here, (found.index or 0) + 1), gpus)
    return torch.device("cuda", _whole_number("LOCAL_RANK", 0)) if here > 1 else found


def exchange_device(device: "torch.device") -> "torch.device":
    """Where lmms-eval's own tensors are exchanged between processes: gloo takes those of the CPU only."""
    import torch
    import torch.distributed as dist

    gloo = dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo"
    return torch.device("cpu") if gloo else device


def _refuse_gpus(wanted: int, gpus: int) -> None:
    raise UserError(
        f"{wanted} GPUs are needed here, one for each process, and torch finds {gpus}; start as many processes as "
        "there are GPUs, or use device=cpu"
    )


def _whole_number(variable: str, default: int = 1) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def _true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


# ------------------------------------------------------------------------------------------ starting them, waiting


def evaluate_in_processes(
    processes: int,
    checkpoint: Path,
    suite: Path,
    out: Path,
    frames: int,
    progress: Progress = SILENT,
    **options: Any,
) -> "Evaluation":
    """`harness.evaluate.evaluate` by so many processes of this machine; the files in OUT are the same.

    Args:
        processes: 1: here, without any other process. With GPUs, at most as many as there are.
        options: further arguments of `evaluate`, which JSON can hold (or paths).

    Raises UserError as `evaluate` does, and if a process dies: what is answered by then is kept, and the same call
    goes on from there, also with another number of processes.
    """
    from harness.evaluate import evaluate, load_evaluation

    if processes < 1:
        raise UserError(f"processes={processes}: give a whole number of at least 1")
    if processes == 1:
        return evaluate(checkpoint, suite, out, frames, progress=progress, **options)
    check_launch()
    expect_gpus(processes, options.get("device"))
    out.mkdir(parents=True, exist_ok=True)
    arguments = {"checkpoint": checkpoint, "suite": suite, "out": out, "frames": frames, **options}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arguments.json"
        file.write_text(json.dumps(arguments, default=lambda path: str(Path(path).resolve())), encoding="utf-8")
        run_together([*launcher(processes), "-m", "harness.processes", str(file)], processes, out, progress)
    return load_evaluation(out)


def launcher(processes: int) -> list[str]:
    """The command before "-m MODULE ..." that starts so many processes of a module on this machine."""
    if processes == 1:
        return [sys.executable]
    where = ["--master_addr", "127.0.0.1", "--master_port", str(_free_port())]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), *where]


def environment(processes: int, device: str | None) -> dict[str, str]:
    """The variables of a launch: those of another group of processes taken out, the processor's cores shared out."""
    variables = {name: value for name, value in os.environ.items() if name not in GROUP}
    root = str(Path(__file__).resolve().parent.parent)  # for a checkout that is not installed
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [variables.get("PYTHONPATH"), root]))
    if processes > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        variables.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    if device_type(device) == "cpu":
        variables["ACCELERATE_USE_CPU"] = "true"
    return variables


def expect_gpus(processes: int, device: str | None) -> None:
    """UserError if so many processes of this machine would have to share GPUs."""
    import torch

    if device_type(device) == "cuda" and processes > (gpus := torch.cuda.device_count()):
        _refuse_gpus(processes, gpus)


def device_type(device: str | None) -> str:
    """What kind of device a setting means: "cpu", "cuda", ...; nothing is asked of it."""
    import torch

    if device not in (None, "auto"):
        return device.partition(":")[0]
    return "cuda" if torch.cuda.is_available() and not _true("ACCELERATE_USE_CPU") else "cpu"


def run_together(command: Sequence[str], processes: int, out: Path, progress: Progress) -> None:
    """Run a launch of this module to its end, its reports going to `progress` and all else to a log in OUT.

    Raises UserError with what one of the processes complained of, or which of them died.
    """
    from harness.evaluate import LOG

    complaints: list[str] = []
    variables = {**environment(processes, _device_in(command)), REPORTING: "1"}
    with (out / LOG).open("a", encoding="utf-8") as log:
        begun = log.tell()
        child = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            for line in child.stdout:
                _take(line, progress, complaints.append, log.write)
            code = child.wait()
        finally:
            _end(child)
    if complaints:
        raise UserError(complaints[0])
    if code:
        with (out / LOG).open(encoding="utf-8", errors="replace") as log:
            log.seek(begun)
            raise UserError(death(log.read(), processes, out))


def death(log: str, processes: int, out: Path) -> str:
    """One sentence about a run of which a process died, from what torchrun said on stderr.

    A process that was killed comes before those that failed for want of it, in whatever order they were seen.
    """
    from harness.evaluate import LOG

    goes_on = f"what is answered is kept in {out}, and the same command goes on from there"
    first = [(int(rank), int(code)) for rank, code in REPORT.findall(log[log.rfind("Root Cause") :])]
    every = [(int(rank), int(code)) for rank, code in REPORT.findall(log[log.rfind("Failures:") :])]
    killed = [(rank, code) for rank, code in every if code < 0 and -code != signal.SIGTERM]
    if not (candidates := killed + first):
        return f"the {processes} processes ended without a result; {out / LOG} says more; {goes_on}"
    rank, code = candidates[0]
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    else:
        how = f"failed with {last_error(log) or f'exit code {code}'}; {out / LOG} says more"
    return f"process {rank + 1} of {processes} {how}; the others were stopped; {goes_on}"


def last_error(log: str) -> str:
    """The last line of a log that names an exception with its message, or ""."""
    named = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b: .*)$")
    lines = (named.match(line.strip()) for line in reversed(log.splitlines()))
    return next((line[1] for line in lines if line and "ChildFailedError" not in line[1]), "")


def _take(line: str, progress: Progress, complain: Callable[[str], None], write: Callable[[str], Any]) -> None:
    """One line of the processes' stdout: an event, a complaint, or something that a library printed."""
    try:
        report = json.loads(line)
    except ValueError:
        report = None
    if isinstance(report, dict) and report.keys() == {"complaint"}:
        complain(report["complaint"])
    elif isinstance(report, dict) and report.keys() == {"event"}:
        progress.send(Event(**{**report["event"], "stage": progress.stage}))
    else:
        write(line)


def _end(child: subprocess.Popen) -> None:
    """torchrun ends its processes when it is told to end."""
    if child.poll() is None:
        child.terminate()
        child.wait()


def _device_in(command: Sequence[str]) -> str | None:
    return json.loads(Path(command[-1]).read_text(encoding="utf-8")).get("device")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# ------------------------------------------------------------------------------------------------- one of them


def main(arguments: Sequence[str]) -> int:
    """One process of a launch: evaluates its share of what the file ARGUMENTS.json asks for; returns the exit code."""
    if len(arguments) != 1:
        print("error: torchrun ... -m harness.processes ARGUMENTS.json: name that one file", file=sys.stderr)
        return UserError.exit_code
    try:
        asked = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        paths = {name: Path(asked[name]) for name in ("checkpoint", "suite", "out", "features") if asked.get(name)}
        _evaluate({**asked, **paths})
    except UserError as error:
        _complain(str(error))
        return error.exit_code
    return 0


def _evaluate(asked: dict[str, Any]) -> None:
    import torch.distributed as dist

    from harness.evaluate import evaluate

    if _whole_number("WORLD_SIZE") > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    if REPORTING in os.environ:
        evaluate(**asked, progress=Progress(lambda event: _report(event=asdict(event))))
    elif Peers.here().rank:
        evaluate(**asked)
    else:
        with Display() as display:
            evaluate(**asked, progress=display.progress())
    if dist.is_initialized():
        dist.destroy_process_group()


def _complain(sentence: str) -> None:
    if REPORTING in os.environ:
        _report(complaint=sentence)
    else:
        print(f"error: {sentence}", file=sys.stderr)


def _report(**report: Any) -> None:
    """A line in one piece, on the stdout that the process began with, whatever became of sys.stdout.

    When nobody reads any more, the error ends this process, as it should.
    """
    os.write(1, (json.dumps(report) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
