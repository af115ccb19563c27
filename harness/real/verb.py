"""What the verbs `doctor`, `fetch` and `real-suite` do: composed settings in, what was asked for on stdout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.benchmarks import BENCHMARKS, benchmark_named
from harness.errors import UserError
from harness.progress import Display
from harness.real.catalogue import names
from harness.real.checkpoints import Checkpoint
from harness.real.checks import Finding, Needs
from harness.real.fetch import MODELS

PAPER = "paper"  # the scale of real data
DEFAULTS: dict[str, Any] = {
    "data": None,
    "benchmarks": None,
    "further": False,
    "models": ["released_64", "released_96"],
    "checkpoint": None,
    "check": "sampled",
    "online": False,
    "limit": None,
    "source": None,
}
"""Every setting that is read, and its value where the composed settings have none, or null.

data: the data root. benchmarks: names; null: the five, with `further` all. models: names in conf/model whose
checkpoints are looked over or fetched. checkpoint: a folder of a saved model besides. check: sampled or all videos.
online: whether the hub may be asked. limit: questions of each task; null: all. source: a folder that stands for the
hub.
"""


class Incomplete(UserError):
    """Something is missing: all of it was printed before."""


def doctor(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Print what is there and what is missing; UserError (exit 2) if something is missing.

    At other scales than paper only the machine is looked at: they make their data themselves.
    """
    from harness.real import doctor as looking

    if OmegaConf.select(settings, "scale.name", default=PAPER) != PAPER:
        _tell(looking.machine(Path.cwd(), [], Needs(), paper=False))
        return
    data, planned = data_root(settings), needs_of(settings, overrides)
    with Display() as display:
        findings = looking.examine(
            data,
            benchmarks_of(settings),
            checkpoints_of(settings, data),
            _value(settings, "check"),
            _value(settings, "online"),
            planned if isinstance(planned, Needs) else None,
            display.progress(),
        )
    _tell([*findings, planned] if isinstance(planned, Finding) else findings)


def _tell(findings: Sequence[Finding]) -> None:
    from harness.real import doctor as looking

    looking.show(findings)
    if missing := [finding.what for finding in findings if finding.state == "missing"]:
        raise Incomplete(f"missing: {', '.join(missing)}; the commands above mend it")


def fetch(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Download (online=true), or copy from `source`, and unpack; print the data root.

    What was typed is fetched: benchmarks, models, or both; both where neither was.
    """
    from harness.real import fetch as fetching

    typed = {override.partition("=")[0] for override in overrides}
    data, source, online = data_root(settings), _value(settings, "source"), _value(settings, "online")
    wanted = [] if "models" in typed and not typed & {"benchmarks", "further"} else benchmarks_of(settings)
    models = [] if "models" not in typed and typed & {"benchmarks", "further", "source"} else hub_names(settings)
    with Display() as display:
        fetching.fetch(data, wanted, online, None if source is None else Path(source), display.progress())
        for name in models:
            fetching.fetch_checkpoint(data, name, online)
    print(data)


def real_suite(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Make a suite of the data root, or find it made, and print its folder."""
    from harness.real.suite import real_suite as make

    print(make(data_root(settings), benchmarks_of(settings), _value(settings, "limit")))


def needs_of(settings: DictConfig, overrides: Sequence[str]) -> Needs | Finding:
    """What the plan of these settings' table expects to need; a warning where it cannot be made."""
    from harness.paper import plan
    from harness.paper.request import Request

    try:
        return plan.needs_of(plan.plan_of(Request.of(settings, overrides)))
    except UserError as error:  # a checkpoint that is not whole, say: the doctor has a finding of its own for it
        return Finding("plan", "warning", f"memory and disk of the run are not estimated: {error}")


def data_root(settings: DictConfig) -> Path:
    """The folder of real data; UserError if none was named."""
    data = _value(settings, "data")
    if data is None:
        raise UserError("name the folder of the real benchmarks: data=FOLDER (it is made if it is not there)")
    return Path(data).absolute()


def benchmarks_of(settings: DictConfig) -> list[str]:
    """The benchmarks that were asked for: the five, with `further` all that are known, or those named."""
    chosen = _value(settings, "benchmarks")
    if chosen is None:
        return list(names() if _value(settings, "further") else BENCHMARKS)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"benchmarks={chosen}: give at least one, each only once")
    return [benchmark_named(name).name for name in chosen]


def checkpoints_of(settings: DictConfig, data: Path) -> list[Checkpoint]:
    """The saved models to look over: those of `models` below DATA/models, and `checkpoint`."""
    from harness.paper.models import load_model

    found = []
    for name in _value(settings, "models"):
        spec = load_model(name)
        if (folder := spec.at(data)) is not None:
            found.append(Checkpoint(folder, None if spec.tower is None else data / MODELS / spec.tower, name))
    if (own := _value(settings, "checkpoint")) is not None:
        found.append(Checkpoint(Path(own)))
    return found


def hub_names(settings: DictConfig) -> list[str]:
    """The repositories of the checkpoints of `models`."""
    from harness.paper.models import load_model

    specs = [load_model(name) for name in _value(settings, "models")]
    return [spec.hub for spec in specs if spec.hub is not None]


def _value(settings: DictConfig, name: str) -> Any:
    value = OmegaConf.select(settings, name, default=DEFAULTS[name], throw_on_missing=False)
    value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if value is None:  # as the composed settings have whatever was not typed; as for the table, a checkpoint is alone
        alone = name == "models" and OmegaConf.select(settings, "checkpoint") is not None
        return [] if alone else DEFAULTS[name]
    return getattr(value, "name", value)  # an enumeration's word
