"""Answers: the cache against recomputation, batches against single samples, and who reads the slow tokens."""

from typing import Any

import pytest
import torch
from small_models import prompt, small_model, tokenizer, video
from transformers import DynamicCache

from architectures import SlowFastForConditionalGeneration
from architectures.cross_attention import CrossAttention
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
    project = CrossAttention.keys_values
    monkeypatch.setattr(CrossAttention, "keys_values", lambda self, slow: (calls.append(self), project(self, slow))[1])
    answer(model, prompt(model).expand(2, -1), **video(model, batch=2))
    assert [id(call) for call in calls] == [id(cross) for _, cross in model.cross_attentions()]


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
