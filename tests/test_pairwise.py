"""The combinations that tests of variants run over hold every pair of choices, and stay few."""

from itertools import combinations, product

import pytest
from pairwise import pairwise
from small_models import CHOICES, REFUSED, every_combination, small_model

ABOUT_SLOW = {"fusion", "gate", "scope", "slow_tokens"}


@pytest.mark.parametrize(
    "sizes", [(2, 2), (3, 3, 3), (13, 7, 9, 3, 6), (1, 5, 2), (4, 4, 4, 4, 4), (2, 3, 1, 7)], ids=str
)
def test_any_two_choices_meet(sizes: tuple[int, ...]) -> None:
    groups = {f"g{i}": [f"{i}-{j}" for j in range(size)] for i, size in enumerate(sizes)}
    found = pairwise(groups)
    assert all(list(chosen) == list(groups) for chosen in found)
    for first, second in combinations(groups, 2):
        met = {(chosen[first], chosen[second]) for chosen in found}
        assert met == set(product(groups[first], groups[second]))
    largest, next_largest = sorted(sizes)[-1:-3:-1]
    assert largest * next_largest <= len(found) <= 1.7 * largest * next_largest
    assert pairwise(groups) == found


def test_every_pair_of_variants_is_tried() -> None:
    found = [dict(text.split("=") for text in overrides) for overrides in every_combination()]
    alone = [chosen["architecture"] for chosen in found if "architecture" in chosen]
    assert alone == CHOICES["architecture"]
    groups = set(CHOICES) - {"architecture", "encoder", "scale"}
    for first, second in combinations(sorted(groups), 2):
        met = {(chosen.get(first), chosen.get(second)) for chosen in found}
        for pair in product(CHOICES[first], CHOICES[second]):
            chosen = dict(zip((first, second), pair, strict=True))
            without_slow = chosen.get("placement") == "none" and bool({first, second} & ABOUT_SLOW)
            assert (pair in met) != (without_slow or frozenset(chosen.items()) in REFUSED), pair
    assert all(overrides[0].startswith(("compressor=", "architecture=")) for overrides in every_combination())
    assert len(found) < 250


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: " ".join(sorted(name for _, name in refused)))
def test_what_does_not_go_together_says_why(refused: frozenset) -> None:
    with pytest.raises(ValueError, match=r"^fusion 'hyper_attention': gate 'none' leaves nothing of self-attention"):
        small_model(*(f"{group}={name}" for group, name in refused))
