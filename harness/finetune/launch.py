"""Starting the processes of a training: torchrun, DeepSpeed's launcher, or a script for SLURM."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from omegaconf import DictConfig

from harness.errors import Crashed, UserError
from harness.finetune.settings import Launch

MODULE = ("harness", "finetune")
OURS = ("launch", "processes", "nodes", "partition", "minutes", "gigabytes")  # settings that only the launch reads
TEMPLATE = "slurm.sh.jinja"


def command(settings: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The command of a launcher that runs this training in `processes` processes on this machine."""
    own = [text for text in overrides if text.partition("=")[0] not in OURS]
    count = str(settings.processes)
    if settings.launch is Launch.torchrun:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, "-m"]
    else:  # DeepSpeed's launcher else adds an argument --local_rank, which is no setting
        start = ["-m", "deepspeed.launcher.runner", "--num_gpus", count, "--no_local_rank", "--module"]
    return [sys.executable, *start, *MODULE, *own]


def run(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Runs the training in processes of its own; Crashed, in a sentence, when one of them ends before its time."""
    code = subprocess.run(command(settings, overrides), check=False).returncode
    if code:
        raise Crashed(
            f"a training process ended with exit code {code}, see above; the same command goes on from the last "
            f"checkpoint in {settings.runs_dir}"
        )


def script(settings: DictConfig, overrides: Sequence[str], name: str) -> str:
    """A SLURM script: one torchrun per node, all of them one training. Submit it again to resume."""
    own = [text for text in overrides if text.partition("=")[0] not in OURS]
    template = jinja2.Template(
        files("harness.finetune").joinpath(TEMPLATE).read_text(encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return template.render(
        name=name,
        nodes=settings.nodes,
        processes=settings.processes,
        cpus=max(1, settings.processes * (settings.workers + 1)),
        partition=settings.partition,
        minutes=settings.minutes,
        gigabytes=settings.gigabytes,
        folder=shlex.quote(str(Path.cwd())),
        python=shlex.quote(sys.executable),
        command=shlex.join([*MODULE, *own]),
    )


def expect_one_node(settings: DictConfig) -> None:
    """UserError where several nodes are asked of a launcher that starts on this one."""
    if settings.nodes > 1 and settings.launch is not Launch.slurm:
        raise UserError(
            f"nodes={settings.nodes}: launch={settings.launch.name} starts on this machine only; say launch=slurm, or "
            "run torchrun on each node yourself"
        )


def expect_first(settings: DictConfig) -> None:
    """UserError where each of several launched processes would launch as many again, all on the same GPUs."""
    if settings.launch in (Launch.torchrun, Launch.deepspeed) and "LOCAL_RANK" in os.environ:
        raise UserError(
            f"launch={settings.launch.name}, but a launcher has started this process already: leave launch out, or "
            "start it without a launcher"
        )
