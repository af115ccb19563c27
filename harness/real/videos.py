"""A benchmark's videos in a data root: which are there, and which can be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.benchmarks import Benchmark
from harness.errors import UserError
from harness.packets import VideoError
from harness.progress import SILENT, Progress
from harness.real.tables import Table
from harness.video import decode_ahead

Check = Literal["sampled", "all"]
SAMPLED = 8  # videos of a benchmark that are read when not all are
LOOKED_AT = 2  # frames: the first and the last; all packets are counted on the way to them
THREADS = 4
SUBTITLES = {"videomme_w_subtitle": "videomme/subtitle"}  # below HF_HOME, where the packaged task looks for VIDEO.srt
REPLACED = "mp4"  # packaged tasks that try other endings put those in its place, wherever in the path it stands


@dataclass(frozen=True)
class Videos:
    """The videos that a benchmark's tables ask about, in order of first use.

    Attributes:
        found: path below HF_HOME, as the table names it -> the file, which may have another ending.
        missing: paths of which there is no file.
    """

    found: dict[str, Path]
    missing: list[str]

    @property
    def there(self) -> list[Path]:
        """The files that exist."""
        return list(self.found.values())

    @property
    def asked(self) -> int:
        """How many there should be."""
        return len(self.found) + len(self.missing)


def find_videos(tables: Sequence[Table], home: Path) -> Videos:
    """Look for every video of these tables below `home`, once, as the packaged tasks do.

    UserError for a video that is there under another ending, in a place where those tasks will not find it.
    """
    found: dict[str, Path | None] = {}
    for table in tables:
        for doc in table.docs:
            path = table.benchmark.video_of(doc, table.task)
            if path not in found:
                found[path] = table.benchmark.find_video(doc, table.task, home)
                _expect_findable(path, found[path], home)
    there = {path: file for path, file in found.items() if file is not None}
    return Videos(there, [path for path in found if path not in there])


def subtitles(benchmark: Benchmark, videos: Videos, home: Path) -> list[Path] | None:
    """The subtitles of these videos that are there; None for a benchmark that shows none.

    Not every video has some, and the packaged task says "No subtitles available" in place of any that it lacks.
    """
    folder = SUBTITLES.get(benchmark.name)
    if folder is None:
        return None
    files = (home / folder / f"{file.stem}.srt" for file in videos.there)
    return [file for file in files if file.is_file()]


def _expect_findable(path: str, file: Path | None, home: Path) -> None:
    where = home.parent.resolve()  # a suite's HF_HOME is named by it, whatever `home` links to
    if file is not None and file.name != Path(path).name and REPLACED in str(where):
        raise UserError(
            f"{file.name} is there, but lmms-eval's task looks for it by replacing '{REPLACED}' in its whole path, and "
            f"{where} has '{REPLACED}' in its name, too: move the data root to a folder without"
        )


def broken(
    videos: Sequence[Path], check: Check = "sampled", progress: Progress = SILENT, name: str = "videos"
) -> dict[Path, str]:
    """Read videos' packets, first and last frames; path -> why it cannot be read. `sampled`: some, spread evenly."""
    if check not in ("sampled", "all"):
        raise UserError(f"check={check}: choose sampled or all")
    chosen = list(videos) if check == "all" else _spread(videos, SAMPLED)
    found = {}
    for path, read in zip(
        progress.track(chosen, f"read {name}"), decode_ahead(chosen, LOOKED_AT, THREADS, ahead=2 * THREADS), strict=True
    ):
        if isinstance(read, VideoError):
            found[path] = read.kind
    return found


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the items at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
