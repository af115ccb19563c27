"""Small random models of every kind that the configuration groups offer, and videos and prompts for them."""

import functools
from typing import Any

import torch
from pairwise import pairwise
from transformers import PreTrainedTokenizerFast

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from harness.compose import compose, group_choices
from harness.mini.tokenizer import build_tokenizer
from harness.models import model_config

CHOICES = group_choices()  # group -> the names of its YAMLs
REFUSED = [frozenset({("fusion", "hyper_attention"), ("gate", "none")})]  # pairs that say why they cannot be
FRAMES = 20


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A vocabulary of a few dozen words."""
    return build_tokenizer(["red green blue yellow one two three left right up down What colour is the ball"], [])


def small_config(*overrides: str, **changes: Any) -> SlowFastConfig:
    """The mini scale's configuration by Hydra's words, then with `changes` to its fields."""
    return SlowFastConfig.from_dict({**_composed(overrides), **changes})


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return model_config(compose(overrides), tokenizer()).to_dict()


def small_model(*overrides: str, seed: int = 0, **changes: Any) -> SlowFastForConditionalGeneration:
    """A random model, its weights large enough for every part to matter, its gates open."""
    return lively(SlowFastForConditionalGeneration(small_config(*overrides, **changes)), seed)


@torch.no_grad()
def lively(model: SlowFastForConditionalGeneration, seed: int = 0) -> SlowFastForConditionalGeneration:
    """Draws all matrices and biases anew and opens the gates; gates of odd layers with a negative sign."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=1.2 * parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(std=0.3, generator=generator)
    open_gates(model)
    return model.eval()


@torch.no_grad()
def open_gates(model: SlowFastForConditionalGeneration) -> None:
    """What a gate starts at zero with, its warm-up say, away from zero; a different number in each gate."""
    for i, gate in enumerate(model.gates()):
        for parameter in gate.parameters():
            if (parameter == 0).all():
                parameter.fill_(0.8 - 1.5 * (i % 2))


def every_combination() -> list[tuple[str, ...]]:
    """Overrides in which any two choices of two groups meet, those about slow tokens in hybrid models only.

    All products would be thousands. Each architecture comes once more, alone; scale and encoder stay as they are.
    """
    about_slow = ("fusion", "gate", "scope", "slow_tokens")  # no part of a model without a hybrid layer
    apart = ("architecture", "encoder", "placement", "scale")
    placements = [name for name in CHOICES["placement"] if name != "none"]
    groups = {group: names for group, names in CHOICES.items() if group not in apart}
    hybrid = pairwise({**groups, "placement": placements}, REFUSED)
    others = {group: names for group, names in groups.items() if group not in about_slow}
    rounds = range(max(len(names) for names in others.values()))
    plain = [{group: names[i % len(names)] for group, names in others.items()} | {"placement": "none"} for i in rounds]
    combinations = [tuple(f"{group}={name}" for group, name in chosen.items()) for chosen in [*plain, *hybrid]]
    return [*combinations, *((f"architecture={name}",) for name in CHOICES["architecture"])]


def video(
    model: SlowFastForConditionalGeneration, batch: int = 1, frames: int = FRAMES, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Random encoder features of `batch` videos and their frames' times, as model inputs."""
    patches = model.encoder.grid[0] * model.encoder.grid[1]
    generator = torch.Generator().manual_seed(seed)
    features_BTPV = torch.randn(batch, frames, patches, model.encoder.width, generator=generator)
    return {"features": features_BTPV, "frame_times": torch.linspace(0, 1, frames).expand(batch, -1)}


def prompt(
    model: SlowFastForConditionalGeneration, text: str = "What colour is the ball", frames: int = FRAMES
) -> torch.Tensor:
    """`input_ids_1L` of a user turn: two words, a video of `frames` frames, a question."""
    ids = tokenizer()("<|im_start|>user")["input_ids"]
    ids += [model.config.video_token_id] * model.fast_token_count(frames)
    return torch.tensor([ids + tokenizer()(text)["input_ids"]])
