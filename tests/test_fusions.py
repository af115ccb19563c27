"""Fusions, other ways to read slow tokens: each against a plain loop, at its counted cost, and wherever it is used."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CHOICES, FRAMES, lively, prompt, small_config, small_model, tokenizer, video
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.conversion import use_hybrid_attention
from architectures.cost import decode_cost, prefill_cost
from architectures.fusions import FUSIONS, fusion_of
from architectures.fusions.slow_fast import SlowFastFusion
from architectures.hybrid import fusions, make_hybrid, remember
from architectures.slow_memory import Readers
from architectures.tokens import SlowContext
from harness.packing import pack, packed_logits
from harness.profilers.flops import META, count_prefill

SPECS: list[dict[str, Any]] = [small_config(f"fusion={name}").fusion for name in CHOICES["fusion"]] + [
    {"name": "slow_fast", "keys": "shared"},
    {"name": "slow_fast", "query": "own"},
    {"name": "slow_fast", "keys": "shared", "query": "own"},
]
RIVALS = [spec for spec in SPECS if spec != {"name": "slow_fast", "keys": "per_layer", "query": "self_attention"}]
FITTING = [(spec, decoder) for spec in SPECS for decoder in ("llama", "qwen2")]
FITTING += [(spec, decoder) for spec in SPECS for decoder in ("gemma3_text", "qwen3") if spec.get("query") != "own"]
QUESTIONS = ["What colour is the green left ball", "red", "What colour is the ball"]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def inputs_of(model: SlowFastForConditionalGeneration, frames: int = FRAMES) -> dict[str, torch.Tensor]:
    """One video and a question about it."""
    return {"input_ids": prompt(model, frames=frames), **video(model, frames=frames)}


def other_decoder(decoder: str, spec: dict[str, Any]) -> SlowFastConfig:
    """A small model of another family, its heads wider than D / Q where it allows that."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 80, "vocab_size": 50, "pad_token_id": 0}
    sizes |= {"head_dim": 16} if decoder != "qwen2" else {}
    text = {"model_type": decoder, **sizes}
    return SlowFastConfig(
        text_config=text, placement={"name": "every", "n": 2}, compressor={"name": "adaptive_average"}, fusion=spec
    )


# ------------------------------------------------------------------------------------------ slow truth


def caught(module: nn.Module, model: SlowFastForConditionalGeneration, inputs: dict[str, Any]) -> torch.Tensor:
    """What a module inside the model is given, of the first row."""
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).detach()[0])

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    model(**inputs)
    handle.remove()
    return seen[0]


def self_attended(model: SlowFastForConditionalGeneration, attention: nn.Module, x_LD: torch.Tensor) -> tuple:
    """Causal self-attention written out: its output of all heads `attended_LQE` and rotary queries `query_QLE`."""
    query, key, value = (
        projection(x_LD).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)[None]
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    L, group = len(x_LD), query.shape[1] // key.shape[1]
    places_1L = torch.arange(L)[None]
    query, key = apply_rotary_pos_emb(query, key, *model.language_model.model.rotary_emb(x_LD[None], places_1L))
    scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * attention.head_dim**-0.5
    scores = scores.masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf)
    attended_QLE = (scores.softmax(-1) @ value.repeat_interleave(group, 1))[0]
    return attended_QLE.transpose(0, 1), query[0]


def read_by_hand(query_QE: torch.Tensor, key_SX: torch.Tensor, value_SX: torch.Tensor) -> torch.Tensor:
    """What one token reads, head by head."""
    Q, E = query_QE.shape
    group = Q * E // key_SX.shape[1]
    read = []
    for head in range(Q):
        columns = slice(head // group * E, (head // group + 1) * E)
        scores_S = [sum(q * k for q, k in zip(query_QE[head], key_S, strict=True)) for key_S in key_SX[:, columns]]
        weight_S = torch.tensor([math.exp(score / math.sqrt(E)) for score in scores_S])
        read.append((weight_S[:, None] * value_SX[:, columns]).sum(0) / weight_S.sum())
    return torch.stack(read)


def dynamic_tanh_by_hand(gate: nn.Module, attended_QE: torch.Tensor) -> float:
    """tanh(w . a + b) * tanh(warmup)."""
    dot = sum(w * a for w, a in zip(gate.projection.weight[0].tolist(), attended_QE.flatten().tolist(), strict=True))
    return math.tanh(dot + gate.projection.bias.item()) * math.tanh(gate.warmup.item())


@pytest.mark.parametrize(
    ("spec", "keys_of"),
    [
        ({"name": "slow_fast"}, 2),
        ({"name": "slow_fast", "keys": "shared"}, 0),
        ({"name": "slow_fast", "query": "own"}, 2),
        ({"name": "slow_fast", "keys": "shared", "query": "own"}, 0),
        ({"name": "hyper_attention"}, 2),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_fusion_inside_attention_is_its_plain_loop(spec: dict, keys_of: int) -> None:
    """In the second hybrid layer (2), whose keys and values are its own or, if shared, made by layer 0."""
    model = small_model("slow_tokens=timed", fusion=spec, slow_frames=3)
    inputs, layers = inputs_of(model), model.language_model.model.layers
    attention, source = layers[2].self_attn, layers[keys_of]
    fusion, maker = attention.cross_attention, source.self_attn.cross_attention
    slow_SD = source.input_layernorm(model.see(None, inputs["features"], inputs["frame_times"])[0].slow_SD)
    key_SX, value_SX = maker.k_proj(slow_SD), maker.v_proj(slow_SD)
    x_LD = caught(attention, model, inputs)
    attended_LQE, query_QLE = self_attended(model, attention, x_LD)
    if spec.get("query") == "own":
        query_QLE = fusion.q_proj(x_LD).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
    expected_LQE = attended_LQE.clone()
    for place in torch.where(inputs["input_ids"][0] != model.config.video_token_id)[0].tolist():
        crossed_QE = read_by_hand(query_QLE[:, place], key_SX, value_SX)
        gate = dynamic_tanh_by_hand(fusion.gate, attended_LQE[place])
        kept = 1 - gate if spec["name"] == "hyper_attention" else 1
        expected_LQE[place] = kept * attended_LQE[place] + gate * crossed_QE
    assert (expected_LQE - attended_LQE).abs().max() > 0.05
    torch.testing.assert_close(caught(attention.o_proj, model, inputs), expected_LQE.flatten(1), **CLOSE)


def layer_norm_by_hand(norm: nn.LayerNorm, token_D: torch.Tensor) -> torch.Tensor:
    """(x - mean) / deviation * weight + bias."""
    centred = token_D - token_D.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def gelu(x: float) -> float:
    """x times the normal distribution function."""
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(
    ("activation", "by_hand"), [("gelu", gelu), ("squared_relu", lambda x: max(x, 0.0) ** 2)], ids=["gelu", "squared"]
)
@torch.no_grad()
def test_a_gated_block_is_its_plain_loop(activation: str, by_hand: Callable) -> None:
    """What the second hybrid layer gets, from what the layer before it put out."""
    spec = {"name": "gated_block", "expansion": 2, "activation": activation}
    model = small_model("gate=static_tanh", "slow_tokens=timed", fusion=spec, slow_frames=3)
    inputs, layers = inputs_of(model), model.language_model.model.layers
    block, E = layers[2].cross_block, layers[2].self_attn.head_dim
    ffn = block.feed_forward
    for norm in (block.query_norm, block.slow_norm, ffn.norm):
        norm.weight.copy_(torch.linspace(0.5, 1.5, len(norm.weight)))
    slow = model.see(None, inputs["features"], inputs["frame_times"])[0].slow_SD
    slow_SD = torch.stack([layer_norm_by_hand(block.slow_norm, token_D) for token_D in slow])
    key_SX, value_SX = slow_SD @ block.k_proj.weight.T, slow_SD @ block.v_proj.weight.T
    outputs: list[torch.Tensor] = []
    handle = layers[1].register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    model(**inputs)
    handle.remove()
    expected_LD = outputs[0].clone()
    for place in torch.where(inputs["input_ids"][0] != model.config.video_token_id)[0].tolist():
        y = outputs[0][place]
        query_QE = (block.q_proj.weight @ layer_norm_by_hand(block.query_norm, y)).view(-1, E)
        crossed = read_by_hand(query_QE, key_SX, value_SX).flatten()
        y = y + math.tanh(block.gate.warmup.item()) * (block.o_proj.weight @ crossed)
        inner = [by_hand(x) for x in (ffn.up_proj.weight @ layer_norm_by_hand(ffn.norm, y)).tolist()]
        expected_LD[place] = y + math.tanh(ffn.gate.warmup.item()) * (ffn.down_proj.weight @ torch.tensor(inner))
    assert block.gate.warmup.item() * ffn.gate.warmup.item() < 0  # of opposite sign: neither stands for the other
    torch.testing.assert_close(caught(layers[2].input_layernorm, model, inputs), expected_LD, **CLOSE)


# ------------------------------------------------------------------------------------------ conversion, files


@pytest.mark.parametrize(("spec", "decoder"), FITTING, ids=str)
@torch.no_grad()
def test_a_new_fusion_changes_nothing_and_an_open_one_only_readers(spec: dict, decoder: str) -> None:
    config = other_decoder(decoder, spec)
    torch.manual_seed(0)
    base = lively(SlowFastForConditionalGeneration(SlowFastConfig.from_dict({**config.to_dict(), "placement": None})))
    model = SlowFastForConditionalGeneration.from_base(base, placement=config.placement).eval()
    ids = torch.tensor([[3, 4] + [1] * model.fast_token_count(4) + [5, 6, 7]])
    inputs = {"input_ids": ids, **video(model, frames=4)}
    expected = base(**inputs).logits
    assert torch.equal(model(**inputs).logits, expected)
    model.config.scope = {"name": "text_after_video"}
    opened = lively(SlowFastForConditionalGeneration(model.config), seed=2)
    with_video, without = opened(**inputs, use_cache=False).logits, opened(input_ids=ids[:, :2]).logits
    opened.close_gates_()
    closed = opened(**inputs, use_cache=False).logits
    assert torch.equal(opened(input_ids=ids[:, :2]).logits, without)
    assert torch.equal(with_video[:, :-3], closed[:, :-3])
    assert ((with_video - closed)[:, -3:].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@torch.no_grad()
def test_fusions_fit_a_decoder_of_soft_capped_attention(spec: dict) -> None:
    """Gemma2, with attention and norms of its own, as a decoder by itself: the video model asks for sdpa."""
    text = other_decoder("gemma2", spec).text_config
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(text, attn_implementation="eager").model.eval()
    embeds_BLD, reads_BL = torch.randn(2, 6, 48), torch.zeros(2, 6, dtype=torch.bool)
    reads_BL[0, 3:] = True
    expected = decoder(inputs_embeds=embeds_BLD).last_hidden_state
    use_hybrid_attention(decoder)
    make_hybrid(decoder, (0, 2), spec, {"name": "per_channel"})
    memory = remember(decoder, [SlowContext(torch.randn(9, 48)), None])
    slow = {"slow_memory": memory, "readers": Readers.of(reads_BL, memory)}
    assert torch.equal(decoder(inputs_embeds=embeds_BLD).last_hidden_state, expected)
    assert torch.equal(decoder(inputs_embeds=embeds_BLD, **slow).last_hidden_state, expected)
    for name, parameter in decoder.named_parameters():
        if name.endswith("gate.scale"):
            parameter.fill_(0.5)
    found = decoder(inputs_embeds=embeds_BLD, **slow).last_hidden_state
    assert ((found - expected).abs().amax(-1) > 1e-4).tolist() == reads_BL.tolist()


@pytest.mark.parametrize("spec", RIVALS, ids=str)
def test_every_new_parameter_learns(spec: dict) -> None:
    model = small_model("gate=sigmoid", fusion=spec)
    ids = prompt(model)
    model(input_ids=ids, **video(model), labels=ids).loss.backward()
    for index, fusion in fusions(model.language_model.model).items():
        for name, parameter in fusion.named_parameters():
            assert parameter.grad is not None, f"{name} of layer {index}"
            if name != "k_proj.bias":  # shifts all scores alike
                assert parameter.grad.abs().sum() > 0, f"{name} of layer {index}"


@pytest.mark.parametrize("spec", RIVALS, ids=str)
@torch.no_grad()
def test_a_saved_model_is_the_same_and_its_memory_as_large_as_told(spec: dict, tmp_path: Path) -> None:
    model = small_model(fusion=spec)
    outputs = model(**inputs_of(model), use_cache=True)
    model.save_pretrained(tmp_path)
    again = SlowFastForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], weights) for name, weights in model.state_dict().items())
    torch.testing.assert_close(again(**inputs_of(model)).logits, outputs.logits)
    cost = decode_cost(model.config, FRAMES, 7, bytes_per_number=4)
    assert cost.slow_kv_bytes == outputs.past_key_values.slow_memory.nbytes


@torch.no_grad()
def test_shared_keys_are_made_once_and_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, project = [], SlowFastFusion.keys_values

    def counted(self: SlowFastFusion, *args: Any) -> tuple:
        calls.append(self.layer_index)
        return project(self, *args)

    monkeypatch.setattr(SlowFastFusion, "keys_values", counted)
    memory = {}
    for keys in ("per_layer", "shared"):
        model = small_model(fusion={"name": "slow_fast", "keys": keys})
        memory[keys] = model(**inputs_of(model), use_cache=True).past_key_values.slow_memory
    assert calls == [0, 2, 0]
    assert memory["shared"].nbytes * 2 == memory["per_layer"].nbytes
    owners = [name for name in model.state_dict() if name.endswith("cross_attention.k_proj.weight")]
    assert owners == ["language_model.model.layers.0.self_attn.cross_attention.k_proj.weight"]


@pytest.mark.parametrize("how", ["copy", "random"])
@torch.no_grad()
def test_new_projections_start_as_the_layer_s_own(how: str) -> None:
    base = small_model("placement=none")
    changes = {"placement": {"name": "all"}, "kv_init": how}
    rival = SlowFastForConditionalGeneration.from_base(base, fusion={"name": "hyper_attention"}, **changes)
    both = {"name": "slow_fast", "keys": "shared", "query": "own"}
    shared = SlowFastForConditionalGeneration.from_base(base, fusion=both, **changes)
    for model, names in ((rival, {"k_proj", "v_proj"}), (shared, {"k_proj", "v_proj", "q_proj"})):
        for index, layer in enumerate(model.language_model.model.layers):
            fusion = fusion_of(layer)
            made = {name for name in names if name == "q_proj" or fusion.owns_keys}
            assert {name for name, child in fusion.named_children() if name != "gate" and child is not None} == made
            for name in made:
                new, own = getattr(fusion, name), getattr(layer.self_attn, name)
                assert torch.equal(new.weight, own.weight) == (how == "copy"), f"{name} of layer {index}"
                assert torch.equal(new.bias, own.bias) == (how == "copy")


def test_what_cannot_be_says_so() -> None:
    wrong = [
        ({"name": "slow_fast", "keys": "all"}, "keys is 'all', choose per_layer or shared"),
        ({"name": "slow_fast", "query": "none"}, "query is 'none', choose self_attention or own"),
        ({"name": "gated_block", "activation": "relu"}, "activation is 'relu', choose gelu or squared_relu"),
        ({"name": "gated_block", "expansion": 0}, "expansion is 0, must be at least 1"),
        ({"name": "hyper_attention", "keys": "shared"}, "'hyper_attention' has no option 'keys': its options are none"),
    ]
    for spec, message in wrong:
        with META, pytest.raises(ValueError, match=message):
            SlowFastForConditionalGeneration(small_config(fusion=spec))
    with META, pytest.raises(ValueError, match="gate 'none' leaves nothing of self-attention"):
        SlowFastForConditionalGeneration(small_config("gate=none", fusion={"name": "hyper_attention"}))
    with META, pytest.raises(ValueError, match="query 'own' is not made for decoders that normalise their queries"):
        SlowFastForConditionalGeneration(other_decoder("qwen3", {"name": "slow_fast", "query": "own"}))


# ------------------------------------------------------------------------------------------ cost


def test_every_fusion_has_a_yaml() -> None:
    assert {spec["name"] for spec in SPECS} == set(FUSIONS)


@pytest.mark.parametrize("gate", ["per_head", "static_tanh"])
@pytest.mark.parametrize("spec", [*RIVALS, {"name": "gated_block", "expansion": 3}], ids=str)
def test_the_closed_form_is_the_count(spec: dict, gate: str) -> None:
    config = small_config(f"gate={gate}", fusion=spec)
    for frames in (1, 33):
        assert prefill_cost(config, frames, 13) == count_prefill(config, frames, 13)


@pytest.mark.parametrize(("spec", "decoder"), [pair for pair in FITTING if pair[1] in ("llama", "qwen3")], ids=str)
def test_the_closed_form_holds_for_other_decoders(spec: dict, decoder: str) -> None:
    config = other_decoder(decoder, spec)
    assert prefill_cost(config, 6, 5) == count_prefill(config, 6, 5)


# ------------------------------------------------------------------------------------------ batches, answers, packing


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("spec", RIVALS, ids=str)
@torch.no_grad()
def test_a_ragged_batch_answers_as_its_samples_do(spec: dict, beams: int) -> None:
    """Rows padded on the left: two of one shelf that differ in readers, one of another, one without a video."""
    model = small_model(fusion=spec)
    generation = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "num_beams": beams}
    generation["suppress_tokens"] = [model.config.video_token_id]
    seen = [video(model, frames=frames, seed=seed) for frames, seed in ((FRAMES, 1), (1, 2), (FRAMES, 3))]
    rows = [prompt(model, text, len(v["frame_times"][0]))[0] for text, v in zip(QUESTIONS, seen, strict=True)]
    rows.append(torch.tensor(tokenizer()("What colour is the ball")["input_ids"]))
    batch = tokenizer().pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    videos = {name: [v[name][0] for v in seen] for name in ("features", "frame_times")}
    assert batch["attention_mask"][:, 0].tolist() == [1, 0, 0, 0]
    together = model.generate(**batch, **videos, **generation)[:, -3:]
    logits = model(**batch, **videos).logits
    for row, ids in enumerate(rows):
        own = seen[row] if row < len(seen) else {}
        torch.testing.assert_close(logits[row, -len(ids) :], model(input_ids=ids[None], **own).logits[0], **CLOSE)
        alone = model.generate(input_ids=ids[None], **own, **generation)
        assert torch.equal(together[row], alone[0, -3:])
    assert len({tuple(row) for row in together.tolist()}) > 1
    if beams == 1:
        assert torch.equal(model.generate(**batch, **videos, **generation, use_cache=False)[:, -3:], together)


@pytest.mark.parametrize(("spec", "decoder"), FITTING, ids=str)
@torch.no_grad()
def test_decoding_is_recomputing(spec: dict, decoder: str) -> None:
    torch.manual_seed(0)
    model = lively(SlowFastForConditionalGeneration(other_decoder(decoder, spec)))
    ids, seen = torch.tensor([[3] + [1] * model.fast_token_count(4) + [5, 6, 7]]), video(model, frames=4)
    whole = model(input_ids=ids, **seen, use_cache=False).logits
    cache = model(input_ids=ids[:, :-2], **seen, use_cache=True).past_key_values
    for place in (-2, -1):
        step = model(input_ids=ids[:, place:][:, :1], past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(step, whole[:, place], **CLOSE)


@pytest.mark.parametrize("spec", RIVALS, ids=str)
@pytest.mark.parametrize("slow_tokens", ["timed", "rotary"])
@torch.no_grad()
def test_a_packed_branch_computes_what_its_own_sequence_would(spec: dict, slow_tokens: str) -> None:
    model = small_model(f"slow_tokens={slow_tokens}", fusion=spec)
    prefix = prompt(model, "")[0].tolist()
    branches = [[tokenizer()(text)["input_ids"] for text in QUESTIONS[start : start + 2]] for start in (0, 1)]
    seen = video(model, batch=2)
    found_BQMW = packed_logits(model, pack(prefix, branches, tokenizer().pad_token_id), **seen)
    for b, questions in enumerate(branches):
        own = {name: value[b : b + 1] for name, value in seen.items()}
        for q, ids in enumerate(questions):
            alone = model(input_ids=torch.tensor([prefix + ids]), **own, use_cache=False).logits
            torch.testing.assert_close(found_BQMW[b, q, : len(ids)], alone[0, len(prefix) :], **CLOSE)


@pytest.mark.parametrize("architecture", ["flamingo", "hyper_attention"])
@torch.no_grad()
def test_a_rival_architecture_runs_with_one_visual_token_in_its_sequence(architecture: str) -> None:
    compressor = {"name": "adaptive_average", "fast_frames": 1, "grid": 1}
    model = small_model(f"architecture={architecture}", compressor=compressor)
    assert (prompt(model) == model.config.video_token_id).sum() == 1
    inputs = inputs_of(model)
    other = model(**{**inputs, **video(model, seed=7)}).logits
    slow_only = model(**inputs, slow_features=video(model, seed=7)["features"]).logits
    logits = model(**inputs).logits
    assert not torch.allclose(slow_only[:, -1], logits[:, -1], atol=1e-3)
    assert not torch.allclose(slow_only[:, -1], other[:, -1], atol=1e-3)
    assert torch.equal(slow_only[:, :3], logits[:, :3])  # text before the video, and the visual token, do not read
