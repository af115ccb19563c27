"""DeepSpeed's profiler on real forward passes: its multiply-adds against the closed form, and what it adds."""

import pytest
import torch
from small_models import CHOICES, small_model
from torch import nn
from torch.nn import functional as F

from architectures.cost import prefill_cost
from harness.profilers.deepspeed_count import deepspeed_prefill, profiled

FRAMES = 20


@pytest.mark.parametrize("text_tokens", [7, 40])  # few readers attend by plain products, many by the fused kernel
@pytest.mark.parametrize("architecture", ["self_attention", "slow_fast"])
def test_its_multiply_adds_are_the_closed_form_stage_by_stage(architecture: str, text_tokens: int) -> None:
    model = small_model(f"architecture={architecture}")
    for every_logit in (False, True):
        count = deepspeed_prefill(model, FRAMES, text_tokens, every_logit)
        assert count.stages == prefill_cost(model.config, FRAMES, text_tokens, every_logit).stages()


@pytest.mark.parametrize(
    "choice", [f"{group}={name}" for group in ("architecture", "fusion") for name in CHOICES[group]]
)
def test_its_multiply_adds_are_the_closed_form_of_the_whole_model(choice: str) -> None:
    model = small_model(choice)
    assert sum(deepspeed_prefill(model, FRAMES, 9).stages.values()) == prefill_cost(model.config, FRAMES, 9).model


@pytest.mark.parametrize("compressor", ["similarity_merging", "token_merging"])
def test_what_merging_costs_does_not_depend_on_what_is_merged(compressor: str) -> None:
    """The closed form holds on data too, not only on the meta device."""
    model = small_model(f"compressor={compressor}", compressor={"name": compressor, "fast_frames": 3})
    assert deepspeed_prefill(model, FRAMES, 9).stages == prefill_cost(model.config, FRAMES, 9).stages()


def test_an_einsum_has_no_multiply_adds_for_it() -> None:
    model = small_model("selector=question_match")
    stages, cost = deepspeed_prefill(model, FRAMES, 9).stages, prefill_cost(model.config, FRAMES, 9)
    P, D = model.selector.cheap.encoder.grid[0] ** 2, model.selector.place.out_features
    assert cost.vision - stages.pop("vision") == 2 * FRAMES * P * D
    assert stages == {stage: flop for stage, flop in cost.stages().items() if stage in stages}


@pytest.mark.parametrize("architecture", ["self_attention", "slow_fast"])
def test_what_its_flops_have_on_top_is_known(architecture: str) -> None:
    """One for each number that passes an activation, the pooling, or a convolution's bias; no norm, no residual."""
    model = small_model(f"architecture={architecture}")
    cost, config, encoder = prefill_cost(model.config, FRAMES, 9), model.config, model.encoder
    text, P = config.text_config, encoder.grid[0] * encoder.grid[1]
    convolved = [(16 * P, 16), (4 * P, 32), (P, 64)]  # pixels, channels of `edges`, `strokes`, `shapes`
    biases = sum(pixels * channels for pixels, channels in convolved) + P * encoder.width
    activations = sum(pixels * channels for pixels, channels in convolved)
    projected = P * text.hidden_size  # once by the projector's GELU, once by the pooling behind it
    L = cost.fast_tokens + cost.text_tokens
    expected = FRAMES * (biases + activations + 2 * projected) + text.num_hidden_layers * L * text.intermediate_size
    assert deepspeed_prefill(model, FRAMES, 9).beyond == expected


class Failing(nn.Module):
    """Two linear maps, of which the second is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        raise OverflowError(str(self.first(numbers).sum()))


def test_torch_is_as_before_even_after_an_error() -> None:
    names = {F: ("linear", "gelu", "scaled_dot_product_attention"), torch: ("matmul", "einsum", "bmm")}
    before = {name: getattr(place, name) for place, each in names.items() for name in each}
    model = Failing()
    with pytest.raises(OverflowError), profiled(model):
        model(torch.ones(2, 3))
    assert {name: getattr(place, name) for place, each in names.items() for name in each} == before
    assert not any(hasattr(module, "__macs__") or module._forward_hooks for module in model.modules())
    with profiled(model) as profiler:
        model.first(torch.ones(2, 3))
        assert profiler.get_total_macs() == 2 * 3 * 5
