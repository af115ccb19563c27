"""The evaluation suite: mp4 files and question tables that lmms-eval's tasks read as if from the hub.

    SUITE/hub/<org>/<dataset>/    question tables (parquet), and a README.md whose front matter declares them
    SUITE/home/<task's folder>/   the mp4 files; HF_HOME points at SUITE/home
    SUITE/index.parquet           one row per question, for analyses (columns: see `INDEX_COLUMNS`)
    SUITE/suite.json              parameters, fingerprint, versions

So `cd SUITE/hub && HF_HOME=SUITE/home python -m lmms_eval --tasks videomme,...` runs without any override.
"""

import hashlib
import json
import multiprocessing
import platform
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import yaml

from harness.benchmarks import BENCHMARKS, Benchmark, Doc
from harness.errors import UserError
from harness.mini import clips, schema
from harness.mini.questions import MAX_OPTIONS, MIN_OPTIONS, Question, draw_question
from harness.mini.world import GENERATOR_VERSION, PLAIN, Clip, World, draw_clip, evaluation_seed, render
from harness.paths import cache_dir, new_directory
from harness.progress import SILENT, Progress
from harness.stages import code_hash

SUITE_VERSION = 2  # raise it whenever the same parameters would give other questions or another layout
QUESTIONS_PER_VIDEO = {"videomme": 3, "mlvu": 2, "mvbench": 1, "egoschema": 1, "longvideobench": 2}
INDEX_COLUMNS = {
    "benchmark": "name in the registry",
    "task": "lmms-eval task",
    "doc_id": "row in the task's table",
    "video": "mp4, relative to SUITE/home",
    "category": "the benchmark's own category",
    "family": "what the question asks about",
    "n_options": "number of options",
    "answer": "the right option's letter",
    "question": "its text",
    "options": "the options, as a list of words",
    "clip_seed": "world seed of the clip",
    "clip_index": "index of the clip under that seed",
}
CLIPS_PER_CHUNK = 8
SOURCES = (
    *(f"harness.mini.{name}" for name in ("world", "clips", "questions", "schema", "suite")),
    "harness.benchmarks",
)
"""Modules whose code shapes a suite."""


@dataclass(frozen=True)
class Sizes:
    """How many videos each benchmark has; see `QUESTIONS_PER_VIDEO` for what is asked about each."""

    videomme: int
    mlvu: int
    mvbench: int
    egoschema: int
    longvideobench: int

    def __post_init__(self) -> None:
        for name, videos in asdict(self).items():
            needed = -(-len(BENCHMARKS[name].categories) // QUESTIONS_PER_VIDEO[name])
            if videos < needed:
                raise UserError(f"{name} needs {needed} videos to ask about every category, not {videos}: raise it")


FULL = Sizes(videomme=80, mlvu=119, mvbench=240, egoschema=240, longvideobench=120)
SMALL = Sizes(videomme=8, mlvu=7, mvbench=20, egoschema=12, longvideobench=17)
HALF = Sizes(videomme=40, mlvu=60, mvbench=120, egoschema=120, longvideobench=60)
SIZES = {"full": FULL, "half": HALF, "small": SMALL}


@dataclass(frozen=True)
class Item:
    """One question of the suite: where it goes and what it is about."""

    benchmark: Benchmark
    task: str
    category: str
    question: Question
    clip: Clip
    doc: Doc


def build_suite(
    seed: int,
    sizes: Sizes = FULL,
    out: Path | None = None,
    workers: int = 1,
    progress: Progress = SILENT,
    world: World = PLAIN,
) -> Path:
    """Make the evaluation suite of an experiment seed, or find it complete; returns its folder.

    Args:
        out: the folder; by default one in the cache, named after the parameters' hash.
        workers: processes that draw and encode clips.
        world: in which the clips are drawn.

    Raises UserError if `out` exists and holds anything but this very suite.
    """
    parameters = _parameters(seed, sizes, world)
    folder = Path(out) if out is not None else cache_dir() / "suites" / f"suite-{_sha256(parameters)[:16]}"
    if folder.exists():
        if not (folder / "suite.json").is_file() or load_suite(folder)["parameters"] != parameters:
            message = f"{folder} exists and is not the suite of seed {seed}: remove it or choose another folder"
            raise UserError(message)
        return folder.resolve()
    start = time.monotonic()
    items = list(plan(seed, sizes, world))
    with new_directory(folder) as work:
        hashes = _write_videos(items, work / "home", workers, progress)
        _write_tables(items, work / "hub")
        index = _index(items)
        index.to_parquet(work / "index.parquet", index=False)
        summary = {
            "parameters": parameters,
            "fingerprint": _sha256([index.to_dict("records"), sorted(hashes.items())]),
            "questions": index.groupby("benchmark", sort=False).size().to_dict(),
            "videos": len(hashes),
            "versions": _versions(),
        }
        (work / "suite.json").write_text(json.dumps(summary, indent=2) + "\n")
    seconds = time.monotonic() - start
    progress.say(f"suite: {len(items)} questions about {len(hashes)} clips in {seconds:.0f} s: {folder}")
    return folder.resolve()


def load_suite(suite: Path) -> dict[str, Any]:
    """The content of SUITE/suite.json; UserError if `suite` is no suite."""
    path = Path(suite) / "suite.json"
    if not path.is_file():
        raise UserError(f"{suite} is no evaluation suite (it has no suite.json): make one with the verb `suite`")
    return json.loads(path.read_text())


def suite_state(suite: Path) -> str:
    """A hash of a suite's description and of its videos' sizes as they are now; UserError if it is none."""
    description, home = load_suite(suite), Path(suite) / "home"
    sizes = {path.relative_to(home).as_posix(): path.stat().st_size for path in home.rglob("*.mp4")}
    return _sha256([description["fingerprint"], sizes])[:16]


def load_index(suite: Path) -> pd.DataFrame:
    """The table of all questions (`INDEX_COLUMNS`); UserError if `suite` is no suite."""
    load_suite(suite)
    return pd.read_parquet(Path(suite) / "index.parquet")


def plan(seed: int, sizes: Sizes, world: World = PLAIN) -> Iterator[Item]:
    """Every question of the suite, in order of benchmark and video: a pure function of its arguments."""
    clip_index = 0
    for name, videos in asdict(sizes).items():
        for video_number in range(videos):
            clip = draw_clip(evaluation_seed(seed), clip_index, world)
            clip_index += 1
            yield from _plan_video(BENCHMARKS[name], seed, video_number, clip)


def _plan_video(benchmark: Benchmark, seed: int, video_number: int, clip: Clip) -> Iterator[Item]:
    """The questions about one video; none is asked twice."""
    video = f"{benchmark.name}_{video_number:04d}"
    asked = set()
    for k in range(QUESTIONS_PER_VIDEO[benchmark.name]):
        number = video_number * QUESTIONS_PER_VIDEO[benchmark.name] + k
        category, family, n_options = kind_of(benchmark, number)
        rng = random.Random(f"{seed} {benchmark.name} {number}")
        for _ in range(100):
            question = draw_question(rng, clip, family, n_options)
            if (key := (question.text, frozenset(question.options))) not in asked:
                break
        else:
            raise RuntimeError(f"no further {family} question with {n_options} options about {video}")
        asked.add(key)
        task = f"mvbench_{category}" if benchmark.name == "mvbench" else benchmark.tasks[0]
        doc = schema.document(benchmark.name, question, category, video, video_number, number)
        yield Item(benchmark, task, category, question, clip, doc)


def kind_of(benchmark: Benchmark, number: int) -> tuple[str, str, int]:
    """Category, family and number of options of a benchmark's question number `number`: all take turns."""
    turn, place = divmod(number, len(benchmark.categories))
    category = benchmark.categories[place]
    if benchmark.name == "egoschema":
        return category, schema.EGOSCHEMA_FAMILIES[number % len(schema.EGOSCHEMA_FAMILIES)], 5
    family = schema.FAMILY_OF[benchmark.name][category]
    if benchmark.name == "mvbench":
        return category, family, schema.MVBENCH_OPTIONS.get(category, schema.MVBENCH_OPTIONS_ELSEWHERE)
    counts = [n for n in benchmark.option_counts if MIN_OPTIONS <= n <= MAX_OPTIONS[family]]
    return category, family, counts[(turn + place) % len(counts)]


def _write_videos(items: list[Item], home: Path, workers: int, progress: Progress) -> dict[str, str]:
    """Write each clip once; returns path below `home` -> sha256 of the file."""
    clip_of = {item.benchmark.video_of(item.doc, item.task): item.clip for item in items}
    for folder in {(home / path).parent for path in clip_of}:
        folder.mkdir(parents=True)
    jobs = [(home / path, clip) for path, clip in clip_of.items()]
    chunks = [jobs[i : i + CLIPS_PER_CHUNK] for i in range(0, len(jobs), CLIPS_PER_CHUNK)]
    hashes = {}
    with progress.bar("write clips", total=len(jobs)) as bar:
        for done in _map(chunks, workers):
            hashes.update({path.relative_to(home).as_posix(): digest for path, digest in done})
            bar.advance(len(done))
    return hashes


def _map(chunks: list[list[tuple[Path, Clip]]], workers: int) -> Iterator[list[tuple[Path, str]]]:
    if workers <= 1:
        yield from map(_write_chunk, chunks)
        return
    # Spawned, not forked: the caller may have threads (a progress display, torch).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(_write_chunk, chunk) for chunk in chunks]):
            yield future.result()


def _write_chunk(jobs: list[tuple[Path, Clip]]) -> list[tuple[Path, str]]:
    return [(path, hashlib.sha256(clips.write_mp4(path, render(clip))).hexdigest()) for path, clip in jobs]


def _write_tables(items: list[Item], hub: Path) -> None:
    """One parquet file per task, and per dataset the README.md that declares its configurations.

    `datasets` caches a local table under the dataset's name and what the README.md declares, whatever its
    folder or content: a digest in the file's name keeps a suite's questions from being served as another's.
    """
    for benchmark in dict.fromkeys(item.benchmark.name for item in items):
        entry = BENCHMARKS[benchmark]
        folder = hub / entry.hub
        folder.mkdir(parents=True)
        configs = []
        for task in entry.tasks:
            config = entry.config_of(task) or "default"
            docs = [item.doc for item in items if item.task == task]
            path = f"{config}/{entry.split}-{_sha256(docs)[:16]}.parquet"
            (folder / config).mkdir()
            pd.DataFrame(docs).to_parquet(folder / path, index=False)
            configs.append({"config_name": config, "data_files": [{"split": entry.split, "path": path}]})
        front_matter = yaml.safe_dump({"configs": configs}, sort_keys=False)
        text = f"---\n{front_matter}---\nSynthetic clips and questions in the schema of {entry.title}.\n"
        (folder / "README.md").write_text(text)


def _index(items: list[Item]) -> pd.DataFrame:
    rows, rows_of_task = [], dict.fromkeys((item.task for item in items), 0)
    for item in items:
        values = (
            item.benchmark.name,
            item.task,
            rows_of_task[item.task],
            item.benchmark.video_of(item.doc, item.task),
            item.category,
            item.question.family,
            len(item.question.options),
            item.benchmark.target_letter(item.doc),
            item.question.text,
            list(item.question.options),
            item.clip.seed,
            item.clip.index,
        )
        rows.append(dict(zip(INDEX_COLUMNS, values, strict=True)))
        rows_of_task[item.task] += 1
    return pd.DataFrame(rows)


def world_of(suite: Path) -> World:
    """The world that a suite's clips are drawn in; UserError if `suite` is no suite."""
    return World.of(load_suite(suite)["parameters"]["world"])


def _parameters(seed: int, sizes: Sizes, world: World) -> dict[str, Any]:
    """All that decides a suite's content, apart from the libraries' versions."""
    return {
        "seed": seed,
        "videos": asdict(sizes),
        "world": {"dwell": None if world.dwell is None else list(world.dwell), "distractors": world.distractors},
        "suite_version": SUITE_VERSION,
        "generator_version": GENERATOR_VERSION,
        "code": code_hash(SOURCES),
        "encoder": {"name": clips.ENCODER, "pixel_format": clips.PIXEL_FORMAT, **clips.ENCODER_OPTIONS},
    }


def _versions() -> dict[str, str]:
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "av": av.__version__,
        "libavcodec": libavcodec,
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
