"""The same count by fvcore, on the meta device: a tracer with its own rule for every operator.

fvcore counts a multiply-add as 1; here it is 2. It has no rule for fused attention and drops it in silence from
the total, so it is given one; and an exact one for einsum, whose own reads numpy's report, rounded to four
digits. With these, `architectures.cost` agrees to the operation on matrix products, convolutions and attention.
What fvcore counts beyond that (norms, upsampling, adaptive pooling) and what it has no rule for is listed.
"""

import math
import warnings
from collections import Counter as Sums
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from architectures import SlowFastConfig
from architectures.cost import Cost, DecodeCost
from harness.profilers.flops import ByModule, count_decode, count_prefill

FLOP_PER_MAC = 2
BELOW = "module."  # what the paths inside of a `Traced` part begin with
CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
SIZES = {torch.Tensor.shape.__get__, torch.Tensor.size, torch.Tensor.__len__, torch.Tensor.numel}
FUSED_ATTENTION = (  # the first whatever kernel runs; the others where they are called themselves
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
)
PRODUCTS = {"addmm", "baddbmm", "bmm", "conv", "einsum", "linear", "matmul", "mm", *FUSED_ATTENTION}


@dataclass(frozen=True)
class FvcoreCount:
    """What fvcore counts: `cost`, FLOP = 2 x MAC of matrix products, convolutions and attention, by stage.

    `other` is what else it counts, operator -> operations by its own rules; `unsupported` operator -> how many
    of them it saw and has no rule for.
    """

    cost: Cost | DecodeCost
    other: dict[str, int]
    unsupported: dict[str, int]


def fvcore_prefill(config: SlowFastConfig, frames: int, text_tokens: int, every_logit: bool = False) -> FvcoreCount:
    """As `count_prefill`, by fvcore."""
    counter = ByFvcore()
    cost = count_prefill(config, frames, text_tokens, every_logit, counter)
    return FvcoreCount(cost, dict(counter.other), dict(counter.unsupported))


def fvcore_decode(
    config: SlowFastConfig, frames: int, text_tokens: int, bytes_per_number: int = 2, reproject: bool = False
) -> FvcoreCount:
    """As `count_decode`, by fvcore."""
    counter = ByFvcore()
    cost = count_decode(config, frames, text_tokens, bytes_per_number, reproject, counter)
    return FvcoreCount(cost, dict(counter.other), dict(counter.unsupported))


@dataclass
class ByFvcore:
    """A `harness.profilers.flops.Counter`; `other` and `unsupported` add up over all that it counts."""

    other: Sums[str] = field(default_factory=Sums)
    unsupported: Sums[str] = field(default_factory=Sums)

    def __call__(
        self, module: nn.Module, run: Callable[..., Any], *inputs: torch.Tensor, times: int = 1
    ) -> tuple[Any, ByModule]:
        traced = Traced(module, run)
        with torch.no_grad(), Recordable():
            analysis = analysis_of(traced, inputs)
            by_module = analysis.by_module_and_operator()
            for operator, count in analysis.unsupported_ops().items():
                self.unsupported[operator] += times * count
        everything = by_module.get("", {})
        for operator, count in everything.items():
            if operator not in PRODUCTS:
                self.other[operator] += times * int(count)
        below = {path.removeprefix(BELOW): each for path, each in by_module.items() if path.startswith(BELOW)}
        return traced.result, {path: products(each, times) for path, each in {**below, "": everything}.items()}


def products(operators: dict[str, float], times: int) -> dict[str, int]:
    """FLOPs of `times` the multiply-adds, of matrix products, convolutions and attention only."""
    return {name: FLOP_PER_MAC * times * int(macs) for name, macs in operators.items() if name in PRODUCTS}


class Traced(nn.Module):
    """A part of the model as fvcore wants it: a module that is called with tensors, and keeps the `result`."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]):
        super().__init__()
        self.module, self.run, self.result = module, run, None

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.result = self.run(*inputs)
        return tuple(tensors_of(self.result))  # what does not lead to a result is cut from the trace


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """The tensors inside of nested containers and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        yield from tensors_of([getattr(value, each.name) for each in fields(value)])
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


class Recordable(TorchFunctionMode):
    """Makes what runs on the meta device visible to torch's tracer, which fvcore relies on.

    The tracer knows a convolution by its inner operator, which the meta device's own implementation passes by;
    and it turns sizes into tensors, which that implementation does not take for numbers.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in SIZES:
            with untraced():
                return func(*args, **kwargs)
        if func in CONVOLUTIONS:
            return convolve(CONVOLUTIONS[func], *args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def untraced():
    """Inside, nothing is recorded."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def convolve(
    axes: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """A convolution over so many `axes`, by the operator that the tracer knows; arguments as of `F.conv2d`.

    Raises ValueError for a padding in words other than "valid", which is none.
    """
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"A convolution with padding '{padding}' can't be traced: give the padding in numbers.")
    padding = 0 if padding == "valid" else padding
    stride, padding, dilation = ([n] * axes if isinstance(n, int) else list(n) for n in (stride, padding, dilation))
    return torch._convolution(
        input, weight, bias, stride, padding, dilation, False, [0] * axes, groups, False, False, False, False
    )


# -------------------------------------------------------------------------------------------------------- rules


def analysis_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    """fvcore's analysis of `module(*inputs)`, with the missing rules; it runs once something is asked of it."""
    with warnings.catch_warnings():  # fvcore compiles a function by torch.jit as it is imported
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis
    analysis = FlopCountAnalysis(module, inputs).set_op_handle(**RULES)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


def sizes(value: Any) -> list[int]:
    """The shape of a traced tensor."""
    return value.type().sizes()


def attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of q k' and of its product with v, full square: `(..., N, E), (..., S, E), (..., S, V)`."""
    query, key, value = (sizes(each) for each in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of `input + a @ b`, batch by batch; the addition is left out, as in fvcore's own addmm."""
    left, right = (sizes(each) for each in inputs[1:3])
    return math.prod(left) * right[-1]


def einsum_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of a product of two tensors: one for every combination of its indices."""
    terms = inputs[0].toIValue().replace(" ", "").partition("->")[0].split(",")
    shapes = [sizes(each) for each in inputs[1].node().inputs()]
    if len(terms) != 2 or any("." in term for term in terms):
        raise ValueError(f"einsum '{inputs[0].toIValue()}': only products of two tensors, without '...', are counted.")
    extent = {index: n for term, shape in zip(terms, shapes, strict=True) for index, n in zip(term, shape, strict=True)}
    return math.prod(extent.values())


RULES = {
    **{f"aten::{name}": attention_macs for name in FUSED_ATTENTION},
    "aten::baddbmm": baddbmm_macs,
    "aten::einsum": einsum_macs,
}
