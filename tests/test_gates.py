"""Gates against their formulas on plain numbers; what starts closed, how it opens, how it is shut for good."""

import math
from inspect import signature

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from architectures.gates import GATES, Gate
from harness.compose import CONF, group_choices

G, N, Q, E = 2, 5, 3, 4
FORMULAS = {  # of the logit w . a + b and the warm-up
    "dynamic_tanh": lambda logit, warmup: math.tanh(logit) * math.tanh(warmup),
    "dynamic_tanh_linear_warmup": lambda logit, warmup: math.tanh(logit) * warmup,
    "dynamic_tanh_no_warmup": lambda logit, warmup: math.tanh(logit),
    "dynamic": lambda logit, warmup: logit,
    "dynamic warmup=tanh": lambda logit, warmup: logit * math.tanh(warmup),
    "dynamic warmup=linear": lambda logit, warmup: logit * warmup,
    "static_tanh": lambda logit, warmup: math.tanh(warmup),
    "sigmoid": lambda logit, warmup: math.tanh(warmup) / (1 + math.exp(-logit)),
    "sigmoid warmup=false": lambda logit, warmup: 1 / (1 + math.exp(-logit)),
    "per_head": lambda logit, warmup: math.tanh(logit) * math.tanh(warmup),
    "per_channel": None,
    "none": lambda logit, warmup: 1.0,
}
OPEN = ("dynamic_tanh_no_warmup", "dynamic", "sigmoid warmup=false", "none")  # the rest starts closed
every_gate = pytest.mark.parametrize("which", FORMULAS)


def build(which: str) -> Gate:
    """The gate of a key of `FORMULAS`, in the middle of training: no parameter is zero."""
    gate = new(which)
    generator = torch.Generator().manual_seed(2)
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    return gate


def new(which: str, **options: float) -> Gate:
    """The gate of a key of `FORMULAS` as built."""
    name, *rest = which.split()
    chosen = dict(text.split("=") for text in rest)
    chosen |= {"warmup": False} if chosen.get("warmup") == "false" else {}
    torch.manual_seed(1)
    return GATES.build({"name": name, **chosen, **options}, heads=Q, head_dim=E)


def attended(seed: int = 0) -> torch.Tensor:
    """Self-attention's output of N tokens in G contexts."""
    return torch.randn(G, N, Q, E, generator=torch.Generator().manual_seed(seed))


def by_hand(which: str, gate: Gate, attended_QE: torch.Tensor) -> list[list[float]]:
    """The gate of one token, head by head and channel by channel."""
    if which == "per_channel":
        return [[math.tanh(gate.scale[head, channel].item()) for channel in range(E)] for head in range(Q)]
    inputs = attended_QE.flatten().tolist()
    warmup = gate.warmup.item() if hasattr(gate, "warmup") else math.nan
    rows = []
    for head in range(Q):
        logit = math.nan
        if hasattr(gate, "projection"):
            row = head if which == "per_head" else 0
            weights, bias = gate.projection.weight[row].tolist(), gate.projection.bias[row].item()
            logit = sum(w * a for w, a in zip(weights, inputs, strict=True)) + bias
        rows.append([FORMULAS[which](logit, warmup)] * E)
    return rows


def test_every_gate_is_tested() -> None:
    assert {which.split()[0] for which in FORMULAS} == set(GATES) == set(group_choices()["gate"])


@every_gate
@torch.no_grad()
def test_a_gate_is_its_formula(which: str) -> None:
    gate, attended_GNQE = build(which), attended()
    found = gate(attended_GNQE)
    expected = [[by_hand(which, gate, attended_QE) for attended_QE in context] for context in attended_GNQE]
    shapes = {"per_head": (G, N, Q, 1), "per_channel": (G, N, Q, E)}
    assert found.shape == shapes.get(which, (G, N, 1, 1))
    torch.testing.assert_close(found.expand(G, N, Q, E), torch.tensor(expected))
    assert len(found.unique()) > 1 or which.split()[0] in ("static_tanh", "none")


@pytest.mark.parametrize("which", [which for which in FORMULAS if hasattr(new(which), "projection")])
def test_a_new_gate_has_torch_s_weights_and_its_own_bias(which: str) -> None:
    gate = new(which, bias=0.37)
    for module in gate.modules():  # what Hugging Face's initialisation of a whole model does before
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=5.0)
            nn.init.zeros_(module.bias)
    if gate.starts_closed:
        nn.init.ones_(gate.warmup)
    gate.reset_parameters()
    assert gate.projection.bias.tolist() == pytest.approx([0.37] * len(gate.projection.bias))
    assert (gate.projection.weight != 0).all()
    assert gate.projection.weight.abs().max() <= (Q * E) ** -0.5
    assert not gate.starts_closed or gate.warmup.item() == 0


@every_gate
def test_a_gate_starts_closed_or_says_that_it_does_not(which: str) -> None:
    gate, attended_GNQE = new(which), attended()
    crossed_GNQE = attended(seed=1)
    same = torch.equal(attended_GNQE + gate(attended_GNQE) * crossed_GNQE, attended_GNQE)
    assert same == gate.starts_closed == (which not in OPEN) == (gate(attended_GNQE) == 0).all().item()
    if " " not in which:
        assert type(gate).starts_closed == gate.starts_closed
    for parameter in gate.parameters():
        nn.init.ones_(parameter)
    gate.reset_parameters()
    assert (gate(attended_GNQE) == 0).all().item() == gate.starts_closed


@pytest.mark.parametrize("which", [which for which in FORMULAS if which != "none"])
def test_training_can_leave_the_start(which: str) -> None:
    """Each gate learns how much of what crosses to add, as far as it can tell one token from another."""
    gate, attended_GNQE, crossed_GNQE = new(which), attended(), attended(seed=1)
    wanted_GNQE = 0.5 * (attended_GNQE.mean((2, 3), keepdim=True) > 0) + 0.1

    def loss() -> torch.Tensor:
        return ((gate(attended_GNQE) - wanted_GNQE) * crossed_GNQE).square().mean()

    at_start = loss()
    at_start.backward()
    moving = {name for name, parameter in gate.named_parameters() if parameter.grad.abs().sum() > 0}
    if which in OPEN:
        assert moving == {"projection.weight", "projection.bias"}
    else:  # the projection waits until the warm-up has moved
        assert moving == ({"scale"} if which == "per_channel" else {"warmup"})
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < (0.1 if hasattr(gate, "projection") else 0.9) * at_start
    assert all(parameter.grad.abs().sum() > 0 for parameter in gate.parameters())
    assert (gate(attended_GNQE) != 0).all()


@every_gate
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@torch.no_grad()
def test_a_closed_gate_is_exactly_zero_and_stays_so_when_saved(which: str, dtype: torch.dtype) -> None:
    gate, attended_GNQE = build(which).to(dtype), 30 * attended().to(dtype)
    assert (gate(attended_GNQE) != 0).any()
    gate.close_()
    assert (gate(attended_GNQE) == 0).all()
    again = build(which).to(dtype)
    again.load_state_dict(gate.state_dict())
    assert (again(attended_GNQE) == 0).all()


@every_gate
def test_the_closed_form_is_the_count(which: str) -> None:
    gate = new(which)
    with FlopCounterMode(display=False) as counter:
        gate(attended())
    assert counter.get_total_flops() == G * N * gate.flops_per_token()
    expected = {"static_tanh": 0, "per_channel": 0, "none": 0, "per_head": 2 * Q * E * Q}
    assert gate.flops_per_token() == expected.get(which, 2 * Q * E)


def test_saved_names_of_the_released_gates_stay() -> None:
    assert list(new("dynamic_tanh").state_dict()) == ["warmup", "projection.weight", "projection.bias"]
    assert list(new("static_tanh").state_dict()) == ["warmup"]


def test_a_gate_that_cannot_be_says_why() -> None:
    with pytest.raises(ValueError, match=r"^The gate's warmup is 'slow': choose one of linear, none, tanh\.$"):
        GATES.build({"name": "dynamic", "warmup": "slow"}, heads=Q, head_dim=E)
    with pytest.raises(ValueError, match=r"^gate 'per_channel' has no option 'heads': its options are none\.$"):
        GATES.build({"name": "per_channel", "heads": 2}, heads=Q, head_dim=E)


@pytest.mark.parametrize("name", sorted(GATES))
def test_a_yaml_lists_every_option(name: str) -> None:
    options = OmegaConf.load(CONF / "gate" / f"{name}.yaml")
    assert set(options) == {"name", *signature(GATES[name]).parameters} - {"heads", "head_dim"}
    assert isinstance(GATES.build(OmegaConf.to_container(options), heads=Q, head_dim=E), Gate)
