"""AdamW with a rate per part, and the order of the data: both functions of the settings alone, so that runs repeat."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from harness.finetune.parts import dimensions, part_of, trained

EPOCH = 1_000_003  # between the seeds of two epochs: prime, beyond any seed that is typed


def parameter_groups(
    model: nn.Module, lr: float, lr_of: Mapping[str, float | None], weight_decay: float
) -> list[dict[str, Any]]:
    """The parameters that learn, grouped by rate and weight decay, which is for matrices only.

    Args:
        lr: of the parts that `lr_of` has no number for.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained(model):
        rate = lr_of.get(part_of(name))
        decay = weight_decay if dimensions(parameter) >= 2 else 0.0
        groups.setdefault((lr if rate is None else rate, decay), []).append(parameter)
    return [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]


class Order(Sampler[int]):
    """Which example comes when: a shuffle that is a function of (seed, epoch), the same in every process.

    `step` is the number of examples of one optimiser step over all processes. Only whole steps come: what does not
    fill the last one of an epoch waits for another epoch's shuffle. With `lengths`, examples of similar length stand
    together within a step, and steps are in random order: no process waits for another's long ones.
    """

    def __init__(self, examples: int, seed: int, step: int, lengths: Sequence[int] | None = None):
        if lengths is not None and len(lengths) != examples:
            raise ValueError(f"There are {len(lengths)} lengths of {examples} examples.")
        self.examples, self.seed, self.step, self.lengths = examples, seed, step, lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.examples // self.step * self.step

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(EPOCH * self.epoch + self.seed)
        if self.lengths is None:
            return iter(torch.randperm(self.examples, generator=generator).tolist()[: len(self)])
        grouped = get_length_grouped_indices(list(self.lengths), self.step, generator=generator)
        return iter(self._shuffled_steps(grouped, generator))

    def _shuffled_steps(self, order: list[int], generator: torch.Generator) -> list[int]:
        """The whole steps in random order: the library's begin with the longest of every fifty."""
        steps = [order[i : i + self.step] for i in range(0, len(self), self.step)]
        first, *others = steps or [[]]  # the longest of all stays first: memory that does not suffice shows at once
        shuffled = [others[i] for i in torch.randperm(len(others), generator=generator)]
        return [index for step in (first, *shuffled) for index in step]
