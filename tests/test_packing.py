"""Packed questions compute what separate sequences do, and the first-layer rule hides exactly the video."""

from types import SimpleNamespace

import pytest
import torch
from small_models import FRAMES, small_model, tokenizer, video
from torch.nn import functional as F

from architectures import SlowFastForConditionalGeneration
from harness.packing import (
    IGNORED,
    Packed,
    Packing,
    answer_targets,
    pack,
    packed_attention,
    packed_logits,
)

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


@pytest.mark.parametrize("overrides", [("placement=none",), ("gate=dynamic_tanh",), ("scope=all_tokens",)])
@torch.no_grad()
def test_a_branch_computes_what_its_own_sequence_would(overrides: tuple[str, ...]) -> None:
    model = small_model(*overrides)
    inputs, prefix, branches = packed(model)
    seen = video(model, batch=2)
    found_BQMW = packed_logits(model, inputs, **seen)
    for b, questions in enumerate(branches):
        own = {name: value[b : b + 1] for name, value in seen.items()}
        for q, ids in enumerate(questions):
            alone = model(input_ids=torch.tensor([prefix + ids]), **own, use_cache=False).logits
            torch.testing.assert_close(found_BQMW[b, q, : len(ids)], alone[0, len(prefix) :], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("first_layer_reads", [False, True])
def test_packed_attention_equals_a_masked_one(first_layer_reads: bool) -> None:
    """Against plain attention under an explicit mask, written out place by place; grouped heads included."""
    V, Q, M, text = 6, 3, 4, 2
    L = V + Q * M
    query, key, value = (torch.randn(2, heads, L, 8) for heads in (4, 2, 2))
    for layer in (0, 1):
        hidden = first_layer_reads and layer > 0
        mask = torch.zeros(L, L, dtype=torch.bool)
        for i in range(L):
            for j in range(i + 1):
                own = j < V or (i >= V and (i - V) // M == (j - V) // M)
                mask[i, j] = own and not (hidden and i >= V and text <= j < V)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        found, _ = packed_attention(
            SimpleNamespace(layer_idx=layer),
            query,
            key,
            value,
            None,
            packing=Packing(V, text, Q),
            first_layer_reads=first_layer_reads,
            scaling=8**-0.5,
        )
        torch.testing.assert_close(found, expected.transpose(1, 2))


@torch.no_grad()
def test_under_the_rule_text_reads_the_video_in_the_first_layer_only() -> None:
    """Later layers' visual keys and values are replaced by noise: only the masked model does not notice."""
    model = small_model("placement=none")
    inputs, prefix, _ = packed(model)
    seen = video(model, batch=2)

    def noise(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        spoilt = output.clone()
        spoilt[:, 2 : len(prefix)] += 3.0
        return spoilt

    clean = {rule: packed_logits(model, inputs, rule, **seen) for rule in (False, True)}
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
        spoilt = {rule: packed_logits(model, inputs, rule, **seen) for rule in (False, True)}
        for handle in handles:
            handle.remove()
        assert not torch.allclose(spoilt[False], clean[False], atol=1e-3)
        assert torch.allclose(spoilt[True], clean[True], atol=1e-5) != masked_changes


def test_targets_stand_where_they_are_predicted() -> None:
    branches = [[[5, 6, 7, 8], [9, 1, 2]]]
    targets_BQM = answer_targets(branches, answer_length=2)
    assert targets_BQM.tolist() == [[[IGNORED, 7, 8, IGNORED], [1, 2, IGNORED, IGNORED]]]
