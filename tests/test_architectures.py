"""Every variant runs, learns, answers and survives a file; conversion; compressors; errors that help."""

import math
from pathlib import Path

import pytest
import torch
from small_models import (
    CHOICES,
    FRAMES,
    every_combination,
    lively,
    open_gates,
    prompt,
    small_config,
    small_model,
    tokenizer,
    video,
)
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.compressors import COMPRESSORS
from architectures.encoders import ENCODERS
from architectures.gates import GATES
from architectures.placement import PLACEMENTS
from architectures.registry import Registry
from architectures.scope import SCOPES, scope_of
from architectures.time_positions import TIME_POSITIONS

REGISTRIES = [COMPRESSORS, ENCODERS, GATES, PLACEMENTS, SCOPES, TIME_POSITIONS]


# ------------------------------------------------------------------------------------------ every variant


@pytest.mark.parametrize("overrides", every_combination(), ids=" ".join)
def test_every_combination_runs_learns_answers_and_is_saved(overrides: tuple[str, ...], tmp_path: Path) -> None:
    model = small_model(*overrides)
    T = 2 if overrides[0] == "compressor=identity" else FRAMES
    ids = prompt(model, frames=T)
    size = model.encoder.image_size
    frames_BTCHW = torch.randn(1, T, 3, size, size, generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": ids, "frames": frames_BTCHW, "frame_times": torch.linspace(0, 1, T)[None]}
    inputs["questions"] = ids[:, -3:]  # for the selectors that choose by them

    outputs = model(**inputs, labels=ids)
    assert outputs.logits.shape == (*ids.shape, len(tokenizer()))
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name.startswith("selector."), f"{name} is frozen"
            continue
        assert parameter.grad is not None, f"{name} gets no gradient"
        # a bias on all slow keys alike shifts every score alike, and softmax does not see it
        if not name.endswith("cross_attention.k_proj.bias"):
            assert parameter.grad.abs().sum() > 0, f"{name} gets a zero gradient"

    answer = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert answer.shape == (1, ids.shape[1] + 2)

    model.save_pretrained(tmp_path)
    again = SlowFastForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**inputs).logits, outputs.logits)


@pytest.mark.parametrize("encoder", CHOICES["encoder"])
def test_every_encoder_gives_what_it_promises(encoder: str) -> None:
    with torch.device("meta"):
        built = ENCODERS.build({**small_config(f"encoder={encoder}").vision, "image_size": 64})
        features_BTPV = built(torch.empty(2, 3, 3, 64, 64))
    assert features_BTPV.shape == (2, 3, math.prod(built.grid), built.width)


# ------------------------------------------------------------------------------------------ conversion


@pytest.mark.parametrize("kv_init", ["copy", "scrambled", "random"])
@pytest.mark.parametrize("scope", CHOICES["scope"])
@pytest.mark.parametrize("gate", CHOICES["gate"])
def test_with_closed_gates_a_variant_is_its_base_to_the_bit(gate: str, scope: str, kv_init: str) -> None:
    base = small_model("architecture=compressor_only")
    config = small_config(f"gate={gate}", f"scope={scope}")
    changes = {name: getattr(config, name) for name in ("gate", "scope", "placement", "slow_time")}
    variant = SlowFastForConditionalGeneration.from_base(base, **changes, kv_init=kv_init).eval()
    inputs = {"input_ids": prompt(base).expand(2, -1), **video(base, batch=2)}
    with torch.no_grad():
        expected = base(**inputs).logits
        assert torch.equal(variant(**inputs).logits, expected) or not variant.gates()[0].starts_closed
        open_gates(variant)
        assert not torch.allclose(variant(**inputs).logits, expected, atol=1e-3)
        variant.close_gates_()
        assert torch.equal(variant(**inputs).logits, expected)


def test_a_gate_starts_with_the_bias_of_its_options() -> None:
    base = SlowFastForConditionalGeneration(small_config("architecture=compressor_only"))
    built = SlowFastForConditionalGeneration(
        small_config(gate={"name": "dynamic_tanh", "bias": 0.37}, placement={"name": "every", "n": 2})
    )
    converted = SlowFastForConditionalGeneration.from_base(
        base, gate=built.config.gate, placement=built.config.placement
    )
    for model in (built, converted):
        for gate in model.gates():
            assert gate.projection.bias.item() == pytest.approx(0.37)
            assert gate.warmup.item() == 0


def test_a_base_that_does_not_fit_is_refused() -> None:
    base = small_model("architecture=compressor_only")
    with pytest.raises(ValueError, match=r"does not fit its base: missing there \['projector\.4\.weight'"):
        SlowFastForConditionalGeneration.from_base(base, projector_depth=3)
    hybrid = small_model("architecture=slow_fast")
    with pytest.raises(ValueError, match=r"left over \['language_model.*cross_attention"):
        SlowFastForConditionalGeneration.from_base(hybrid, placement={"name": "none"})


def test_a_hybrid_base_keeps_its_keys_and_its_precision() -> None:
    base = small_model("architecture=slow_fast").to(torch.bfloat16)
    inputs = {"input_ids": prompt(base), **video(base)}
    variant = SlowFastForConditionalGeneration.from_base(base, slow_chunk=7).eval()
    assert variant.dtype == torch.bfloat16
    for name, weight in base.state_dict().items():
        assert torch.equal(variant.state_dict()[name], weight), name
    torch.testing.assert_close(variant(**inputs).logits, base(**inputs).logits, atol=0.2, rtol=0.1)
    with pytest.raises(ValueError, match=r"does not fit its base: .* has another shape there"):
        SlowFastForConditionalGeneration.from_base(base, vision={**base.config.vision, "width": 40})


def test_attention_stays_hybrid_when_its_backend_is_set() -> None:
    model = small_model()
    inputs = {"input_ids": prompt(model), **video(model)}
    expected = model(**inputs).logits
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(**inputs).logits, expected)
    with pytest.raises(ValueError, match="'eager' has no hybrid layers"):
        model.set_attn_implementation("eager")
    assert torch.equal(model(**inputs).logits, expected)


def test_what_trainers_ask_of_a_model() -> None:
    model = small_model().train()
    ids = prompt(model)
    inputs = {"input_ids": ids, **video(model), "labels": ids}
    plain = model(**inputs)
    by_three = model(**inputs, num_items_in_batch=3)
    torch.testing.assert_close(by_three.loss * 3, plain.loss * (ids.shape[1] - 1))
    assert torch.equal(model(**inputs, return_dict=False)[0], plain.loss)
    model.gradient_checkpointing_enable()
    model(**inputs).loss.backward()
    checkpointed = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.gradient_checkpointing_disable()
    model.zero_grad()
    model(**inputs).loss.backward()
    for own, expected in zip(checkpointed, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(own, expected)
    with pytest.raises(ValueError, match="use_reentrant False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="Give input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 64))
    model.resize_token_embeddings(40)
    assert model(**{**inputs, "labels": None}).logits.shape[-1] == 40


# ------------------------------------------------------------------------------------------ compressors


def sampled_and_averaged(tokens_THWD: torch.Tensor, s: int, t: int, p: int) -> list[list[float]]:
    """Token by token, in plain loops."""
    T, H, W, _ = tokens_THWD.shape
    fast = []
    taken = list(range(0, T, s))
    for start in range(0, len(taken), t):
        for row in range(H // p):
            for column in range(W // p):
                cells = [
                    tokens_THWD[frame, row * p + i, column * p + j]
                    for frame in taken[start : start + t]
                    for i in range(p)
                    for j in range(p)
                ]
                fast.append((sum(cells) / len(cells)).tolist())
    return fast


@pytest.mark.parametrize(("s", "t", "p"), [(1, 4, 1), (2, 4, 1), (1, 6, 1), (3, 2, 2), (1, 1, 3)])
def test_sample_and_average_is_its_plain_loop(s: int, t: int, p: int) -> None:
    compressor = COMPRESSORS.build(
        {"name": "sample_and_average", "sample_stride": s, "average_stride": t, "space_stride": p}, width=2
    )
    tokens_BTHWD = torch.randn(1, 70, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    for T in range(1, 71):
        fast_BFD = compressor(tokens_BTHWD[:, :T])
        torch.testing.assert_close(fast_BFD[0], torch.tensor(sampled_and_averaged(tokens_BTHWD[0, :T], s, t, p)))
        assert fast_BFD.shape[1] == compressor.n_tokens(T, 3, 5)


@pytest.mark.parametrize(("frames", "s", "t"), [(64, 1, 4), (128, 2, 4), (96, 1, 6)])
def test_the_released_settings_leave_1296_fast_tokens(frames: int, s: int, t: int) -> None:
    spec = {"name": "sample_and_average", "sample_stride": s, "average_stride": t}
    assert COMPRESSORS.build(spec, width=1).n_tokens(frames, 9, 9) == 1296


def test_free_strides_follow_the_released_pattern() -> None:
    free = COMPRESSORS.build({"name": "sample_and_average"}, width=1)
    strides = {T: free.strides(T) for T in (1, 15, 16, 32, 64, 96, 128)}
    assert strides == {1: (1, 1), 15: (1, 1), 16: (1, 1), 32: (1, 2), 64: (1, 4), 96: (2, 3), 128: (2, 4)}
    assert all(free.n_tokens(16 * k, 2, 2) == 64 for k in range(1, 20))


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_every_compressor_announces_its_tokens(name: str) -> None:
    compressor = COMPRESSORS.build({"name": name}, width=3)
    for T in range(1, 71):
        assert compressor(torch.randn(2, T, 2, 3, 3)).shape == (2, compressor.n_tokens(T, 2, 3), 3)


# ------------------------------------------------------------------------------------------ errors


def test_placeholders_and_fast_tokens_must_match() -> None:
    model = small_model()
    inputs = {"input_ids": prompt(model), **video(model)}
    wanted = model.fast_token_count(FRAMES)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.full((1, 3), model.config.video_token_id)], dim=1)
    counts = f"hold {wanted + 3} video placeholders .*, but the videos make {wanted} fast tokens"
    with pytest.raises(ValueError, match=counts):
        model(**inputs)
    with pytest.raises(ValueError, match=f"hold {wanted} video placeholders .*, but the videos make 0"):
        model(input_ids=prompt(model))


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.family)
def test_an_unknown_name_lists_the_known_ones(registry: Registry) -> None:
    names = ", ".join(sorted(registry))
    sentence = f"^Unknown {registry.family} 'nosuch': choose one of {names}\\.$"
    with pytest.raises(ValueError, match=sentence):
        registry.build({"name": "nosuch"})
    with pytest.raises(ValueError, match=f"^Unknown {registry.family} 'None'"):
        registry.build({"n": 1})


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"^placement 'every' has no option 'm': its options are maximum, minimum, n\.$"
    ):
        PLACEMENTS.build({"name": "every", "m": 2}, n_layers=4)
    with pytest.raises(ValueError, match=r"^placement 'every' has no option 'n_layers'"):
        PLACEMENTS.build({"name": "every", "n_layers": 2}, n_layers=4)
    with pytest.raises(ValueError, match=r"^scope 'text_only' has no option 'after': its options are none\.$"):
        scope_of({"name": "text_only", "after": 3})


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="gate: the name 'static_tanh' is taken by StaticTanhGate"):
        GATES.register("static_tanh")(nn.Identity)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"placement": {"name": "first", "k": 5}}, "k is 5, must lie between 1 and the decoder's 4 layers"),
        ({"placement": {"name": "every", "n": 0}}, "n is 0, must be at least 1"),
        ({"projector_depth": 0}, "projector depth is 0"),
        ({"vision": {"name": "tiny", "image_size": 40}}, "image_size is 40, must be a multiple of 16"),
        ({"compressor": {"name": "adaptive_average", "fast_frames": 0}}, "fast_frames is 0"),
        ({"compressor": {"name": "sample_and_average", "sample_stride": 2}}, "give both"),
        ({"compressor": {"name": "sample_and_average", "space_stride": 0}}, "space_stride is 0"),
        ({"attn_implementation": "eager"}, "'eager' has no hybrid layers: choose one of .*sdpa"),
    ],
    ids=str,
)
def test_a_variant_that_cannot_be_says_why(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SlowFastForConditionalGeneration(small_config(**changes))


def test_an_unknown_initialisation_is_refused() -> None:
    base = small_model("architecture=compressor_only")
    with pytest.raises(ValueError, match="Unknown kv_init 'mixed': choose one of copy, random, scrambled"):
        SlowFastForConditionalGeneration.from_base(
            base, placement={"name": "first"}, gate={"name": "static_tanh"}, kv_init="mixed"
        )


# ------------------------------------------------------------------------------------------ files, precision


def test_auto_classes_find_model_and_processor(tmp_path: Path) -> None:
    model = lively(SlowFastForConditionalGeneration(small_config()))
    processor = SlowFastProcessor.for_model(model.config, model.encoder, tokenizer())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, SlowFastProcessor)
    frames_THWC = torch.randint(0, 256, (FRAMES, 80, 64, 3), dtype=torch.uint8)
    request = {"text": ["Where is red"], "videos": [frames_THWC], "times": [torch.linspace(0, 1, FRAMES)]}
    inputs, expected = again(**request), processor(**request)
    assert inputs.keys() == expected.keys() == {"input_ids", "attention_mask", "frames", "frame_times"}
    for name, value in expected.items():
        assert torch.equal(inputs[name], value)
    wanted = model(**expected).logits
    for auto in (AutoModel, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, SlowFastForConditionalGeneration)
        torch.testing.assert_close(loaded(**inputs).logits, wanted)


def test_frames_may_come_in_another_precision() -> None:
    model = small_model().to(torch.bfloat16)
    inputs = {"input_ids": prompt(model), **video(model)}
    assert model(**inputs).logits.dtype == torch.bfloat16
    size = model.encoder.image_size
    del inputs["features"]
    assert model(**inputs, frames=torch.zeros(1, FRAMES, 3, size, size)).logits.dtype == torch.bfloat16
