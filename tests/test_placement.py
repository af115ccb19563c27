"""Placements against their plain definitions, for decoders of every depth."""

from inspect import signature

import pytest
from omegaconf import OmegaConf

from architectures.placement import PLACEMENTS
from harness.compose import CONF, group_choices

DEPTHS = range(1, 41)


def layers(name: str, n_layers: int, **options: object) -> tuple[int, ...]:
    """The hybrid layers of a placement."""
    return PLACEMENTS.build({"name": name, **options}, n_layers=n_layers)


@pytest.mark.parametrize("n_layers", DEPTHS)
def test_placements_are_their_definitions(n_layers: int) -> None:
    everything = list(range(n_layers))
    assert layers("none", n_layers) == ()
    assert layers("all", n_layers) == tuple(everything)
    for k in range(1, n_layers + 1):
        assert layers("first", n_layers, k=k) == tuple(everything[:k])
        assert layers("last", n_layers, k=k) == tuple(everything[-k:])
        chosen = layers("middle", n_layers, k=k)
        before, after = chosen[0], n_layers - 1 - chosen[-1]
        assert chosen == tuple(range(chosen[0], chosen[0] + k))
        assert after - before in (0, 1)


@pytest.mark.parametrize("n_layers", [1, 2, 6, 13])
def test_every_counts_from_the_minimum_and_ends_below_the_maximum(n_layers: int) -> None:
    for n in range(1, n_layers + 3):
        for minimum in range(n_layers):
            for maximum in (None, *range(minimum + 1, n_layers + 3)):
                expected, layer = [], minimum
                while layer < n_layers and (maximum is None or layer < maximum):
                    expected.append(layer)
                    layer += n
                assert layers("every", n_layers, n=n, minimum=minimum, maximum=maximum) == tuple(expected)


@pytest.mark.parametrize(
    ("n_layers", "options", "expected"),
    [
        (6, {"n": 3, "minimum": 1, "maximum": 5}, (1, 4)),
        (6, {"n": 2, "minimum": 0, "maximum": 6}, (0, 2, 4)),
        (10, {"n": 8, "minimum": 0, "maximum": 10}, (0, 8)),
        (28, {"n": 8}, (0, 8, 16, 24)),
        (28, {}, (0, 8, 16, 24)),
        (6, {"n": 3, "minimum": 1, "maximum": 4}, (1,)),  # the maximum itself is left out
    ],
    ids=str,
)
def test_every_is_what_the_official_code_recorded(n_layers: int, options: dict, expected: tuple[int, ...]) -> None:
    assert layers("every", n_layers, **options) == expected


@pytest.mark.parametrize("n_layers", DEPTHS)
def test_evenly_spaced_layers_are_as_even_as_can_be(n_layers: int) -> None:
    for k in range(1, n_layers + 1):
        chosen = layers("evenly", n_layers, k=k)
        assert (len(chosen), chosen[0]) == (k, 0)
        distances = [after - before for before, after in zip(chosen, (*chosen[1:], n_layers), strict=True)]
        assert min(distances) >= 1
        assert max(distances) - min(distances) <= 1
        if n_layers % k == 0:
            assert chosen == layers("every", n_layers, n=n_layers // k)


def test_evenly_spaced_layers_of_some_decoders() -> None:
    assert layers("evenly", 28, k=4) == (0, 7, 14, 21)
    assert layers("evenly", 10, k=4) == (0, 2, 5, 7)
    assert layers("evenly", 7, k=3) == (0, 2, 4)
    assert layers("evenly", 5, k=1) == (0,)


def test_a_list_is_sorted() -> None:
    assert layers("list", 6, layers=[4, 0, 5]) == (0, 4, 5)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("every", {"n": 0}, r"n is 0, must be at least 1\.$"),
        ("every", {"minimum": -1}, r"minimum is -1, must lie between 0 and 3, below the maximum and the decoder's 4 "),
        ("every", {"minimum": 4}, r"minimum is 4, must lie between 0 and 3, "),
        ("every", {"minimum": 2, "maximum": 2}, r"minimum is 2, must lie between 0 and 1, "),
        ("first", {"k": 5}, r"k is 5, must lie between 1 and the decoder's 4 layers\.$"),
        ("middle", {"k": 0}, r"k is 0, must lie between 1 and the decoder's 4 layers\.$"),
        ("last", {"k": 5}, r"k is 5, must lie between 1 and the decoder's 4 layers\.$"),
        ("evenly", {"k": -2}, r"k is -2, must lie between 1 and the decoder's 4 layers\.$"),
        ("list", {"layers": []}, r"layers is empty, give at least one, or choose placement 'none'\.$"),
        ("list", {"layers": [0, 4]}, r"4 is no layer of the decoder, whose 4 layers are 0 to 3\.$"),
        ("list", {"layers": [-1]}, r"-1 is no layer of the decoder, whose 4 layers are 0 to 3\.$"),
        ("list", {"layers": [1.5]}, r"1\.5 is no layer of the decoder"),
        ("list", {"layers": [2, 0, 2]}, r"layers is \[2, 0, 2\], give each only once\.$"),
    ],
    ids=str,
)
def test_a_placement_that_cannot_be_says_why(name: str, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^placement '{name}': {sentence}"):
        layers(name, 4, **options)


@pytest.mark.parametrize("name", group_choices()["placement"])
def test_a_yaml_lists_every_option(name: str) -> None:
    options = OmegaConf.load(CONF / "placement" / f"{name}.yaml")
    assert options.name == name
    assert set(options) == {"name", *signature(PLACEMENTS[name]).parameters} - {"n_layers"}
    assert set(group_choices()["placement"]) == set(PLACEMENTS)
