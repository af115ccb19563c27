"""How a verdict follows from a finding's interval.

A verdict needs an interval that can tell. One that holds both "no effect" and "an effect worth having" decides
nothing, and the claim stays owed: more seeds or questions would be needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from harness.reports.evidence import Find, Finding

REPRODUCED, REFUTED, OWED = "reproduced", "refuted", "owed"
NEGLIGIBLE = 3.0
"""Percentage points of the average that are taken for no difference: about what two base seeds can tell."""


@dataclass(frozen=True)
class Rule:
    """A rule in words, and as a function of a finding."""

    text: str
    verdict: Callable[[Finding], str]


@dataclass(frozen=True)
class Claim:
    """A claim, where it is from, how it is found and decided, and the command that makes the rows for it."""

    id: str
    claim: str
    source: str
    find: Find
    rule: Rule
    command: str


def _decided(reproduced: bool, refuted: bool) -> str:
    return REPRODUCED if reproduced else REFUTED if refuted else OWED


GAINS = Rule(
    f"reproduced if the interval lies above 0; refuted if it lies below {NEGLIGIBLE:g}; else owed",
    lambda found: _decided(found.lo > 0, found.hi < NEGLIGIBLE),
)
SUFFICES = Rule(
    f"reproduced if the interval lies below {NEGLIGIBLE:g} (what is lost is negligible); refuted if it lies above 0; "
    "else owed",
    lambda found: _decided(found.hi < NEGLIGIBLE, found.lo > 0),
)
SAME = Rule(
    f"reproduced if the interval lies within {NEGLIGIBLE:g} of 0; refuted if it leaves out 0; else owed",
    lambda found: _decided(found.lo > -NEGLIGIBLE and found.hi < NEGLIGIBLE, found.lo > 0 or found.hi < 0),
)
OWED_HERE = Rule("owed: nothing here can decide it", lambda found: OWED)


def at_least(limit: float) -> Rule:
    """The figure reaches `limit`."""
    return Rule(
        f"reproduced if the interval lies above {limit:g}; refuted if it lies below; else owed",
        lambda found: _decided(found.lo > limit, found.hi < limit),
    )


def at_most(limit: float) -> Rule:
    """The figure does not pass `limit`."""
    return Rule(
        f"reproduced if all of it lies at or below {limit:g}; refuted if all of it lies above; else owed",
        lambda found: _decided(found.hi <= limit, found.lo > limit),
    )


def is_about(value: float, within: float, unknown: str) -> Rule:
    """The figure is `value`, to `within`; `unknown` is what decides where the range lies on both sides of that."""
    low, high = value - within, value + within
    return Rule(
        f"reproduced if all of the range lies within {within:g} of {value:g}; refuted if none of it does; owed where "
        f"it depends on {unknown}",
        lambda found: _decided(low <= found.lo and found.hi <= high, found.hi < low or found.lo > high),
    )
