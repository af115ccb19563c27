"""What is profiled: every registered architecture, and slow-fast with each compressor and placement there is.

Each variant is named by what makes it: an architecture and the settings in which it differs from that architecture's
YAML, "slow_fast compressor=official compressor.sample_stride=2". A compressor that can hold the number of fast tokens
or let it grow with the video is profiled both ways (`Compressor.budgets`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from architectures import SlowFastConfig
from architectures.compressors import COMPRESSORS
from harness.compose import closest_first, compose, group_choices
from harness.errors import UserError
from harness.models import model_config
from harness.settings import PROFILE
from harness.table import group_of, taken_by

REFERENCE = ("self_attention", 16)
"""Architecture and frames that overheads are relative to (the paper's baseline)."""

OF_SLOW_FAST = ("compressor", "placement")
"""Groups of which each choice makes a variant of slow_fast."""

AS_CONFIGURED = "own"


@dataclass(frozen=True)
class Variant:
    """An architecture with some settings changed.

    Attributes:
        budget: what the number of fast tokens does as videos grow: "fixed", "strides", or "own" where the compressor
            does not say, or what was typed says otherwise.
    """

    architecture: str
    changes: tuple[str, ...]
    budget: str
    config: SlowFastConfig

    def __str__(self) -> str:
        return " ".join([self.architecture, *self.changes])


def variants(settings: DictConfig, overrides: Sequence[str]) -> list[Variant]:
    """Every variant under the settings that were typed; of `settings.architectures` alone where they are named.

    Raises UserError for an architecture that is not there, and for a typed setting that changes no variant.
    """
    known, named = group_choices()["architecture"], list(settings.architectures or [])
    expect_known(named)
    refuse_idle(overrides, named or known)
    typed = about_groups(overrides)
    made = [variant for name in named or known for variant in both_budgets(name, (), typed)]
    if not named:
        made += of_slow_fast(typed)
    return made


def expect_known(architectures: Sequence[str]) -> None:
    """UserError for an architecture that is not there."""
    known = group_choices()["architecture"]
    for name in architectures:
        if name not in known:
            raise UserError(f"architectures: there is no architecture '{name}'; there are {closest_first(name, known)}")


def about_groups(overrides: Sequence[str]) -> list[str]:
    """Those of the typed settings that say what a model consists of; which architectures, the profile says itself."""
    return [text for text in overrides if group_of(text) in group_choices() and group_of(text) != "architecture"]


def refuse_idle(overrides: Sequence[str], architectures: Sequence[str]) -> None:
    """UserError for a typed architecture, of which a profile takes a list, and for a setting that none takes."""
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "architecture":
            raise UserError(f"{text}: a profile is of several architectures; write architectures=[{value}]")
        if group_of(text) == "architecture":
            raise UserError(f"{text} changes no variant: each architecture keeps its own; leave it out")
    for text in about_groups(overrides):
        if not any(taken_by(name, [text]) for name in architectures):
            names = " and ".join(sorted(architectures))
            raise UserError(f"{text} changes no variant: {group_of(text)} is fixed in {names}; leave it out")


def reference(overrides: Sequence[str]) -> Variant:
    """The baseline that overheads are relative to, under the same typed settings."""
    return next(both_budgets(REFERENCE[0], (), about_groups(overrides)))


def of_slow_fast(typed: Sequence[str]) -> Iterator[Variant]:
    """slow_fast with each compressor and each placement that is not its own."""
    own = compose_variant("slow_fast", (), typed)
    for group in OF_SLOW_FAST:
        for choice in group_choices()[group]:
            if choice != own[group].name:
                yield from both_budgets("slow_fast", (f"{group}={choice}",), typed)


def both_budgets(architecture: str, changes: tuple[str, ...], typed: Sequence[str]) -> Iterator[Variant]:
    """The variant once for each way in which its compressor can budget fast tokens.

    Once only where an option was typed that says which way.
    """
    config = model_config(compose_variant(architecture, changes, typed))
    budgets = COMPRESSORS.find(config.compressor["name"]).budgets or {AS_CONFIGURED: {}}
    decisive = {f"compressor.{name}" for options in budgets.values() for name in options}
    if any(text.partition("=")[0] in decisive for text in kept_of(architecture, changes, typed)):
        budgets = {AS_CONFIGURED: {}}
    for budget, options in budgets.items():
        further = tuple(f"compressor.{name}={value}" for name, value in options.items())
        changed = with_options(config, "compressor", **options)
        yield Variant(architecture, (*changes, *further), budget, changed)


def with_options(config: SlowFastConfig, part: str, **options: Any) -> SlowFastConfig:
    """The configuration with some options of a part changed: what `part.option=value` would compose, much faster."""
    return SlowFastConfig.from_dict({**config.to_dict(), part: {**getattr(config, part), **options}})


def compose_variant(architecture: str, changes: Sequence[str], typed: Sequence[str]) -> DictConfig:
    """The settings of a variant: what was typed, unless the architecture or the change is about it."""
    return compose([*kept_of(architecture, changes, typed), f"architecture={architecture}", *changes], root=PROFILE)


def kept_of(architecture: str, changes: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Those of the typed settings that neither the architecture nor a change is about."""
    chosen = {group_of(text) for text in changes}
    return [text for text in taken_by(architecture, typed) if group_of(text) not in chosen]
