"""How fast questions are answered by the real evaluation: batches and decoding ahead against one by one."""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from architectures import SlowFastForConditionalGeneration, SlowFastProcessor
from harness.compose import compose
from harness.evaluate import Evaluation, evaluate
from harness.mini.questions import TEXTS, WORDS
from harness.mini.suite import Sizes
from harness.mini.tokenizer import build_tokenizer
from harness.models import model_config
from harness.profilers.timing import Rounds
from harness.progress import SILENT, Progress
from harness.speed.rows import Case, Measurement, measure

PART = "evaluation"
BATCH, WORKERS = 32, 2
SHORT = 3  # tokens of a trained model's answer: a word, a letter, the end; random weights do not stop by themselves
QUESTIONS = Sizes(videomme=16, mlvu=24, mvbench=60, egoschema=40, longvideobench=24)  # a fifth to a quarter of FULL


@dataclass(frozen=True)
class Way:
    """How questions are answered."""

    batch: int
    workers: int

    def __str__(self) -> str:
        return f"batch {self.batch}, decoding {'ahead' if self.workers else 'when needed'}"


SERIAL, BEST = Way(1, 0), Way(BATCH, WORKERS)
WAYS = (SERIAL, Way(1, WORKERS), Way(BATCH, 0), BEST)
ALONE = "lmms-eval alone, all answered"
WANTED = 3.0  # times the samples per second of SERIAL
ANSWER = ["task", "doc_id", "answer", "prediction", "correct", "failure"]


@dataclass(frozen=True)
class Evaluations:
    """What was measured.

    Attributes:
        shares: of each way, seconds of a run by what they go to; `all` and `lmms_eval` are medians, `answering` is
            the last run's, `waiting` for videos the rest.
        differing: answers that differ between batch 1 and BATCH, for sums are in another order.
    """

    measurements: list[Measurement]
    shares: pd.DataFrame
    samples: int
    differing: int

    @property
    def sentences(self) -> list[str]:
        """What the numbers say."""
        if not {str(SERIAL), str(BEST)} <= {*self.shares.index}:
            return ["The time did not suffice to compare evaluations: raise seconds=."]
        serial, best = self.shares.loc[str(SERIAL)], self.shares.loc[str(BEST)]
        own = best["lmms_eval"]
        without = (serial["all"] - own) / (best["all"] - own)
        return [
            f"{BEST}: {serial['all'] / best['all']:.2f} x the samples per second of {SERIAL} "
            f"(at least {WANTED:g} wanted).",
            f"lmms-eval itself takes {own:.1f} s of either run, {own / best['all']:.0%} of the faster one; "
            f"without it: {without:.2f} x.",
            f"{self.differing} of {self.samples} answers differ between batch 1 and batch {BATCH}.",
        ]


def save_random_checkpoint(folder: Path, architecture: str = "slow_fast", scale: str = "mini") -> Path:
    """A model of random weights with the tokenizer of the generated questions."""
    tokenizer = build_tokenizer([*WORDS, *(text.format("") for text in TEXTS.values())], [])
    torch.manual_seed(0)
    config = model_config(compose([f"scale={scale}", f"architecture={architecture}"]), tokenizer)
    model = SlowFastForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    SlowFastProcessor.for_model(config, model.encoder, tokenizer).save_pretrained(folder)
    return folder


def evaluations(
    checkpoint: Path, suite: Path, work: Path, frames: int, rounds: Rounds, progress: Progress = SILENT
) -> Evaluations:
    """Samples per second of each of WAYS, and of lmms-eval where nothing is left to answer."""
    last: dict[Way, Evaluation] = {}

    def run(way: Way) -> None:
        shutil.rmtree(_folder(work, way), ignore_errors=True)
        last[way] = _evaluate(way, _folder(work, way))

    def again() -> None:
        _evaluate(BEST, work / ALONE)

    def _evaluate(way: Way, out: Path) -> Evaluation:
        return evaluate(checkpoint, suite, out, frames, batch_size=way.batch, workers=way.workers, answer_tokens=SHORT)

    run(BEST)  # the warm-up: imports and caches
    shutil.copytree(_folder(work, BEST), work / ALONE)
    count = len(last[BEST].samples)
    what = f"{count} questions, {frames} frames, {SHORT} tokens"
    cases = [Case(what, str(way), partial(run, way), count, 1 + way.workers) for way in WAYS]
    cases.append(Case(what, ALONE, again, count))
    measured = measure(PART, cases, "samples/s", replace(rounds, warmup=0), progress)
    return Evaluations(measured, _shares(measured, last), count, _differing(last))


def _folder(work: Path, way: Way) -> Path:
    return work / f"{way.batch}-{way.workers}"


def _shares(measured: list[Measurement], last: dict[Way, Evaluation]) -> pd.DataFrame:
    """Seconds by what they go to; a row for each way."""
    count = len(last[BEST].samples)
    seconds = {m.variant: count / m.value for m in measured}
    own = seconds.pop(ALONE, float("nan"))
    answering = {str(way): e.samples["seconds"].sum() for way, e in last.items()}
    return pd.DataFrame(
        [
            {"all": all_s, "answering": answering[way], "waiting": all_s - own - answering[way], "lmms_eval": own}
            for way, all_s in seconds.items()
        ],
        index=list(seconds),
    )


def _differing(last: dict[Way, Evaluation]) -> int:
    """Answers that differ by batch; RuntimeError if decoding ahead changes any."""
    by_batch: dict[int, list[pd.DataFrame]] = {}
    for way, evaluation in last.items():
        by_batch.setdefault(way.batch, []).append(evaluation.samples[ANSWER])
    for batch, alike in by_batch.items():
        if any(not other.equals(alike[0]) for other in alike):
            raise RuntimeError(f"decoding ahead changed answers at batch {batch}: the bench compares unlike runs")
    if len(by_batch) < 2:
        return 0
    return int((by_batch[1][0]["answer"] != by_batch[BATCH][0]["answer"]).sum())
