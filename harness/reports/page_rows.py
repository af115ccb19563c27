"""The page's section of rows: what every number was made of, cell by cell."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.reports import remarks
from harness.reports.page_points import Part

PER_ROW = {  # of each base seed, under these heads
    "base_seed": "base seed",
    "content_hash": "content hash",
    "average": "average",
    "n_samples": "answers",
    "failures": "failed",
    "unparsed": "no option",
    "prefill_ms": "prefill ms",
    "decode_ms_per_token": "ms a token",
    "code_commit": "commit",
}
SHARED = ("architecture", "frames", "control", "world", "fast_tokens", "slow_tokens", "prefill_mflop_mini")
SHARED += ("prefill_tflop_7b", "model_tflop_7b", "suite_fingerprint", "sampling")


def anchor(part: Part, cell: str) -> str:
    """The id of a cell's place in the section of rows."""
    return f"row-{part.stem}-{cell}"


def rows_of(part: Part, page: Path) -> dict[str, Any]:
    """What the section shows of one part: its files, what its rows share, and its cells.

    page: the page's own path, which links are relative to.
    """
    configs = [flat(config) for config in part.rows["config"]]
    common = {key: value for key, value in configs[0].items() if all(key in c and c[key] == value for c in configs)}
    groups = dict(iter(part.rows.groupby("cell", sort=False)))
    return {
        "title": part.stem,
        "file": link(part.rows_file, page),
        "common": sorted(common.items()),
        "versions": each_once(", ".join(f"{k} {v}" for k, v in sorted(row.items())) for row in part.rows["versions"]),
        "devices": each_once(part.rows["device"]),
        "disclosures": each_once(line for lines in part.rows["disclosures"] for line in lines),
        "seeds": each_once(", ".join(f"{k} {v}" for k, v in sorted(row.items())) for row in part.rows["seeds"]),
        "cells": [_cell(part, cell, group, common, page) for cell, group in groups.items()],
    }


def _cell(part: Part, cell: str, group: pd.DataFrame, common: Mapping[str, str], page: Path) -> dict[str, Any]:
    first = group.iloc[0]
    own = {key: value for key, value in flat(first["config"]).items() if key not in common}
    kinds = [f"{kind}: {count}" for row in group["failure_kinds"] for kind, count in row.items()]
    return {
        "id": anchor(part, cell),
        "name": cell,
        "overrides": list(first.get("overrides", [])),
        "facts": [*((name, shown(first[name])) for name in SHARED if name in group), *_remarks(group), *_suite(first)],
        "config": sorted(own.items()),
        "failure_kinds": kinds,
        "heads": [head for name, head in PER_ROW.items() if name in group],
        "rows": [[_value(name, row) for name in PER_ROW if name in group] for _, row in group.iterrows()],
        "samples": each_once(link(part.rows_file.parent / name, page) for name in group["samples"]),
    }


def _remarks(group: pd.DataFrame) -> list[tuple[str, str]]:
    """What a cell's architecture alone would not say."""
    without = remarks.without_hybrid_layer(group)
    return [("hybrid layers", "none, so that nothing reads the slow tokens")] if without else []


def _suite(row: pd.Series) -> list[tuple[str, str]]:
    """What the row says of the suite that it was asked (prompts' hash, decoder, ...), beside its fingerprint."""
    told = row.get("suite") or {}
    return [(f"suite: {key}", value) for key, value in flat(told).items() if key != "fingerprint"]


def _value(name: str, row: pd.Series) -> str:
    if name == "code_commit":
        commit = "none" if row[name] is None else row[name][:12]
        return commit + (" + uncommitted changes" if row["code_dirty"] else "")
    return shown(row[name])


def shown(value: Any) -> str:
    """A field's value as text; a dash for one that was not measured."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) and value < 1000 else str(value)


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """A nested configuration as dotted keys and texts."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = "null" if value is None else str(value)
    return found


def each_once(values: Iterable[str]) -> list[str]:
    """Different values, in order of their first appearance."""
    return list(dict.fromkeys(values))


def link(path: Path, page: Path) -> str:
    """A file's address as the page would write it: relative to the page, with slashes."""
    return Path(os.path.relpath(path, page.parent)).as_posix()
