"""What a reader gets from stored rows: tables, figures, answers, claims and the page. Reads results/ only.

grid_result.py   a grid's rows and samples, resampled and compared
grid_table.py    its table: columns and blocks; grid_foot.py: what stands under it; grid_figures.py: its figure
remarks.py       what must be said of single cells: another budget at 7B, no hybrid layer
grids.py         writes and prints them
ablations.py     ablations/README.md: question, answer, figure, grid by grid
claims.py        results/claims.csv: every claim with its verdict; claim_list.py, claims_of_ours.py,
                 claim_rules.py, evidence.py: of what
html.py          results/report.html; page_*.py: its parts; styles.py: how an architecture looks in every figure
verb.py          `python -m harness report`: all of it
"""
