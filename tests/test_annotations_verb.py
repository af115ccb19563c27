"""The verb `annotations`: mini clips and conversations as a file that the verb `finetune` trains on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_models import small_config

from architectures import SlowFastProcessor
from architectures.processing import IGNORED, SlowFastVideoProcessor
from harness import cli
from harness.compose import compose
from harness.finetune.annotations import load
from harness.finetune.dataset import ConversationDataset, Outcome
from harness.mini.recipes import NEEDS_OPTIONS
from harness.mini.stream import suite_tokenizer
from harness.video import read_frames

PER_VIDEO, FRAMES = 8, 6


def written(folder: Path, capsys: pytest.CaptureFixture, *further: str) -> Path:
    """The file that the verb prints; in `folder`, where it was told to write."""
    assert cli.main(["annotations", "scale=test", f"output={folder}", *further]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.parent == folder
    return path


def content(path: Path) -> dict[str, bytes]:
    """Every file beside an annotation file, by its name."""
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}


def mini_processor() -> SlowFastProcessor:
    """The processor of a model of the mini scale."""
    tokenizer = suite_tokenizer()
    video = tokenizer.convert_tokens_to_ids("<video>")
    return SlowFastProcessor(
        SlowFastVideoProcessor(), tokenizer, compressor=small_config().compressor, video_token_id=video
    )


def expect_counts(entries: list[dict[str, Any]], scale: Any) -> None:
    """As many clips, visits and questions as the scale's adaptation has; each open question beside its own."""
    visits = scale.adapt.steps * scale.adapt.videos
    clips = min(scale.pool_clips, visits)
    families = Counter(entry["family"] for entry in entries)
    chosen = {family: n for family, n in families.items() if not family.startswith("open ")}
    assert sum(chosen.values()) == visits * scale.adapt.questions
    wanted = {f"open {family}": n for family, n in chosen.items() if family not in NEEDS_OPTIONS}
    assert {family: n for family, n in families.items() if family.startswith("open ")} == wanted != {}
    assert {entry["video"] for entry in entries} == {f"clips/{index:06d}.mp4" for index in range(clips)}
    visited = Counter(int(entry["id"].split("-")[0]) for entry in entries if not entry["family"].startswith("open "))
    assert visited == dict.fromkeys(range(visits), scale.adapt.questions)


def test_the_verb_writes_what_the_trainer_reads_and_writes_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = written(tmp_path / "one", capsys)
    scale = compose(["scale=test"]).scale
    entries = json.loads(path.read_text())
    expect_counts(entries, scale)
    assert len(list((tmp_path / "one" / "clips").iterdir())) == scale.pool_clips

    again, before = written(tmp_path / "two", capsys), content(path)
    assert content(again) == before, "not the same bytes twice"
    stamps = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*")}
    assert written(tmp_path / "one", capsys) == path
    assert {file: file.stat().st_mtime_ns for file in path.parent.rglob("*")} == stamps, "was found, yet written again"

    processor, examples = mini_processor(), load(path)
    assert len(examples) == len(entries)
    data = ConversationDataset(examples, processor, frames=FRAMES, per_video=PER_VIDEO)
    about = Counter(entry["video"] for entry in entries)
    assert len(data) == sum(-(-number // PER_VIDEO) for number in about.values())
    item, shown = data[0], read_frames(path.parent / entries[0]["video"], FRAMES)
    assert item.videos[0].shape[0] == len(shown.times_T) == FRAMES
    assert len(item.rows) == PER_VIDEO
    unknown = processor.tokenizer.unk_token_id
    answers = [[token for token in labels if token != IGNORED] for _, labels in item.rows]
    said = [entry["conversations"][1]["value"] for entry in entries if entry["video"] == entries[0]["video"]]
    ends = [processor.tokenizer.decode(answer).split() for answer in answers]
    assert ends == [[*answer.split(), "<|im_end|>"] for answer in said[:PER_VIDEO]]
    assert unknown is None or all(unknown not in ids for ids, _ in item.rows)
    assert data.outcome() == Outcome(asked=1, broken=0, shortened=0)


def test_another_seed_does_not_replace_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    few = ["scale.pool_clips=2", "scale.adapt.steps=1"]
    path = written(tmp_path / "one", capsys, *few)
    before = content(path)
    assert cli.main(["annotations", "scale=test", f"output={tmp_path / 'one'}", *few, "seed=1"]) == 2
    assert "holds other annotations" in capsys.readouterr().err
    assert content(path) == before
    other = written(tmp_path / "two", capsys, *few, "seed=1")
    assert content(other)["annotations.json"] != before["annotations.json"]
    assert content(other)["clips/000000.mp4"] != before["clips/000000.mp4"]


def test_there_are_no_mini_clips_at_paper_scale(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["annotations", "scale=paper", f"output={tmp_path / 'none'}"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: scale=paper has no clips of its own: choose scale=mini")
    assert "scale=mini" in said.err
    assert not said.out
    assert not (tmp_path / "none").exists()
