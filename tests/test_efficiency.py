"""What slow tokens may cost: keys made once and never copied, no row's share paid by another, memory bounded."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from small_models import FRAMES, prompt, small_model, tokenizer, video
from torch.utils.flop_counter import FlopCounterMode

from architectures import SlowFastForConditionalGeneration, bench, video_mllm
from architectures.cost import Widths
from architectures.slow_memory import SlowMemory

NEW = 4
DECODING = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beam samples": {"num_beams": 2, "do_sample": True},
}


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[SlowMemory]:
    """The slow memories made, in order."""
    made: list[SlowMemory] = []
    remember = video_mllm.remember
    monkeypatch.setattr(video_mllm, "remember", lambda *args: (made.append(remember(*args)), made[-1])[1])
    return made


def two_videos(model: SlowFastForConditionalGeneration) -> dict[str, Any]:
    """A prompt with two videos of unequal length, a prompt with one, and one of text only, padded on the left."""
    lengths = (FRAMES, 7, FRAMES)
    videos = [video(model, frames=T, seed=i)["features"][0] for i, T in enumerate(lengths)]
    first, second, third = (prompt(model, frames=T)[0] for T in lengths)
    rows = [torch.cat([first, second]), third, torch.tensor(tokenizer()("What colour is the ball")["input_ids"])]
    batch = tokenizer().pad({"input_ids": rows}, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "features": videos}


@pytest.mark.parametrize("how", DECODING)
@pytest.mark.parametrize("videos", ["one", "batch", "two in a prompt"])
def test_each_slow_token_is_projected_once(how: str, videos: str, projected: list[SlowMemory]) -> None:
    model = small_model()
    counts: dict[str, int] = {}
    for index, (_, fusion) in enumerate(model.hybrid()):
        for name in ("k_proj", "v_proj"):

            def count(module: torch.nn.Module, given: tuple, made: torch.Tensor, key: str = f"{index} {name}") -> None:
                counts[key] = counts.get(key, 0) + given[0].shape[:-1].numel()

            getattr(fusion, name).register_forward_hook(count)
    if videos == "two in a prompt":
        inputs = two_videos(model)
    else:
        batch = 1 if videos == "one" else 3
        inputs = {"input_ids": prompt(model).expand(batch, -1), **video(model, batch)}
    slow = sum(features.shape[0] * tokens_per_frame(model) for features in inputs["features"])
    cache = model.generate(
        **inputs, **DECODING[how], max_new_tokens=NEW, min_new_tokens=NEW, return_dict_in_generate=True
    ).past_key_values
    assert set(counts.values()) == {slow}
    assert len(counts) == 2 * len(model.hybrid_layers)
    (memory,) = projected
    assert pointers(cache.slow_memory) == pointers(memory)  # neither repeating rows nor reordering copied a key


def tokens_per_frame(model: SlowFastForConditionalGeneration) -> int:
    """Slow tokens of one frame."""
    rows, columns = (side // model.config.pooling_of(FRAMES) for side in model.encoder.grid)
    return rows * columns


def pointers(memory: SlowMemory) -> list[int]:
    """Where the keys and values lie."""
    return [t.data_ptr() for shelf in memory.shelves for kv in shelf.values() for pair in kv.chunks for t in pair]


@pytest.mark.parametrize("rows", [(True,), (True, False), (False, True, False, False)])
@torch.no_grad()
def test_rows_of_text_cost_no_cross_attention(rows: tuple[bool, ...]) -> None:
    """The price of reading, with any number of rows that have no video, is that of the one row that has."""
    model = small_model()
    ids = prompt(model)
    text = ids.masked_fill(ids == model.config.video_token_id, 2)
    inputs = {"input_ids": torch.cat([ids if has else text for has in rows]), "features": video(model)["features"]}

    def flops(**more: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            model(**inputs, use_cache=False, **more)
        return counter.get_total_flops()

    N, S = int((ids != model.config.video_token_id).sum()), FRAMES * tokens_per_frame(model)
    price = flops() - flops(may_read=torch.zeros_like(inputs["input_ids"], dtype=torch.bool))
    fusions = Widths.of(model.config).fusions
    assert price == sum(fusion.reading_flops(N, S) + fusion.other_flops(N) for fusion in fusions) > 0


@torch.no_grad()
def test_a_cropped_cache_goes_on_as_if_nothing_had_followed() -> None:
    model = small_model()
    ids, seen = prompt(model), video(model)
    tokens = [torch.tensor([[token]]) for token in (5, 6, 7)]
    kept = model(ids, **seen).past_key_values
    model(tokens[0], past_key_values=kept)
    length = kept.get_seq_length()
    model(torch.cat([tokens[2], tokens[1], tokens[1]], dim=1), past_key_values=kept)  # a rejected draft
    kept.crop(-3)
    assert kept.get_seq_length() == length
    straight = model(ids, **seen).past_key_values
    model(tokens[0], past_key_values=straight)
    for token in tokens[1:]:
        going_on, never_gone = (model(token, past_key_values=cache).logits for cache in (kept, straight))
        torch.testing.assert_close(going_on, never_gone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_draft_of_several_tokens_is_read_as_its_tokens_one_by_one() -> None:
    model = small_model()
    ids, seen, draft = prompt(model), video(model), torch.tensor([[5, 6, 7]])
    together = model(draft, past_key_values=model(ids, **seen).past_key_values).logits
    cache = model(ids, **seen).past_key_values
    single = [model(token, past_key_values=cache).logits for token in draft.split(1, dim=1)]
    torch.testing.assert_close(together, torch.cat(single, dim=1), atol=2e-5, rtol=1e-4)


# ----------------------------------------------------------------------------------------------- long videos


@pytest.mark.parametrize("slow_tokens", ["untimed", "timed"])
@pytest.mark.parametrize(
    "bounds", [{"frames_at_once": 6}, {"slow_chunk": 9}, {"frames_at_once": 1, "slow_chunk": 30, "slow_device": "cpu"}]
)
def test_bounds_on_memory_change_no_result(bounds: dict[str, Any], slow_tokens: str) -> None:
    model = small_model(f"slow_tokens={slow_tokens}")
    generator = torch.Generator().manual_seed(4)
    size = model.encoder.image_size
    frames = [torch.randn(T, 3, size, size, generator=generator) for T in (FRAMES, 7)]
    ids = torch.cat([prompt(model, frames=len(video)) for video in frames], dim=1)
    weights = [model.projector[0].weight, model.hybrid()[0][1].k_proj.weight]

    def logits_and_gradients() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        logits = model(ids, frames=frames, use_cache=False).logits
        return logits.detach(), torch.autograd.grad(logits.square().mean(), weights)

    expected, gradients = logits_and_gradients()
    for name, value in bounds.items():
        setattr(model.config, name, value)
    bounded, bounded_gradients = logits_and_gradients()
    torch.testing.assert_close(bounded, expected, atol=2e-5, rtol=1e-4)
    for one, other in zip(bounded_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 + 1e-4 * float(other.abs().max()), rtol=1e-3)


@torch.no_grad()
def test_frames_reach_the_encoder_in_parts_and_tokens_are_not_copied() -> None:
    model = small_model("slow_tokens=untimed", frames_at_once=6)
    parts = []
    model.encoder.register_forward_hook(lambda module, given, made: parts.append(given[0].shape[1]))
    size = model.encoder.image_size
    model.see(torch.randn(1, FRAMES, 3, size, size), None, None)
    assert parts == [6, 6, 6, 2]
    tokens_BTHWD = torch.randn(1, FRAMES, 2, 2, model.config.text_config.hidden_size)
    (tokens,) = model.fast_and_slow(tokens_BTHWD, torch.linspace(0, 1, FRAMES)[None])
    assert tokens.slow_SD.data_ptr() == tokens_BTHWD.data_ptr()


def test_a_straight_line_is_found() -> None:
    line = bench.Line.of([1, 2, 3, 4], [5.0, 7.0, 9.0, 11.0])
    assert (line.slope, line.start, line.r2) == pytest.approx((2, 3, 1))
    assert bench.Line.of([1, 2, 3, 4], [5.0, 7.0, 9.0, 7.0]).r2 == pytest.approx(0.4)


def test_memory_per_slow_token_is_the_closed_form() -> None:
    model = bench.open_model(bench.long_config(chunk=100, device=None))
    session = bench.Session(model, 20)
    session.prefill()
    _, keys_values = bench.bytes_per_slow_token(model.config)
    assert session.cache.slow_memory.nbytes == 20 * 64 * keys_values
    assert bench.slow_tokens(model, 20) == 20 * 64


def test_a_decoded_token_at_7b_is_within_the_limit() -> None:
    assert 1 < bench.counted_ratio() <= bench.ALLOWED_COUNT


@pytest.mark.slow
def test_memory_grows_with_the_video_as_stated() -> None:
    runs = []
    for frames in (768, 3072):  # below, the prompt's own activations are the peak
        command = [sys.executable, "-m", "architectures.bench", "long-once", f"--frames={frames}", "--steps=1"]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    small, large = runs
    slope = (large["peak_bytes"] - small["peak_bytes"]) / (large["slow_tokens"] - small["slow_tokens"])
    assert 0.9 <= slope / sum(bench.bytes_per_slow_token(bench.long_config(None, None))) <= 1.2


# -------------------------------------------------------------------------------------------------- compiling


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [{}, {"slow_chunk": 30}])
@torch.no_grad()
def test_the_decoder_compiles_to_one_graph_for_decoding(bounds: dict[str, Any]) -> None:
    """Two graphs serve all steps: the first, and from the second on one for any length of the cache."""
    model, ids = small_model(**bounds), prompt(small_model())
    tokens = [torch.tensor([[token]]) for token in (5, 6, 7, 8, 9)]
    cache = model(ids, **video(model)).past_key_values
    expected = [model(token, past_key_values=cache).logits for token in tokens]
    cache = model(ids, **video(model)).past_key_values
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.language_model.model.compile(backend="eager", fullgraph=True)
    for token, logits in zip(tokens, expected, strict=True):
        torch.testing.assert_close(model(token, past_key_values=cache).logits, logits, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
