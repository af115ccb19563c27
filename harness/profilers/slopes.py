"""How a cost grows: the slope of its logarithm against that of the frames, with an interval, and at both ends.

A cost c x frames^k has the slope k. A sum of constant, linear and quadratic terms has none: its slope grows along the
curve, so the one through all points comes with those of the first and of the last two. The interval then says how
little a power law describes the curve, not only how much a measurement scatters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Slope:
    """The least-squares slope through all points with its 95% interval, and the local ones at both ends."""

    slope: float
    low: float
    high: float
    first: float
    last: float


def slope_of(frames: Sequence[float], costs: Sequence[float]) -> Slope | None:
    """The slope of log(cost) against log(frames); None of fewer than three points, which say nothing of scatter.

    Args:
        frames: ascending numbers of frames, above zero.
        costs: of as many frames each, above zero.
    """
    if len(frames) < 3:
        return None
    x, y = np.log(np.asarray(frames, float)), np.log(np.asarray(costs, float))
    fit = stats.linregress(x, y)
    error = fit.stderr if np.ptp(y) else 0.0  # of a constant, scipy has none
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * error
    local = np.diff(y) / np.diff(x)
    return Slope(*(float(value) for value in (fit.slope, fit.slope - half, fit.slope + half, local[0], local[-1])))
