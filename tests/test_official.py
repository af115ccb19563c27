"""What the official code does that one would not expect, the option for it here, and the inputs that crash it.

Models and videos are the recorded ones, in which cross-attention moves logits by more than 1.5.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import SlowFastForConditionalGeneration
from architectures.compressors import COMPRESSORS
from architectures.fusions.slow_fast import SlowFastFusion
from architectures.official_names import IMAGE_TOKEN
from architectures.parity_case import PAD, Case
from architectures.processing import collate

GOLDEN = Path(__file__).parent / "reference" / "golden"
CASE = "d20_batch2_left_pad"  # two videos, of 12 and 5 frames
CLOSE = {"atol": 2e-5, "rtol": 0.0}


@pytest.fixture
def case() -> Case:
    """The recorded case, its model anew for every test."""
    return Case.read(GOLDEN, CASE)


def batch(
    model: SlowFastForConditionalGeneration, prompts: list[list[int]], videos: list[list[torch.Tensor]], **options: Any
) -> dict[str, Any]:
    """Model inputs of prompts (one placeholder per video) and each one's videos, `features_TPV`."""
    counts = [[model.fast_token_count(len(video)) for video in row] for row in videos]
    inputs: dict[str, Any] = collate(prompts, counts, IMAGE_TOKEN, PAD, **options)
    flat = [video for row in videos for video in row]
    return inputs | ({"features": flat} if flat else {})


def greedy(model: SlowFastForConditionalGeneration, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    """Eight new tokens of every row."""
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": PAD, **options}
    made = model.generate(**inputs, **options)
    return made[:, inputs["input_ids"].shape[1] :]


def last_logits(model: SlowFastForConditionalGeneration, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits after each row's last real token."""
    with torch.no_grad():
        logits_BLX = model(**inputs).logits
    places_BL = torch.arange(logits_BLX.shape[1]) * inputs["attention_mask"]
    return logits_BLX[torch.arange(len(logits_BLX)), places_BL.argmax(1)]


PROMPTS = [[11, 12, IMAGE_TOKEN, 13, 14, 15], [21, IMAGE_TOKEN, 22, 23, 24, 25, 26]]


# ------------------------------------------------------------------------ what the official code does


@pytest.mark.parametrize("read_slow", [False, True])
def test_generated_tokens_ignore_slow_tokens(case: Case, read_slow: bool) -> None:
    """Officially other slow tokens after the prefill change nothing; `generated_read_slow` makes them matter."""
    model = case.model
    model.config.generated_read_slow = read_slow
    inputs = batch(model, [PROMPTS[0]], [[case.features[0]]])
    step = {"input_ids": torch.tensor([[17]]), "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 1).long()}
    logits = []
    with torch.no_grad():
        for slow in (case.features[0], -case.features[0]):
            cache = model(**inputs, use_cache=True).past_key_values
            cache.slow_memory = model(**inputs, slow_features=[slow], use_cache=True).past_key_values.slow_memory
            logits.append(model(**step, past_key_values=cache).logits)
    assert torch.equal(*logits) != read_slow


def test_slow_tokens_are_projected_once_and_not_at_every_step(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official code projects them again for each generated token, and multiplies the result by zero."""
    calls = []
    project = SlowFastFusion.keys_values
    monkeypatch.setattr(SlowFastFusion, "keys_values", lambda self, *a: calls.append(self) or project(self, *a))
    for read_slow in (False, True):
        calls.clear()
        case.model.config.generated_read_slow = read_slow
        greedy(case.model, batch(case.model, [PROMPTS[0]], [[case.features[0]]]))
        assert len(calls) == len(case.model.hybrid_layers) == 3


@pytest.mark.parametrize(
    ("how", "pairs"),
    [
        ("scrambled", [("k", 0, "k", 1), ("v", 0, "v", 1)]),  # what the official code's fused rows amount to
        ("copy", [("k", 0, "v", 0), ("k", 1, "v", 1)]),
    ],
)
def test_keys_and_values_start_scrambled_or_as_meant(case: Case, how: str, pairs: list[tuple]) -> None:
    """Each key/value head of the cross-attention is made of these two heads of the self-attention."""
    for layer, fusion in case.model.hybrid():
        fusion.initialise_(layer, how)
        own = {"k": layer.self_attn.k_proj.weight, "v": layer.self_attn.v_proj.weight}
        own = {name: weight.unflatten(0, (2, -1)) for name, weight in own.items()}
        for head, (key, key_head, value, value_head) in enumerate(pairs):
            assert torch.equal(fusion.k_proj.weight.unflatten(0, (2, -1))[head], own[key][key_head])
            assert torch.equal(fusion.v_proj.weight.unflatten(0, (2, -1))[head], own[value][value_head])


def test_a_prompt_that_is_too_long_loses_its_question_or_is_refused(case: Case) -> None:
    """`tokenizer_model_max_length` cuts the end; here only if asked to, and never within a video."""
    row, counts = [1, 2, IMAGE_TOKEN, 7, 8, 9], [[4]]
    cut = collate([row], counts, IMAGE_TOKEN, PAD, max_length=7, truncation="tail")
    assert cut["input_ids"].tolist() == [[1, 2, *[IMAGE_TOKEN] * 4, 7]]
    with pytest.raises(ValueError, match="Prompt 0 has 9 tokens, max_length is 7: shorten it"):
        collate([row], counts, IMAGE_TOKEN, PAD, max_length=7)
    with pytest.raises(ValueError, match="max_length 5 cuts into a video of prompt 0"):
        collate([row], counts, IMAGE_TOKEN, PAD, max_length=5, truncation="tail")


@pytest.mark.parametrize(
    ("compressor", "frames"),
    [
        ({"name": "official", "min_fast_frames": 1}, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"name": "sample_and_average", "sample_stride": 1}, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]),
    ],
)
def test_frames_that_remain_are_dropped_or_averaged(compressor: dict[str, Any], frames: list[list[int]]) -> None:
    """11 frames by fours: officially the last three are lost, `sample_and_average` keeps them."""
    built = COMPRESSORS.build({**compressor, "average_stride": 4})
    weights_FT = built(torch.eye(11).view(1, 11, 1, 1, 11))[0]
    wanted_FT = torch.zeros(len(frames), 11)
    for row, seen in zip(wanted_FT, frames, strict=True):
        row[seen] = 1 / len(seen)
    torch.testing.assert_close(weights_FT, wanted_FT)


def test_short_videos_are_not_sampled() -> None:
    """Officially fewer frames than `min_fast_frames` are all taken, and more never become fewer than it."""
    compressor = COMPRESSORS.build({"name": "official", "sample_stride": 4, "min_fast_frames": 8})
    assert compressor.sampled(7) == [0, 1, 2, 3, 4, 5, 6]
    assert compressor.sampled(12) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert compressor.sampled(64) == list(range(0, 64, 4))


@pytest.mark.parametrize(("pool", "tokens"), [(False, 16), (True, 4)])
def test_a_single_image_is_not_pooled(case: Case, pool: bool, tokens: int) -> None:
    case.model.config.pool_single_frame = pool
    (video,) = case.model.see(None, [case.features[0][:1]], None)
    assert len(video.slow_SD) == tokens == case.model.fast_token_count(1)


def test_positions_count_padding_on_the_left_only_if_told_to(case: Case) -> None:
    """The official forward pass counts it, its `generate` does not: logits differ by more than 0.1."""
    model, videos = case.model, [[case.features[0]], [case.features[1]]]
    inputs = batch(model, PROMPTS, videos, padding_side="left")
    alone = last_logits(model, batch(model, [PROMPTS[1]], [videos[1]]))
    torch.testing.assert_close(last_logits(model, inputs)[1:], alone, **CLOSE)
    officially = {"position_ids": torch.arange(inputs["input_ids"].shape[1]).expand(2, -1)}
    assert (last_logits(model, inputs | officially)[1:] - alone).abs().max() > 0.1


def test_the_output_layer_may_run_on_the_last_position_only(case: Case) -> None:
    """Officially it runs on all of a prompt, of which generation uses one."""
    inputs = batch(case.model, [PROMPTS[0]], [[case.features[0]]])
    with torch.no_grad():
        every, last = case.model(**inputs).logits, case.model(**inputs, logits_to_keep=1).logits
    assert last.shape == (1, 1, every.shape[2])
    torch.testing.assert_close(last, every[:, -1:], **CLOSE)


# ------------------------------------------------------------------------- what crashes the official code


def test_a_text_only_prompt_runs_and_is_the_plain_language_model(case: Case) -> None:
    ids_BL = torch.tensor([[31, 32, 33, 34, 35]])
    with torch.no_grad():
        logits = case.model(input_ids=ids_BL).logits
        plain = case.model.language_model(input_ids=ids_BL).logits
    assert torch.equal(logits, plain)
    inputs = batch(case.model, [[31, 32, 33]], [[]])
    assert torch.equal(greedy(case.model, inputs), greedy(case.model.language_model, inputs))


def test_two_videos_in_a_prompt_are_one_after_the_other(case: Case) -> None:
    """Without compression two adjacent videos are the video of all their frames."""
    model = case.model
    model.compressor = COMPRESSORS.build({"name": "identity"})
    first, second = case.features
    two = batch(model, [[11, IMAGE_TOKEN, IMAGE_TOKEN, 13, 14]], [[first, second]])
    joined = batch(model, [[11, IMAGE_TOKEN, 13, 14]], [[torch.cat([first, second])]])
    torch.testing.assert_close(last_logits(model, two), last_logits(model, joined), **CLOSE)
    only_first = batch(model, [[11, IMAGE_TOKEN, 13, 14]], [[first]])
    assert (last_logits(model, two) - last_logits(model, only_first)).abs().max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("read_slow", [False, True])
def test_a_mixed_batch_is_each_of_its_prompts_alone(case: Case, side: str, read_slow: bool) -> None:
    """Text only, one video, another of other length, and two videos, padded to one length."""
    model, (long, short) = case.model, case.features
    model.config.generated_read_slow = read_slow
    prompts = [[31, 32, 33, 34], *PROMPTS, [41, IMAGE_TOKEN, 42, 43, IMAGE_TOKEN, 44, 45]]
    videos = [[], [long], [short], [short, long]]
    together = batch(model, prompts, videos, padding_side=side)
    alone = [batch(model, [prompt], [shown]) for prompt, shown in zip(prompts, videos, strict=True)]
    wanted = torch.cat([last_logits(model, inputs) for inputs in alone])
    torch.testing.assert_close(last_logits(model, together), wanted, **CLOSE)
    if side == "left":
        assert torch.equal(greedy(model, together), torch.cat([greedy(model, inputs) for inputs in alone]))


@pytest.mark.parametrize("read_slow", [False, True])
def test_beam_search_on_a_batch_is_beam_search_on_each_prompt(case: Case, read_slow: bool) -> None:
    model, videos = case.model, [[case.features[0]], [case.features[1]]]
    model.config.generated_read_slow = read_slow
    together = greedy(model, batch(model, PROMPTS, videos), num_beams=3)
    rows = [batch(model, [prompt], [row]) for prompt, row in zip(PROMPTS, videos, strict=True)]
    alone = [greedy(model, row, num_beams=3) for row in rows]
    assert torch.equal(together, torch.cat(alone))


def test_beam_search_is_the_best_of_all_continuations(case: Case) -> None:
    """Two steps of it find the likeliest pair of words: checked by going through all that begin likely enough."""
    model = case.model
    model.config.generated_read_slow = True
    inputs = batch(model, [PROMPTS[0]], [[case.features[0]]])
    words, kept = model.config.text_config.vocab_size, 60
    beams = greedy(model, inputs, num_beams=kept, max_new_tokens=2, length_penalty=0.0)[0].tolist()
    with torch.no_grad():
        first = model(**inputs).logits[0, -1].log_softmax(-1)
        likely = first.topk(kept).indices
        totals = torch.full((words, words), -torch.inf)
        for word in likely.tolist():
            cache = model(**inputs, use_cache=True).past_key_values
            mask = torch.ones(1, inputs["input_ids"].shape[1] + 1).long()
            step = model(input_ids=torch.tensor([[word]]), attention_mask=mask, past_key_values=cache).logits
            totals[word] = first[word] + step[0, -1].log_softmax(-1)
    assert beams == [int(totals.argmax()) // words, int(totals.argmax()) % words]
