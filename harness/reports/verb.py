"""`python -m harness report`: every table, figure, answer and claim, and the page, from stored rows; runs nothing."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from harness.errors import UserError
from harness.jobs import default_jobs
from harness.reports import ablations, grids, replicates
from harness.reports.claims import FILE, write_claims
from harness.reports.page_points import MAIN
from harness.row_store import grids_in


def report(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Write all that follows from `results_dir`: main tables, grids, claims.csv, ablations/README.md, report.html.

    Main tables are those of every scale and seed, with controls and study where they were run.
    Raises UserError if there are neither a main table's rows nor a grid's.
    """
    from harness.commands import plot
    from harness.grids.grid import GRIDS
    from harness.reports.html import write_page
    from harness.reports.page_figures import write_book

    began, results = time.monotonic(), Path(settings.results_dir)
    if not main_tables(results) and not grids_in(results):
        raise UserError(f"{results}: there are no rows here; make table, or make ablate GRID=NAME, makes some")
    for scale, seed in main_tables(results):
        plot(OmegaConf.create({"results_dir": str(results), "scale": {"name": scale}, "seed": seed}), overrides)
    jobs = default_jobs() if settings.jobs is None else settings.jobs
    with grids.workers(jobs) as pool:
        analysed = grids.write_all(results, pool, Console())
        write_book(results, pool)
    verdicts = write_claims(results, analysed)["verdict"].value_counts()
    again = replicates.write(results, analysed)
    written = [results / FILE, ablations.write_readme(GRIDS, results, analysed, again), write_page(results)]
    print(f"claims: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.items())}")
    print(*(path for path in written if path is not None), sep="\n")
    print(f"{len(analysed)} grids, {time.monotonic() - began:.0f} s")


def main_tables(results: Path) -> list[tuple[str, int]]:
    """Scale and seed of every main table that a results folder has rows of."""
    names = sorted(path.name for path in (Path(results) / "rows").glob(f"{MAIN}_*_seed*.jsonl"))
    found = [re.fullmatch(rf"{MAIN}_(.+)_seed(\d+)\.jsonl", name) for name in names]
    return [(parts[1], int(parts[2])) for parts in found if parts is not None]
