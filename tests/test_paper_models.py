"""The models that the table can have rows of: every YAML, what a checkpoint's folder holds, and mistakes."""

import ast
import json
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file
from synthetic_rows import answers, questions

from harness import external
from harness.errors import UserError
from harness.evaluate import SAMPLES, SCORES, SUBMISSION
from harness.jobs import run
from harness.paper import verb
from harness.paper.models import FOLDER, load_model, model_names, own_model, tower_for, tower_shapes
from harness.paper.request import Request
from harness.paper.rows import ITS_OWN, is_counted, row_of
from harness.paper.stages import JUDGES_NAME, PROBE_BYTES, PROBES, RowStages, checkpoint_state
from harness.reports.published import read_published
from harness.stages import resolve

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize("name", model_names())
def test_every_yaml_is_a_model_whose_published_names_exist(name: str) -> None:
    spec = load_model(name)
    assert spec.name == name
    known = set(read_published(RESULTS)["model"])
    assert {each.model for each in spec.published} <= known


@pytest.mark.parametrize("name", [name for name in model_names() if load_model(name).is_external])
def test_lmms_eval_has_the_model_and_its_arguments(name: str) -> None:
    """Read from its source: importing it would need packages that nobody else needs."""
    spec = load_model(name)
    package = Path(util.find_spec("lmms_eval").origin).parent
    source = package / "models" / "simple" / f"{spec.lmms_model}.py"
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    makers = [item for node in classes for item in node.body if getattr(item, "name", "") == "__init__"]
    parameters = {argument.arg for maker in makers for argument in maker.args.args}
    assert set(spec.arguments(None)) <= parameters
    assert spec.arguments(None)[spec.frames_argument] == spec.frames
    assert spec.arguments(None)["pretrained"] == spec.hub


def test_external_weights_are_taken_from_the_data_root_if_they_are_there(tmp_path: Path) -> None:
    spec = load_model("llava_onevision")
    assert spec.arguments(tmp_path)["pretrained"] == spec.hub
    folder = tmp_path / "models" / spec.hub
    folder.mkdir(parents=True)
    assert spec.arguments(tmp_path)["pretrained"] == str(folder)


def test_a_yaml_of_the_users_own_is_a_model_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    content = yaml.safe_load((FOLDER / "qwen2_5_vl.yaml").read_text()) | {"name": "mine", "frames": 8}
    file.write_text(yaml.safe_dump(content))
    assert load_model(str(file)).arguments(None)["max_num_frames"] == 8
    file.write_text(yaml.safe_dump(content | {"frames": None}))
    with pytest.raises(UserError, match="kind external needs frames"):
        load_model(str(file))
    file.write_text(yaml.safe_dump(content | {"colour": "red"}))
    with pytest.raises(UserError, match="colour"):
        load_model(str(file))


def test_an_own_checkpoint_is_named_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my run, 2"
    with pytest.raises(UserError, match=r"has no config\.json"):
        own_model(folder, 64)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    spec = own_model(folder, 64)
    assert (spec.name, spec.frames, spec.at(None), spec.kind) == ("my_run__2", 64, folder, "ours")


def test_checkpoints_of_several_trainings_have_rows_of_their_own(tmp_path: Path) -> None:
    """A training's model lies in a folder `model`: by that alone one row would take the other's place."""
    names = {}
    for path in ("stage2-a/model", "stage2-b/model", "stage2-b/checkpoints/checkpoint-500", "b/own"):
        folder = tmp_path / path
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        names[path] = own_model(folder, 64).name
    assert list(names.values()) == ["stage2-a_model", "stage2-b_model", "stage2-b_checkpoints_checkpoint-500", "own"]


def test_another_judge_is_another_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suite.json").write_text(json.dumps({"fingerprint": "f" * 64}))
    names = ("activitynetqa", "videomme")
    asked = {"models": ["qwen2_5_vl"], "benchmarks": list(names), "data": str(tmp_path), "online": True}
    request = Request.of(OmegaConf.create(asked), [])

    def keys(**variables: str) -> list[str]:
        for name in ("OPENAI_API_URL", "MODEL_VERSION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stages = RowStages(request, request.models[0], dict.fromkeys(names, tmp_path)).all()
        return [attempt.key for attempt in resolve(stages, tmp_path).values()]

    usual = keys()
    assert keys() == keys(OPENAI_API_URL="https://api.openai.com/other") == usual
    for variables in ({"OPENAI_API_URL": "http://127.0.0.1:8000/v1"}, {"MODEL_VERSION": "gpt-3.5-turbo"}):
        judged, lettered = keys(**variables)
        assert (judged != usual[0], lettered) == (True, usual[1])
    packaged = Path(util.find_spec("lmms_eval").origin).parent / "tasks" / "activitynetqa" / "utils.py"
    assert 'os.getenv("{}", "{}")'.format(*JUDGES_NAME) in packaged.read_text()


def test_a_tower_is_looked_for_in_the_checkpoint_beside_it_and_in_the_data_root(tmp_path: Path) -> None:
    spec, data = load_model("released_64"), tmp_path / "data"
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (data / "models").mkdir(parents=True)
    weights = {"model.norm.weight": torch.ones(2)}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match="holds no vision tower: put the official code's file of it at"):
        tower_for(spec, folder, data)
    tower = {"stem.0.weight": torch.ones(4, 3, 2, 2)}
    save_file(tower, data / "models" / spec.tower)
    assert tower_for(spec, folder, data) == data / "models" / spec.tower
    named = {"model.vision_tower.vision_tower.stem.0.weight": (4, 3, 2, 2)}
    assert tower_shapes(folder, data / "models" / spec.tower) == named
    inside = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in tower.items()}
    save_file(weights | inside, folder / "model.safetensors")
    assert tower_for(spec, folder, data) is None
    assert tower_shapes(folder, None) == named


def test_a_checkpoints_state_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 * PROBES * PROBE_BYTES))
    before = checkpoint_state(tmp_path)
    (tmp_path / "notes.log").write_text("nothing")
    assert checkpoint_state(tmp_path) == before
    trained = torch.arange(3 * PROBES * PROBE_BYTES // 4, dtype=torch.int32).numpy().tobytes()  # every weight moved
    weights.write_bytes(trained)
    assert checkpoint_state(tmp_path) != before
    weights.write_bytes(bytes(3 * PROBES * PROBE_BYTES)[:-1] + b"\1")  # the last byte is read
    assert checkpoint_state(tmp_path) != before
    weights.write_bytes(bytes(3 * PROBES * PROBE_BYTES))
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert checkpoint_state(tmp_path) != before


def test_a_checkpoint_of_which_one_tensor_was_trained_is_another_one(tmp_path: Path) -> None:
    """As after the paper's first stage, which leaves the language model as it is; a tensor lies between the places."""
    frozen = {f"{i}.frozen": torch.full((2**18,), float(i)) for i in range(12)}  # 1 MB each, in order of name
    trained = {f"{i}.trained": torch.zeros(2**11) for i in range(12)}
    weights = tmp_path / "model.safetensors"

    def state() -> str:
        save_file(frozen | trained, weights)
        return checkpoint_state(tmp_path)

    states = [state()]
    for name in trained:
        trained[name] = torch.ones(2**11)
        states.append(state())
    assert len(set(states)) == len(states)


def test_published_numbers_are_there_wherever_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "results" / "published"
    assert verb.published_for(own.parent).equals(read_published(RESULTS))
    own.mkdir(parents=True)
    first = next((RESULTS / "published").glob("*.csv"))
    (own / "few.csv").write_text("".join(first.read_text().splitlines(keepends=True)[:2]))
    assert len(verb.published_for(own.parent)) == 1
    monkeypatch.setattr(verb, "CHECKOUT", tmp_path)
    with pytest.raises(UserError, match="holds published numbers; restore one of them"):
        verb.published_for(tmp_path)


def test_a_set_without_predictions_hides_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folders = {name: tmp_path / name for name in ("silent", "speaking")}
    rows_of = [
        SimpleNamespace(
            spec=SimpleNamespace(name=name), suites={"egoschema_full": tmp_path}, scores_name=lambda _, n=name: n
        )
        for name in folders
    ]
    folders["speaking"].mkdir()
    (folders["speaking"] / SUBMISSION).write_text("{}")
    empty = verb._tell_submissions(Request.of(OmegaConf.create({}), []), rows_of, folders)
    assert empty == ["silent: no answer to egoschema_full names an option: there is nothing to submit"]
    assert capsys.readouterr().out == f"speaking, egoschema_full: predictions in {folders['speaking'] / SUBMISSION}\n"


def test_an_external_models_row_is_scored_by_lmms_eval_and_has_nothing_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, weights = tmp_path / "suite", tmp_path / "models" / load_model("qwen2_5_vl").hub
    for folder in (suite, weights):
        folder.mkdir(parents=True)
    (suite / "suite.json").write_text(json.dumps({"fingerprint": "f" * 64}))
    samples = answers(questions({"videomme": (4, 3)}), 0.5, seed=3).assign(prediction="", family="")

    def evaluated(model: str, model_args: dict, suite: Path, out: Path, **options: Any) -> None:
        samples.to_parquet(out / SAMPLES)
        score = 100 * float(samples["correct"].mean())
        (out / SCORES).write_text(json.dumps({"scores": {"videomme": score}, "model": model}))

    called = create_autospec(external.evaluate_external, side_effect=evaluated)
    monkeypatch.setattr(external, "evaluate_external", called)
    asked = {"models": ["qwen2_5_vl"], "benchmarks": ["videomme"], "data": str(tmp_path), "processes": 2}
    request = Request.of(OmegaConf.create(asked), [])
    stages = RowStages(request, request.models[0], {"videomme": suite, "egoschema_full": suite})
    folders = run(stages.all(), tmp_path / "runs", jobs=0)
    assert called.call_args.args[:2] == ("qwen2_5_vl", {"pretrained": str(weights), "max_num_frames": 64})
    assert (called.call_args.kwargs["processes"], called.call_args.kwargs["benchmarks"]) == (2, ["videomme"])
    assert list(folders) == ["scores-qwen2_5_vl-videomme"]  # what has no public answers would be posted
    row, tagged = row_of(stages, folders)
    assert not is_counted(row)
    assert (row.table, row.suite["prompts"], row.suite["precision"]) == ("paper_external", ITS_OWN, None)
    assert row.scores["videomme"] == pytest.approx(100 * tagged["correct"].mean())
    assert "neither its tokens nor its FLOPs are counted" in row.disclosures[0]
    weights.rename(tmp_path / "elsewhere")  # where the weights are shapes no result
    assert run(stages.all(), tmp_path / "runs", jobs=0) == folders
