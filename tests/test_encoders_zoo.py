"""SigLIP and SigLIP 2: the numbers of transformers' own towers, from the same weights; cost; options."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

from architectures.encoders import ENCODERS, Encoder

SIZES = {"depth": 3, "width": 24, "heads": 4, "mlp_width": 40}
FIXED = {**SIZES, "image_size": 23, "patch_size": 6}  # 3 x 3 patches, 5 pixels over
NAFLEX = {**SIZES, "image_size": 20, "patch_size": 4, "position_rows": 4}  # 5 x 5 patches from 4 x 4 positions
TINY = {"siglip": FIXED, "siglip2": FIXED, "siglip2_naflex": NAFLEX}
T = 3


def hf_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """The same sizes in transformers' words."""
    return {
        "hidden_size": sizes["width"],
        "intermediate_size": sizes["mlp_width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["heads"],
        "patch_size": sizes["patch_size"],
    }


def bare(name: str) -> torch.nn.Module:
    """transformers' own tower, head included, its weights large enough for every part to matter."""
    torch.manual_seed(0)
    if name == "siglip2_naflex":
        config = Siglip2VisionConfig(num_patches=NAFLEX["position_rows"] ** 2, **hf_sizes(NAFLEX))
        tower = Siglip2VisionModel(config)
    else:
        tower = SiglipVisionModel(SiglipVisionConfig(image_size=FIXED["image_size"], **hf_sizes(FIXED)))
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower.eval()


def loaded(name: str, **options: int | bool) -> Encoder:
    """Our encoder with that tower's weights."""
    encoder = ENCODERS.build({"name": name, **TINY[name], **options}).eval()
    encoder.load_tower_(bare(name).state_dict())
    return encoder


def frames(name: str) -> torch.Tensor:
    size = TINY[name]["image_size"]
    return torch.randn(2, T, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def hidden_states(name: str, images_NCHW: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """What transformers' tower gives: all hidden states, and the last one behind its norm."""
    inputs = {"pixel_values": images_NCHW}
    if name == "siglip2_naflex":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        side, rows = NAFLEX["patch_size"], NAFLEX["image_size"] // NAFLEX["patch_size"]
        patches = [convert_image_to_patches(image, side) for image in images_NCHW]
        inputs = {
            "pixel_values": torch.stack(patches),
            "pixel_attention_mask": torch.ones(len(patches), rows * rows),
            "spatial_shapes": torch.tensor([[rows, rows]] * len(patches)),
        }
    outputs = bare(name)(**inputs, output_hidden_states=True)
    return outputs.hidden_states, outputs.last_hidden_state


@pytest.mark.parametrize("name", TINY)
def test_features_are_those_of_transformers_from_the_same_weights(name: str) -> None:
    encoder, frames_BTCHW = loaded(name), frames(name)
    with torch.no_grad():
        features_BTPV = encoder(frames_BTCHW)
    expected_NPV = hidden_states(name, frames_BTCHW.flatten(0, 1))[1]
    assert encoder.grid[0] * encoder.grid[1] == expected_NPV.shape[1]
    assert encoder.width == expected_NPV.shape[2]
    torch.testing.assert_close(features_BTPV.flatten(0, 1), expected_NPV, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("layer", [0, 2, -1, -2, -4])
def test_a_layer_is_named_as_in_transformers(name: str, layer: int) -> None:
    encoder, frames_BTCHW = loaded(name, select_layer=layer, final_norm=False), frames(name)
    with torch.no_grad():
        features_NPV = encoder(frames_BTCHW).flatten(0, 1)
    expected_NPV = hidden_states(name, frames_BTCHW.flatten(0, 1))[0][layer]
    torch.testing.assert_close(features_NPV, expected_NPV, atol=1e-5, rtol=1e-5)
    unused = [key for key in encoder.state_dict() if key.startswith("tower.post_layernorm")]
    assert unused == []
    assert len(encoder.tower.encoder.layers) == (layer if layer >= 0 else SIZES["depth"] + 1 + layer)


@pytest.mark.parametrize("name", TINY)
def test_patches_go_by_rows_from_the_upper_left(name: str) -> None:
    """What changes when one patch's pixels change, seen before any attention."""
    encoder = loaded(name, select_layer=0, final_norm=False)
    side, (rows, columns) = encoder.patch_size, encoder.grid
    plain = torch.zeros(1, 3, encoder.image_size, encoder.image_size)
    for row, column in [(0, 0), (0, columns - 1), (1, 2), (rows - 1, 0)]:
        marked = plain.clone()
        marked[..., row * side : (row + 1) * side, column * side : (column + 1) * side] = 1
        with torch.no_grad():
            changed_P = (encoder.encode(marked) - encoder.encode(plain))[0].abs().sum(-1) > 1e-4
        assert changed_P.nonzero().flatten().tolist() == [row * columns + column]


@pytest.mark.parametrize("name", TINY)
def test_every_weight_gets_a_gradient(name: str) -> None:
    encoder = loaded(name)
    encoder(frames(name)).square().sum().backward()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None, key
        if not key.endswith("k_proj.bias"):  # shifts every score of a query alike
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", TINY)
def test_one_frame_is_seen_as_among_others(name: str) -> None:
    encoder, frames_BTCHW = loaded(name), frames(name)
    with torch.no_grad():
        together, alone = encoder(frames_BTCHW), encoder(frames_BTCHW[1:, 2:])
    torch.testing.assert_close(alone, together[1:, 2:], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- cost


def counted(encoder: Encoder) -> int:
    """FLOPs of one frame as torch counts them."""
    size = encoder.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.encode(torch.empty(1, 3, size, size, device=encoder.tower.device))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "options", [{}, {"select_layer": -2, "final_norm": False}, {"patch_size": 5, "image_size": 15}]
)
def test_the_closed_form_is_what_torch_counts(name: str, options: dict) -> None:
    encoder = ENCODERS.build({"name": name, **TINY[name], **options})
    assert encoder.flops_per_frame() == counted(encoder)


@pytest.mark.parametrize("name", TINY)
def test_at_full_size_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        encoder = ENCODERS.build({"name": name})
        features_BTPV = encoder(torch.empty(1, 2, 3, 384, 384))
    rows = 24 if name == "siglip2_naflex" else 27
    assert features_BTPV.shape == (1, 2, rows * rows, 1152)
    assert encoder.flops_per_frame() == counted(encoder)


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_so400m_at_384_pixels_costs_what_was_counted_of_timms(name: str) -> None:
    with torch.device("meta"):
        encoder = ENCODERS.build({"name": name})
    assert encoder.flops_per_frame() / 1e12 == pytest.approx(0.666, abs=5e-4)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == so400m_parameters()


def so400m_parameters() -> int:
    """By hand: patches and positions, 27 layers (attention, MLP, two norms), the last norm."""
    V, M, P = 1152, 4304, 27 * 27
    layer = 4 * (V * V + V) + (V * M + M) + (M * V + V) + 2 * 2 * V
    return (3 * 14 * 14 * V + V) + P * V + 27 * layer + 2 * V


# ------------------------------------------------------------------------------------------------- mistakes


def test_a_whole_models_checkpoint_loads_as_its_tower_does() -> None:
    state = {f"vision_model.{name}": tensor for name, tensor in bare("siglip").state_dict().items()}
    encoder = ENCODERS.build({"name": "siglip", **FIXED})
    encoder.load_tower_({**state, "text_model.embeddings.token_embedding.weight": torch.ones(2), "logit_scale": 1})
    for key, tensor in loaded("siglip").state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[key]), key


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"depth": 4}, "encoder.layers.3."),
        ({"mlp_width": 41}, "encoder.layers.0.mlp"),
        ({"depth": 2}, "encoder.layers.2"),
    ],
)
def test_a_checkpoint_of_other_sizes_is_refused(options: dict, first: str) -> None:
    encoder = ENCODERS.build({"name": "siglip", **FIXED, **options})
    with pytest.raises(ValueError, match=f"does not fit these sizes.*'{first}"):
        encoder.load_tower_(bare("siglip").state_dict())


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("siglip", {"select_layer": 4}, "select_layer is 4, must lie between -4 and 3"),
        ("siglip", {"select_layer": -5}, "select_layer is -5, must lie between -4 and 3"),
        ("siglip2", {"select_layer": -2}, "encoder 'siglip2': final_norm belongs behind the last layer"),
        ("siglip", {"heads": 5}, "depth is 3, width 24, heads 5"),
        ("siglip", {"patch_size": 24}, "patch_size is 24, must lie between 1 and image_size 23"),
        ("siglip2_naflex", {"image_size": 21}, "image_size is 21, must be a multiple of patch_size 4"),
        ("siglip2_naflex", {"position_rows": 0}, "position_rows is 0, must be at least 1"),
        ("siglip", {"position_rows": 4}, "encoder 'siglip' has no option 'position_rows'"),
    ],
)
def test_an_option_that_cannot_be_is_a_sentence(name: str, options: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ENCODERS.build({"name": name, **TINY[name], **options})


@pytest.mark.parametrize("name", TINY)
def test_frames_are_normalised_to_minus_one_to_one(name: str) -> None:
    encoder = ENCODERS.build({"name": name, **TINY[name]})
    assert encoder.image_mean == encoder.image_std == (0.5, 0.5, 0.5)
