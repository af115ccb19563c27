"""The closed form of the cost against torch's counter, to the operation, stage by stage, and recorded numbers."""

import csv
import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from cost_cases import CASES, LENGTHS, MIDDLE, SIZES, config_at
from small_models import CHOICES, FRAMES, prompt, small_config, small_model, video

from architectures import SlowFastConfig
from architectures.compressors import COMPRESSORS, Compressor
from architectures.cost import STAGES, STEP_STAGES, decode_cost, prefill_cost
from architectures.encoders import ENCODERS
from architectures.fusions import FUSIONS
from architectures.gates import GATES
from architectures.hybrid import SlowFastCache, remember
from architectures.placement import PLACEMENTS
from architectures.registry import Registry
from architectures.scope import SCOPES
from architectures.selectors import SELECTORS
from architectures.time_positions import TIME_POSITIONS
from architectures.tokens import SlowContext
from harness.compose import compose
from harness.models import model_config
from harness.profilers.flops import count_decode, count_prefill, counted

REFERENCE = Path(__file__).parent / "reference"
RECORDED = list(csv.DictReader((REFERENCE / "flops_7b.csv").open()))
RECORDED_STAGES = list(csv.DictReader((REFERENCE / "flops_7b_stages.csv").open()))
BIG = ("architecture=slow_fast", "fusion=gated_block")  # at 7B among the fast tests
ARCHITECTURES = [f"architecture={name}" for name in CHOICES["architecture"]]


@pytest.mark.parametrize(
    ("group", "registry", "named"),
    [
        ("compressor", COMPRESSORS, "compressor"),
        ("encoder", ENCODERS, "vision"),
        ("fusion", FUSIONS, "fusion"),
        ("gate", GATES, "gate"),
        ("placement", PLACEMENTS, "placement"),
        ("scope", SCOPES, "scope"),
        ("selector", SELECTORS, "selector"),
        ("slow_tokens", TIME_POSITIONS, "slow_time"),
    ],
)
def test_every_registered_variant_has_a_yaml(group: str, registry: Registry, named: str) -> None:
    specs = [getattr(small_config(f"{group}={choice}"), named) for choice in CHOICES[group]]
    assert {spec["name"] for spec in specs} == set(registry)


# ------------------------------------------------------------------------------------------ closed form and count


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", ["mini", pytest.param("middle", marks=pytest.mark.slow)])
def test_the_closed_form_is_the_count(size: str, case: str) -> None:
    """Of the middle size the fast tests compare fvcore's count, in test_fvcore."""
    config, (frames, text_tokens) = config_at(size, case), LENGTHS[size]
    assert prefill_cost(config, frames, text_tokens) == count_prefill(config, frames, text_tokens)


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case in BIG else pytest.mark.slow) for case in CASES])
def test_the_closed_form_is_the_count_at_7b(case: str) -> None:
    config, (frames, text_tokens) = config_at("paper", case), LENGTHS["paper"]
    assert prefill_cost(config, frames, text_tokens) == count_prefill(config, frames, text_tokens)


def test_the_released_tower_costs_what_is_counted_elsewhere() -> None:
    cost = prefill_cost(paper("slow_fast"), 128, 64)
    assert cost == count_prefill(paper("slow_fast"), 128, 64)
    assert cost.vision / 128 == pytest.approx(2.004e12, rel=5e-4)  # timm's own figure for its model


@pytest.mark.parametrize("compressor", CHOICES["compressor"])
def test_one_frame_costs_what_is_counted(compressor: str) -> None:
    config = small_config(f"compressor={compressor}", pool_single_frame=False)
    assert prefill_cost(config, 1, 13) == count_prefill(config, 1, 13)


@pytest.mark.parametrize("scope", CHOICES["scope"])
def test_who_reads_costs_what_is_counted(scope: str) -> None:
    config = small_config(f"scope={scope}", compressor={"name": "two_stream", "slow_frames": 5})
    assert prefill_cost(config, 33, 7) == count_prefill(config, 33, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"projector_depth": 1},
        {"projector_depth": 3, "video_pooling": 1},
        {"compressor": {"name": "sample_and_average", "space_stride": 2}},
        {"placement": {"name": "first", "k": 3}},
        {"fast_time": {"name": "none"}, "slow_time": {"name": "none"}},
    ],
    ids=str,
)
def test_the_closed_form_is_the_count_with_other_options(changes: dict) -> None:
    config = small_config(**changes)
    assert prefill_cost(config, 37, 5) == count_prefill(config, 37, 5)


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_closed_form_holds_for_other_decoders(decoder: str) -> None:
    sizes = {**MIDDLE, "model_type": decoder}
    if decoder == "qwen2":
        del sizes["head_dim"]  # its heads are always width / heads
    config = SlowFastConfig(text_config=sizes, placement={"name": "every", "n": 2})
    assert prefill_cost(config, 18, 9) == count_prefill(config, 18, 9)


@pytest.mark.parametrize("architecture", ["self_attention", "slow_fast"])
def test_lm_head_on_every_position_costs_so_many_times_more(architecture: str) -> None:
    config = small_config(f"architecture={architecture}")
    last, every = prefill_cost(config, 33, 7), prefill_cost(config, 33, 7, every_logit=True)
    assert every == count_prefill(config, 33, 7, every_logit=True)
    assert every == replace(last, lm_head=(last.fast_tokens + 7) * last.lm_head)


def test_the_sums_are_of_the_stages() -> None:
    cost, step = prefill_cost(small_config(), 40, 13), decode_cost(small_config(), 40, 13, reproject=True)
    assert tuple(cost.stages()) == STAGES
    assert tuple(step.stages()) == STEP_STAGES
    assert cost.model == sum(cost.stages().values())
    assert cost.llm_prefill == cost.model - cost.vision - cost.projector - cost.compressor
    assert cost.llm_prefill == cost.slow_keys_values + cost.decoder + cost.lm_head
    assert step.step == sum(step.stages().values())


def test_the_causal_half_is_what_the_mask_leaves() -> None:
    config, text_tokens = small_config(), 13
    cost, text = prefill_cost(config, 40, text_tokens), config.text_config
    width = text.num_attention_heads * (text.hidden_size // text.num_attention_heads)
    pairs = 0
    for query in range(cost.fast_tokens + text_tokens):
        for key in range(cost.fast_tokens + text_tokens):
            pairs += key <= query
    macs_per_pair = 2 * width  # of the score, and of the value that it weighs
    assert cost.causal_self_attention == text.num_hidden_layers * pairs * macs_per_pair * 2


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


# ------------------------------------------------------------------------------------------ one more token


@pytest.mark.parametrize("reproject", [False, True])
@pytest.mark.parametrize("case", ARCHITECTURES)
@pytest.mark.parametrize("size", ["mini", *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])])
def test_a_decoded_token_costs_what_is_counted(size: str, case: str, reproject: bool) -> None:
    config, (frames, text_tokens) = config_at(size, case), LENGTHS[size]
    step = decode_cost(config, frames, text_tokens, bytes_per_number=4, reproject=reproject)
    assert step == count_decode(config, frames, text_tokens, bytes_per_number=4, reproject=reproject)
    assert (step.slow_keys_values > 0) == (reproject and step.slow_kv_bytes > 0)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("architecture", ["self_attention", "slow_fast"])
def test_a_decoded_token_costs_what_the_whole_model_does(architecture: str, reads: bool) -> None:
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


# ------------------------------------------------------------------------------------------ recorded at 7B


@functools.cache
def paper(architecture: str) -> SlowFastConfig:
    """The released sizes; for reading."""
    return model_config(compose(["scale=paper", "encoder=convnext_xxlarge", f"architecture={architecture}"]))


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: "-".join(list(row.values())[:4]))
def test_the_closed_form_is_the_recorded_cost_at_7b(row: dict[str, str]) -> None:
    config, frames, text_tokens = paper(row["architecture"]), int(row["frames"]), int(row["text_tokens"])
    cost = prefill_cost(config, frames, text_tokens, every_logit=True)
    assert (cost.fast_tokens, cost.slow_tokens) == (int(row["fast_tokens"]), int(row["slow_tokens"]))
    assert cost.llm_prefill == int(row["prefill_flops"]) == 2 * int(row["prefill_macs"])
    last = prefill_cost(config, frames, text_tokens)
    assert cost.llm_prefill - last.llm_prefill == last.lm_head * (cost.fast_tokens + text_tokens - 1)
    reproject = row["decode"] == "reprojected"
    assert decode_cost(config, frames, text_tokens, reproject=reproject).step == int(row["decode_step_flops"])
    if reproject:  # the official code computes what its generated tokens do not read
        official = decode_cost(paper("slow_fast_official"), frames, text_tokens, reproject=True)
        assert official.step == int(row["decode_step_flops"])


@pytest.mark.parametrize("row", RECORDED_STAGES, ids=lambda row: "-".join(list(row.values())[:4]))
def test_the_stages_are_the_recorded_ones_at_7b(row: dict[str, str]) -> None:
    config, frames, text_tokens = paper(row["architecture"]), int(row["frames"]), int(row["text_tokens"])
    if row["pass"] == "prefill":
        stages = prefill_cost(config, frames, text_tokens, every_logit=True).stages()
    else:
        stages = decode_cost(config, frames, text_tokens, reproject=True).stages()
    assert {stage: stages[stage] for stage in STEP_STAGES} == {stage: int(row[stage]) for stage in STEP_STAGES}


def test_every_recorded_row_is_there() -> None:
    assert len(RECORDED) == 42
    assert len(RECORDED_STAGES) == 54
    assert sum(row["decode"] == "reprojected" for row in RECORDED) == 15


# ------------------------------------------------------------------------------------------ its own speed and memory


class Costly(Compressor):
    """A compressor that keeps one token and says what it costs."""

    def __init__(self, price: int = 7):
        super().__init__()
        self.price = price

    def n_tokens(self, T: int, H: int, W: int) -> int:
        return 1

    def flops(self, T: int, H: int, W: int) -> int:
        return self.price

    def forward(self, tokens_BTHWD: torch.Tensor) -> torch.Tensor:
        return tokens_BTHWD[:, 0, 0, :1]


class Dearer(Costly):
    def flops(self, T: int, H: int, W: int) -> int:
        return 100 * self.price


@pytest.fixture
def temporary() -> Iterator[None]:
    """A compressor that is registered for one test only."""
    with patch.dict(COMPRESSORS, {"costly": Costly}):
        yield


def test_a_variant_that_was_replaced_is_not_remembered(temporary: None) -> None:
    plain = prefill_cost(small_config(), 20, 9)
    without = {"fast_time": {"name": "none"}, "slow_time": {"name": "none"}}
    config = small_config(compressor={"name": "costly"}, **without)
    assert prefill_cost(config, 20, 9).compressor == 7
    assert prefill_cost(small_config(compressor={"name": "costly", "price": 8}, **without), 20, 9).compressor == 8
    with patch.dict(COMPRESSORS, {"costly": Dearer}):
        assert prefill_cost(config, 20, 9).compressor == 700
    assert prefill_cost(config, 20, 9).compressor == 7
    with patch.dict(COMPRESSORS):
        del COMPRESSORS["costly"]
        with pytest.raises(ValueError, match="Unknown compressor 'costly'"):
            prefill_cost(config, 20, 9)
    assert prefill_cost(small_config(), 20, 9) == plain


def test_a_configuration_that_was_changed_is_not_remembered() -> None:
    config = small_config()
    before = prefill_cost(config, 20, 9)
    config.gate = {"name": "per_head"}
    assert prefill_cost(config, 20, 9).gate == config.text_config.num_attention_heads * before.gate
    config.text_config.intermediate_size += 1
    layers, width, L = config.text_config.num_hidden_layers, config.text_config.hidden_size, before.fast_tokens + 9
    assert prefill_cost(config, 20, 9).linear - before.linear == layers * 2 * L * 3 * width


def test_a_cell_of_a_profile_takes_milliseconds() -> None:
    """The largest of them: 1,536 frames, every one of whose tokens is a fast token that reads."""
    longest = {"compressor": {"name": "identity"}, "scope": {"name": "all_tokens"}}
    config = SlowFastConfig.from_dict({**paper("slow_fast").to_dict(), **longest})
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        prefill_cost(config, 1536, 64)
        decode_cost(config, 1536, 64)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01
