"""Training in two processes with DeepSpeed on a CPU: the same steps as one process takes, also after kill -9."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_finetune
import torch
from safetensors.torch import load_file
from tiny import small_suite
from tiny_finetune import EXAMPLES, tiny_data, tiny_start

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from harness.evaluate import evaluate
from harness.finetune.memory import states
from harness.finetune.plan import Plan
from harness.finetune.trainer import model_of, run, trainer_of

ROOT = Path(__file__).parents[1]
STEPS, KILLED_AT, SAVED = 20, 13, 5  # so that checkpoints are left of steps 5 and 10
PLAN = Plan(
    trains=("projector", "time_positions", "cross_attention", "gates", "language_model"),
    lr=5e-3,
    lr_of={"cross_attention": 1e-3},
    warmup=0.1,
    steps=STEPS,
    batch_size=2,
    accumulation=2,
    checkpointing=True,
    save_every=SAVED,
    group_by_length=True,
)
TOLERANCE = 1e-4
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Run:
    """What a training left: the log, the model's folder, what each process noted and which examples it saw."""

    log: list[dict[str, float]]
    model: Path
    notes: list[dict[str, Any]]
    seen: list[list[int]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that all trainings start from."""
    return tiny_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def alone(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, without DeepSpeed, with the same batch per step."""
    folder = tmp_path_factory.mktemp("alone")
    data = tiny_data(start)
    trainer = trainer_of(start, data, replace(PLAN, batch_size=2 * PLAN.batch_size), folder / "work")
    record = run(trainer, data, folder / "model")
    return Run(record["log"], folder / "model", [], [])


def launch(start: Path, folder: Path, plan: Plan, *options: str) -> subprocess.CompletedProcess:
    """torchrun in two processes; what they note is in `folder`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [tiny_finetune.__file__, str(start), str(folder / "work"), str(folder / "model")]
    command += [json.dumps(asdict(plan)), "--seen", str(folder), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1000, check=False)


def noted(folder: Path) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """What both processes noted, and which examples each saw; the files are removed."""
    notes = [json.loads((folder / f"notes-{rank}.json").read_text()) for rank in range(2)]
    seen = [[int(line) for line in (folder / f"seen-{rank}.txt").read_text().split()] for rank in range(2)]
    for rank in range(2):
        (folder / f"seen-{rank}.txt").unlink()
    return notes, seen


@pytest.fixture(scope="module", params=[2, 3], ids=["zero2", "zero3"])
def pair(request: pytest.FixtureRequest, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two processes, one of which is killed after step 13; and the same command again."""
    folder = tmp_path_factory.mktemp(f"zero{request.param}")
    plan = replace(PLAN, zero={"stage": request.param})
    died = launch(start, folder, plan, "--die", str(KILLED_AT))
    assert died.returncode != 0
    assert "SIGKILL" in died.stderr, died.stderr
    assert not (folder / "model").exists()
    first = Run([], folder / "model", *noted(folder))
    done = launch(start, folder, plan)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "model" / "training.json").read_text())
    return first, Run(record["log"], folder / "model", *noted(folder))


def stage_of(pair: tuple[Run, Run]) -> int:
    """ZeRO's stage, as DeepSpeed itself says."""
    return pair[0].notes[0]["stage"]


def test_deepspeed_is_at_work_in_two_processes_that_share_the_optimiser(pair: tuple[Run, Run]) -> None:
    for notes in pair[0].notes:
        assert (notes["engine"], notes["world"]) == ("DeepSpeedEngine", 2)
    here = [notes["optimised_here"] for notes in pair[0].notes]
    trained = pair[0].notes[0]["trained"]
    assert trained <= sum(here) <= 1.01 * trained  # padding of odd numbers at most
    assert max(here) <= 0.51 * trained


def test_parameters_are_sharded_by_zero_3_and_by_it_alone(pair: tuple[Run, Run]) -> None:
    for notes in pair[0].notes:
        sharded = notes["sharded"]
        assert bool(sharded) == (stage_of(pair) == 3)
        assert all(here == (all_ + 1) // 2 for here, all_ in sharded.values())
        if sharded:  # not what batches use a different number of times
            assert {name.split(".")[-2] for name in sharded} == {"gate_proj", "up_proj", "down_proj"}


def test_what_a_process_holds_is_what_the_plan_of_memory_says(pair: tuple[Run, Run], start: Path) -> None:
    said = states(model_of(start, PLAN), replace(PLAN, zero={"stage": stage_of(pair)}), 2)
    for notes in pair[0].notes:
        assert notes["held"] == pytest.approx({"weights": said.weights, "optimiser": said.optimiser}, rel=0.01)


def test_each_process_sees_other_examples(pair: tuple[Run, Run]) -> None:
    steps_of_epoch = EXAMPLES // PLAN.step_size(2)
    ahead = PLAN.batch_size  # accelerate looks one batch ahead
    each = steps_of_epoch * PLAN.batch_size * PLAN.accumulation
    first, second = (seen[:each] for seen in pair[0].seen)
    assert len(set(first)) == len(set(second)) == each
    assert not set(first) & set(second)
    assert len(pair[0].seen[0]) >= KILLED_AT * PLAN.batch_size * PLAN.accumulation - ahead


def test_losses_are_those_of_one_process_and_are_so_after_a_kill(pair: tuple[Run, Run], alone: Run) -> None:
    again = pair[1]
    assert [notes["resumed_at"] for notes in again.notes] == [KILLED_AT // SAVED * SAVED] * 2
    assert [entry["step"] for entry in again.log] == list(range(1, STEPS + 1))
    worst = max(abs(two["loss"] - one["loss"]) for two, one in zip(again.log, alone.log, strict=True))
    assert worst < TOLERANCE
    assert alone.log[-1]["loss"] < 0.8 * alone.log[0]["loss"]  # there is something to be equal in
    for name in ("learning_rate", "tflop_per_step"):
        assert [entry[name] for entry in again.log] == pytest.approx([entry[name] for entry in alone.log])
    # Adam takes the same steps with gradients of any scale: so their own size, before they are clipped.
    norms = [[entry["grad_norm"] for entry in log] for log in (again.log, alone.log)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_the_model_is_written_whole_and_answers_as_that_of_one_process(pair: tuple[Run, Run], alone: Run) -> None:
    weights, expected = (load_file(run.model / "model.safetensors") for run in (pair[1], alone))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(weights[name], tensor, atol=1e-3), name
    assert answer(pair[1].model) == answer(alone.model)


def test_the_model_is_evaluated_as_that_of_one_process(pair: tuple[Run, Run], alone: Run, tmp_path: Path) -> None:
    asked = {"frames": 4, "batch_size": 1, "workers": 0, "benchmarks": ["egoschema"], "limit": 3, "device": "cpu"}
    folders = {"two": pair[1].model, "one": alone.model}
    done = {name: evaluate(folder, small_suite(), tmp_path / name, **asked) for name, folder in folders.items()}
    answers = {name: evaluation.samples["answer"].tolist() for name, evaluation in done.items()}
    assert len(answers["two"]) == 3
    assert answers["two"] == answers["one"]


@torch.no_grad()
def answer(folder: Path) -> list[int]:
    """What a saved model says to a question about a video."""
    model = SlowFastForConditionalGeneration.from_pretrained(folder).eval()
    processor = SlowFastProcessor.from_pretrained(folder)
    frames_THWC = torch.randint(0, 255, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs = processor(["what colour is the ball"], [frames_THWC.numpy()], [torch.linspace(0, 1, 6).numpy()])
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    assert len(said)
    return said.tolist()
