"""Every grid's table and figure from its stored rows; nothing here trains, evaluates or measures.

results/tables/ablations/GRID_SCALE[_seedN].{csv,md,tex}    figures/ablations/GRID_SCALE[_seedN].{svg,png}
"""

import io
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import layout
from harness.layout import Block, Interval
from harness.paths import write_text
from harness.reports import grid_figures, grid_foot, grid_table
from harness.reports.grid_result import GridResult, analyse
from harness.row_store import RowStore, grids_in
from harness.rows import seed_suffix

ABLATIONS = "ablations"  # the folder below tables/ and figures/
WIDTH = 80  # of a terminal
EXACT = ("p", "p_holm", "p_mcnemar")


def results_of(results: Path) -> list[GridResult]:
    """Every grid that has rows, in the book's order, then by scale and seed."""
    return [result for store in grids_in(results) if (result := analyse(store)) is not None]


def stem(result: GridResult) -> str:
    """The name of a grid's table and figure, without folder and ending."""
    return f"{result.grid.name}_{result.scale}{seed_suffix(result.seed)}"


def write_grid(store: RowStore, results: Path, console: Console | None = None) -> GridResult | None:
    """Write a grid's table and figure below `results`, and print it; None, and nothing written, without rows."""
    result = analyse(store)
    if result is not None:
        write(result, results, console)
    return result


def workers(jobs: int) -> AbstractContextManager[Executor | None]:
    """Processes that write tables and figures side by side; None, and no process, for one job."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else nullcontext()


def write_all(results: Path, pool: Executor | None = None, console: Console | None = None) -> list[GridResult]:
    """Write every grid that has rows, in the pool's processes if there is one, and return them in the book's order.

    The tables are printed in that order too.
    """
    stores = grids_in(results)
    if pool is None:
        return [made for store in stores if (made := write_grid(store, results, console)) is not None]
    made = []
    for result, printed in pool.map(_written, stores, [results] * len(stores)):
        if result is not None:
            made.append(result)
            _print_text(printed, console)
    return made


def _written(store: RowStore, results: Path) -> tuple[GridResult | None, str]:
    """In a worker: a grid written, and what it prints."""
    printed = io.StringIO()
    return write_grid(store, results, Console(file=printed, width=WIDTH)), printed.getvalue()


def _print_text(text: str, console: Console | None) -> None:
    """Print what a worker has laid out already."""
    if console is not None:
        console.print(Text(text), end="", soft_wrap=True)


def write(result: GridResult, results: Path, console: Console | None = None) -> list[Path]:
    """Write an analysed grid's csv, md, tex, svg and png; print the table on `console`, if there is one."""
    table = grid_table.table(result)
    blocks, name = grid_table.blocks(result, table), stem(result)
    there = Path(results) / "tables" / ABLATIONS / name
    lines = grid_foot.lines(result)
    all_lines = [*lines, *grid_foot.disclosures(result)]
    paths = [there.with_name(f"{name}{ending}") for ending in (".csv", ".md", ".tex")]
    write_text(paths[0], as_csv(table))
    write_text(paths[1], layout.markdown(blocks, result.grid.question, all_lines))
    write_text(paths[2], layout.latex(blocks, result.grid.question, all_lines, label=name))
    paths += grid_figures.write(result, table, Path(results) / "figures" / ABLATIONS / name)
    if console is not None:
        print_grid(result, blocks, [*lines, f"The recipe's disclosures stand in {paths[1]}."], console)
    return paths


def print_grid(result: GridResult, blocks: Sequence[Block], lines: Sequence[str], console: Console) -> None:
    """Print a grid's table within `WIDTH` columns."""
    narrow = [part for block in blocks for part in fitted(block)]
    layout.print_table(narrow, f"{result.grid.name}: {result.grid.question}", lines, console)


def as_csv(table: pd.DataFrame) -> str:
    """The table with four decimals, p values as they are."""
    return table.round({name: 4 for name in table if name not in EXACT}).to_csv(index=False, lineterminator="\n")


def fitted(block: Block, width: int = WIDTH) -> list[Block]:
    """The block, or the blocks that it must be cut into so that none is wider: names, then columns while they fit."""
    names, others = block.columns[: block.names], block.columns[block.names :]
    parts, part = [], list(names)
    for column in others:
        if len(part) > block.names and _width([*part, column]) > width:
            parts.append(part)
            part = list(names)
        part.append(column)
    return [Block(block.caption, columns, block.names) for columns in [*parts, part]]


def _width(columns: layout.Columns) -> int:
    """How wide the terminal's table of these columns is."""
    table = Table(box=layout.box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for head, cells in columns:
        spelt = [f"{cell:narrow}" if isinstance(cell, Interval) else cell for cell in cells]
        longest = max([*spelt, *layout.NARROW.get(head, head).split("\n")], key=len)
        table.add_column(min_width=len(longest))
    console = Console(width=10_000)
    return table.__rich_measure__(console, console.options).maximum
