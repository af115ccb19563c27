"""How a suite was made and read, as rows tell it."""

import json
from pathlib import Path
from typing import Any

from harness.benchmarks import BENCHMARKS
from harness.evaluate import JOURNAL, SCORES
from harness.mini.suite import load_suite


def suite_record(suite: Path, scores: Path) -> dict[str, Any]:
    """How a suite was made and how an evaluation read it: the field `suite` of a row."""
    made = load_suite(suite)
    with (scores / JOURNAL).open(encoding="utf-8") as journal:
        belongs_to = json.loads(journal.readline())["journal_of"]
    read = json.loads((scores / SCORES).read_text(encoding="utf-8"))
    return {
        "fingerprint": made["fingerprint"],
        "seed": made["parameters"]["seed"],
        "sizes": made["parameters"]["videos"],
        "world": made["parameters"]["world"],
        "prompts": belongs_to["prompts"],
        "sampling": read["sampling"],
        "decoder": read["decoder"],
        "split": {name: benchmark.split for name, benchmark in BENCHMARKS.items()},
        "aggregation": {name: benchmark.aggregation for name, benchmark in BENCHMARKS.items()},
    }
