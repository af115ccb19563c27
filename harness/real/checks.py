"""What the machine has: versions that fit, GPU, memory, disk, FFmpeg, the hub. Each check is a `Finding` or several."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import psutil

from harness.real.catalogue import Repository
from harness.real.fetch import FORBIDDEN, UNAUTHORIZED, free_bytes, status_of

State = Literal["ok", "warning", "missing"]
PYTHONS = ((3, 11), (3, 12))
PACKAGES = ("lmms_eval", "transformers", "datasets", "accelerate", "decord")
CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")  # of the benchmarks' videos, most of which come from the web
GB = 10**9
INSTALL = "make setup"
REINSTALL = "uv pip install --reinstall torch torchvision"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, how it is, what was seen, and the command that mends it."""

    what: str
    state: State
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Needs:
    """What the plan expects to need beside the data: bytes (None: not estimated), and GPUs, one for each process."""

    disk: int | None = None
    memory: int | None = None
    gpu_memory: int | None = None
    gpus: int = 1


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Python 3.11 or 3.12."""
    text = ".".join(map(str, version))
    if version in PYTHONS:
        return Finding("Python", "ok", text)
    return Finding("Python", "missing", f"{text}; 3.11 or 3.12 is needed", "uv venv --python 3.12")


def packages(is_there: Callable[[str], bool] | None = None) -> list[Finding]:
    """The packages without which lmms-eval's tasks do not run."""
    is_there = is_there or (lambda name: util.find_spec(name) is not None)
    lacking = [name for name in PACKAGES if not is_there(name)]
    if lacking:
        return [Finding("packages", "missing", f"not installed: {', '.join(lacking)}", INSTALL)]
    return [Finding("packages", "ok", f"lmms-eval {metadata.version('lmms-eval')} and what its tasks import")]


def torch_pair(load: Callable[[str], Any] = importlib.import_module) -> Finding:
    """Whether torchvision's operators load beside the installed torch.

    They do only beside the build that they were made for: versions that agree may be of different builds, so the
    one sure test is to load them.
    """
    try:
        torch = load("torch")
    except ImportError as error:
        return Finding("torch", "missing", f"torch does not load ({error})", INSTALL)
    try:
        vision = load("torchvision")
        load("torchvision.ops")
    except (ImportError, RuntimeError) as error:
        detail = f"torchvision does not load beside torch {torch.__version__} ({_first_line(error)}): not made for it"
        return Finding("torch and torchvision", "missing", detail, REINSTALL)
    return Finding("torch and torchvision", "ok", f"{torch.__version__} and {vision.__version__}")


def gpu(needed: int | None = None, torch: Any = None, wanted: bool = True, gpus: int = 1) -> Finding:
    """CUDA GPUs, so many, each with the memory that the plan expects to need; without any all runs, at 7B hardly.

    `wanted` False: at a scale that a processor is enough for.
    """
    torch = torch or importlib.import_module("torch")
    if not torch.cuda.is_available():
        if not wanted:
            return Finding("GPU", "ok", "none, and none is needed at this scale")
        detail = "torch finds no CUDA GPU: a model of 7B would take months on processors"
        return Finding("GPU", "warning", detail, "nvidia-smi")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    least = min(card.total_memory for card in cards)
    named = f"{len(cards)} x {cards[0].name}, {least / GB:.0f} GB"
    if gpus > len(cards):
        return Finding("GPU", "missing", f"{named}; processes={gpus} needs {gpus}", f"choose processes={len(cards)}")
    if needed is not None and needed > least:
        return Finding("GPU", "missing", f"{named}; the plan needs {needed / GB:.1f} GB", "choose a smaller batch_size")
    estimate = "" if needed is None else f"; the plan needs {needed / GB:.1f} GB"
    return Finding("GPU", "ok", named + estimate)


def memory(needed: int | None = None, there: int | None = None) -> Finding:
    """Main memory against the plan's estimate."""
    there = psutil.virtual_memory().total if there is None else there
    if needed is not None and needed > there:
        detail = f"{there / GB:.0f} GB; the plan needs {needed / GB:.0f} GB"
        return Finding("memory", "missing", detail, "use fewer processes, or a larger machine")
    return Finding("memory", "ok", f"{there / GB:.0f} GB")


def disk(data: Path, needed: int, unknown: Sequence[str] = (), free: int | None = None) -> Finding:
    """Free disk against what is still to come; `unknown` names what could not be added up."""
    free = free_bytes(data) if free is None else free
    rest = f"; size not known: {', '.join(unknown)}" if unknown else ""
    detail = f"{free / GB:.0f} GB free, {needed / GB:.0f} GB still to come{rest}"
    if needed > free:
        return Finding("disk", "missing", detail, "make room, or choose another disk: data=FOLDER")
    return Finding("disk", "warning" if unknown else "ok", detail)


def ffmpeg(has_codec: Callable[[str], bool] | None = None) -> Finding:
    """PyAV's own FFmpeg and the decoders it was built with; torchcodec is an option."""
    import av

    has_codec = has_codec or (lambda name: name in av.codec.codecs_available)
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    lacking = [name for name in CODECS if not has_codec(name)]
    codec = "torchcodec too" if util.find_spec("torchcodec") else "torchcodec not installed (not needed)"
    detail = f"PyAV {av.__version__}, libavcodec {version}; {codec}"
    if lacking:
        return Finding("FFmpeg", "missing", f"{detail}; no decoder for {', '.join(lacking)}", "uv pip install av")
    return Finding("FFmpeg", "ok", detail)


def hub(
    repositories: Sequence[Repository], models: Sequence[str] = (), api: Any = None, token: str | None = None
) -> list[Finding]:
    """Is the hub reachable, is there a token, and may it read each repository? Asks the network.

    `api` is a `huggingface_hub.HfApi` or something like it, `token` the token it uses; None: those of this machine.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

    if api is None:
        if huggingface_hub.constants.is_offline_mode():
            detail = "HF_HUB_OFFLINE is set, so the hub cannot be asked"
            return [Finding("hub", "missing", detail, "env -u HF_HUB_OFFLINE -u TRANSFORMERS_OFFLINE")]
        api, token = huggingface_hub.HfApi(), huggingface_hub.get_token()
    findings = [_token(repositories, token)]
    for name, kind, page in [
        *((repository.name, "dataset", repository.url) for repository in repositories),
        *((name, "model", f"https://huggingface.co/{name}") for name in models),
    ]:
        try:
            api.auth_check(name, repo_type=kind)
            findings.append(Finding(f"hub: {name}", "ok", "may be read"))
        except GatedRepoError:
            detail = "its conditions were not accepted by this account"
            findings.append(Finding(f"hub: {name}", "missing", detail, f"open {page}"))
        except RepositoryNotFoundError:
            detail = "not there, or not for this token"
            findings.append(Finding(f"hub: {name}", "missing", detail, f"open {page}"))
        except (OSError, HTTPError) as error:
            status = status_of(error) if isinstance(error, HfHubHTTPError) else None
            if status == FORBIDDEN:
                findings.append(Finding(f"hub: {name}", "missing", "this token may not read it", f"open {page}"))
                continue
            if status is not None:
                findings[0], refused = _refused(status, findings[0])
                return [*findings, *refused]
            detail = f"the hub cannot be reached ({type(error).__name__})"
            return [*findings, Finding("hub", "missing", detail, "look at the network, HF_ENDPOINT and proxies")]
    return findings


def _token(repositories: Sequence[Repository], token: str | None) -> Finding:
    """A token, which gated data need, and lmms-eval's packaged tasks when they ask the hub themselves."""
    if token:
        return Finding("hub token", "ok", "there is one")
    gated = [repository.name for repository in repositories if repository.gated]
    if gated:
        detail = f"none, and {' and '.join(gated)} ask for conditions to be accepted"
        return Finding("hub token", "missing", detail, "hf auth login")
    return Finding("hub token", "warning", "none; public data come without", "hf auth login")


def _refused(status: int, token: Finding) -> tuple[Finding, list[Finding]]:
    """What is said of the token, and what else, where the hub is there and answers with an error."""
    if status == UNAUTHORIZED:
        mend = "export HF_TOKEN=ANOTHER_TOKEN" if os.environ.get("HF_TOKEN") else "hf auth login --force"
        return Finding("hub token", "missing", "the hub takes it for invalid or expired", mend), []
    detail = f"it is there, and answers with HTTP {status}"
    return token, [Finding("hub", "missing", detail, "try again later, or log in anew: hf auth login --force")]


def offline() -> Finding:
    """What stands in place of `hub` where the network must not be asked."""
    where = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"
    return Finding("hub", "ok", f"not asked (online=true asks it; {where} in the environment)")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
