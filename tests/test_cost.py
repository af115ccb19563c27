"""The closed form of the cost against torch's counter, to the operation, and recorded numbers at 7B."""

import csv
from pathlib import Path

import pytest
import torch
from small_models import CHOICES, FRAMES, prompt, small_config, small_model, video

from architectures import SlowFastConfig, SlowFastForConditionalGeneration
from architectures.compressors import COMPRESSORS
from architectures.cost import Cost, decode_cost, prefill_cost
from architectures.encoders import ENCODERS
from architectures.fusions import FUSIONS
from architectures.gates import GATES
from architectures.hybrid import SlowFastCache, remember
from architectures.placement import PLACEMENTS
from architectures.registry import Registry
from architectures.scope import SCOPES
from architectures.time_positions import TIME_POSITIONS
from architectures.tokens import SlowContext
from harness.compose import compose
from harness.models import model_config
from harness.profilers.flops import META, FlopCount, count_model, count_prefill, counted

TEXT_TOKENS = 64
RECORDED = list(csv.DictReader((Path(__file__).parent / "reference" / "flops_7b.csv").open()))
GROUPS = ("architecture", "compressor", "encoder", "fusion", "gate", "placement", "scope", "slow_tokens")


def same(cost: Cost, count: FlopCount) -> bool:
    """Whether both agree on every stage and on the tokens."""
    stages = [*count.stages(), "llm_prefill", "model", "fast_tokens", "slow_tokens"]
    assert {name: getattr(cost, name) for name in stages} == {name: getattr(count, name) for name in stages}
    return True


@pytest.mark.parametrize(
    ("group", "registry", "named"),
    [
        ("compressor", COMPRESSORS, "compressor"),
        ("encoder", ENCODERS, "vision"),
        ("fusion", FUSIONS, "fusion"),
        ("gate", GATES, "gate"),
        ("placement", PLACEMENTS, "placement"),
        ("scope", SCOPES, "scope"),
        ("slow_tokens", TIME_POSITIONS, "slow_time"),
    ],
)
def test_every_registered_variant_has_a_yaml(group: str, registry: Registry, named: str) -> None:
    specs = [getattr(small_config(f"{group}={choice}"), named) for choice in CHOICES[group]]
    assert {spec["name"] for spec in specs} == set(registry)


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in CHOICES[group]])
def test_the_closed_form_is_the_count(choice: str) -> None:
    config = small_config(choice)
    with META:
        model = SlowFastForConditionalGeneration(config)
    for frames in (1, 40):
        assert same(prefill_cost(config, frames, 13), count_model(model, frames, 13))


@pytest.mark.parametrize("scope", CHOICES["scope"])
@pytest.mark.parametrize("compressor", CHOICES["compressor"])
def test_the_closed_form_is_the_count_in_combination(compressor: str, scope: str) -> None:
    config = small_config(f"compressor={compressor}", f"scope={scope}")
    assert same(prefill_cost(config, 33, 7), count_prefill(config, 33, 7))


@pytest.mark.parametrize(
    "changes",
    [
        {"projector_depth": 1},
        {"projector_depth": 3, "video_pooling": 1},
        {"compressor": {"name": "sample_and_average", "space_stride": 2}},
        {"placement": {"name": "first", "k": 3}},
    ],
    ids=str,
)
def test_the_closed_form_is_the_count_with_other_options(changes: dict) -> None:
    config = small_config(**changes)
    assert same(prefill_cost(config, 37, 5), count_prefill(config, 37, 5))


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_closed_form_holds_for_other_decoders(decoder: str) -> None:
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "vocab_size": 50,
    }
    sizes |= {"head_dim": 16} if decoder != "qwen2" else {}  # wider than 48 / 6, where a decoder allows it
    config = SlowFastConfig(text_config={"model_type": decoder, **sizes}, placement={"name": "every", "n": 2})
    assert same(prefill_cost(config, 18, 9), count_prefill(config, 18, 9))


@pytest.mark.parametrize(("budget", "frames"), [(1, 1), (5, 5), (18, 18), (40, 18), (None, 18)])
def test_slow_tokens_are_of_as_many_frames_as_the_budget_says(budget: int | None, frames: int) -> None:
    config = small_config(slow_frames=budget)
    assert prefill_cost(config, 18, 9).slow_tokens == frames * 4  # 2 x 2 tokens a frame
    config.slow_frames = 0  # not even a configuration allows it; but none is none, and not all
    assert prefill_cost(config, 18, 9).slow_tokens == 0


def test_a_decoder_without_closed_form_is_refused() -> None:
    config = SlowFastConfig(text_config={"model_type": "mixtral"})
    with pytest.raises(ValueError, match=r"no closed form of the cost of a 'mixtral' decoder, only of llama"):
        prefill_cost(config, 4, 4)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("architecture", ["self_attention", "slow_fast"])
def test_a_decoded_token_costs_what_torch_counts(architecture: str, reads: bool) -> None:
    model = small_model(f"architecture={architecture}", generated_read_slow=reads).to("meta")
    ids, cache = prompt(model).to("meta"), SlowFastCache(model.config.text_config)
    text_tokens = ids.shape[1] - model.fast_token_count(FRAMES)
    inputs = {name: value.to("meta") for name, value in video(model).items()}
    with torch.no_grad():  # the decoder itself: which ids are placeholders can't be read off the meta device
        (tokens,) = model.see(None, inputs["features"], inputs["frame_times"])
        if model.hybrid_layers:
            cache.slow_memory = remember(model.language_model.model, [SlowContext(tokens.slow_SD)])
        embeds = model.get_input_embeddings()(ids)
        model.language_model.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
    cost = decode_cost(model.config, FRAMES, text_tokens, bytes_per_number=4)
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert cost.kv_bytes == sum(tensor.nbytes for tensor in kept)
    assert cost.slow_kv_bytes == (cache.slow_memory.nbytes if cache.slow_memory else 0)
    _, flops = counted(lambda: model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True))
    assert flops == cost.step


def paper(architecture: str) -> SlowFastConfig:
    """The released sizes."""
    return model_config(compose(["scale=paper", "encoder=convnext_xxlarge", f"architecture={architecture}"]))


def test_the_closed_form_is_the_count_at_7b() -> None:
    config = paper("slow_fast")
    cost = prefill_cost(config, 128, TEXT_TOKENS)
    assert same(cost, count_prefill(config, 128, TEXT_TOKENS))
    assert cost.vision / 128 == pytest.approx(2.004e12, rel=5e-4)  # as timm's model is counted elsewhere


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: f"{row['architecture']}@{row['frames']}")
def test_the_closed_form_is_the_recorded_cost_at_7b(row: dict[str, str]) -> None:
    config, frames, text_tokens = paper(row["architecture"]), int(row["frames"]), int(row["text_tokens"])
    config.vision = {"name": "tiny", "image_size": 288}  # the LLM's share needs the 18 x 18 grid only
    cost = prefill_cost(config, frames, text_tokens, every_logit=True)
    assert (cost.fast_tokens, cost.slow_tokens) == (int(row["fast_tokens"]), int(row["slow_tokens"]))
    assert cost.llm_prefill == int(row["prefill_flops"])
    assert decode_cost(config, frames, text_tokens).step == int(row["decode_step_flops"])
    last = prefill_cost(config, frames, text_tokens)
    assert cost.llm_prefill - last.llm_prefill == last.lm_head * (cost.fast_tokens + text_tokens - 1)
