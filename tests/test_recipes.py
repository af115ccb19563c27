"""The base and adapt recipes: which frames, which questions, which targets, and that training learns them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from architectures import SlowFastForConditionalGeneration
from architectures.encoders import ENCODERS
from harness.compose import compose
from harness.mini.clips import write_mp4
from harness.mini.encoder import normalise
from harness.mini.initialise import initialise
from harness.mini.pool import Pool, write_features
from harness.mini.questions import FAMILIES
from harness.mini.recipes import (
    AdaptRecipe,
    AdaptTraining,
    BaseRecipe,
    BaseTraining,
    Batch,
    key_frames,
)
from harness.mini.stream import TEXT_ONLY, QuestionStream, suite_tokenizer
from harness.mini.tokenizer import END, LETTERS
from harness.mini.world import COLOURS, FRAMES, GLYPHS, PLACES, draw_clip, render, training_seed
from harness.models import model_config
from harness.packing import IGNORED
from harness.train import Optimisation, train
from harness.video import read_frames

SEED = training_seed(0)
CLIPS = 12
RECIPE = BaseRecipe(videos=8, questions=8, alignment_steps=0, few_frames_until=0, all_frames_from=1, text_only=0.7)


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    """A random tiny encoder whose features are standardised."""
    torch.manual_seed(0)
    encoder = ENCODERS.build({"name": "tiny"}).eval().requires_grad_(False)
    encoder.standardise_(normalise(render(draw_clip(SEED, 0)), encoder))
    return encoder


@pytest.fixture(scope="module")
def paths(encoder: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The features of the clips, in two parts."""
    folder = tmp_path_factory.mktemp("pool")
    parts = [(0, 5, folder / "first.npy"), (5, CLIPS, folder / "second.npy")]
    for start, stop, path in parts:
        write_features(encoder, SEED, start, stop, path, lambda done, total: None)
    return [path for *_, path in parts]


@pytest.fixture(scope="module")
def pool(paths: list[Path]) -> Pool:
    return Pool.open(SEED, paths)


@pytest.fixture(scope="module")
def stream() -> QuestionStream:
    return QuestionStream(suite_tokenizer())


def fresh_model(stream: QuestionStream, encoder: torch.nn.Module) -> SlowFastForConditionalGeneration:
    config = model_config(compose(["scale=test", "architecture=self_attention"]), stream.tokenizer)
    model = SlowFastForConditionalGeneration(config)
    model.encoder = encoder
    initialise(model, 0)
    return model


@pytest.fixture(scope="module")
def model(stream: QuestionStream, encoder: torch.nn.Module) -> SlowFastForConditionalGeneration:
    return fresh_model(stream, encoder)


# ------------------------------------------------------------------------------------------------- the pool


def test_features_are_the_encoders_of_decoded_frames(pool: Pool, encoder: torch.nn.Module, tmp_path: Path) -> None:
    clips_B, frames_BT = np.array([7, 0, 4, 5]), np.array([[3, 90, 1], [0, 1, 2], [127, 5, 5], [60, 61, 62]])
    found = pool.features(clips_B, frames_BT)
    assert found.dtype == torch.float32
    for clip, frames_T, found_TPV in zip(clips_B, frames_BT, found, strict=True):
        write_mp4(tmp_path / "clip.mp4", render(draw_clip(SEED, int(clip))))
        decoded = read_frames(tmp_path / "clip.mp4", FRAMES).frames_THWC[frames_T]
        expected_TPV = encoder.encode(normalise(decoded, encoder))
        torch.testing.assert_close(found_TPV, expected_TPV, atol=4e-3, rtol=2e-3)  # float16 on disk
        assert (expected_TPV[0] - expected_TPV[1]).abs().max() > 0.05  # other frames would be noticed


# ------------------------------------------------------------------------------------------- frames, questions


@pytest.mark.parametrize("n", [5, 8, 10, 16])
def test_key_frames_hold_the_flashes_they_must(n: int) -> None:
    rng = np.random.default_rng(n)
    for index in range(60):
        clip = draw_clip(SEED, index)
        frames = key_frames(rng, clip, n)
        assert len(set(frames.tolist())) == n
        assert np.array_equal(frames, np.sort(frames))
        assert frames.min() >= 0
        assert frames.max() < FRAMES
        once = {clip.flash_of(glyph).start for glyph in clip.singles}
        assert len(once) == 5
        assert once <= set(frames.tolist())
        if n == 16:
            assert {flash.start for flash in clip.flashes} <= set(frames.tolist())


def test_fillers_hold_no_flash() -> None:
    for index in range(30):
        clip = draw_clip(SEED, index)
        starts = {flash.start for flash in clip.flashes}
        shown = {flash.start + d for flash in clip.flashes for d in range(flash.duration)}
        fillers = set(key_frames(np.random.default_rng(index), clip, 16).tolist()) - starts
        assert len(fillers) == 6
        assert not fillers & shown


def test_counts_are_asked_only_where_every_flash_is_in_view(
    pool: Pool, stream: QuestionStream, model: SlowFastForConditionalGeneration
) -> None:
    training = BaseTraining(BaseRecipe(videos=6, few_frames_until=2, all_frames_from=12), pool, stream, 0, model)
    asked = {"short": set(), "long": set()}
    for step in range(40):
        batch = training.draw(np.random.default_rng(step), random.Random(step), step)
        length = "long" if batch.times_BT.shape[1] == 16 else "short"
        asked[length] |= {family for clip in batch.families for family in clip}
        assert batch.times_BT.shape[1] <= (5 if step <= 2 else 16)
    assert asked["short"] == {*FAMILIES, TEXT_ONLY} - {"count"}
    assert asked["long"] == {*FAMILIES, TEXT_ONLY}


def test_families_that_are_learned_worse_are_asked_more(
    pool: Pool, stream: QuestionStream, model: SlowFastForConditionalGeneration
) -> None:
    training = BaseTraining(RECIPE, pool, stream, 0, model)
    for _ in range(200):
        losses = torch.tensor([[3.0 if family == "order" else 0.1 for family in FAMILIES]])
        training.observe([list(FAMILIES)], losses)
    running = training.state["word_loss"]
    assert running["order"] > 2
    assert max(loss for family, loss in running.items() if family != "order") < 0.6
    families = [
        family
        for step in range(20)
        for clip in training.draw(np.random.default_rng(step), random.Random(step), 100).families
        for family in clip
    ]
    asked = {family: families.count(family) for family in FAMILIES}
    assert asked["order"] > max(count for family, count in asked.items() if family != "order")


def test_a_step_draws_the_same_batch_whenever_it_comes(
    pool: Pool, stream: QuestionStream, model: SlowFastForConditionalGeneration
) -> None:
    first, second = (AdaptTraining(AdaptRecipe(4, 3), pool, stream, 7, model, 16) for _ in range(2))
    other = AdaptTraining(AdaptRecipe(4, 3), pool, stream, 8, model, 16)
    with torch.no_grad():
        first.loss(model, 0)
        assert first.loss(model, 3) == second.loss(model, 3)
        assert first.loss(model, 4) != second.loss(model, 3)
        assert other.loss(model, 3) != second.loss(model, 3)


# ------------------------------------------------------------------------------------------------- targets


def drawn_batch(pool: Pool, stream: QuestionStream, model: SlowFastForConditionalGeneration) -> Batch:
    training = BaseTraining(RECIPE, pool, stream, 0, model)
    return training.draw(np.random.default_rng(1), random.Random(1), 100)


def test_targets_stand_one_place_before_their_tokens(
    pool: Pool, stream: QuestionStream, model: SlowFastForConditionalGeneration
) -> None:
    batch = drawn_batch(pool, stream, model)
    ids_BQM = batch.packed.packing.cut(batch.packed.input_ids_BL)
    names = stream.tokenizer.convert_ids_to_tokens
    for b, clip in enumerate(batch.families):
        for q, family in enumerate(clip):
            ids, answers, opened = ids_BQM[b, q], batch.answer_BQM[b, q], batch.open_BQM[b, q]
            places = torch.nonzero(answers != IGNORED).flatten()
            assert torch.equal(answers[places], ids[places + 1])
            word, letter, end = names(answers[places].tolist())
            assert names([ids[places[0]]])[0] == "assistant"
            assert letter in LETTERS
            assert end == END
            told = names(ids.tolist())
            assert told[told.index(word, told.index("A")) - 1] == letter  # the option that holds the word
            if family in ("order", TEXT_ONLY):
                assert (opened == IGNORED).all()
            else:
                (place,) = torch.nonzero(opened != IGNORED).flatten().tolist()
                assert names([opened[place]]) == [word]
                assert place < told.index("A")


def test_visual_tokens_are_captioned_with_what_flashes_there(
    pool: Pool,
    stream: QuestionStream,
    model: SlowFastForConditionalGeneration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets: list[torch.Tensor] = []
    cross_entropy = F.cross_entropy

    def noted(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        targets.append(target)
        return cross_entropy(logits, target)

    monkeypatch.setattr(F, "cross_entropy", noted)
    training = BaseTraining(BaseRecipe(alignment_frames=24), pool, stream, 0, model)
    training.alignment_loss(model, np.random.default_rng(0))
    place_B4, glyph_B4, colour_B4 = (target.view(24, 4) for target in targets)
    names = stream.tokenizer.convert_ids_to_tokens
    assert all(names(places) == list(PLACES) for places in place_B4.tolist())
    rng = np.random.default_rng(0)
    for clip in rng.choice(len(pool), 24):
        flashes = draw_clip(SEED, int(clip)).flashes
        flash = flashes[rng.integers(len(flashes))]
        glyph, colour = glyph_B4[0].tolist(), colour_B4[0].tolist()
        glyph_B4, colour_B4 = glyph_B4[1:], colour_B4[1:]
        assert names([glyph[flash.place], colour[flash.place]]) == [
            GLYPHS[flash.glyph],
            COLOURS[flash.colour],
        ]
        assert glyph.count(IGNORED) == colour.count(IGNORED) == 3


# ------------------------------------------------------------------------------------------------- learning


@pytest.fixture(scope="module")
def learned(
    pool: Pool, stream: QuestionStream, encoder: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SlowFastForConditionalGeneration, BaseTraining, list[float]]:
    """A model after 60 steps of base training on twelve clips, its recipe, and the steps' losses."""
    model = fresh_model(stream, encoder)
    training = BaseTraining(RECIPE, pool, stream, 0, model)
    losses: list[float] = []
    compute = training.loss

    def noted(model: SlowFastForConditionalGeneration, step: int) -> torch.Tensor:
        loss = compute(model, step)
        losses.append(loss.item())
        return loss

    training.loss = noted
    work = tmp_path_factory.mktemp("training")
    train(model, training, Optimisation(60, 5e-3, save_every=1_000), work, 0, lambda done, total: None)
    return model.eval(), training, losses


def test_sixty_steps_lower_the_loss(learned: tuple) -> None:
    _, training, losses = learned
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert training.state["word_loss"] != dict.fromkeys(FAMILIES, 1.4)


class OneBatch:
    """Adaptation in which the first step's batch comes again and again."""

    def __init__(self, training: AdaptTraining):
        self.training, self.state = training, {}

    def loss(self, model: SlowFastForConditionalGeneration, step: int) -> torch.Tensor:
        return self.training.loss(model, 0)


def test_what_is_learned_is_the_letter_of_the_right_word(
    pool: Pool, stream: QuestionStream, encoder: torch.nn.Module, tmp_path: Path
) -> None:
    """Read off the prompts: with the letters of other options as targets the model would say those."""
    model = fresh_model(stream, encoder)
    training = AdaptTraining(AdaptRecipe(4, 4), pool, stream, 0, model, frames=4)
    batches: list[Batch] = []
    compute = training.questions.logits

    def noted(model: SlowFastForConditionalGeneration, batch: Batch) -> torch.Tensor:
        batches.append(batch)
        return compute(model, batch)

    training.questions.logits = noted
    train(model, OneBatch(training), Optimisation(60, 1e-2), tmp_path, 0, lambda done, total: None)
    batch = batches[-1]
    with torch.no_grad():
        said_BQM = compute(model.eval(), batch).argmax(-1)
    ids_BQM = batch.packed.packing.cut(batch.packed.input_ids_BL)
    names = stream.tokenizer.convert_ids_to_tokens
    right = []
    for ids, said in zip(ids_BQM.flatten(0, 1).tolist(), said_BQM.flatten(0, 1).tolist(), strict=True):
        told = names(ids)
        answer = told.index("assistant") + 1
        letter = told[told.index(told[answer], told.index("A")) - 1]
        right.append(names(said)[answer] == letter)
    assert len(right) == 16
    assert sum(right) >= 12
