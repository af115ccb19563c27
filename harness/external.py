"""Models that lmms-eval has itself, by its own command line in a child process, on a suite: the same Evaluation.

    evaluate_external("llava_onevision", {"pretrained": FOLDER, "max_frames_num": 32}, suite, out)

That command line exits with 0 though its model failed, so its results file is what counts. A question that is
answered with nothing is a failure and counts as wrong: MVBench's task would leave it out of the average. An answer
without a letter is `unparsed`, and is right where the packaged task counts it so: some of them guess. Some models
answer without a video that they cannot load: every video is read here first, and questions about one that cannot be
are failures, whatever was answered.

The child sends nothing to anyone (`harness.submission.nothing_posted`) but to the hosts that are allowed.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from harness.asking import (
    JUDGE,
    LOOPBACK,
    chosen_benchmarks,
    chosen_index,
    judge_hosts,
    keys_of,
    tasks_of,
    variables_of,
    with_questions,
)
from harness.benchmarks import Benchmark
from harness.errors import UserError
from harness.evaluate import (
    LOG,
    ROUNDING,
    SAMPLES,
    SCORES,
    Evaluation,
    correct_samples,
    failures_of,
    reported_score,
    write_table,
)
from harness.journal import EMPTY_ANSWER, UNPARSED
from harness.packets import UNREADABLE
from harness.paths import write_text
from harness.processes import check_launch, environment, expect_gpus, last_error, launcher
from harness.progress import SILENT, Progress
from harness.real.videos import broken
from harness.submission import nothing_posted

NOT_FAILED = ("", UNPARSED)
OUTPUT = "lmms_eval"  # below OUT: what the command line writes
CANNOT_LOAD = re.compile(r"Video .* can not load, check the source", re.DOTALL)  # as LLaVA-Video's own model answers
BLIND = re.compile(r"\bin loading video\b")  # as LLaVA-OneVision's logs before it answers the question alone
NOBODY = "http://127.0.0.1:9/"  # the port of the discard service: nobody answers


def evaluate_external(
    model: str,
    model_args: Mapping[str, Any] | str,
    suite: Path,
    out: Path,
    *,
    benchmarks: Sequence[str] | None = None,
    limit: int | None = None,
    processes: int = 1,
    batch_size: int = 1,
    device: str | None = None,
    online: bool = False,
    allow: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Evaluation:
    """Score one of lmms-eval's own models; writes samples.parquet and scores.json into OUT.

    There is no going on: what was cut off starts anew. Seconds per question are not known (NaN).

    Args:
        model: lmms-eval's `--model`.
        model_args: its `--model_args`.
        benchmarks, limit, device, online: as in `harness.evaluate.evaluate`.
        processes: that share the questions, by torchrun.
        batch_size: lmms-eval's own, for models that know batches.
        allow: hosts that may be sent to, such as the model's own where it is a service, or a judge of answers that a
            task cannot read.

    Raises UserError for a bad argument, if lmms-eval wrote no results, with its last error, or if the model answered
    without videos that can be read.
    """
    check_launch()
    expect_gpus(processes, device)
    index = chosen_index(suite, benchmarks, limit)
    chosen = chosen_benchmarks(index)
    for name, benchmark in chosen.items():
        if benchmark.submission:
            raise UserError(f"benchmarks={name}: lmms-eval's task would post the predictions; leave it out for {model}")
    tasks = list(tasks_of(index))
    hosts = [*LOOPBACK, *judge_hosts(chosen, online), *allow]
    guard = {"allow": hosts, "online": online, "tasks": tasks}
    variables = _environment(suite, processes, device, online, hosts)
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / OUTPUT, ignore_errors=True)  # of an earlier attempt
    command = [*launcher(processes), "-m", "harness.external", json.dumps(guard)]
    command += _arguments(model, model_args, tasks, out, limit, batch_size, device)
    unread = unreadable(suite, index, progress)
    progress.say(f"{model}: lmms-eval's own command line is at work on {len(index)} questions; it tells {out / LOG}")
    said = _run(command, suite, variables, out, model)
    _expect_seen(said, int(index["video"].isin(list(unread)).sum()), model, out)
    evaluation, reported = read_results(index, out, unread)
    _write(evaluation, reported, model, model_args, limit, out)
    return evaluation


def unreadable(suite: Path, index: pd.DataFrame, progress: Progress = SILENT) -> dict[str, str]:
    """Videos of an index that cannot be read -> why; each one is looked at, as `harness.real.videos.broken` does."""
    files = {suite / "home" / video: video for video in dict.fromkeys(index["video"])}
    return {files[path]: why for path, why in broken(list(files), "all", progress).items()}


def read_results(
    index: pd.DataFrame, out: Path, unread: Mapping[str, str] = MappingProxyType({})
) -> tuple[Evaluation, dict[str, float]]:
    """What lmms-eval wrote below OUT about the questions of an index, and the scores that it reports.

    They are the evaluation's too, unless questions failed: then those count as wrong, which its own need not.
    `unread`: videos that cannot be read -> why; questions about them have failed.
    RuntimeError if it did not score the same questions, or its samples do not add up to its scores.
    """
    tasks, chosen = tasks_of(index), chosen_benchmarks(index)
    results = _results_file(out)
    samples = {task: _sample_lines(results, task) for task in tasks}
    correct = correct_samples(tasks, samples)
    answers = {(task, sample["doc_id"]): answer_of(sample) for task in tasks for sample in samples[task]}
    keys = keys_of(index)
    if set(keys) != set(correct):
        raise RuntimeError(f"lmms-eval scored {len(correct)} questions, the suite has {len(keys)}: not the same")
    judged = [
        ("", unread[video], f"{video} cannot be read; the model answered all the same")
        if video in unread
        else judge_answer(answers[key], n)
        for key, n, video in zip(keys, index["n_options"], index["video"], strict=True)
    ]
    answered = pd.DataFrame(judged, columns=["prediction", "failure", "message"], index=index.index).assign(
        correct=[correct[key] and failure in NOT_FAILED for key, (_, failure, _) in zip(keys, judged, strict=True)],
        answer=[answers[key] for key in keys],
        seconds=float("nan"),
    )
    table = with_questions(index, answered)
    reported = json.loads(results.read_text(encoding="utf-8"))["results"]
    theirs = {name: reported_score(benchmark, reported) for name, benchmark in chosen.items()}
    lines = dict(list(table.groupby("benchmark", sort=False)))
    scores = {name: _score(benchmark, lines[name], theirs[name]) for name, benchmark in chosen.items()}
    return Evaluation(scores, table), theirs


def answer_of(sample: Mapping[str, Any]) -> str:
    """The model's text in a line of lmms-eval's samples, which wraps it in lists or not."""
    answer = sample["filtered_resps"]
    while isinstance(answer, list):
        answer = answer[0] if answer else ""
    return str(answer)


def judge_answer(answer: str, n_options: int) -> tuple[str, str, str]:
    """(letter, failure, message) of a text; the letter is "" where there is none."""
    from harness.lmms_requests import option_letter  # imports lmms-eval

    if not answer.strip():
        return "", EMPTY_ANSWER, "the model's answer is empty"
    if CANNOT_LOAD.fullmatch(answer.strip()):
        return "", UNREADABLE, f"the model's own reader failed: {answer.strip()!r}"
    letter = option_letter(answer, n_options) if n_options else ""
    if letter is None:
        return "", UNPARSED, f"no offered option's letter in {answer!r}"
    return letter, "", ""


def _score(benchmark: Benchmark, own: pd.DataFrame, reported: float) -> float:
    """A benchmark's score in 0..100, where what failed is wrong."""
    if benchmark.judge:
        return reported
    added_up = benchmark.score(own["correct"].tolist(), own["category"].tolist())
    if abs(added_up - reported) <= ROUNDING:
        return reported
    if own["failure"].isin(NOT_FAILED).all():
        raise RuntimeError(f"{benchmark.name}: lmms-eval reports {reported}, its samples add up to {added_up}")
    return added_up


def _results_file(out: Path) -> Path:
    """The one file of results below OUT; UserError if there is none."""
    found = sorted((out / OUTPUT).rglob("*_results.json"))
    if len(found) != 1:
        raise UserError(f"{out / OUTPUT} holds {len(found)} files of results instead of one; run it again")
    return found[0]


def _sample_lines(results: Path, task: str) -> list[dict[str, Any]]:
    path = results.with_name(results.name.replace("_results.json", f"_samples_{task}.jsonl"))
    if not path.is_file():
        raise UserError(f"{path}: lmms-eval wrote no samples of {task} there; run it again")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------- the child process


def _arguments(
    model: str,
    model_args: Mapping[str, Any] | str,
    tasks: Sequence[str],
    out: Path,
    limit: int | None,
    batch_size: int,
    device: str | None,
) -> list[str]:
    """The command line of lmms-eval."""
    if not isinstance(model_args, str):
        model_args = ",".join(f"{name}={value}" for name, value in model_args.items())
    options = {
        "model": model,
        "model_args": model_args,
        "tasks": ",".join(tasks),
        "batch_size": batch_size,
        "output_path": (out / OUTPUT).resolve(),
        "process_docs_parallel": 1,  # the parsers share `random`
        "limit": limit,
        "device": None if device == "auto" else device,
    }
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return [*(text for pair in given for text in pair), "--log_samples"]


def _environment(
    suite: Path, processes: int, device: str | None, online: bool, hosts: Sequence[str] = LOOPBACK
) -> dict[str, str]:
    """The child's variables: HF_HOME is the suite's, but the user's cache of models and token stay the user's.

    Some tasks ask a judge about answers that they cannot read. Unless it is among the `hosts`, they find nobody, and
    count these as wrong.
    """
    variables = environment(processes, device)
    home = Path(variables.get("HF_HOME", Path(variables.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"))
    for name, folder in (("HF_HUB_CACHE", "hub"), ("HF_TOKEN_PATH", "token"), ("HF_MODULES_CACHE", "modules")):
        variables.setdefault(name, str(home.expanduser() / folder))
    if urlsplit(variables.get(*JUDGE)).hostname not in hosts:
        variables[JUDGE[0]] = NOBODY
    return variables | variables_of(suite, online)


def _run(command: Sequence[str], suite: Path, variables: Mapping[str, str], out: Path, model: str) -> str:
    """Run lmms-eval in the suite's tables, and return what it said; UserError unless it wrote results."""
    with (out / LOG).open("a", encoding="utf-8") as log:
        begun = log.tell()
        where = suite.resolve() / "hub"
        code = subprocess.run(command, cwd=where, env=dict(variables), stdout=log, stderr=log, check=False).returncode
    with (out / LOG).open(encoding="utf-8", errors="replace") as log:
        log.seek(begun)
        said = log.read()
    if code or not list((out / OUTPUT).rglob("*_results.json")):
        last_line = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing")
        why = last_error(said) or last_line
        raise UserError(f"{model}: lmms-eval ended without results (exit code {code}): {why}; {out / LOG} says more")
    return said


def _expect_seen(said: str, expected: int, model: str, out: Path) -> None:
    """UserError if the model answered more questions without their videos than those about videos nobody can read."""
    if (blind := len(BLIND.findall(said))) > expected:
        raise UserError(
            f"{model}: {blind - expected} questions were answered without their videos, which its own reader cannot "
            f"load though they can be read: no score; {out / LOG} says why"
        )


def _write(
    evaluation: Evaluation,
    reported: dict[str, float],
    model: str,
    model_args: Mapping[str, Any] | str,
    limit: int | None,
    out: Path,
) -> None:
    write_table(out / SAMPLES, evaluation.samples)
    summary = {
        "scores": evaluation.scores,
        "reported": reported,
        "model": model,
        "model_args": model_args if isinstance(model_args, str) else dict(model_args),
        "lmms_eval": metadata.version("lmms-eval"),
        "limit": limit,
        "n_samples": len(evaluation.samples),
        "unparsed": int((evaluation.samples["failure"] == UNPARSED).sum()),
        "failures": failures_of(evaluation),
    }
    write_text(out / SCORES, json.dumps(summary, indent=2, default=str) + "\n")


def main(arguments: Sequence[str]) -> int:
    """In the child: lmms-eval's own command line, with nothing posted but where GUARD (JSON) allows it."""
    guard = json.loads(arguments[0])
    sys.argv = ["lmms_eval", *arguments[1:]]
    try:
        with nothing_posted(**guard):
            runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
    except UserError as error:
        print(f"UserError: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
