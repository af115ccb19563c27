"""The doctor: with one piece missing at a time, it names that piece and how to get it, and nothing else."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import GatedRepoError, HTTPError
from omegaconf import OmegaConf
from rich.console import Console
from stand_in_hub import COUNTS, EVERY, FIVE, VISION_FILE, stand_in_data, write_expected, write_official_checkpoint

from harness.benchmarks import all_benchmarks
from harness.errors import UserError
from harness.real import checks, doctor, verb
from harness.real.catalogue import EXPECTED, REPOSITORIES, bytes_of, repositories_of
from harness.real.checkpoints import Checkpoint
from harness.real.checks import Finding, Needs
from harness.real.fetch import fetch

Usage = namedtuple("Usage", "total used free")
GB = 10**9


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, a complete data root of every benchmark, and checkpoint/."""
    folder = tmp_path_factory.mktemp("stand-ins")
    stand_in_data(folder)
    write_official_checkpoint(folder / "checkpoint")
    return folder


@pytest.fixture
def place(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    for name in ("data", "checkpoint"):
        shutil.copytree(pristine / name, tmp_path / name, symlinks=True)
    return tmp_path


def look(place: Path, **options: object) -> list[Finding]:
    """What the doctor finds."""
    return doctor.examine(place / "data", EVERY, [place / "checkpoint"], **options)


def missing(findings: list[Finding]) -> list[Finding]:
    """What it says is missing."""
    return [finding for finding in findings if finding.state == "missing"]


def truncate(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_row(path: Path) -> None:
    """A table without its last row."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 1), path)


def empty(folder: Path) -> None:
    """As if the archives of a repository had not been unpacked."""
    shutil.rmtree(folder)


HUB, HOME = "data/hub", "data/home"
SHARD = "checkpoint/model-00002-of-"
Damage = Callable[[Path], None]
PIECES: dict[str, tuple[str, Damage, str, str, str]] = {
    # what is done -> (path, by what, whose finding, words of its detail, words of the command that mends it)
    "a table": (
        f"{HUB}/lmms-eval/Video-MME/videomme/test-00000-of-00001.parquet",
        *(
            Path.unlink,
            "videomme: table",
            "Video-MME/videomme/test-*.parquet",
            "benchmarks=[videomme] online=true",
        ),
    ),
    "a table in JSON": (
        f"{HUB}/OpenGVLab/MVBench/json/action_count.json",
        *(Path.unlink, "mvbench: table", "json/action_count.json", "benchmarks=[mvbench]"),
    ),
    "a broken table": (
        f"{HUB}/lmms-eval/egoschema/Subset/test-00000-of-00001.parquet",
        *(truncate, "egoschema: table", "cannot be read as a table", "benchmarks=[egoschema]"),
    ),
    "one question": (
        f"{HUB}/lmms-eval/PerceptionTest_Val/mc_question_val/validation-00000-of-00001.parquet",
        *(
            drop_row,
            "perceptiontest_val_mc: table",
            "2 questions, 3 expected",
            "benchmarks=[perceptiontest_val_mc]",
        ),
    ),
    "one video": (
        f"{HOME}/mvbench_video/star/Charades_segment/action_sequence.mp4",
        *(Path.unlink, "mvbench: videos", "1 of 20 are not in", "benchmarks=[mvbench]"),
    ),
    "a broken video": (
        f"{HOME}/tempcompass/videos/1103.mp4",
        *(truncate, "tempcompass: reading", "1103.mp4", "benchmarks=[tempcompass]"),
    ),
    "a zip not unpacked": (
        f"{HOME}/mlvu/count_1.mp4",
        *(Path.unlink, "mlvu: videos", "not unpacked: video_part_1.zip", "benchmarks=[mlvu]"),
    ),
    "a folder of videos not linked": (
        f"{HOME}/mvbench_video/vlnqa",
        *(empty, "mvbench: videos", "not unpacked: vlnqa", "benchmarks=[mvbench]"),
    ),
    "a tar in parts not unpacked": (
        f"{HOME}/datasets/longvideobench/videos",
        *(empty, "longvideobench: videos", "not unpacked: videos.tar", "benchmarks=[longvideobench]"),
    ),
    "the subtitles": (
        f"{HOME}/videomme/subtitle/mme_0.srt",
        *(Path.unlink, "videomme_w_subtitle: subtitles", "of 0 of 2 videos; not unpacked: subtitle.zip", "_subtitle]"),
    ),
    "a shard": (
        SHARD,
        *(Path.unlink, "checkpoint checkpoint", "is not there, though model.safetensors.index.json lists it", "cp -r"),
    ),
    "half a shard": (SHARD, truncate, "checkpoint checkpoint", "cut off", "cp -r"),
    "the index": (
        "checkpoint/model.safetensors.index.json",
        *(Path.unlink, "checkpoint checkpoint", "weights", "cp -r"),
    ),
    "the tokenizer": ("checkpoint/tokenizer.json", Path.unlink, "checkpoint checkpoint", "tokenizer", "cp -r"),
    "the vision file": (
        f"checkpoint/{VISION_FILE}",
        Path.unlink,
        "checkpoint checkpoint",
        "vision file",
        f"/checkpoint/{VISION_FILE}",
    ),
    "the configuration": ("checkpoint/config.json", Path.unlink, "checkpoint checkpoint", "config.json", "cp -r"),
}


def test_nothing_is_missing_where_all_is_there(pristine: Path) -> None:
    findings = look(pristine, check="all")
    assert missing(findings) == []
    assert doctor.exit_code(findings) == 0
    said = {finding.what: finding.detail for finding in findings}
    for name, (questions, videos) in COUNTS.items():
        assert said[f"{name}: table"] == f"{questions} questions"
        assert said[f"{name}: videos"] == f"{videos} videos"
        assert said[f"{name}: reading"] == "all"


@pytest.mark.parametrize("piece", PIECES)
def test_the_missing_piece_is_named_and_nothing_else(place: Path, piece: str) -> None:
    path, damage, what, words, mend = PIECES[piece]
    target = place / path
    damage(target if target.exists() else next(target.parent.glob(f"{target.name}*")))
    findings = look(place)
    found = missing(findings)
    # What two benchmarks share is missing in both.
    shared = [what, what.replace("videomme:", "videomme_w_subtitle:")]
    assert [finding.what for finding in found] == list(dict.fromkeys(shared))
    assert words in found[0].detail
    assert mend in found[0].mend
    assert ("online=true" in found[0].mend) == ("fetch" in found[0].mend and "unpacked" not in words)
    assert "fetch" not in found[0].detail  # what to do is said once
    assert doctor.exit_code(findings) == 2


def test_what_is_fetched_is_complete_also_without_its_archives(pristine: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert len(missing(doctor.examine(data, EVERY))) >= len(EVERY)
    fetch(data, EVERY, source=pristine / "hub")
    write_expected(data)
    assert missing(doctor.examine(data, EVERY, check="all")) == []
    for archive in [*data.glob("hub/*/*/*.zip"), *data.glob("hub/*/*/*.tar*")]:
        archive.unlink()
    assert missing(doctor.examine(data, EVERY)) == []


def test_more_questions_than_expected_are_a_warning(place: Path) -> None:
    path = place / "data" / doctor.EXPECTED_FILE
    counts = json.loads(path.read_text())
    counts["tempcompass"]["questions"] = 4
    path.write_text(json.dumps(counts))
    findings = look(place)
    assert [finding.what for finding in findings if finding.state == "warning" and "tempcompass" in finding.what] == [
        "tempcompass: table"
    ]
    assert doctor.exit_code(findings) == 0


def test_published_numbers_count_where_the_data_root_has_none_of_its_own(place: Path) -> None:
    (place / "data" / doctor.EXPECTED_FILE).unlink()
    found = {finding.what: finding.detail for finding in missing(look(place))}
    assert found["videomme: table"].startswith("6 questions, 2700 expected (card of ")
    assert found["videomme: videos"].startswith("2 videos, 900 expected")
    assert "mlvu: table" not in found  # nobody looked it up
    assert "disk" in found or bytes_of(FIVE)[0] < shutil.disk_usage(place).free


def test_a_broken_expectation_is_told(place: Path) -> None:
    (place / "data" / doctor.EXPECTED_FILE).write_text('{"mlvu": {"question": 3}}')
    with pytest.raises(UserError, match=r"expected\.json: mlvu\.question: .*questions: N"):
        look(place)


# -------------------------------------------------------------------------------------------------- the machine


def test_too_little_disk(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(500 * GB, 400 * GB, 100 * GB))
    [found] = [f for f in doctor.examine(tmp_path / "new", ["egoschema"]) if f.what == "disk"]
    assert found.state == "missing"
    # Five archives of 105.7 GB, and as much again unpacked; 100 GB are free.
    assert found.detail == "100 GB free, 211 GB still to come"
    assert missing(look(pristine)) == []  # what is there needs no disk
    [found] = missing(look(pristine, needs=Needs(disk=101 * GB)))
    assert found.what == "disk"


def test_unknown_sizes_are_said_to_be_unknown() -> None:
    assert bytes_of(["mlvu"]) == (0, ["sy1998/MLVU_dev"])
    found = checks.disk(Path("/"), 0, ["sy1998/MLVU_dev"], free=GB)
    assert (found.state, "size not known: sy1998/MLVU_dev" in found.detail) == ("warning", True)


def fake_torch(gpus: list[int]) -> object:
    """Something with what the doctor asks of torch: these GPUs, by bytes."""
    cuda = namedtuple("Cuda", "is_available device_count get_device_properties")
    card = namedtuple("Card", "name total_memory")
    return namedtuple("Torch", "__version__ cuda", rename=True)(
        "2.15.0", cuda(lambda: bool(gpus), lambda: len(gpus), lambda i: card("NVIDIA X", gpus[i]))
    )


def test_a_torchvision_of_another_build(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return namedtuple("Module", "version")("0")._replace() if name != "torch" else __import__("torch")

    found = checks.torch_pair(load)
    assert found.state == "missing"
    assert "operator torchvision::nms does not exist" in found.detail
    assert "torchvision" in found.mend
    monkeypatch.setattr(checks, "torch_pair", lambda: found)
    assert missing(look(place)) == [found]


def test_gpu_and_memory_against_the_plan() -> None:
    assert checks.gpu(60 * GB, fake_torch([80 * GB, 80 * GB])).detail == "2 x NVIDIA X, 80 GB; the plan needs 60.0 GB"
    assert checks.gpu(60 * GB, fake_torch([80 * GB, 40 * GB])).state == "missing"
    assert checks.gpu(None, fake_torch([])).state == "warning"
    assert checks.memory(10 * GB, there=8 * GB).state == "missing"
    assert checks.memory(8 * GB, there=8 * GB).state == "ok"


def test_python_packages_and_decoders() -> None:
    assert checks.python((3, 12)).state == "ok"
    assert checks.python((3, 13)).state == "missing"
    [found] = checks.packages(lambda name: name != "decord")
    assert (found.state, found.detail) == ("missing", "not installed: decord")
    assert checks.ffmpeg().state == "ok"
    assert "no decoder for av1" in checks.ffmpeg(lambda name: name != "av1").detail


# ------------------------------------------------------------------------------------------------------ the hub


class FakeHub:
    """Knows who accepted what; `fault`: what asking it raises."""

    def __init__(self, refused: tuple[str, ...] = (), fault: Exception | None = None) -> None:
        self.refused, self.fault, self.asked = refused, fault, []

    def auth_check(self, name: str, repo_type: str) -> None:
        self.asked.append(name)
        if self.fault is not None:
            raise self.fault
        if name in self.refused:
            raise GatedRepoError.__new__(GatedRepoError)


def test_a_token_is_missing_only_for_data_that_ask_for_one() -> None:
    gated, public = repositories_of(["longvideobench"]), repositories_of(["tempcompass"])
    found = checks.hub(gated, api=FakeHub(), token=None)
    assert [f.what for f in missing(found)] == ["hub token"]
    assert "longvideobench/LongVideoBench" in found[0].detail
    assert found[0].mend == "hf auth login"
    assert missing(checks.hub(public, api=FakeHub(), token=None)) == []
    assert missing(checks.hub(gated, api=FakeHub(), token="t")) == []


def test_conditions_that_were_not_accepted_and_a_hub_out_of_reach() -> None:
    wanted = repositories_of(["longvideobench", "mvbench"])
    [found] = missing(checks.hub(wanted, api=FakeHub(refused=("OpenGVLab/MVBench",)), token="t"))
    assert found.what == "hub: OpenGVLab/MVBench"
    assert found.mend == "open https://huggingface.co/datasets/OpenGVLab/MVBench"
    for fault in (HTTPError("no route"), OSError("no route")):
        hub = FakeHub(fault=fault)
        [found] = missing(checks.hub(wanted, api=hub, token="t"))
        assert (found.what, len(hub.asked)) == ("hub", 1)


def test_the_hub_is_asked_only_when_online_was_typed(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(checks, "hub", lambda wanted, models: asked.append((wanted, models)) or [])
    doctor.examine(pristine / "data", ["tempcompass"])
    assert asked == []
    models = [Checkpoint(pristine / "data/models/org/name", model="released_64"), pristine / "checkpoint"]
    found = doctor.examine(pristine / "data", ["tempcompass"], models, online=True)
    [(wanted, asked_models)] = asked
    assert [repository.name for repository in wanted] == ["lmms-eval/TempCompass"]
    assert asked_models == ["org/name"]
    [lacking] = missing(found)
    assert lacking.mend == f"python -m harness fetch data={pristine / 'data'} models=[released_64] online=true"


# ------------------------------------------------------------------------------------------- catalogue and verb


def test_the_catalogue_knows_every_benchmark() -> None:
    known = all_benchmarks()
    assert known.keys() == EXPECTED.keys()
    for benchmark in known.values():
        repository = REPOSITORIES[benchmark.hub]
        assert repository.source
        assert repository.archives or repository.folders


def test_a_checkpoint_may_hold_its_tower_or_have_it_elsewhere(tmp_path: Path) -> None:
    whole = write_official_checkpoint(tmp_path / "whole", tower_inside=True)
    assert doctor.of_checkpoint(Checkpoint(whole)).state == "ok"
    apart = write_official_checkpoint(tmp_path / "apart")
    moved = (apart / VISION_FILE).rename(tmp_path / "tower.safetensors")
    assert doctor.of_checkpoint(Checkpoint(apart, moved)).state == "ok"
    assert "vision file" in doctor.of_checkpoint(Checkpoint(apart)).detail


def test_the_verb_prints_within_80_columns_and_fails_where_something_is_missing(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = {"data": str(place / "data"), "benchmarks": ["mlvu", "mvbench"], "models": []}
    settings["checkpoint"] = str(place / "checkpoint")
    verb.doctor(OmegaConf.create(settings), [])
    printed = capsys.readouterr().out
    assert "Nothing is missing." in printed
    assert "plan" not in printed  # it could be made, from the checkpoint's own configuration
    (place / "data/home/mlvu/count_1.mp4").unlink()
    with pytest.raises(UserError, match=r"missing: mlvu: videos; the commands above mend it") as raised:
        verb.doctor(OmegaConf.create(settings), [])
    assert raised.value.exit_code == 2
    printed = capsys.readouterr().out
    assert f"python -m harness fetch data={place / 'data'} benchmarks=[mlvu]\n" in printed
    assert max(map(len, printed.split("What mends it:")[0].splitlines())) <= 80


def test_at_mini_scale_only_the_machine_is_looked_at(capsys: pytest.CaptureFixture) -> None:
    verb.doctor(OmegaConf.create({"scale": {"name": "mini"}}), [])
    printed = capsys.readouterr().out
    assert "GPU" in printed
    assert "videomme" not in printed
    assert checks.gpu(None, fake_torch([]), wanted=False).state == "ok"


def test_brackets_in_a_detail_are_printed_as_they_are(capsys: pytest.CaptureFixture) -> None:
    doctor.show([Finding("x", "missing", "a [b] c", "d [e]")], Console(width=80, highlight=False))
    printed = capsys.readouterr().out
    assert "a [b] c" in printed
    assert "d [e]" in printed
