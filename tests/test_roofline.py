"""Operators and bytes against closed forms and plain loops; predictions by hand; the device table."""

import pytest
import torch
from small_models import CHOICES, small_config
from torch.nn import functional as F

from architectures import SlowFastConfig
from architectures.cost import decode_cost, prefill_cost
from harness.profilers.operators import Operator, distinct_bytes, operators_of, totals
from harness.profilers.random_weights import RandomWeights
from harness.profilers.roofline import Roof, fastest, listed_roofs, measured_roof, predict
from harness.profilers.workload import PREFILL, Workload, counted_parts

META = torch.device("meta")
WIDTH, LAYERS, HEADS, KEY_HEADS, HEAD, MLP, VOCABULARY = 48, 3, 6, 2, 8, 80, 50
DECODER = {
    "model_type": "qwen2",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "intermediate_size": MLP,
    "vocab_size": VOCABULARY,
}


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def counted(config: SlowFastConfig, frames: int, text_tokens: int, dtype: torch.dtype = torch.bfloat16) -> dict:
    model = RandomWeights("meta", dtype).model(config)
    return counted_parts(Workload(model, frames, text_tokens, 1))


def test_a_product_reads_both_matrices_and_writes_one() -> None:
    (found,) = operators_of(lambda: empty(3, 5) @ empty(5, 7))
    assert (found.flop, found.needed_flop, found.bytes) == (2 * 3 * 5 * 7, 2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))


def test_a_linear_layer_reads_its_bias_too() -> None:
    (found,) = operators_of(lambda: F.linear(empty(3, 5), empty(7, 5), empty(7)))
    assert (found.flop, found.bytes) == (2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 7 + 3 * 7))


def test_a_convolution_reads_image_and_kernel() -> None:
    (found,) = operators_of(lambda: F.conv2d(empty(2, 3, 8, 8), empty(5, 3, 2, 2), stride=2))
    assert (found.flop, found.bytes) == (2 * 2 * 5 * 16 * 12, 4 * (2 * 3 * 64 + 5 * 12 + 2 * 5 * 16))


@pytest.mark.parametrize(("L", "S", "causal"), [(7, 7, True), (7, 7, False), (3, 9, True), (9, 3, True), (1, 9, False)])
def test_attention_is_one_operator_that_never_writes_its_scores(L: int, S: int, causal: bool) -> None:
    query, key, value = empty(2, 6, L, 8), empty(2, 2, S, 8), empty(2, 2, S, 8)
    (found,) = operators_of(
        lambda: F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
    )
    met = sum(1 for i in range(L) for j in range(S) if not causal or j <= i)  # torch aligns the mask at the upper left
    assert found.flop == 2 * 6 * 2 * 2 * L * S * 8
    assert found.needed_flop == 2 * 6 * 2 * 2 * met * 8
    assert found.bytes == 4 * 2 * (6 * L * 8 + 2 * 2 * S * 8 + 6 * L * 8)


def test_attention_without_operator_counting_has_that_causal_mask() -> None:
    query = torch.randn(1, 1, 3, 4)
    key, value = torch.randn(2, 1, 1, 9, 4)
    mask = torch.ones(3, 9, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.allclose(F.scaled_dot_product_attention(query, key, value, is_causal=True), expected, atol=1e-6)


def test_numbers_that_an_expanded_tensor_repeats_are_read_once() -> None:
    assert distinct_bytes([empty(3, 1, 5).expand(3, 9, 5), {"other": empty(2)}, 7]) == 4 * (15 + 2)


def test_repeated_operators_count_so_often() -> None:
    assert totals([Operator("mm", 10, 10, 3) * 2.5, Operator("mm", 1, 1, 1)]) == (26, 8)


@pytest.mark.parametrize("architecture", CHOICES["architecture"])
def test_operators_of_every_architecture_add_up_to_the_closed_form(architecture: str) -> None:
    config = small_config(f"architecture={architecture}")
    parts, cost = counted(config, 40, 13), prefill_cost(config, 40, 13)
    flop = {part: totals(operators)[0] for part, operators in parts.items()}
    assert flop["vision"] == cost.vision
    assert sum(flop[part] for part in PREFILL) == cost.llm_prefill
    assert sum(flop.values()) - flop["decode"] == cost.model
    assert flop["decode"] == decode_cost(config, 40, 13).step


def decode_bytes(keys: int, slow: int, hybrid: int) -> int:
    """Bytes that one decoded token moves, operator by operator, in bfloat16; `keys`: with its own."""
    A, KE = HEADS * HEAD, KEY_HEADS * HEAD

    def product(inputs: int, outputs: int, bias: bool) -> int:
        return inputs + inputs * outputs + outputs * bias + outputs

    layer = product(WIDTH, A, True) + 2 * product(WIDTH, KE, True) + product(A, WIDTH, False)
    layer += 2 * product(WIDTH, MLP, False) + product(MLP, WIDTH, False)
    attention = 2 * A + 2 * keys * KE
    reading = 2 * A + 2 * slow * KE + product(A, 1, True)  # cross-attention, and the gate of one number
    return 2 * (LAYERS * (layer + attention) + hybrid * reading + product(WIDTH, VOCABULARY, False))


@pytest.mark.parametrize(("placement", "hybrid"), [({"name": "none"}, 0), ({"name": "every", "n": 2}, 2)], ids=str)
def test_a_decoded_token_reads_weights_and_caches_once(placement: dict, hybrid: int) -> None:
    vision = {"name": "tiny", "image_size": 64}
    config = SlowFastConfig(text_config=DECODER, vision=vision, placement=placement)
    operators = counted(config, 18, 9)["decode"]
    tokens = 18 * 4  # 2 x 2 a frame, and no compressor
    assert totals(operators)[1] == decode_bytes(tokens + 9 + 1, tokens, hybrid)


def test_chunks_of_frames_are_counted_as_often_as_they_come() -> None:
    config = small_config()
    at_once, in_parts = counted(config, 20, 5), counted(small_config(frames_at_once=8), 20, 5)
    assert totals(at_once["vision"])[0] == totals(in_parts["vision"])[0] == prefill_cost(config, 20, 5).vision
    weights = sum(p.nbytes for p in RandomWeights("meta", torch.bfloat16).model(config).encoder.parameters())
    position = 2 * 32 * 8 * 8  # added, not multiplied
    again = totals(in_parts["vision"])[1] - totals(at_once["vision"])[1]
    assert again == 2 * (weights - position)  # 8, 8 and 4 frames: weights are read three times instead of once


def test_each_operator_takes_the_longer_of_arithmetic_and_memory() -> None:
    roof = Roof("made up", {"bfloat16": 100.0}, 10.0, "this test")
    heavy, light = Operator("mm", 1000, 500, 20, times=3), Operator("mm", 100, 100, 30)
    predicted = predict([heavy, light], roof, "bfloat16")
    assert (predicted.compute_s, predicted.memory_s) == (3 * 5.0, 3.0)
    assert (predicted.seconds, predicted.bound) == (18.0, "compute")
    assert predict([light], roof, "bfloat16").bound == "memory"
    assert predict([light], roof, "float32") is None


def test_the_device_table_is_complete_and_plausible() -> None:
    roofs = listed_roofs()
    titles = {roof.title.partition(" ")[0] for roof in roofs.values()}
    assert titles == {"A100", "H100", "H200", "L40S", "RTX"}
    for roof in roofs.values():
        assert roof.source.startswith("https://")
        assert set(roof.flop_per_s) == {"bfloat16", "float16", "float32"}
        assert 1.5 < roof.flop_per_s["bfloat16"] / roof.flop_per_s["float32"] < 17  # a sparse peak would be twice it
        assert 1e14 < roof.flop_per_s["bfloat16"] < 1e15
        assert 8e11 < roof.bytes_per_s < 5e12
    assert roofs["NVIDIA H200"].flop_per_s["bfloat16"] == roofs["NVIDIA H100 80GB HBM3"].flop_per_s["bfloat16"]


def test_this_processor_is_measured() -> None:
    roof = measured_roof(torch.float32)
    assert 1e8 < roof.flop_per_s["float32"] < 1e14
    assert 1e8 < roof.bytes_per_s < 1e13
    assert f"{torch.get_num_threads()} thread" in roof.title


def test_the_fastest_call_counts_and_the_first_does_not() -> None:
    calls: list[int] = []
    assert fastest(lambda: calls.append(1), probes=4) >= 0
    assert len(calls) == 5
