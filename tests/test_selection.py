"""Frame selection at mini scale: training and evaluation choose alike, and the encoder sees what was chosen."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_checkpoint

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.encoders import ENCODERS
from architectures.selectors import SELECTORS
from harness.compose import compose, group_choices
from harness.errors import UserError
from harness.lmms_plugin import SlowFastMLLM
from harness.mini.clips import write_mp4
from harness.mini.encoder import EncoderRecipe
from harness.mini.pool import Pool, read_choices
from harness.mini.recipes import AdaptRecipe, AdaptTraining
from harness.mini.stream import QuestionStream, suite_tokenizer
from harness.mini.training import CHOICES, encoder_stage, selection_stage
from harness.mini.world import FRAMES, development_seed, draw_clip, render, training_seed
from harness.models import check_variant
from harness.progress import SILENT
from harness.stages import resolve
from harness.table import NOTHING_ELSE, Cell, Plan
from harness.video import read_frames

KEEP, OFFERED = 6, 40
VISION = {"name": "tiny"}
CHEAP = {"name": "tiny", "width": 8, "image_size": 16}
SPECS = {
    "uniform": {"name": "uniform", "keep": KEEP},
    "frame_difference": {"name": "frame_difference", "keep": KEEP, "size": 16},
    "median_distance": {"name": "median_distance", "keep": KEEP, "size": 32},
    "salience": {"name": "salience", "keep": KEEP, "encoder": CHEAP},
}
CLIPS = 3


@pytest.fixture(scope="module")
def cheap_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cheap encoder after a few steps of the mini scale's pretraining, on frames of 16 x 16 pixels."""
    out = tmp_path_factory.mktemp("cheap")
    recipe = dataclasses.asdict(EncoderRecipe(clips=2, steps=4, batch=16))
    encoder_stage(out, SILENT, 0, CHEAP, recipe)
    return out


def chosen_in_training(name: str, out: Path, cheap_encoder: Path) -> np.ndarray:
    """The pool's choices, by the stage that makes them."""
    cheap = {"cheap_encoder": cheap_encoder} if name == "salience" else {}
    selection_stage(out, SILENT, 0, 0, CLIPS, VISION, SPECS[name], OFFERED, NOTHING_ELSE, **cheap)
    return read_choices([out / CHOICES])


def plugin(name: str, out: Path, cheap_encoder: Path) -> SlowFastMLLM:
    """The plug-in with a saved model that has the selector."""
    tiny = tiny_checkpoint(placement="none")
    base = SlowFastForConditionalGeneration.from_pretrained(tiny)
    model = SlowFastForConditionalGeneration.from_base(base, selector=SPECS[name])
    if name == "salience":
        saved = torch.load(cheap_encoder / "encoder.pt", weights_only=True)
        model.selector.cheap.encoder.load_state_dict(saved["weights"])
    model.save_pretrained(out)
    SlowFastProcessor.from_pretrained(tiny).save_pretrained(out)
    return SlowFastMLLM(out, frames=OFFERED, progress=SILENT)


@pytest.mark.parametrize("name", SPECS)
def test_evaluation_sees_the_frames_that_training_saw(
    name: str, tmp_path: Path, cheap_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same clips: from the pool's stage, and from an mp4 by the plug-in with a model loaded from its files."""
    choices_NK = chosen_in_training(name, tmp_path, cheap_encoder)
    assert choices_NK.shape == (CLIPS, KEEP)
    model = plugin(name, tmp_path / "model", cheap_encoder)
    seen = []
    encode = model.model.encode_video
    monkeypatch.setattr(model.model, "encode_video", lambda frames: seen.append(frames) or encode(frames))
    for index, chosen_K in enumerate(choices_NK):
        write_mp4(tmp_path / "clip.mp4", render(draw_clip(training_seed(0), index)))
        video = read_frames(tmp_path / "clip.mp4", OFFERED)
        features_BTPV, times_BT = model._encode(video)
        places = [video.indices_T.tolist().index(frame) for frame in chosen_K]
        assert times_BT[0].numpy() == pytest.approx(chosen_K / (FRAMES - 1))  # the true times
        shown = model.processor.watchable([video.frames_THWC], [video.times_T])["frames"]
        assert torch.equal(seen[-1], shown[:, places])  # and no others
        assert features_BTPV.shape[:2] == (1, KEEP)


def test_answers_are_those_of_the_model_by_itself(tmp_path: Path, cheap_encoder: Path) -> None:
    """The plug-in with chosen features against `generate` with all frames, where the model chooses."""
    from test_plugin import requests_for

    from harness.lmms_requests import read_questions

    model = plugin("median_distance", tmp_path, cheap_encoder)
    questions = list(read_questions(*requests_for(["videomme"])).values())[:4]
    videos = {path: read_frames(path, OFFERED) for path in {question.path for question in questions}}
    together = model._generate(questions, videos)
    for question, answer in zip(questions, together, strict=True):
        video = videos[question.path]
        inputs = model.processor(text=[question.prompt], n_frames=KEEP)
        inputs |= model.processor.watchable([video.frames_THWC], [video.times_T])
        ids = model.model.generate(**inputs, max_new_tokens=question.max_new_tokens, do_sample=False)
        alone = model.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == alone.strip()


def test_adaptation_trains_on_the_chosen_frames_at_their_true_times() -> None:
    stream = QuestionStream(suite_tokenizer())
    features = np.random.default_rng(0).normal(size=(CLIPS, FRAMES, 16, 48)).astype(np.float16)
    pool = Pool([draw_clip(training_seed(0), index) for index in range(CLIPS)], [features])
    choices_NK = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(FRAMES), (CLIPS, 1)), axis=1)[:, :KEEP])
    model = SlowFastForConditionalGeneration.from_pretrained(tiny_checkpoint(placement="none"))
    training = AdaptTraining(AdaptRecipe(2, 2), pool, stream, 0, model, FRAMES, choices_NK)
    clips_B = np.array([2, 0])
    drawn = stream.draw(random.Random(0), pool.clips[0], "motion")
    batch = training.questions.batch(clips_B, training.frames_of(clips_B), [stream.branches([drawn])] * 2)
    for row, clip in enumerate(clips_B):
        for k, frame in enumerate(choices_NK[clip]):
            assert torch.equal(batch.features_BTPV[row, k], torch.from_numpy(features[clip, frame]).float())
            assert batch.times_BT[row, k].item() == pytest.approx(frame / (FRAMES - 1))
    with pytest.raises(ValueError, match="choices of frames for 2 clips, but 3 clips"):
        AdaptTraining(AdaptRecipe(2, 2), pool, stream, 0, model, FRAMES, choices_NK[:2])


def test_what_flashes_is_selected() -> None:
    """The share of flashes of which a frame is kept: the rival would not be one if it missed them."""
    found = {"uniform": [], "median_distance": []}
    for name, found_of in found.items():
        selector = SELECTORS.build({**SPECS[name], "keep": 16})
        for index in range(4):
            clip = draw_clip(development_seed(1), index)
            frames_BTCHW = torch.from_numpy(render(clip)).permute(0, 3, 1, 2)[None] / 255
            kept = set(selector(frames_BTCHW)[0].tolist())
            found_of += [bool(kept & set(range(f.start, f.start + f.duration))) for f in clip.flashes]
    assert np.mean(found["median_distance"]) > 0.85
    assert np.mean(found["uniform"]) < 0.4


# ------------------------------------------------------------------------------------------------- the table


def plan(*cells: str, typed: tuple[str, ...] = ()) -> Plan:
    overrides = ["scale=test", *typed]
    rows = [Cell.parse(cell, group_choices()["architecture"]) for cell in cells]
    return Plan(compose(overrides), overrides, rows)


def keys(made: Plan) -> dict[str, str]:
    return {name: attempt.key for name, attempt in resolve(made.training(), Path("runs")).items()}


def test_a_row_with_a_selector_needs_its_choices_and_leaves_all_other_stages_as_they_are() -> None:
    without, selected = plan("self_attention@16"), plan("self_attention@16", "self_attention_selected@128")
    before, after = keys(without), keys(selected)
    assert {name: after[name] for name in before} == before
    choices = {f"selection{part}-self_attention_selected-128" for part in range(4)}
    models = {f"model{seed}-self_attention_selected-128" for seed in (0, 1)}
    assert set(after) - set(before) == choices | models
    stages = {stage.name: stage for stage in selected.training()}
    assert choices <= set(stages["model1-self_attention_selected-128"].needs.values())
    ranges = [(stages[name].kwargs["start"], stages[name].kwargs["stop"]) for name in sorted(choices)]
    assert ranges == [(0, 6), (6, 12), (12, 18), (18, 24)]
    assert stages["base0"].kwargs["config"]["selector"] == {"name": "all"}
    assert stages["model0-self_attention_selected-128"].kwargs["variant"]["selector"]["keep"] == 16


def test_a_selectors_options_change_its_row_alone() -> None:
    rows, typed = ("self_attention@64", "self_attention_selected@128"), ("selector=uniform",)
    usual, changed = keys(plan(*rows, typed=typed)), keys(plan(*rows, typed=(*typed, "selector.keep=8")))
    assert {name for name in usual if usual[name] != changed[name]} == {
        *(f"selection{part}-self_attention-64" for part in range(4)),
        *(f"model{seed}-self_attention-64" for seed in (0, 1)),
    }


def test_a_cheap_encoder_is_a_stage_of_its_own() -> None:
    made = plan("self_attention@64", "slow_fast@128", typed=("selector=salience",))
    stages = {stage.name: stage for stage in made.training()}
    for row in ("self_attention-64", "slow_fast-128"):
        cheap = f"cheap_encoder-{row.partition('-')[0]}"
        assert stages[cheap].kwargs["vision"] == {"name": "tiny", "width": 32, "image_size": 32}
        assert stages[f"selection2-{row}"].needs == {"cheap_encoder": cheap}
        assert stages[f"model0-{row}"].needs["cheap_encoder"] == cheap


@pytest.mark.parametrize("name", group_choices().get("selector", []))
def test_every_selector_of_the_settings_can_be_built_or_says_why_not(name: str) -> None:
    settings = compose(["scale=test", "architecture=self_attention", f"selector={name}"])
    if name != "question_match":
        return check_variant(settings, 128)
    with pytest.raises(UserError, match="selector 'question_match' chooses by the question, but at mini scale each"):
        check_variant(settings, 128)
    return None


def test_a_model_that_selects_by_the_question_is_not_evaluated(tmp_path: Path) -> None:
    tiny = tiny_checkpoint(placement="none")
    base = SlowFastForConditionalGeneration.from_pretrained(tiny)
    SlowFastForConditionalGeneration.from_base(base, selector={"name": "question_match"}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="selects frames by the question"):
        SlowFastMLLM(tmp_path, frames=8, progress=SILENT)


def test_the_cheap_encoder_costs_a_fraction_of_the_encoder() -> None:
    settings = compose(["selector=salience"])
    cheap, own = (ENCODERS.build(dict(spec)) for spec in (settings.selector.encoder, settings.encoder))
    assert cheap.flops_per_frame() < 0.3 * own.flops_per_frame()
