"""From an official checkpoint and real-layout data to the table: the whole paper path, offline, on stand-ins."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from loopback import servers
from omegaconf import OmegaConf
from stand_in_hub import COUNTS, lay_out, stand_in_data, write_official_checkpoint, write_stand_ins

from harness.errors import UserError
from harness.paper import verb
from harness.paper.models import load_model
from harness.paper.request import Request
from harness.paper.rows import read_all
from harness.paper.stages import RowStages
from harness.real.suite import real_suite
from harness.stages import resolve

pytestmark = pytest.mark.slow  # a minute of a processor

BENCHMARKS = ("videomme", "mlvu")
PUBLISHED = Path(__file__).parents[1] / "results" / "published"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins for the hub's data and the released checkpoint of 64 frames, and published numbers."""
    folder = tmp_path_factory.mktemp("paper")
    data = stand_in_data(folder, BENCHMARKS)
    write_official_checkpoint(data / "models" / load_model("released_64").hub)
    shutil.copytree(PUBLISHED, folder / "results" / "published")
    return folder


def settings(place: Path, **changes: Any) -> Any:
    asked = {
        "models": ["released_64"],
        "benchmarks": list(BENCHMARKS),
        "data": str(place / "data"),
        "runs_dir": str(place / "runs"),
        "results_dir": str(place / "results"),
        "device": "cpu",
        "workers": 0,
        "jobs": 0,
    }
    return OmegaConf.create(asked | changes)


@pytest.fixture(scope="module")
def table(place: Path) -> pd.DataFrame:
    """The table of one run: the released checkpoint."""
    verb.table(settings(place), [])
    return pd.read_csv(place / "results" / "tables" / "paper.csv")


def test_the_path_leads_from_checkpoint_and_data_to_the_table(place: Path, table: pd.DataFrame) -> None:
    assert table["benchmark"].tolist() == ["videomme", "mlvu", "mlvu"]
    assert table["questions"].tolist() == [COUNTS["videomme"][0], *[COUNTS["mlvu"][0]] * 2]
    assert table["published"].tolist() == [60.2, 60.4, 67.3]
    assert table["difference"].tolist() == pytest.approx((table["measured"] - table["published"]).tolist(), abs=1e-3)
    assert table["failures"].tolist() == [0, 0, 0]
    rows, samples = read_all(place / "results", 0)
    (row,) = rows.to_dict("records")
    assert (row["scale"], row["architecture"], row["frames"]) == ("paper", "released_64", 64)
    assert (row["n_samples"], len(samples)) == (13, 13)
    assert row["suite"]["precision"] == "bfloat16"
    assert row["fast_tokens"] > 0
    assert row["model_tflop_7b"] == pytest.approx(sum(row["flop_stages"].values()))
    assert row["suite"]["generated_read_slow"] is False


def test_a_second_run_evaluates_nothing_and_gives_the_same_table(
    place: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.stages.find_function", lambda path: pytest.fail(f"{path} was run"))
    before = (place / "results" / "tables" / "paper.csv").read_bytes()
    verb.table(settings(place), [])
    assert (place / "results" / "tables" / "paper.csv").read_bytes() == before


def test_a_checkpoint_of_ours_scores_as_the_official_one_it_was_imported_from(place: Path, table: pd.DataFrame) -> None:
    (imported,) = (place / "runs").glob("import-released_64-*")
    own = shutil.copytree(imported / "model", place / "own")
    asked = settings(place, models=None, checkpoint=str(own), frames=64, benchmarks=["videomme"])
    verb.table(asked, [])
    _, samples = read_all(place / "results", 0)
    videomme = samples[samples["benchmark"].eq("videomme")]
    both = [videomme.loc[videomme["architecture"].eq(name), "prediction"].tolist() for name in ("own", "released_64")]
    assert both[0] == both[1]


def test_the_dry_run_counts_the_checkpoint_that_is_here(place: Path, capsys: pytest.CaptureFixture) -> None:
    verb.table(settings(place, dry_run=True), [])
    told = capsys.readouterr().out
    assert "Plan of the table at paper scale: nothing has been run, fetched or written" in told
    line = next(line for line in told.splitlines() if "slowfast-video-mllm" in line)
    assert "yes" in line


def test_stages_depend_on_what_shapes_them_and_on_nothing_else(place: Path) -> None:
    suite = real_suite(place / "data", ["videomme"])

    def keys(**changes: Any) -> dict[str, str]:
        request = Request.of(settings(place, **changes), [f"{name}={value}" for name, value in changes.items()])
        stages = RowStages(request, request.models[0], {"videomme": suite}).all()
        return {name: attempt.key for name, attempt in resolve(stages, place).items()}

    usual = keys()
    assert list(usual) == ["import-released_64", "cost-released_64", "scores-released_64-videomme"]
    for aside in ({"processes": 4}, {"workers": 7}, {"device": "cuda"}, {"online": True}):
        assert keys(**aside) == usual
    for shaping in ({"prompts": "lmms_eval"}, {"sampling": "uniform"}, {"batch_size": 4}, {"dtype": "float32"}):
        changed = keys(**shaping)
        assert {name for name in usual if changed[name] != usual[name]} == {"scores-released_64-videomme"}


def test_egoschemas_full_set_becomes_a_file_that_is_sent_only_if_submit_is_typed(
    place: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    scored = "Total result: 3 correct, 1 wrong, 1 missing, 0 invalid, accuracy: 0.6\nSubset result: none"
    lay_out(write_stand_ins(place / "more", ["egoschema_full"]), place / "full", ["egoschema_full"])
    shutil.copytree(place / "data" / "models", place / "full" / "models")
    asked = settings(place, benchmarks=["egoschema_full"], data=str(place / "full"), results_dir=str(place / "empty"))
    speaking = lambda *_: "A"  # noqa: E731 - the random model's own words hold no letter
    monkeypatch.setattr("harness.lmms_plugin.cut", speaking)
    with servers() as start:
        server = start((200, scored))
        monkeypatch.setattr("harness.submission.SERVER", server.url)
        verb.table(asked, [])
        told = capsys.readouterr().out
        assert server.received == []
        file = Path(told.strip().rpartition(" in ")[2])
        answers = json.loads(file.read_text())
        assert len(answers) == COUNTS["egoschema_full"][0]
        assert set(answers.values()) == {0}
        asked.submit = True
        verb.table(asked, [])
        assert [method for method, _ in server.sent()] == ["POST"]
        assert json.loads(server.received[0][3]) == answers
        assert "60.0 by" in capsys.readouterr().out
    assert not (place / "empty" / "rows").exists()  # a set without public answers makes no row


def test_a_missing_checkpoint_is_one_sentence(place: Path) -> None:
    with pytest.raises(UserError, match=r"released_96: its checkpoint is not at .*frame96-s1t6; fetch it"):
        verb.table(settings(place, models=["released_96"]), [])


def test_a_checkpoint_without_a_tokenizer_fails_its_own_stage(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "official"
    shutil.copytree(place / "data" / "models" / load_model("released_64").hub, folder)
    (folder / "tokenizer.json").unlink()
    asked = settings(place, models=None, checkpoint=str(folder), frames=16, runs_dir=str(tmp_path / "runs"))
    with pytest.raises(UserError, match="holds no tokenizer"):
        verb.table(asked, [])
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava_qwen_slow_fast"
