"""`convert` makes existing Hugging Face models slow-fast: every check of the table, and what it does not show."""

import copy
from typing import Any

import hf_mllms
import hf_models
import pytest
import torch
from hf_models import TEXT, WIDTH, Clip, words
from small_models import small_config
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from architectures.conversion import decoder_of
from architectures.gates import GATES
from architectures.hybrid import fusions
from architectures.plug_and_play import convert, load, new_modules, new_parameters
from architectures.plug_and_play_checks import (
    CHECKS,
    CLOSE,
    PLACEMENT,
    NotApplicable,
    Subject,
    count_projections,
    generated,
    logits,
    same_without_cache,
)
from architectures.plug_and_play_table import outcome, refusal

FAMILIES = [*hf_models.DECODERS, *hf_mllms.MLLMS]
NAMED = {  # by the text; the others run with the slow tests, and in the table
    *("Qwen2", "Qwen3", "Llama", "Mistral", "Gemma", "Gemma2", "Gemma3"),
    *("LLaVA-OneVision", "LLaVA-NeXT-Video", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "InternVL", "VideoLLaMA3"),
}
CASES = [pytest.param(f, id=f.name, marks=[] if f.name in NAMED else [pytest.mark.slow]) for f in FAMILIES]
QWEN2, ONEVISION = (next(f for f in FAMILIES if f.name == name) for name in ("Qwen2", "LLaVA-OneVision"))
NOT_APPLICABLE = {"two videos", "beams"}  # columns that may hold a "-"


@pytest.mark.parametrize("family", CASES)
def test_every_check_of_the_table(family: hf_models.Family) -> None:
    subject = Subject(family, hf_models)
    for name, check in CHECKS.items():
        try:
            check(subject)
        except NotApplicable:
            assert name in NOT_APPLICABLE


@pytest.mark.parametrize(("family", "reason"), [pytest.param(*case, id=case[0].name) for case in
                                            [*hf_models.REFUSED, *hf_mllms.REFUSED]])  # fmt: skip
def test_what_cannot_be_converted_is_refused_and_left_alone(family: hf_models.Family, reason: str) -> None:
    model = family.model()
    kind, backend, weights = type(model), model.config.get_text_config()._attn_implementation, set(model.state_dict())
    with pytest.raises(ValueError, match=reason):
        convert(model, PLACEMENT)
    assert (type(model), model.config.get_text_config()._attn_implementation) == (kind, backend)
    assert set(model.state_dict()) == weights


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"placement": {"name": "none"}}, "chooses no layer"),
        ({"gate": {"name": "wide"}}, "Unknown gate"),
        ({"scope": {"name": "wide"}}, "Unknown scope"),
        ({"fusion": {"name": "slow_fast", "keys": "none"}}, "keys is 'none'"),
        ({"kv_init": "wide"}, "Unknown kv_init"),
        ({"slow_time": {"name": "rotary"}}, "rotary"),
        ({"slow_time": {"name": "fourier", "wide": 1}}, "no option 'wide'"),
    ],
)
def test_a_wrong_option_is_told_before_anything_changes(options: dict[str, Any], reason: str) -> None:
    model = QWEN2.model()
    with pytest.raises(ValueError, match=reason):
        convert(model, **options)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not fusions(decoder_of(model))
    assert model.config._attn_implementation == "sdpa"


def test_a_bare_decoder_and_a_converted_model_are_refused() -> None:
    with pytest.raises(ValueError, match="bare decoder"):
        convert(Qwen2Model(Qwen2Config(**TEXT)))
    with pytest.raises(ValueError, match="already"):
        convert(convert(QWEN2.model()))


# ---------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("gate", [name for name, kind in GATES.items() if kind.starts_closed])
def test_every_gate_that_starts_closed_keeps_the_original(gate: str) -> None:
    model, given = QWEN2.model(), QWEN2.inputs([words(9)])
    before = logits(model, given)
    convert(model, PLACEMENT, gate={"name": gate})
    assert torch.equal(logits(model, {**given, **slow(20)}), before)


@pytest.mark.parametrize("fusion", ["slow_fast", "gated_block"])
def test_fusions_inside_and_outside_attention_read(fusion: str) -> None:
    model, given = QWEN2.model(), QWEN2.inputs([words(9)])
    before = logits(model, given)
    convert(model, PLACEMENT, gate={"name": "static_tanh"}, fusion={"name": fusion})
    assert torch.equal(logits(model, {**given, **slow(20)}), before)
    open_gates(model)
    assert not torch.allclose(logits(model, {**given, **slow(20)}), before, **CLOSE)
    assert torch.equal(logits(model, given), before)


def test_the_flamingo_row_has_flamingo_s_activation() -> None:
    fusion = small_config("architecture=flamingo").fusion
    assert (fusion["name"], fusion["activation"], fusion["expansion"]) == ("gated_block", "squared_relu", 4)
    model = convert(QWEN2.model(), PLACEMENT, gate={"name": "static_tanh"}, fusion=fusion)
    activation = fusions(decoder_of(model))[0].feed_forward.activation
    assert activation(torch.tensor([-2.0, 0.5, 3.0])).tolist() == [0.0, 0.25, 9.0]


@pytest.mark.parametrize("scope", ["text_only", "all_tokens", "text_after_video"])
def test_scopes_and_generated_tokens_after_them(scope: str) -> None:
    subject = Subject(ONEVISION, hf_models)
    model = subject.open
    model.config.slow_fast["scope"] = {"name": scope}
    inputs = subject.inputs([subject.one])
    is_video_L = inputs["input_ids"][0] == hf_mllms.VIDEO
    reads_L = model.reads(inputs, None)[0]
    after = is_video_L.cumsum(0) > 0
    wanted = {"text_only": ~is_video_L, "all_tokens": torch.ones_like(after), "text_after_video": ~is_video_L & after}
    assert torch.equal(reads_L, wanted[scope])
    same_without_cache(subject)


def test_time_positions_tell_order_and_none_cannot() -> None:
    given = QWEN2.inputs([words(9)])
    slow_SD = slow(20)["slow_tokens"][0]
    for name, tells in (("none", False), ("sinusoidal", True), ("fourier", True)):
        model = open_gates(convert(QWEN2.model(), PLACEMENT, slow_time={"name": name}))
        forth, back = (logits(model, {**given, "slow_tokens": [tokens]}) for tokens in (slow_SD, slow_SD.flip(0)))
        assert torch.allclose(forth, back, **CLOSE) != tells
        times_S = torch.linspace(1, 0, 20)  # the reverse order with reversed times is the same video
        again = logits(model, {**given, "slow_tokens": [slow_SD.flip(0)], "slow_times": [times_S]})
        assert torch.allclose(again, forth, **CLOSE)


def test_a_time_position_s_weights_are_saved_and_new(tmp_path: Any) -> None:
    model = open_gates(convert(QWEN2.model(), PLACEMENT, slow_time={"name": "fourier"}))
    given = {**QWEN2.inputs([words(9)]), **slow(20)}
    assert any(p is model.slow_time.projection.weight for p in new_parameters(model))
    assert "slow_time" in new_modules(model)
    model.save_pretrained(tmp_path)
    assert torch.allclose(logits(load(tmp_path).eval(), given), logits(model, given), **CLOSE)


def test_chunks_change_nothing() -> None:
    whole, parts = (open_gates(convert(QWEN2.model(), PLACEMENT, slow_chunk=chunk)) for chunk in (None, 7))
    parts.load_state_dict(whole.state_dict())
    given = {**QWEN2.inputs([words(9)]), **slow(20)}
    assert torch.allclose(logits(parts, given), logits(whole, given), **CLOSE)


def test_new_parameters_are_what_the_original_lacks() -> None:
    before = set(QWEN2.model().state_dict())
    model = convert(QWEN2.model(), PLACEMENT)
    added = {name: p for name, p in model.named_parameters() if name not in before}
    assert before < set(model.state_dict())
    assert {id(p) for p in added.values()} == {id(p) for p in new_parameters(model)}
    for index in (0, 2):  # initialised from the layer's own
        attention = model.model.layers[index].self_attn
        assert torch.equal(attention.cross_attention.k_proj.weight, attention.k_proj.weight)
        assert torch.equal(attention.cross_attention.v_proj.bias, attention.v_proj.bias)


def test_half_precision_and_the_meta_device() -> None:
    model, given = QWEN2.model().to(torch.bfloat16), QWEN2.inputs([words(9)])
    before = logits(model, given)
    convert(model, PLACEMENT, slow_time={"name": "fourier"})
    assert {p.dtype for p in new_parameters(model)} == {torch.bfloat16}
    assert torch.equal(logits(model, {**given, **slow(20)}), before)
    with torch.device("meta"):
        nowhere = QWEN2.build()
    assert {p.device.type for p in new_parameters(convert(nowhere, PLACEMENT))} == {"meta"}


def test_a_converted_checkpoint_still_loads_as_its_base(tmp_path: Any) -> None:
    subject = Subject(QWEN2, hf_models)
    subject.open.save_pretrained(tmp_path)
    base = Qwen2ForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(base, subject.inputs(subject.prompts)), subject.before[0], **CLOSE)
    base.config.slow_fast = None
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="holds no converted model"):
        load(tmp_path / "base")


# ----------------------------------------------------------------------------------------------- slow tokens


def test_slow_tokens_are_the_tokens_that_the_model_would_see() -> None:
    """What `slow_inputs` become is what the same video's fast tokens are in the decoder's sequence."""
    for name in ("LLaVA-OneVision", "Qwen2.5-VL", "InternVL", "SmolVLM", "PerceptionLM"):
        family = next(f for f in FAMILIES if f.name == name)
        model, clip = convert(family.model(), PLACEMENT), Clip(4, 1)
        seen = []
        hook = decoder_of(model).register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        given = family.inputs([[*words(3), clip, *words(4)]])
        logits(model, given)
        hook.remove()
        places = model.visual_places(given["input_ids"], given["input_ids"])
        with torch.no_grad():
            assert torch.allclose(model.visual_tokens(family.videos([[clip]])), seen[0][places], **CLOSE)


def test_rows_that_share_a_video_share_its_keys() -> None:
    model = open_gates(convert(QWEN2.model(), PLACEMENT))
    (video_SD,) = slow(20)["slow_tokens"]
    rows = [words(9, 1), words(7, 2), words(9, 3)]
    calls = count_projections(model)
    memory = model(**QWEN2.inputs(rows), slow_tokens=[video_SD, None, video_SD]).past_key_values.slow_memory
    assert calls() == 2  # once in each hybrid layer
    assert memory.context_B.tolist() == [0, -1, 0]
    expected = logits(model, {**QWEN2.inputs(rows[2:]), "slow_tokens": [video_SD]})
    together = logits(model, {**QWEN2.inputs(rows), "slow_tokens": [video_SD, None, video_SD]})
    assert torch.allclose(together[2:], expected, **CLOSE)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"slow_tokens": [torch.zeros(4, WIDTH)] * 3}, "3 sets of slow tokens for 2 rows"),
        ({"slow_inputs": {"pixel_values_videos": torch.zeros(1, 4, 3, 8, 8)}}, "1 sets of slow tokens for 2 rows"),
    ],
)
def test_slow_tokens_that_do_not_fit_the_batch(given: dict[str, Any], reason: str) -> None:
    model = convert(ONEVISION.model(), PLACEMENT)
    with pytest.raises(ValueError, match=reason):
        model(**ONEVISION.inputs([words(5), words(6)]), **given)


def test_a_decoder_s_own_marks_keep_visual_tokens_from_reading() -> None:
    model = open_gates(convert(QWEN2.model(), PLACEMENT))
    given = QWEN2.inputs([words(9)])
    is_video_BL = torch.zeros(1, 9, dtype=torch.bool)
    is_video_BL[:, 2:6] = True
    read = model.reads(given, is_video_BL)
    assert torch.equal(read, ~is_video_BL)
    marked = {**given, **slow(20), "is_video": is_video_BL}
    assert not torch.allclose(logits(model, marked), logits(model, {**given, **slow(20)}), **CLOSE)
    assert torch.equal(generated(model, marked), generated(model, marked, use_cache=False))
    with pytest.raises(ValueError, match="give is_video"):
        convert(ONEVISION.model(), PLACEMENT)(
            inputs_embeds=torch.zeros(1, 3, WIDTH), slow_tokens=[torch.zeros(4, WIDTH)]
        )


# ----------------------------------------------------------------------------------------------------- caches


def test_a_conversation_goes_on_from_its_cache() -> None:
    """Tokens that come later read the slow tokens as if all had come at once; more slow tokens can't come."""
    model = open_gates(convert(QWEN2.model(), PLACEMENT))
    ids = QWEN2.inputs([words(12)])["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids, **slow(20)).logits
        first = model(input_ids=ids[:, :7], **slow(20))
        rest = model(input_ids=ids[:, 7:], past_key_values=first.past_key_values).logits
        assert torch.allclose(torch.cat([first.logits, rest], 1), whole, **CLOSE)
        with pytest.raises(ValueError, match="already holds slow tokens"):
            model(input_ids=ids[:, 7:], past_key_values=first.past_key_values, **slow(20))


def test_rows_of_a_cache_take_their_slow_tokens_along() -> None:
    model = open_gates(convert(QWEN2.model(), PLACEMENT))
    ids = QWEN2.inputs([words(9, 1), words(9, 2)])["input_ids"]
    slow_tokens = [slow(20, 1)["slow_tokens"][0], slow(12, 2)["slow_tokens"][0]]
    step = torch.tensor([[11], [12]])
    with torch.no_grad():
        cache = model(input_ids=ids, slow_tokens=slow_tokens).past_key_values
        expected = model(input_ids=step, past_key_values=copy.deepcopy(cache)).logits
        swapped, doubled, second = (copy.deepcopy(cache) for _ in range(3))
        swapped.reorder_cache(torch.tensor([1, 0]))
        doubled.batch_repeat_interleave(2)
        second.batch_select_indices(torch.tensor([1]))
        assert torch.allclose(model(input_ids=step.flip(0), past_key_values=swapped).logits.flip(0), expected, **CLOSE)
        twice = model(input_ids=step.repeat_interleave(2, 0), past_key_values=doubled).logits
        assert torch.allclose(twice[1::2], expected, **CLOSE)
        assert torch.allclose(model(input_ids=step[1:], past_key_values=second).logits, expected[1:], **CLOSE)


def test_any_kind_of_cache_keeps_slow_tokens() -> None:
    subject = Subject(ONEVISION, hf_models)
    given = subject.both(subject.prompts)
    expected = generated(subject.open, given)
    assert torch.equal(generated(subject.open, given, cache_implementation="static", disable_compile=True), expected)


def test_another_attention_implementation_is_hybrid_as_well() -> None:
    model = open_gates(convert(QWEN2.model(), PLACEMENT))
    given = {**QWEN2.inputs([words(9)]), **slow(20)}
    expected = logits(model, given)
    model.set_attn_implementation("eager")
    assert torch.allclose(logits(model, given), expected, **CLOSE)
    assert not torch.allclose(logits(model, QWEN2.inputs([words(9)])), expected, **CLOSE)


# ------------------------------------------------------------------------------------------------- the table


def test_the_table_tells_what_falls_short() -> None:
    """A broken model is a "no", and a refusal that does not come is noticed."""
    subject = Subject(QWEN2, hf_models)
    subject.open.model.layers[0].self_attn.cross_attention.k_proj.weight.data.mul_(-1)
    assert outcome(CHECKS["formula"], subject) == ("yes", "")
    assert outcome(CHECKS["identical"], subject)[0] == "no"  # its gates are open
    assert outcome(CHECKS["two videos"], subject)[0] == "-"
    assert refusal(QWEN2) == ""


# ---------------------------------------------------------------------------------------------------- helpers


def slow(tokens: int, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    """Slow tokens of one row of a pure decoder."""
    return {"slow_tokens": [torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))]}


@torch.no_grad()
def open_gates(model: torch.nn.Module) -> torch.nn.Module:
    """Every warm-up away from zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("warmup"):
            parameter.fill_(0.8)
    return model.eval()
