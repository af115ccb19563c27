"""Draws the figures across the book: `write_book(results)` writes results/figures/book/*.{svg,png}."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from harness.errors import UserError
from harness.figures import SETTINGS, save
from harness.reports import heat, pareto
from harness.reports.attention_figure import attention_figure
from harness.reports.attention_file import FOLDER, read_record
from harness.reports.page_points import Part, grid_parts, main_parts, points

BOOK = Path("figures") / "book"
TITLES = {
    "pareto": "Accuracy against FLOPs at 7B, with the Pareto front",
    "accuracy_vs_frames": "Accuracy against frames",
    "overhead_vs_frames": "FLOPs at 7B against frames, over self-attention at 16 frames",
    "categories": "Right answers by category of the five benchmarks",
    "families": "Right answers by kind of event, every cell of every grid",
    "attention": "Where attention goes: which frames the text reads in hybrid layers",
}


def write_book(results: Path, pool: Executor | None = None) -> list[Path]:
    """Draw every figure that the stored rows and records allow, in two of the pool's processes; returns the files.

    Rows without a table are left out. Raises UserError where a record of attention is damaged.
    """
    shares = [slice(None)] if pool is None else [slice(0, None, 2), slice(1, None, 2)]
    drawn = (map if pool is None else pool.map)(_draw, [Path(results)] * len(shares), shares)
    return [path for paths in drawn for path in paths]


def _draw(results: Path, share: slice) -> list[Path]:
    """Draw a share of the figures."""
    mains, grids = main_parts(results, strict=False), grid_parts(results, strict=False)
    with matplotlib.rc_context(SETTINGS):
        figures = _figures(results, mains, grids)[share]
        return [path for name, draw in figures for path in save(draw(), results / BOOK / name)]


def _figures(results: Path, mains: Sequence[Part], grids: Sequence[Part]) -> list[tuple[str, Callable[[], Figure]]]:
    """(name, what draws it) of each figure; of the main tables the first (seed 0) is drawn."""
    made: list[tuple[str, Callable[[], Figure]]] = []
    if mains or grids:
        book = points([*mains[:1], *grids])
        made.append(("pareto", lambda: pareto.pareto(book)))
        if len(pareto.over_frames(book)):
            made.append(("accuracy_vs_frames", lambda: pareto.accuracy_vs_frames(book)))
            made.append(("overhead_vs_frames", lambda: pareto.overhead_vs_frames(book)))
    if mains:
        made.append(("categories", lambda: heat.category_map(mains[0])))
    if grids:
        made.append(("families", lambda: heat.family_map(list(grids))))
    for path in sorted((results / FOLDER).glob("*.json")):
        made.append((f"attention_{path.stem}", lambda path=path: attention_figure(read_record(path))))
    return made


def title_of(name: str) -> str:
    """A figure's title, by the name of its file."""
    kind = kind_of(name)
    return TITLES[kind] + (f" ({name.removeprefix(kind).strip('_')})" if name != kind else "")


def kind_of(name: str) -> str:
    """Which of TITLES a figure is, by the name of its file; UserError for a file that is none of them."""
    found = [kind for kind in TITLES if name == kind or name.startswith(f"{kind}_")]
    if not found:
        raise UserError(f"{BOOK / name} is no figure of the book ({', '.join(TITLES)}); remove it.")
    return max(found, key=len)
