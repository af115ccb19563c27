"""Videos and the rows of a batch: which video stands where in which prompt, and the bookkeeping of its tokens."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch

from architectures.tokens import SlowContext, VideoTokens, stacked

Videos = torch.Tensor | Sequence[torch.Tensor]  # equally long: one tensor; or one tensor per video, of any lengths


def by_length(path: Callable[..., list], *inputs: Videos) -> list:
    """`path` of videos batched by length, one result per video, in the videos' order.

    `inputs` are videos, their frame times, and anything else with one entry per video. Raises ValueError for a
    video without frames, or whose times are not one per frame.
    """
    expect_time_per_frame(*inputs[:2])
    if all(isinstance(values, torch.Tensor) for values in inputs):
        return path(*inputs)
    if len({len(values) for values in inputs}) != 1:
        raise ValueError(f"Videos and their frame times differ in number: {' and '.join(str(len(v)) for v in inputs)}.")
    groups: dict[int, list[int]] = {}
    for index, video in enumerate(inputs[0]):
        groups.setdefault(len(video), []).append(index)
    results: list[Any] = [None] * len(inputs[0])
    for indices in groups.values():
        batch = (stacked([torch.as_tensor(values[i]) for i in indices]) for values in inputs)
        for index, result in zip(indices, path(*batch), strict=True):
            results[index] = result
    return results


def expect_time_per_frame(videos: Videos, times: Videos) -> None:
    """Raises ValueError unless every video has frames, and a time for each."""
    for number, (video, its_times) in enumerate(zip(videos, times, strict=False)):  # numbers are compared elsewhere
        if not len(video):
            raise ValueError(f"Video {number} has no frames: give at least one.")
        if len(its_times) != len(video):
            raise ValueError(f"Video {number} has {len(video)} frames and {len(its_times)} frame times: give one each.")


def uniform_times(videos: Videos) -> Videos:
    """Frame times when none are given: evenly from 0 to 1."""
    if isinstance(videos, torch.Tensor):
        return torch.linspace(0, 1, videos.shape[1], device=videos.device).expand(videos.shape[0], -1)
    return [torch.linspace(0, 1, len(video), device=video.device) for video in videos]


def videos_of_rows(is_video_BL: torch.Tensor, videos: list[VideoTokens]) -> list[list[VideoTokens]]:
    """The videos of every row, by their placeholders' number.

    Raises ValueError when placeholders and fast tokens do not fit.
    """
    placeholders_B = is_video_BL.sum(1).tolist()
    waiting = iter(videos)
    rows = []
    for wanted in placeholders_B:
        row: list[VideoTokens] = []
        while sum(len(video.fast_FD) for video in row) < wanted:
            row += (following := list(islice(waiting, 1)))
            if not following:
                break
        rows.append(row)
    given = [sum(len(video.fast_FD) for video in row) for row in rows]
    if given != placeholders_B or next(waiting, None) is not None:
        made = [len(video.fast_FD) for video in videos]
        raise ValueError(
            f"The prompts hold {sum(placeholders_B)} video placeholders (by row: {listed(placeholders_B)}), but the "
            f"videos make {sum(made)} fast tokens (by video: {listed(made)})."
        )
    return rows


def listed(counts: list[int], at_most: int = 8) -> str:
    """The first few of some counts."""
    return ", ".join(map(str, counts[:at_most])) + (", ..." if len(counts) > at_most else "") or "none"


def context_of(row: list[VideoTokens], starts: list[int] | None) -> SlowContext | None:
    """All slow tokens of a row's videos, one after the other; None without any.

    `starts` (of `start_places`): the position of each video's first fast token, from which slow tokens are placed
    by time: where a fast token of the same moment stands.
    """
    if not row or row[0].slow_SD is None:
        return None
    slow_SD = torch.cat([video.slow_SD for video in row]) if len(row) > 1 else row[0].slow_SD
    if starts is None:
        return SlowContext(slow_SD)
    places = [start + video.times_S * (len(video.fast_FD) - 1) for start, video in zip(starts, row, strict=True)]
    return SlowContext(slow_SD, torch.cat(places))


def start_places(is_video_L: torch.Tensor, position_L: torch.Tensor, row: list[VideoTokens]) -> list[int]:
    """The position of the first fast token of each of a row's videos."""
    positions = position_L[is_video_L].tolist()
    starts, passed = [], 0
    for video in row:
        starts.append(positions[passed])
        passed += len(video.fast_FD)
    return starts


def positions_of(attention_mask: Any, length: int) -> torch.Tensor | None:
    """Positions of the last `length` tokens, padding on the left not counted, as `generate` has them.

    None (the decoder counts for itself) unless the mask is one number per token.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return None
    position_BL = attention_mask.long().cumsum(-1) - 1
    return position_BL.masked_fill(attention_mask == 0, 1)[:, -length:]


def real_tokens(attention_mask: Any, input_ids_BL: torch.Tensor) -> torch.Tensor:
    """Which of `input_ids_BL` are not padding, as far as the mask says (it may be longer: a cache's past)."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return torch.ones_like(input_ids_BL, dtype=torch.bool)
    return attention_mask[:, -input_ids_BL.shape[1] :] != 0
