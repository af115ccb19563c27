"""What a training is said to need: against DeepSpeed's own estimate, and against the tensors of a tiny training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetune import tiny_data, tiny_start
from torch import nn

from architectures.cost import on_meta
from architectures.encoders import ENCODERS
from harness.compose import compose
from harness.errors import UserError
from harness.finetune import launch, memory, verb
from harness.finetune.optimise import parameter_groups
from harness.finetune.parts import PARTS, trained
from harness.finetune.plan import Plan
from harness.finetune.preview import config_of
from harness.finetune.settings import FINETUNE
from harness.finetune.trainer import model_of

ALL = tuple(part for part in PARTS if part not in ("encoder", "selector"))
SIXTEEN = Plan(trains=("language_model",), lr=1e-3, dtype="bfloat16")


class Decoder(nn.Module):
    """Nothing but a decoder: none of it has to stay whole under ZeRO-3."""

    def __init__(self) -> None:
        super().__init__()
        self.language_model = nn.Linear(1024, 4096, bias=False, device="meta")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from."""
    return tiny_start(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize("processes", [1, 8])
def test_states_are_those_that_deepspeed_estimates(processes: int) -> None:
    """Its ZeRO-2 is ours while the optimiser steps; its 18 P / N of ZeRO-3 lies between our 16 and, stepping, 20."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    told, model = DeepSpeedZeroConfig(), Decoder()
    assert (told.reduce_bucket_size, told.max_live_parameters) == (memory.BUCKET, memory.LIVE)
    P = 1024 * 4096
    two = memory.states(model, replace(SIXTEEN, zero={"stage": 2}), processes)
    assert two.held - two.buffers + two.step == zero2(P, processes, 1, cpu_offload=False)[1]
    three = memory.states(model, replace(SIXTEEN, zero={"stage": 3}), processes)
    estimated = zero3(P, 0, processes, 1, cpu_offload=False, cpu_offload_params=False)[1]
    assert three.held - three.buffers == 16 * P // processes < estimated
    assert estimated < three.held - three.buffers + three.step == 20 * P // processes
    away = replace(SIXTEEN, zero={"stage": 3, "offload": ["optimizer", "param"]})
    offloaded = memory.states(model, away, processes)
    assert offloaded.host == zero3(P, 0, processes, 1, additional_buffer_factor=1)[0]
    assert offloaded.held == offloaded.buffers


def test_states_of_one_process_are_the_tensors_that_it_holds(folder: Path) -> None:
    plan = Plan(trains=("projector", "time_positions", "cross_attention", "gates"), lr=1e-3)
    model, data = model_of(folder, plan), tiny_data(folder)
    model(**data.collator([data.dataset[0]]), use_cache=False).loss.backward()
    optimiser = torch.optim.AdamW(parameter_groups(model, plan.lr, {}, 0.0))
    optimiser.step()
    averages = [t for state in optimiser.state.values() for name, t in state.items() if name != "step"]
    said = memory.states(model, plan, 1)
    assert said.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert said.gradients == sum(parameter.grad.nbytes for _, parameter in trained(model))
    assert said.optimiser == sum(tensor.nbytes for tensor in averages)
    assert said.held == said.weights + said.gradients + said.optimiser
    assert memory.states(model, plan, 2).buffers == said.gradients  # of DDP


def saved_bytes(model: nn.Module, batch: dict[str, Any]) -> int:
    """Bytes of all tensors that a forward keeps for its backward, weights and the batch left out."""
    known = {t.untyped_storage().data_ptr() for t in (*model.state_dict().values(), *batch.values())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch, use_cache=False).loss
    assert loss.requires_grad
    return sum(kept.values())


def test_activations_are_about_what_a_forward_keeps(folder: Path) -> None:
    """All layers kept; the loss's own share, which is counted for the moment of its backward, taken off."""
    plan = Plan(trains=ALL, lr=1e-3)
    model, data = model_of(folder, plan).train(), tiny_data(folder)
    model.encoder.eval()
    batch = data.collator([data.dataset[5]])  # one video of five frames
    words = batch["input_ids"].shape[1] - model.fast_token_count(5)
    said = memory.activations(model.config, plan, 5, words)
    logits = 4 * batch["input_ids"].shape[1] * model.config.text_config.vocab_size
    measured = saved_bytes(model, batch)
    assert said.kept + logits == pytest.approx(measured, rel=0.05)
    assert memory.activations(model.config, replace(plan, checkpointing=True), 5, words).kept < 0.5 * said.kept
    twice = memory.activations(model.config, replace(plan, batch_size=2), 5, words)
    assert (twice.kept, twice.moment, twice.tower) == (2 * said.kept, 2 * said.moment, 2 * said.tower)


def test_a_tower_s_largest_moment_is_that_of_its_widest_block() -> None:
    """ConvNeXt-XXLarge at 576 pixels, in its first blocks, of 384 channels of 144 x 144.

    At the GELU there are the stage's input, the block's, the MLP's, and four times as much before and after; the frame.
    """
    encoder = on_meta(ENCODERS, config_of(compose([], root=FINETUNE)).vision)
    most, all_ = memory.tower_numbers(encoder)
    assert most == (1 + 1 + 1 + 4 + 4) * 384 * 144 * 144 + 3 * 576 * 576
    assert all_ > 10 * most


def test_more_processes_need_less_each_and_kept_activations_need_more(folder: Path) -> None:
    plan = Plan(trains=ALL, lr=1e-3, zero={"stage": 3}, dtype="bfloat16", checkpointing=True)
    model = model_of(folder, plan)

    def peak(plan: Plan, processes: int = 8) -> int:
        return memory.need(model, plan, processes, 64, 1000).peak

    assert peak(plan, 16) < peak(plan) < peak(replace(plan, checkpointing=False))
    assert peak(replace(plan, zero={"stage": 3, "offload": ["optimizer", "param"]})) < peak(plan)
    seen = memory.activations(model.config, plan, 64, 1000)
    held = memory.states(model, plan, 8).held
    assert peak(plan) == held + seen.kept + seen.moment


def lines(capsys: pytest.CaptureFixture, *overrides: str) -> str:
    """What the verb prints with dry_run."""
    verb.finetune(compose([*overrides, "dry_run=true"], root=FINETUNE), list(overrides))
    return capsys.readouterr().out


def test_a_dry_run_says_what_would_learn_and_the_memory_it_needs(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    said = lines(capsys, "recipe=stage2", f"runs_dir={tmp_path / 'runs'}")
    assert "1296 fast and 5184 slow tokens" in said
    assert "language_model     7,615,616,512 numbers at 2e-05" in said  # of Qwen2-7B, as its own config counts
    assert "1 x 2 accumulated x 8 processes = 16 conversations; 1 x the annotations" in said
    assert "no start is named: at the sizes of scale=paper" in said
    assert memory.ASSUMED in said
    assert not (tmp_path / "runs").exists()
    assert 30 < float(said.split("GB: ")[1].split()[0]) < 80, "the official recipe runs on GPUs of 80 GB"
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="a launcher has started this process already"):
        launch.expect_first(compose(["launch=torchrun"], root=FINETUNE))
