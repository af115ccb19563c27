"""Ablation grids: one YAML per question, its cells run side by side, each computed once, whatever is killed.

grid.py      ablations/NAME.yaml -> Grid, checked
cells.py     a cell and a base seed -> stages -> row
plans.py     the same as remembered facts, so that a finished grid is known to be finished without torch
status.py    which cells are done, failed, to do; what a fresh run sets aside
estimate.py  how long the rest takes, from finished stages like it
listing.py   what --dry-run prints
verb.py      `python -m harness ablate`: plans, and has each grid swept
launch.py    starts the sweep, watches it, starts it again where a process died
sweep.py     the Hydra app that a sweep is a multirun of; its job is one (cell, base seed)
job.py       that job: the stages' work, then the row
work.py      runs stages beside other processes that want the same ones
notes.py     what a job says of itself, in files; view.py draws it
"""
