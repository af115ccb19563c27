"""Rows that learn in stages by the trainer of paper scale: their place in the plan, and what each stage changes."""

import json
from pathlib import Path

import pytest
import torch
from tiny import small_suite

from architectures import SlowFastForConditionalGeneration
from harness.compose import compose
from harness.disclosures import disclosures_of
from harness.errors import UserError
from harness.finetune.parts import part_of
from harness.jobs import run
from harness.mini.training import adapt_training_seed
from harness.plug_and_play import Study
from harness.staged import SAID, restored, shares
from harness.stages import resolve
from harness.table import Cell, Plan

CELL = Cell("slow_fast", 32)
SCALE = ["scale=test", "base_seeds=[0]"]
LITTLE = ["scale.pool_clips=8", "scale.adapt.videos=2", "scale.base.videos=2", "scale.base.steps=2"]
LITTLE += ["scale.encoder_training.steps=2", "scale.encoder_training.clips=2"]
STAGED = "training=two_stages"


def plan(*typed: str) -> Plan:
    overrides = [*SCALE, *typed]
    return Plan(compose(overrides), overrides, [CELL])


def test_two_stages_take_the_place_of_the_adaptation_and_nothing_else_changes() -> None:
    usual, staged = (resolve(plan(*typed).on(small_suite()).stages(), Path("runs")) for typed in ([], [STAGED]))
    first, last = "model0-slow_fast-32-mini_stage1", "model0-slow_fast-32"
    assert set(staged) - set(usual) == {SAID, first}
    changed = {name for name in usual if usual[name].key != staged[name].key}
    assert changed == {last, "scores0-slow_fast-32"}
    assert staged[first].stage.needs["base"] == "base0"
    assert staged[last].stage.needs["base"] == first
    said = staged[SAID].stage.kwargs["asked"]
    assert said == {"clips": 24, "visits": 8 * 8, "questions": 4}


def test_the_stages_share_the_adaptation_s_steps_and_have_the_row_s_own_parts() -> None:
    typed = [STAGED, "gate=sigmoid", "slow_tokens=untimed"]
    stages = plan(*typed).learning(CELL, 0)
    settings = [restored(stage.kwargs["settings"]) for stage in stages]
    assert [(each.recipe.name, each.steps) for each in settings] == [("mini_stage1", 2), ("mini_stage2", 6)]
    for each in settings:
        assert (each.gate.name, each.slow_tokens.time.name, each.frames) == ("sigmoid", "none", 32)
        assert (each.scale.name, each.recipe.batch_size) == ("test", 8)
        assert each.seed == adapt_training_seed(0, 0)


def test_shares_fill_the_steps() -> None:
    assert shares([0.25, 0.75], 320) == [80, 240]
    assert shares([0.3, 0.3, 0.4], 10) == [3, 3, 4]
    for wrong, steps in (([0.5, 0.6], 10), ([0.01, 0.99], 8)):
        with pytest.raises(UserError, match="each is a step at least"):
            shares(wrong, steps)


def test_what_cannot_learn_in_stages_is_a_sentence() -> None:
    cell = Cell("self_attention_selected", 32)
    typed = [*SCALE, STAGED]
    with pytest.raises(UserError, match="training=two_stages takes the frames"):
        Plan(compose(typed), typed, [cell]).training()
    with pytest.raises(UserError, match="leave out training="):
        Study(compose(typed), typed)


def test_a_row_s_foot_says_how_it_learned() -> None:
    base = {"accuracy": {"needle": 0.9}, "mean": 0.9, "threshold": 0.6, "passed": True}
    told = [disclosures_of(compose([*SCALE, *typed]), base) for typed in ([], [STAGED])]
    (further,) = set(told[1]) - set(told[0])
    assert "mini_stage1 for 25%, mini_stage2 for 75%" in further


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every stage of a row's training, run."""
    return run(plan(STAGED, *LITTLE).training(), tmp_path_factory.mktemp("runs"), jobs=0)


def test_each_stage_changes_its_parts_and_no_other(folders: dict[str, Path]) -> None:
    names = ["base0", "model0-slow_fast-32-mini_stage1", "model0-slow_fast-32"]
    models = [SlowFastForConditionalGeneration.from_pretrained(folders[name]) for name in names]
    base, first, last = (model.state_dict() for model in models)
    assert len(models[1].hybrid()) == len(models[2].hybrid()) == 2

    def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        return {part_of(name) for name in before if name in after and not torch.equal(before[name], after[name])}

    assert changed(base, first) == {"projector", "time_positions"}  # what is new in it has nothing to be compared with
    assert changed(first, last) == {"projector", "time_positions", "cross_attention", "gates", "language_model"}
    record = json.loads((folders[names[2]] / "training.json").read_text())
    assert (record["steps"], record["plan"]["batch_size"], record["zero"]) == (6, 2, 0)
    assert all(entry["loss"] > 0 for entry in record["log"])


def test_nothing_but_the_model_is_left_of_a_stage(folders: dict[str, Path]) -> None:
    for name in ("model0-slow_fast-32-mini_stage1", "model0-slow_fast-32"):
        assert not [path.name for path in folders[name].iterdir() if path.is_dir()]
