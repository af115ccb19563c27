"""The closed form of the cost against fvcore's count: its own rules, the supplied ones, and what it leaves out."""

import warnings

import pytest
import torch
from cost_cases import CASES, LENGTHS, SIZES, config_at
from small_models import small_config
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from architectures.cost import Cost, decode_cost, prefill_cost
from harness.profilers.flops import META
from harness.profilers.fvcore_count import ByFvcore, FvcoreCount, fvcore_decode, fvcore_prefill

BIG = ("architecture=slow_fast",)  # at 7B among the fast tests
COMPARED = [  # those that are not slow are compared with torch's count at mini size, in test_cost
    pytest.param(size, case, marks=[] if size == "middle" or (size == "paper" and case in BIG) else pytest.mark.slow)
    for size in SIZES
    for case in CASES
]
PRODUCTS = ("attention", "conv", "dot", "einsum", "linear", "matmul", "mm", "mv")
NOTHING = Cost(*[0] * 12)


def of(run: nn.Module, *inputs: torch.Tensor) -> tuple[int, FvcoreCount]:
    """FLOPs of matrix products, convolutions and attention in a module, and the rest."""
    counter = ByFvcore()
    _, found = counter(run, run, *inputs)
    return sum(found[""].values()), FvcoreCount(NOTHING, dict(counter.other), dict(counter.unsupported))


class Run(nn.Module):
    """A function as a module."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.run(*inputs)


@pytest.mark.parametrize(("size", "case"), COMPARED)
def test_the_closed_form_is_its_count(size: str, case: str) -> None:
    config, (frames, text_tokens) = config_at(size, case), LENGTHS[size]
    count = fvcore_prefill(config, frames, text_tokens)
    assert count.cost == prefill_cost(config, frames, text_tokens)
    left_out = [name for name in (*count.unsupported, *count.other) if "upsample" not in name]
    assert not [name for name in left_out if any(product in name for product in PRODUCTS)]


@pytest.mark.parametrize("architecture", ["self_attention", "slow_fast_official"])
def test_lm_head_and_a_decoded_token_too(architecture: str) -> None:
    config = small_config(f"architecture={architecture}")
    assert fvcore_prefill(config, 20, 9, every_logit=True).cost == prefill_cost(config, 20, 9, every_logit=True)
    for reproject in (False, True):
        assert fvcore_decode(config, 20, 9, reproject=reproject).cost == decode_cost(config, 20, 9, reproject=reproject)


# ------------------------------------------------------------------------------------------ what it lacks, and adds


def test_without_the_supplied_rule_all_attention_is_missing() -> None:
    """Why there is one: fvcore by itself drops fused attention from the total."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis

    query, key, value = (torch.empty(2, 3, n, e, device=META) for n, e in ((5, 8), (7, 8), (7, 4)))
    run = Run(F.scaled_dot_product_attention)
    alone = FlopCountAnalysis(run, (query, key, value)).unsupported_ops_warnings(False).tracer_warnings("none")
    assert alone.total() == 0
    assert dict(alone.unsupported_ops()) == {"aten::scaled_dot_product_attention": 1}
    macs = 0
    for _ in range(2 * 3 * 5 * 7):  # batch, heads, queries, keys: a score of 8 channels, a value of 4
        macs += 8 + 4
    assert of(run, query, key, value) == (2 * macs, FvcoreCount(NOTHING, {}, {}))


def test_what_else_it_counts_is_listed_by_operator() -> None:
    config = small_config("encoder=siglip", **{"vision": {"name": "siglip", "depth": 2, "image_size": 56}})
    count, frames = fvcore_prefill(config, 6, 5), 6
    width, patches = 1152, 4 * 4
    norms = 2 * 2 + 1  # two a layer, one at the end
    assert count.other == {"layer_norm": 5 * frames * norms * patches * width}  # five operations a number
    assert count.cost == prefill_cost(config, frames, 5)


def test_what_it_has_no_rule_for_is_listed_with_its_number() -> None:
    config, frames = small_config(), 6
    unsupported = fvcore_prefill(config, frames, 5).unsupported
    layers, hybrid = config.text_config.num_hidden_layers, 2
    assert unsupported["aten::silu"] == layers
    assert unsupported["aten::gelu"] == 3 * frames + 1  # three in the encoder, for each frame; one in the projector
    assert unsupported["aten::tanh"] == 2 * hybrid  # of the gate and of its warm-up
    assert unsupported["aten::rsqrt"] == 2 * layers + 1 + hybrid  # RMS norms, also of slow tokens


# ------------------------------------------------------------------------------------------ rules against torch


RUNS = {
    "linear": (lambda x, w: F.linear(x, w), [(2, 3, 5), (7, 5)]),
    "addmm": (lambda b, x, w: torch.addmm(b, x, w), [(7,), (3, 5), (5, 7)]),
    "baddbmm": (lambda b, x, y: torch.baddbmm(b, x, y), [(2, 3, 7), (2, 3, 5), (2, 5, 7)]),
    "bmm": (lambda x, y: torch.bmm(x, y), [(2, 3, 5), (2, 5, 7)]),
    "matmul": (lambda x, y: x @ y, [(2, 4, 3, 5), (2, 4, 5, 7)]),
    "einsum": (lambda x, y: torch.einsum("btpd,bd->btp", x, y), [(2, 11, 13, 1009), (2, 1009)]),
    "outer einsum": (lambda x, y: torch.einsum("ab, cb -> ac", x, y), [(3, 5), (7, 5)]),
    "conv1d": (lambda x, w: F.conv1d(x, w, stride=2, padding=1), [(2, 6, 19), (8, 6, 3)]),
    "conv2d": (lambda x, w: F.conv2d(x, w, stride=(2, 1), padding="valid"), [(2, 6, 9, 11), (8, 6, 3, 2)]),
    "depthwise": (lambda x, w: F.conv2d(x, w, padding=3, groups=6), [(2, 6, 9, 11), (6, 1, 7, 7)]),
    "conv3d": (lambda x, w, b: F.conv3d(x, w, b, dilation=2), [(1, 4, 7, 9, 9), (5, 4, 2, 3, 3), (5,)]),
    "attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)]),
    "causal": (lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), [(2, 3, 5, 8)]),
    "grouped": (
        lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
        [(2, 6, 5, 8), (2, 3, 7, 8)],
    ),
    "efficient": (
        lambda q: torch.ops.aten._scaled_dot_product_efficient_attention(q, q, q, None, False)[0],
        [(2, 3, 5, 8)],
    ),
    "math": (lambda q: torch.ops.aten._scaled_dot_product_attention_math(q, q, q)[0], [(2, 3, 5, 8)]),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_rule_agrees_with_torch(name: str) -> None:
    function, shapes = RUNS[name]
    inputs = [torch.empty(shape, device=META) for shape in shapes]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    flops, rest = of(Run(function), *inputs)
    assert flops == counter.get_total_flops() > 0
    assert (rest.other, rest.unsupported) == ({}, {})


def test_fused_attention_on_a_cpu_has_its_rule_too() -> None:
    query = torch.zeros(2, 3, 5, 8)
    flops, _ = of(Run(lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0]), query)
    assert flops == 4 * 2 * 3 * 5 * 5 * 8


def test_what_cannot_be_counted_says_so() -> None:
    x, y = torch.empty(3, 5, device=META), torch.empty(5, 7, device=META)
    with pytest.raises(ValueError, match=r"einsum '\.\.\.b,bc->\.\.\.c': only products of two tensors"):
        of(Run(lambda x, y: torch.einsum("...b,bc->...c", x, y)), x, y)
    image, weight = torch.empty(1, 2, 9, 9, device=META), torch.empty(4, 2, 3, 3, device=META)
    with pytest.raises(ValueError, match="padding 'same' can't be traced: give the padding in numbers"):
        of(Run(lambda x, w: F.conv2d(x, w, padding="same")), image, weight)
