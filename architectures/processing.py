"""From prompts and decoded frames to the model's inputs: ChatML, placeholders, padding, normalisation."""

import functools
import json
from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor

from architectures.compressors import COMPRESSORS, Compressor
from architectures.configuration import SlowFastConfig
from architectures.encoders import Encoder
from architectures.projectors import pool_grid
from architectures.prompts import listed
from architectures.selectors import SELECTORS, Selector
from architectures.selectors.question_match import PADDING as NO_WORD

VIDEO_TOKEN = "<video>"
IGNORED = -100  # a label without loss, as torch's cross-entropy and Hugging Face have it
RESIZINGS = ("stretch", "crop", "pad")
TRUNCATIONS = (None, "tail")

Array = np.ndarray | torch.Tensor


class SlowFastVideoProcessor(BaseVideoProcessor):
    """Resizes and normalises frames sampled before; `size`, `image_mean`, `image_std` are the encoder's.

    `resize_with_pil` resizes by PIL instead of torchvision, as the official code does: torchvision's
    antialiased bicubic differs by up to two of 255 levels. `pad_to_square` first puts a frame in the middle of a
    square of the mean colour, as the official `image_aspect_ratio: pad` does.
    """

    resample = 3  # bicubic
    size: ClassVar = {"height": 64, "width": 64}
    image_mean: ClassVar = list(Encoder.image_mean)
    image_std: ClassVar = list(Encoder.image_std)
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    resize_with_pil = False
    pad_to_square = False
    model_input_names: ClassVar = ["frames"]

    @classmethod
    def for_encoder(cls, encoder: Encoder, resizing: str | None = None) -> "SlowFastVideoProcessor":
        """The processor of an encoder. `resizing` (None: the encoder's own habit, else stretch) is one of

        "stretch": both edges to the encoder's size; "crop": the shortest edge to it, then the centre (what the
        official code does with videos); "pad": to a square with borders, then to the encoder's size.
        """
        resizing = resizing or getattr(encoder, "resizing", "stretch")
        if resizing not in RESIZINGS:
            raise ValueError(f"Unknown resizing '{resizing}': choose one of {', '.join(RESIZINGS)}.")
        square = {"height": encoder.image_size, "width": encoder.image_size}
        statistics = {"image_mean": list(encoder.image_mean), "image_std": list(encoder.image_std)}
        if resizing == "stretch":
            return cls(size=square, **statistics)
        crop = {"size": {"shortest_edge": encoder.image_size}, "do_center_crop": True, "crop_size": square}
        return cls(**crop, resize_with_pil=True, pad_to_square=resizing == "pad", **statistics)

    def _preprocess(self, videos: list[torch.Tensor], **kwargs: Any) -> BatchFeature:
        if self.pad_to_square:
            videos = [padded_to_square(video, self.image_mean) for video in videos]
        return super()._preprocess(videos, **kwargs)

    def resize(self, image: torch.Tensor, size: Any, resample: Any = None, **kwargs: Any) -> torch.Tensor:
        """`uint8` frames `(..., C, H, W)` to the size's shortest edge, or height and width."""
        if not self.resize_with_pil:
            return super().resize(image, size, resample, **kwargs)
        H, W = image.shape[-2:]
        shortest = size.shortest_edge
        rows, columns = (size.height, size.width) if shortest is None else scaled(H, W, shortest)
        frames_NHWC = image.flatten(0, -4).permute(0, 2, 3, 1).cpu().numpy()
        resized = [np.asarray(Image.fromarray(frame).resize((columns, rows), resample)) for frame in frames_NHWC]
        resized_NCHW = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(image.device)
        return resized_NCHW.unflatten(0, image.shape[:-3])


def scaled(H: int, W: int, shortest: int) -> tuple[int, int]:
    """Height and width once the shortest edge is `shortest`; the other is rounded down."""
    return (shortest, int(shortest * W / H)) if H <= W else (int(shortest * H / W), shortest)


def padded_to_square(frames_TCHW: torch.Tensor, mean: Sequence[float]) -> torch.Tensor:
    """`uint8` frames in the middle of squares of the colour `mean` (in [0, 1]; rounded down, as officially)."""
    T, _, H, W = frames_TCHW.shape
    side = max(H, W)
    colour_C = torch.tensor([int(value * 255) for value in mean], dtype=frames_TCHW.dtype, device=frames_TCHW.device)
    square_TCHW = colour_C[None, :, None, None].repeat(T, 1, side, side)
    top, left = (side - H) // 2, (side - W) // 2
    square_TCHW[:, :, top : top + H, left : left + W] = frames_TCHW
    return square_TCHW


# ------------------------------------------------------------------------------------- rows of a batch


def spread(values: Sequence[int], is_video: Sequence[bool], fast_counts: Sequence[int], fill: int) -> list[int]:
    """A row with one entry per video to one with an entry `fill` per fast token of each video, in order.

    Raises ValueError when the row's videos and `fast_counts` differ in number.
    """
    if sum(is_video) != len(fast_counts):
        raise ValueError(f"A prompt has {sum(is_video)} places for videos, but {len(fast_counts)} videos came with it.")
    counts, row = iter(fast_counts), []
    for value, video in zip(values, is_video, strict=True):
        row += [fill] * next(counts) if video else [value]
    return row


def truncate(rows: list[list[int]], max_length: int | None, truncation: str | None, video_token_id: int) -> None:
    """Shortens `rows` of ids, in place, to `max_length` tokens by the rule `truncation`.

    "tail" drops the end (what the official code does: in a prompt it is the question). ValueError for a row
    that is too long without a rule, and for a cut into a video, whose slow tokens would then be read by a
    prompt that lacks its fast ones.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"Unknown truncation '{truncation}': choose tail, or None to refuse what is too long.")
    for number, row in enumerate(rows):
        if max_length is None or len(row) <= max_length:
            continue
        if truncation is None:
            raise ValueError(
                f"Prompt {number} has {len(row)} tokens, max_length is {max_length}: shorten it, sample fewer "
                "frames, or give truncation='tail', which drops the end of the question."
            )
        if video_token_id in row[max_length:]:
            raise ValueError(
                f"max_length {max_length} cuts into a video of prompt {number} ({len(row)} tokens): sample fewer "
                "frames or give a larger max_length."
            )
        del row[max_length:]


def padded(rows: list[list[int]], fill: int, side: str) -> torch.Tensor:
    """Rows of different lengths as one tensor `(B, L)`, padded with `fill` on the `side` "left" or "right"."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side is '{side}': choose left or right.")
    longest = max(map(len, rows))
    gaps = [[fill] * (longest - len(row)) for row in rows]
    return torch.tensor(
        [gap + row if side == "left" else row + gap for gap, row in zip(gaps, rows, strict=True)], dtype=torch.long
    )


def collate(
    rows: list[list[int]],
    fast_counts: list[list[int]],
    video_token_id: int,
    pad_token_id: int,
    labels: list[list[int]] | None = None,
    padding_side: str = "left",
    max_length: int | None = None,
    truncation: str | None = None,
) -> dict[str, torch.Tensor]:
    """Prompts with one placeholder per video to a batch: `input_ids_BL`, `attention_mask_BL` (and `labels_BL`).

    `fast_counts[b]` are the fast tokens of the videos of row b. Labels, one per id, are ignored (-100) at
    videos and padding. Raises ValueError as `spread` and `truncate` do.
    """
    is_video = [[token == video_token_id for token in row] for row in rows]
    ids = [spread(*row, video_token_id) for row in zip(rows, is_video, fast_counts, strict=True)]
    truncate(ids, max_length, truncation, video_token_id)
    batch = {
        "input_ids": padded(ids, pad_token_id, padding_side),
        "attention_mask": padded([[1] * len(row) for row in ids], 0, padding_side),
    }
    if labels is not None:
        spread_labels = [spread(*row, IGNORED) for row in zip(labels, is_video, fast_counts, strict=True)]
        cut = [label[: len(row)] for label, row in zip(spread_labels, ids, strict=True)]
        batch["labels"] = padded(cut, IGNORED, padding_side)
    return batch


@functools.lru_cache(maxsize=8)
def _compressor(spec: str, width: int) -> Compressor:
    """The compressor of a JSON spec, without weights."""
    with torch.device("meta"):
        return COMPRESSORS.build(json.loads(spec), width=width)


@functools.lru_cache(maxsize=8)
def _selector(spec: str) -> Selector:
    """The selector of a JSON spec, without weights."""
    with torch.device("meta"):
        return SELECTORS.build(json.loads(spec), vocab_size=1)


class SlowFastProcessor(ProcessorMixin):
    """Tokenizer and video processor of a model; the rest says how many fast tokens a video makes.

    `token_grid` is the grid of tokens per frame, `single_frame_grid` that of a video of one frame (None: the
    same), `width` the decoder's. `video_token_id` (None: the tokenizer's own `<video>`) is the placeholder of
    a fast token; `system` a system prompt; `padding_side`, `max_length` and `truncation` are defaults of
    calls.
    """

    def __init__(
        self,
        video_processor: SlowFastVideoProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        compressor: dict[str, Any] | None = None,
        selector: dict[str, Any] | None = None,
        token_grid: tuple[int, int] = (2, 2),
        single_frame_grid: tuple[int, int] | None = None,
        width: int = 64,
        video_token_id: int | None = None,
        system: str | None = None,
        padding_side: str = "left",
        max_length: int | None = None,
        truncation: str | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ):
        self.compressor = compressor or {"name": "identity"}
        self.selector = selector or {"name": "all"}
        self.token_grid = list(token_grid)
        self.single_frame_grid = list(single_frame_grid) if single_frame_grid is not None else None
        self.width = width
        self.video_token_id = video_token_id
        self.system = system
        self.padding_side = padding_side
        self.max_length = max_length
        self.truncation = truncation
        super().__init__(video_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def for_model(
        cls,
        config: SlowFastConfig,
        encoder: Encoder,
        tokenizer: PreTrainedTokenizerBase,
        resizing: str | None = None,
        **options: Any,
    ) -> "SlowFastProcessor":
        """The processor that fits a model's configuration and encoder; `options` are `__init__`'s.

        `resizing` is `SlowFastVideoProcessor.for_encoder`'s.
        """
        return cls(
            SlowFastVideoProcessor.for_encoder(encoder, resizing),
            tokenizer,
            compressor=config.compressor,
            selector=config.selector,
            token_grid=pool_grid(encoder.grid, config.pooling_of(2)),
            single_frame_grid=pool_grid(encoder.grid, config.pooling_of(1)),
            width=config.text_config.hidden_size,
            video_token_id=config.video_token_id,
            **options,
        )

    # ------------------------------------------------------------------------------------------ prompts

    def chat(self, prompt: str, videos: int = 1) -> str:
        """One user turn in ChatML, ready for the assistant's answer, with a `<video>` per video.

        They stand where the prompt has them; if it has none, before the question. Raises ValueError when it
        has some, but not as many as videos.
        """
        marked = prompt.count(VIDEO_TOKEN)
        if marked not in (0, videos):
            raise ValueError(f"A prompt has {marked} {VIDEO_TOKEN} marks, but {videos} videos came with it.")
        if not marked:
            prompt = f"{VIDEO_TOKEN}\n" * videos + prompt
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n" if self.system is not None else ""
        return f"{system}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"

    def placeholder(self) -> int:
        """The id of a fast token's placeholder; ValueError if there is none."""
        token = self._own_placeholder() if self.video_token_id is None else self.video_token_id
        if token is None:
            raise ValueError(f"The tokenizer has no {VIDEO_TOKEN}: give the processor a video_token_id.")
        return token

    def _own_placeholder(self) -> int | None:
        """The tokenizer's `<video>`, if it has one."""
        token = self.tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        return None if token == self.tokenizer.unk_token_id else token

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, each `<video>` as one placeholder, whether the tokenizer knows the word or not."""
        if self._own_placeholder() == self.placeholder():
            return self.tokenizer(text)["input_ids"]
        first, *others = text.split(VIDEO_TOKEN)
        ids = list(self.tokenizer(first)["input_ids"])
        for piece in others:
            ids.append(self.placeholder())
            ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
        return ids

    def fast_token_count(self, frames: int) -> int:
        """Fast tokens that a video of `frames` frames makes."""
        frames = self._chooser().n_frames(frames)
        single = frames == 1 and self.single_frame_grid is not None
        compressor = _compressor(json.dumps(self.compressor, sort_keys=True), self.width)
        return compressor.n_tokens(frames, *(self.single_frame_grid if single else self.token_grid))

    def _chooser(self) -> Selector:
        return _selector(json.dumps(self.selector, sort_keys=True))

    def questions(self, text: list[str], counts: list[list[int]]) -> torch.Tensor:
        """Word ids of each video's question, for selectors that choose frames by it."""
        asked = [self.tokenizer(prompt)["input_ids"] for prompt, row in zip(text, counts, strict=True) for _ in row]
        return padded(asked, NO_WORD, "right")

    def __call__(
        self,
        text: list[str],
        videos: list[Any] | None = None,
        times: list[Any] | None = None,
        n_frames: int | list[Any] | None = None,
        max_length: int | None = None,
        truncation: str | None = None,
        padding_side: str | None = None,
    ) -> BatchFeature:
        """Prompts and their videos (`uint8 frames_THWC`, `times_T` in [0, 1]) to model inputs.

        `videos` has an entry per prompt: one video, a list of them, or None for text only; `times` the same.
        Returns `input_ids_BL` and `attention_mask_BL`, and with videos `frames` and `frame_times`: tensors
        BTCHW and BT where each prompt has one video and all are equally long, else lists of one tensor per
        video; for a question-aware selector `questions` too. With `n_frames` in place of `videos` (a number
        for all, or an entry per prompt) text inputs only: the caller holds the encoder's features. With
        neither, all prompts are text only. `max_length` and `truncation` are `truncate`'s. Raises ValueError
        when entries do not fit.
        """
        if (videos is None) != (times is None) or (videos is not None and n_frames is not None):
            raise ValueError("Give either videos with their times, or n_frames.")
        given = videos if videos is not None else n_frames
        videos_of_prompt = per_prompt(len(text), given if isinstance(given, list) else [given] * len(text))
        counts = [[v if isinstance(v, int) else len(v) for v in row] for row in videos_of_prompt]
        inputs = collate(
            [self.tokenize(self.chat(prompt, len(row))) for prompt, row in zip(text, counts, strict=True)],
            [[self.fast_token_count(frames) for frames in row] for row in counts],
            self.placeholder(),
            self.tokenizer.pad_token_id,
            padding_side=padding_side or self.padding_side,
            max_length=max_length or self.max_length,
            truncation=truncation or self.truncation,
        )
        if videos is not None and any(counts):
            times_of_prompt = per_prompt(len(text), times)
            one_each = all(len(row) == 1 for row in counts)
            flat = (list(chain.from_iterable(rows)) for rows in (videos_of_prompt, times_of_prompt))
            inputs |= self.watchable(*flat, one_each)
            if self._chooser().needs_question:
                inputs["questions"] = self.questions(text, counts)
        return BatchFeature(inputs)

    # ------------------------------------------------------------------------------------------- videos

    def watchable(self, videos: list[Array], times: list[Array], one_each: bool = True) -> dict[str, Any]:
        """Videos, resized and normalised, and their frames' times.

        `frames_BTCHW` and `frame_times_BT` where all are equally long (and each its own row's only one), else
        lists.
        """
        lengths = [len(video) for video in videos]
        if lengths != [len(t) for t in times]:
            raise ValueError(
                "The videos of a batch need a time per frame: they have "
                f"{listed(lengths)} frames, but {listed([len(t) for t in times])} times."
            )
        frames = [self._pixels(torch.as_tensor(np.asarray(video))) for video in videos]
        frame_times = [torch.as_tensor(np.asarray(t), dtype=torch.float32) for t in times]
        if one_each and len(set(lengths)) == 1:
            return {"frames": torch.stack(frames), "frame_times": torch.stack(frame_times)}
        return {"frames": frames, "frame_times": frame_times}

    def _pixels(self, frames_THWC: torch.Tensor) -> torch.Tensor:
        """One video's frames as the encoder takes them, `frames_TCHW`."""
        frames_TCHW = frames_THWC.permute(0, 3, 1, 2)
        pixels = self.video_processor(videos=[frames_TCHW], return_tensors="pt", input_data_format="channels_first")
        return pixels["pixel_values_videos"][0]


def per_prompt(prompts: int, entries: list[Any]) -> list[list[Any]]:
    """The videos (or frame counts, or times) of every prompt as a list: of one, of several, or empty for None."""
    if len(entries) != prompts:
        raise ValueError(f"There are {prompts} prompts, but videos for {len(entries)}: give one entry per prompt.")
    return [[] if entry is None else entry if isinstance(entry, list) else [entry] for entry in entries]
