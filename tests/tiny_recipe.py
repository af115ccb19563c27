"""A training of seconds, for test_train.py: `python tiny_recipe.py WORK OUT` saves the weights in OUT.

Every step depends on global random numbers (dropout), on the step's number and on what earlier steps left in
the recipe's state, so that a resumed run is right only if all three are restored.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from harness.train import Optimisation, train

OPTIMISATION = Optimisation(steps=24, lr=1e-2, warmup=4, save_every=5)


class NextToken:
    """Random sequences, and a loss that weighs them by its own running mean, as the base's families are."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"running": {"loss": 1.0}}

    def loss(self, model: PreTrainedModel, step: int) -> torch.Tensor:
        """The loss of a step."""
        ids_BL = torch.randint(0, 16, (4, 8), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=ids_BL, labels=ids_BL).loss * self.state["running"]["loss"]
        self.state["running"]["loss"] += 0.3 * (loss.item() - self.state["running"]["loss"])
        return loss


def tiny_model() -> PreTrainedModel:
    """A decoder of one layer, with dropout."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=0.2,
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(config)


def trained(work: Path, pause: float = 0.0, out: Path | None = None) -> PreTrainedModel:
    """The model after all steps, `pause` seconds each; goes on from what is in `work`."""
    model = tiny_model()

    def report(done: int, total: int) -> None:
        if pause:
            print(done, flush=True)
            time.sleep(pause)

    train(model, NextToken(), OPTIMISATION, work, 0, report)
    if out is not None:
        save_file({name: weight.clone() for name, weight in model.state_dict().items()}, out)
    return model


if __name__ == "__main__":
    trained(Path(sys.argv[1]), 0.05, Path(sys.argv[2]))
