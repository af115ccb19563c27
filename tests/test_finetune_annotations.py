"""Annotation files of every kind become the same conversations; mistakes say file and entry; mixtures are exact."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures.encoders import ENCODERS
from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.finetune.annotations import Example, Medium, Turn, load
from harness.finetune.mixture import weighted
from harness.mini import schema
from harness.mini.annotations import Asked, PoolFeatures, conversations, write_annotations
from harness.mini.encoder import normalise
from harness.mini.pool import write_features
from harness.mini.questions import FAMILIES, MAX_OPTIONS, TEXTS
from harness.mini.recipes import NEEDS_OPTIONS
from harness.mini.world import draw_clip, training_seed
from harness.video import read_frames


def human(text: str) -> dict[str, str]:
    """A question."""
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    """An answer."""
    return {"from": "gpt", "value": text}


ONE = [human("What?"), gpt("A ball.")]
ENTRIES = [
    {"id": 0, "video": "a.mp4", "conversations": ONE},
    {"video": "a.mp4", "conversations": [human("<image>\nWhat?"), gpt("A ball.")], "data_source": "x"},
    {"video": "a.mp4", "conversations": [human(" What? <video>"), gpt("A ball.\n")]},
    {"video": "a.mp4", "conversations": [human("<image>\nWhat?\n"), gpt("A ball.")]},
    {"image": "b.png", "conversation": [human("<image>What?"), gpt("A ball.")]},
    {"conversations": [{"from": "system", "value": "Be short."}, *ONE, human("Why?"), gpt("It rolls.")]},
    {"video": ["a.mp4", "c.mp4"], "conversations": [human("<video> or <image>?"), gpt("The first.")]},
    {"video": ["a.mp4", "c.mp4"], "conversations": ONE},
    {"video": ["a.mp4", "c.mp4"], "conversations": [*ONE, human("Both: <image><image>"), gpt("No.")]},
    {"image": ["b.png", "a.png"], "conversations": [human("See <image>"), gpt("1"), human("<image>\nNow?"), gpt("2")]},
]
WANTED = [  # written out by hand: (questions and answers, media, system)
    (["<video>\nWhat?", "A ball."], "video a.mp4", None),
    (["<video>\nWhat?", "A ball."], "video a.mp4", None),
    (["<video>\nWhat?", "A ball."], "video a.mp4", None),
    (["<video>\nWhat?\n", "A ball."], "video a.mp4", None),  # to the letter: so it is asked at evaluation
    (["<video>\nWhat?", "A ball."], "image b.png", None),
    (["What?", "A ball.", "Why?", "It rolls."], "", "Be short."),
    (["<video> or <video>?", "The first."], "video a.mp4 c.mp4", None),
    (["<video>\n<video>\nWhat?", "A ball."], "video a.mp4 c.mp4", None),
    (["What?", "A ball.", "Both: <video><video>", "No."], "video a.mp4 c.mp4", None),
    (["<video>\nSee", "1", "<video>\nNow?", "2"], "image b.png a.png", None),
]


def write(path: Path, entries: Any) -> Path:
    """An annotation file, and beside it the media that exist."""
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, entries)) + "\n\n" if lines else json.dumps(entries))
    for name in ("a.mp4", "b.png"):
        (path.parent / name).touch()
    return path


def flat(example: Example, folder: Path) -> tuple[list[str], str, str | None]:
    """An example in the form of WANTED."""
    said = [text for turn in example.turns for text in (turn.question, turn.answer)]
    kinds = sorted({medium.kind for medium in example.media})
    return said, " ".join([*kinds, *(str(m.path.relative_to(folder)) for m in example.media)]), example.system


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl"])
def test_entries_of_every_kind_become_conversations(name: str, tmp_path: Path) -> None:
    examples = load(write(tmp_path / name, ENTRIES))
    assert [flat(example, tmp_path) for example in examples] == WANTED
    place = "line 2" if name.endswith("jsonl") else "entry 1"
    assert examples[1].source == f"{tmp_path / name}, {place}"


def test_media_may_lie_elsewhere_and_each_file_may_have_its_own_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    files = [write(tmp_path / f"{n}.json", ENTRIES[:1]) for n in range(2)]
    examples = load([files[0], {"path": str(files[1]), "media": str(tmp_path / "two")}], tmp_path / "one")
    assert [example.media[0] for example in examples] == [
        Medium("video", tmp_path / folder / "a.mp4") for folder in ("one", "two")
    ]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        pytest.param([], "an entry is an object", id="no object"),
        pytest.param({"video": "a.mp4"}, "no list of conversations", id="no conversations"),
        pytest.param({"conversations": []}, "no list of conversations", id="empty"),
        pytest.param({"conversations": [human("What?")]}, "do not take turns", id="no answer"),
        pytest.param({"conversations": [gpt("A."), *ONE]}, "do not take turns", id="answer first"),
        pytest.param({"conversations": [*ONE, *ONE, human("?")]}, "do not take turns", id="question last"),
        pytest.param({"conversations": [{"role": "user", "content": "?"}]}, "a turn is not", id="other keys"),
        pytest.param({"conversations": [{"from": "robot", "value": "?"}]}, "a turn is not", id="other role"),
        pytest.param({"conversations": [human("?"), gpt(" ")]}, "an answer is empty", id="empty answer"),
        pytest.param({"conversations": [human("?"), gpt("<image>")]}, "outside a question", id="mark in an answer"),
        pytest.param({"conversations": [human("<image>"), gpt("A")]}, "has 1 places", id="mark without a medium"),
        pytest.param(
            {"video": "a.mp4", "conversations": [human("<image> <image>"), gpt("A")]}, "has 2 places", id="two marks"
        ),
        pytest.param(
            {"video": ["a.mp4"] * 2, "conversations": [human("<image>"), gpt("A")]}, "but 2 videos", id="one mark"
        ),
        pytest.param({"video": "a.mp4", "image": "b.png", "conversations": ONE}, "make two entries", id="both kinds"),
        pytest.param({"video": {"path": "a"}, "conversations": ONE}, "neither a path nor", id="no path"),
    ],
)
def test_a_mistake_names_the_file_and_the_entry(entry: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", [ENTRIES[0], entry])
    with pytest.raises(UserError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}, entry 1: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "no valid JSON"), ("{}", "holds no list"), ("[]", "has no entries")],
)
def test_a_file_that_is_none_is_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=said):
        load(tmp_path / "bad.json")


def test_what_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no annotation file"):
        load(tmp_path / "none.json")
    with pytest.raises(UserError, match="no annotation files"):
        load([])
    with pytest.raises(UserError, match="by path, weight and media"):
        load({"path": write(tmp_path / "a.json", ENTRIES), "wieght": 2})
    with pytest.raises(UserError, match=r"none of its first 13 videos or images is below .*elsewhere: set media"):
        load(tmp_path / "a.json", tmp_path / "elsewhere")


def test_weights_are_kept_exactly_and_drawn_by_the_seed(tmp_path: Path) -> None:
    many = [{"conversations": [human(f"{number}?"), gpt("yes")]} for number in range(200)]
    one, other = write(tmp_path / "one.json", many), write(tmp_path / "other.json", many)
    mixed = load([{"path": one, "weight": 2.25}, {"path": other, "weight": 0.1}])
    counts = {name: Counter(e.turns[0].question for e in mixed if name in e.source) for name in ("one", "other")}
    assert Counter(counts["one"].values()) == {2: 150, 3: 50}
    assert Counter(counts["other"].values()) == {1: 20}
    again = load([{"path": one, "weight": 2.25}, {"path": other, "weight": 0.1}])
    assert again == mixed
    assert load([{"path": one, "weight": 2.25}, {"path": other, "weight": 0.1}], seed=1) != mixed
    drawn = weighted(range(1000), 0.5, "seed")
    assert drawn == sorted(set(drawn))
    assert 400 < sum(drawn) / len(drawn) < 600  # from everywhere, not from the beginning


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True, 0.001])
def test_a_weight_that_makes_no_sense_is_refused(weight: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weight="):
        load({"path": write(tmp_path / "a.json", ENTRIES), "weight": weight})


# ------------------------------------------------------------------------------------------------ mini clips


def test_mini_conversations_are_those_that_the_suites_benchmarks_would_ask() -> None:
    """Each prompt is one that lmms-eval makes of a question with these options, and its answer is right."""
    asked = Asked(clips=6, visits=9, questions=8)
    entries = list(conversations(3, asked))
    words = {"needle": "colour", "order": "first", "count": "How often", "where": "Where", "motion": "move"}
    for entry in random.Random(0).sample([e for e in entries if "open" not in e["family"]], 12):
        prompt, answer = (turn["value"] for turn in entry["conversations"])
        word, letter = answer.split()
        assert prompt.startswith("<image>\n")
        assert words[entry["family"]] in prompt
        options = [line.strip("().ABCDE: \n") for line in prompt.split("\n")]
        assert word in options, "the answer's word is not among the options"
        (line,) = (line for line in prompt.split("\n") if line.endswith(word))
        assert line[: -len(word)].strip("(). ") == letter
    assert {e["video"] for e in entries} == {f"clips/{n:06d}.mp4" for n in range(6)}
    open_entries = [entry for entry in entries if entry["family"].startswith("open ")]
    choices = Counter(entry["family"] for entry in entries if entry not in open_entries)
    assert sum(choices.values()) == 9 * 8
    assert len(open_entries) == sum(n for family, n in choices.items() if family not in NEEDS_OPTIONS)
    for entry in open_entries:
        prompt, answer = (turn["value"] for turn in entry["conversations"])
        text = TEXTS[entry["family"].removeprefix("open ")]
        assert prompt.removeprefix("<image>\n").startswith(text.split("{}")[0])
        assert " " not in answer


def test_mini_prompts_are_the_packaged_ones(tmp_path: Path) -> None:
    """Each prompt equals what lmms-eval's own task makes of the same question, for one of the five benchmarks."""
    from harness.mini.questions import Question

    entries = [e for e in conversations(0, Asked(clips=4, open=False)) if e["family"] != "count"]
    for entry in entries[:10]:
        prompt, answer = (turn["value"] for turn in entry["conversations"])
        family, (_, letter) = entry["family"], answer.split()
        lines = [line for line in prompt.split("\n") if line[:1] in "(ABCDE" and line.strip("().ABCDE: ")]
        options = [line.split(" ")[-1] for line in lines if len(line.split()) == 2]
        assert 2 <= len(options) <= MAX_OPTIONS[family]
        text = next(part for part in prompt.replace("Question:", "\n").split("\n") if part.endswith("?"))
        question = Question(family, text.strip(), tuple(options), "ABCDE".index(letter))
        fitting = [b.name for b in BENCHMARKS.values() if len(options) in b.option_counts]
        made = {schema.prompt(name, question) for name in fitting}
        assert prompt.removeprefix("<image>\n") in made


def test_mini_families_take_turns_evenly_and_visits_ask_anew() -> None:
    entries = list(conversations(0, Asked(clips=10, visits=60, open=False)))
    counts = Counter(entry["family"] for entry in entries)
    assert set(counts) == set(FAMILIES)
    assert all(96 * 0.7 < n < 96 * 1.3 for n in counts.values())
    first, again = ([e["conversations"] for e in entries if e["id"].startswith(f"{v:06d}")] for v in (3, 13))
    assert first != again


def test_a_visit_may_be_one_conversation(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "a", 0, Asked(clips=2, questions=3, as_turns=True, open=False), videos=False)
    with pytest.raises(UserError, match="set media"):
        load(path)
    examples = load(path, expect_media=False)
    assert [len(example.turns) for example in examples] == [3, 3]
    assert [turn.places for turn in examples[0].turns] == [1, 0, 0]
    alone = [e["conversations"] for e in conversations(0, Asked(clips=1, questions=3, open=False))]
    assert examples[0].turns == tuple(
        Turn(("" if n else "<video>\n") + q["value"].removeprefix("<image>\n"), a["value"])
        for n, (q, a) in enumerate(alone)
    )


def test_written_clips_are_the_training_seeds_and_the_pools_features_are_theirs(tmp_path: Path) -> None:
    asked = Asked(clips=2, questions=1)
    path = write_annotations(tmp_path / "a", 5, asked)
    assert write_annotations(tmp_path / "a", 5, asked) == path  # found whole
    with pytest.raises(UserError, match="holds other annotations"):
        write_annotations(tmp_path / "a", 6, asked)
    torch.manual_seed(0)
    encoder = ENCODERS.build({"name": "tiny"}).eval().requires_grad_(False)
    for start in range(2):
        write_features(encoder, training_seed(5), start, start + 1, tmp_path / f"{start}.npy", lambda done, total: None)
    pool = PoolFeatures([tmp_path / "0.npy", tmp_path / "1.npy"], frames=9)
    for example in load(path):
        (medium,) = example.media
        decoded, kept = read_frames(medium.path, 9), pool.load(medium.path)
        seen_TPV = encoder.encode(normalise(decoded.frames_THWC, encoder))
        torch.testing.assert_close(kept.features_BTPV[0], seen_TPV, atol=2e-3, rtol=2e-3)
        np.testing.assert_allclose(kept.times_BT[0], decoded.times_T)
    assert pool.load(Path("clips/000002.mp4")) is None
    assert draw_clip(training_seed(5), 0) != draw_clip(training_seed(5), 1)
