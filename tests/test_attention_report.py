"""Where attention goes: the record against a slow truth, and the figure from the record alone."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from small_models import FRAMES, prompt, small_model, video
from tiny import small_suite, tiny_checkpoint

from harness.errors import UserError
from harness.mini.questions import Question
from harness.mini.world import GLYPHS, draw_clip
from harness.reports import attention_file as files
from harness.reports import attention_record as record
from harness.reports.attention_figure import attention_figure

FUSIONS = {
    "slow_fast": ["architecture=slow_fast"],
    "own_queries": ["architecture=slow_fast", "fusion.query=own"],
    "gated_block": ["architecture=flamingo"],
    "hyper_attention": ["architecture=hyper_attention"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    suite = small_suite()
    found = record.record_sample(tiny_checkpoint(), suite, "videomme", 1, None, frames=24)
    paths = files.write_record(found, tmp_path_factory.mktemp("attention") / "tiny.sample")
    return found, paths


def watched(overrides, tokens=3):
    model = small_model(*overrides)
    inputs = {"input_ids": prompt(model), **video(model)}
    with torch.inference_mode():
        plain = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        with record.watching(model) as watch:
            seen = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        again = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    watch.prompt_length = inputs["input_ids"].shape[1]
    assert torch.equal(plain, seen)
    assert torch.equal(plain, again)
    return model, inputs, watch


@pytest.mark.parametrize("name", FUSIONS)
def test_the_weights_reproduce_what_the_model_itself_read(name):
    """Loop over readers, heads and slow tokens: sum of weight times value is the model's own cross-attention."""
    model, inputs, watch = watched(FUSIONS[name])
    with torch.inference_mode():
        (tokens,) = model.see(None, inputs["features"], inputs["frame_times"])
        is_video_BL = inputs["input_ids"] == model.config.video_token_id
        memory = model.memorise([[tokens]], is_video_BL, None)
    assert set(watch.layers) == set(model.hybrid_layers)
    for layer, readings in watch.layers.items():
        value_KSE = torch.cat([value for _, value in memory.shelves[0][layer].chunks], dim=2)[0]
        for reading in readings:
            heads, N, S = reading.weight_QNS.shape
            assert (S, heads % value_KSE.shape[0]) == (value_KSE.shape[1], 0)
            assert torch.allclose(reading.weight_QNS.sum(-1), torch.ones(heads, N), atol=1e-5)
            for q in range(heads):
                value_SE = value_KSE[q // (heads // value_KSE.shape[0])]
                for n in range(N):
                    slow = sum(reading.weight_QNS[q, n, s] * value_SE[s] for s in range(S))
                    assert torch.allclose(slow, reading.crossed_QNE[q, n], atol=2e-4)
        assert len({tuple(r.weight_QNS.flatten()[:5].tolist()) for r in readings}) > 1  # steps differ


def test_frames_places_and_gates_are_those_of_the_readers():
    model, inputs, watch = watched(FUSIONS["slow_fast"])
    layer = model.hybrid_layers[0]
    readings = watch.layers[layer]
    weight_NT = watch.by_frame(layer, FRAMES)
    per_frame = readings[0].weight_QNS.shape[-1] // FRAMES
    for t in (0, 7, FRAMES - 1):
        part = readings[0].weight_QNS[:, 2, t * per_frame : (t + 1) * per_frame]
        assert weight_NT[2, t] == pytest.approx(float(part.sum(-1).mean()), abs=1e-6)
    assert weight_NT.sum(1) == pytest.approx(1, abs=1e-5)
    length, is_text = inputs["input_ids"].shape[1], inputs["input_ids"][0] != model.config.video_token_id
    expected = [*is_text.nonzero().flatten().tolist(), length, length + 1]  # the last new token asks nothing
    assert watch.places(layer) == expected
    gate_N = watch.gate(layer)
    assert len(gate_N) == len(expected)
    assert (np.abs(gate_N) > 1e-4).any()
    assert len(set(gate_N.round(5))) > 2


def test_a_shut_gate_is_recorded_as_shut_and_the_hooks_are_gone():
    model = small_model("architecture=slow_fast")
    model.close_gates_()
    with torch.inference_mode(), record.watching(model) as watch:
        model(input_ids=prompt(model), **video(model))
    assert all((watch.gate(layer) == 0).all() for layer in watch.layers)
    modules = [module for _, fusion in model.hybrid() for module in (fusion, fusion.gate)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_a_record_says_what_was_asked_answered_and_shown(made):
    found, (data, picture) = made
    tokens = found["tokens"]
    assert [token["place"] for token in tokens] == sorted(token["place"] for token in tokens)
    assert {token["part"] for token in tokens} == {"before", "question", "answer"}
    words = [token["text"] for token in tokens if token["part"] == "question"]
    assert any(word in " ".join(words) for word in found["question"].split())
    for read in found["layers"].values():
        assert np.asarray(read["attention"]).shape == (len(tokens), 24)
        assert np.asarray(read["attention"]).sum(1) == pytest.approx(1, abs=1e-4)
        assert len(read["gate"]) == len(tokens)
    assert found["frames"][0] == 0
    assert found["frames"][-1] == found["video_frames"] - 1
    assert found["sheet"].shape == (64, 64 * len(found["thumbnails"]), 3)
    assert set(found["thumbnails"]) <= set(found["frames"])
    table = files.attention_table(files.read_record(data))
    assert len(table) == len(found["layers"]) * len(tokens) * 24
    assert table.groupby(["layer", "place"])["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-4)
    assert "/" not in found["checkpoint"]
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("family", ["needle", "order", "motion"])
def test_the_event_asked_about_is_the_one_that_the_question_names(family):
    clip = draw_clip(1_000_000, 3)
    names = [GLYPHS[glyph] for glyph in clip.singles]
    text, options, expected = {
        "needle": (f"What colour is the {names[1]}?", ("red", "green"), {names[1]}),
        "order": ("Which shape comes first?", (names[0], names[2]), {names[0], names[2]}),
        "motion": ("Which way does the ball move?", ("left", "right"), set()),
    }[family]
    events = record.events_of(clip, Question(family, text, options, 0))
    assert {event["glyph"] for event in events if event["asked"]} == expected
    assert [event["start"] for event in events] == sorted(flash.start for flash in clip.flashes)


def test_thumbnails_show_every_asked_event_that_was_seen():
    shown_T = np.arange(0, 128, 2)
    events = [{"start": 37, "duration": 2, "asked": True}, {"start": 51, "duration": 1, "asked": True}]
    chosen = record.chosen_frames(shown_T, events, count=8)
    assert len(chosen) == 8
    assert 38 in chosen
    assert chosen == sorted(chosen)
    assert len(record.chosen_frames(np.arange(5), [], count=8)) == 5


def test_the_figure_is_drawn_from_the_files_alone_and_marks_the_event(made):
    _, (data, _) = made
    read = files.read_record(data)
    figure = attention_figure(read)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == len(read["layers"]) + 2
    asked = [event["glyph"] for event in read["events"] if event["asked"]]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert asked
    assert set(asked) <= set(texts)
    drawn = figure.axes[0].collections[0].get_array()
    rows = [n for n, token in enumerate(read["tokens"]) if token["part"] != "before"]
    first = next(iter(read["layers"].values()))
    assert np.allclose(np.asarray(drawn).reshape(len(rows), -1), np.asarray(first["attention"])[rows])


def test_mistakes_are_one_sentence(tmp_path, made):
    with pytest.raises(UserError, match="no folder of a saved model"):
        record.load(tmp_path)
    with pytest.raises(UserError, match="no hybrid layer"):
        record.load(tiny_checkpoint(placement="none"))
    spoilt = tmp_path / "spoilt.json"
    spoilt.write_text(json.dumps({"record_version": 99, "sheet": "none.png"}))
    with pytest.raises(UserError, match="no record of attention"):
        files.read_record(spoilt)
