"""The paper-scale trainer's settings, what it starts from, the verb, and how processes are launched."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_finetune import forget_reporting, saved_model, tiny_start
from transformers import AutoModelForCausalLM

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from architectures.official import skeleton
from harness.compose import compose
from harness.errors import Crashed, UserError
from harness.finetune import launch, start, verb
from harness.finetune.distributed import World, deepspeed_config, expect_launch, whole_parameters
from harness.finetune.export import is_done
from harness.finetune.parts import choose, part_of, trained
from harness.finetune.plan import Plan, arguments
from harness.finetune.settings import FINETUNE
from harness.models import model_config
from harness.train import Optimisation

EXPERIMENTS = {"baseline_16": 16, "baseline_32": 32, "baseline_64": 64}
EXPERIMENTS |= {"slow_fast_64_s1t4": 64, "slow_fast_96_s1t6": 96, "slow_fast_128_s2t4": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from."""
    return tiny_start(tmp_path_factory.mktemp("start"))


# --------------------------------------------------------------------------------------------------- settings, starts


@pytest.mark.parametrize(
    ("experiment", "recipe"),
    [*((name, "stage2") for name in EXPERIMENTS), *(("slow_fast_64_s1t4", name) for name in ("stage1", "stage2_lora"))],
)
def test_the_paper_s_models_and_stages_are_one_yaml_each(experiment: str, recipe: str) -> None:
    settings = compose([f"experiment={experiment}", f"recipe={recipe}"], root=FINETUNE)
    frames = EXPERIMENTS[experiment]
    model = skeleton(model_config(settings))
    slow = experiment.startswith("slow")
    assert model.fast_token_count(settings.frames) == (1296 if slow else 81 * frames)
    assert len(model.hybrid()) == (4 if slow else 0)
    short = recipe == "stage1" or experiment in ("slow_fast_96_s1t6", "slow_fast_128_s2t4")
    assert settings.recipe.text_tokens + 1296 == (3072 if short else 4096)  # 4096 for s1t4's second stage alone
    plan = Plan.of(settings, on_cpu=False)
    assert plan.stage == {"stage1": 2, "stage2": 3, "stage2_lora": 2}[recipe]
    assert plan.step_size(8) == (32 if recipe == "stage1" else 16)
    assert plan.dtype == "bfloat16"
    cross = plan.lr_of["cross_attention"]
    assert (plan.lr, cross) == {"stage1": (1e-3, 2e-4), "stage2": (2e-5, 2e-5), "stage2_lora": (2e-4, 2e-5)}[recipe]
    choose(model, plan.trains)
    assert {part_of(name) for name, _ in trained(model)} <= set(plan.trains)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("recipe.trains=[head]", "there is no part 'head'"),
        ("recipe.accumulation=0", "recipe.accumulation=0: it is at least 1"),
        ("recipe.schedule=cosinus", "choose one of cosine, linear"),
        ("recipe.lora.rank=8", "either its weights learn or adapters"),
        ("recipe.schedule=linear recipe.final_lr=0.1", "recipe.final_lr=0.1 is a cosine's end"),
        ("report_to=[wandbb]", "choose of tensorboard, wandb, trackio"),
        ("dtype=bfloat16", "dtype=bfloat16: there is no GPU here"),
    ],
    ids=["part", "count", "schedule", "adapters", "end", "report", "dtype"],
)
def test_a_mistake_in_a_recipe_is_a_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Plan.of(compose(["recipe=stage2", *override.split()], root=FINETUNE), on_cpu=True)


def test_the_mini_stages_learn_at_the_mini_scale_s_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_reporting(monkeypatch)
    settings = compose(["experiment=mini_slow_fast", "recipe=mini_stage2", "scale=mini", "encoder=tiny"], root=FINETUNE)
    plan, adapt = Plan.of(settings, on_cpu=True), settings.scale.adapt
    assert (plan.lr, plan.lr_of["gates"], plan.batch_size) == (adapt.lr, adapt.lr * adapt.gate_lr_factor, adapt.videos)
    usual = Optimisation(adapt.steps, adapt.lr)
    assert (plan.warmup, plan.final_lr, plan.betas) == (usual.warmup, usual.final_lr, usual.betas)
    assert (plan.weight_decay, plan.max_grad_norm) == (usual.weight_decay, usual.max_grad_norm)
    told = arguments(plan, Path("work"), None, on_cpu=True, launched=False)
    assert (told.lr_scheduler_type, told.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.05})


def test_reports_stay_on_this_machine_unless_they_may_leave_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_reporting(monkeypatch)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    plan = Plan(trains=("projector",), lr=1e-3, online=True)
    told = arguments(plan, tmp_path, None, on_cpu=True, launched=False)
    assert told.report_to == []
    assert os.environ["TRACKIO_SPACE_ID"] == "someone/space"
    assert "WANDB_MODE" not in os.environ
    arguments(replace(plan, online=False), tmp_path, None, on_cpu=True, launched=False)
    assert "TRACKIO_SPACE_ID" not in os.environ
    assert os.environ["WANDB_MODE"] == "offline"


def test_a_run_s_name_changes_with_what_is_learned_and_with_nothing_else() -> None:
    def name(*overrides: str) -> str:
        return Plan.of(compose(list(overrides), root=FINETUNE), on_cpu=True).name

    assert name() == name("processes=2", "workers=1", "save_every=5", "log_every=3") != name("recipe.lr=0.1")


def test_a_start_becomes_the_variant_that_is_asked_for(tmp_path: Path) -> None:
    plain = {"placement": {"name": "none"}, "compressor": {"name": "identity"}, "slow_time": {"name": "none"}}
    base = tiny_start(tmp_path / "base", **plain)
    asked = ["scale=mini", "encoder=tiny", "placement=every", "placement.n=2", "compressor.average_stride=2"]
    settings = compose([*asked, f"start={base}"], root=FINETUNE)
    folder = start.starting_folder(settings, tmp_path / "runs", first=True)
    again = start.starting_folder(settings, tmp_path / "runs", first=False)
    assert folder == again != base
    model, before = saved_model(folder), saved_model(base)
    for layer, fusion in model.hybrid():
        assert torch.equal(fusion.k_proj.weight, layer.self_attn.k_proj.weight)
        assert torch.equal(fusion.v_proj.weight, layer.self_attn.v_proj.weight)
    assert len(model.hybrid()) == 2
    assert torch.equal(model.projector[0].weight, before.projector[0].weight)
    processor = SlowFastProcessor.from_pretrained(folder)
    assert processor.fast_token_count(20) == model.fast_token_count(20)
    same = compose([*asked, f"start={folder}"], root=FINETUNE)
    assert start.starting_folder(same, tmp_path / "runs", first=True) == folder
    for wrong in ([], [f"start={base}", f"decoder={base}"], ["start=nowhere"], [f"start={base}", "vision=file"]):
        with pytest.raises(UserError, match=r"start from|no folder of a saved model|vision goes with decoder"):
            start.starting_folder(compose(wrong, root=FINETUNE), tmp_path / "runs", first=True)


def test_a_language_model_and_a_tower_become_a_video_model(folder: Path, tmp_path: Path) -> None:
    source = saved_model(folder)
    language_model = AutoModelForCausalLM.from_config(source.config.text_config)
    language_model.save_pretrained(tmp_path / "llm")
    SlowFastProcessor.from_pretrained(folder).tokenizer.save_pretrained(tmp_path / "llm")
    tower = tmp_path / "tower.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in source.encoder.state_dict().items()}, tower)
    words = ["scale=mini", "encoder=tiny", "encoder.width=16", "encoder.image_size=32", "scale.video_pooling=1"]
    words += ["placement.n=2", "compressor.average_stride=2", f"decoder={tmp_path / 'llm'}"]
    made = start.starting_folder(compose([*words, f"vision={tower}"], root=FINETUNE), tmp_path / "runs", first=True)
    model, ids_BL = saved_model(made), torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = language_model.eval()(input_ids=ids_BL).logits
        assert torch.equal(model(input_ids=ids_BL, use_cache=False).logits, expected)
    assert all(
        torch.equal(tensor, source.encoder.state_dict()[name]) for name, tensor in model.encoder.state_dict().items()
    )
    layer, fusion = model.hybrid()[-1]
    assert torch.equal(fusion.v_proj.weight, layer.self_attn.v_proj.weight)
    assert "You are a helpful assistant" in SlowFastProcessor.from_pretrained(made).chat("What?")
    with pytest.raises(UserError, match="vision=FILE"):
        start.starting_folder(compose(words, root=FINETUNE), tmp_path / "runs", first=True)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    other = compose([*words, f"vision={tmp_path / 'other.safetensors'}"], root=FINETUNE)
    with pytest.raises(UserError, match="does not fit encoder=tiny"):
        start.starting_folder(other, tmp_path / "runs", first=True)


def test_the_verb_trains_on_annotation_files_and_is_done_when_called_again(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_reporting(monkeypatch)
    untimed = tiny_start(tmp_path / "start", slow_time={"name": "none"})
    for number in range(2):
        Image.effect_noise((40, 30), 50).save(tmp_path / f"{number}.png")
    said = [{"from": "human", "value": "what colour is the ball"}, {"from": "gpt", "value": "red"}]
    shown = [{"image": f"{number}.png", "conversations": said} for number in range(2)]
    (tmp_path / "images.json").write_text(json.dumps(shown))
    long = [said[0], {"from": "gpt", "value": "red " * 60}]
    (tmp_path / "text.jsonl").write_text(json.dumps({"conversations": long}))
    words = ["scale=mini", "encoder=tiny", "placement.n=2", "zero=none", "workers=0", "steps=2", "frames=4"]
    words += [
        "recipe.batch_size=1",
        "recipe.text_tokens=40",
        "min_frames=1",
        f"start={untimed}",
        f"runs_dir={tmp_path / 'runs'}",
    ]
    words += [f"annotations=[{tmp_path / 'images.json'},'{tmp_path / 'text.jsonl'}:2']"]
    settings = compose(words, root=FINETUNE)
    verb.finetune(settings, words)
    out = Path(capsys.readouterr().out.strip())
    record = json.loads((out / "training.json").read_text())
    assert (record["steps"], record["processes"], record["epochs"]) == (2, 1, 1.0)  # 4 conversations, 2 a step
    assert record["data"] == {"asked": 4, "broken": 0, "shortened": 2}
    model, before = saved_model(out), saved_model(untimed)
    changed = {part_of(name) for name, tensor in model.state_dict().items() if not same(tensor, before, name)}
    assert changed == {"projector", "cross_attention", "gates"}
    verb.finetune(settings, words)
    assert Path(capsys.readouterr().out.strip()) == out
    with pytest.raises(UserError, match="holds the model of another run"):  # no stage 2 where stage 1 lies
        verb.finetune(compose([*words, "recipe.lr=0.1", f"output={out}"], root=FINETUNE), [])
    with pytest.raises(UserError, match="name at least one annotation file"):
        verb.finetune(compose([*words[:-1], "seed=1"], root=FINETUNE), [])


def test_a_folder_that_holds_anything_else_is_neither_the_output_nor_removed(tmp_path: Path) -> None:
    """Nothing is trained that would replace it, and no training is passed over because of it."""
    assert not is_done(tmp_path / "none", "a_run")
    (tmp_path / "empty").mkdir()
    assert not is_done(tmp_path / "empty", "a_run")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "training.json").write_text(json.dumps({"plan": {"name": "a_run"}}))
    assert is_done(tmp_path / "own", "a_run")
    with pytest.raises(UserError, match="holds the model of another run, a_run"):
        is_done(tmp_path / "own", "other_run")
    with pytest.raises(UserError, match="holds something else"):
        is_done(tmp_path, "a_run")


def test_annotation_files_are_typed_as_the_readme_does() -> None:
    settings = compose(["annotations=[stage2.json:1,text.json:0.5,/a:b/c.json]"], root=FINETUNE)
    assert [verb.spec_of(text) for text in settings.annotations] == [
        {"path": "stage2.json", "weight": 1.0}, {"path": "text.json", "weight": 0.5}, "/a:b/c.json"
    ]  # fmt: skip


def same(tensor: torch.Tensor, other: SlowFastForConditionalGeneration, name: str) -> bool:
    """Whether another model has this tensor under a name."""
    return torch.equal(tensor, other.state_dict()[name])


# -------------------------------------------------------------------------------------------------------- launches


def test_deepspeed_is_told_no_optimizer_and_what_stays_whole(folder: Path) -> None:
    model = saved_model(folder)
    assert deepspeed_config({"stage": 0}, 1) is None
    told = deepspeed_config({"stage": 3, "offload": ["optimizer", "param"]}, whole_parameters(model))
    assert "optimizer" not in told
    zero = told["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"
    threshold = zero["stage3_param_persistence_threshold"]
    for name, parameter in model.named_parameters():
        if part_of(name) != "language_model":
            assert parameter.numel() <= threshold, name
    assert any(parameter.numel() > threshold for parameter in model.parameters())


@pytest.mark.parametrize(
    ("world", "stage", "gpus", "environment", "sentence"),
    [
        (World(0, 2, 0), 2, 0, {"ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_CPU is set"),
        (World(0, 1, -1), 3, 0, {}, "none were launched: torchrun"),
        (World(0, 2, -1), 0, 0, {}, "LOCAL_RANK is not set"),
        (World(0, 1, -1), 0, 8, {}, "one process sees 8 GPUs"),
        (World(9, 16, 9), 0, 8, {}, "no GPU of its own: launch 8"),
    ],
    ids=["use_cpu", "alone", "no_launcher", "several_gpus", "too_many"],
)
def test_a_launch_that_would_train_something_else_is_refused(
    world: World, stage: int, gpus: int, environment: dict[str, str], sentence: str
) -> None:
    expect_launch(World(0, 2, 0), stage, 2, {})
    for few in (0, 1):
        expect_launch(World(0, 1, -1), 0, few, {})
    with pytest.raises(UserError, match=sentence):
        expect_launch(world, stage, gpus, environment)


def test_launchers_get_the_settings_and_slurm_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["launch=torchrun", "processes=3", "recipe=stage2", "output=a b"]
    settings = compose(["launch=torchrun", "processes=3", "recipe=stage2"], root=FINETUNE)
    command = launch.command(settings, typed)
    assert command[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "-m"),
        *("harness", "finetune", "recipe=stage2", "output=a b"),
    ]
    deepspeed = launch.command(compose(["launch=deepspeed", "processes=2"], root=FINETUNE), ["launch=deepspeed"])
    assert deepspeed[-4:] == ["--no_local_rank", "--module", "harness", "finetune"]
    settings = compose(["launch=slurm", "nodes=2", "partition=gpu"], root=FINETUNE)
    script = tmp_path / "slurm.sh"
    script.write_text(launch.script(settings, typed, "a_run"))
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    for line in ("#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "#SBATCH --partition=gpu", "--nproc_per_node 8"):
        assert line in script.read_text()
    assert "-m harness finetune recipe=stage2 'output=a b'" in script.read_text()
    cpus = settings.processes * (settings.workers + 1)
    assert f"#SBATCH --cpus-per-task={cpus}" in script.read_text()
    assert f"srun --kill-on-bad-exit=1 --cpus-per-task={cpus} " in script.read_text()  # which it would not inherit
    with pytest.raises(UserError, match="nodes=2: launch=here"):
        launch.expect_one_node(compose(["nodes=2"], root=FINETUNE))
    monkeypatch.setattr(launch, "command", lambda *_: ["false"])
    with pytest.raises(Crashed, match="exit code 1"):
        launch.run(settings, typed)
