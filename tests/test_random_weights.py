"""Models of random weights: shared, finite in every type, and the same model as one built in the ordinary way."""

import pytest
import torch
from small_models import CHOICES, small_config

from architectures import SlowFastForConditionalGeneration
from harness.compose import compose
from harness.models import model_config
from harness.profilers.random_weights import RandomWeights
from harness.profilers.workload import Workload

FRAMES, TEXT_TOKENS = 20, 7


@torch.no_grad()
def logits_of(model: SlowFastForConditionalGeneration, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits of every position of one video and text, the same for every model."""
    generator = torch.Generator().manual_seed(3)
    size, token = model.encoder.image_size, model.config.video_token_id
    frames_BTCHW = torch.randn(1, FRAMES, 3, size, size, generator=generator).to(dtype)
    video = torch.full((1, model.fast_token_count(FRAMES)), token)
    text = (torch.arange(TEXT_TOKENS)[None] + token + 1) % model.config.text_config.vocab_size
    return model(torch.cat([video, text], dim=1), frames=frames_BTCHW).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", CHOICES["architecture"])
def test_logits_are_finite_in_every_type(architecture: str, dtype: torch.dtype) -> None:
    logits = logits_of(RandomWeights("cpu", dtype).model(small_config(f"architecture={architecture}")), dtype)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert logits.float().std() > 0.01


def test_models_share_what_they_both_have() -> None:
    weights = RandomWeights("cpu", torch.bfloat16)
    baseline = weights.model(small_config("architecture=self_attention"))
    before = weights.nbytes
    hybrid = weights.model(small_config("architecture=slow_fast"))
    theirs = dict(baseline.named_parameters())
    own = 0
    for name, parameter in hybrid.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            assert parameter.data_ptr() == theirs[name].data_ptr(), name
        else:
            own += parameter.nbytes
    assert weights.nbytes - before == own
    assert 0 < own < before / 2


def test_ties_are_kept() -> None:
    model = RandomWeights("cpu", torch.float32).model(small_config())
    assert model.config.text_config.tie_word_embeddings
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight


def test_weights_do_not_depend_on_the_order_of_models() -> None:
    first, second = RandomWeights("cpu", torch.float32, seed=5), RandomWeights("cpu", torch.float32, seed=5)
    second.model(small_config("architecture=self_attention"))
    one, other = (weights.model(small_config()).state_dict() for weights in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)
    third = RandomWeights("cpu", torch.float32, seed=6).model(small_config()).state_dict()
    assert not torch.equal(one["projector.0.weight"], third["projector.0.weight"])


@pytest.mark.parametrize("encoder", ["tiny", "siglip"])
def test_it_is_the_model_that_is_built_in_the_ordinary_way(encoder: str) -> None:
    small = {"name": "siglip", "image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
    config = small_config() if encoder == "tiny" else small_config(vision=small)
    model = RandomWeights("cpu", torch.float32).model(config)
    ordinary = SlowFastForConditionalGeneration(config).eval()
    ordinary.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(model), logits_of(ordinary))


def test_every_part_matters() -> None:
    model = RandomWeights("cpu", torch.float32).model(small_config())
    before = logits_of(model)
    model.close_gates_()
    assert not torch.allclose(before, logits_of(model), atol=1e-3)


def test_rotary_tables_stay_float32_and_saved_buffers_take_the_type(tmp_path) -> None:
    model = RandomWeights("cpu", torch.bfloat16).model(small_config())
    model.save_pretrained(tmp_path)
    loaded = SlowFastForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    theirs = {name: buffer.dtype for name, buffer in loaded.named_buffers()}
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == theirs
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(logits_of(model, torch.bfloat16), logits_of(loaded, torch.bfloat16))


def test_7b_has_the_parameters_of_the_released_model_and_takes_no_memory() -> None:
    weights = RandomWeights("meta", torch.bfloat16)
    weights.model(model_config(compose(["scale=paper", "encoder=tiny", "architecture=self_attention"])))
    assert weights.nbytes / 2 == pytest.approx(7.6e9, rel=0.02)  # Qwen2-7B: 7.6 billion


def test_a_workload_computes_what_the_model_does() -> None:
    model = RandomWeights("cpu", torch.float32).model(small_config())
    workload = Workload(model, FRAMES, TEXT_TOKENS, 3)
    with torch.no_grad():
        frames_BTCHW = workload.random_frames()
        tokens = workload.tokens_of(workload.encode(frames_BTCHW))
        cache, memory, readers = workload.remember(tokens)
        first = workload.first_token(workload.decoder(tokens, cache, memory, readers))
        ids = [first, *(first := workload.next_token(first, cache) for _ in range(3))]
        video = torch.full((1, len(tokens.fast_FD)), model.config.video_token_id)
        prompt = torch.cat([video, torch.zeros(1, TEXT_TOKENS, dtype=torch.long)], dim=1)
        expected = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), frames=frames_BTCHW, max_new_tokens=4, do_sample=False
        )
    assert torch.cat(ids, dim=1).tolist() == expected[:, -4:].tolist()


@pytest.mark.parametrize("selector", [name for name in CHOICES["selector"] if name != "all"])
def test_a_workload_chooses_frames(selector: str) -> None:
    config = small_config(f"selector={selector}", selector={**small_config(f"selector={selector}").selector, "keep": 6})
    workload = Workload(RandomWeights("cpu", torch.float32).model(config), FRAMES, TEXT_TOKENS, 1)
    assert workload.chooses
    with torch.no_grad():
        assert workload.encode(workload.random_frames()).shape[1] == 6
