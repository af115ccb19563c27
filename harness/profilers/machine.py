"""The machine as a measurement found it: device, driver, versions, threads, clocks, power limit."""

import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata

import psutil
import torch

from harness.errors import UserError
from harness.provenance import processor

NVIDIA_SMI_S = 20  # after which nvidia-smi is given up
QUERY = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")


@dataclass(frozen=True)
class Machine:
    """What goes into every row. Clocks in MHz and the limit in W as found, None where the system does not say."""

    device: str
    driver: str | None
    python_version: str
    torch_version: str
    cuda_version: str | None
    transformers_version: str
    threads: int
    clock_mhz: float | None
    memory_clock_mhz: float | None
    max_clock_mhz: float | None
    power_limit_w: float | None

    @classmethod
    def of(cls, device: torch.device) -> "Machine":
        """The facts of `device` and of the software in use."""
        return cls(
            python_version=platform.python_version(),
            torch_version=torch.__version__,
            cuda_version=torch.version.cuda,
            transformers_version=metadata.version("transformers"),
            threads=torch.get_num_threads(),
            **(_of_gpu(device) if device.type == "cuda" else _of_processor()),
        )

    @property
    def slug(self) -> str:
        """The device's name for a file: "nvidia_h200"."""
        return re.sub(r"[^a-z0-9]+", "_", self.device.partition(",")[0].lower()).strip("_")

    def fields(self) -> dict[str, str | float | None]:
        """The facts as columns."""
        return asdict(self)


def find_device(name: str) -> torch.device:
    """The device of a setting: "auto" is a GPU if there is one, else the processor.

    UserError for a GPU that is not there, and for a name that is no device.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"device={name}: choose auto, cpu, cuda, or cuda:1 and so on for another GPU")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    there = torch.cuda.device_count()
    if (device.index or 0) >= there:
        raise UserError(f"device={name}: torch finds {there or 'no'} CUDA GPU{'s' if there > 1 else ''} here")
    return torch.device("cuda", device.index or 0)


def _of_gpu(device: torch.device) -> dict[str, str | float | None]:
    found = _ask_nvidia_smi(str(torch.cuda.get_device_properties(device).uuid))
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": found.get("driver_version"),
        "clock_mhz": _number(found.get("clocks.sm")),
        "memory_clock_mhz": _number(found.get("clocks.mem")),
        "max_clock_mhz": _number(found.get("clocks.max.sm")),
        "power_limit_w": _number(found.get("power.limit")),
    }


def _ask_nvidia_smi(uuid: str) -> dict[str, str]:
    """What nvidia-smi says of one GPU; nothing where there is no such program or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--id=GPU-{uuid}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
    except (subprocess.SubprocessError, OSError):  # a driver in trouble: the columns stay empty, as they say
        return {}
    return dict(zip(QUERY, (value.strip() for value in answer.stdout.strip().split(",")), strict=False))


def _of_processor() -> dict[str, str | float | None]:
    clock = psutil.cpu_freq()  # None where the system does not tell, 0 for what it does not know
    return {
        "device": processor(),
        "driver": None,
        "clock_mhz": (clock.current or None) if clock else None,
        "memory_clock_mhz": None,
        "max_clock_mhz": (clock.max or None) if clock else None,
        "power_limit_w": None,
    }


def _number(text: str | None) -> float | None:
    """A number of nvidia-smi's, which says "[N/A]" where there is none."""
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text) else None
