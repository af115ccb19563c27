"""The facts of the machine, and devices by name."""

import subprocess

import pytest
import torch

from harness.errors import UserError
from harness.profilers import machine
from harness.profilers.machine import Machine, find_device
from harness.profilers.roofline import roof_of


def test_a_processor_is_described() -> None:
    found = Machine.of(torch.device("cpu"))
    fields = found.fields()
    assert fields["device"]
    assert fields["threads"] == torch.get_num_threads()
    assert fields["torch_version"] == torch.__version__
    assert fields["driver"] is None
    assert found.slug
    assert found.slug == found.slug.strip("_").lower()
    assert "," not in found.slug


def test_a_processor_without_a_clock_is_described_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "cpu_freq", lambda: None)
    assert Machine.of(torch.device("cpu")).clock_mhz is None


def test_devices_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"device=cuda:2: torch finds 2 CUDA GPUs here"):
        find_device("cuda:2")
    with pytest.raises(UserError, match=r"device=gpu: choose auto, cpu, cuda"):
        find_device("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"torch finds no CUDA GPU here"):
        find_device("cuda")


SMI = "580.65.06, 1980, 3201, 1980, 700.00\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (SMI, ("580.65.06", 1980.0, 3201.0, 1980.0, 700.0)),
        ("580.65.06, 1980, [N/A], 1980, [Not Supported]\n", ("580.65.06", 1980.0, None, 1980.0, None)),
        (None, (None, None, None, None, None)),
    ],
)
def test_a_gpu_is_asked_through_nvidia_smi(
    monkeypatch: pytest.MonkeyPatch, answer: str | None, expected: tuple
) -> None:
    class Properties:
        uuid = "1234"

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        assert command[1] == "--id=GPU-1234"
        if answer is None:
            raise subprocess.CalledProcessError(9, command)
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(machine.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    found = Machine.of(torch.device("cuda", 0))
    facts = (found.driver, found.clock_mhz, found.memory_clock_mhz, found.max_clock_mhz, found.power_limit_w)
    assert facts == expected
    assert found.slug == "nvidia_h200"


def test_an_unknown_gpu_has_no_roof_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert roof_of(device, torch.bfloat16)[0].title == "H200"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200 NVL")
    roof, sentence = roof_of(device, torch.bfloat16)
    assert roof is None
    assert sentence.startswith("'NVIDIA H200 NVL' is not in devices.yaml")
