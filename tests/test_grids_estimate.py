"""How long stages are expected to take: which records count, and which of them."""

import json
from pathlib import Path

import pytest
from synthetic_rows import answers, evaluation, questions, row

from harness.grids.estimate import COMMITTED, GUESSED, OWN, SCORING, TRAINING, Times, wall_seconds
from harness.grids.plans import Planned, StageFacts
from harness.mini.suite import QUESTIONS_PER_VIDEO, SIZES

ADAPT = f"{TRAINING}adapt_stage"
SCALE = {
    "encoder_training": {"steps": 1200},
    "base": {"steps": 2200},
    "adapt": {"steps": 320, "lr": 0.002},
    "pool_clips": 3200,
}
SIZE = "full"


def planned() -> Planned:
    return Planned("none", 0, "abc", (), 20.0, {"sizes": SIZE}, True)


def stage(function=ADAPT, folder="model0-new", **kwargs) -> StageFacts:
    return StageFacts(folder, function, kwargs, 80.0, 0.0, ())


def write_row(folder: Path, adapt: float, evaluate: float, frames=128) -> None:
    """A row's times, as they stand in a results folder."""
    made = row(evaluation(answers(questions(), 0.5, seed=1)), "slow_fast", frames, content_hash="abc")
    told = json.loads(made.model_dump_json())
    told["config"] = {"scale": SCALE}
    told["timings"] = {"encoder": 100.0, "pool": 330.0, "base": 440.0, "adapt": adapt, "evaluate": evaluate}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gates_mini_seed0.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")


def write_stage(runs: Path, name: str, seconds: float, **kwargs) -> None:
    (runs / name).mkdir(parents=True)
    told = {"function": ADAPT, "kwargs": kwargs, "seconds": seconds}
    (runs / name / "stage.json").write_text(json.dumps(told))


def test_without_records_the_weight_stands(tmp_path):
    times = Times.recorded(tmp_path / "runs", tmp_path)
    assert times.seconds(stage(), planned()) == 80.0
    assert dict(times.used) == {GUESSED: 1}


def test_the_lower_quartile_of_committed_rows_and_replicates_is_taken(tmp_path):
    for adapt in (96.0, 120.0):
        write_row(tmp_path / "rows" / "ablations", adapt, 12.0)
    wanted = stage(frames=128, **{"recipe.steps": 160, "recipe.lr": 0.002})
    assert Times.recorded(tmp_path / "runs", tmp_path).seconds(wanted, planned()) == pytest.approx((96 + 0.25 * 24) / 2)
    write_row(tmp_path / "replicates" / "there" / "rows" / "ablations", 72.0, 8.0)
    times = Times.recorded(tmp_path / "runs", tmp_path)
    assert times.seconds(wanted, planned()) == pytest.approx((72 + 96) / 2 / 2)
    assert dict(times.used) == {COMMITTED: 1}


def test_the_stages_of_this_machine_come_before_what_others_recorded(tmp_path):
    write_row(tmp_path / "rows" / "ablations", 72.0, 8.0)
    write_stage(tmp_path / "runs", "model0-old", 200.0, frames=128, recipe={"steps": 320, "lr": 0.002})
    times = Times.recorded(tmp_path / "runs", tmp_path)
    wanted = stage(frames=128, **{"recipe.steps": 320, "recipe.lr": 0.002})
    assert times.seconds(wanted, planned()) == pytest.approx(200.0)
    assert dict(times.used) == {OWN: 1}


def test_what_shares_more_arguments_is_more_alike(tmp_path):
    write_row(tmp_path / "rows" / "ablations", 72.0, 8.0, frames=128)
    write_row(tmp_path / "rows" / "ablations", 30.0, 8.0, frames=16)
    times = Times.recorded(tmp_path / "runs", tmp_path)
    assert times.seconds(stage(frames=128, **{"recipe.lr": 0.002, "recipe.steps": 320}), planned()) == 72.0


def test_evaluations_take_the_median_by_question(tmp_path):
    for seconds in (10.0, 12.0, 60.0):
        write_row(tmp_path / "rows" / "ablations", 72.0, seconds)
    asked = len(answers(questions(), 0.5, seed=1))
    ours = sum(getattr(SIZES[SIZE], name) * count for name, count in QUESTIONS_PER_VIDEO.items())
    times = Times.recorded(tmp_path / "runs", tmp_path)
    found = times.seconds(stage(SCORING, frames=128, control="none"), planned())
    assert found == pytest.approx(12.0 / asked * ours)


def test_workers_take_the_longest_chain_first():
    seconds = {"base": 10.0, "model": 20.0, "scores": 5.0, "cost": 8.0, "other": 3.0}
    needs = {"base": (), "model": ("base",), "scores": ("model", "done before"), "cost": (), "other": ()}
    assert wall_seconds(seconds, needs, 1) == sum(seconds.values())
    assert wall_seconds(seconds, needs, 2) == 35.0
    assert wall_seconds({}, {}, 2) == 0.0
