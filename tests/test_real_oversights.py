"""What makes a run fail, or score something else, though tables and videos are there: the doctor and suites tell it."""

import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError
from stand_in_hub import write_expected, write_stand_ins

from harness.benchmarks import benchmark_named
from harness.compose import compose
from harness.errors import UserError
from harness.real import checks, doctor, verb
from harness.real.archives import changed
from harness.real.catalogue import repositories_of
from harness.real.fetch import fetch
from harness.real.suite import real_suite
from harness.real.tables import fetch_command

BENCHMARKS = ("videomme_w_subtitle", "mlvu")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that was fetched."""
    folder = tmp_path_factory.mktemp("stand-ins")
    fetch(folder / "data", BENCHMARKS, source=write_stand_ins(folder / "hub", BENCHMARKS))
    write_expected(folder / "data", BENCHMARKS)
    return folder / "data"


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(pristine, tmp_path / "data", symlinks=True)


def found(data: Path, name: str) -> dict[str, checks.Finding]:
    """What the doctor finds of a benchmark, by its subject."""
    findings = doctor.of_benchmark(data, benchmark_named(name), doctor.expected_of(data))
    return {finding.what.removeprefix(f"{name}: "): finding for finding in findings}


# ------------------------------------------------------------------------------------------------ what is looked at


def test_what_was_not_typed_is_what_the_table_would_run(tmp_path: Path) -> None:
    """The command line's settings hold null for whatever was not typed."""

    def names(*typed: str) -> list[str | None]:
        settings = compose(["scale=paper", f"data={tmp_path}", *typed])
        return [checkpoint.model for checkpoint in verb.checkpoints_of(settings, tmp_path)]

    assert names() == ["released_64", "released_96"]
    assert names("models=[released_96]") == ["released_96"]
    assert names(f"checkpoint={tmp_path}") == [None]  # alone, as in the table
    assert names(f"checkpoint={tmp_path}", "models=[released_64]") == ["released_64", None]


def test_more_processes_than_gpus_are_told_before_they_start() -> None:
    card = namedtuple("Card", "name total_memory")("NVIDIA X", 80 * 10**9)
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda number: card)
    there = checks.gpu(None, SimpleNamespace(cuda=cuda), gpus=2)
    lacking = checks.gpu(None, SimpleNamespace(cuda=cuda), gpus=8)
    assert (there.state, lacking.state, lacking.mend) == ("ok", "missing", "choose processes=2")


# ------------------------------------------------------------------------------------------------------- the token


class Refusing:
    """A hub that answers with an HTTP status."""

    def __init__(self, status: int) -> None:
        self.error = HfHubHTTPError.__new__(HfHubHTTPError)
        self.error.response = SimpleNamespace(status_code=status)

    def auth_check(self, name: str, repo_type: str) -> None:
        raise self.error


def test_a_wrong_token_is_not_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    wanted = repositories_of(["mvbench"])
    (token,) = checks.hub(wanted, api=Refusing(401), token="wrong")
    assert (token.what, token.state, token.mend) == ("hub token", "missing", "hf auth login --force")
    monkeypatch.setenv("HF_TOKEN", "wrong")  # it comes before whatever a login leaves
    (token,) = checks.hub(wanted, api=Refusing(401), token="wrong")
    assert token.mend.startswith("export HF_TOKEN=")
    token, hub = checks.hub(wanted, api=Refusing(503), token="right")
    assert (token.state, hub.state) == ("ok", "missing")
    assert "HTTP 503" in hub.detail
    token, *refused = checks.hub(repositories_of(["mvbench", "mlvu"]), api=Refusing(403), token="narrow")
    assert [finding.what for finding in refused] == ["hub: OpenGVLab/MVBench", "hub: sy1998/MLVU_dev"]
    assert {finding.detail for finding in refused} == {"this token may not read it"}


# ------------------------------------------------------------------------------------------------------- subtitles


def test_without_subtitles_there_is_no_score_with_subtitles(data: Path) -> None:
    name = "videomme_w_subtitle"
    assert found(data, name)["subtitles"].detail.startswith("of 1 of 2 videos")
    first = real_suite(data, [name])
    with (data / "home/videomme/subtitle/mme_0.srt").open("a") as file:
        file.write("\n")
    assert real_suite(data, [name]) != first  # other questions, so another score
    assert "subtitles" not in found(data, "mlvu")
    shutil.rmtree(data / "home/videomme/subtitle")
    (data / "hub/lmms-eval/Video-MME/subtitle.zip").unlink()
    lacking = found(data, name)["subtitles"]
    assert (lacking.state, lacking.mend) == ("missing", fetch_command(data, name))
    with pytest.raises(UserError, match=r"videomme_w_subtitle: .*videomme/subtitle holds no subtitles; fetch them"):
        real_suite(data, [name])
    assert real_suite(data, ["videomme"]).is_dir()  # which shows none


# ---------------------------------------------------------------------------------------------------------- videos


def test_a_path_that_the_packaged_tasks_would_garble_is_told(data: Path, tmp_path: Path) -> None:
    """They look for x.MP4 by putting MP4 for mp4 in the whole path, folders and all."""
    moved = data.rename(tmp_path / "mp4-videos")
    assert found(moved, "videomme_w_subtitle")["videos"].state == "ok"
    video = moved / "home/videomme/data/mme_1.mp4"
    video.rename(video.with_suffix(".MP4"))
    lacking = found(moved, "videomme_w_subtitle")["videos"]
    assert (lacking.state, lacking.mend) == ("missing", f"mv {moved} ELSEWHERE")
    with pytest.raises(UserError, match=r"mme_1\.MP4 is there, but .* move the data root"):
        real_suite(moved, ["videomme"])
    assert found(moved.rename(tmp_path / "videos"), "videomme_w_subtitle")["videos"].state == "ok"


def test_a_video_cut_off_after_it_was_unpacked_is_seen_though_none_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "broken", lambda *_: {})  # the sample happens to be whole
    assert found(data, "mlvu")["reading"].state == "ok"
    video = data / "home/mlvu/ego_2.mp4"
    video.write_bytes(video.read_bytes()[:-100])
    assert changed(data / "home/mlvu") == {video}
    lacking = found(data, "mlvu")["reading"]
    assert lacking.state == "missing"
    assert lacking.detail == f"1 cannot be read: {video} (not of its archive's size)"
    fetch(data, ["mlvu"])  # what mends it, its file removed or not
    assert found(data, "mlvu")["reading"].state == "ok"


def test_commands_that_mend_can_be_typed_where_a_folder_has_a_space(tmp_path: Path) -> None:
    assert fetch_command(tmp_path / "my data", "mlvu") == (
        f"python -m harness fetch data='{tmp_path}/my data' benchmarks=[mlvu] online=true"
    )
