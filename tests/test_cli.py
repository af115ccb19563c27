"""The command line: what is allowed works, and every mistake is one sentence, exit code 2, no traceback."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness import cli
from harness.compose import CONF, closest_first, compose, group_choices
from harness.errors import TooManyFailures, UserError
from harness.settings import ABLATE, MAIN, PROFILE, Control, Groups, Root
from harness.stages import find_function


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """The shipped config.yaml without its groups, and one group of two choices."""
    shipped = OmegaConf.load(CONF / "config.yaml")
    shipped.defaults = [{"gate": "plain"}, "_self_"]
    OmegaConf.save(shipped, tmp_path / "config.yaml")
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "plain.yaml").write_text("name: plain\nbias: 0.5\nlayers: [0, 2]\nwidth: null\n")
    (tmp_path / "gate" / "static.yaml").write_text("name: static\n")
    return tmp_path


def test_settings_compose_with_their_types(conf: Path) -> None:
    settings = compose(["seed=3", "control=other_video", "base_seeds=[4,5]", "jobs=2", "gate.bias=1"], conf)
    assert (settings.seed, list(settings.base_seeds), settings.jobs) == (3, [4, 5], 2)
    assert settings.control is Control.other_video
    assert dict(settings.gate) == {"name": "plain", "bias": 1, "layers": [0, 2], "width": None}
    assert compose(["gate=static"], conf).gate == {"name": "static"}
    assert compose(["gate.width=7"], conf).gate.width == 7  # null: a number is chosen
    assert compose(["gate.bias=null"], conf).gate.bias is None
    assert compose([], conf).jobs is None


@pytest.mark.parametrize("root", [MAIN, ABLATE, PROFILE], ids=lambda root: root.name)
def test_every_setting_has_a_shipped_value(root: Root) -> None:
    settings = compose([], root=root)
    assert not OmegaConf.missing_keys(settings)
    assert set(settings) == {item.name for item in fields(root.schema)}


def test_every_choice_composes() -> None:
    """Under one root: all take their groups from groups.yaml, and how a row's model learns is that root's own."""
    assert set(group_choices()) == {item.name for item in fields(Groups)} | {"training"}
    for group, names in group_choices().items():
        for name in names:
            assert compose([f"{group}={name}"])[group].name


def test_profilers_have_settings_of_their_own() -> None:
    settings = compose(["frames=[16,128]", "architectures=[slow_fast]", "gate=static_tanh"], root=PROFILE)
    assert (list(settings.frames), settings.gate.name, settings.scale.name) == ([16, 128], "static_tanh", "paper")
    with pytest.raises(UserError, match=r"frames=16: frames takes a list such as \[1,2\], each a whole number, not 16"):
        compose(["frames=16"], root=PROFILE)
    with pytest.raises(UserError, match="there is no setting 'base_seeds'"):
        compose(["base_seeds=[0]"], root=PROFILE)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sede=1", "sede=1: there is no setting 'sede'; there are seed, "),
        ("gaet=plain", "there is no setting 'gaet'; there are gate, "),
        ("gate=statc", "gate=statc: there is no gate 'statc'; choose one of static, plain"),
        ("gate.bais=1", "gate.bais=1: gate has no setting 'bais'; there are bias, "),
        ("gate.bias=x", "gate.bias=x: gate.bias takes a number, not 'x'"),
        ("gate.width=x", "gate.width=x: gate.width takes a number or null, not 'x'"),
        ("gate.layers=3", "gate.layers=3: gate.layers takes a list, not 3"),
        ("gate.name=static", "gate.name=static: choose by gate=NAME, one of plain, static"),
        ("seed.x=1", "seed.x=1: seed is a single value with nothing below it"),
        ("seed=x", "seed=x: seed takes a whole number, not 'x'"),
        ("seed=1.5", "seed=1.5: seed takes a whole number, not 1.5"),
        ("seed=true", "seed=true: seed takes a whole number, not True"),
        ("seed=null", "seed=null: seed takes a whole number, not null"),
        ("seed=-1", "seed=-1: seed is at least 0"),
        ("frames=0", "frames=0: frames is at least 1"),
        ("jobs=many", "jobs=many: jobs takes a whole number or null, not 'many'"),
        ("runs_dir=[a]", "runs_dir=[a]: runs_dir takes a text, not ['a']"),
        ("base_seeds=2", "base_seeds takes a list such as [1,2], each a whole number, not 2"),
        ("base_seeds=[1,1]", "base_seeds=[1, 1]: give at least one, each only once"),
        ("base_seeds=[]", "base_seeds=[]: give at least one, each only once"),
        ("rows=[]", "rows=[]: give at least one, each only once"),
        ("rows=[a@1,a@1]", "rows=['a@1', 'a@1']: give at least one, each only once"),
        ("control=open", "control takes one of none, gate_closed, other_video, shuffled, "),
        ("seed", "'seed' is not KEY=VALUE"),
        ("+extra=1", "'+extra=1': settings can be changed, not added"),
        ("~gate", "settings can be changed, not added"),
        ("seed=1,2", "'seed=1,2' gives several values"),
    ],
)
def test_a_mistake_is_one_sentence_that_lists_what_is_allowed(conf: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        compose([override], conf)
    assert sentence in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_the_closest_name_comes_first() -> None:
    assert closest_first("compresor", ["gate", "compressor", "scope"]).startswith("compressor, ")


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_is_there(name: str) -> None:
    assert callable(find_function(cli.VERBS[name].function))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sutie"], "error: there is no verb 'sutie'; there are suite, "),
        (["suite", "sed=1"], "error: sed=1: there is no setting 'sed'; there are seed, "),
        (["suite", "scale=smoek"], "error: scale=smoek: there is no scale 'smoek'; choose one of smoke, "),
        (["evaluate"], "error: evaluate needs checkpoint=FOLDER, the folder of a saved model"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    """As a person meets it, from any folder."""
    done = subprocess.run([sys.executable, "-m", "harness", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_verb_setting_and_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    words = {line.split()[0] for line in said.splitlines() if line.startswith("  ")}
    for root in (MAIN, PROFILE):
        assert set(cli.VERBS) | {item.name for item in fields(root.schema) if "group" not in item.metadata} <= words
    assert set(group_choices()) <= words
    for arguments in (
        ["suite", "seed=5", "--config"],
        ["suite", "--config", "seed=5"],
        ["--config", "suite", "seed=5"],
    ):
        assert cli.main(arguments) == 0
        assert "seed: 5\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes\n"),
        (TooManyFailures("3 of 9 samples failed"), 3, "error: 3 of 9 samples failed\n"),
    ],
)
def test_how_a_verb_ends_is_the_exit_code(
    ending: BaseException | None,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def suite(settings: object, overrides: object) -> None:
        if ending is not None:
            raise ending

    monkeypatch.setattr("harness.commands.suite", suite)
    assert cli.main(["suite"]) == code
    assert capsys.readouterr().err == said


def test_over_one_percent_of_failures_is_too_many() -> None:
    from harness.commands import complain_of

    complain_of(1, 100, ["a.mp4"])
    with pytest.raises(TooManyFailures, match=r"2 of 100 samples failed.*: a.mp4, b.mp4; everything is written"):
        complain_of(2, 100, ["a.mp4", "b.mp4"])


def test_the_contact_sheet_of_a_sample_is_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    out = tmp_path / "sheet.png"
    assert cli.main(["contact-sheet", "scale=smoke", "jobs=1", "benchmark=mlvu", "sample=3", f"output={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert min(Image.open(out).size) > 400
