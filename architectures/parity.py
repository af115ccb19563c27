"""Parity with the official implementation, on data recorded from it: what differs, by how much, and what may.

    python -m architectures.parity tests/reference/golden

The directory's README says how the data was recorded (SHI-Labs repository, commit 69676a1) and how far two
float32 implementations can agree. Every recorded quantity of every case is compared; a tensor that is not
compared and a case that cannot run are failures.
"""

import argparse
import json
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from architectures.compressors import COMPRESSORS
from architectures.encoders import ENCODERS
from architectures.official_names import TOWER, name_from_official, tower_options
from architectures.parity_case import CaseReport, largest, run_case
from architectures.processing import SlowFastVideoProcessor

DECODER_CASES = tuple(f"d{number:02}" for number in range(1, 25))
TOWER_CASE, PREPROCESS, TABLES = "v01_convnext_tiny", "preprocess_576", "fast_frame_tables"
# Samples have six decimals, means and spreads seven. One of 255 levels is 0.014 to 0.015, and 2e-6 of a mean are 45
# of a frame's 331,776 pixels off by one level.
PIXEL_LIMIT = 2e-6
WEIGHT_LIMIT = 1e-6  # of pooling weights, recorded as float32

COLUMNS = {  # of the table: recorded quantities, by the beginning of their names
    "fast": ("outputs.fast_tokens",),
    "slow": ("outputs.slow_tokens", "outputs.slow_mask"),
    "embeds": ("outputs.inputs_embeds",),
    "layers": ("outputs.layer.",),
    "norm": ("outputs.final_norm",),
    "logits": ("outputs.logits",),
    "loss": ("outputs.loss",),
    "layout": ("outputs.token_types", "outputs.attention_mask", "outputs.labels", "hybrid_layers", "kv_init"),
    "places": ("outputs.position_ids", "outputs.generate_prefill", "outputs.generate_decode"),
    "ids": ("outputs.generate_ids", "alt.recompute_generate_ids"),
    "decode": ("outputs.generate_logits", "alt.recompute_generate_logits"),
}


def check(directory: str | Path, only: Collection[str] | None = None) -> list[CaseReport]:
    """Runs every case of a directory (or those whose names begin with one of `only`) and reports on each.

    A case that is expected but has no files, or whose files cannot be read or run, is reported with its
    problem, never left out.
    """
    directory = Path(directory)
    named = {path.stem.split("_")[0]: path.stem for path in sorted(directory.glob("d[0-9]*.json"))}
    decoder_cases = [named.get(short, short) for short in sorted({*DECODER_CASES, *named})]
    runs = dict.fromkeys(decoder_cases, run_case)
    runs |= {TOWER_CASE: run_tower, PREPROCESS: run_preprocessing, TABLES: run_tables}
    wanted = [name for name in runs if only is None or name.startswith(tuple(only))]
    return [attempt(runs[name], directory, name) for name in wanted]


def attempt(run: Any, directory: Path, name: str) -> CaseReport:
    """A case's report, which says so if it could not run or left a recorded tensor uncompared."""
    try:
        report = run(directory, name)
        missed = [key for key in recorded_keys(directory, name) if key not in report.differences]
    except Exception as problem:  # noqa: BLE001 - whatever a damaged case raises is its report, and fails the run
        return CaseReport(name, problem=f"not run: {type(problem).__name__}: {problem}")
    if missed:
        report.problem = f"not compared: {', '.join(missed)}"
    return report


def recorded_keys(directory: Path, name: str) -> list[str]:
    """The names of the tensors that a case recorded from the official implementation."""
    about = json.loads((directory / f"{name}.json").read_text())
    if "tensors" not in about:
        return []
    keys = {*load_file(directory / about["tensors"]), *about["tensors_index"]}
    return sorted(key for key in keys if key.startswith(("outputs.", "alt.")))


# ------------------------------------------------------------------------------------ cases without a decoder


def run_tower(directory: Path, name: str) -> CaseReport:
    """A small ConvNeXt with the official tower's names: every stage, and the features."""
    report, recorded = CaseReport(name), load_file(directory / f"{name}.safetensors")
    weights = {key.removeprefix("weights."): tensor for key, tensor in recorded.items() if key.startswith("weights.")}
    pixels_BCHW = recorded["inputs.pixel_values"]
    shapes = {key.removeprefix(TOWER): tuple(tensor.shape) for key, tensor in weights.items()}
    spec = {"name": "convnext_xxlarge", "image_size": pixels_BCHW.shape[-1], **tower_options(shapes)}
    encoder = ENCODERS.build(spec).eval()
    encoder.load_state_dict({name_from_official(key).removeprefix("encoder."): w for key, w in weights.items()})
    stages: list[torch.Tensor] = []
    for stage in encoder.stages:
        stage.register_forward_hook(lambda module, inputs, map_NVHW: stages.append(map_NVHW.flatten(2).mT))
    with torch.no_grad():
        features_BPV = encoder(pixels_BCHW[None])[0]
    report.add("outputs.vision_features", largest(features_BPV, recorded["outputs.vision_features"]))
    for i, stage_BPV in enumerate(stages[:-1]):
        report.add(f"outputs.stage.{i}", largest(stage_BPV, recorded[f"outputs.stage.{i}"]))
    return report


def run_preprocessing(directory: Path, name: str) -> CaseReport:
    """The image processor at 576 pixels, on frames of a formula: sampled pixels, means, spread."""
    report = CaseReport(name)
    encoder = ENCODERS["convnext_xxlarge"]
    for case in json.loads((directory / f"{name}.json").read_text())["cases"]:
        side = case["output_shape"][-1]
        processor = SlowFastVideoProcessor.for_encoder(
            Preprocessed(side, encoder.image_mean, encoder.image_std, encoder.resizing)
        )
        frames_TCHW = formula_frames(case["frames"], case["height"], case["width"])
        seen = processor(videos=[frames_TCHW], return_tensors="pt", input_data_format="channels_first")
        pixels_TCHW = seen["pixel_values_videos"][0].double()
        sampled = pixels_TCHW[:, :, case["sample_rows"]][:, :, :, case["sample_cols"]]
        size = f"{case['height']}x{case['width']}"
        shape = largest(torch.tensor(pixels_TCHW.shape), torch.tensor(case["output_shape"]))
        report.add(f"shape.{size}", shape)
        report.add(f"samples.{size}", largest(sampled, torch.tensor(case["samples"])), PIXEL_LIMIT)
        means = largest(pixels_TCHW.mean((0, 2, 3)), torch.tensor(case["mean_per_channel"]))
        report.add(f"mean.{size}", means, PIXEL_LIMIT)
        report.add(f"std.{size}", abs(float(pixels_TCHW.std(correction=0)) - case["std"]), PIXEL_LIMIT)
    return report


class Preprocessed:
    """What a processor needs to know of an encoder, without its weights."""

    def __init__(self, image_size: int, image_mean: Any, image_std: Any, resizing: str):
        self.image_size, self.image_mean, self.image_std, self.resizing = image_size, image_mean, image_std, resizing


def formula_frames(frames: int, height: int, width: int) -> torch.Tensor:
    """The recorded frames, `uint8 frames_TCHW`: (3x + 5y + 17c + 29k + floor(x y / 64)) mod 256."""
    k, c, y, x = np.ogrid[:frames, :3, :height, :width]
    return torch.from_numpy(((3 * x + 5 * y + 17 * c + 29 * k + x * y // 64) % 256).astype(np.uint8))


def run_tables(directory: Path, name: str) -> CaseReport:
    """Fast frames: which are sampled, and the weight of each in each average, read off one-hot videos."""
    report, tables = CaseReport(name), json.loads((directory / f"{name}.json").read_text())
    for kind in ("temporal", "spatial"):
        if not tables[kind]:
            raise ValueError(f"{name}.json lists no {kind} tables, so nothing would be compared.")
    sampled = counted = weights = 0.0
    for row in tables["temporal"]:
        compressor = official_compressor(row["sampling_stride"], row["temporal_stride"], 1, row["min_fast_frames"])
        T = row["T"]
        ours = compressor(torch.eye(T).view(1, T, 1, 1, T))[0]
        sampled = max(sampled, float(compressor.sampled(T) != row["sampled_indices"]))
        counted = max(counted, abs(compressor.n_tokens(T, 1, 1) - row["n_fast_frames"]))
        weights = max(weights, largest(ours, weights_of(row["pooling"], T)))
    spatial = per_frame = 0.0
    for row in tables["spatial"]:
        side, compressor = row["slow_grid"], official_compressor(1, 1, row["spatial_stride"], 1)
        ours = compressor(torch.eye(side**2).view(1, 1, side, side, side**2))[0]
        per_frame = max(per_frame, abs(compressor.n_tokens(1, side, side) - row["fast_tokens_per_frame"]))
        spatial = max(spatial, largest(ours, weights_of(row["pooling"], side**2)))
    report.add(f"sampled frames ({len(tables['temporal'])} tables)", sampled)
    report.add("number of fast frames", counted)
    report.add("pooling in time", weights, WEIGHT_LIMIT)
    report.add(f"tokens of a frame ({len(tables['spatial'])} tables)", per_frame)
    report.add("pooling in space", spatial, WEIGHT_LIMIT)
    return report


def official_compressor(sample_stride: int, average_stride: int, space_stride: int, min_fast_frames: int) -> Any:
    """The compressor under test."""
    spec = {"sample_stride": sample_stride, "average_stride": average_stride, "space_stride": space_stride}
    return COMPRESSORS.build({"name": "official", **spec, "min_fast_frames": min_fast_frames})


def weights_of(pooling: Iterable[Mapping[str, float]], inputs: int) -> torch.Tensor:
    """A recorded table, output by output the weight of each input, as a matrix."""
    rows = list(pooling)
    matrix = torch.zeros(len(rows), inputs)
    for i, row in enumerate(rows):
        for index, weight in row.items():
            matrix[i, int(index)] = weight
    return matrix


# ---------------------------------------------------------------------------------------------- printing


def worst(report: CaseReport, starts: tuple[str, ...]) -> str:
    """The largest difference of some quantities, with a `!` if one of them is beyond its limit."""
    names = [name for name in report.differences if name.startswith(starts)]
    if not names:
        return "-"
    value = max(report.differences[name] for name in names)
    return f"{value:.0e}".replace("e-0", "e-").replace("0e+00", "0") + "!" * bool({*names} & {*report.misses()})


def show(reports: list[CaseReport]) -> None:
    """The table of the decoder cases, the other cases, and every miss."""
    print(f"{'':3}" + "".join(f"{column:>7}" for column in COLUMNS))
    others = (TOWER_CASE, PREPROCESS, TABLES)
    for report in (report for report in reports if report.name not in others):
        print(f"{report.name[:3]:3}" + "".join(f"{worst(report, starts):>7}" for starts in COLUMNS.values()))
    for report in (report for report in reports if report.name in others):
        print(report.name)
        for quantity, value in report.differences.items():
            print(f"    {quantity:32} {value:8.1e}   limit {report.limits[quantity]:.0e}")
    for report in reports:
        if report.problem:
            print(f"{report.name}: {report.problem}")
        for quantity in report.misses():
            value, limit = report.differences[quantity], report.limits[quantity]
            print(f"{report.name}: {quantity} differs by {value:.2e}, limit {limit:.0e}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 only if every case ran and passed."""
    parser = argparse.ArgumentParser(prog="python -m architectures.parity", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="recorded cases, laid out like tests/reference/golden")
    directory = parser.parse_args(arguments).directory
    started = time.perf_counter()
    reports = check(directory)
    show(reports)
    passed = sum(report.passed for report in reports)
    quantities = sum(len(report.differences) for report in reports)
    print(
        f"{passed} of {len(reports)} cases within tolerance, {quantities} quantities compared, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return 0 if passed == len(reports) else 1


if __name__ == "__main__":
    sys.exit(main())
