"""How a verdict follows from a finding's interval.

A verdict needs an interval that can tell. One that holds both "no effect" and "an effect worth having" decides
nothing, and the claim stays owed: more seeds or questions would be needed. "There is a difference" needs, beside an
interval on one side of 0, a p below 5% after Holm's correction for all comparisons of the grid,
as in ablations/README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

from harness.reports.answers import LEVEL
from harness.reports.evidence import Evidence, Find, Finding

REPRODUCED, REFUTED, OWED = "reproduced", "refuted", "owed"
NEGLIGIBLE = 3.0
"""Percentage points of the average that are taken for no difference: about what two base seeds can tell."""
OURS = "ours"  # the source of claims that the paper does not make
DIFFERS = f"p (Holm, over the grid's comparisons) is below {LEVEL:.0%}"
AGREE = "base seeds agree in its sign (if they do not, owed)"


def grid_command(name: str) -> str:
    """What makes a grid's rows."""
    return f"make ablate GRID={name}"


@dataclass(frozen=True)
class Rule:
    """A rule in words, and as a function of a finding."""

    text: str
    verdict: Callable[[Finding], str]


@dataclass(frozen=True)
class Claim:
    """A claim, where it is from, how it is found and decided, and the command that makes the rows for it.

    given: a gain that the claim supposes; where that is not reproduced, there is nothing to be said of it.
    """

    id: str
    claim: str
    source: str
    find: Find
    rule: Rule
    command: str
    given: Find | None = None

    @property
    def rule_text(self) -> str:
        """The rule in words, with what is supposed."""
        return self.rule.text + ("; owed unless the gain itself is reproduced" if self.given else "")

    def verdict(self, found: Finding, evidence: Evidence) -> str:
        """What the rule makes of a finding; owed where the gain that is supposed is not reproduced."""
        if self.given is not None:
            gain = self.given(evidence)
            if gain is None or GAINS.verdict(gain) != REPRODUCED:
                return OWED
        return self.rule.verdict(found)


def _decided(reproduced: bool, refuted: bool) -> str:
    return REPRODUCED if reproduced else REFUTED if refuted else OWED


def _differs(found: Finding) -> bool:
    return found.p_holm is None or found.p_holm < LEVEL


def _agree(found: Finding) -> bool:
    """Whether base seeds' own figures lie on one side of 0."""
    return len({figure > 0 for figure in found.by_seed}) < 2


def _above(found: Finding, limit: float, refuted: bool) -> str:
    """A gain above a limit that base seeds have to agree on; that there is none may well show in their disagreeing."""
    if found.lo > limit and _differs(found):
        return REPRODUCED if _agree(found) else OWED
    return REFUTED if refuted else OWED


def gains(margin: float = NEGLIGIBLE) -> Rule:
    """The figure is above 0; below `margin` is no gain worth the name."""
    return Rule(
        f"reproduced if the interval lies above 0, {DIFFERS} and {AGREE}; failing that, refuted if it lies below "
        f"{margin:g}; else owed",
        lambda found: _above(found, 0, found.hi < margin),
    )


def _same(found: Finding) -> str:
    """Of a family, every member's interval; of one finding, its own."""
    members = found.members or (found,)
    within = all(each.lo > -NEGLIGIBLE and each.hi < NEGLIGIBLE for each in members)
    outside = any((each.lo > NEGLIGIBLE or each.hi < -NEGLIGIBLE) and _differs(each) for each in members)
    return _decided(within, outside)


GAINS = gains()
SUFFICES = Rule(
    f"reproduced if the interval lies below {NEGLIGIBLE:g} points, be it above 0 or not; refuted if it lies above "
    f"{NEGLIGIBLE:g} and {DIFFERS}; else owed",
    lambda found: _decided(found.hi < NEGLIGIBLE, found.lo > NEGLIGIBLE and _differs(found)),
)
SAME = Rule(
    f"reproduced if every cell's interval lies within {NEGLIGIBLE:g} points of 0; refuted if one lies outside that "
    f"entirely and {DIFFERS}; else owed",
    _same,
)
OWED_HERE = Rule("owed: nothing here can decide it", lambda found: OWED)


def at_least(limit: float) -> Rule:
    """The figure, a gain, reaches `limit`."""
    return Rule(
        f"reproduced if the interval lies above {limit:g}, {DIFFERS} and {AGREE}; refuted if it lies below; else owed",
        lambda found: _above(found, limit, found.hi < limit),
    )


def at_most(limit: float) -> Rule:
    """The figure does not pass `limit`."""
    return Rule(
        f"reproduced if all of it lies at or below {limit:g}; refuted if all of it lies above; else owed",
        lambda found: _decided(found.hi <= limit, found.lo > limit),
    )


def more_than(limit: float) -> Rule:
    """The figure passes `limit`."""
    return Rule(
        f"reproduced if all of it lies above {limit:g}; refuted if all of it lies at or below; else owed",
        lambda found: _decided(found.lo > limit, found.hi <= limit),
    )


def is_about(value: float, within: float, unknown: str) -> Rule:
    """The figure is `value`, to `within`; `unknown` is what decides where the range lies on both sides of that."""
    low, high = value - within, value + within
    return Rule(
        f"reproduced if all of the range lies within {within:g} of {value:g}; refuted if none of it does; owed where "
        f"it depends on {unknown}",
        lambda found: _decided(low <= found.lo and found.hi <= high, found.hi < low or found.lo > high),
    )
