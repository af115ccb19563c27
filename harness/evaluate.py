"""Evaluates a checkpoint on the five benchmarks: lmms-eval's packaged tasks, in this process, on a suite.

Only the tasks' `dataset_path` is overridden. The scores are lmms-eval's own; every sample's correctness is
taken from its results, and must add up to the same scores.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.benchmarks import BENCHMARKS, Benchmark
from harness.decoders import DEFAULT
from harness.errors import UserError
from harness.journal import UNPARSED, Watched
from harness.mini.suite import load_index
from harness.paths import cache_dir, write_text
from harness.progress import SILENT, Progress
from harness.video import SAMPLING_RULE

SAMPLES, VIDEOS, SCORES = "samples.parquet", "videos.parquet", "scores.json"
JOURNAL, LOG = "journal.jsonl", "lmms_eval.log"
ROUNDING = 1e-3  # of a score in 0..100: LongVideoBench's task rounds to five decimals of 0..1
COLUMNS = [
    *("benchmark", "task", "doc_id", "video", "category", "family", "n_options"),
    *("target", "prediction", "correct", "failure", "message", "answer", "seconds"),
]
VIDEO_COLUMNS = [field.name for field in fields(Watched)]


@dataclass(frozen=True)
class Evaluation:
    """What one checkpoint scored.

    Attributes:
        scores: benchmark -> lmms-eval's own metric, 0-100.
        samples: one line per question. `target` and `prediction` are letters (after a failure, a wrong one),
            `correct` is what the benchmark's metric counts, `failure` is "" or a kind ("unparsed" is the
            model's mistake, the others are failures), `message` says more, `answer` is the model's own text.
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
) -> Evaluation:
    """Score a checkpoint on a suite; writes samples.parquet, videos.parquet and scores.json into OUT.

    A run that was cut off goes on.

    Args:
        control: a name in `harness.controls.CONTROLS`.
        batch_size: questions per batch.
        workers: threads that decode videos ahead; 0: none, each is decoded when its batch needs it.
        decoder: a name in `harness.decoders.DECODERS`.
        answer_tokens: at most so many in an answer; None: as each task says.
        features: folder of what encoders made of videos, to look up and to fill; shared by evaluations and
            processes, it changes no answer (`harness.features`). None: videos are decoded and encoded.

    Raises UserError for a bad argument, or if OUT holds answers of another run.
    """
    index = load_index(suite)
    out.mkdir(parents=True, exist_ok=True)
    with _environment(suite), _quiet(out / LOG):
        from harness.lmms_plugin import SlowFastMLLM  # imports lmms-eval: seconds, once per process

        model = SlowFastMLLM(
            checkpoint,
            frames=frames,
            control=control,
            journal=out / JOURNAL,
            batch=batch_size,
            workers=workers,
            decoder=decoder,
            features=features,
            progress=progress,
        )
        results = run_tasks(model, suite, answer_tokens)
    samples = _samples(index, results, model.entries)
    evaluation = Evaluation(_scores(results, samples), samples)
    _write(evaluation, model, out)
    return evaluation


def load_evaluation(out: Path) -> Evaluation:
    """An evaluation as `evaluate` wrote it; UserError if it is not finished."""
    if not (out / SCORES).is_file():
        raise UserError(f"{out} holds no finished evaluation (no {SCORES}); run it first")
    return Evaluation(json.loads((out / SCORES).read_text())["scores"], pd.read_parquet(out / SAMPLES))


def run_tasks(model: Any, suite: Path, answer_tokens: int | None = None) -> dict[str, Any]:
    """lmms-eval's results of a model (an `lmms` object) on the packaged tasks with a suite's tables.

    The environment must be set: see `_environment`.
    """
    import lmms_eval.tasks
    from lmms_eval.evaluator import simple_evaluate

    from harness.lmms_plugin import MODEL_ID

    package = Path(lmms_eval.tasks.__file__).parent
    definitions = [path for benchmark in BENCHMARKS.values() for path in benchmark.definitions.values()]
    folders = sorted({str((package / path).parent) for path in definitions})
    # Only the benchmarks' own folders are indexed: all of lmms-eval's tasks would take seconds.
    manager = lmms_eval.tasks.TaskManager(include_path=folders, include_defaults=False, model_name=MODEL_ID)
    tasks = [
        {"task": task, "dataset_path": str(suite.resolve() / "hub" / benchmark.hub)}
        for benchmark in BENCHMARKS.values()
        for task in benchmark.tasks
    ]
    return simple_evaluate(
        model,
        tasks=tasks,
        task_manager=manager,
        gen_kwargs=None if answer_tokens is None else f"max_new_tokens={answer_tokens}",
        bootstrap_iters=0,  # intervals are computed from the samples
        process_docs_parallel=1,  # the parsers share `random`
    )


def command_line(checkpoint: Path, suite: Path, frames: int, control: str = "none", batch_size: int = 32) -> str:
    """The shell command with which lmms-eval's own command line computes the same numbers."""
    groups = [b.tasks[0] if len(b.tasks) == 1 else b.name for b in BENCHMARKS.values()]
    arguments = f"pretrained={checkpoint.resolve()},frames={frames}"
    if control != "none":
        arguments += f",control={control}"
    if batch_size != 32:
        arguments += f",batch={batch_size}"
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in _variables(suite).items())
    return (
        f"cd {shlex.quote(str(suite.resolve() / 'hub'))} && {variables} python -m lmms_eval "
        f"--model slowfast_mllm --model_args {shlex.quote(arguments)} --tasks {','.join(groups)}"
    )


def _variables(suite: Path) -> dict[str, str]:
    """Environment variables under which the packaged tasks read a suite, and nothing asks the network."""
    return {
        "HF_HOME": str(suite.resolve() / "home"),
        "HF_HUB_OFFLINE": "1",
        "LMMS_EVAL_DATASETS_CACHE": str(cache_dir() / "datasets"),
    }


@contextlib.contextmanager
def _environment(suite: Path) -> Iterator[None]:
    """Set the variables for the tasks, which read them whenever they are loaded; then restore them."""
    before = {name: os.environ.get(name) for name in _variables(suite)}
    os.environ.update(_variables(suite))
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


def _samples(index: pd.DataFrame, results: dict[str, Any], entries: dict) -> pd.DataFrame:
    """One line per question of the suite (`COLUMNS`), with what lmms-eval counts as correct."""
    correct = {
        (task, sample["doc_id"]): is_correct(sample[benchmark.metric])
        for benchmark in BENCHMARKS.values()
        for task in benchmark.tasks
        for sample in results["samples"][task]
    }
    keys = list(zip(index["task"], index["doc_id"].astype(int), strict=True))
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
    return pd.concat([index.rename(columns={"answer": "target"}), answered], axis=1)[COLUMNS]


def is_correct(value: dict[str, Any]) -> bool:
    """Whether a task's per-sample metric counts as right, in each form that the packaged tasks give it.

    Raises ValueError for another form.
    """
    if {"pred_answer", "answer"} <= value.keys():
        return value["pred_answer"] == value["answer"]
    if {"parsed_pred", "answer"} <= value.keys():
        return value["parsed_pred"] == value["answer"]
    if {"pred", "ground_truth"} <= value.keys():
        return str(value["pred"]) == str(value["ground_truth"])
    if "score" in value:
        return bool(value["score"])
    raise ValueError(f"a sample's metric has the unknown keys {sorted(value)}: teach is_correct to read them")


def _scores(results: dict[str, Any], samples: pd.DataFrame) -> dict[str, float]:
    """lmms-eval's scores in 0..100; RuntimeError if the samples do not add up to them."""
    scores = {}
    for name, benchmark in BENCHMARKS.items():
        scores[name] = _reported(benchmark, results)
        own = samples[samples["benchmark"] == name]
        added_up = benchmark.score(own["correct"].tolist(), own["category"].tolist())
        if abs(added_up - scores[name]) > ROUNDING:
            raise RuntimeError(f"{name}: lmms-eval reports {scores[name]}, its samples add up to {added_up}")
    return scores


def _reported(benchmark: Benchmark, results: dict[str, Any]) -> float:
    """What lmms-eval reports, in 0..100; where it reports several tasks, their mean."""
    reported = [results["results"][task][f"{benchmark.metric},none"] for task in benchmark.tasks]
    return 100 / benchmark.scale * sum(reported) / len(reported)


def _write(evaluation: Evaluation, model: Any, out: Path) -> None:
    """The tables first: where there is a scores.json, everything is there."""
    _write_table(out / SAMPLES, evaluation.samples)
    _write_table(out / VIDEOS, pd.DataFrame([asdict(watched) for watched in model.watched], columns=VIDEO_COLUMNS))
    failed = evaluation.failed[["task", "doc_id", "video", "failure", "message"]]
    summary = {
        "scores": evaluation.scores,
        "frames": model.frames,
        "control": model.control,
        "sampling": SAMPLING_RULE,
        "decoder": model.decoder_version,
        "n_samples": len(evaluation.samples),
        "failures": failed.to_dict("records"),
    }
    write_text(out / SCORES, json.dumps(summary, indent=2) + "\n")


def _write_table(path: Path, table: pd.DataFrame) -> None:
    work = path.with_name(f".{path.name}")
    table.to_parquet(work, index=False, compression="zstd")
    work.replace(path)
