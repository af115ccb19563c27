"""What a frozen encoder makes of the training videos, computed once and kept: decoding and encoding are most of a step.

At 7B a video of 128 frames is 0.25 GB in bf16, so this is for small data, small encoders and CPUs. Features of videos
that are sampled as at evaluation (no `fps`) are the very ones that an evaluation keeps (`harness.features`).
"""

from pathlib import Path

import torch

from architectures import SlowFastForConditionalGeneration
from harness.decoders import find_decoder
from harness.errors import UserError
from harness.features import Memo, Seen, encoding_key
from harness.finetune.annotations import Medium
from harness.finetune.dataset import ConversationDataset
from harness.journal import Watched
from harness.packets import VideoError
from harness.progress import SILENT, Progress


def memo_of(dataset: ConversationDataset, model: SlowFastForConditionalGeneration, folder: str | Path) -> Memo:
    """Where the features of this model under the dataset's rule of frames are kept, below `folder`."""
    decoder = find_decoder(dataset.decoder).version()
    return Memo(folder, encoding_key(model, dataset.processor, dataset.rule.frames, decoder, dataset.rule))


def media_of(dataset: ConversationDataset) -> dict[Path, Medium]:
    """Every video and image of a dataset, once, by its path."""
    return {medium.path: medium for at in range(len(dataset)) for medium in dataset.groups[at][0].media}


@torch.inference_mode()
def keep_features(
    dataset: ConversationDataset,
    model: SlowFastForConditionalGeneration,
    folder: str | Path,
    progress: Progress = SILENT,
) -> Memo:
    """Encodes each video and image of a dataset that is not kept yet; give the result to another as `features`.

    What cannot be read is not kept: the dataset that looks for it will count it as broken. UserError where there is no
    room for all.
    """
    memo = memo_of(dataset, model, folder)
    media = media_of(dataset)
    for path in progress.track(memo.missing(list(media)), "encode"):
        try:
            frames_TCHW, times_T = dataset.look(media[path])
        except VideoError as error:
            progress.say(f"not kept: {error}")
            continue
        frames_BTCHW, times_BT = frames_TCHW[None].to(model.device), times_T[None].to(model.device)
        kept_BTCHW, times_BK = model.select(frames_BTCHW, times_BT)
        watched = Watched(video=path.name, total=len(times_T))
        memo.save(path, Seen(model.encode_video(kept_BTCHW), times_BK, watched))
        if memo.full:
            raise UserError(
                f"features={folder}: there is no room for all {len(media)} videos' features: make room there"
            )
    return memo
