"""Packed questions compute what separate sequences do, and the later mask hides exactly the video."""

import pytest
import torch
from small_models import FRAMES, small_model, tokenizer, video

from architectures import SlowFastForConditionalGeneration
from harness.packing import IGNORED, Packed, answer_targets, pack

QUESTIONS = [
    ["What colour is the ball", "one", "Where is the green left"],
    ["two three", "Where is the ball right down", "red"],
]


def packed(model: SlowFastForConditionalGeneration) -> tuple[Packed, list[int], list[list[list[int]]]]:
    """Two videos with three questions each, packed; and the pieces."""
    prefix = tokenizer()("<|im_start|>user")["input_ids"]
    prefix += [model.config.video_token_id] * model.fast_token_count(FRAMES)
    branches = [[tokenizer()(question)["input_ids"] for question in video] for video in QUESTIONS]
    return pack(prefix, branches, tokenizer().pad_token_id), prefix, branches


def packed_logits(
    model: SlowFastForConditionalGeneration, inputs: Packed, seen: dict[str, torch.Tensor], later: bool
) -> torch.Tensor:
    """Logits `(B, Q, M, vocabulary)`."""
    logits_BLW = model(
        input_ids=inputs.input_ids_BL,
        position_ids=inputs.position_ids_1L,
        attention_mask={"full_attention": inputs.mask_11LL},
        later_mask=inputs.later_mask_11LL if later else None,
        use_cache=False,
        **seen,
    ).logits
    return inputs.branches(logits_BLW, len(QUESTIONS[0]))


@pytest.mark.parametrize("overrides", [("placement=none",), ("gate=dynamic_tanh",), ("scope=all_tokens",)])
@torch.no_grad()
def test_a_branch_computes_what_its_own_sequence_would(overrides: tuple[str, ...]) -> None:
    model = small_model(*overrides)
    inputs, prefix, branches = packed(model)
    seen = video(model, batch=2)
    found_BQMW = packed_logits(model, inputs, seen, later=False)
    for b, questions in enumerate(branches):
        own = {name: value[b : b + 1] for name, value in seen.items()}
        for q, ids in enumerate(questions):
            alone = model(input_ids=torch.tensor([prefix + ids]), **own, use_cache=False).logits
            torch.testing.assert_close(
                found_BQMW[b, q, : len(ids)], alone[0, len(prefix) :], atol=2e-5, rtol=1e-4
            )


def test_the_later_mask_hides_the_video_and_nothing_else() -> None:
    inputs, prefix, branches = packed(small_model())
    V = len(prefix)
    M = max(len(ids) for questions in branches for ids in questions)
    mask_LL, later_LL = inputs.mask_11LL[0, 0], inputs.later_mask_11LL[0, 0]
    for i in range(len(mask_LL)):
        for j in range(len(mask_LL)):
            own_branch = j < V or (i >= V and (i - V) // M == (j - V) // M)
            sees = j <= i and own_branch
            assert mask_LL[i, j] == sees
            assert later_LL[i, j] == (sees and not (i >= V and 2 <= j < V))


@torch.no_grad()
def test_with_the_later_mask_text_reads_the_video_in_the_first_layer_only() -> None:
    """Later layers' visual keys and values are replaced by noise: only the masked model does not notice."""
    model = small_model("placement=none")
    inputs, prefix, _ = packed(model)
    seen = video(model, batch=2)

    def noise(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        spoilt = output.clone()
        spoilt[:, 2 : len(prefix)] += 3.0
        return spoilt

    clean = {later: packed_logits(model, inputs, seen, later) for later in (False, True)}
    assert not torch.allclose(clean[True], clean[False], atol=1e-3)
    layers = model.language_model.model.layers
    later_projections = [
        projection for layer in layers[1:] for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj)
    ]
    for projections, masked_changes in [
        (later_projections, False),
        ([layers[0].self_attn.k_proj, layers[0].self_attn.v_proj], True),
    ]:
        handles = [projection.register_forward_hook(noise) for projection in projections]
        spoilt = {later: packed_logits(model, inputs, seen, later) for later in (False, True)}
        for handle in handles:
            handle.remove()
        assert not torch.allclose(spoilt[False], clean[False], atol=1e-3)
        assert torch.allclose(spoilt[True], clean[True], atol=1e-5) != masked_changes


def test_targets_stand_where_they_are_predicted() -> None:
    branches = [[[5, 6, 7, 8], [9, 1, 2]]]
    targets_BQM = answer_targets(branches, answer_length=2)
    assert targets_BQM.tolist() == [[[IGNORED, 7, 8, IGNORED], [1, 2, IGNORED, IGNORED]]]
