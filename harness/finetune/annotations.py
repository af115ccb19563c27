"""Conversations about videos and images, in the annotation format of LLaVA-Video.

    [{"video": "clips/7.mp4",
      "conversations": [{"from": "human", "value": "<image>\nWhat happens?"},
                        {"from": "gpt", "value": "A ball rolls."}]}, ...]

A JSON list, or one such entry a line (.jsonl). An entry has a `video` or an `image` (a path or a list of them), or
neither: text only. `<image>` and `<video>` alike say where they stand; where no turn says so, they stand before the
first question. A turn's only mark is moved to its beginning, as the official code does: that is where evaluation has
it. A `system` turn may come first. Other keys are ignored; a mistake is a UserError with the file and the entry.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from architectures.processing import VIDEO_TOKEN
from harness.errors import UserError
from harness.finetune.mixture import weighted

VIDEO, IMAGE = "video", "image"
MARK = re.compile("<image>|<video>")
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
LINES = (".jsonl", ".ndjson")
SPEC_KEYS = ("path", "weight", "media")
LOOKED_AT = 16
"""Media of each file that must not all be missing: a wrong folder is better told at once."""


@dataclass(frozen=True, slots=True)
class Medium:
    """A video or an image (`kind`), and its file."""

    kind: str
    path: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, with `<video>` at each place of a medium, and its answer."""

    question: str
    answer: str

    @property
    def places(self) -> int:
        """How many media stand in the question."""
        return self.question.count(VIDEO_TOKEN)


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation; `media` are in the order of their places, `source` is its file and entry."""

    turns: tuple[Turn, ...]
    media: tuple[Medium, ...]
    system: str | None
    source: str


Spec = str | Path | Mapping[str, Any]


def load(
    specs: Spec | Sequence[Spec], media: str | Path | None = None, seed: int = 0, expect_media: bool = True
) -> list[Example]:
    """The conversations of annotation files, one file after the other.

    Args:
        specs: files, or for each {"path": file, "weight": how often each entry comes, 1 by default (0.5: a half of
            them, drawn by `seed`), "media": its own folder}.
        media: folder that relative paths of videos and images start from; None: that of the annotation file.
        expect_media: whether the first media are looked for; False where kept features stand in for all of them.

    Raises UserError for a file or an entry that cannot be used, and where the first media are all missing.
    """
    several = [specs] if isinstance(specs, str | Path | Mapping) else list(specs)
    if not several:
        raise UserError("there are no annotation files: name at least one")
    examples: list[Example] = []
    for spec in several:
        path, weight, folder = _read_spec(spec, media)
        own = [_example(entry, folder, where) for where, entry in _entries(path)]
        if not own:
            raise UserError(f"{path} has no entries: leave the file out")
        if expect_media:
            _expect_media(own, path, folder)
        examples += weighted(own, weight, f"{seed} {path.name}")
    return examples


def _read_spec(spec: Spec, media: str | Path | None) -> tuple[Path, float, Path]:
    given = dict(spec) if isinstance(spec, Mapping) else {"path": spec}
    strange = sorted(set(given) - set(SPEC_KEYS))
    if strange or "path" not in given:
        raise UserError(f"an annotation file is given by path, weight and media, not by {strange or sorted(given)}")
    path = Path(given["path"]).expanduser()
    if not path.is_file():
        raise UserError(f"there is no annotation file {path}: give the path of a JSON or JSONL file")
    folder = given.get("media") or media or path.parent
    return path, given.get("weight", 1.0), Path(folder).expanduser()


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, entry) of a file's entries; entries are counted from 0 as in the list, lines from 1."""
    if path.suffix in LINES:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", _parse(line, f"{path}, line {number}")
        return
    content = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, list):
        raise UserError(f"{path} holds no list of entries: write a JSON list, or one entry a line as .jsonl")
    for number, entry in enumerate(content):
        yield f"{path}, entry {number}", entry


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no valid JSON ({error}): mend it") from error


# -------------------------------------------------------------------------------------------------- one entry


def _example(entry: Any, folder: Path, where: str) -> Example:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: an entry is an object with conversations, not {type(entry).__name__}")
    media = _media(entry, folder, where)
    system, pairs = _turns(entry, where)
    turns = _placed([Turn(_in_front(question), answer) for question, answer in pairs], len(media), where)
    return Example(tuple(turns), media, system, where)


def _media(entry: dict[str, Any], folder: Path, where: str) -> tuple[Medium, ...]:
    kinds = [kind for kind in (IMAGE, VIDEO) if entry.get(kind)]
    if len(kinds) == 2:
        raise UserError(f"{where}: has both image and video: make two entries of it")
    if not kinds:
        return ()
    paths = entry[kinds[0]]
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{where}: {kinds[0]} is neither a path nor a list of paths")
    return tuple(Medium(kinds[0], folder / path) for path in paths)


def _turns(entry: dict[str, Any], where: str) -> tuple[str | None, list[tuple[str, str]]]:
    """The system prompt, and (question, answer) of every turn."""
    said = entry.get("conversations", entry.get("conversation"))
    if not isinstance(said, list) or not said:
        raise UserError(f"{where}: has no list of conversations")
    roles, texts = zip(*(_said(turn, where) for turn in said), strict=True)
    system = texts[0] if roles[0] == "system" else None
    if system is not None:
        roles, texts = roles[1:], texts[1:]
    if not roles or roles != ("human", "gpt") * (len(roles) // 2):
        raise UserError(f"{where}: human and gpt do not take turns, human first and gpt last")
    for text in (*texts[1::2], system or ""):
        if MARK.search(text):
            raise UserError(f"{where}: {MARK.search(text)[0]} stands outside a question")
    if not all(texts[1::2]):
        raise UserError(f"{where}: an answer is empty")
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def _said(turn: Any, where: str) -> tuple[str, str]:
    """(role, text) of a turn."""
    role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES or not isinstance(text, str):
        raise UserError(f'{where}: a turn is not {{"from": "human", "gpt" or "system", "value": text}}')
    return ROLES[role], text.strip() if ROLES[role] == "gpt" else text


def _in_front(question: str) -> str:
    """A question with each mark as `<video>`; its only one in front, on a line of its own."""
    marked = MARK.sub(VIDEO_TOKEN, question)
    if marked.count(VIDEO_TOKEN) != 1 or marked.startswith(f"{VIDEO_TOKEN}\n"):
        return marked
    return f"{VIDEO_TOKEN}\n{marked.replace(VIDEO_TOKEN, '').strip()}"


def _placed(turns: list[Turn], media: int, where: str) -> list[Turn]:
    """The turns with a place for every medium: in front of the first question if there was none for any."""
    places = sum(turn.places for turn in turns)
    if media and not places:
        return [Turn(f"{VIDEO_TOKEN}\n" * media + turns[0].question, turns[0].answer), *turns[1:]]
    if places != media:
        raise UserError(f"{where}: has {places} places marked <image> or <video>, but {media} videos or images")
    return turns


def _expect_media(examples: list[Example], path: Path, folder: Path) -> None:
    first: list[Path] = []
    for example in examples:
        first += [medium.path for medium in example.media]
        if len(first) >= LOOKED_AT:
            break
    if first and not any(medium.exists() for medium in first):
        raise UserError(f"{path}: none of its first {len(first)} videos or images is below {folder}: set media=FOLDER")
