"""Fetching from a folder that stands for the hub, and unpacking: as the slow truth, resumable, never outside."""

import errno
import io
import os
import random
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from omegaconf import OmegaConf
from stand_in_hub import EVERY, FIVE, lay_out, tarred, write_stand_ins, zipped

from harness.compose import compose
from harness.errors import UserError
from harness.real import fetch as fetching
from harness.real import verb
from harness.real.archives import Archive, find_archives, missing_members, unpack
from harness.real.catalogue import MVBENCH, PERCEPTIONTEST, VIDEOMME
from harness.real.fetch import fetch, fetch_checkpoint

Usage = namedtuple("Usage", "total used free")


def answered(status: int) -> HfHubHTTPError:
    """The error of an answer with this HTTP status."""
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = SimpleNamespace(status_code=status)
    return error


def videos_below(home: Path) -> dict[str, bytes]:
    """Every file below a home, links to folders followed, stamps left out."""
    found = {}
    for folder, _, names in os.walk(home, followlinks=True):
        found |= {
            (Path(folder) / name).relative_to(home).as_posix(): (Path(folder) / name).read_bytes() for name in names
        }
    return {name: content for name, content in found.items() if ".unpacked/" not in name}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands for the hub, with every benchmark."""
    return write_stand_ins(tmp_path_factory.mktemp("hub"), EVERY)


def random_files(count: int = 20) -> dict[str, bytes]:
    """Files of noise of odd sizes, one of them empty, in folders."""
    chance = random.Random(0)
    return {f"a/{i % 3}/{i}.mp4": chance.randbytes(i * 1231) for i in range(count)}


def pieces(content: bytes, folder: Path, name: str, endings: list[str]) -> Archive:
    """An archive cut into as many pieces."""
    cut = -(-len(content) // len(endings))
    for i, ending in enumerate(endings):
        (folder / f"{name}{ending}").write_bytes(content[i * cut : (i + 1) * cut])
    [archive] = find_archives(folder, [f"{name}*"])
    return archive


# --------------------------------------------------------------------------------------------------------- fetch


def test_a_fetch_is_what_unpacking_everything_by_hand_gives(hub: Path, tmp_path: Path) -> None:
    truth = lay_out(hub, tmp_path / "truth", EVERY)
    fetch(tmp_path / "data", EVERY, source=hub)
    fetched = videos_below(tmp_path / "data" / "home")
    wanted = videos_below(truth / "home")
    del wanted["perceptiontest_val/audios/video_7.wav"]  # 35.5 GB that nobody reads
    assert fetched == wanted
    assert not (tmp_path / "data/hub" / PERCEPTIONTEST.name / "valid_audios.zip").exists()
    # lmms-eval takes a link at this place for its own and asks the hub: the folder is real, what is in it is linked.
    assert not (tmp_path / "data/home" / MVBENCH.home).is_symlink()
    assert (tmp_path / "data/home" / MVBENCH.home / "star").is_symlink()


def test_a_second_fetch_writes_nothing_and_a_lost_video_comes_back(hub: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    fetch(data, FIVE, source=hub)
    files = [path for path in sorted(data.rglob("*")) if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in files}
    fetch(data, FIVE, source=hub)
    assert {path: path.stat().st_mtime_ns for path in files} == times
    lost, cut = data / "home/egoschema/videos/03ac2a78-4b1e.mp4", data / "home/videomme/data/mme_1.mp4"
    before = lost.read_bytes(), cut.read_bytes()
    lost.unlink()
    cut.write_bytes(before[1][:100])
    fetch(data, FIVE)  # offline, from the archives that were downloaded
    assert (lost.read_bytes(), cut.read_bytes()) == before
    # A data root may be moved as a whole.
    moved = data.rename(tmp_path / "elsewhere")
    assert (moved / "home/mvbench_video/star/Charades_segment/action_sequence.mp4").is_file()


def test_an_interrupted_copy_goes_on(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    copy = shutil.copyfile

    def failing(source: Path, target: Path) -> None:
        if len(copied) == 3:
            Path(target).write_bytes(b"half")
            raise KeyboardInterrupt
        copied.append(Path(source).name)
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", failing)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, ["videomme"], source=hub)
    first = list(copied)
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: copied.append(source.name) or copy(source, target))
    fetch(tmp_path, ["videomme"], source=hub)
    assert sorted(copied) == sorted(path.name for path in (hub / VIDEOMME.name).rglob("*") if path.is_file())
    assert not set(first) & set(copied[3:])
    assert (tmp_path / "home/videomme/data/mme_0.mp4").is_file()


def test_offline_names_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mlvu: there is no table .*fetch data=.* benchmarks=\[mlvu\] online=true"):
        fetch(tmp_path, ["mlvu"])
    with pytest.raises(UserError, match=r"is no checkpoint; fetch it"):
        fetch_checkpoint(tmp_path, "org/name")


def test_online_is_refused_where_the_environment_says_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetch(tmp_path, ["mlvu"], online=True)


def test_a_download_asks_for_the_right_branch_without_what_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    planned = namedtuple("Planned", "file_size will_download")

    def snapshot(name: str, dry_run: bool = False, **options: object) -> list[object]:
        asked.append((name, dry_run, options["revision"], options["ignore_patterns"], options["repo_type"]))
        return [planned(10**9, True), planned(10**15, False)] if dry_run else []

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2 * 10**9))
    with pytest.raises(UserError, match="there is no table"):
        fetch(tmp_path, ["mvbench"], online=True)
    assert asked == [(MVBENCH.name, dry, "video", ["*.zip"], "dataset") for dry in (True, False)]
    asked.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10**9))
    with pytest.raises(UserError, match=r"PerceptionTest_Val needs 1\.0 GB, and 1\.0 GB are free"):
        fetch(tmp_path, ["perceptiontest_val_mc"], online=True)
    assert asked == [(PERCEPTIONTEST.name, True, None, ["valid_audios.zip"], "dataset")]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            GatedRepoError.__new__(GatedRepoError),
            r"accepted its conditions: open .*datasets/sy1998/MLVU_dev, .*hf auth login",
        ),
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "the hub has no dataset sy1998/MLVU_dev"),
        (HTTPError("reset"), r"could not be downloaded \(HTTPError\); the same command goes on"),
        (LocalEntryNotFoundError("offline"), r"could not be downloaded \(LocalEntryNotFoundError\)"),
        (answered(401), r"token for invalid or expired; log in anew: `hf auth login --force`"),
        (answered(403), r"forbids it to this machine's token; open .*datasets/sy1998/MLVU_dev, accept its conditions"),
        (OSError(errno.ENOSPC, "No space left on device"), r"the disk of .*MLVU_dev is full; make room, and the same"),
        (answered(503), r"could not be downloaded \(HfHubHTTPError\); the same command goes on"),
    ],
    ids=["gated", "not there", "cut off", "no network", "wrong token", "no right", "disk", "busy"],
)
def test_what_goes_wrong_at_the_hub_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str
) -> None:
    def snapshot(name: str, **options: object) -> None:
        raise fault

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=words):
        fetch(tmp_path, ["mlvu"], online=True)


def test_a_copy_needs_disk_too(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "free_bytes", lambda folder: 1000)
    with pytest.raises(UserError, match=r"lmms-eval/Video-MME needs .* make room"):
        fetch(tmp_path, ["videomme"], source=hub)
    assert not (tmp_path / "hub").exists()


def test_the_verb_fetches_from_a_folder(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = OmegaConf.create({"data": str(tmp_path / "data"), "benchmarks": ["nextqa_mc_test"], "source": str(hub)})
    verb.fetch(asked, ["benchmarks=[nextqa_mc_test]", f"source={hub}"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "data")
    assert len(list((tmp_path / "data/home/nextqa/NExTVideo").glob("*.mp4"))) == 3
    with pytest.raises(UserError, match="name the folder of the real benchmarks: data=FOLDER"):
        verb.fetch(OmegaConf.create({}), [])
    with pytest.raises(UserError, match="it has no folder lmms-eval/TempCompass"):
        fetch(tmp_path / "data", ["tempcompass"], source=tmp_path)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["online=true"], (FIVE, 2)),
        (["benchmarks=[mlvu]"], (("mlvu",), 0)),
        (["models=[released_64]"], ((), 1)),
        (["models=[released_64]", "benchmarks=[mlvu]"], (("mlvu",), 1)),
        (["further=true"], (EVERY, 0)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_verb_fetches_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], wanted: tuple[tuple[str, ...], int]
) -> None:
    fetched: list[object] = []
    monkeypatch.setattr(fetching, "fetch", lambda data, benchmarks, *rest: fetched.extend(benchmarks))
    models: list[str] = []
    monkeypatch.setattr(fetching, "fetch_checkpoint", lambda data, name, online: models.append(name))
    verb.fetch(compose(["scale=paper", f"data={tmp_path}", *typed]), typed)
    assert (sorted(fetched), len(models)) == (sorted(wanted[0]), wanted[1])


# ------------------------------------------------------------------------------------------------------ archives


@pytest.mark.parametrize(
    ("pack", "name", "endings"),
    [
        (zipped, "v.zip", [""]),
        (tarred, "v.tar", [""]),
        (tarred, "v.tar", [".part.aa", ".part.ab", ".part.ac"]),
        (zipped, "v.zip", [".001", ".002", ".003", ".004"]),
        (zipped, "v.zip", [".aa", ".ab"]),
    ],
    ids=["zip", "tar", "tar in parts", "zip in parts by number", "zip in parts by letter"],
)
def test_every_kind_of_archive_gives_back_its_files(
    tmp_path: Path, pack: object, name: str, endings: list[str]
) -> None:
    files = random_files()
    archive = pieces(pack(files), tmp_path, name, endings)
    assert archive.name == name
    home = tmp_path / "home"
    assert sorted(missing_members(archive, home)) == sorted(files)
    assert unpack(archive, home) == len(files)
    assert videos_below(home) == files
    assert missing_members(archive, home) == []
    assert unpack(archive, home) == 0


def test_an_unpacking_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, home = random_files(), tmp_path / "home"
    archive = pieces(zipped(files), tmp_path, "v.zip", [""])
    copied = []
    copy = shutil.copyfileobj

    def failing(source: object, target: object, length: int) -> None:
        if len(copied) == 7:
            target.write(b"half")
            raise KeyboardInterrupt
        copied.append(target.name)
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", failing)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, home)
    assert len(videos_below(home)) == 7
    monkeypatch.undo()
    assert unpack(archive, home) == len(files) - 7
    assert videos_below(home) == files


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w") as opened:
        entry = tarfile.TarInfo("out")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        opened.addfile(entry)
    outside = [
        ("up.zip", zipped({"ok.mp4": b"1", "../evil.mp4": b"2"}), "outside its folder"),
        ("root.tar", tarred({"/evil.mp4": b"2"}), "outside its folder"),
        ("deep.tar", tarred({"a/../../evil.mp4": b"2"}), "outside its folder"),
        ("windows.zip", zipped({"..\\evil.mp4": b"2"}), "outside its folder"),
        ("link.tar", linked.getvalue(), "a link or a device"),
    ]
    for name, content, words in outside:
        archive = pieces(content, tmp_path, name, [""])
        with pytest.raises(UserError, match=words):
            unpack(archive, tmp_path / "in" / "home")
    assert not list(tmp_path.rglob("*.mp4"))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    content = zipped(random_files())
    for name, damaged in (("half.zip", content[: len(content) // 2]), ("half.tar", tarred(random_files())[:70_000])):
        archive = pieces(damaged, tmp_path, name, [""])
        with pytest.raises(UserError, match=rf"{name} is damaged or not complete|{name} ends within"):
            unpack(archive, tmp_path / "home")
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 255
    with pytest.raises(UserError, match=r"flipped\.zip is damaged"):
        unpack(pieces(bytes(flipped), tmp_path, "flipped.zip", [""]), tmp_path / "home")


def test_a_changed_archive_is_unpacked_again_and_junk_is_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = pieces(zipped({"a.mp4": b"one", "__MACOSX/._a.mp4": b"junk"}), tmp_path, "v.zip", [""])
    assert unpack(first, home) == 1
    second = pieces(zipped({"a.mp4": b"longer", "b.mp4": b"two"}), tmp_path, "v.zip", [""])
    assert missing_members(second, home) == ["a.mp4", "b.mp4"]
    assert unpack(second, home) == 2
    assert videos_below(home) == {"a.mp4": b"longer", "b.mp4": b"two"}


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pieces(zipped({"a.mp4": bytes(5000)}), tmp_path, "v.zip", [""])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10_000, 6_000, 4_000))
    with pytest.raises(UserError, match=r"v\.zip needs 0\.0 GB in .* are free: make room"):
        unpack(archive, tmp_path / "home")
    assert videos_below(tmp_path / "home") == {}


def test_zip_members_compressed_or_not(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a/b.mp4", b"0" * 10_000)
        opened.mkdir("a/empty")
    [archive] = find_archives(tmp_path, ["*.zip"])
    assert unpack(archive, tmp_path / "home") == 1
    assert (tmp_path / "home/a/b.mp4").read_bytes() == b"0" * 10_000
