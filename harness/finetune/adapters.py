"""Adapters of low rank (LoRA, arXiv 2106.09685) beside the language model's matrices, by peft."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from architectures import SlowFastConfig
from architectures.official import load, read_tensors, remove_weights, skeleton
from harness.errors import UserError

TARGETS = r"language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
BASE, ADAPTER = ".base_layer.", ".lora_"


def add_adapters(model: nn.Module, lora: dict[str, Any], on_meta: bool = False) -> None:
    """Puts an adapter beside each matrix of the decoder's layers, in place; the model stays what it is otherwise.

    `lora`: rank (0: none), alpha, dropout. New adapters change nothing: their second matrix is zero. UserError
    where peft is not installed or finds no such matrix.
    """
    if not lora["rank"]:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("recipe.lora.rank is above 0, but peft is not installed: pip install peft") from error
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=TARGETS)
    try:
        inject_adapter_in_model(config, model, low_cpu_mem_usage=on_meta)
    except ValueError as error:
        raise UserError(f"recipe.lora: this decoder cannot have adapters ({error})") from error


def merge_adapters(folder: Path, lora: dict[str, Any]) -> None:
    """Adds the adapters in a saved model to its weights: afterwards it is a folder without them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    unset_hf_deepspeed_config()  # under ZeRO-3 a model made from here on would be sharded, by this process alone
    config = SlowFastConfig.from_pretrained(folder)
    model = skeleton(config)
    add_adapters(model, lora, on_meta=True)
    model.load_state_dict(read_tensors(folder), strict=False, assign=True)  # without lm_head where it is tied
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
    merged = {name.replace(BASE, "."): tensor for name, tensor in model.state_dict().items() if ADAPTER not in name}
    remove_weights(folder)
    load(config, merged, str(folder)).save_pretrained(folder)
