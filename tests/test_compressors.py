"""Every compressor against a slow truth in plain loops, the official one against recorded tables and tokens."""

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_compressors import built, mean, random_tokens
from torch.utils.flop_counter import FlopCounterMode

from architectures.compressors import COMPRESSORS, Compressor

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "reference" / "golden"
CONF = ROOT / "harness" / "conf"
TABLES = json.loads((GOLDEN / "fast_frame_tables.json").read_text())
ONE_VIDEO = sorted(GOLDEN.glob("d0*.json")) + sorted(GOLDEN.glob("d1[0-2]*.json"))
SIZES = [(1, 1, 1), (1, 3, 5), (2, 1, 1), (3, 2, 2), (17, 3, 2), (40, 1, 2)]
OTHER_OPTIONS = [
    {"name": "adaptive_average", "fast_frames": 3, "grid": 2},
    {"name": "strided_sampling", "stride": 3},
    {"name": "temporal_average", "window": 3},
    {"name": "spatial_average", "stride": 3},
    {"name": "official", "sample_stride": 2, "average_stride": 3, "space_stride": 2, "min_fast_frames": 2},
    {"name": "perceiver_resampler", "latents": 5, "depth": 2, "heads": 3, "head_dim": 5, "time_slots": 2},
    {"name": "spatio_temporal_convolution", "time_stride": 4, "space_stride": 1, "depth": 1, "readout_depth": 1},
    {"name": "spatio_temporal_convolution", "time_stride": 1, "space_stride": 3, "depth": 2, "readout_depth": 3},
    {"name": "token_merging", "tokens": 7},
    {"name": "token_merging", "fast_frames": 2},
    {"name": "similarity_merging", "fast_frames": 5},
    {"name": "two_stream", "slow_frames": 3, "slow_pooling": 2, "fast_pooling": 3},
    {"name": "slow_and_faster", "stride": 4, "slow_pooling": 2, "faster_pooling": 5},
]
SPECS = [*({"name": name} for name in sorted(COMPRESSORS)), *OTHER_OPTIONS]


# ------------------------------------------------------------------------------------------ what all share


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shape_gradient_and_independent_rows_at_any_size(spec: dict) -> None:
    compressor = built(**spec)
    for T, H, W in SIZES:
        tokens_BTHWD = random_tokens(3, T, H, W).requires_grad_()
        fast_BFD = compressor(tokens_BTHWD)
        assert fast_BFD.shape == (3, compressor.n_tokens(T, H, W), 6)
        assert fast_BFD.shape[1] >= 1
        (fast_BFD[1] * random_tokens(1, 1, 1, *fast_BFD.shape[1:], seed=2)[0, 0, 0]).sum().backward()
        assert tokens_BTHWD.grad[1].isfinite().all()
        assert tokens_BTHWD.grad[1].abs().sum() > 0
        assert tokens_BTHWD.grad[[0, 2]].abs().sum() == 0, "a row takes part in another's fast tokens"
        for row in range(3):
            torch.testing.assert_close(compressor(tokens_BTHWD[row : row + 1])[0], fast_BFD[row])


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_every_weight_gets_a_gradient(name: str) -> None:
    compressor = built(width=8, name=name)
    fast_BFD = compressor(random_tokens(2, 20, 3, 3, 8))
    parameters = list(compressor.named_parameters())
    if not parameters:
        return
    (fast_BFD * torch.randn(fast_BFD.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    assert {key for key, weight in parameters if weight.grad is None or weight.grad.abs().sum() == 0} == set()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_closed_form_is_what_torch_counts(spec: dict, device: str) -> None:
    compressor = built(**spec).to(device)
    for T, H, W in [(1, 1, 1), (18, 3, 2), (21, 5, 3)]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            fast_BFD = compressor(torch.zeros(1, T, H, W, 6, device=device) + 1)
        assert compressor.flops(T, H, W) == counter.get_total_flops()
        assert compressor.n_tokens(T, H, W) == fast_BFD.shape[1]


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_half_precision_goes_in_and_out(name: str) -> None:
    compressor, tokens_BTHWD = built(name=name), random_tokens(1, 20, 3, 3)
    fast_BFD = compressor.to(torch.bfloat16)(tokens_BTHWD.bfloat16())
    assert fast_BFD.dtype == torch.bfloat16
    assert fast_BFD.isfinite().all()


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_the_yaml_lists_every_option_with_its_default(name: str) -> None:
    settings = yaml.safe_load((CONF / "compressor" / f"{name}.yaml").read_text())
    parameters = inspect.signature(COMPRESSORS[name]).parameters
    assert settings == {"name": name} | {key: each.default for key, each in parameters.items() if key != "width"}


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_option_below_one_or_no_whole_number_is_refused(spec: dict) -> None:
    if spec["name"] == "sample_and_average":
        return  # has errors of its own, tested with the architectures
    for option in set(inspect.signature(COMPRESSORS[spec["name"]]).parameters) - {"width"}:
        with pytest.raises(ValueError, match=f"^compressor '{spec['name']}': {option} is 0, must be at least 1"):
            built(**spec | {option: 0})
        with pytest.raises(ValueError, match=f"{option} is 1.5, must be a whole number"):
            built(**spec | {option: 1.5})


@pytest.mark.parametrize("name", ["two_stream", "slow_and_faster"])
def test_a_rival_is_its_compressor_without_a_slow_path(name: str) -> None:
    settings = yaml.safe_load((CONF / "architecture" / f"{name}.yaml").read_text())
    assert settings["defaults"] == [{"override /compressor": name}, {"override /placement": "none"}]
    assert settings["architecture"]["name"] == name


# ------------------------------------------------------------------------------------------ the official rules


def official(entry: dict[str, int]) -> Compressor:
    """The compressor that a row of the temporal table speaks of."""
    return built(
        name="official",
        sample_stride=entry["sampling_stride"],
        average_stride=entry["temporal_stride"],
        min_fast_frames=entry["min_fast_frames"],
    )


def weights(pooling: list[dict[str, float]], inputs: int) -> torch.Tensor:
    """A table's rows {input: weight} as a matrix of outputs by inputs."""
    matrix = torch.zeros(len(pooling), inputs)
    for row, entries in zip(matrix, pooling, strict=True):
        for index, weight in entries.items():
            row[int(index)] = weight
    return matrix


def test_the_official_frames_are_the_recorded_ones() -> None:
    for entry in TABLES["temporal"]:
        T, compressor = entry["T"], official(entry)
        assert compressor.sampled(T) == entry["sampled_indices"], entry
        assert compressor.n_tokens(T, 1, 1) == compressor.n_fast_frames(T) == entry["n_fast_frames"], entry
        one_hot_BTHWD = torch.eye(T)[None, :, None, None]
        torch.testing.assert_close(
            compressor(one_hot_BTHWD)[0], weights(entry["pooling"], T), rtol=0, atol=1e-7, msg=str(entry)
        )
    assert len(TABLES["temporal"]) == 147


def test_the_official_grids_are_the_recorded_ones() -> None:
    for entry in TABLES["spatial"]:
        side, compressor = entry["slow_grid"], built(name="official", space_stride=entry["spatial_stride"])
        assert compressor.n_tokens(1, side, side) == entry["fast_tokens_per_frame"]
        one_hot_BTHWD = torch.eye(side * side).view(1, 1, side, side, -1)
        torch.testing.assert_close(
            compressor(one_hot_BTHWD)[0], weights(entry["pooling"], side * side), rtol=0, atol=1e-7
        )
    assert len(TABLES["spatial"]) == 5


@pytest.mark.parametrize("case", ONE_VIDEO, ids=lambda path: path.stem)
def test_the_official_fast_tokens_are_the_recorded_ones(case: Path) -> None:
    recorded = json.loads(case.read_text())
    config, tensors = recorded["config"], load_file(case.with_suffix(".safetensors"))
    compressor = built(
        name="official",
        sample_stride=config["fast_token_temporal_sampling_stride"],
        average_stride=config["fast_token_temporal_stride"],
        space_stride=config["fast_token_spatial_stride"],
        min_fast_frames=config["min_fast_frames"],
    )
    T, slow_SD = recorded["frames"][0], tensors["outputs.slow_tokens.0"]
    side = math.isqrt(len(slow_SD) // T)
    fast_BFD = compressor(slow_SD.view(1, T, side, side, -1))
    torch.testing.assert_close(fast_BFD[0], tensors["outputs.fast_tokens.0"], rtol=0, atol=2e-5)


def test_the_recorded_cases_are_there() -> None:
    assert len(ONE_VIDEO) == 12


# ------------------------------------------------------------------------------------------ choices and averages


def window(frame_HWD: torch.Tensor, rows: range, columns: range) -> torch.Tensor:
    """The average of a rectangle of a frame."""
    return mean([frame_HWD[row, column] for row in rows for column in columns])


def by_windows(frame_HWD: torch.Tensor, stride: int) -> list[torch.Tensor]:
    """Tokens of a frame in windows of `stride`; a shorter side is one window."""
    H, W, _ = frame_HWD.shape
    p, q = min(stride, H), min(stride, W)
    return [
        window(frame_HWD, range(i * p, i * p + p), range(j * q, j * q + q))
        for i in range(H // p)
        for j in range(W // q)
    ]


def parts(size: int, count: int) -> list[range]:
    """`count` windows that cover `size` places, as adaptive pooling lays them."""
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def adaptively(frame_HWD: torch.Tensor, rows: int, columns: int) -> list[torch.Tensor]:
    """Tokens of a frame, averaged to rows x columns."""
    H, W, _ = frame_HWD.shape
    return [window(frame_HWD, i, j) for i in parts(H, rows) for j in parts(W, columns)]


def strided(frames: torch.Tensor) -> list[torch.Tensor]:
    return [token for frame in frames[::3] for token in frame.flatten(0, 1)]


def windows_of_three(frames: torch.Tensor) -> list[torch.Tensor]:
    chunks = [list(frames[start : start + 3]) for start in range(0, len(frames), 3)]
    return [token for chunk in chunks for token in mean(chunk).flatten(0, 1)]


def space_by_two(frames: torch.Tensor) -> list[torch.Tensor]:
    return [token for frame in frames for token in by_windows(frame, 2)]


def three_frames_of_two_by_two(frames: torch.Tensor) -> list[torch.Tensor]:
    T, H, W, _ = frames.shape
    pooled = [mean(list(frames[part.start : part.stop])) for part in parts(T, min(T, 3))]
    return [token for frame in pooled for token in adaptively(frame, min(2, H), min(2, W))]


def detail_then_all(frames: torch.Tensor) -> list[torch.Tensor]:
    T, H, W, _ = frames.shape
    n = min(T, 4)
    middles = [math.floor((i + 0.5) * T / n) for i in range(n)]
    detailed = [token for t in middles for token in by_windows(frames[t], 2)]
    return detailed + [token for frame in frames for token in adaptively(frame, max(1, H // 3), max(1, W // 3))]


def every_fourth_in_detail(frames: torch.Tensor) -> list[torch.Tensor]:
    return [token for t, frame in enumerate(frames) for token in by_windows(frame, 1 if t % 4 == 0 else 2)]


PLAIN_LOOPS = [
    ({"name": "strided_sampling", "stride": 3}, strided),
    ({"name": "temporal_average", "window": 3}, windows_of_three),
    ({"name": "spatial_average", "stride": 2}, space_by_two),
    ({"name": "adaptive_average", "fast_frames": 3, "grid": 2}, three_frames_of_two_by_two),
    ({"name": "two_stream", "slow_frames": 4, "slow_pooling": 2, "fast_pooling": 3}, detail_then_all),
    ({"name": "slow_and_faster", "stride": 4, "faster_pooling": 2}, every_fourth_in_detail),
]


@pytest.mark.parametrize(("spec", "loop"), PLAIN_LOOPS, ids=lambda each: getattr(each, "__name__", each))
def test_an_average_is_its_plain_loop(spec: dict, loop: Callable) -> None:
    compressor = built(**spec)
    for T, H, W in [(T, 5, 3) for T in range(1, 14)] + [(9, 1, 1), (6, 7, 6), (5, 1, 4)]:
        tokens_BTHWD = random_tokens(1, T, H, W)
        torch.testing.assert_close(compressor(tokens_BTHWD)[0], torch.stack(loop(tokens_BTHWD[0])))


@pytest.mark.parametrize(
    ("T", "frames"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (8, [1, 3, 5, 7]), (13, [1, 4, 8, 11])]
)
def test_uniform_samples_are_the_middles_of_equal_parts(T: int, frames: list[int]) -> None:
    assert built(name="strided_sampling", fast_frames=4).sampled(T) == frames


def test_without_a_window_the_temporal_average_leaves_as_many_frames_as_fit() -> None:
    compressor = built(name="temporal_average", fast_frames=16)
    left = {T: compressor.n_tokens(T, 1, 1) for T in (1, 15, 16, 17, 32, 64, 128, 1536)}
    assert left == {1: 1, 15: 15, 16: 16, 17: 9, 32: 16, 64: 16, 128: 16, 1536: 16}
