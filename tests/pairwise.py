"""Few combinations that hold every pair: which variants go together, without trying all products."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

Choice = tuple[str, str]  # (group, name)


def pairwise(groups: Mapping[str, Sequence[str]], never: Collection[frozenset[Choice]] = ()) -> list[dict[str, str]]:
    """Combinations of one choice per group, such that any two choices of two groups meet in one of them.

    Greedy and deterministic: each combination starts from the first pair that has not met yet, of the largest
    groups first, and each further group adds the choice that meets most for the first time. As many as the two
    largest groups have pairs are needed in any case, and where those are much larger than the rest, suffice.
    Pairs in `never` do not go together.
    """
    places = {group: place for place, group in enumerate(groups)}
    open_pairs = dict.fromkeys(
        ((first, one), (second, other))
        for first, second in combinations(sorted(groups, key=lambda group: -len(groups[group])), 2)
        for one in groups[first]
        for other in groups[second]
        if frozenset({(first, one), (second, other)}) not in never
    )

    def worth(one: Choice, other: Choice) -> float:
        if frozenset({one, other}) in never:
            return -math.inf
        return (one, other) in open_pairs or (other, one) in open_pairs

    found = []
    while open_pairs:
        chosen = dict(next(iter(open_pairs)))
        for group in sorted(set(groups) - set(chosen), key=lambda group: (-len(groups[group]), group)):
            gain = {name: sum(worth((group, name), pair) for pair in chosen.items()) for name in groups[group]}
            chosen[group] = max(gain, key=gain.get)
        for pair in combinations(chosen.items(), 2):
            open_pairs.pop(pair, None)
            open_pairs.pop(pair[::-1], None)
        found.append(dict(sorted(chosen.items(), key=lambda pair: places[pair[0]])))
    return found
