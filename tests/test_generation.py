"""Answers: the cache against recomputation, batches against single samples, and who reads the slow tokens."""

from typing import Any

import pytest
import torch
from small_models import FRAMES, prompt, small_model, tokenizer, video
from transformers import DynamicCache, GenerationConfig

from architectures import SlowFastForConditionalGeneration
from architectures.fusions.slow_fast import SlowFastFusion
from architectures.hybrid import SlowFastCache

NEW = 5
QUESTIONS = ["What colour is the ball", "red", "What colour is the green left ball"]


def answer(model: SlowFastForConditionalGeneration, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """NEW generated tokens `(B, NEW)`."""
    inputs = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **inputs}
    return model.generate(input_ids=ids, **inputs)[:, ids.shape[1] :]


@pytest.mark.parametrize("compressor", ["identity", "sample_and_average"])
@pytest.mark.parametrize("placement", ["none", "every"])
@torch.no_grad()
def test_generating_is_recomputing_step_by_step(placement: str, compressor: str) -> None:
    model = small_model(f"placement={placement}", f"compressor={compressor}")
    ids, seen = prompt(model), video(model)
    generated = model.generate(
        input_ids=ids,
        **seen,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for step, cached in enumerate(generated.logits):
        so_far = generated.sequences[:, : ids.shape[1] + step]
        recomputed = model(input_ids=so_far, **seen, use_cache=False).logits[:, -1]
        torch.testing.assert_close(cached, recomputed, atol=2e-5, rtol=1e-4)
    assert torch.equal(answer(model, ids, **seen, use_cache=False), generated.sequences[:, ids.shape[1] :])


def test_slow_keys_are_projected_once_per_video(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    calls = []
    project = SlowFastFusion.keys_values

    def counted(self: SlowFastFusion, slow_GSD: torch.Tensor, layer: torch.nn.Module) -> tuple:
        calls.append((self.layer_index, len(slow_GSD)))
        return project(self, slow_GSD, layer)

    monkeypatch.setattr(SlowFastFusion, "keys_values", counted)
    for how in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 4}):
        calls.clear()
        answer(model, prompt(model).expand(2, -1), **video(model, batch=2), **how)
        assert calls == [(layer, 2) for layer in model.hybrid_layers]


@pytest.mark.parametrize("reads", [True, False])
@torch.no_grad()
def test_generated_tokens_read_the_slow_ones_only_if_they_may(reads: bool) -> None:
    model = small_model(generated_read_slow=reads)
    ids, next_id = prompt(model), torch.tensor([[9]])

    def decoded(swap: bool) -> torch.Tensor:
        """Logits after one decoded token; with `swap` the slow memory is another video's by then."""
        cache = model(input_ids=ids, **video(model)).past_key_values
        if swap:
            cache.slow_memory = model(input_ids=ids, **video(model, seed=7)).past_key_values.slow_memory
        return model(input_ids=next_id, past_key_values=cache).logits

    own, other = decoded(swap=False), decoded(swap=True)
    assert (not torch.allclose(own, other, atol=1e-3)) if reads else torch.equal(own, other)


@torch.no_grad()
def test_a_cache_that_forward_makes_remembers_the_slow_tokens() -> None:
    model = small_model()
    ids, seen = prompt(model), video(model)
    cache = model(input_ids=ids[:, :-1], **seen, use_cache=True).past_key_values
    assert isinstance(cache, SlowFastCache)
    continued = model(input_ids=ids[:, -1:], past_key_values=cache).logits[:, -1]
    whole = model(input_ids=ids, **seen, use_cache=False)
    assert whole.past_key_values is None
    torch.testing.assert_close(continued, whole.logits[:, -1], atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="is a DynamicCache, which has no place for slow tokens"):
        model(input_ids=ids, **seen, past_key_values=DynamicCache())


@torch.no_grad()
def test_slow_tokens_of_another_video() -> None:
    model = small_model()
    ids, own, other = prompt(model), video(model), video(model, seed=7)
    expected = model(input_ids=ids, **own).logits
    assert torch.equal(model(input_ids=ids, **own, slow_features=own["features"]).logits, expected)
    swapped = model(input_ids=ids, **own, slow_features=other["features"]).logits
    assert not torch.allclose(swapped, expected, atol=1e-3)
    baseline = small_model("placement=none")
    expected = baseline(input_ids=ids, **own).logits
    assert torch.equal(baseline(input_ids=ids, **own, slow_features=other["features"]).logits, expected)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("scope", ["text_only", "all_tokens"])
@torch.no_grad()
def test_a_batch_padded_on_the_left_answers_as_its_samples_do(scope: str, beams: int) -> None:
    model = small_model(f"scope={scope}")
    prompts = [prompt(model, question) for question in QUESTIONS]
    seen = video(model, batch=len(prompts))
    alone = [
        answer(model, ids, num_beams=beams, **{name: value[i : i + 1] for name, value in seen.items()})
        for i, ids in enumerate(prompts)
    ]
    batch = tokenizer().pad({"input_ids": [ids[0] for ids in prompts]}, return_tensors="pt")
    assert batch["attention_mask"][:, 0].tolist() == [0, 0, 1]
    together = answer(model, batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=beams, **seen)
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row) for row in together.tolist()}) > 1


@torch.no_grad()
def test_several_answers_to_one_video() -> None:
    model = small_model()
    ids, seen = prompt(model), video(model)
    beams = answer(model, ids, **seen, num_beams=4, num_return_sequences=4)
    assert len({tuple(row) for row in beams.tolist()}) == 4
    assert torch.equal(beams[:1], answer(model, ids, **seen, num_beams=4))


@torch.no_grad()
def test_text_without_a_video_is_answered() -> None:
    model = small_model()
    ids = torch.tensor([tokenizer()("What colour is the ball")["input_ids"]])
    first = answer(model, ids)
    model.close_gates_()
    assert torch.equal(answer(model, ids), first)


def test_a_model_without_padding_token_runs() -> None:
    for scope in ("text_only", "all_tokens"):
        model = small_model(f"scope={scope}")
        inputs = {"input_ids": prompt(model), **video(model)}
        expected = model(**inputs).logits
        model.config.pad_token_id = None
        assert torch.equal(model(**inputs).logits, expected)


def mixed_batch(model: SlowFastForConditionalGeneration) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Prompts with a video, without any, and with two of other lengths; the features of their videos."""
    text = torch.tensor(tokenizer()("What colour is red")["input_ids"])
    two = torch.cat([prompt(model, frames=6)[0], prompt(model, "red", frames=9)[0]])
    seen = [video(model, frames=frames, seed=frames)["features"][0] for frames in (FRAMES, 6, 9)]
    return [prompt(model)[0], text, two], [seen[:1], [], seen[1:]]


@pytest.mark.parametrize("slow_tokens", ["timed", "rotary"])
@torch.no_grad()
def test_one_batch_holds_no_one_and_two_videos(slow_tokens: str) -> None:
    model = small_model(f"slow_tokens={slow_tokens}")
    prompts, videos = mixed_batch(model)
    batch = tokenizer().pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    inputs = {**batch, "features": [video for row in videos for video in row]}
    logits_BLW = model(**inputs).logits
    for beams in (1, 3):
        together = answer(model, inputs.pop("input_ids"), **inputs, num_beams=beams)
        inputs["input_ids"] = batch["input_ids"]
        for i, (ids, own) in enumerate(zip(prompts, videos, strict=True)):
            seen = {"features": own} if own else {}
            alone = model(input_ids=ids[None], **seen).logits[0]
            torch.testing.assert_close(logits_BLW[i, -len(ids) :], alone, atol=2e-5, rtol=1e-4)
            assert torch.equal(together[i], answer(model, ids[None], **seen, num_beams=beams)[0])


@torch.no_grad()
def test_the_second_video_of_a_prompt_is_read_too() -> None:
    model = small_model()
    prompts, videos = mixed_batch(model)
    ids, (first, second) = prompts[2][None], videos[2]
    expected = model(input_ids=ids, features=[first, second]).logits
    swapped = model(input_ids=ids, features=[first, second], slow_features=[first, second.flip(0)]).logits
    assert not torch.allclose(swapped[:, -1], expected[:, -1], atol=1e-3)
    with pytest.raises(ValueError, match=r"hold \d+ video placeholders \(by row: \d+\), but the videos make"):
        model(input_ids=ids, features=[first])


@torch.no_grad()
def test_memory_bounds_change_no_result() -> None:
    ids_and_video, expected = None, None
    for bounds in ({}, {"frames_at_once": 3}, {"slow_chunk": 7, "slow_device": "cpu"}):
        model = small_model(**bounds)
        ids_and_video = ids_and_video or {"input_ids": prompt(model), **video(model)}
        logits = model(**ids_and_video).logits
        expected = logits if expected is None else expected
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_video_cannot_join_a_cache() -> None:
    model = small_model()
    ids, seen = prompt(model), video(model)
    cache = model(input_ids=ids, **seen, use_cache=True).past_key_values
    for inputs in ({"input_ids": ids, **seen}, {"input_ids": ids}):
        with pytest.raises(ValueError, match="The cache already holds a prompt"):
            model(**inputs, past_key_values=cache)


def test_a_configuration_without_cache_is_heard() -> None:
    model = small_model()
    ids, seen = prompt(model), video(model)
    expected = answer(model, ids, **seen)
    plain = GenerationConfig(use_cache=False, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert torch.equal(model.generate(input_ids=ids, **seen, generation_config=plain)[:, ids.shape[1] :], expected)
    model.generation_config.use_cache = False
    assert torch.equal(answer(model, ids, **seen), expected)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_a_placeholder_is_never_generated(use_cache: bool) -> None:
    model = small_model()
    ids, seen, placeholder = prompt(model), video(model), model.config.video_token_id
    hidden = []
    handle = model.language_model.lm_head.register_forward_pre_hook(lambda module, args: hidden.append(args[0][0, -1]))
    model(input_ids=ids, **seen)
    handle.remove()
    model.language_model.lm_head.weight[placeholder] = 100 * hidden[0]
    assert model(input_ids=ids, **seen).logits[0, -1].argmax() == placeholder
    assert placeholder not in answer(model, ids, **seen, use_cache=use_cache)


def test_placeholders_outside_the_vocabulary_cannot_be_counted() -> None:
    model = small_model(video_token_id=-200)
    ids, seen = prompt(model), video(model)
    assert answer(model, ids, **seen).shape == (1, NEW)
    with pytest.raises(ValueError, match="repetition_penalty counts the prompt's tokens, of which video_token_id -200"):
        answer(model, ids, **seen, repetition_penalty=1.3)
    inside = small_model()
    assert answer(inside, prompt(inside), **video(inside), repetition_penalty=1.3).shape == (1, NEW)
