"""From prompts and decoded frames to the model's inputs: ChatML, placeholders, padding, normalisation."""

from typing import Any, ClassVar

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor

from architectures.compressors import COMPRESSORS
from architectures.configuration import SlowFastConfig
from architectures.encoders import Encoder
from architectures.projectors import pool_grid

VIDEO_TOKEN = "<video>"


class SlowFastVideoProcessor(BaseVideoProcessor):
    """Resizes and normalises frames sampled before; `size`, `image_mean`, `image_std` are the encoder's."""

    resample = 3
    size: ClassVar = {"height": 64, "width": 64}
    image_mean: ClassVar = list(Encoder.image_mean)
    image_std: ClassVar = list(Encoder.image_std)
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    model_input_names: ClassVar = ["frames"]


class SlowFastProcessor(ProcessorMixin):
    """Tokenizer and video processor of a model; `compressor` and `token_grid` say how many fast tokens."""

    def __init__(
        self,
        video_processor: SlowFastVideoProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        compressor: dict[str, Any] | None = None,
        token_grid: tuple[int, int] = (2, 2),
        chat_template: str | None = None,
        **kwargs: Any,
    ):
        self.compressor = compressor or {"name": "identity"}
        self.token_grid = list(token_grid)
        super().__init__(video_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def for_model(
        cls, config: SlowFastConfig, encoder: Encoder, tokenizer: PreTrainedTokenizerBase
    ) -> "SlowFastProcessor":
        """The processor that fits a model's configuration and encoder."""
        video_processor = SlowFastVideoProcessor(
            size={"height": encoder.image_size, "width": encoder.image_size},
            image_mean=list(encoder.image_mean),
            image_std=list(encoder.image_std),
        )
        grid = pool_grid(encoder.grid, config.video_pooling)
        return cls(video_processor, tokenizer, compressor=config.compressor, token_grid=grid)

    def chat(self, prompt: str, n_fast: int) -> str:
        """One user turn in ChatML, the video before the question, ready for the assistant's answer."""
        return f"<|im_start|>user\n{VIDEO_TOKEN * n_fast}\n{prompt}<|im_end|>\n<|im_start|>assistant\n"

    def fast_token_count(self, frames: int) -> int:
        """Fast tokens that a video of `frames` frames makes."""
        compressor = COMPRESSORS.build(self.compressor, width=1)
        return compressor.n_tokens(frames, *self.token_grid)

    def __call__(
        self,
        text: list[str],
        videos: list[np.ndarray | torch.Tensor] | None = None,
        times: list[np.ndarray | torch.Tensor] | None = None,
        n_frames: int | None = None,
    ) -> BatchFeature:
        """Prompts and videos (`uint8 frames_THWC`, equally many frames, `times_T` in [0, 1]) to model inputs.

        Returns `input_ids_BL` and `attention_mask_BL`, padded on the left, `frames_BTCHW` and
        `frame_times_BT`. With `n_frames` in place of `videos`, text inputs only (the caller holds the
        encoder's features).
        """
        if (videos is None) == (n_frames is None) or (videos is None) != (times is None):
            raise ValueError("Give either videos with their times, or n_frames.")
        n_frames = len(videos[0]) if videos is not None else n_frames
        chats = [self.chat(prompt, self.fast_token_count(n_frames)) for prompt in text]
        inputs = dict(self.tokenizer(chats, padding=True, padding_side="left", return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        if videos is not None:
            inputs |= self.watchable(videos, times)
        return BatchFeature(inputs)

    def watchable(self, videos: list[np.ndarray], times: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Videos to `frames_BTCHW`, resized and normalised, and `frame_times_BT`."""
        counts = {len(video) for video in videos}
        if len(counts) != 1 or len(times) != len(videos):
            raise ValueError(f"The videos of a batch need one frame count and a time per frame, got {sorted(counts)}.")
        frames = [torch.as_tensor(np.asarray(video)).permute(0, 3, 1, 2) for video in videos]
        pixels = self.video_processor(videos=frames, return_tensors="pt", input_data_format="channels_first")
        frame_times = torch.stack([torch.as_tensor(np.asarray(t), dtype=torch.float32) for t in times])
        return {"frames": pixels["pixel_values_videos"], "frame_times": frame_times}
