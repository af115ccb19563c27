"""From prompts and frames to inputs: pixels as PIL makes them, placeholders, padding, several videos in a prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_config, small_model, tokenizer
from torch.utils.flop_counter import FlopCounterMode

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.encoders import ENCODERS
from architectures.official_names import IMAGE_TOKEN
from architectures.processing import IGNORED, SlowFastVideoProcessor, collate

SIDE = 64
MEAN, STD = SlowFastVideoProcessor.image_mean, SlowFastVideoProcessor.image_std


class Tower:
    """What a video processor needs to know of an encoder."""

    image_size, image_mean, image_std = SIDE, MEAN, STD


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """`uint8 frames_THWC` of noise, in which every rounding shows."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def seen(frames_THWC: np.ndarray, resizing: str) -> np.ndarray:
    """Frames as a processor makes them, `(T, C, 64, 64)`."""
    processor = SlowFastVideoProcessor.for_encoder(Tower(), resizing)
    frames_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    made = processor(videos=[frames_TCHW], return_tensors="pt", input_data_format="channels_first")
    return made["pixel_values_videos"][0].numpy()


def by_hand(image: Image.Image) -> np.ndarray:
    """A frame through PIL alone: shortest edge to 64, centre crop, normalised."""
    width, height = image.size
    size = (SIDE, SIDE * height // width) if width <= height else (SIDE * width // height, SIDE)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.size[0] - SIDE) // 2, (image.size[1] - SIDE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


# ------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize(("height", "width"), [(90, 131), (131, 90), (40, 50), (64, 64), (67, 64), (300, 65)])
def test_cropped_frames_are_pils_to_the_level(height: int, width: int) -> None:
    frames_THWC = noise(2, height, width)
    wanted = np.stack([by_hand(Image.fromarray(frame)) for frame in frames_THWC])
    np.testing.assert_allclose(seen(frames_THWC, "crop"), wanted, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(90, 131), (131, 90), (64, 64)])
def test_padded_frames_have_borders_of_the_mean_colour(height: int, width: int) -> None:
    (frame,) = frames_THWC = noise(1, height, width)
    side = max(height, width)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in MEAN))
    square.paste(Image.fromarray(frame), ((side - width) // 2, (side - height) // 2))
    np.testing.assert_allclose(seen(frames_THWC, "pad")[0], by_hand(square), atol=1e-6)


def test_stretched_frames_keep_their_borders() -> None:
    frames_THWC = np.zeros((1, 32, 128, 3), dtype=np.uint8)
    frames_THWC[:, :, :32] = 255  # the left quarter is white
    white = seen(frames_THWC, "stretch")[0, 0] > 0
    assert white[:, :15].all()
    assert not white[:, 17:].any()
    assert not (seen(frames_THWC, "crop") > 0).any()  # the quarter is cut off


def test_an_unknown_resizing_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown resizing 'squash': choose one of stretch, crop, pad"):
        SlowFastVideoProcessor.for_encoder(Tower(), "squash")


def test_a_processor_keeps_its_way_of_resizing(tmp_path: Path) -> None:
    processor = SlowFastVideoProcessor.for_encoder(Tower(), "pad")
    processor.save_pretrained(tmp_path)
    again = SlowFastVideoProcessor.from_pretrained(tmp_path)
    frames_TCHW = torch.from_numpy(noise(1, 50, 70)).permute(0, 3, 1, 2)
    made = [p(videos=[frames_TCHW], return_tensors="pt")["pixel_values_videos"] for p in (processor, again)]
    assert torch.equal(*made)


def test_a_smaller_convnext_has_the_flop_that_torch_counts() -> None:
    tower = {"name": "convnext_xxlarge", "image_size": 96, "depths": [1, 2, 3, 1], "widths": [8, 16, 24, 40]}
    encoder = ENCODERS.build(tower)
    assert (encoder.grid, encoder.width) == ((3, 3), 40)
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 1, 3, 96, 96))
    assert counter.get_total_flops() == encoder.flops_per_frame()


def test_the_unused_head_of_a_convnext_is_kept_and_frozen() -> None:
    tower = {"name": "convnext_xxlarge", "image_size": 32, "depths": [1] * 4, "widths": [2, 2, 2, 6]}
    encoder = ENCODERS.build({**tower, "head_classes": 5})
    head = {name: tuple(weight.shape) for name, weight in encoder.state_dict().items() if name.startswith("head.")}
    assert head == {"head.norm.weight": (6,), "head.norm.bias": (6,), "head.fc.weight": (5, 6), "head.fc.bias": (5,)}
    assert not any(weight.requires_grad for weight in encoder.head.parameters())
    with pytest.raises(ValueError, match="must be four positive numbers each"):
        ENCODERS.build({**tower, "depths": [1, 2]})


# ----------------------------------------------------------------------------------------------- prompts


@pytest.fixture(scope="module")
def model() -> SlowFastForConditionalGeneration:
    """A model of the mini scale."""
    return small_model()


@pytest.fixture(scope="module")
def processor(model: SlowFastForConditionalGeneration) -> SlowFastProcessor:
    """Its processor."""
    return SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())


def video(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Frames and their times."""
    return noise(frames, 40, 48, seed), np.linspace(0, 1, frames)


def test_ragged_several_and_no_videos_run_together_as_alone(
    model: SlowFastForConditionalGeneration, processor: SlowFastProcessor
) -> None:
    (a, a_times), (b, b_times), (c, c_times) = video(20), video(9, 1), video(20, 2)
    text = ["What colour is the ball", "<video> left <video> What colour", "red", "up <video> down"]
    videos, times = [a, [b, c], None, [b]], [a_times, [b_times, c_times], None, [b_times]]
    together = processor(text=text, videos=videos, times=times)
    assert [len(frames) for frames in together["frames"]] == [20, 9, 20, 9]
    with torch.no_grad():
        logits = model(**together).logits[:, -1]
        for row in range(len(text)):
            alone = processor(text=text[row : row + 1], videos=videos[row : row + 1], times=times[row : row + 1])
            torch.testing.assert_close(logits[row : row + 1], model(**alone).logits[:, -1], atol=1e-4, rtol=0.0)


def test_videos_stand_where_the_prompt_has_them(processor: SlowFastProcessor) -> None:
    ids = processor(text=["left <video> right <video> up"], n_frames=[[20, 9]])["input_ids"][0].tolist()
    words = [processor.tokenizer.convert_tokens_to_ids(word) for word in ("left", "right", "up")]
    places = [ids.index(word) for word in words]
    counts = [processor.fast_token_count(frames) for frames in (20, 9)]
    assert [places[1] - places[0] - 1, places[2] - places[1] - 1] == counts
    assert ids[places[0] + 1 : places[1]] == [processor.placeholder()] * counts[0]


def test_the_processor_counts_fast_tokens_as_the_model(processor: SlowFastProcessor) -> None:
    for changes in ({}, {"pool_single_frame": False}, {"compressor": {"name": "identity"}}):
        config = small_config(**changes)
        model = SlowFastForConditionalGeneration(config)
        processor = SlowFastProcessor.for_model(config, model.encoder, tokenizer())
        for frames in (1, 2, 7, 20):
            assert processor.fast_token_count(frames) == model.fast_token_count(frames)


def test_a_placeholder_outside_the_vocabulary_makes_the_same_prompt(processor: SlowFastProcessor) -> None:
    (inside,) = processor(text=["What colour is the ball"], n_frames=20)["input_ids"].tolist()
    outside = SlowFastProcessor(
        processor.video_processor, tokenizer(), processor.compressor, video_token_id=IMAGE_TOKEN
    )
    (ids,) = outside(text=["What colour is the ball"], n_frames=20)["input_ids"].tolist()
    assert ids == [IMAGE_TOKEN if token == processor.placeholder() else token for token in inside]
    assert IMAGE_TOKEN in ids


def test_text_only_prompts_need_no_videos(processor: SlowFastProcessor) -> None:
    inputs = processor(text=["red", "What colour is the ball"])
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert processor.placeholder() not in inputs["input_ids"]
    assert inputs["attention_mask"][0, 0] == 0  # padded on the left
    right = processor(text=["red", "What colour is the ball"], padding_side="right")
    assert right["attention_mask"][0, -1] == 0


def test_what_does_not_fit_is_refused(processor: SlowFastProcessor) -> None:
    frames, times = video(9)
    for request, sentence in (
        ({"text": ["red"], "videos": [frames]}, "Give either videos with their times, or n_frames"),
        ({"text": ["red", "up"], "n_frames": [9]}, "There are 2 prompts, but videos for 1: give one entry per prompt"),
        ({"text": ["<video> red"], "n_frames": [[9, 9]]}, "A prompt has 1 <video> marks, but 2 videos came with it"),
        ({"text": ["<video> red"]}, "A prompt has 1 <video> marks, but 0 videos came with it"),
        ({"text": ["red"], "videos": [frames], "times": [times[:4]]}, "they have 9 frames, but 4 times"),
        ({"text": ["red"], "n_frames": 9, "max_length": 5}, "max_length is 5: shorten it"),
        ({"text": ["red"], "padding_side": "top"}, "padding_side is 'top': choose left or right"),
    ):
        with pytest.raises(ValueError, match=sentence):
            processor(**request)


def test_a_default_of_truncation_is_kept_with_the_processor(processor: SlowFastProcessor, tmp_path: Path) -> None:
    config = small_config()
    encoder = ENCODERS.build(config.vision)
    long = processor(text=["What colour is the ball"], n_frames=9)["input_ids"].shape[1]
    cut = SlowFastProcessor.for_model(config, encoder, tokenizer(), max_length=long - 3, truncation="tail")
    cut.save_pretrained(tmp_path)
    again = SlowFastProcessor.from_pretrained(tmp_path)
    ids = processor(text=["What colour is the ball"], n_frames=9)["input_ids"]
    assert torch.equal(again(text=["What colour is the ball"], n_frames=9)["input_ids"], ids[:, :-3])


@pytest.mark.parametrize(
    ("side", "ids", "labels"),
    [
        ("left", [0, 0, 0, 0, 4, 5], [IGNORED] * 5 + [5]),
        ("right", [4, 5, 0, 0, 0, 0], [IGNORED, 5] + [IGNORED] * 4),
    ],
)
def test_labels_follow_their_ids(side: str, ids: list[int], labels: list[int]) -> None:
    rows, answers = [[1, -200, 2, 3], [4, 5]], [[IGNORED, IGNORED, IGNORED, 3], [IGNORED, 5]]
    made = collate(rows, [[3], []], -200, 0, labels=answers, padding_side=side)
    assert made["input_ids"].tolist() == [[1, -200, -200, -200, 2, 3], ids]
    assert made["labels"].tolist() == [[IGNORED] * 5 + [3], labels]
    assert made["attention_mask"].sum(1).tolist() == [6, 2]


def test_a_question_aware_selector_gets_its_questions() -> None:
    """Videos of 5 frames of which 2 are kept: placeholders for 2; each question chooses the frames for itself."""
    model = small_model("compressor=identity", selector={"name": "question_match", "keep": 2})
    processor = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    assert processor.fast_token_count(5) == model.fast_token_count(5) == model.fast_token_count(2)
    size = model.encoder.image_size
    frames_THWC = torch.randint(
        0, 256, (5, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    texts, times_T = ["Where is red", "What colour is the ball"], torch.linspace(0, 1, 5)
    inputs = processor(texts, videos=[frames_THWC] * 2, times=[times_T] * 2)
    assert inputs["questions"].shape == (2, 5)
    assert inputs["questions"][0, 3:].tolist() == [-1, -1]
    logits_BLW = model(**inputs).logits
    for row, text in enumerate(texts):
        asked = processor([text], videos=[frames_THWC], times=[times_T])
        kept, kept_times = model.select(asked["frames"], asked["frame_times"], asked["questions"])
        alone = model(input_ids=asked["input_ids"], features=model.encode_video(kept), frame_times=kept_times).logits
        torch.testing.assert_close(logits_BLW[row, -alone.shape[1] :], alone[0], atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="needs one question"):
        model(**{name: value for name, value in inputs.items() if name != "questions"})
