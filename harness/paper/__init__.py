"""The table at paper scale: checkpoints of 7B on real benchmarks, measured beside what is published.

models.py     the rows that can be asked for, a YAML in conf/model each
request.py    what was asked: the settings of this table
plan.py       what it will take, without GPU, data or network: samples, FLOPs, hours, bytes
memory.py     bytes of one process
stages.py     import, scores and cost of each row, as resumable stages
rows.py       finished stages to rows and samples, kept in results/rows/paper_*
published.py  each score beside the published one, and what differs in how the two were made
table.py      rows and samples to the table: terminal, Markdown, CSV
verb.py       what the command line calls
"""
