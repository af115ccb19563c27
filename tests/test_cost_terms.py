"""No term of the closed form is idle: whichever is dropped, the comparison with the count fails.

Every formula's source is taken, one summand, return value or stage after the other is dropped from it, and the
closed form is computed with what is left, for every variant. That the whole closed form is the count is shown
in test_cost and test_fvcore, at the same sizes.
"""

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
from cost_cases import CASES, LENGTHS, config_at
from small_models import small_config

from architectures import SlowFastConfig, cost
from architectures.compressors import spatio_temporal_convolution
from architectures.cost import STAGES, Cost, DecodeCost, Widths, prefill_cost
from architectures.fusions import FUSIONS
from architectures.gates import GATES
from harness.profilers.flops import count_prefill

NAMES = ("flops", "flops_per_frame", "flops_per_token", "scoring_flops", "slow_flops", "reading_flops", "other_flops")
OWN = [(cost, "prefill_cost"), (cost, "decode_cost"), (spatio_temporal_convolution, "_macs"), (cost._Video, "of")]
OWN += [(Widths, name) for name in ("layers", "slow_keys_values", "lm_head", "slow_kv_numbers")]


def written(owner: Any, name: str) -> list[ast.AST]:
    """The nodes of a formula's syntax tree, in the order in which they are walked through."""
    return list(ast.walk(tree_of(getattr(owner, name))))


def tree_of(function: Any) -> ast.Module:
    """A function's syntax tree, without decorators."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tree.body[0].decorator_list = []
    return tree


class Drop(ast.NodeTransformer):
    """Drops the part number `part` of one node: a summand, a dictionary's value, or all of a value."""

    def __init__(self, target: ast.AST, part: int):
        self.target, self.part = target, part

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.target:
            return self.generic_visit(node)
        if isinstance(node, ast.BinOp):
            return (node.right, node.left)[self.part]
        if isinstance(node, ast.Dict):
            node.values[self.part] = ast.Constant(0)
        else:
            node.value = ast.Constant(0)
        return node


@dataclass(frozen=True)
class Dropped:
    """A term of the formula `owner.name`: the part number `part` of the node number `place`."""

    owner: Any
    name: str
    place: int
    part: int = 0

    def __str__(self) -> str:
        node = written(self.owner, self.name)[self.place]
        parts = [node.left, node.right] if isinstance(node, ast.BinOp) else getattr(node, "values", [node])
        where = f"{getattr(self.owner, '__qualname__', self.owner.__name__)}.{self.name}"
        return f"{where}: {' '.join(ast.unparse(parts[self.part]).split())}"

    def formula(self) -> Any:
        """The function without the term, as what its owner would have."""
        function = getattr(self.owner, self.name)
        tree = tree_of(function)
        tree = ast.fix_missing_locations(Drop(list(ast.walk(tree))[self.place], self.part).visit(tree))
        made: dict[str, Any] = {}
        exec(compile(tree, inspect.getfile(function), "exec"), sys.modules[function.__module__].__dict__, made)
        return classmethod(made[self.name]) if inspect.ismethod(function) else made[self.name]


def formulas() -> Iterator[tuple[Any, str]]:
    """Every function that says what something costs, of all variants that there are."""
    yield from OWN
    for module in sorted(name for name in sys.modules if name.startswith("architectures.")):
        for _, kind in inspect.getmembers(sys.modules[module], inspect.isclass):
            if kind.__module__ == module:
                yield from ((kind, name) for name in NAMES if name in vars(kind) and is_used(kind, name))


def is_used(kind: type, name: str) -> bool:
    """Whether some variant computes by it: a rule of a family's base may be overridden by all that there are."""
    variants = [variant for family in (*cost.FAMILIES.values(), FUSIONS, GATES) for variant in family.values()]
    return not inspect.isabstract(kind) or any(getattr(each, name, None) is vars(kind)[name] for each in variants)


def terms() -> Iterator[Dropped]:
    """Every term of every formula: both sides of each sum, each named part of a cost, each returned number."""
    for owner, name in formulas():
        for place, node in enumerate(written(owner, name)):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
                yield from (Dropped(owner, name, place, part) for part in (0, 1))
            elif isinstance(node, ast.Dict):
                yield from (Dropped(owner, name, place, part) for part in range(len(node.values)))
            elif is_number(node):
                yield Dropped(owner, name, place)


def is_number(node: ast.AST) -> bool:
    """Whether a node gives a stage of a cost its FLOPs, or returns what it computed of them."""
    if isinstance(node, ast.keyword):
        return node.arg in STAGES
    returned = node.value if isinstance(node, ast.Return) else None
    summed = isinstance(returned, ast.Call) and isinstance(returned.func, ast.Name) and returned.func.id == "sum"
    return summed or isinstance(returned, ast.BinOp | ast.IfExp)


TERMS = list(terms())


@functools.cache
def configurations() -> dict[str, SlowFastConfig]:
    """Every variant at the middle size, and options that bring a term of their own."""
    own_query = small_config(fusion={"name": "slow_fast", "query": "own"})
    return {"own query": own_query, **{case: config_at("middle", case) for case in CASES}}


def costs(config: SlowFastConfig) -> tuple[Cost, Cost, DecodeCost]:
    """All that the closed form says."""
    lengths = LENGTHS["middle"]
    last, every = (cost.prefill_cost(config, *lengths, every_logit=every) for every in (False, True))
    return last, every, cost.decode_cost(config, *lengths, reproject=True)


@functools.cache
def whole() -> dict[str, tuple[Cost, Cost, DecodeCost]]:
    """The closed form with all of its terms."""
    return {case: costs(config) for case, config in configurations().items()}


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_a_dropped_term_is_noticed(term: Dropped) -> None:
    before = whole()
    with patch.object(term.owner, term.name, term.formula()):
        assert any(costs(config) != before[case] for case, config in configurations().items())
    assert costs(configurations()[CASES[0]]) == before[CASES[0]]


@pytest.mark.parametrize("stage", STAGES)
def test_a_dropped_stage_is_noticed(stage: str) -> None:
    config, (frames, text_tokens) = config_at("middle", "architecture=slow_fast"), LENGTHS["middle"]
    closed = prefill_cost(config, frames, text_tokens)
    assert closed == (count := count_prefill(config, frames, text_tokens))
    assert replace(closed, **{stage: 0}) != count
    assert replace(closed, **{stage: 0}).model != count.model
