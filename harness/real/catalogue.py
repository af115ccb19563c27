"""The benchmarks' repositories on the hub: tables, archives, where their videos go, and what is known of their size.

Where a number is None nobody has looked it up, and the doctor says "not known". File lists and cards were read in
stored copies of the hub's pages, under the names that lmms-eval 0.7.3 gives as `dataset_path` or, where that is
`lmms-eval/...`, under the older name `lmms-lab/...` of the same repository. A directory of an archive that no list
shows is taken from where the packaged task looks for the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.benchmarks import Benchmark, all_benchmarks, benchmark_named

GB = 10**9


@dataclass(frozen=True)
class Repository:
    """One dataset's repository.

    Attributes:
        name: on the hub.
        home: the folder below HF_HOME in which the packaged tasks look for its videos, their `cache_dir`.
        tables: where the table of a configuration and split is; a pattern with {config} and {split}.
        archives: patterns of the archives that are unpacked into `home`, whole or in pieces (videos.tar.part.aa).
        folders: folders of the repository that hold videos as they are, and are linked into `home`.
        left_out: patterns of what evaluation does not need, and is not downloaded.
        revision: the branch to fetch; None: the main one.
        gated: whether conditions have to be accepted on its page; None: not known.
        bytes: of what is downloaded; None: not known.
        source: of `gated`, `bytes` and the names of files.
    """

    name: str
    home: str
    tables: str
    archives: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    revision: str | None = None
    gated: bool | None = None
    bytes: int | None = None
    source: str = ""

    @property
    def url(self) -> str:
        """Its page on the hub."""
        return f"https://huggingface.co/datasets/{self.name}"

    @property
    def unpacked_bytes(self) -> int | None:
        """What unpacking adds: videos are compressed already, so that archives come out at about their own size."""
        return 0 if not self.archives else self.bytes


@dataclass(frozen=True)
class Expected:
    """How many questions a benchmark's table has and how many videos it asks about; None: not known."""

    questions: int | None
    videos: int | None
    source: str


VIDEOMME = Repository(
    name="lmms-eval/Video-MME",
    home="videomme",
    tables="videomme/{split}-*.parquet",
    archives=("videos_chunked_*.zip", "subtitle.zip"),
    bytes=round((3 * 26.7 + 21.0) * GB),
    source="file list of lmms-lab/Video-MME; bytes: its four archives at commit 300ddc6, before the same videos were "
    "cut into twenty; whether it is gated was not seen",
)
MLVU = Repository(
    name="sy1998/MLVU_dev",
    home="mlvu",
    tables="mlvu/{split}-*.parquet",
    archives=("*.zip",),
    source="file list of sy1998/MLVU_dev at commit 5fd899d, with only some of the archives",
)
MVBENCH = Repository(
    name="OpenGVLab/MVBench",
    home="mvbench_video",
    tables="json/{config}.json",
    folders=(
        *("FunQA_test", "Moments_in_Time_Raw", "clevrer", "nturgbd_convert", "perception", "scene_qa"),
        *("ssv2_video_mp4", "sta", "star", "tvqa", "vlnqa"),
    ),
    left_out=("*.zip",),
    revision="video",  # as the packaged task has it: there the videos are unpacked
    gated=True,
    bytes=round(15.8 * GB),
    source="file list of its branch `video`, which states 15.8 GB; conditions: extra_gated_prompt of its card",
)
EGOSCHEMA = Repository(
    name="lmms-eval/egoschema",
    home="egoschema",
    tables="{config}/{split}-*.parquet",
    archives=("videos_chunked_*.zip",),
    bytes=round((4 * 21.4 + 20.1) * GB),
    source="file list of lmms-lab/egoschema",
)
LONGVIDEOBENCH = Repository(
    name="longvideobench/LongVideoBench",
    home="datasets/longvideobench",
    tables="{split}-*.parquet",
    archives=("videos.tar.part.*", "subtitles.tar"),
    gated=True,
    bytes=round((30 * 5.24 + 4.28 + 0.117) * GB),
    source="its page, which asks to accept conditions; file list of a copy, buckets/weathon/LongVideoBench-bucket",
)
PERCEPTIONTEST = Repository(
    name="lmms-eval/PerceptionTest_Val",
    home="perceptiontest_val",
    tables="{config}/{split}-*.parquet",
    archives=("videos_chunked_*.zip",),
    left_out=("valid_audios.zip",),
    bytes=round((43.1 + 32.3) * GB),
    source="its file list; without valid_audios.zip (35.5 GB), which no video task reads",
)
NEXTQA = Repository(
    name="lmms-eval/NExTQA",
    home="nextqa",
    tables="{config}/{split}-*.parquet",
    archives=("videos.zip",),
    bytes=round(6.49 * GB),
    source="file list of lmms-lab/NExTQA at commit 0d019de",
)
ACTIVITYNETQA = Repository(
    name="lmms-eval/ActivityNetQA",
    home="activitynetqa",
    tables="data/{split}-*.parquet",
    archives=("videos_chunked_*.zip",),
    source="file list of lmms-lab/ActivityNetQA, which was seen in part (28 archives, most of 5.3 GB)",
)
TEMPCOMPASS = Repository(
    name="lmms-eval/TempCompass",
    home="tempcompass",
    tables="{config}/{split}-*.parquet",
    archives=("tempcompass_videos.zip",),
    bytes=round(0.418 * GB),
    source="file list of lmms-lab/TempCompass",
)
REPOSITORIES = {
    repository.name: repository
    for repository in (
        *(VIDEOMME, MLVU, MVBENCH, EGOSCHEMA, LONGVIDEOBENCH),
        *(PERCEPTIONTEST, NEXTQA, ACTIVITYNETQA, TEMPCOMPASS),
    )
}

_VIDEOMME = Expected(2700, 900, "card of lmms-lab/Video-MME (2,700 rows; 900 in the version with one row per video)")
EXPECTED = {
    "videomme": _VIDEOMME,
    "videomme_w_subtitle": _VIDEOMME,
    "mlvu": Expected(None, None, ""),
    "mvbench": Expected(4000, None, "evalscope's page on MVBench: 20 subsets of 200 samples"),
    "egoschema": Expected(500, 500, "viewer of lmms-lab/egoschema: configuration Subset, 500 rows, one video each"),
    "egoschema_full": Expected(5031, 5031, "lmms-eval 0.7.3, tasks/egoschema/utils.py: a list of 5,031 answers"),
    "longvideobench": Expected(1337, None, "card of longvideobench/LongVideoBench-Meta: validation, 1,337 rows"),
    "perceptiontest_val_mc": Expected(19140, None, "card of lmms-lab/PerceptionTest_Val: 19,140 rows"),
    "nextqa_mc_test": Expected(None, None, ""),
    "activitynetqa": Expected(8000, 800, "card of lmms-lab/ActivityNetQA: 8,000 rows; M3IT's card: 800 test videos"),
    "tempcompass": Expected(1580, None, "card of lmms-lab/TempCompass: multi-choice, 1,580 rows"),
}


def repository_of(benchmark: Benchmark) -> Repository:
    """The repository that a benchmark's table and videos are in."""
    return REPOSITORIES[benchmark.hub]


def repositories_of(benchmarks: Sequence[str]) -> list[Repository]:
    """The repositories of these benchmarks, each once; UserError for a name that there is none of."""
    return list(dict.fromkeys(repository_of(benchmark_named(name)) for name in benchmarks))


def bytes_of(benchmarks: Sequence[str]) -> tuple[int, list[str]]:
    """Disk that these benchmarks need, archives and what comes out of them, as far as it is known.

    Returns the bytes, and the names of the repositories whose size is not known.
    """
    wanted = repositories_of(benchmarks)
    known = [repository for repository in wanted if repository.bytes is not None]
    total = sum(repository.bytes + repository.unpacked_bytes for repository in known)
    return total, [repository.name for repository in wanted if repository.bytes is None]


def names() -> tuple[str, ...]:
    """Every benchmark that can be fetched and looked over."""
    return tuple(name for name, benchmark in all_benchmarks().items() if benchmark.hub in REPOSITORIES)
