"""What cannot be is one sentence: in a configuration, in a spec of a registry, in a batch of videos."""

from typing import Any

import pytest
import torch
from small_models import small_config, small_model

from architectures import SlowFastConfig
from architectures.compressors import COMPRESSORS
from architectures.cost import prefill_cost
from architectures.placement import PLACEMENTS
from architectures.projectors import pool_space
from architectures.prompts import by_length
from architectures.selectors import SELECTORS
from harness.compose import compose
from harness.errors import UserError
from harness.models import check_variant


@pytest.mark.parametrize("field", ["vision", "placement", "fusion", "gate", "slow_time"])
@pytest.mark.parametrize("spec", ["none", ["none"], 3])
def test_a_spec_is_a_dictionary(field: str, spec: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is .*, must be a dictionary with a name and options: "):
        SlowFastConfig(**{field: spec})


@pytest.mark.parametrize("field", ["video_pooling", "slow_pooling", "slow_frames", "frames_at_once", "slow_chunk"])
def test_a_count_is_a_whole_number_of_at_least_one(field: str) -> None:
    for value in (0, -2):
        with pytest.raises(ValueError, match=f"^{field} is {value}, must be at least 1"):
            SlowFastConfig(**{field: value})
    for value in (1.5, "2", True):
        with pytest.raises(ValueError, match=f"^{field} is {value!r}, must be a whole number"):
            SlowFastConfig(**{field: value})
    assert getattr(SlowFastConfig(**{field: 3}), field) == 3
    if "pooling" in field:
        with pytest.raises(ValueError, match=f"^{field} is None, must be a whole number"):
            SlowFastConfig(**{field: None})
    else:
        assert getattr(SlowFastConfig(**{field: None}), field) is None


def test_other_fields_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match=r"^Unknown kv_init 'mixed': choose one of copy, random, scrambled\.$"):
        SlowFastConfig(kv_init="mixed")
    with pytest.raises(ValueError, match=r"^text_config is 'qwen2', must be a decoder's configuration or a dictionary"):
        SlowFastConfig(text_config="qwen2")
    assert SlowFastConfig.from_dict(SlowFastConfig().to_dict()).to_dict() == SlowFastConfig().to_dict()


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: PLACEMENTS.build("none", n_layers=4), "placement is 'none', must be a dictionary with a name"),
        (lambda: PLACEMENTS.build({"name": "list"}, n_layers=4), "placement 'list' needs its option 'layers'"),
        (lambda: PLACEMENTS.build({"name": "first", "k": 1.0}, n_layers=4), "'first': k is 1.0, must be a whole"),
        (lambda: PLACEMENTS.build({"name": "first", "k": None}, n_layers=4), "'first': k is None, must be a whole"),
        (lambda: PLACEMENTS.build({"name": "first", "k": True}, n_layers=4), "'first': k is True, must be a whole"),
        (lambda: SELECTORS.build({"name": "uniform", "keep": "4"}), "selector 'uniform': keep is '4', must be a whole"),
        (
            lambda: COMPRESSORS.build({"name": "sample_and_average", "fast_frames": 2.5}),
            "compressor 'sample_and_average': fast_frames is 2.5, must be a whole number",
        ),
    ],
)
def test_options_are_checked_by_their_annotation(build: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^.*{complaint}"):
        build()


def test_what_an_annotation_allows_is_built() -> None:
    assert PLACEMENTS.build({"name": "every", "n": 2, "maximum": None}, n_layers=4) == (0, 2)
    assert PLACEMENTS.build({"name": "list", "layers": [3, 1]}, n_layers=4) == (1, 3)


def test_a_pooling_leaves_a_token() -> None:
    tokens_BTHWD = torch.arange(2.0 * 3 * 2).reshape(1, 1, 2, 3, 2)
    assert pool_space(tokens_BTHWD, 2).tolist() == [[[[[4.0, 5.0]]]]]  # of columns 0, 1: means of 0, 2, 6, 8; + 1
    with pytest.raises(ValueError, match=r"^pooling is 3, but a frame is 2 x 3 tokens: no token is left"):
        pool_space(tokens_BTHWD, 3)
    with pytest.raises(ValueError, match=r"^slow_pooling is 99, but a frame is 2 x 2 tokens: no token is left"):
        prefill_cost(small_config(slow_pooling=99), 8, 4)
    with pytest.raises(ValueError, match=r"^video_pooling is 5, but a frame is 4 x 4 tokens: no token is left"):
        prefill_cost(small_config(video_pooling=5), 8, 4)
    assert prefill_cost(small_config("architecture=compressor_only", slow_pooling=99), 8, 4).slow_tokens == 0


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["slow_tokens=pooled", "slow_tokens.pooling=99"], "slow_tokens.pooling is 99, but a frame is 2 x 2 tokens"),
        (["slow_tokens=pooled", "slow_tokens.pooling=0"], "slow_pooling is 0, must be at least 1"),
        (["slow_tokens=budget", "slow_tokens.frames=0"], "slow_frames is 0, must be at least 1"),
        (["scale.decoder.num_hidden_layers=0"], "^scale.decoder.num_hidden_layers=0: it is at least 1$"),
        (["scale.decoder.num_attention_heads=5"], "=5: it must be a multiple of 2, the number of key and "),
        (
            ["scale.decoder.hidden_size=66"],
            "hidden_size=66: it must be a multiple of 4, the number of attention heads$",
        ),
    ],
)
def test_the_harness_says_the_same(overrides: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_variant(compose(overrides), 16)


@pytest.mark.parametrize("architecture", ["self_attention", "slow_fast"])
@pytest.mark.parametrize("as_list", [False, True])
def test_every_frame_has_a_time(architecture: str, as_list: bool) -> None:
    model = small_model(f"architecture={architecture}")
    features_BTPV = torch.zeros(2, 6, 16, model.encoder.width)

    def see(T: int, times: int) -> list:
        features, times_BT = features_BTPV[:, :T], torch.linspace(0, 1, times).expand(2, -1)
        return model.see(None, *((list(features), list(times_BT)) if as_list else (features, times_BT)))

    assert len(see(6, 6)) == 2
    for times in (1, 5, 7):
        with pytest.raises(ValueError, match=f"^Video 0 has 6 frames and {times} frame times: give one each"):
            see(6, times)
    with pytest.raises(ValueError, match=r"^Video 0 has no frames"):
        see(0, 0)


def test_the_video_that_does_not_fit_is_named() -> None:
    videos = [torch.zeros(3), torch.zeros(2), torch.zeros(4)]
    with pytest.raises(ValueError, match=r"^Video 2 has 4 frames and 2 frame times"):
        by_length(lambda *_: [], videos, [torch.zeros(3), torch.zeros(2), torch.zeros(2)])
    with pytest.raises(ValueError, match=r"^Videos and their frame times differ in number: 3 and 2"):
        by_length(lambda *_: [], videos, videos[:2])
