"""Items with their videos: frames as at evaluation, broken videos replaced and counted, lengths, kept features."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import videos
from PIL import Image
from small_models import small_model, tokenizer

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from harness.errors import UserError
from harness.finetune.annotations import Example, Medium, Turn
from harness.finetune.collate import Collator
from harness.finetune.dataset import (
    ConversationDataset,
    FrameRule,
    Kept,
    Outcome,
    TooManyBroken,
    together,
)
from harness.finetune.encoded import keep_features
from harness.sampling import RULES, NoFrameRate
from harness.video import read_frames

QUESTIONS = ["What colour is the ball", "one", "red green blue yellow one two three", "What"]


@pytest.fixture(scope="module")
def model() -> SlowFastForConditionalGeneration:
    """A random slow-fast model."""
    return small_model()


@pytest.fixture(scope="module")
def processor(model: SlowFastForConditionalGeneration) -> SlowFastProcessor:
    """Its processor."""
    return SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos (25 frames a second), an image, and a broken file of each kind."""
    folder = tmp_path_factory.mktemp("media")
    for name, shown in (("short", 10), ("middle", 40), ("long", 120)):
        videos.write(folder / f"{name}.mp4", "libx264", {"bf": "0", "g": "10"}, shown)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "still.png")
    whole = (folder / "middle.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("noise.png", "noise.mp4"):
        (folder / name).write_bytes(b"neither an image nor a video" * 9)
    return folder


def example(question: str, *paths: Path, answer: str = "red", source: str = "a.json, entry 0") -> Example:
    """A conversation of one turn, its media in front."""
    marks = "<video>\n" * len(paths)
    kinds = ["image" if path.suffix == ".png" else "video" for path in paths]
    return Example((Turn(marks + question, answer),), tuple(map(Medium, kinds, paths)), None, source)


def test_a_video_is_shown_as_evaluation_shows_it(media: Path, processor: SlowFastProcessor) -> None:
    """Frames, times and placeholders against the processor's call on what `read_frames` decodes."""
    shown = [media / "long.mp4", media / "short.mp4"]
    data = ConversationDataset([example("one", *shown)], processor, frames=16)
    (item,) = (data[n] for n in range(len(data)))
    decoded = [read_frames(path, 16) for path in shown]
    wanted = processor(text=["one"], videos=[[d.frames_THWC for d in decoded]], times=[[d.times_T for d in decoded]])
    assert item.rows[0][0][: wanted["input_ids"].shape[1]] == wanted["input_ids"][0].tolist()
    for number in range(2):
        assert torch.equal(item.videos[number], wanted["frames"][number])
        assert torch.equal(item.times[number], wanted["frame_times"][number])


def test_an_image_is_a_video_of_one_frame(media: Path, processor: SlowFastProcessor) -> None:
    item = ConversationDataset([example("one", media / "still.png")], processor, frames=16)[0]
    pixels = np.asarray(Image.open(media / "still.png"))[None]
    wanted = processor(text=["one"], videos=[pixels], times=[np.zeros(1)])
    assert torch.equal(item.videos[0], wanted["frames"][0])
    assert item.rows[0][0][: wanted["input_ids"].shape[1]] == wanted["input_ids"][0].tolist()
    assert item.rows[0][0].count(processor.placeholder()) == processor.fast_token_count(1)


@pytest.mark.parametrize(
    ("name", "fps", "least", "wanted"),
    [
        ("short", None, 1, 64),  # as at evaluation: frames come more than once
        ("long", 4, 1, 19),
        ("middle", 4, 1, 6),
        ("middle", 4, 16, 16),
        ("short", 4, 16, 10),
        ("long", 100, 1, 64),
    ],
)
def test_frames_follow_the_files_seconds_within_bounds(
    name: str, fps: float | None, least: int, wanted: int, media: Path, processor: SlowFastProcessor
) -> None:
    """120 frames are 4.8 s and 40 are 1.6 s: by hand, 4 x 4.8 = 19.2 and 4 x 1.6 = 6.4 frames; "short" has 10."""
    path = media / f"{name}.mp4"
    data = ConversationDataset([example("one", path)], processor, frames=64, fps=fps, min_frames=least)
    item = data[0]
    assert len(item.videos[0]) == wanted
    shown = read_frames(path, wanted)
    assert torch.equal(item.times[0], torch.as_tensor(shown.times_T))
    assert item.rows[0][0].count(processor.placeholder()) == processor.fast_token_count(wanted)


def test_a_rule_that_cannot_be_is_refused() -> None:
    for bad in ({"frames": 8, "min_frames": 9}, {"frames": 0}, {"frames": 8, "fps": 0.0}, {"frames": 8, "fps": -1}):
        with pytest.raises(UserError, match="give"):
            FrameRule(**bad)
    with pytest.raises(NoFrameRate, match="states no frame rate"):
        FrameRule(8, 4.0).indices(100, None, 8)
    assert FrameRule(8).formula == RULES["uniform"].formula != FrameRule(8, 4.0).formula


@pytest.mark.parametrize("fps", [None, 4.0])
@pytest.mark.parametrize("name", ["cut.mp4", "none.mp4", "noise.mp4", "noise.png", "none.png"])
def test_a_broken_video_is_said_counted_and_replaced_by_the_next(
    name: str, fps: float | None, media: Path, processor: SlowFastProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    some = [example(QUESTIONS[n % 4], media / "short.mp4", source=f"a.json, entry {n}") for n in range(200)]
    some[3] = example("one", media / name, source="a.json, entry 3")
    some[4] = example("one", media / name, source="a.json, entry 4")
    data = ConversationDataset(some, processor, frames=4, fps=fps)
    with caplog.at_level(logging.WARNING):
        items = [data[n] for n in (2, 3, 3, 4, 5)]
    assert [item.rows for item in items[1:]] == [items[-1].rows] * 4
    assert items[0].rows != items[-1].rows
    assert data.outcome() == Outcome(asked=4, broken=2, shortened=0)
    assert len(caplog.messages) == 2, "each is said once"
    assert all(f"entry {n}: {media / name}: " in said for n, said in zip((3, 4), caplog.messages, strict=True))
    data.expect_few_broken()  # 2 of 200 are not more than 1%


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_one_in_a_hundred_ends_the_run(workers: int, media: Path, processor: SlowFastProcessor) -> None:
    """In one sentence, from a worker too; and what workers met is counted here."""
    some = [example("one", media / ("none.mp4" if n in (1, 5, 7) else "short.mp4")) for n in range(200)]
    data = ConversationDataset(some, processor, frames=2)
    loader = torch.utils.data.DataLoader(data, 2, num_workers=workers, collate_fn=Collator(processor))
    with pytest.raises(TooManyBroken, match=r"^3 of 200 conversations have a broken video[^\n]*$"):
        list(loader)
    assert data.outcome().broken == 3
    with pytest.raises(TooManyBroken):
        data.expect_few_broken()
    assert ConversationDataset(some, processor, frames=2, processes=2).allowed == 1


def test_the_last_is_replaced_by_the_first_and_nothing_by_nothing(media: Path, processor: SlowFastProcessor) -> None:
    some = [example("one two", media / "short.mp4")] + [example("one", media / "none.mp4")] * 2
    data = ConversationDataset(some, processor, frames=2)
    data.allowed = 3
    assert data[1].rows == data[0].rows
    none = ConversationDataset(some[1:], processor, frames=2)
    none.allowed = 3
    with pytest.raises(TooManyBroken, match="none of the 2"):
        none[0]


def test_what_is_too_long_is_shortened_or_left_out_and_counted(media: Path, processor: SlowFastProcessor) -> None:
    long = example("one", media / "short.mp4", answer="red " * 50)
    hopeless = example("one " * 90, media / "short.mp4")
    room = processor.fast_token_count(16) + 40
    data = ConversationDataset([long, hopeless, example("one")] + [example("two")] * 97, processor, max_length=room)
    assert len(data[0].rows[0][0]) == room
    assert data[1].rows == data[2].rows
    assert data.outcome() == Outcome(asked=3, broken=1, shortened=1)


def test_lengths_order_items_as_their_tokens_do(media: Path, processor: SlowFastProcessor) -> None:
    """Of videos of full length the estimate is off by the chat's own words alone."""
    some = [example("one " * n, *shown) for n, shown in ((3, ()), (60, ()), (5, (media / "short.mp4",)))]
    some.append(example("one", media / "still.png", media / "long.mp4"))
    data = ConversationDataset(some, processor, frames=16)
    true = [len(data[n].rows[0][0]) for n in range(4)]
    assert np.argsort(data.lengths).tolist() == np.argsort(true).tolist()
    assert all(abs(a - b) <= 8 for a, b in zip(data.lengths, true, strict=True))


def test_conversations_about_the_same_media_come_together(media: Path, processor: SlowFastProcessor) -> None:
    short, long = media / "short.mp4", media / "long.mp4"
    some = [
        example("a", short), example("b", long), example("c", short), example("d"), example("e", short),
        example("f", short, long), example("g", short), example("d"), example("h", long),
    ]  # fmt: skip
    other = Example((Turn("Look: <video>\ni", "red"),), (Medium("video", long),), None, "")
    groups = together([*some, other], 3)
    assert [[e.turns[0].question[-1] for e in group] for group in groups] == [
        ["a", "c", "e"], ["b", "h"], ["d"], ["f"], ["g"], ["d"], ["i"],
    ]  # fmt: skip
    item = ConversationDataset(some, processor, frames=4, per_video=3)[0]
    first = item.rows[0][0]
    assert len(item.videos) == 1
    assert all(ids[: item.prefix] == first[: item.prefix] for ids, _ in item.rows)
    assert first[item.prefix - 1] == processor.placeholder() != first[item.prefix]


def test_kept_examples_come_back_as_they_were() -> None:
    some = [example("one", Path("a.mp4")), example("two"), example("three" * 100, Path("b.png"))]
    kept = Kept(some)
    assert [kept[n] for n in range(len(kept))] == some


@torch.no_grad()
def test_kept_features_give_the_same_batch_to_the_decoder(
    media: Path, model: SlowFastForConditionalGeneration, processor: SlowFastProcessor, tmp_path: Path
) -> None:
    some = [example("one", media / "long.mp4"), example("two", media / "still.png", media / "short.mp4")]
    data = ConversationDataset(some, processor, model.config, frames=20, fps=4)
    memo = keep_features(data, model, tmp_path)
    kept = ConversationDataset(some, processor, model.config, frames=20, fps=4, features=memo)
    batches = [Collator(processor)([of[0], of[1]]) for of in (data, kept)]
    assert "features" in batches[1]
    found, wanted = (model(**batch, use_cache=False) for batch in reversed(batches))
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    keep_features(data, model, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "nothing is encoded twice"
    other = ConversationDataset(some, processor, frames=20, fps=8)
    assert keep_features(other, model, tmp_path).folder != memo.folder
    missing = ConversationDataset([example("one", media / "middle.mp4")], processor, features=memo)
    with pytest.raises(TooManyBroken):
        missing[0]


def test_a_processor_of_another_model_and_no_examples_are_refused(
    model: SlowFastForConditionalGeneration, processor: SlowFastProcessor
) -> None:
    with pytest.raises(UserError, match="no conversations to train on"):
        ConversationDataset([], processor)
    other = type(model.config).from_dict({**model.config.to_dict(), "video_token_id": 3})
    with pytest.raises(UserError, match="take the processor from the model's folder"):
        ConversationDataset([example("one")], processor, other)
    with pytest.raises(UserError, match="per_video=0"):
        together([], 0)


def test_a_selector_that_reads_the_question_gets_it(media: Path) -> None:
    asking = small_model("selector=question_match")
    own = SlowFastProcessor.for_model(asking.config, asking.encoder, tokenizer())
    data = ConversationDataset([example("What colour", media / "long.mp4"), example("one")], own, frames=20)
    batch = Collator(own)([data[0], data[1]])
    wanted = own.questions(["What colour"], [[1]])
    assert batch["questions"].tolist() == wanted.tolist()
    assert torch.isfinite(asking(**batch, use_cache=False).loss)
    with pytest.raises(UserError, match="per_video=1"):
        ConversationDataset([example("one")], own, per_video=2)
