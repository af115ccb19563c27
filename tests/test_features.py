"""The memo of features: equal to the bit with and without it, and nothing is decoded twice."""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_plugin import plugin, requests_for
from tiny import small_suite

from harness import features, video
from harness.errors import UserError
from harness.features import Memo, Seen, encoding_key, see_ahead
from harness.journal import Watched
from harness.lmms_plugin import SlowFastMLLM
from harness.progress import Progress
from harness.video import VideoError, read_frames


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The videos that are decoded from here on."""
    paths: list[Path] = []

    def noted(path: Path, *args: Any, **kwargs: Any) -> Any:
        paths.append(path)
        return read_frames(path, *args, **kwargs)

    monkeypatch.setattr(video, "read_frames", noted)
    return paths


def answered(model: SlowFastMLLM) -> tuple[dict, list[Watched], list[torch.Tensor]]:
    """Answers, videos as watched (without seconds), and the features that the model was asked with."""
    requests, _ = requests_for(["videomme"], model)
    given, generate = [], model.model.generate

    def noted(**inputs: Any) -> torch.Tensor:
        given.append(inputs["features"])
        return generate(**inputs)

    model.model.generate = noted
    model.generate_until(requests)
    watched = [replace(watched, seconds=0.0) for watched in model.watched]
    return {key: replace(entry, seconds=0.0) for key, entry in model.entries.items()}, watched, given


@cache
def without() -> tuple[dict, list[Watched], list[torch.Tensor]]:
    """What is answered without a memo; batches of 7 divide the three questions about a video."""
    return answered(plugin(batch=7))


def expect_equal(found: tuple[dict, list[Watched], list[torch.Tensor]]) -> None:
    assert found[:2] == without()[:2]
    assert len(found[2]) == len(without()[2]) == 4
    assert all(map(torch.equal, found[2], without()[2]))


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_with_and_without_to_the_bit(tmp_path: Path, decoded: list[Path]) -> None:
    without()
    decoded.clear()
    expect_equal(answered(plugin(batch=7, features=tmp_path, workers=0)))
    assert len(decoded) == len(set(decoded)) == len(kept(tmp_path)) == 8  # each once, in whatever batches
    expect_equal(answered(plugin(batch=7, features=tmp_path)))
    assert len(decoded) == 8  # nothing was decoded again
    assert all(not path.name.startswith(".") for path in tmp_path.rglob("*"))


def test_what_is_broken_or_changed_is_encoded_anew(tmp_path: Path, decoded: list[Path]) -> None:
    without()
    answered(plugin(batch=24, features=tmp_path, workers=0))
    whole = {path: path.read_bytes() for path in kept(tmp_path)}
    cut, flipped, foreign, *_, changed = whole
    cut.write_bytes(whole[cut][:1000])
    flipped.write_bytes(whole[flipped][:-9] + bytes([whole[flipped][-9] ^ 1]) + whole[flipped][-8:])
    foreign.write_bytes(b"not at all a file of tensors")
    about = changed.stem.rpartition("-")[0]
    (clip,) = {path for path in decoded if path.stem == about}
    before = clip.stat()
    decoded.clear()
    try:
        os.utime(clip, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        expect_equal(answered(plugin(batch=7, features=tmp_path, workers=0)))
        assert sorted(path.stem for path in decoded) == sorted(
            path.stem.rpartition("-")[0] for path in (cut, flipped, foreign, changed)
        )
    finally:
        os.utime(clip, ns=(before.st_atime_ns, before.st_mtime_ns))
    different = {path for path in whole if path.read_bytes() != whole[path]}
    assert changed in different
    assert different <= {cut, flipped, foreign, changed}  # the others were not even written


def test_a_video_that_failed_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = requests_for(["videomme"])[0][0].args[2]
    (path,) = broken(requests_for(["videomme"])[1]["videomme"]["test"][0])

    def fails(asked: Path, *args: Any, **kwargs: Any) -> Any:
        if asked == Path(path):
            raise VideoError(f"{asked}: broken")
        return read_frames(asked, *args, **kwargs)

    monkeypatch.setattr(video, "read_frames", fails)
    entries, watched, _ = answered(plugin(features=tmp_path))
    assert len(kept(tmp_path)) == 7
    assert sum(entry.failure == "unreadable video" for entry in entries.values()) == 3
    assert [each.failure for each in watched if each.failure] == ["unreadable video"]
    monkeypatch.undo()
    expect_equal(answered(plugin(batch=7, features=tmp_path)))  # mended


# ----------------------------------------------------------------------------------------------- by itself


def a_seen(number: int = 0) -> Seen:
    torch.manual_seed(number)
    watched = Watched("clip.mp4", "pyav 1", "seek", "", 128, (0, 5, 127), 0.25)
    return Seen(torch.randn(1, 3, 4, 8), torch.rand(1, 3), watched)


def clips(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"clip{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(number + 1))
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    (clip,) = clips(tmp_path, 1)
    seen = replace(a_seen(), features_BTPV=a_seen().features_BTPV.to(dtype))
    memo = Memo(tmp_path / "features", "key")
    assert memo.load(clip) is None
    assert memo.missing([clip, clip]) == [clip]
    memo.save(clip, seen)
    again = Memo(tmp_path / "features", "key")
    found = again.load(clip)
    assert torch.equal(found.features_BTPV, seen.features_BTPV)
    assert found.features_BTPV.dtype == dtype
    assert torch.equal(found.times_BT, seen.times_BT)
    assert found.watched == replace(seen.watched, video=str(clip))  # as it was then, named as it is now
    assert again.missing([clip]) == []
    assert Memo(tmp_path / "features", "other").load(clip) is None
    clip.unlink()
    assert again.load(clip) is None


def test_a_video_that_changes_while_it_is_read_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    (clip,) = clips(tmp_path, 1)
    memo = Memo(tmp_path / "features", "key")
    memo.missing([clip])
    clip.write_bytes(b"another video")
    memo.save(clip, a_seen())
    assert memo.load(clip) is None


def test_videos_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths += clips(tmp_path / name, 1)
    memo = Memo(tmp_path / "features", "key")
    memo.missing(paths)
    memo.save(paths[0], a_seen())
    assert [memo.load(path) is None for path in paths] == [False, True]


def test_order_of_what_is_seen_and_decoded(tmp_path: Path) -> None:
    """Known, unknown, broken since, and repeated ones, each in its place."""
    a, b, c, d = clips(tmp_path, 4)
    memo = Memo(tmp_path / "features", "key")
    memo.missing([a, c])
    memo.save(a, a_seen(1))
    memo.save(c, a_seen(2))
    asked = []

    def decode(paths: Iterable[Path]) -> Iterator[str]:
        asked.append(list(paths))
        return iter([f"decoded {path.name}" for path in asked[-1]])

    found = see_ahead([a, b, c, d, b], decode, memo)
    assert torch.equal(next(found).features_BTPV, a_seen(1).features_BTPV)
    assert next(found) == f"decoded {b.name}"
    memo.save(b, a_seen(3))
    memo._file(c).unlink()
    assert next(found) == f"decoded {c.name}"
    assert next(found) == f"decoded {d.name}"
    assert torch.equal(next(found).features_BTPV, a_seen(3).features_BTPV)
    assert asked == [[b, d], [c]]
    assert list(see_ahead([a, b, a], decode, None)) == [f"decoded {path.name}" for path in (a, b, a)]


def test_many_writers_and_a_reader(tmp_path: Path) -> None:
    """A reader finds nothing or the whole, whoever writes meanwhile."""
    (clip,) = clips(tmp_path, 1)
    seen, torn = a_seen(), []

    def write() -> None:
        memo = Memo(tmp_path / "features", "key")
        memo.missing([clip])
        for _ in range(30):
            memo.save(clip, seen)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    reader, met = Memo(tmp_path / "features", "key"), 0
    while any(writer.is_alive() for writer in writers):
        found = reader.load(clip)
        met += found is not None
        if found is None and met:
            torn.append(met)
    for writer in writers:
        writer.join()
    assert not torn
    assert torch.equal(reader.load(clip).features_BTPV, seen.features_BTPV)
    assert [path.name for path in reader.folder.iterdir()] == [reader._file(clip).name]


def test_a_key_is_of_what_shapes_features() -> None:
    model = plugin()
    key = encoding_key(model.model, model.processor, 8, "pyav 1")
    assert encoding_key(model.model, model.processor, 16, "pyav 1") != key
    assert encoding_key(model.model, model.processor, 8, "pyav 2") != key
    assert encoding_key(model.model, model.processor, 8, "pyav 1", "official") != key
    with torch.no_grad():
        model.model.language_model.lm_head.weight.add_(1)
        assert encoding_key(model.model, model.processor, 8, "pyav 1") == key  # no part of the encoder
        next(model.model.encoder.parameters()).view(-1)[0] += 1e-3
    assert encoding_key(model.model, model.processor, 8, "pyav 1") != key
    other = plugin()
    other.model.config.selector = {"name": "uniform", "keep": 4}
    assert encoding_key(other.model, other.processor, 8, "pyav 1") != key
    other = plugin()
    other.processor.video_processor.image_mean = (0.5, 0.5, 0.5)
    assert encoding_key(other.model, other.processor, 8, "pyav 1") != key
    assert encoding_key(plugin().model.to(torch.bfloat16), model.processor, 8, "pyav 1") != key
    assert encoding_key(plugin().model, plugin().processor, 8, "pyav 1") == key


def no_room(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room_says_safetensors(*args: Any, **kwargs: Any) -> None:
    """As its writer says it, which is not Python's: recorded on a full file system."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fails", [no_room, no_room_says_safetensors], ids=["system", "safetensors"])
def test_a_full_disk_fails_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable) -> None:
    """It is said once, what was kept before serves, and nothing half written is left."""
    said: list[str] = []
    model, room = plugin(batch=7, features=tmp_path, workers=0), [3]

    def save(*args: Any, **kwargs: Any) -> None:
        room[0] -= 1
        (save_file if room[0] >= 0 else fails)(*args, **kwargs)

    monkeypatch.setattr(features, "save_file", save)
    monkeypatch.setattr(
        model, "progress", Progress(lambda event: said.append(event.name) if event.kind == "say" else 0)
    )
    expect_equal(answered(model))
    assert room == [-1]  # after the first failure nothing more was tried
    (told,) = [sentence for sentence in said if "kept" in sentence]
    assert str(tmp_path) in told
    assert "No space left on device" in told
    assert len(kept(tmp_path)) == len(list(tmp_path.rglob("*.*"))) == 3
    room[0] = 100
    expect_equal(answered(plugin(batch=7, features=tmp_path, workers=0)))  # the next run, with room again
    assert len(kept(tmp_path)) == 8


def test_a_full_disk_on_which_no_folder_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", no_room)
    memo, said = Memo(tmp_path / "features", "key"), []
    memo.say = said.append
    (clip,) = clips(tmp_path, 1)
    assert memo.missing([clip]) == [clip]
    memo.save(clip, a_seen())
    assert memo.load(clip) is None
    assert len(said) == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"features=.*file: no folder can be made there"):
        Memo(tmp_path / "file", "key")


def test_the_suite_is_left_as_it_was() -> None:
    assert not list(small_suite().rglob("*.safetensors"))
