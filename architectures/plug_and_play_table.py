"""What converted models were tried for: `python -m architectures.plug_and_play` prints the table.

Every cell is computed by running the model, as transformers builds it at a tiny random configuration
(`tests/hf_models.py`, `tests/hf_mllms.py`, in a checkout of the repository).
"""

import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from architectures.plug_and_play import convert
from architectures.plug_and_play_checks import CHECKS, PLACEMENT, NotApplicable, Subject


def outcome(check: Callable[[Subject], None], subject: Subject) -> tuple[str, str]:
    """yes, no or -, and why."""
    try:
        check(subject)
    except NotApplicable as reason:
        return "-", str(reason)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a "no" in the table, and told below it
        return "no", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'assertion'}"
    return "yes", ""


def refusal(family: Any) -> str:
    """The sentence with which `convert` refuses a family's model, or ""."""
    try:
        convert(family.model(), PLACEMENT)
    except ValueError as error:
        return str(error)
    return ""


def main() -> int:
    """Prints the table; 1 if any cell is "no" or a model that should be refused is not."""
    started = time.perf_counter()
    if not torch.cuda.is_available():  # DeepSpeed, which peft imports, would else warn on stdout of the missing GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    decoders, mllms = importlib.import_module("hf_models"), importlib.import_module("hf_mllms")
    families = [*decoders.DECODERS, *mllms.MLLMS]
    width = max(len(family.name) for family in families)
    print(" " * width, *CHECKS, sep="  ")
    notes, failed = [], 0
    for family in families:
        subject = Subject(family, decoders)
        cells = []
        for name, check in CHECKS.items():
            cell, why = outcome(check, subject)
            failed += cell == "no"
            if why and why not in notes:
                notes.append(why)
            cells.append((cell + (f" [{notes.index(why) + 1}]" if why else "")).ljust(len(name)))
        print(family.name.ljust(width), *cells, sep="  ", flush=True)
    for number, note in enumerate(notes, 1):
        print(f"[{number}] {note}")
    print("\nRefused:")
    for family, _ in [*decoders.REFUSED, *mllms.REFUSED]:
        sentence = refusal(family)
        failed += not sentence
        print(f"- {family.name}: {sentence or 'no, it was converted'}")
    print(f"\n{len(families)} models, {failed} failures, {time.perf_counter() - started:.0f} s")
    return int(failed > 0)
