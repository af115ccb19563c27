"""Slow tokens of converted models as they are given: times, entries that don't fit, checkpoints, decoded tokens."""

from typing import Any

import pytest
import torch
from hf_models import WIDTH, Clip, words
from test_plug_and_play import FAMILIES, ONEVISION, QWEN2, open_gates, slow
from torch import nn

from architectures.plug_and_play import convert, new_parameters
from architectures.plug_and_play_checks import CLOSE, PLACEMENT, generated, gradients_of, logits
from architectures.tokens import SlowContext

GIVEN = ONEVISION.inputs([[*words(3), Clip(4, 1), *words(4)]])
ONE, OTHER = ONEVISION.videos([[Clip(6, 2)]]), ONEVISION.videos([[Clip(2, 3)]])
TWO_ROWS = QWEN2.inputs([words(9), words(9)])


def with_time(family: Any = ONEVISION) -> nn.Module:
    return open_gates(convert(family.model(), PLACEMENT, slow_time={"name": "sinusoidal"}))


# ------------------------------------------------------------------------------------------------------ times


@pytest.mark.parametrize("videos", [ONE, [ONE, OTHER]], ids=["one video", "two videos"])
def test_times_of_watched_videos_are_those_of_their_tokens(videos: Any) -> None:
    """Given times are used, of all of a row's tokens in order; without any, each video goes from 0 to 1."""
    model = with_time()
    with torch.no_grad():
        parts = [model.visual_tokens(video) for video in ([videos] if isinstance(videos, dict) else videos)]
    tokens_SD = torch.cat(parts)
    times_S = torch.linspace(1, 0, len(tokens_SD)) ** 2
    by_hand = {**GIVEN, "slow_tokens": [tokens_SD], "slow_times": [times_S]}
    watched = {**GIVEN, "slow_inputs": [videos], "slow_times": [times_S]}
    evenly = {
        **GIVEN,
        "slow_tokens": [tokens_SD],
        "slow_times": [torch.cat([torch.linspace(0, 1, len(p)) for p in parts])],
    }
    expected = logits(model, by_hand)
    assert torch.allclose(logits(model, watched), expected, **CLOSE)
    untimed = logits(model, {**GIVEN, "slow_inputs": [videos]})
    assert torch.allclose(untimed, logits(model, evenly), **CLOSE)
    assert not torch.allclose(untimed, expected, **CLOSE)
    assert torch.equal(generated(model, watched), generated(model, by_hand))


def test_a_batch_of_one_row_takes_a_dict_and_its_times() -> None:
    model = with_time()
    times_S = torch.rand(len(model.visual_tokens(ONE)))
    alone = logits(model, {**GIVEN, "slow_inputs": ONE, "slow_times": times_S})
    assert torch.equal(alone, logits(model, {**GIVEN, "slow_inputs": [ONE], "slow_times": [times_S]}))


@pytest.mark.parametrize("stacked", [False, True])
def test_rows_that_share_tokens_may_differ_in_time(stacked: bool) -> None:
    model, (tokens_SD,) = with_time(QWEN2), slow(20)["slow_tokens"]
    times = [torch.zeros(20), torch.linspace(0, 1, 20)]
    given = {"slow_tokens": [tokens_SD] * 2, "slow_times": torch.stack(times) if stacked else times}
    together = logits(model, {**TWO_ROWS, **given})
    for row, times_S in enumerate(times):
        one = {name: value[row : row + 1] for name, value in TWO_ROWS.items()}
        alone = logits(model, {**one, "slow_tokens": [tokens_SD], "slow_times": [times_S]})
        assert torch.allclose(together[row], alone[0], **CLOSE)
    assert not torch.allclose(together[0], together[1], **CLOSE)


def test_rows_that_share_tokens_and_times_share_keys() -> None:
    model, (tokens_SD,) = with_time(QWEN2), slow(20)["slow_tokens"]
    times_S = torch.rand(20)
    for times in ([times_S, times_S], [times_S, times_S.clone()], torch.stack([times_S, times_S])):
        one, two = model.slow_contexts([tokens_SD, tokens_SD], None, times)
        assert one is two


# -------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"slow_tokens": [torch.zeros(4, WIDTH)], "slow_inputs": ONE}, "both given"),
        ({"slow_times": [torch.zeros(4)]}, "slow_times were given without slow tokens"),
        ({"slow_tokens": [torch.zeros(0, WIDTH)]}, "empty: give None"),
        ({"slow_tokens": [torch.zeros(4, WIDTH - 1)]}, r"shape \(4, 31\): give \(tokens, 32\)"),
        ({"slow_tokens": [torch.zeros(WIDTH)]}, r"shape \(32,\): give \(tokens, 32\)"),
        ({"slow_tokens": [SlowContext(torch.zeros(4, WIDTH - 1))]}, r"shape \(4, 31\)"),
        ({"slow_tokens": torch.zeros(4, WIDTH)}, r"tensor of shape \(4, 32\): give \(rows, tokens, width\)"),
        ({"slow_tokens": ["four"]}, "slow tokens are a str"),
        ({"slow_tokens": {"one": torch.zeros(4, WIDTH)}}, "slow_tokens are a dict"),
        ({"slow_tokens": [torch.zeros(4, WIDTH)], "slow_times": [torch.zeros(3)]}, r"shape \(3,\) for 4 slow tokens"),
        (
            {"slow_tokens": [torch.zeros(4, WIDTH)], "slow_times": [None] * 2},
            "slow_times for 2 rows, slow tokens for 1",
        ),
        ({"slow_tokens": [SlowContext(torch.zeros(4, WIDTH))], "slow_times": [torch.zeros(4)]}, "have their time"),
        ({"slow_inputs": ONE, "slow_times": [torch.zeros(3)]}, r"shape \(3,\) for 25 slow tokens"),
        ({"slow_inputs": [[]]}, "row 0 hold no video"),
        ({"slow_inputs": "video"}, "slow_inputs are a str"),
        ({"slow_inputs": ["video"]}, "row 0 are not a dict"),
        ({"slow_inputs": {"pixel_values_vids": torch.zeros(1)}}, "hold pixel_values_vids: .*needs pixel_values"),
    ],
)
def test_slow_tokens_that_do_not_fit_are_refused_in_a_sentence(given: dict[str, Any], reason: str) -> None:
    model = convert(ONEVISION.model(), PLACEMENT)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=reason) as told:
            call(**GIVEN, **given)
        assert str(told.value).count("\n") == 0


def test_a_video_s_grid_is_not_forgotten() -> None:
    family = next(f for f in FAMILIES if f.name == "Qwen2-VL")
    video = family.videos([[Clip(4, 1)]])
    del video["video_grid_thw"]
    with pytest.raises(ValueError, match="get_video_features needs video_grid_thw"):
        convert(family.model(), PLACEMENT)(**family.inputs([words(5)]), slow_inputs=video)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"slow_chunk": 0}, "slow_chunk is 0"),
        ({"slow_chunk": 2.5}, "slow_chunk is 2.5"),
        ({"slow_device": "xx"}, "slow_device is 'xx'"),
        ({"placement": "every"}, "placement is 'every': give a dict"),
        ({"gate": {"bias": True}}, "gate is .*: give a dict"),
    ],
)
def test_options_of_the_wrong_kind_are_told_before_anything_changes(options: dict[str, Any], reason: str) -> None:
    model = QWEN2.model()
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=reason):
        convert(model, **options)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert set(model.state_dict()) == before


def test_only_models_of_transformers_are_converted() -> None:
    with pytest.raises(ValueError, match="A Linear is no PreTrainedModel"):
        convert(nn.Linear(2, 2))


# ------------------------------------------------------------------------------------------ gradient checkpointing


SHARED = {"name": "slow_fast", "keys": "shared", "query": "own"}


@pytest.mark.parametrize(
    ("options", "reentrant", "refused"),
    [
        ({"slow_time": {"name": "fourier"}}, True, True),  # a graph behind the slow tokens
        ({"fusion": SHARED}, True, True),  # and one that layers share
        ({}, True, False),  # keys of constants: each layer's own
        ({"slow_time": {"name": "fourier"}}, False, False),
        ({"slow_time": {"name": "fourier"}}, None, False),  # transformers' default
        ({"fusion": SHARED}, False, False),
    ],
)
def test_checkpoints_give_the_same_gradients_or_are_refused(
    options: dict[str, Any], reentrant: bool | None, refused: bool
) -> None:
    model = open_gates(convert(QWEN2.model(), PLACEMENT, **options))
    given = {**QWEN2.inputs([words(9)]), **slow(20)}
    plain = gradients_of(model, given)
    model.gradient_checkpointing_enable(None if reentrant is None else {"use_reentrant": reentrant})
    if refused:
        with pytest.raises(ValueError, match="'use_reentrant': False"):
            gradients_of(model, given)
        assert logits(model.eval(), given).isfinite().all()  # nothing is checkpointed where nothing is trained
        return
    again = gradients_of(model, given)
    assert len(again) == len(new_parameters(model))
    assert all(torch.allclose(again[name], plain[name], **CLOSE) for name in plain if plain[name] is not None)


def test_a_trained_vision_path_under_reentrant_checkpoints_is_refused() -> None:
    model = convert(ONEVISION.model(), PLACEMENT).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        model(**GIVEN, slow_inputs=ONE)


# -------------------------------------------------------------------------------------------------- decoded tokens


@pytest.mark.parametrize("scope", ["text_only", "all_tokens", "text_after_video"])
def test_a_decoded_token_reads_without_a_question_to_the_device(scope: str) -> None:
    """Tensors on "meta" have no values: any look at one would be an error."""
    model = open_gates(convert(QWEN2.model(), PLACEMENT, scope={"name": scope}))
    cache = model(**TWO_ROWS, slow_tokens=[slow(20)["slow_tokens"][0], None]).past_key_values
    there = {
        "input_ids": torch.zeros(2, 1, dtype=torch.long, device="meta"),
        "attention_mask": torch.ones(2, 10, dtype=torch.long, device="meta"),
        "past_key_values": cache,
    }
    reads_BL = model.reads(there, None)
    assert reads_BL.device.type == "cpu"
    assert reads_BL.tolist() == [[True], [True]]


def test_a_decoding_step_asks_the_device_for_no_value() -> None:
    """The whole step, of a model and its cache on "meta"; only whose slow tokens a row reads is known."""
    model = open_gates(convert(QWEN2.model(), PLACEMENT))
    cache = model(**TWO_ROWS, slow_tokens=[slow(20)["slow_tokens"][0], None]).past_key_values
    model.to("meta")
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.to("meta"), layer.values.to("meta")
    for shelf in cache.slow_memory.shelves:
        for index, kept in shelf.items():
            chunks = tuple(tuple(tensor.to("meta") for tensor in chunk) for chunk in kept.chunks)
            shelf[index] = type(kept)(chunks)
    step_B1 = torch.zeros(2, 1, dtype=torch.long, device="meta")
    assert model(input_ids=step_B1, past_key_values=cache).logits.shape[:2] == (2, 1)
