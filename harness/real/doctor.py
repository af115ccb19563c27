"""What is there for the paper scale and what is missing, before anything is downloaded or computed."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table as Grid

from harness.benchmarks import Benchmark, benchmark_named
from harness.errors import UserError
from harness.progress import SILENT, Progress
from harness.real import checks
from harness.real.archives import changed, find_archives, missing_members
from harness.real.catalogue import EXPECTED, Expected, Repository, repositories_of, repository_of
from harness.real.checkpoints import TOWER_FILE, Checkpoint, Fault, faults
from harness.real.checks import Finding, Needs
from harness.real.tables import NAMED, fetch_command, read_tables
from harness.real.videos import SAMPLED, Check, Videos, broken, find_videos, subtitles

EXPECTED_FILE = "expected.json"  # in a data root that is meant to hold other numbers than the published ones

WIDTH = 80
MARKS = {"ok": "ok", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}


class _Counts(BaseModel):
    """What expected.json says of a benchmark."""

    model_config = ConfigDict(extra="forbid")

    questions: int | None = None
    videos: int | None = None


def examine(
    data: Path,
    benchmarks: Sequence[str],
    checkpoints: Sequence[Path | Checkpoint] = (),
    check: Check = "sampled",
    online: bool = False,
    needs: Needs | None = None,
    progress: Progress = SILENT,
) -> list[Finding]:
    """Look over machine, data and checkpoints; nothing is written, and the network is asked only if `online`.

    Args:
        data: the data root; it need not be there.
        benchmarks: names in the registry.
        checkpoints: folders of saved models, with the file of the vision tower where it is not among the shards.
        check: read some videos of each benchmark ("sampled") or "all".
        needs: what the plan expects to need beside the data.
    """
    data, expected, lacking, findings = Path(data), expected_of(Path(data)), [], []
    for name in benchmarks:
        found = of_benchmark(data, benchmark_named(name), expected, check, progress)
        findings += found
        if expected[name] is EXPECTED[name] and exit_code(found):
            lacking.append(name)
    given = [item if isinstance(item, Checkpoint) else Checkpoint(Path(item)) for item in checkpoints]
    findings += [of_checkpoint(checkpoint) for checkpoint in given]
    models = ["/".join(checkpoint.folder.parts[-2:]) for checkpoint in given if checkpoint.model]
    hub = checks.hub(repositories_of(benchmarks), models) if online else [checks.offline()]
    return [*machine(data, repositories_of(lacking), needs or Needs()), *hub, *findings]


def machine(data: Path, lacking: Sequence[Repository], needs: Needs, paper: bool = True) -> list[Finding]:
    """Versions, GPU (which only `paper` scale wants), memory, FFmpeg, and disk for repositories not complete."""
    pair = checks.torch_pair()
    gpu = [checks.gpu(needs.gpu_memory, wanted=paper, gpus=needs.gpus)] if pair.what != "torch" else []
    missing, unknown = still_to_come(data, lacking)
    disk = checks.disk(data, missing + (needs.disk or 0), unknown)
    return [checks.python(), *checks.packages(), pair, *gpu, checks.memory(needs.memory), disk, checks.ffmpeg()]


def still_to_come(data: Path, repositories: Sequence[Repository]) -> tuple[int, list[str]]:
    """Bytes that downloads and unpacking will still write, and the repositories whose size is not known."""
    total, unknown = 0, []
    for repository in repositories:
        there = size_of(data / "hub" / repository.name) + size_of(data / "home" / repository.home)
        if repository.bytes is None:
            unknown.append(repository.name)
        else:
            total += max(repository.bytes + repository.unpacked_bytes - there, 0)
    return total, unknown


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder, links not followed."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


# -------------------------------------------------------------------------------------------------- benchmarks


def of_benchmark(
    data: Path,
    benchmark: Benchmark,
    expected: dict[str, Expected],
    check: Check = "sampled",
    progress: Progress = SILENT,
) -> list[Finding]:
    """A benchmark's tables, videos and counts."""
    mend = fetch_command(data, benchmark.name)
    try:
        tables = read_tables(data, benchmark)
    except UserError as error:  # its last clause says what to do, as `mend` does
        return [Finding(f"{benchmark.name}: table", "missing", str(error).rpartition("; ")[0], mend)]
    try:
        videos, rows = find_videos(tables, data / "home"), sum(table.rows.num_rows for table in tables)
    except UserError as error:
        return [Finding(f"{benchmark.name}: videos", "missing", str(error), f"mv {shlex.quote(str(data))} ELSEWHERE")]
    questions, source = expected[benchmark.name].questions, expected[benchmark.name].source
    findings = [_counted(f"{benchmark.name}: table", "questions", rows, questions, source, mend)]
    findings.append(_present(data, benchmark, videos, expected[benchmark.name]))
    if videos.there:
        findings.append(_readable(data, benchmark, videos, check, progress))
        findings += _subtitled(data, benchmark, videos)
    return findings


def _counted(what: str, unit: str, found: int, wanted: int | None, source: str, mend: str) -> Finding:
    """A number against the expected one: what lacks is missing, what is too many is strange."""
    if wanted is None:
        return Finding(what, "ok", f"{found} {unit} (the published number is not known)")
    if found == wanted:
        return Finding(what, "ok", f"{found} {unit}")
    state = "missing" if found < wanted else "warning"
    return Finding(what, state, f"{found} {unit}, {wanted} expected ({source})", mend)


def _present(data: Path, benchmark: Benchmark, videos: Videos, expected: Expected) -> Finding:
    """Whether every video that is asked about is there, and if not, whether it waits in an archive."""
    what, repository = f"{benchmark.name}: videos", repository_of(benchmark)
    mend = fetch_command(data, benchmark.name)
    if not videos.missing:
        return _counted(what, "videos", videos.asked, expected.videos, expected.source, mend)
    named = ", ".join(videos.missing[:NAMED]) + (", ..." if len(videos.missing) > NAMED else "")
    detail = f"{len(videos.missing)} of {videos.asked} are not in {data / 'home'}: {named}"
    if packed := not_unpacked(data, repository):
        unpack = fetch_command(data, benchmark.name, online=False)
        return Finding(what, "missing", f"{detail}; not unpacked: {', '.join(packed)}", unpack)
    return Finding(what, "missing", detail, mend)


def not_unpacked(data: Path, repository: Repository) -> list[str]:
    """Archives (and folders of videos) that were downloaded and lie not below DATA/home; of damaged ones, the fault."""
    folder, home, found = data / "hub" / repository.name, data / "home" / repository.home, []
    for archive in find_archives(folder, repository.archives, repository.left_out):
        try:
            if missing_members(archive, home):
                found.append(archive.name)
        except UserError as error:
            found.append(str(error))
    return found + [name for name in repository.folders if (folder / name).is_dir() and not (home / name).exists()]


def _readable(data: Path, benchmark: Benchmark, videos: Videos, check: Check, progress: Progress) -> Finding:
    """Whether the videos that were looked at can be read, and all have the size with which they were unpacked."""
    what, mend = f"{benchmark.name}: reading", fetch_command(data, benchmark.name)
    others = changed(data / "home" / repository_of(benchmark).home)
    bad = {file: "not of its archive's size" for file in videos.there if file in others}
    bad |= broken(videos.there, check, progress, benchmark.name)
    if not bad:
        looked = "all" if check == "all" or len(videos.there) <= SAMPLED else "a sample (check=all reads every one)"
        return Finding(what, "ok", looked)
    named = ", ".join(f"{path} ({why})" for path, why in list(bad.items())[:NAMED])
    rest = ", ..." if len(bad) > NAMED else ""
    again = f"rm {' '.join(shlex.quote(str(path)) for path in bad)} && {mend}"
    return Finding(what, "missing", f"{len(bad)} cannot be read: {named}{rest}", again)


def _subtitled(data: Path, benchmark: Benchmark, videos: Videos) -> list[Finding]:
    """Whether subtitles are there, for a benchmark that shows them; how many videos have some is not known."""
    there = subtitles(benchmark, videos, data / "home")
    if there is None:
        return []
    what, detail = f"{benchmark.name}: subtitles", f"of {len(there)} of {len(videos.there)} videos"
    if packed := [name for name in not_unpacked(data, repository_of(benchmark)) if "subtitle" in name]:
        mend = fetch_command(data, benchmark.name, online=False)
        return [Finding(what, "missing", f"{detail}; not unpacked: {', '.join(packed)}", mend)]
    if not there:
        return [Finding(what, "missing", detail, fetch_command(data, benchmark.name))]
    return [Finding(what, "ok", f"{detail} (the published number is not known)")]


def expected_of(data: Path) -> dict[str, Expected]:
    """The numbers that a data root should hold: the published ones, or its own expected.json's."""
    path = data / EXPECTED_FILE
    if not path.is_file():
        return EXPECTED
    try:
        given = TypeAdapter(dict[str, _Counts]).validate_json(path.read_text())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"{path}: {where or 'the file'}: {fault['msg']}; it holds {{benchmark: {{questions: N, videos: N}}}}"
        ) from error
    return EXPECTED | {n: Expected(c.questions, c.videos, str(path)) for n, c in given.items()}


# ------------------------------------------------------------------------------------------------- checkpoints


def of_checkpoint(checkpoint: Checkpoint) -> Finding:
    """One checkpoint's files."""
    what, found = f"checkpoint {checkpoint.folder.name}", faults(checkpoint)
    if not found:
        return Finding(what, "ok", str(checkpoint.folder))
    return Finding(what, "missing", "; ".join(f"{f.part}: {f.detail}" for f in found), _mend(checkpoint, found))


def _mend(checkpoint: Checkpoint, found: Sequence[Fault]) -> str:
    """What makes a checkpoint whole. Its vision tower's own file is not among what the hub has for it."""
    if all(fault.part == "vision file" for fault in found):
        return f"cp VISION_TOWER.safetensors {shlex.quote(str(checkpoint.tower or checkpoint.folder / TOWER_FILE))}"
    if checkpoint.model:
        root = shlex.quote(str(checkpoint.folder.parents[2]))  # DATA/models/ORG/NAME
        return f"python -m harness fetch data={root} models=[{checkpoint.model}] online=true"
    return f"cp -r WHOLE_CHECKPOINT {shlex.quote(str(checkpoint.folder))}"


# ----------------------------------------------------------------------------------------------------- printing


def exit_code(findings: Sequence[Finding]) -> int:
    """0 if nothing is missing, else 2."""
    return 2 if any(finding.state == "missing" for finding in findings) else 0


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """A table of the findings, and below it the command that mends each."""
    console = console or Console(width=WIDTH, highlight=False)
    grid = Grid(box=None, pad_edge=False, width=min(console.width, WIDTH), show_header=False)
    grid.add_column(max_width=24, overflow="fold")
    grid.add_column(width=7)
    grid.add_column(overflow="fold")
    for finding in findings:
        grid.add_row(finding.what, MARKS[finding.state], finding.detail.replace("[", r"\["))
    console.print(grid)
    mends = list(dict.fromkeys(f.mend for f in findings if f.mend and f.state != "ok"))
    if mends:
        console.print("\nWhat mends it:")
        for mend in mends:
            console.print(f"  {mend}", markup=False, soft_wrap=True)
    missing = sum(finding.state == "missing" for finding in findings)
    console.print(f"\n{missing} missing." if missing else "\nNothing is missing.")


def as_json(findings: Sequence[Finding]) -> str:
    """The findings for other programs."""
    return json.dumps([vars(finding) for finding in findings], indent=2)
