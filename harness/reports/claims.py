"""results/claims.csv: every claim of the paper and of this project, decided by a rule on an interval.

python -m harness.reports.claims [RESULTS]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.paths import write_text
from harness.reports import grids
from harness.reports.claim_list import CLAIMS
from harness.reports.claim_rules import OWED, Claim
from harness.reports.evidence import Evidence
from harness.reports.grid_result import GridResult

FILE = "claims.csv"
COLUMNS = {
    "id": "name of the claim",
    "claim": "what is claimed",
    "source": "where: the paper (arXiv 2504.01328), the official code, or ours",
    "verdict": "reproduced, refuted, or owed: decided by the rule; owed where the rows are not there or cannot tell",
    "figure": "what was found",
    "lo": "lower end of its 95% interval, or of its range where the unit says so; empty if owed for want of rows; "
    "wider than the table's where the figure is one of several cells' (Bonferroni)",
    "hi": "upper end",
    "unit": "of the three",
    "by_seed": "each base seed's own figure, in the order of the seeds; empty where no seeds are behind it",
    "p_holm": "that there is no such difference, corrected for all comparisons of the grid; empty where none is tested",
    "control": "what it is compared with",
    "rule": "how the verdict follows",
    "scale": "of the model that it was found on",
    "n_samples": "answers behind each side, all base seeds together",
    "seeds": "base seeds",
    "command": "what makes the rows that decide it",
}
"""The columns of claims.csv, in order."""


def claims_table(evidence: Evidence, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One line per claim; columns as in COLUMNS."""
    return pd.DataFrame([_line(claim, evidence) for claim in claims], columns=list(COLUMNS)).astype(
        {"n_samples": "Int64", "seeds": "Int64"}
    )


def write_claims(results: Path, analysed: Sequence[GridResult] | None = None) -> pd.DataFrame:
    """Write `results`/claims.csv and return it; `analysed` are the grids, where they have been analysed already."""
    table = claims_table(Evidence(results, grids.results_of(results) if analysed is None else analysed))
    numbers = ["figure", "lo", "hi", "p_holm"]
    rounded = table.astype(dict.fromkeys(numbers, float)).round(4)
    write_text(Path(results) / FILE, rounded.to_csv(index=False, lineterminator="\n"))
    return table


def _line(claim: Claim, evidence: Evidence) -> dict:
    found = claim.find(evidence)
    told = {"id": claim.id, "claim": claim.claim, "source": claim.source, "rule": claim.rule_text}
    if found is None:
        return told | {"verdict": OWED, "command": claim.command}
    spelt = " ".join(f"{figure:.2f}" for figure in found.by_seed)
    return told | vars(found) | {"by_seed": spelt, "verdict": claim.verdict(found, evidence), "command": claim.command}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and print each claim's verdict."""
    given = sys.argv[1:] if arguments is None else arguments
    results = Path(given[0] if given else "results")
    for row in write_claims(results).itertuples():
        print(f"{row.verdict:10} {row.claim}")
    print(results / FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
