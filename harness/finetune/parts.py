"""The parts of a model, by the names of its parameters: which of them train, each perhaps at a rate of its own.

encoder --> projector --> compressor ----> language_model, in its hybrid layers: cross_attention, gates
selector    time_positions
"""

import re
from collections.abc import Collection, Iterable, Iterator

from torch import nn

from harness.errors import UserError

GATES, CROSS_ATTENTION, LANGUAGE_MODEL = "gates", "cross_attention", "language_model"
PATTERNS = {  # the first that is found in a parameter's name says its part
    "lora": re.compile(r"\.lora_[A-Z]"),
    GATES: re.compile(r"\.cross_(attention|block)\.(.*\.)?gate\."),
    CROSS_ATTENTION: re.compile(r"\.cross_(attention|block)\."),
    "encoder": re.compile(r"^encoder\."),
    "selector": re.compile(r"^selector\."),
    "projector": re.compile(r"^projector\."),
    "compressor": re.compile(r"^compressor\."),
    "time_positions": re.compile(r"^time_positions\."),
    LANGUAGE_MODEL: re.compile(r"^language_model\."),
}
LORA = "lora"  # adapters: no part to choose, they learn wherever they are
PARTS = tuple(name for name in PATTERNS if name != LORA)


def part_of(name: str) -> str:
    """The part that a parameter belongs to; ValueError for a name that no part knows."""
    for part, pattern in PATTERNS.items():
        if pattern.search(name):
            return part
    raise ValueError(f"The parameter {name} belongs to no part of a model: name its part in harness/finetune/parts.py.")


def choose(model: nn.Module, trains: Collection[str]) -> dict[str, tuple[int, int]]:
    """Lets the parts `trains` learn (and adapters, if there are any), and nothing else.

    Returns (trained, all) numbers of parameters of every part there is. Raises UserError for a word that is no part,
    and where nothing would be left to learn.
    """
    expect_parts(trains, "recipe.trains")
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in trains or part == LORA)
        trained, all_ = counts.get(part, (0, 0))
        size = numel(parameter)
        counts[part] = (trained + size * parameter.requires_grad, all_ + size)
    if not any(trained for trained, _ in counts.values()):
        raise UserError(f"recipe.trains={list(trains)}: the model has no weights there; it has {', '.join(counts)}")
    return counts


def expect_parts(names: Iterable[str], where: str) -> None:
    """UserError for a word that is no part."""
    for name in names:
        if name not in PARTS:
            raise UserError(f"{where}: there is no part '{name}' of a model; there are {', '.join(PARTS)}")


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that learn, by name; shared ones once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def numel(parameter: nn.Parameter) -> int:
    """How many numbers a parameter has, also where DeepSpeed holds only a share of it here."""
    return getattr(parameter, "ds_numel", parameter.numel())


def dimensions(parameter: nn.Parameter) -> int:
    """How many dimensions a parameter has, also where DeepSpeed holds it flat."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
