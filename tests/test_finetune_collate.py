"""A batch, padded or packed, computes what its conversations do alone; text alone can keep all parts at work."""

import pytest
import torch
from small_models import small_model, tokenizer
from torch.nn import functional as F

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.processing import IGNORED
from harness.finetune.annotations import Example, Medium, Turn
from harness.finetune.collate import Collator, packed_mask
from harness.finetune.dataset import Item, shared_prefix
from harness.finetune.examples import tokenize
from harness.packing import answer_targets, pack, packed_logits

VIDEO = Medium("video", "a.mp4")
SAID = [
    [("What colour is the ball", "red"), ("one two three", "left right"), ("red", "yellow")],
    [("What", "green")],
    [("one", "two"), ("up down up down", "one")],
]
FRAMES = [(9,), (), (20, 5)]  # of each item's videos

Run = dict[str, torch.Tensor]


def items(model: SlowFastForConditionalGeneration, processor: SlowFastProcessor, frames: list = FRAMES) -> list[Item]:
    """Conversations about one video, about none, and about two, with random encoder features."""
    generator = torch.Generator().manual_seed(3)
    patches, made = model.encoder.grid[0] * model.encoder.grid[1], []
    for shown, said in zip(frames, SAID, strict=True):
        marks = "<video>\n" * len(shown)
        examples = [Example((Turn(marks + q, a),), (VIDEO,) * len(shown), None, "") for q, a in said]
        tokens = [tokenize(example, processor) for example in examples]
        counts = [processor.fast_token_count(T) for T in shown]
        made.append(
            Item(
                rows=[t.spread(processor.placeholder(), counts) for t in tokens],
                prefix=shared_prefix(tokens, counts, processor.placeholder()) if len(said) > 1 and shown else 0,
                videos=[torch.randn(T, patches, model.encoder.width, generator=generator) for T in shown],
                times=[torch.linspace(0, 1, T) ** 1.2 for T in shown],
                encoded=True,
            )
        )
    return made


def alone(model: SlowFastForConditionalGeneration, item: Item) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Slow truth: (logits_LW, labels_L) of each conversation as a sequence of its own."""
    runs = []
    for ids, labels in item.rows:
        seen = {"features": item.videos, "frame_times": item.times} if item.videos else {}
        logits_LW = model(input_ids=torch.tensor([ids]), **seen, use_cache=False).logits[0]
        runs.append((logits_LW, torch.tensor(labels)))
    return runs


def loss_alone(model: SlowFastForConditionalGeneration, some: list[Item]) -> torch.Tensor:
    """The mean over all answers' tokens, one conversation at a time."""
    parts = [part for item in some for part in alone(model, item)]
    summed = sum(F.cross_entropy(logits[:-1], labels[1:], reduction="sum") for logits, labels in parts)
    return summed / sum(int((labels != IGNORED).sum()) for _, labels in parts)


@pytest.fixture(scope="module", params=["architecture=slow_fast", "architecture=self_attention", "slow_tokens=rotary"])
def pair(request: pytest.FixtureRequest) -> tuple[SlowFastForConditionalGeneration, SlowFastProcessor]:
    """A model and its processor."""
    model = small_model(request.param)
    return model, SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_learns_what_its_conversations_would_alone(pair: tuple, packing: bool) -> None:
    """Loss and gradients."""
    model, processor = pair
    some = items(model, processor)
    names = ("language_model.model.layers.0.self_attn.q_proj.weight", "projector")
    weights = [p for n, p in model.named_parameters() if any(name in n for name in names) and p.requires_grad]
    wanted = loss_alone(model, some)
    expected = torch.autograd.grad(wanted, weights)
    batch = Collator(processor, packing)(some)
    found = model(**batch, use_cache=False).loss
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_every_packed_token_sees_what_it_would_alone(pair: tuple) -> None:
    model, processor = pair
    some = items(model, processor)
    batch = Collator(processor, packing=True)(some)
    assert torch.equal(batch["may_read"], batch["input_ids"] != processor.tokenizer.pad_token_id)
    logits_RLW = model(**batch, use_cache=False).logits
    for row_LW, item in zip(logits_RLW, some, strict=True):
        place = item.prefix
        for number, (wanted_LW, _) in enumerate(alone(model, item)):
            length = len(wanted_LW) - item.prefix
            torch.testing.assert_close(row_LW[place : place + length], wanted_LW[item.prefix :], atol=2e-5, rtol=1e-4)
            if not number:
                torch.testing.assert_close(row_LW[: item.prefix], wanted_LW[: item.prefix], atol=2e-5, rtol=1e-4)
            place += length


@torch.no_grad()
def test_packing_is_that_of_the_mini_recipes() -> None:
    """The same questions by `harness.packing`, whose losses the main table's rows were trained with."""
    model = small_model()
    processor = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    some = items(model, processor, [(12,), (12,), (12,)])[::2]
    some = [Item(i.rows[:2], i.prefix, i.videos, i.times, True) for i in some]
    loss = model(**Collator(processor, packing=True)(some), use_cache=False).loss
    prefix = some[0].rows[0][0][: some[0].prefix]
    branches = [[ids[len(prefix) :] for ids, _ in item.rows] for item in some]
    packed = pack(prefix, branches, processor.tokenizer.pad_token_id)
    logits_BQMW = packed_logits(
        model,
        packed,
        features=torch.stack([i.videos[0] for i in some]),
        frame_times=torch.stack([i.times[0] for i in some]),
    )
    lengths = [[sum(label != IGNORED for label in labels) for _, labels in item.rows] for item in some]
    total, count = torch.zeros(()), 0
    for b, video in enumerate(branches):
        for q, ids in enumerate(video):
            targets = answer_targets([[ids]], lengths[b][q])[0, 0]
            total += F.cross_entropy(logits_BQMW[b, q, : len(ids)], targets, reduction="sum")
            count += lengths[b][q]
    torch.testing.assert_close(loss, total / count, atol=1e-5, rtol=1e-5)


def test_a_mask_lets_each_token_see_its_past_alone() -> None:
    """Against the rule written out place by place."""
    branch_RL = torch.tensor([[0, 0, 1, 1, 2, 2, 2, -1], [1, 1, 1, 2, -1, -1, -1, -1]])
    found = packed_mask(branch_RL)[:, 0]
    for r, branches in enumerate(branch_RL.tolist()):
        for i, mine in enumerate(branches):
            for j, other in enumerate(branches):
                sees = j <= i and (other == mine or (other == 0 and mine >= 0))
                assert bool(found[r, i, j]) == sees, (r, i, j)


def test_padding_is_on_the_right_and_learns_nothing(pair: tuple) -> None:
    model, processor = pair
    batch = Collator(processor)(items(model, processor))
    rows = [row for item in items(model, processor) for row in item.rows]
    for number, (ids, labels) in enumerate(rows):
        assert batch["input_ids"][number, : len(ids)].tolist() == ids
        assert batch["labels"][number, : len(ids)].tolist() == labels
        assert batch["attention_mask"][number].tolist() == [1] * len(ids) + [0] * (len(batch["labels"][0]) - len(ids))
        assert set(batch["labels"][number, len(ids) :].tolist()) <= {IGNORED}
    assert len(batch["features"]) == 3 + 2 * 2  # the first's video in 3 rows, the last's two in 2
    assert [len(times) for times in batch["frame_times"]] == [9, 9, 9, 20, 5, 20, 5]


def test_videos_of_equal_length_are_one_tensor() -> None:
    model = small_model()
    processor = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    batch = Collator(processor, packing=True)(items(model, processor, [(6,), (6,), (6,)]))
    assert batch["features"].shape[:2] == batch["frame_times"].shape == (3, 6)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_text_alone_can_keep_every_part_at_work(encoded: bool, packing: bool) -> None:
    """The loss is the text's own, but every weight has a gradient, the black image's being 0."""
    model = small_model()
    processor = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    text = items(model, processor)[1]
    text.encoded = encoded
    shape = (model.encoder.grid[0] * model.encoder.grid[1], model.encoder.width)
    plain = model(**Collator(processor, packing)([text]), use_cache=False)
    batch = Collator(processor, packing, always_watch=True, encoder_shape=shape)([text])
    assert ("features" if encoded else "frames") in batch
    watched = model(**batch, use_cache=False)
    torch.testing.assert_close(watched.loss, plain.loss, atol=1e-6, rtol=1e-5)
    model.zero_grad()
    watched.loss.backward()
    about_video = ("projector.", "cross_attention.")
    seen = [(n, p.grad) for n, p in model.named_parameters() if any(part in n for part in about_video)]
    assert seen
    assert all(grad is not None and not grad.any() for _, grad in seen)
    with_video = Collator(processor, packing, always_watch=True)(items(model, processor)[:2])
    assert len(with_video["features"]) == (1 if packing else 3), "a batch with a video needs no image"
    model.zero_grad()


def test_packed_layers_that_are_computed_again_attend_as_at_first() -> None:
    """Gradient checkpointing changes no gradient."""
    model = small_model()
    processor = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    batch = Collator(processor, packing=True)(items(model, processor))
    weights = list(model.language_model.parameters())
    wanted = torch.autograd.grad(model(**batch, use_cache=False).loss, weights, allow_unused=True)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = torch.autograd.grad(model(**batch, use_cache=False).loss, weights, allow_unused=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_frames_and_features_do_not_mix() -> None:
    model = small_model()
    processor = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    some = items(model, processor)
    some[0].encoded = False
    with pytest.raises(ValueError, match="mixes frames and kept features"):
        Collator(processor)(some)
