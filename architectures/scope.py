"""Scopes: which tokens of the prompt read the slow tokens. `(is_video_BL, is_padding_BL) -> reads_BL`."""

from collections.abc import Callable
from typing import Any

import torch

from architectures.registry import Registry

SCOPES = Registry("scope")


def scope_of(spec: dict[str, Any]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The scope that `spec` names, its options filled in."""
    return SCOPES.bind(spec, ("is_video_BL", "is_padding_BL"))


@SCOPES.register("text_only")
def text_only(is_video_BL: torch.Tensor, is_padding_BL: torch.Tensor) -> torch.Tensor:
    """Every text token, none of the video's ("text-only-vanilla" in the official code, its default)."""
    return ~is_video_BL & ~is_padding_BL


@SCOPES.register("all_tokens")
def all_tokens(is_video_BL: torch.Tensor, is_padding_BL: torch.Tensor) -> torch.Tensor:
    """Text and fast tokens alike ("vanilla" in the official code); 3 times the text-only overhead at 7B."""
    return ~is_padding_BL


@SCOPES.register("text_after_video")
def text_after_video(is_video_BL: torch.Tensor, is_padding_BL: torch.Tensor) -> torch.Tensor:
    """Text after a row's first visual token: not the system prompt ("text-only-vanilla-masksystem" officially).

    Text between two videos of a row reads. Of a row without visual tokens nothing reads.
    """
    return text_only(is_video_BL, is_padding_BL) & (is_video_BL.cumsum(1) > 0)
