"""Items to a batch: keyword arguments of the model's `forward`, padded on the right.

Padded, every conversation is a row of its own. Packed, an item is one row: the video once, then its conversations,
each of which sees the video and itself and has the positions that it would have alone:

    system, user, <video> ... <video>  |  question 0, answer 0  |  question 1, answer 1  |  padding

As in `harness.packing`, but by a mask, so that videos, questions and their numbers may differ within a batch, and
recomputed layers (gradient checkpointing) attend as at first. Letters: R rows, L tokens, B videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from architectures import SlowFastProcessor
from architectures.processing import IGNORED, padded
from architectures.selectors.question_match import PADDING as NO_WORD
from harness.finetune.dataset import Item

RIGHT = "right"


@dataclass(frozen=True)
class Row:
    """A packed item: its tokens, their labels and positions, and the conversation each belongs to (0: the prefix)."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    branches: list[int]


class Collator:
    """Makes batches of `ConversationDataset`'s items.

    `packing` puts an item's conversations into one row. `always_watch` gives a batch of text alone one more row,
    a black image without a label, so that all parts of the model take part in every step: processes that share a
    model's parameters (ZeRO-3) wait for each other at each of them. `encoder_shape` is that of the encoder's features
    of a frame, (P, V), which kept features need for it.
    """

    def __init__(
        self,
        processor: SlowFastProcessor,
        packing: bool = False,
        always_watch: bool = False,
        encoder_shape: tuple[int, int] | None = None,
    ) -> None:
        self.processor, self.packing, self.always_watch = processor, packing, always_watch
        self.encoder_shape = encoder_shape

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """A batch: input_ids, attention_mask and labels, with videos frames or features, and frame_times.

        Packed also position_ids and may_read; then the mask is `(R, 1, L, L)`.
        """
        items = list(items)
        if self.always_watch and not any(item.videos for item in items):
            items.append(self._black_image(items[0].encoded))
        batch = self._packed(items) if self.packing else self._padded(items)
        shown = [item for item in items for _ in range(1 if self.packing else len(item.rows)) if item.videos]
        return batch | watched(shown)

    def _padded(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        ids, labels = zip(*(row for item in items for row in item.rows), strict=True)
        return {
            "input_ids": padded(list(ids), self.processor.tokenizer.pad_token_id, RIGHT),
            "attention_mask": padded([[1] * len(row) for row in ids], 0, RIGHT),
            "labels": padded(list(labels), IGNORED, RIGHT),
        }

    def _packed(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        rows = [packed_row(item) for item in items]
        branch_RL = padded([row.branches for row in rows], -1, RIGHT)
        return {
            "input_ids": padded([row.ids for row in rows], self.processor.tokenizer.pad_token_id, RIGHT),
            "attention_mask": packed_mask(branch_RL),
            "position_ids": padded([row.positions for row in rows], 0, RIGHT),
            "may_read": branch_RL >= 0,
            "labels": padded([row.labels for row in rows], IGNORED, RIGHT),
        }

    def _black_image(self, encoded: bool) -> Item:
        """One frame without a word to learn."""
        processor = self.processor
        one = torch.zeros(1)
        if encoded:
            if self.encoder_shape is None:
                raise ValueError("A black image among kept features needs the encoder's shape: give encoder_shape.")
            shown = torch.zeros(1, *self.encoder_shape)
        else:
            shown = processor.watchable([torch.zeros(1, 32, 32, 3, dtype=torch.uint8)], [one], False)["frames"][0]
        ids = processor(text=[""], n_frames=1)["input_ids"][0].tolist()
        asked = [processor.tokenizer("")["input_ids"]] if processor._chooser().needs_question else []
        return Item([(ids, [IGNORED] * len(ids))], 0, [shown], [one], encoded, asked)


def packed_row(item: Item) -> Row:
    """The shared prefix once, then what each conversation adds to it."""
    prefix = item.prefix
    first_ids, first_labels = item.rows[0]
    ids, labels = list(first_ids[:prefix]), list(first_labels[:prefix])
    positions, branches = list(range(prefix)), [0] * prefix
    for number, (own_ids, own_labels) in enumerate(item.rows, 1):
        ids += own_ids[prefix:]
        labels += own_labels[prefix:]
        positions += range(prefix, len(own_ids))
        branches += [number] * (len(own_ids) - prefix)
    return Row(ids, labels, positions, branches)


def packed_mask(branch_RL: torch.Tensor) -> torch.Tensor:
    """Who sees whom, boolean `(R, 1, L, L)`: what came before, in the prefix or in the own conversation.

    Padding (-1) sees padding alone, and nothing sees it.
    """
    before_LL = torch.ones(branch_RL.shape[1], branch_RL.shape[1], dtype=torch.bool).tril()
    same_RLL = branch_RL[:, :, None] == branch_RL[:, None, :]
    prefix_RLL = (branch_RL[:, None, :] == 0) & (branch_RL[:, :, None] >= 0)
    return ((same_RLL | prefix_RLL) & before_LL)[:, None]


def watched(items: Sequence[Item]) -> dict[str, Any]:
    """The videos of items in order, and their times: tensors where all are equally long, else lists."""
    videos, times = ([part for item in items for part in getattr(item, name)] for name in ("videos", "times"))
    if not videos:
        return {}
    if len({item.encoded for item in items}) > 1:
        raise ValueError("A batch mixes frames and kept features: give all of one kind.")
    alike = len({video.shape for video in videos}) == 1
    batch: dict[str, Any] = {
        "features" if items[0].encoded else "frames": torch.stack(videos) if alike else videos,
        "frame_times": torch.stack(times) if alike else times,
    }
    asked = [question for item in items for question in item.questions]
    if asked:
        batch["questions"] = padded(asked, NO_WORD, RIGHT)
    return batch
