"""Training: exact resumption after kill -9, the schedule, learning rates by part."""

import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_recipe
import torch
from safetensors.torch import load_file
from tiny_recipe import OPTIMISATION, NextToken, tiny_model, trained
from transformers import PreTrainedModel, TrainingArguments

from harness.train import Optimisation, RecipeState, RecipeTrainer, last_whole_checkpoint, train

KILLED_AT = 13  # of 24 steps; checkpoints are left of steps 5 and 10
Weights = dict[str, torch.Tensor]


def start(work: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, tiny_recipe.__file__, str(work), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def equal(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights after 24 steps in a row."""
    return trained(tmp_path_factory.mktemp("whole") / "work").state_dict()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves that is killed by kill -9 after its 13th step."""
    work = tmp_path_factory.mktemp("killed") / "work"
    with start(work, work.parent / "weights") as process:
        for line in process.stdout:
            if int(line) == KILLED_AT:
                process.kill()
                break
    assert not (work.parent / "weights").exists()
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint-10", "checkpoint-5"]
    return work


@pytest.fixture
def work(killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed training's folder."""
    return Path(shutil.copytree(killed, tmp_path / "work"))


def test_the_same_command_after_kill_9_gives_the_same_weights(
    work: Path, tmp_path: Path, uninterrupted: Weights
) -> None:
    done = start(work, tmp_path / "weights")
    said, complaint = done.communicate()
    assert done.returncode == 0, complaint
    assert said.split() == [str(step) for step in range(11, 25)]  # nothing else on stdout
    assert equal(load_file(tmp_path / "weights"), uninterrupted)


def half(path: Path) -> None:
    path.write_text(path.read_text()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "tear"),
    [
        ("trainer_state.json", half),
        ("trainer_state.json", lambda path: path.write_text("")),
        ("trainer_state.json", Path.unlink),
        ("model.safetensors", Path.unlink),
        ("optimizer.pt", Path.unlink),
    ],
)
def test_a_torn_checkpoint_is_passed_over(
    work: Path, file: str, tear: Callable[[Path], None], uninterrupted: Weights
) -> None:
    tear(work / "checkpoint-10" / file)
    assert last_whole_checkpoint(work) == work / "checkpoint-5"
    assert not (work / "checkpoint-10").exists()
    if file == "model.safetensors":  # one of them is taken to the end
        assert equal(trained(work).state_dict(), uninterrupted)


def test_without_any_whole_checkpoint_training_starts_anew(work: Path) -> None:
    for checkpoint in list(work.iterdir()):
        half(checkpoint / "trainer_state.json")
    assert last_whole_checkpoint(work) is None
    assert list(work.iterdir()) == []


def test_a_state_that_is_not_restored_is_noticed(
    work: Path, uninterrupted: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison of weights can fail: the recipe's state matters."""
    monkeypatch.setattr(RecipeState, "restore", lambda self, checkpoint: None)
    assert not equal(trained(work).state_dict(), uninterrupted)


def test_a_kill_after_the_last_step_repeats_none(tmp_path: Path, uninterrupted: Weights) -> None:
    first, again = [], []
    model = tiny_model()
    outcome = train(model, NextToken(), OPTIMISATION, tmp_path, 0, lambda done, total: first.append(done))
    again_model = tiny_model()
    repeated = train(again_model, NextToken(), OPTIMISATION, tmp_path, 0, lambda done, total: again.append(done))
    assert first == list(range(1, 25))
    assert again == []
    assert equal(again_model.state_dict(), uninterrupted)
    assert repeated == outcome


def test_the_schedule_rises_to_its_peak_and_falls_to_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    compute_loss = RecipeTrainer.compute_loss

    def noted(self: RecipeTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(RecipeTrainer, "compute_loss", noted)
    chosen = Optimisation(steps=20, lr=0.5, warmup=5, final_lr=0.1)
    train(tiny_model(), NextToken(), chosen, tmp_path, 0, lambda done, total: None)
    assert len(rates) == 20
    assert rates[:6] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    last = 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * 14 / 15))
    assert rates[-1] == pytest.approx(0.5 * last)


def groups(model: PreTrainedModel, chosen: Optimisation, out: Path) -> dict[str, tuple[float, float]]:
    """Name of each parameter -> (learning rate, weight decay); those that are not trained are missing."""
    arguments = TrainingArguments(output_dir=str(out), report_to=[], use_cpu=True)
    trainer = RecipeTrainer(RecipeState(NextToken()), chosen, model=model, args=arguments)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }


def test_learning_rates_reach_their_parts(tmp_path: Path) -> None:
    model = tiny_model()
    model.lm_head.requires_grad_(False)
    found = groups(model, Optimisation(10, 0.1, weight_decay=0.3, lr_factors={"k_proj": 20.0}), tmp_path)
    assert set(found) == {name for name, _ in model.named_parameters()} - {"lm_head.weight"}
    for name, (rate, decay) in found.items():
        is_part = "k_proj" in name
        assert rate == pytest.approx(2.0 if is_part else 0.1), name
        assert decay == (0.3 if name.endswith("weight") and "norm" not in name and not is_part else 0.0), name


def test_the_gates_of_a_variant_learn_faster(tmp_path: Path) -> None:
    from architectures import SlowFastForConditionalGeneration
    from harness.compose import compose
    from harness.models import model_config

    model = SlowFastForConditionalGeneration(model_config(compose(["scale=test"])))
    found = groups(model, Optimisation(10, 0.1, lr_factors={".gate.": 20.0}), tmp_path)
    fast = {name for name, (rate, _) in found.items() if rate > 0.1}
    gates = {f"language_model.model.layers.{i}.self_attn.cross_attention.gate." for i in (0, 2)}
    assert {name.rpartition("gate.")[0] + "gate." for name in fast} == gates
