"""A results folder of imagined grids, made of the committed main table's real answers, for the page's tests."""

import shutil
from pathlib import Path

import pandas as pd

from harness.grids.grid import Grid, GridCell
from harness.reports import grids
from harness.row_store import RowStore
from harness.rows import load_rows, read_samples

RESULTS = Path(__file__).parents[1] / "results"
MAIN = ("main_mini_seed0.jsonl", "main_mini_seed0.samples.parquet")
SHARED = {"cost": "Nothing beyond the main table.", "time": "None: the rows are there.", "together": []}
# name -> (order, question, axis, cell -> the main row it is made of, its place on the axis and its line)
GRIDS = {
    "frames": (
        10,
        "Do more frames help at the same prefill length?",
        "frames",
        {f"slow_fast@{n}": (("slow_fast", n), n, "slow_fast") for n in (16, 32, 64, 128)}
        | {f"self_attention@{n}": (("self_attention", n), n, "self_attention") for n in (16, 32)},
    ),
    "gates": (
        60,
        "Does the gate matter <b>at all</b> & which one?",
        None,
        {
            "dynamic_tanh": (("slow_fast", 128), None, None),
            "static_tanh": (("slow_fast", 64), None, None),
            "none+bias": (("slow_fast_official", 128), None, None),
            "closed": (("compressor_only", 128), None, None),
        },
    ),
}


def make_results(out: Path, copies: int = 0) -> Path:
    """The main table with its rows, GRIDS and `copies` further grids like `gates`, as a results folder."""
    for folder, names in {"rows": MAIN, "tables": ("main_mini.csv", "main_mini.md")}.items():
        (out / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(RESULTS / folder / name, out / folder / name)
    shutil.copytree(RESULTS / "published", out / "published")
    shutil.copytree(RESULTS / "profiles", out / "profiles")
    for name in ("tables/controls_mini.csv", "tables/plug_and_play_mini.csv", "figures/plug_and_play.svg"):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copy(RESULTS / name, out / name)
    shutil.copy(RESULTS / "figures" / "accuracy_vs_frames.svg", out / "figures")
    rows = {(row.architecture, row.frames, row.base_seed): row for row in load_rows(out / "rows" / MAIN[0])}
    samples = read_samples(out / "rows" / MAIN[1])
    wanted = dict(GRIDS) | {f"gates_{n}": (100 + n, *GRIDS["gates"][1:]) for n in range(copies)}
    for name, described in wanted.items():
        _store(out, name, described, rows, samples)
    for result in grids.results_of(out):
        grids.write(result, out)
    claims = (
        "id,claim,verdict,figure,lo,hi,unit,command\n"
        "a,Frames help <script>alert(1)</script>,reproduced,1.23456,0.5,1.5,points,make ablate GRID=gates\n"
        "b,More is better,owed,,,,,make ablate GRID=unknown\n"
        "c,At paper scale,owed,,,,,python -m harness table scale=paper (not there yet)\n"
        "d,Linear cost,reproduced,1.01,1,1.02,slope,make scaling\n"
    )
    (out / "claims.csv").write_text(claims)
    return out


def _store(out: Path, name: str, described: tuple, rows: dict, samples: pd.DataFrame) -> None:
    order, question, axis, cells = described
    made = {
        cell: {"set": [f"architecture={of[0]}", f"frames={of[1]}"], "x": x, "line": line}
        for cell, (of, x, line) in cells.items()
    }
    grid = Grid(
        name=name,
        order=order,
        question=question,
        paper="The paper says that it helps (section 3).",
        reference=next(iter(cells)),
        axis=axis,
        cells={cell: GridCell(**fields) for cell, fields in made.items()},
        **SHARED,
    )
    store = RowStore(out, name, "mini", 0)
    store.begin(grid)
    for cell, (of, _, _) in cells.items():
        for base_seed in (0, 1):
            row = rows[(*of, base_seed)]
            changes = {
                "grid": name,
                "cell": cell,
                "overrides": made[cell]["set"],
                "table": "ablations",
                "content_hash": f"{row.content_hash}",
                "samples": f"samples/{row.content_hash}.parquet",
            }
            answered = samples[
                samples["architecture"].eq(of[0]) & samples["frames"].eq(of[1]) & samples["base_seed"].eq(base_seed)
            ]
            store.put(row.model_copy(update=changes), answered)
