"""`python -m harness report`: every table, figure, answer and claim, and the page, from stored rows; runs nothing."""

import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from harness.errors import UserError
from harness.jobs import default_jobs
from harness.reports import ablations, grids
from harness.reports.claims import FILE, write_claims
from harness.row_store import grids_in
from harness.rows import rows_name


def report(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Write all that follows from `results_dir`: main table and grids, claims.csv, ablations/README.md, report.html.

    Raises UserError if there are neither a main table's rows nor a grid's.
    """
    from harness.commands import plot
    from harness.grids.grid import GRIDS
    from harness.reports.html import write_page
    from harness.reports.page_figures import write_book

    began, results = time.monotonic(), Path(settings.results_dir)
    main = (results / "rows" / rows_name("main", settings.scale.name, settings.seed)).is_file()
    if not main and not grids_in(results):
        raise UserError(f"{results}: there are no rows here; make table, or make ablate GRID=NAME, makes some")
    if main:
        plot(settings, overrides)
    jobs = default_jobs() if settings.jobs is None else settings.jobs
    analysed = grids.write_all(results, jobs, Console())
    write_book(results)
    verdicts = write_claims(results, analysed)["verdict"].value_counts()
    written = [results / FILE, ablations.write_readme(GRIDS, results, analysed), write_page(results)]
    print(f"claims: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.items())}")
    print(*(path for path in written if path is not None), sep="\n")
    print(f"{len(analysed)} grids, {time.monotonic() - began:.0f} s")
