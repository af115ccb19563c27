"""Parity with the official implementation on recorded data, and that the check notices when anything is off."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from architectures import parity, parity_case
from architectures.compressors.official import Official
from architectures.fusions.slow_fast import SlowFastFusion
from architectures.gates import ProjectedGate
from architectures.parity import check, formula_frames, main
from architectures.parity_case import CaseReport
from architectures.processing import SlowFastVideoProcessor
from architectures.projectors import pool_space

GOLDEN = Path(__file__).parent / "reference" / "golden"
SMALL, REMAINDER, BOTH_WAYS = "d14_every3_depth1_5", "d07_s1t4_T11_remainder", "d13_B_every8"


@pytest.fixture(scope="module")
def reports() -> list[CaseReport]:
    """Every case, run once."""
    return check(GOLDEN)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Copies one case and its weights to a folder of its own."""

    def copied(name: str) -> Path:
        about = json.loads((GOLDEN / f"{name}.json").read_text())
        for file in (f"{name}.json", about["tensors"], *about["weights"]):
            shutil.copyfile(GOLDEN / file, tmp_path / file)
        return tmp_path

    return copied


def only(directory: Path, name: str) -> CaseReport:
    """The report of one case."""
    (report,) = check(directory, only=[name])
    return report


def change(file: Path, key: str, place: tuple[int, ...] | None = None) -> None:
    """Changes one number of a safetensors file: the last, or that at `place`."""
    tensors = load_file(file)
    flat = tensors[key].view(-1) if place is None else tensors[key][place].view(-1)
    flat[-1] += 1 if not flat.is_floating_point() else 0.01
    save_file(tensors, file)


# --------------------------------------------------------------------------------------------------- parity


def test_every_recorded_case_is_within_tolerance(reports: list[CaseReport]) -> None:
    problems = [f"{report.name}: {report.problem} {report.misses()}" for report in reports if not report.passed]
    assert not problems
    files = {path.stem for path in GOLDEN.glob("*.json")}
    assert {report.name for report in reports} == files
    assert len(files) == 27


def test_every_recorded_tensor_is_compared(reports: list[CaseReport]) -> None:
    for report in reports:
        file = GOLDEN / f"{report.name}.safetensors"
        if file.is_file():
            recorded = {key for key in load_file(file) if key.startswith(("outputs.", "alt."))}
            assert recorded <= report.differences.keys(), report.name


def test_the_command_succeeds_and_its_table_fits_a_terminal(
    reports: list[CaseReport], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(parity, "check", lambda directory: reports)
    assert main([str(GOLDEN)]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for report in reports:
        assert any(line.startswith((report.name, report.name[:3])) for line in printed.splitlines())
    assert "27 of 27 cases within tolerance" in printed


# ------------------------------------------------------------------------------------- what makes it fail


@pytest.mark.parametrize(
    "key",
    [
        "outputs.fast_tokens.0",
        "outputs.slow_tokens.0",
        "outputs.slow_mask",
        "outputs.token_types",
        "outputs.inputs_embeds",
        "outputs.position_ids",
        "outputs.layer.0",
        "outputs.layer.9",
        "outputs.final_norm",
        "outputs.logits",
        "outputs.generate_ids",
        "outputs.generate_logits",
        "outputs.generate_prefill_position_ids",
        "outputs.generate_decode_position_ids",
        "alt.recompute_generate_ids",
        "alt.recompute_generate_logits",
    ],
)
def test_one_changed_number_of_a_recording_is_a_miss(copy: Callable[[str], Path], key: str) -> None:
    directory = copy(BOTH_WAYS)
    change(directory / f"{BOTH_WAYS}.safetensors", key)
    assert only(directory, BOTH_WAYS).misses() == [key]


@pytest.mark.parametrize("key", ["outputs.loss", "outputs.labels"])
def test_one_changed_number_of_a_recorded_training_step_is_a_miss(copy: Callable[[str], Path], key: str) -> None:
    directory = copy("d23_multiturn_labels")
    change(directory / "d23_multiturn_labels.safetensors", key)
    assert only(directory, "d23").misses() == [key]


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("weights_A_cross_every3_d1_5", "weights.model.layers.4.self_attn.cross_attn_warm_up_gate"),
        ("weights_A_cross_every3_d1_5", "weights.model.layers.1.self_attn.cross_attn_kv_proj.bias"),
        ("weights_A_base", "weights.model.layers.5.mlp.down_proj.weight"),
        ("weights_A_base", "weights.model.mm_projector.2.bias"),
        ("weights_A_base", "weights.lm_head.weight"),
    ],
)
def test_one_changed_weight_is_a_miss(copy: Callable[[str], Path], file: str, key: str) -> None:
    directory = copy(SMALL)
    change(directory / f"{file}.safetensors", key)
    assert "outputs.logits" in only(directory, SMALL).misses()


def identity(self: ProjectedGate, logits: torch.Tensor) -> torch.Tensor:
    """A gate that forgot its tanh."""
    return logits


def values_first(self: SlowFastFusion, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in the other order."""
    key, value = KEYS_VALUES(self, *arguments)
    return value, key


def not_normalised(self: SlowFastFusion, slow_GSD: torch.Tensor, layer: torch.nn.Module) -> tuple:
    """Slow tokens without the layer's input norm."""
    heads = [
        projection(slow_GSD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for projection in (self.k_proj, self.v_proj)
    ]
    return tuple(heads)


KEYS_VALUES = SlowFastFusion.keys_values


@pytest.mark.parametrize(
    ("owner", "rule", "mutant"),
    [
        (ProjectedGate, "squash", identity),
        (SlowFastFusion, "keys_values", values_first),
        (SlowFastFusion, "keys_values", not_normalised),
    ],
)
def test_a_changed_rule_of_the_hybrid_layer_is_a_miss(
    monkeypatch: pytest.MonkeyPatch, owner: type, rule: str, mutant: Callable
) -> None:
    monkeypatch.setattr(owner, rule, mutant)
    assert {"outputs.layer.1", "outputs.logits", "outputs.generate_logits"} <= {*only(GOLDEN, SMALL).misses()}


@pytest.mark.parametrize(
    "changes",
    [
        {"slow_time": {"name": "rotary"}},  # a rotary position on slow keys
        {"gate": {"name": "dynamic_tanh_linear_warmup"}},
        {"scope": {"name": "all_tokens"}},
        {"scope": {"name": "text_after_video"}},
        {"generated_read_slow": True},
    ],
)
def test_a_changed_option_is_a_miss(monkeypatch: pytest.MonkeyPatch, changes: dict) -> None:
    configure = parity_case.config_from_official

    def changed(*arguments: object, **options: object) -> object:
        config = configure(*arguments, **options)
        for name, value in changes.items():
            setattr(config, name, value)
        return config

    monkeypatch.setattr(parity_case, "config_from_official", changed)
    assert "outputs.generate_logits" in only(GOLDEN, SMALL).misses()


def test_a_fused_projection_read_in_another_order_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    split = parity_case.tensors_from_official

    def all_keys_first(official: dict[str, torch.Tensor], head_dim: int) -> dict[str, torch.Tensor]:
        ours = split(official, head_dim)
        for name, tensor in official.items():
            if ".cross_attn_kv_proj." in name:
                prefix, kind = name.split(".cross_attn_kv_proj.")
                for projection, half in zip(("k_proj", "v_proj"), tensor.chunk(2), strict=True):
                    ours[f"language_model.{prefix}.cross_attention.{projection}.{kind}"] = half
        return ours

    monkeypatch.setattr(parity_case, "tensors_from_official", all_keys_first)
    assert "outputs.logits" in only(GOLDEN, SMALL).misses()


def test_another_rule_for_remaining_frames_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_shorter_last_average(self: Official, sampled_BTHWD: torch.Tensor) -> torch.Tensor:
        chunks = sampled_BTHWD.split(self.average_stride, dim=1)
        return torch.stack([chunk.mean(1) for chunk in chunks], dim=1)

    monkeypatch.setattr(Official, "average_time", with_a_shorter_last_average)
    for name in (REMAINDER, "fast_frame_tables"):
        assert not only(GOLDEN, name).passed


def test_another_rounding_of_odd_grids_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded_up(tokens_BTHWD: torch.Tensor, stride: int) -> torch.Tensor:
        return pool_space(torch.nn.functional.pad(tokens_BTHWD, (0, 0, 0, 1, 0, 1)), stride)

    monkeypatch.setattr("architectures.video_mllm.pool_space", rounded_up)
    assert not only(GOLDEN, "d09_s1t4_T5_adaptive").passed


def test_resizing_by_torchvision_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs from PIL, which the official code resizes with, by up to two of 255 levels."""
    encoder = parity.Preprocessed(576, SlowFastVideoProcessor.image_mean, SlowFastVideoProcessor.image_std, "crop")
    exact = SlowFastVideoProcessor.for_encoder(encoder)
    close = SlowFastVideoProcessor.for_encoder(encoder)
    close.resize_with_pil = False
    seen = [
        processor(videos=[formula_frames(1, 1000, 600)], return_tensors="pt", input_data_format="channels_first")
        for processor in (exact, close)
    ]
    gap = (seen[0]["pixel_values_videos"] - seen[1]["pixel_values_videos"]).abs().max()
    assert 0.01 < gap < 0.04
    monkeypatch.setattr(SlowFastVideoProcessor, "for_encoder", classmethod(lambda cls, encoder: close))
    assert "mean.1000x600" in only(GOLDEN, "preprocess_576").misses()


@pytest.mark.parametrize("name", ["d19_kv_init_from_lm"])
def test_an_initialisation_as_it_was_meant_is_not_the_official_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    initialise = SlowFastFusion.initialise_
    monkeypatch.setattr(SlowFastFusion, "initialise_", lambda self, layer, how: initialise(self, layer, "copy"))
    assert only(GOLDEN, name).misses() == ["kv_init.layer.0", "kv_init.layer.2", "kv_init.layer.4"]


# ---------------------------------------------------------------------------------- what cannot be run


def test_cases_without_files_are_failures(copy: Callable[[str], Path], capsys: pytest.CaptureFixture) -> None:
    directory = copy(SMALL)
    assert main([str(directory)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 27 cases within tolerance" in printed
    assert "d02: not run: FileNotFoundError" in printed
    (directory / f"{SMALL}.safetensors").unlink()
    assert not only(directory, SMALL).passed


@pytest.mark.parametrize(
    "content", ["[1]", "[]", "3", "null", "{", '{"weights": 3}', '{"weights": [], "tensors": [1]}']
)
@pytest.mark.parametrize("name", ["d09_s1t4_T5_adaptive", "fast_frame_tables", "preprocess_576"])
def test_json_of_any_other_kind_is_a_failed_case_and_the_others_run(tmp_path: Path, name: str, content: str) -> None:
    shutil.copyfile(GOLDEN / "fast_frame_tables.json", tmp_path / "fast_frame_tables.json")
    (tmp_path / f"{name}.json").write_text(content)
    broken, *others = sorted(check(tmp_path, only=[name, "fast_frame_tables"]), key=lambda report: report.name != name)
    assert not broken.passed
    assert broken.problem.startswith("not run: ")
    assert all(report.passed for report in others)


@pytest.mark.parametrize("kind", ["temporal", "spatial"])
def test_an_empty_list_of_tables_is_a_failure(tmp_path: Path, kind: str) -> None:
    tables = json.loads((GOLDEN / "fast_frame_tables.json").read_text())
    (tmp_path / "fast_frame_tables.json").write_text(json.dumps(tables | {kind: []}))
    report = only(tmp_path, "fast_frame_tables")
    assert not report.passed
    assert f"lists no {kind} tables" in report.problem


def test_a_recorded_tensor_that_is_not_compared_is_a_failure(copy: Callable[[str], Path]) -> None:
    directory = copy(SMALL)
    file = directory / f"{SMALL}.safetensors"
    save_file({**load_file(file), "outputs.attention_weights": torch.zeros(1)}, file)
    report = only(directory, SMALL)
    assert not report.passed
    assert report.problem == "not compared: outputs.attention_weights"


@pytest.mark.parametrize(
    ("change_weights", "sentence"),
    [
        (lambda w: w.pop("weights.model.norm.weight"), "missing ['language_model.model.norm.weight'], left over none"),
        (lambda w: w.update({"weights.x": torch.ones(1)}), "missing none, left over ['language_model.x']"),
    ],
)
def test_weights_must_fit_exactly(copy: Callable[[str], Path], change_weights: Callable, sentence: str) -> None:
    directory = copy(SMALL)
    file = directory / "weights_A_base.safetensors"
    weights = load_file(file)
    change_weights(weights)
    save_file(weights, file)
    assert sentence in only(directory, SMALL).problem


def test_not_a_number_is_a_miss(copy: Callable[[str], Path]) -> None:
    directory = copy(SMALL)
    file = directory / f"{SMALL}.safetensors"
    tensors = load_file(file)
    tensors["outputs.logits"][0, 0, 0] = float("nan")
    save_file(tensors, file)
    assert only(directory, SMALL).misses() == ["outputs.logits"]
