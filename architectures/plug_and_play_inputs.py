"""What a converted model is given as slow tokens, one entry per row, and that it fits: see `plug_and_play.py`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from architectures.hybrid import fusions
from architectures.prompts import listed
from architectures.tokens import SlowContext

SLOW_INPUTS = ("slow_tokens", "slow_inputs", "slow_times", "is_video")
VideoInputs = Mapping[str, torch.Tensor]


def with_slow_inputs(signature: inspect.Signature) -> inspect.Signature:
    """The signature, with the slow inputs as further keywords."""
    parameters = list(signature.parameters.values())
    last = [parameters.pop()] if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in SLOW_INPUTS]
    return signature.replace(parameters=[*parameters, *added, *last])


def tokens_of(inputs: dict[str, Any]) -> torch.Tensor:
    """A number per token of a call, BL: its id, or something else where it comes as an embedding."""
    input_ids_BL = inputs.get("input_ids")
    return inputs["inputs_embeds"][..., 0] if input_ids_BL is None else input_ids_BL


def entries_and_times(slow_tokens: Any, slow_inputs: Any, slow_times: Any) -> tuple[list[Any], list[Any]]:
    """The rows' entries, of `slow_tokens` or `slow_inputs`, and the times of each (None: evenly).

    Raises ValueError unless exactly one of the two is given, as something with rows, with times for as many.
    """
    if slow_tokens is not None and slow_inputs is not None:
        raise ValueError("slow_tokens and slow_inputs were both given, and a row reads one of them: leave one out.")
    if slow_tokens is None and slow_inputs is None:
        raise ValueError("slow_times were given without slow tokens: give slow_tokens or slow_inputs with them.")
    if isinstance(slow_inputs, Mapping):
        slow_inputs = [slow_inputs]
        slow_times = [slow_times] if isinstance(slow_times, torch.Tensor) and slow_times.dim() == 1 else slow_times
    entries = expect_tokens(slow_tokens) if slow_inputs is None else expect_videos(slow_inputs)
    times = [None] * len(entries) if slow_times is None else list(slow_times)
    if len(times) != len(entries):
        raise ValueError(
            f"slow_times for {len(times)} rows, slow tokens for {len(entries)}: give one (or None) per row."
        )
    return entries, times


def expect_tokens(slow_tokens: Any) -> list[Any]:
    """The entries of `slow_tokens`; what each holds is looked at when it is used."""
    if isinstance(slow_tokens, torch.Tensor) and slow_tokens.dim() != 3:
        shape = tuple(slow_tokens.shape)
        raise ValueError(f"slow_tokens are a tensor of shape {shape}: give (rows, tokens, width), or a list per row.")
    if not isinstance(slow_tokens, (list, tuple, torch.Tensor)):
        raise ValueError(
            f"slow_tokens are a {type(slow_tokens).__name__}: give a list with a tensor (or None) per row."
        )
    return list(slow_tokens)


def expect_videos(slow_inputs: Any) -> list[Any]:
    """The entries of `slow_inputs`: each None, one video's inputs, or a list of some videos'."""
    if not isinstance(slow_inputs, (list, tuple)):
        raise ValueError(
            f"slow_inputs are a {type(slow_inputs).__name__}: give a dict, or a list with an entry per row."
        )
    for row, entry in enumerate(slow_inputs):
        videos = entry if isinstance(entry, (list, tuple)) else [entry]
        if not videos:
            raise ValueError(f"slow_inputs of row {row} hold no video: give None for a row without.")
        if entry is not None and not all(isinstance(video, Mapping) for video in videos):
            raise ValueError(f"slow_inputs of row {row} are not a dict of a video's inputs, nor a list of such dicts.")
    return list(slow_inputs)


def expect_width(slow_SD: Any, width: int) -> None:
    """Raises ValueError unless these are some tokens of the decoder's width."""
    if not isinstance(slow_SD, torch.Tensor):
        raise ValueError(f"A row's slow tokens are a {type(slow_SD).__name__}: give a tensor, or None.")
    if slow_SD.dim() != 2 or slow_SD.shape[1] != width:
        shape = tuple(slow_SD.shape)
        raise ValueError(f"A row's slow tokens have shape {shape}: give (tokens, {width}), the decoder's width.")
    if not len(slow_SD):
        raise ValueError("A row's slow tokens are empty: give None for a row without.")


def expect_inputs_of(see: Callable[..., Any], video: VideoInputs) -> None:
    """Raises ValueError if a video lacks an input that the model's vision path needs.

    Grids are needed even where they have a default, which is None.
    """
    parameters = inspect.signature(see).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [p.name for p in named if (p.default is p.empty or p.name.endswith("_thw")) and p.name not in video]
    if missing:
        owner = type(see.__self__).__name__
        raise ValueError(f"slow_inputs hold {listed(sorted(video))}: {owner}.{see.__name__} needs {listed(missing)}.")


def evenly(slow_SD: torch.Tensor) -> torch.Tensor:
    """Times of one video's tokens where none are given, from 0 to 1."""
    return torch.linspace(0, 1, len(slow_SD), device=slow_SD.device)


def once_each(make: Callable[[Any, Any], Any], entries: Sequence[Any], times: Sequence[Any]) -> list[Any]:
    """`make` of every entry that is not None and its times; once for the same object with equal times."""
    made: list[tuple[Any, Any, Any]] = []
    results = []
    for entry, times_S in zip(entries, times, strict=True):
        found = [it for other, when, it in made if other is entry and same_times(when, times_S)]
        if entry is None or found:
            results.append(found[0] if found else None)
            continue
        results.append(make(entry, times_S))
        made.append((entry, times_S, results[-1]))
    return results


def same_times(one_S: Any, other_S: Any) -> bool:
    """Whether both are the same times, or both None."""
    if one_S is None or other_S is None:
        return one_S is other_S
    one_S, other_S = torch.as_tensor(one_S), torch.as_tensor(other_S)
    return one_S is other_S or torch.equal(one_S, other_S.to(one_S.device))


def expect_checkpoints_fit(decoder: nn.Module, contexts: Sequence[SlowContext | None]) -> None:
    """Raises ValueError if, in training, a checkpoint can't go back through what made these slow tokens.

    A reentrant checkpoint runs a backward pass of its own in every layer. What all hybrid layers read, the graph of
    the slow tokens or shared keys, is gone after the first. Layers with keys of their own, of slow tokens that are
    constants (a frozen vision path, no trained time position), do. Unless told, torch's checkpoint is reentrant.
    """
    constants = not any(context is not None and context.slow_SD.requires_grad for context in contexts)
    found = fusions(decoder)
    if not torch.is_grad_enabled() or (constants and all(fusion.owns_keys for fusion in found.values())):
        return
    for layer in (decoder.layers[index] for index in found):
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            keywords = getattr(layer._gradient_checkpointing_func, "keywords", {})
            if keywords.get("use_reentrant") is not False:
                raise ValueError(
                    "Slow tokens with gradients, or keys that layers share, can't pass reentrant gradient checkpoints: "
                    "enable it with gradient_checkpointing_kwargs={'use_reentrant': False}."
                )
