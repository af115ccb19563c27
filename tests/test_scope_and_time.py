"""Scopes token by token; time positions against their formulas on plain numbers."""

import math
from inspect import signature

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from architectures.scope import SCOPES, scope_of
from architectures.time_positions import TIME_POSITIONS
from harness.compose import CONF, group_choices

ROWS = [  # t text, V video, . padding
    "ttVVVtttt...",
    "...tVVtVVttt",  # two videos, padded on the left
    "VVVVVVtttttt",
    "tttttttttttV",
    "tttttttt....",  # no video
    "............",
]
READING = {
    "text_only": ["tt---tttt---", "---t--t--ttt", "------tttttt", "ttttttttttt-", "tttttttt----", "------------"],
    "all_tokens": ["ttVVVtttt---", "---tVVtVVttt", "VVVVVVtttttt", "tttttttttttV", "tttttttt----", "------------"],
    "text_after_video": [
        "-----tttt---",
        "------t--ttt",
        "------tttttt",
        "------------",
        "------------",
        "------------",
    ],
}


def mask(rows: list[str], letters: str) -> torch.Tensor:
    """Where the rows hold one of the letters."""
    return torch.tensor([[letter in letters for letter in row] for row in rows])


# ------------------------------------------------------------------------------------------ scopes


@pytest.mark.parametrize("name", sorted(SCOPES))
def test_a_scope_is_what_is_written_out(name: str) -> None:
    reads_BL = scope_of({"name": name})(mask(ROWS, "V"), mask(ROWS, "."))
    assert torch.equal(reads_BL, mask(READING[name], "tV"))


@pytest.mark.parametrize("name", sorted(SCOPES))
def test_a_row_reads_alike_in_any_batch(name: str) -> None:
    scope = scope_of({"name": name})
    for row in ROWS:
        alone = scope(mask([row], "V"), mask([row], "."))
        assert torch.equal(alone[0], scope(mask(ROWS, "V"), mask(ROWS, "."))[ROWS.index(row)])


def test_every_scope_has_a_yaml() -> None:
    assert set(SCOPES) == set(READING) == set(group_choices()["scope"])
    assert all(OmegaConf.load(CONF / "scope" / f"{name}.yaml") == {"name": name} for name in SCOPES)


# ------------------------------------------------------------------------------------------ time positions

TIMES = [0.0, 0.1, 0.25, 0.5, 0.93, 1.0]


def fourier_by_hand(weights_DX: list[list[float]], t: float) -> list[float]:
    features = [2 * t - 1] + [math.cos(math.pi * k * t) for k in range(1, len(weights_DX[0]))]
    return [sum(w * x for w, x in zip(weights, features, strict=True)) for weights in weights_DX]


def sinusoidal_by_hand(width: int, steps: float, scale: float, t: float) -> list[float]:
    position = []
    for channel in range(width):
        angle = steps * t / 10000 ** ((channel - channel % 2) / width)
        position.append(scale * (math.sin(angle) if channel % 2 == 0 else math.cos(angle)))
    return position


@pytest.mark.parametrize("harmonics", [1, 3, 8])
def test_fourier_is_its_formula(harmonics: int) -> None:
    fourier = TIME_POSITIONS.build({"name": "fourier", "harmonics": harmonics}, width=5)
    weights_DX = fourier.projection.weight.tolist()
    expected_TD = torch.tensor([fourier_by_hand(weights_DX, t) for t in TIMES])
    torch.testing.assert_close(
        fourier(torch.tensor([TIMES, TIMES[::-1]])), torch.stack([expected_TD, expected_TD.flip(0)])
    )
    assert list(fourier.state_dict()) == ["projection.weight"]


@pytest.mark.parametrize("width", [1, 2, 7, 12])
@pytest.mark.parametrize(("steps", "scale"), [(128.0, 1.0), (1.0, -0.3), (1000.0, 2.0)])
def test_sinusoidal_is_its_formula(width: int, steps: float, scale: float) -> None:
    time = TIME_POSITIONS.build({"name": "sinusoidal", "steps": steps, "initial_scale": scale}, width=width)
    expected_TD = torch.tensor([sinusoidal_by_hand(width, steps, scale, t) for t in TIMES])
    found_BTD = time(torch.tensor([TIMES, TIMES[::-1]]))
    torch.testing.assert_close(found_BTD, torch.stack([expected_TD, expected_TD.flip(0)]), atol=1e-4, rtol=1e-4)


def test_sinusoidal_tells_near_from_far() -> None:
    """Each of 128 frames is most like itself, then like its neighbours, before all others."""
    time = TIME_POSITIONS.build({"name": "sinusoidal"}, width=64)
    position_TD = time(torch.linspace(0, 1, 128)[None])[0]
    likeness_TT = position_TD @ position_TD.T
    distance_TT = (torch.arange(128)[:, None] - torch.arange(128)).abs()
    for frame in range(128):
        least_near = likeness_TT[frame][distance_TT[frame] <= 2].min()
        assert least_near > likeness_TT[frame][distance_TT[frame] > 2].max()


def test_the_sinusoidal_scale_learns_and_is_built_anew() -> None:
    time = TIME_POSITIONS.build({"name": "sinusoidal", "initial_scale": 0.4}, width=6)
    time(torch.tensor([TIMES])).square().sum().backward()
    assert list(time.state_dict()) == ["scale"]
    assert time.scale.grad.item() > 0
    nn.init.zeros_(time.scale)
    time.reset_parameters()
    assert time.scale.item() == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"^time position 'sinusoidal': steps is 0, must be above 0\.$"):
        TIME_POSITIONS.build({"name": "sinusoidal", "steps": 0}, width=6)


def test_none_and_rotary_add_nothing() -> None:
    for name in ("none", "rotary"):
        time = TIME_POSITIONS.build({"name": name}, width=6)
        assert time(torch.tensor([TIMES])) == 0.0
        assert isinstance(time(torch.tensor([TIMES])), float)
        assert not list(time.parameters())
    assert {name for name, variant in TIME_POSITIONS.items() if variant.rotates_keys} == {"rotary"}


@pytest.mark.parametrize("name", sorted(TIME_POSITIONS))
def test_a_time_position_keeps_its_type_and_costs_what_it_says(name: str) -> None:
    time = TIME_POSITIONS.build({"name": name}, width=6)
    with FlopCounterMode(display=False) as counter:
        time(torch.tensor([TIMES, TIMES]))
    assert counter.get_total_flops() == 2 * len(TIMES) * time.flops_per_frame()
    if list(time.parameters()):
        half = time.to(torch.bfloat16)(torch.tensor([TIMES]))
        assert (half.dtype, half.shape) == (torch.bfloat16, (1, len(TIMES), 6))


@pytest.mark.parametrize("choice", group_choices()["slow_tokens"])
def test_a_yaml_of_slow_tokens_lists_every_option(choice: str) -> None:
    group = OmegaConf.load(CONF / "slow_tokens" / f"{choice}.yaml")
    assert set(group) == {"name", "time", "pooling", "frames"}
    assert group.name == choice
    variant = TIME_POSITIONS[group.time.name]
    assert set(group.time) == {"name", *signature(variant).parameters} - {"width"}


def test_every_time_position_is_a_choice_of_slow_tokens() -> None:
    files = [OmegaConf.load(CONF / "slow_tokens" / f"{choice}.yaml") for choice in group_choices()["slow_tokens"]]
    assert {group.time.name for group in files} == set(TIME_POSITIONS)
    assert {
        group.name: (group.pooling, group.frames) for group in files if (group.pooling, group.frames) != (1, None)
    } == {
        "pooled": (2, None),
        "budget": (1, 32),
    }
