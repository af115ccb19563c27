"""What of a Hugging Face model can become slow-fast, and how its decoder is changed: see `plug_and_play.py`."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from architectures.fusions.base import FUSIONS, expect_layout
from architectures.hybrid import SUFFIX, hybrid_name, make_hybrid, register_hybrid
from architectures.placement import PLACEMENTS
from architectures.scope import scope_of
from architectures.time_positions import TIME_POSITIONS

KNOWN_NORMS = ("q_norm", "k_norm")
OWN_EAGER = "own_eager"  # the eager attention of a module's own file (Gemma2's, with soft-capping)
PROBE = "slow_fast_probe"


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The text decoder inside `model`: the module that holds the layers."""
    decoder = model.get_decoder()
    while not hasattr(decoder, "layers") and hasattr(decoder, "model"):
        decoder = decoder.model
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise ValueError(f"No decoder with a list of layers was found in {type(model).__name__}.")
    if decoder is model:
        raise ValueError(f"{type(model).__name__} is a bare decoder: convert the model that has its head.")
    return decoder


def expect_options(spec: dict[str, Any]) -> None:
    """Raises ValueError for an option of the wrong kind: no variant by name, no chunk, no device."""
    for name in ("placement", "gate", "scope", "fusion", "slow_time"):
        if not isinstance(spec[name], dict) or "name" not in spec[name]:
            raise ValueError(f"{name} is {spec[name]!r}: give a dict with the variant's 'name' and its options.")
    chunk, device = spec["slow_chunk"], spec["slow_device"]
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"slow_chunk is {chunk!r}, must be a number of tokens, at least 1 (None: all at once).")
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"slow_device is {device!r}, which is no device of torch: give 'cpu' or the like.") from error


def hybrid_layers(decoder: PreTrainedModel, spec: dict[str, Any]) -> tuple[int, ...]:
    """The layers that will be hybrid, each of which can be."""
    layers = PLACEMENTS.build(spec["placement"], n_layers=len(decoder.layers))
    if not layers:
        raise ValueError(f"Placement '{spec['placement']['name']}' chooses no layer: there is nothing to convert.")
    if TIME_POSITIONS.find(spec["slow_time"]["name"]).rotates_keys:
        raise ValueError("slow_time 'rotary' needs the fast tokens' places, unknown here: choose another.")
    for index in layers:
        expect_layout(decoder.layers[index])
        expect_known_norms(decoder.layers[index].self_attn)
    return layers


def expect_known_norms(attention: nn.Module) -> None:
    """Raises ValueError for an attention that normalises something we would not."""
    kind = type(attention).__name__
    for name, child in attention.named_children():
        if "norm" in name and name not in KNOWN_NORMS and not isinstance(child, nn.Identity):
            raise ValueError(f"{kind} normalises with '{name}', which slow keys and values would lack.")
    if attention.k_proj.out_features != attention.v_proj.out_features:
        raise ValueError(f"{kind} has keys and values of different widths: not supported.")


def expect_known_names(layer: nn.Module, spec: dict[str, Any]) -> None:
    """Raises ValueError for a variant or option that does not exist, before anything has changed."""
    scope_of(spec["scope"])
    TIME_POSITIONS.build(spec["slow_time"], width=1)
    trial = FUSIONS.build(spec["fusion"], layer=layer, gate=spec["gate"], index=0, first=True)
    trial.to(layer.self_attn.o_proj.weight.device).initialise_(layer, spec["kv_init"])
    if trial.heads * trial.head_dim != layer.self_attn.o_proj.in_features:
        raise ValueError(
            f"{type(layer.self_attn).__name__} projects more than queries in q_proj (a gate): not supported."
        )


def expect_arguments_to_arrive(decoder: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raises ValueError unless keyword arguments given to the decoder reach the attention of each of `layers`.

    Found out by running the decoder on one token with an attention function that only takes notes.
    """
    reached = set()

    def take_notes(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if "slow_memory" in kwargs and "readers" in kwargs:
            reached.add(module.layer_idx)
        B, Q, L, _ = query.shape
        return value.new_zeros(B, L, Q, value.shape[-1]), None

    AttentionInterface.register(PROBE, take_notes)  # no kind of mask with it: none is made (on "meta" none could be)
    embedding = decoder.get_input_embeddings().weight
    token_11D = torch.zeros(1, 1, decoder.config.hidden_size, device=embedding.device, dtype=embedding.dtype)
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = PROBE
    try:
        with torch.no_grad():
            decoder(inputs_embeds=token_11D, use_cache=False, slow_memory=None, readers=None)
    finally:
        decoder.config._attn_implementation = before
    if not reached.issuperset(layers):
        raise ValueError(
            f"{type(decoder).__name__} does not pass keyword arguments to a registered attention function in all of "
            f"its layers {', '.join(map(str, layers))}: slow tokens would not get there."
        )


def install(model: PreTrainedModel, spec: dict[str, Any]) -> None:
    """Adds the modules that `spec` asks for, and the attention function that calls them."""
    decoder = decoder_of(model)
    layers = hybrid_layers(decoder, spec)
    use_hybrid_attention(decoder)
    make_hybrid(decoder, layers, spec["fusion"], spec["gate"])
    model.slow_time = TIME_POSITIONS.build(spec["slow_time"], width=decoder.config.hidden_size)


def use_hybrid_attention(decoder: PreTrainedModel) -> None:
    """Makes the decoder's attention function its hybrid version."""
    backend = decoder.config._attn_implementation or "sdpa"
    if backend.removesuffix(SUFFIX) == "eager":
        backend = OWN_EAGER
    decoder.config._attn_implementation = hybrid_name(backend)


def own_eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The eager attention function of the file that defines `module`: families differ in it."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


AttentionInterface.register(OWN_EAGER, own_eager)
AttentionMaskInterface.register(OWN_EAGER, AttentionMaskInterface()["eager"])
register_hybrid(OWN_EAGER)
