"""Hybrid layers against slow truth: plain loops over heads, readers and frames; what they leave alone."""

import math

import pytest
import torch
from small_models import prompt, small_model, video
from torch import nn
from transformers.modeling_utils import AttentionInterface
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from architectures import SlowFastForConditionalGeneration
from architectures.fusions.slow_fast import SlowFastFusion
from architectures.gates import Gate
from architectures.hybrid import SlowFastCache, hybrid_attention, remember
from architectures.slow_memory import Readers, SlowKeysValues, SlowMemory, on_shelves
from architectures.time_positions import TIME_POSITIONS
from architectures.tokens import ShelfReaders, SlowContext

E = 8


class Attention(nn.Module):
    """What a fusion asks of a self-attention."""

    def __init__(self, query_heads: int, key_heads: int, width: int = 12, bias: bool = True):
        super().__init__()
        self.head_dim = E
        self.q_proj = nn.Linear(width, query_heads * E, bias=bias)
        self.k_proj = nn.Linear(width, key_heads * E, bias=bias)
        self.v_proj = nn.Linear(width, key_heads * E, bias=bias)
        self.o_proj = nn.Linear(query_heads * E, width, bias=False)


class Layer(nn.Module):
    """What a fusion asks of a decoder layer."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.self_attn = attention
        self.input_layernorm = nn.Identity()


def gate_by_hand(gate: Gate, attended_A: torch.Tensor) -> float:
    """The gate's formula on numbers."""
    warm = math.tanh(gate.warmup.item())
    if not hasattr(gate, "projection"):
        return warm
    weights, bias = gate.projection.weight[0].tolist(), gate.projection.bias.item()
    dot = sum(w * a for w, a in zip(weights, attended_A.tolist(), strict=True))
    return math.tanh(dot + bias) * warm


def crossed_by_hand(
    attended_LQE: torch.Tensor,
    query_QLE: torch.Tensor,
    slow_SD: torch.Tensor,
    cross: SlowFastFusion,
    reading: list[int],
) -> torch.Tensor:
    """Self-attention output plus gated cross-attention, one reader and one head at a time."""
    result, Q = attended_LQE.clone(), query_QLE.shape[0]
    keys = slow_SD @ cross.k_proj.weight.T + (0 if cross.k_proj.bias is None else cross.k_proj.bias)
    values = slow_SD @ cross.v_proj.weight.T + (0 if cross.v_proj.bias is None else cross.v_proj.bias)
    group = Q // (keys.shape[1] // E)
    for place in reading:
        gate = gate_by_hand(cross.gate, attended_LQE[place].flatten())
        for head in range(Q):
            columns = slice(head // group * E, (head // group + 1) * E)
            scores_S = keys[:, columns] @ query_QLE[head, place] / math.sqrt(E)
            weights_S = scores_S.exp() / scores_S.exp().sum()
            result[place, head] += gate * (weights_S[:, None] * values[:, columns]).sum(0)
    return result


@pytest.mark.parametrize("warmup", [0.9, -0.9])
@pytest.mark.parametrize("gate", [{"name": "dynamic_tanh", "bias": 0.5}, {"name": "static_tanh"}], ids=str)
@pytest.mark.parametrize(("query_heads", "key_heads", "bias"), [(4, 4, True), (6, 2, True), (4, 1, False)])
@torch.no_grad()
def test_cross_attention_is_its_plain_loop(
    query_heads: int, key_heads: int, bias: bool, gate: dict, warmup: float
) -> None:
    torch.manual_seed(0)
    layer = Layer(Attention(query_heads, key_heads, bias=bias))
    cross = SlowFastFusion(layer, gate, index=0)
    cross.gate.warmup.fill_(warmup)
    attended_BLQE, query_BQLE = torch.randn(4, 7, query_heads, E), torch.randn(4, query_heads, 7, E)
    slow = [torch.randn(9, 12), torch.randn(4, 12), None, torch.randn(9, 12)]  # of two lengths; the third row has none
    reading = [[1, 4, 6], [2, 3], [], [0]]  # readers of different number: the last row's are padded
    reads_BL = torch.zeros(4, 7, dtype=torch.bool)
    for row, places in enumerate(reading):
        reads_BL[row, places] = True
    reads_BL[2] = True  # would read, had it anything to read
    shelves, context_B = on_shelves([None if tokens is None else len(tokens) for tokens in slow])
    assert shelves == [[0, 3], [1]]
    memory = SlowMemory(
        tuple(
            {0: SlowKeysValues((cross.keys_values(torch.stack([slow[row] for row in rows]), layer),))}
            for rows in shelves
        ),
        (2, 1),
        context_B,
    )
    found = cross(attended_BLQE, query_BQLE, memory, Readers.of(reads_BL, memory), E**-0.5)
    for b in range(4):
        expected = attended_BLQE[b]
        if slow[b] is not None:
            expected = crossed_by_hand(attended_BLQE[b], query_BQLE[b], slow[b], cross, reading[b])
        torch.testing.assert_close(found[b], expected, atol=1e-5, rtol=1e-5)


def heads_seen(model: SlowFastForConditionalGeneration, layer: int, inputs: dict) -> torch.Tensor:
    """What the layer's output projection gets, `attended_BLA`: attention's output of all heads."""
    seen = []
    o_proj = model.language_model.model.layers[layer].self_attn.o_proj
    handle = o_proj.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    model(**inputs)
    handle.remove()
    return seen[0]


def embedded(model: SlowFastForConditionalGeneration, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """`embeds_1LD` and `slow_1SD` of the model's inputs, one video."""
    (tokens,) = model.see(None, inputs["features"], inputs["frame_times"])
    return model.splice(inputs["input_ids"], [tokens.fast_FD]), tokens.slow_SD[None]


@torch.no_grad()
def test_the_first_hybrid_layer_is_written_out() -> None:
    """Rotary queries of the normalised input; slow tokens under the layer's own norm, without rotation."""
    model = small_model()
    inputs = {"input_ids": prompt(model), **video(model)}
    decoder = model.language_model.model
    layer, attention = decoder.layers[0], decoder.layers[0].self_attn
    cross = attention.cross_attention
    embeds_BLD, slow_BSD = embedded(model, inputs)
    x_LD = layer.input_layernorm(embeds_BLD)
    L = x_LD.shape[1]
    query, key, value = (
        projection(x_LD).view(1, L, -1, attention.head_dim).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *decoder.rotary_emb(x_LD, torch.arange(L)[None]))
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * attention.head_dim**-0.5
    scores = scores.masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf)
    attended_QLE = (scores.softmax(-1) @ value.repeat_interleave(group, 1))[0]
    slow_SD = layer.input_layernorm(slow_BSD)[0]
    keys, values = cross.k_proj(slow_SD), cross.v_proj(slow_SD)
    expected_LQE = attended_QLE.transpose(0, 1).clone()
    is_video_L = inputs["input_ids"][0] == model.config.video_token_id
    width = attention.head_dim
    for place in torch.where(~is_video_L)[0].tolist():
        gate = gate_by_hand(cross.gate, attended_QLE[:, place].flatten())
        for head in range(len(attended_QLE)):
            columns = slice(head // group * width, (head // group + 1) * width)
            weights_S = (keys[:, columns] @ query[0, head, place] * width**-0.5).softmax(0)
            expected_LQE[place, head] += gate * (weights_S @ values[:, columns])
    found_LA = heads_seen(model, 0, inputs)[0]
    torch.testing.assert_close(found_LA, expected_LQE.flatten(1), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_text_only_leaves_visual_tokens_alone() -> None:
    outputs = {}
    for scope in ("text_only", "all_tokens"):
        model = small_model(f"scope={scope}")
        inputs = {"input_ids": prompt(model), **video(model)}
        is_video_BL = inputs["input_ids"] == model.config.video_token_id
        opened = heads_seen(model, 0, inputs)
        model.close_gates_()
        closed = heads_seen(model, 0, inputs)
        outputs[scope] = (opened - closed).abs().amax(-1)
        assert (outputs[scope][~is_video_BL] > 1e-4).all()
    assert (outputs["text_only"][is_video_BL] == 0).all()
    assert (outputs["all_tokens"][is_video_BL] > 1e-4).all()


# ------------------------------------------------------------------------------------------ initialisation


@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_values_start_as_the_layer_s_own_or_scrambled(bias: bool) -> None:
    attention = Attention(query_heads=8, key_heads=4, bias=bias)
    blocks = {}  # "K2" -> the rows of key head 2
    for letter, projection in (("K", attention.k_proj), ("V", attention.v_proj)):
        for head in range(4):
            blocks[f"{letter}{head}"] = projection.weight[head * E : (head + 1) * E]
    pairs = {
        "copy": [("K0", "V0"), ("K1", "V1"), ("K2", "V2"), ("K3", "V3")],
        "scrambled": [("K0", "K1"), ("K2", "K3"), ("V0", "V1"), ("V2", "V3")],
    }
    for how, expected in pairs.items():
        cross = SlowFastFusion(Layer(attention), {"name": "static_tanh"}, index=0)
        cross.initialise_(Layer(attention), how)
        for head, (key, value) in enumerate(expected):
            rows = slice(head * E, (head + 1) * E)
            assert torch.equal(cross.k_proj.weight[rows], blocks[key])
            assert torch.equal(cross.v_proj.weight[rows], blocks[value])
        if bias:
            written = torch.cat([attention.k_proj.bias, attention.v_proj.bias]).view(8, E)
            order = [0, 1, 2, 3, 4, 5, 6, 7] if how == "copy" else [0, 2, 4, 6, 1, 3, 5, 7]
            found = torch.cat([cross.k_proj.bias, cross.v_proj.bias]).view(8, E)
            assert torch.equal(found, written[order])


def test_random_keys_and_values_stay_as_drawn() -> None:
    attention = Attention(query_heads=4, key_heads=4)
    cross = SlowFastFusion(Layer(attention), {"name": "static_tanh"}, index=0)
    drawn = cross.k_proj.weight.clone()
    cross.initialise_(Layer(attention), "random")
    assert torch.equal(cross.k_proj.weight, drawn)


# ------------------------------------------------------------------------------------------ time


def test_time_positions_are_their_formula() -> None:
    fourier = TIME_POSITIONS.build({"name": "fourier", "harmonics": 3}, width=2)
    weights_DX = fourier.projection.weight.tolist()
    times = [0.0, 0.1, 0.5, 1.0]
    expected = [
        [
            w0 * (2 * t - 1) + sum(w * math.cos(math.pi * k * t) for k, w in enumerate(waves, start=1))
            for w0, *waves in weights_DX
        ]
        for t in times
    ]
    torch.testing.assert_close(fourier(torch.tensor([times]))[0], torch.tensor(expected))
    assert TIME_POSITIONS.build({"name": "none"}, width=2)(torch.zeros(1, 4)) == 0


@torch.no_grad()
def test_both_streams_carry_their_frame_s_time() -> None:
    model = small_model("compressor=identity")
    inputs = video(model)
    tokens_BTHWD = model.watch(inputs["features"], 2)
    (tokens,) = model.fast_and_slow(tokens_BTHWD, inputs["frame_times"])
    times = inputs["frame_times"][0].tolist()
    time_TD = torch.stack([model.time_positions["fourier"](torch.tensor([[t]]))[0, 0] for t in times])
    expected = (tokens_BTHWD + time_TD[None, :, None, None]).flatten(1, 3)
    torch.testing.assert_close(tokens.fast_FD, expected[0])
    torch.testing.assert_close(tokens.slow_SD, expected[0])
    untimed = small_model("slow_tokens=untimed")
    (tokens,) = untimed.fast_and_slow(tokens_BTHWD, inputs["frame_times"])
    assert torch.equal(tokens.slow_SD, tokens_BTHWD.flatten(1, 3)[0])


@torch.no_grad()
def test_slow_tokens_may_be_fewer() -> None:
    tokens_BTHWD = torch.randn(1, 7, 2, 2, 64, generator=torch.Generator().manual_seed(0))
    times_BT = torch.linspace(0, 1, 7)[None]
    for changes, frames, cells in [({"slow_frames": 3}, [0, 3, 6], 4), ({"slow_pooling": 2}, range(7), 1)]:
        model = small_model("slow_tokens=untimed", **changes)
        (tokens,) = model.fast_and_slow(tokens_BTHWD, times_BT)
        expected_TPD = torch.stack([tokens_BTHWD[0, frame].flatten(0, 1) for frame in frames])
        if cells == 1:
            expected_TPD = sum(expected_TPD[:, p] for p in range(4))[:, None] / 4
        torch.testing.assert_close(tokens.slow_SD, expected_TPD.flatten(0, 1))
        assert tokens.times_S.tolist() == pytest.approx([frame / 6 for frame in frames for _ in range(cells)])


@torch.no_grad()
def test_rotary_slow_keys_stand_where_the_fast_token_of_their_moment_stands() -> None:
    """A slow token seen at the moment of the j-th of F fast tokens has a key rotated to that token's place."""
    model = small_model("slow_tokens=rotary", "compressor=identity", video_pooling=4)  # one token a frame
    inputs = {"input_ids": prompt(model, frames=5), **video(model, frames=5)}
    decoder, cross = model.language_model.model, model.language_model.model.layers[0].self_attn.cross_attention
    _, slow_BSD = embedded(model, inputs)
    cache = model(**inputs, use_cache=True).past_key_values
    key_SKE = cache.slow_memory.shelves[0][0].chunks[0][0][0].transpose(0, 1)
    plain_SKE = cross.k_proj(decoder.layers[0].input_layernorm(slow_BSD))[0].unflatten(-1, (-1, cross.head_dim))
    places = torch.where(inputs["input_ids"][0] == model.config.video_token_id)[0]
    assert len(places) == len(plain_SKE) == 5
    width = cross.head_dim
    for s, place in enumerate(places.tolist()):
        for i in range(width // 2):
            angle = place * model.config.text_config.rope_parameters["rope_theta"] ** (-2 * i / width)
            left, right = plain_SKE[s, :, i], plain_SKE[s, :, i + width // 2]
            rotated_left = left * math.cos(angle) - right * math.sin(angle)
            rotated_right = right * math.cos(angle) + left * math.sin(angle)
            torch.testing.assert_close(key_SKE[s, :, i], rotated_left, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(key_SKE[s, :, i + width // 2], rotated_right, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="Fast tokens have the decoder's rotary positions already"):
        small_model(fast_time={"name": "rotary"})


# ------------------------------------------------------------------------------------------ readers, memory


def test_readers_of_a_mask() -> None:
    reads_BL = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 1]]).bool()
    even = ShelfReaders.of(reads_BL, torch.tensor([1, -1, 0]), 2)
    assert even.row_GN.tolist() == [[2, 2], [0, 0]]
    assert even.place_GN.tolist() == [[0, 3], [1, 2]]
    assert even.valid_GN is None
    uneven = ShelfReaders.of(reads_BL, torch.tensor([0, 0, 1]), 2)  # two rows (beams, say) read one context
    assert uneven.row_GN[0].tolist() == [0, 0, 1, 1, 1, 1]
    assert uneven.place_GN[0].tolist() == [1, 2, 0, 1, 2, 3]
    assert uneven.row_GN[1, :2].tolist() == [2, 2]
    assert uneven.valid_GN.sum(1).tolist() == [6, 2]


def test_slow_memory_moves_with_the_cache() -> None:
    model = small_model()
    width = model.config.text_config.hidden_size
    contexts = [SlowContext(torch.randn(length, width)) for length in (5, 7, 5)]
    memory = remember(model.language_model.model, contexts)
    assert [sorted(shelf) for shelf in memory.shelves] == [[0, 2], [0, 2]]
    assert memory.context_B.tolist() == [0, 2, 1]  # numbered shelf by shelf: rows 0 and 2, then row 1

    def fresh() -> SlowFastCache:
        cache = SlowFastCache(model.config.text_config)
        own = torch.arange(3.0)[:, None, None, None].expand(-1, 2, 4, 16).clone()
        cache.update(own, own, 0)
        cache.slow_memory = memory
        return cache

    for method, argument, expected in [
        ("reorder_cache", torch.tensor([2, 2, 0]), [2, 2, 0]),
        ("batch_select_indices", torch.tensor([1]), [1]),
        ("batch_repeat_interleave", 2, [0, 0, 1, 1, 2, 2]),
    ]:
        cache = fresh()
        getattr(cache, method)(argument)
        assert cache.layers[0].keys[:, 0, 0, 0].tolist() == expected
        assert cache.slow_memory.context_B.tolist() == [memory.context_B[row] for row in expected]
        assert cache.slow_memory.shelves is memory.shelves  # no key was copied
    empty = SlowFastCache(model.config.text_config)
    empty.update(torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 16), 0)
    empty.reorder_cache(torch.tensor([1, 0]))
    assert empty.slow_memory is None


def test_flash_attention_is_called_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads what the module's configuration names, and there is no package "flash_attention_2_slow_fast"."""
    module = small_model().language_model.model.layers[0].self_attn
    before, named = module.config._attn_implementation, []

    def flash(called: nn.Module, query_BQLE: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, None]:
        named.append((called.config._attn_implementation, called.config.hidden_size, called.head_dim))
        return query_BQLE.transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    query_BQLE = torch.randn(1, 4, 3, 16)
    attended_BLQE, _ = hybrid_attention("flash_attention_2")(module, query_BQLE, query_BQLE, query_BQLE, None)
    assert torch.equal(attended_BLQE, query_BQLE.transpose(1, 2))
    assert named == [("flash_attention_2", module.config.hidden_size, module.head_dim)]
    assert module.config._attn_implementation == before != "flash_attention_2"
