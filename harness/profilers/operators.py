"""Operations and bytes of every matrix product, convolution and attention, operator by operator, on the meta device.

Bytes are the least that must move: each operand read once, each result written once, attention as one fused
operator that never writes its scores. FLOP = 2 x MAC, attention as the full square; `needed_flop` is the same with
causal attention as what its mask leaves (the i-th query meets i keys), which is all that a kernel has to compute.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Operator:
    """What one operator takes, `times` times over."""

    name: str
    flop: int
    needed_flop: int
    bytes: int
    times: float = 1

    def __mul__(self, times: float) -> "Operator":
        return replace(self, times=self.times * times)


def totals(operators: Iterable[Operator]) -> tuple[int, int]:
    """(FLOP, bytes) of all of them."""
    operators = list(operators)
    return tuple(round(sum(getattr(each, name) * each.times for each in operators)) for name in ("flop", "bytes"))


@torch.no_grad()
def operators_of(run: Callable[[], Any]) -> list[Operator]:
    """The operators that `run` calls, on tensors of the meta device."""
    found: list[Operator] = []
    with _Attention(found), _Products(found):
        run()
    return found


def distinct_bytes(values: Any) -> int:
    """Bytes of the tensors among `values`; numbers that an expanded tensor repeats count once."""
    tensors = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
    return sum(_distinct_numbers(tensor) * tensor.element_size() for tensor in tensors)


def _distinct_numbers(tensor: torch.Tensor) -> int:
    return math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


class _Products(TorchDispatchMode):
    """Matrix products and convolutions, by the formulas of torch's own counter."""

    def __init__(self, found: list[Operator]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            flop = flop_registry[packet](*args, **kwargs, out_val=out)
            moved = distinct_bytes((args, kwargs)) + distinct_bytes(out)
            self.found.append(Operator(packet.__name__, flop, flop, moved))
        return out


class _Attention(TorchFunctionMode):
    """Fused attention as one operator, before torch takes it apart."""

    def __init__(self, found: list[Operator]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        *heads, L, E = query.shape
        S, V = key.shape[-2], value.shape[-1]
        per_score = 2 * math.prod(heads) * (E + V)
        scores = _causal_scores(L, S) if is_causal else L * S
        out = query.new_empty(*heads, L, V)
        moved = distinct_bytes([query, key, value, attn_mask]) + distinct_bytes(out)
        self.found.append(Operator("attention", per_score * L * S, per_score * scores, moved))
        return out


def _causal_scores(L: int, S: int) -> int:
    """Pairs of a query and a key that it meets: torch aligns the first query with the first key."""
    both = min(L, S)
    return both * (both + 1) // 2 + (L - both) * S
