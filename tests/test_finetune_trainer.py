"""The paper-scale trainer in one process: parts, rates, order, loss, resumption, adapters, the log."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_finetune import forget_reporting, saved_model, tiny_data, tiny_start
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainerCallback

from architectures import SlowFastProcessor
from harness.errors import UserError
from harness.finetune import checkpoints
from harness.finetune.flops import StepCost, factors
from harness.finetune.logs import KEYS, Meter
from harness.finetune.optimise import Order, parameter_groups
from harness.finetune.parts import PARTS, choose, part_of, trained
from harness.finetune.plan import Plan
from harness.finetune.trainer import FinetuneTrainer, model_of, run, trainer_of

ALL = tuple(part for part in PARTS if part not in ("encoder", "selector"))
EXAMPLES = 12
PLAN = Plan(trains=ALL, lr=5e-3, warmup=0.0, steps=3, batch_size=2, save_every=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from."""
    return tiny_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run says in the environment (where reports go) is gone afterwards."""
    forget_reporting(monkeypatch)


def losses_of(folder: Path, plan: Plan, work: Path, *callbacks: TrainerCallback) -> list[float]:
    """The loss of every step of a training."""
    data = tiny_data(folder, examples=EXAMPLES)
    record = run(trainer_of(folder, data, plan, work / "work", callbacks), data, work / "model")
    return [entry["loss"] for entry in record["log"]]


# --------------------------------------------------------------------------------------------------- parts and rates


def test_every_parameter_belongs_to_one_part_and_those_that_are_named_learn(folder: Path) -> None:
    model = saved_model(folder)
    counts = choose(model, ["gates", "projector"])
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = [f"language_model.model.layers.{index}.self_attn.cross_attention.gate" for index in (0, 2)]
    assert learning == {f"projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")} | {
        f"{layer}.{name}" for layer in layers for name in ("projection.weight", "projection.bias", "warmup")
    }
    assert sum(all_ for _, all_ in counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert part_of("language_model.model.layers.0.self_attn.cross_attention.k_proj.weight") == "cross_attention"
    assert part_of("language_model.model.layers.0.mlp.gate_proj.weight") == "language_model"
    with pytest.raises(UserError, match=r"no part 'gate'.*gates"):
        choose(model, ["gate"])
    with pytest.raises(UserError, match="no weights there"):
        choose(model, ["selector"])


def test_each_part_has_its_rate_and_only_matrices_decay(folder: Path) -> None:
    model = saved_model(folder)
    choose(model, ALL)
    groups = parameter_groups(model, 1e-3, {"cross_attention": 2e-4, "gates": 5e-4, "projector": None}, 0.1)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(trained(model)))
    for name, parameter in trained(model):
        rate = 5e-4 if ".gate." in name else 2e-4 if ".cross_attention." in name else 1e-3
        decay = 0.1 if parameter.dim() >= 2 else 0.0
        assert (found[id(parameter)]["lr"], found[id(parameter)]["weight_decay"]) == (rate, decay), name


# -------------------------------------------------------------------------------------------------------- the order


def test_the_order_is_a_shuffle_of_seed_and_epoch() -> None:
    order, again, other = Order(50, 1, 4), Order(50, 1, 4), Order(50, 2, 4)
    first = list(order)
    assert len(first) == len(set(first)) == len(order) == 48, "whole steps alone"
    assert first == list(again) != list(other)
    order.set_epoch(1)
    assert list(order) != first
    assert set(order) | set(first) == set(range(50)), "what was too much comes in another epoch"
    assert sorted(Order(48, 1, 4)) == list(range(48))


def test_similar_lengths_stand_together_and_steps_are_shuffled() -> None:
    lengths = torch.randint(1, 1000, (403,), generator=torch.Generator().manual_seed(0)).tolist()

    def spread(order: list[int]) -> float:
        steps = [[lengths[i] for i in order[k : k + 4]] for k in range(0, 400, 4)]
        return sum(max(step) - min(step) for step in steps) / len(steps)

    grouped = list(Order(403, 0, 4, lengths))
    assert len(grouped) == len(set(grouped)) == 400
    assert spread(grouped) < 0.1 * spread(list(Order(403, 0, 4)))
    means = torch.tensor([sum(lengths[i] for i in grouped[k : k + 4]) / 4 for k in range(0, 400, 4)])
    assert means[0] == means.max()
    later = torch.corrcoef(torch.stack([means[1:], torch.arange(99.0)]))[0, 1]
    assert later.abs() < 0.3  # not sorted


# --------------------------------------------------------------------------------------------------------- the loss


def plain_loss(folder: Path, indices: list[int]) -> float:
    """The mean loss of all answer tokens of some conversations, each run alone."""
    model, data = saved_model(folder), tiny_data(folder)
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for index in indices:
            batch = data.collator([data.dataset[index]])
            labels_L = batch.pop("labels")[0]
            logits_LW = model(**batch, use_cache=False).logits[0]
            losses += F.cross_entropy(logits_LW[:-1], labels_L[1:], reduction="none")[labels_L[1:] != -100]
    return torch.stack(losses).mean().item()


def test_a_step_s_loss_is_the_mean_over_all_its_answer_tokens(folder: Path, tmp_path: Path) -> None:
    """However they are batched: two runs and a plain loop agree, and later losses say that gradients do as well."""
    one = losses_of(folder, replace(PLAN, batch_size=4), tmp_path / "one")
    two = losses_of(folder, replace(PLAN, accumulation=2, checkpointing=True), tmp_path / "two")
    assert one == pytest.approx(two, abs=1e-5)
    first_step = list(Order(EXAMPLES, PLAN.seed, 4))[:4]
    assert one[0] == pytest.approx(plain_loss(folder, first_step), abs=1e-5)
    assert one[0] != pytest.approx(one[1], abs=1e-3)


class Stops(TrainerCallback):
    """Ends a training after a step, as an exception does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_a_training_that_ended_in_its_second_epoch_goes_on_the_same(folder: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, steps=6, batch_size=4, save_every=4, group_by_length=True)  # an epoch: 3 steps
    whole = losses_of(folder, plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        losses_of(folder, plan, tmp_path / "halves", Stops())
    work = tmp_path / "halves" / "work"
    assert checkpoints.last_whole(work, 1, 0, EXAMPLES) == work / "checkpoint-4"
    assert losses_of(folder, plan, tmp_path / "halves") == whole
    (work / "checkpoint-6" / checkpoints.MARK).unlink()
    assert checkpoints.last_whole(work, 1, 0, EXAMPLES) == work / "checkpoint-4"
    checkpoints.remove_torn(work)
    assert not (work / "checkpoint-6").exists()
    with pytest.raises(UserError, match="written by 1 processes with zero stage 0, this run has 2 and 3"):
        checkpoints.last_whole(work, 2, 3, EXAMPLES)
    with pytest.raises(UserError, match="had 12 conversations, now they have 13, in another order"):
        checkpoints.last_whole(work, 1, 0, EXAMPLES + 1)


def test_times_keep_their_precision_in_a_run_of_bfloat16(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_deepspeed_does(self: Trainer, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}

    monkeypatch.setattr(Trainer, "_prepare_inputs", as_deepspeed_does)
    trainer = trainer_of(folder, tiny_data(folder), PLAN, tmp_path)
    times_BT = torch.linspace(0, 1, 128)[None]
    prepared = FinetuneTrainer._prepare_inputs(trainer, {"frames": torch.rand(1, 128), "frame_times": times_BT})
    assert prepared["frames"].dtype == torch.bfloat16
    assert torch.equal(prepared["frame_times"], times_BT)


# ----------------------------------------------------------------------------------------------- adapters and export


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_adapters_learn_and_are_part_of_the_weights_afterwards(tmp_path: Path, tied: bool) -> None:
    folder = tiny_start(tmp_path / "start", tied)
    plan = replace(PLAN, trains=("projector", "gates"), lora={"rank": 4, "alpha": 8, "dropout": 0.0}, lr=2e-2)
    data = tiny_data(folder)
    trainer = trainer_of(folder, data, plan, tmp_path / "work")
    before = load_file(folder / "model.safetensors")
    run(trainer, data, tmp_path / "model")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {part_of(name) for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"language_model", "projector", "gates"}
    batch = data.collator([data.dataset[index] for index in (0, 4)])
    with torch.no_grad():
        with_adapters = trainer.model.eval()(**batch, use_cache=False).logits
        merged = saved_model(tmp_path / "model")(**batch, use_cache=False).logits
        at_first = saved_model(folder)(**batch, use_cache=False).logits
    assert torch.allclose(merged, with_adapters, atol=1e-4)
    assert not torch.allclose(merged, at_first, atol=1e-2)
    assert SlowFastProcessor.from_pretrained(tmp_path / "model").placeholder() == data.processor.placeholder()


def test_new_adapters_are_drawn_by_the_seed_alone(folder: Path) -> None:
    """Whatever the process has drawn before, such as a model to start from."""
    plan = replace(PLAN, trains=("projector",), lora={"rank": 2, "alpha": 8, "dropout": 0.0})

    def drawn(plan: Plan) -> torch.Tensor:
        torch.rand(len(seen) + 1)
        seen.append(plan.seed)
        named = dict(model_of(folder, plan).named_parameters())
        return torch.cat([p.detach().flatten() for name, p in named.items() if ".lora_A." in name])

    seen: list[int] = []
    first = drawn(plan)
    assert first.any()
    assert torch.equal(first, drawn(plan))
    assert not torch.equal(first, drawn(replace(plan, seed=1)))


# -------------------------------------------------------------------------------------------------------- the log


@pytest.mark.parametrize("trains", [ALL, ("projector", "time_positions", "cross_attention", "gates")], ids=["all", "1"])
def test_flops_of_a_step_are_those_that_torch_counts(folder: Path, trains: tuple[str, ...]) -> None:
    """The convention takes 3 for all of a part, where the very first product of the path needs but 2: so 1%."""
    model, data = model_of(folder, replace(PLAN, trains=trains)).train(), tiny_data(folder)
    batch = data.collator([data.dataset[4]])  # two videos: no padding
    model.encoder.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch, use_cache=False).loss.backward()
    counted, told = counter.get_total_flops(), StepCost(model).flop(batch)
    assert told == pytest.approx(counted, rel=0.02)
    text, watched = data.collator([data.dataset[1]]), data.collator([data.dataset[1], data.dataset[4]])
    assert len(text["input_ids"]) == 2  # with a black image, from which nothing is learned
    assert StepCost(model).flop(text) + StepCost(model).flop(batch) == StepCost(model).flop(watched)
    assert factors(set(trains))["vision"] == 1
    assert factors(set(trains))["linear"] == (3 if "language_model" in trains else 2)


def test_the_log_says_throughput_without_the_time_of_saving(folder: Path) -> None:
    model, data = model_of(folder, PLAN), tiny_data(folder)
    now = [0.0]
    meter = Meter(StepCost(model), 1e9, lambda: now[0])
    batch = data.collator([data.dataset[index] for index in (0, 1, 4)])  # 3 frames, none, 4 + 2
    meter.on_train_begin(None, None, None)
    for seconds in (2.0, 3.0):
        now[0] += seconds
        flop = meter.saw(batch)
        meter.on_step_end(None, None, None)
    now[0] += 100.0
    meter.on_save(None, None, None)
    now[0] += 5.0
    meter.saw(batch)
    meter.on_step_end(None, None, None)
    said = meter.numbers(lambda values: [2 * value for value in values], 2)  # two processes alike
    assert tuple(said) == KEYS
    assert said["samples_per_s"] == pytest.approx(2 * 9 / 10)
    assert said["frames_per_s"] == pytest.approx(2 * 27 / 10)
    assert said["tokens_per_s"] == pytest.approx(2 * 3 * batch["attention_mask"].sum().item() / 10)
    assert said["tflop_per_step"] == pytest.approx(2 * flop / 1e12)
    assert said["share_of_peak"] == pytest.approx(2 * 3 * flop / 10 / (2 * 1e9))
    assert meter.numbers(list, 1)["samples_per_s"] == 0


class Listener(TrainerCallback):
    """Hears what is reported, as wandb and the others do."""

    def __init__(self) -> None:
        self.heard: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.heard.append(dict(logs))


def test_what_the_meter_says_is_reported_and_kept(folder: Path, tmp_path: Path) -> None:
    listener, data = Listener(), tiny_data(folder)
    trainer = trainer_of(folder, data, replace(PLAN, steps=4, log_every=2), tmp_path / "work", [listener])
    record = run(trainer, data, tmp_path / "model")
    on_cpu = {*KEYS} - {"share_of_peak"}
    entries = [entry for entry in listener.heard if "loss" in entry]
    assert len(entries) == len(record["log"]) == 2
    assert all(on_cpu <= entry.keys() for entry in [*entries, *record["log"]])
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == json.loads(json.dumps(record))
    total = trainer.state.total_flos
    assert total == pytest.approx(1e12 * sum(2 * entry["tflop_per_step"] for entry in entries))
