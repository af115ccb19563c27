"""How often the entries of one annotation file come in the mixture of all."""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from harness.errors import UserError

T = TypeVar("T")


def weighted(entries: Sequence[T], weight: float, seed: str) -> list[T]:
    """Each entry `weight` times: all of them as often as it is whole, and of the rest a share drawn by `seed`.

    1.5 times 10 entries are all of them and then 5, in their order. UserError unless the weight is above 0 and
    leaves at least one entry.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        raise UserError(f"weight={weight!r} of an annotation file: give a number above 0, or leave the file out")
    whole = int(weight)
    share = round((weight - whole) * len(entries))
    drawn = sorted(random.Random(seed).sample(range(len(entries)), share))
    mixed = [*entries] * whole + [entries[index] for index in drawn]
    if not mixed:
        raise UserError(f"weight={weight} of an annotation file leaves none of its {len(entries)} entries: raise it")
    return mixed
