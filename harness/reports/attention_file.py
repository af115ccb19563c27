"""Records of where attention goes, on disk; reading one needs no model (attention_record makes them).

results/attention/NAME.json    question, answer, true events; per hybrid layer and token: attention by frame, gate
results/attention/NAME.png     thumbnails of some frames, side by side
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from harness.errors import UserError
from harness.paths import write_text
from harness.rows import write_file

RECORD_VERSION = 1
FOLDER = "attention"  # in the folder of results


def write_record(record: dict[str, Any], stem: Path) -> list[Path]:
    """Write a record of `record_sample` as STEM.png and STEM.json; returns the two, the JSON first."""
    picture, data = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.json")
    sheet = Image.fromarray(record["sheet"])
    write_file(picture, lambda path: sheet.save(path, format="PNG", optimize=True))
    plain = {name: value for name, value in record.items() if name != "sheet"} | {"sheet": picture.name}
    write_text(data, json.dumps(plain) + "\n")
    return [data, picture]


def read_record(path: Path) -> dict[str, Any]:
    """A record as `write_record` wrote it, "sheet" as an array again; UserError if a file or field is missing."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        sheet = np.asarray(Image.open(Path(path).with_name(record["sheet"])).convert("RGB"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of attention with its picture ({error}); make it again.") from error
    if record.get("record_version") != RECORD_VERSION:
        raise UserError(f"{path} has version {record.get('record_version')}, not {RECORD_VERSION}; make it again.")
    return record | {"sheet": sheet}


def attention_table(record: dict[str, Any]) -> pd.DataFrame:
    """A record's attention as a table: columns layer, place, text, part, gate, frame, weight."""
    parts = [
        pd.DataFrame({"frame": record["frames"], "weight": weight_T}).assign(layer=int(layer), gate=gate, **token)
        for layer, read in record["layers"].items()
        for token, weight_T, gate in zip(record["tokens"], read["attention"], read["gate"], strict=True)
    ]
    return pd.concat(parts, ignore_index=True)[["layer", "place", "text", "part", "gate", "frame", "weight"]]
