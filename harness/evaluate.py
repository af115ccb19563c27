"""Evaluates a checkpoint on benchmarks: lmms-eval's packaged tasks, in this process, on a suite.

A suite is the generated one or real data in the same layout. Only the tasks' `dataset_path` is overridden (and, where
a task would post predictions, that it does). The scores are lmms-eval's own; every sample's correctness is taken from
its results, and must add up to the same scores. Nothing is sent anywhere but to a judge that a benchmark needs.

In one of several processes (`harness.processes`) all call `evaluate`, and the first one writes.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.asking import (
    COLUMNS,
    chosen_benchmarks,
    chosen_index,
    judge_hosts,
    keys_of,
    tasks_of,
    variables_of,
    with_questions,
)
from harness.benchmarks import LETTERS, Benchmark
from harness.decoders import DEFAULT
from harness.errors import UserError
from harness.journal import UNPARSED, Watched
from harness.paths import write_text
from harness.processes import Peers, check_launch
from harness.progress import SILENT, Progress
from harness.prompt_styles import DEFAULT as DEFAULT_STYLE
from harness.sampling import DEFAULT as DEFAULT_RULE
from harness.submission import nothing_posted, packaged_overrides, write_submission

__all__ = ["COLUMNS", "JOURNAL", "LOG", "SCORES", "Evaluation", "command_line", "evaluate", "load_evaluation"]

SAMPLES, VIDEOS, SCORES = "samples.parquet", "videos.parquet", "scores.json"
JOURNAL, LOG, SUBMISSION = "journal.jsonl", "lmms_eval.log", "submission.json"
ROUNDING = 1e-3  # of a score in 0..100: LongVideoBench's task rounds to five decimals of 0..1
VIDEO_COLUMNS = [field.name for field in fields(Watched)]


@dataclass(frozen=True)
class Evaluation:
    """What one checkpoint scored.

    Attributes:
        scores: benchmark -> lmms-eval's own metric, 0-100; without those whose answers are not public.
        samples: one line per question. `target` and `prediction` are letters (after a failure, a wrong one; "" where
            there are no options, or the target is not public), `correct` is what the benchmark's metric counts,
            `failure` is "" or a kind ("unparsed" is the model's mistake, the others are failures), `message` says
            more, `answer` is the model's own text.
    """

    scores: dict[str, float]
    samples: pd.DataFrame

    @property
    def failed(self) -> pd.DataFrame:
        """The samples whose video or answer failed: scored as wrong, and never dropped."""
        return self.samples[~self.samples["failure"].isin(["", UNPARSED])]


def evaluate(
    checkpoint: Path,
    suite: Path,
    out: Path,
    frames: int,
    control: str = "none",
    batch_size: int = 32,
    workers: int = 2,
    progress: Progress = SILENT,
    decoder: str = DEFAULT,
    answer_tokens: int | None = None,
    features: Path | None = None,
    *,
    benchmarks: Sequence[str] | None = None,
    prompts: str = DEFAULT_STYLE,
    sampling: str = DEFAULT_RULE,
    limit: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    online: bool = False,
) -> Evaluation:
    """Score a checkpoint on a suite; writes samples.parquet, videos.parquet and scores.json into OUT.

    A run that was cut off goes on. Where a benchmark's answers are not public, submission.json holds the predictions.

    Args:
        frames: sampled from each video, at most.
        control: a name in `harness.controls.CONTROLS`.
        batch_size: questions per batch.
        workers: threads that decode videos ahead; 0: none, each is decoded when its batch needs it.
        decoder: a name in `harness.decoders.DECODERS`.
        answer_tokens: at most so many in an answer; None: as each task says, or the prompts' style.
        features: folder of what encoders made of videos, to look up and to fill; shared by evaluations and
            processes, it changes no answer (`harness.features`). None: videos are decoded and encoded.
        benchmarks: names in the registry; None: those in the suite's index.
        prompts: a name in `harness.prompt_styles.STYLES`.
        sampling: a name in `harness.sampling.RULES`; it may give fewer frames than `frames`.
        limit: the first so many questions of each task; None: all.
        dtype: of weights and activations, "bfloat16", "float16" or "float32"; None: as the checkpoint has it.
        device: torch's name of it; None or "auto": the GPU of this process, or the CPU.
        online: the hub and a judge may be asked.

    Raises UserError for a bad argument, or if OUT holds answers of another run.
    """
    check_launch()
    index = chosen_index(suite, benchmarks, limit)
    chosen = chosen_benchmarks(index)
    judges = judge_hosts(chosen, online)
    out.mkdir(parents=True, exist_ok=True)
    with _environment(suite, online), _quiet(out / LOG), nothing_posted(judges, online, tasks_of(index)):
        from harness.lmms_plugin import SlowFastMLLM  # imports lmms-eval: seconds, once per process

        model = SlowFastMLLM(
            checkpoint,
            frames=frames,
            control=control,
            journal=out / JOURNAL,
            batch=batch_size,
            workers=workers,
            decoder=decoder,
            device=device,
            features=features,
            progress=progress,
            dtype=dtype,
            prompts=prompts,
            sampling=sampling,
            answer_tokens=answer_tokens,
            limit=limit,
        )
        results = run_tasks(model, suite, chosen, limit)
        return Peers.here().from_first(lambda: _finish(index, chosen, results, model, out))


def load_evaluation(out: Path) -> Evaluation:
    """An evaluation as it was written; UserError if it is not finished."""
    if not (out / SCORES).is_file():
        raise UserError(f"{out} holds no finished evaluation (no {SCORES}); run it first")
    return Evaluation(json.loads((out / SCORES).read_text())["scores"], pd.read_parquet(out / SAMPLES))


def run_tasks(
    model: Any, suite: Path, benchmarks: dict[str, Benchmark], limit: int | None = None
) -> dict[str, Any] | None:
    """lmms-eval's results of a model (an `lmms` object) on the packaged tasks with a suite's tables.

    In all but the first of several processes: None. The environment must be set: see `_environment`.
    """
    import lmms_eval.tasks
    from lmms_eval.evaluator import simple_evaluate

    from harness.lmms_plugin import MODEL_ID

    package = Path(lmms_eval.tasks.__file__).parent
    definitions = [path for benchmark in benchmarks.values() for path in benchmark.definitions.values()]
    folders = sorted({str((package / path).parent) for path in definitions})
    # Only the benchmarks' own folders are indexed: all of lmms-eval's tasks would take seconds.
    manager = lmms_eval.tasks.TaskManager(include_path=folders, include_defaults=False, model_name=MODEL_ID)
    tasks = [
        {"task": task, "dataset_path": str(suite.resolve() / "hub" / benchmark.hub), **packaged_overrides(task)}
        for benchmark in benchmarks.values()
        for task in benchmark.tasks
    ]
    return simple_evaluate(
        model,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,  # intervals are computed from the samples
        process_docs_parallel=1,  # the parsers share `random`
        distributed_executor_backend="accelerate" if Peers.here().world == 1 else "torchrun",
    )


def command_line(
    checkpoint: Path,
    suite: Path,
    frames: int,
    control: str = "none",
    batch_size: int = 32,
    benchmarks: Sequence[str] | None = None,
    **options: str | None,
) -> str:
    """The shell command with which lmms-eval's own command line computes the same numbers.

    `options` are further arguments of the plug-in, left out where they are None.
    """
    chosen = chosen_benchmarks(chosen_index(suite, benchmarks)).values()
    groups = [b.tasks[0] if len(b.tasks) == 1 else b.name for b in chosen]
    arguments = f"pretrained={checkpoint.resolve()},frames={frames}"
    if control != "none":
        arguments += f",control={control}"
    if batch_size != 32:
        arguments += f",batch={batch_size}"
    arguments += "".join(f",{name}={value}" for name, value in options.items() if value is not None)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables_of(suite).items())
    return (
        f"cd {shlex.quote(str(suite.resolve() / 'hub'))} && {variables} python -m lmms_eval "
        f"--model slowfast_mllm --model_args {shlex.quote(arguments)} --tasks {','.join(groups)}"
    )


@contextlib.contextmanager
def _environment(suite: Path, online: bool = False) -> Iterator[None]:
    """Set the variables for the tasks, which read them whenever they are loaded; then restore them."""
    variables = variables_of(suite, online)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """lmms-eval's own bars and prints go to a file: the person watches ours."""
    with (
        log.open("a") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def _finish(
    index: pd.DataFrame, benchmarks: dict[str, Benchmark], results: dict[str, Any], model: Any, out: Path
) -> Evaluation:
    """The evaluation that lmms-eval's results amount to, written."""
    samples = _samples(index, correct_samples(tasks_of(index), results["samples"]), model.entries)
    evaluation = Evaluation(_scores(benchmarks, results["results"], samples), samples)
    _write(evaluation, benchmarks, model, out)
    return evaluation


def correct_samples(
    tasks: dict[str, Benchmark], samples: dict[str, list[dict[str, Any]]]
) -> dict[tuple[str, int], bool]:
    """(task, doc_id) -> whether lmms-eval counts it as right; never, where the answers are not public."""
    return {
        (task, sample["doc_id"]): not benchmark.submission and benchmark.is_correct(sample[benchmark.metric])
        for task, benchmark in tasks.items()
        for sample in samples[task]
    }


def _samples(index: pd.DataFrame, correct: dict[tuple[str, int], bool], entries: dict) -> pd.DataFrame:
    """One line per question of the index (`COLUMNS`), with what lmms-eval counts as correct."""
    keys = keys_of(index)
    if set(keys) != set(correct):
        raise RuntimeError(f"lmms-eval scored {len(correct)} questions, the suite has {len(keys)}: not the same")
    answered = pd.DataFrame(
        {
            "prediction": [entries[key].letter for key in keys],
            "correct": [correct[key] for key in keys],
            "failure": [entries[key].failure for key in keys],
            "message": [entries[key].message for key in keys],
            "answer": [entries[key].answer or "" for key in keys],
            "seconds": [entries[key].seconds for key in keys],
        },
        index=index.index,
    )
    return with_questions(index, answered)


def _scores(
    benchmarks: dict[str, Benchmark], reported: dict[str, dict[str, Any]], samples: pd.DataFrame
) -> dict[str, float]:
    """lmms-eval's scores in 0..100; RuntimeError if the samples do not add up to them.

    A judge may call an answer neither right nor wrong, and its benchmark leaves that out of the average: there they
    need not add up.
    """
    scores = {}
    for name, benchmark in benchmarks.items():
        if benchmark.submission:
            continue
        scores[name] = reported_score(benchmark, reported)
        own = samples[samples["benchmark"] == name]
        added_up = benchmark.score(own["correct"].tolist(), own["category"].tolist())
        if abs(added_up - scores[name]) > ROUNDING and not benchmark.judge:
            raise RuntimeError(f"{name}: lmms-eval reports {scores[name]}, its samples add up to {added_up}")
    return scores


def reported_score(benchmark: Benchmark, reported: dict[str, dict[str, Any]]) -> float:
    """What lmms-eval reports, in 0..100; where it reports several tasks, their mean."""
    values = [reported[task][f"{benchmark.metric},none"] for task in benchmark.tasks]
    return 100 / benchmark.scale * sum(values) / len(values)


def _write(evaluation: Evaluation, benchmarks: dict[str, Benchmark], model: Any, out: Path) -> None:
    """The tables first: where there is a scores.json, everything is there."""
    write_table(out / SAMPLES, evaluation.samples)
    write_table(out / VIDEOS, pd.DataFrame([asdict(watched) for watched in model.watched], columns=VIDEO_COLUMNS))
    _write_predictions(evaluation.samples, [n for n, b in benchmarks.items() if b.submission], out / SUBMISSION)
    summary = {
        "scores": evaluation.scores,
        "frames": model.frames,
        "control": model.control,
        "sampling": model.sampling_rule,
        "prompts": model.prompts,
        "limit": model.limit,
        "dtype": model.dtype,
        "decoder": model.decoder_version,
        "n_samples": len(evaluation.samples),
        "failures": failures_of(evaluation),
    }
    write_text(out / SCORES, json.dumps(summary, indent=2) + "\n")


def _write_predictions(samples: pd.DataFrame, names: Sequence[str], path: Path) -> None:
    """The submission file, if there are such predictions: those with an option's letter; the rest counts as missing."""
    answered = samples[samples["benchmark"].isin(names) & (samples["failure"] == "")]
    ids = [Path(video).stem for video in answered["video"]]
    if ids:
        write_submission(path, dict(zip(ids, map(LETTERS.index, answered["prediction"]), strict=True)))


def failures_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The failed samples as scores.json lists them."""
    return evaluation.failed[["task", "doc_id", "video", "failure", "message"]].to_dict("records")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table so that a reader sees the old file or the new one."""
    work = path.with_name(f".{path.name}")
    table.to_parquet(work, index=False, compression="zstd")
    work.replace(path)
