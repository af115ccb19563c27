"""Rows and samples of an imagined table run, of the size and shape of a real one, for the report's tests."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from harness.benchmarks import BENCHMARKS
from harness.provenance import Provenance
from harness.rows import Row, as_frame, make_row, tag_samples

FAMILIES = ("needle", "order", "count", "where", "motion")
CATEGORY_MEANS = [name for name, b in BENCHMARKS.items() if b.aggregation == "categories"]
# benchmark: (videos, questions per video)
SHAPE = {
    "videomme": (80, 3),
    "mlvu": (119, 2),
    "mvbench": (240, 1),
    "egoschema": (240, 1),
    "longvideobench": (120, 2),
}
# (architecture, frames): (share right, fast, slow, prefill MFLOP mini, TFLOP 7B, whole model, ms, ms/token)
SETTINGS = {
    ("self_attention", 16): (0.47, 64, 0, 58.1, 19.97, 52.04, 9.1, 2.11),
    ("self_attention", 32): (0.57, 128, 0, 104.4, 39.61, 103.7, 12.7, 2.14),
    ("compressor_only", 128): (0.68, 64, 0, 58.1, 19.97, 276.6, 9.2, 2.12),
    ("slow_fast", 16): (0.48, 64, 64, 64.0, 20.02, 52.09, 10.4, 2.52),
    ("slow_fast", 32): (0.57, 64, 128, 66.3, 20.06, 84.3, 10.6, 2.55),
    ("slow_fast", 64): (0.71, 64, 256, 70.8, 20.15, 148.5, 10.8, 2.61),
    ("slow_fast", 128): (0.81, 64, 512, 79.9, 20.32, 276.9, 11.3, 2.68),
    ("slow_fast_official", 128): (0.69, 64, 512, 79.9, 20.32, 276.9, 11.2, 2.66),
}
MADE_BY = Provenance(
    code_commit="0123456789abcdef0123456789abcdef01234567",
    code_dirty=False,
    versions={"python": "3.12.3", "torch": "2.15.0", "transformers": "5.23.0", "lmms-eval": "0.7.3"},
    device="Example CPU, 2 cores, 16 GiB",
)
SHARED_DISCLOSURE = "The base reads the video in its first layer (recipe switch base.read_first_layer=true)."
SLOW_DISCLOSURE = "Slow tokens carry their frame's time, which the official code leaves out."


def questions(shape: dict = SHAPE, seed: int = 0) -> pd.DataFrame:
    """The questions of a suite, with a difficulty that questions about one video share."""
    random = np.random.default_rng(seed)
    parts = []
    for name, (videos, per_video) in shape.items():
        asked, categories = videos * per_video, BENCHMARKS[name].categories
        category = random.permutation(np.arange(asked) % len(categories))
        parts.append(
            pd.DataFrame(
                {
                    "benchmark": name,
                    "task": [f"mvbench_{categories[c]}" for c in category]
                    if name == "mvbench"
                    else BENCHMARKS[name].tasks[0],
                    "doc_id": np.arange(asked),
                    "video": [f"{name}/{v:03d}.mp4" for v in np.repeat(np.arange(videos), per_video)],
                    "category": [categories[c] for c in category],
                    "family": [FAMILIES[(c + n) % 5] for n, c in enumerate(category)],
                    "n_options": random.choice(BENCHMARKS[name].option_counts, asked),
                    "difficulty": np.repeat(random.normal(0, 0.5, videos), per_video) + random.normal(0, 0.8, asked),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def answers(asked: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """An evaluation's samples in which about `share` of the questions are answered right."""
    noise = np.random.default_rng(seed).normal(0, 0.7, len(asked))
    ease = noise - asked["difficulty"].to_numpy()
    right = ease >= np.quantile(ease, 1 - share)
    return asked.drop(columns="difficulty").assign(
        target="A", prediction=np.where(right, "A", "B"), correct=right, failure=None, seconds=0.01
    )


def evaluation(samples: pd.DataFrame) -> SimpleNamespace:
    """What harness.evaluate hands over: scores by lmms-eval's metric, and the samples."""
    scores = {}
    for name, group in samples.groupby("benchmark", sort=False):
        per_category = group.groupby("category")["correct"].mean()
        mean = per_category.mean() if name in CATEGORY_MEANS else group["correct"].mean()
        scores[name] = 100 * float(mean)
    return SimpleNamespace(scores=scores, samples=samples)


def row(measured: SimpleNamespace, architecture="slow_fast", frames=128, base_seed=0, **changes) -> Row:
    """A row of `measured` with the costs of SETTINGS."""
    _, fast, slow, mini, prefill, model, prefill_ms, decode_ms = SETTINGS[architecture, frames]
    with_slow = [SLOW_DISCLOSURE] if architecture == "slow_fast" else []
    cost = {
        "fast_tokens": fast,
        "slow_tokens": slow,
        "prefill_mflop_mini": mini,
        "prefill_tflop_7b": prefill,
        "model_tflop_7b": model,
        "prefill_ms": prefill_ms,
        "prefill_ms_quartiles": [prefill_ms - 0.3, prefill_ms + 0.4],
        "decode_ms_per_token": decode_ms,
        "decode_ms_quartiles": [decode_ms - 0.1, decode_ms + 0.2],
    }
    fields = {
        "table": "main",
        "scale": "mini",
        "architecture": architecture,
        "frames": frames,
        "base_seed": base_seed,
        "seed": 0,
        "seeds": {"suite": 1_000_000, "training": 2_000_000 + base_seed},
        "content_hash": f"{architecture}-{frames}-{base_seed}",
        "suite_fingerprint": "f" * 64,
        "sampling": "round(linspace(0, total - 1, frames))",
        "cost": cost,
        "disclosures": [SHARED_DISCLOSURE, *with_slow],
        "made_by": MADE_BY,
    }
    return make_row(measured, **{**fields, **changes})


def table_run(base_seeds=(0, 1), settings=SETTINGS, damage=None, shape=SHAPE, **changes):
    """(rows, samples) as read_rows and read_samples give them. damage(samples) may spoil an evaluation."""
    asked = questions(shape)
    rows, tagged = [], []
    for base_seed in base_seeds:
        for number, ((architecture, frames), (share, *_)) in enumerate(settings.items()):
            samples = answers(asked, share + 0.01 * base_seed, seed=100 * base_seed + number)
            if damage is not None:
                samples = damage(samples)
            rows.append(row(evaluation(samples), architecture, frames, base_seed, **changes))
            tagged.append(tag_samples(rows[-1], samples))
    return as_frame(rows), pd.concat(tagged, ignore_index=True)
