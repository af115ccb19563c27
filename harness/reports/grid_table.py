"""A grid's table: one line per cell, base seeds pooled, and chance; as columns of a CSV and as blocks for reading."""

import pandas as pd

from harness import statistics
from harness.layout import NONE, TITLES, Block, Columns, Interval, intervals
from harness.report import CHANCE, SCORES, chance_line, shared
from harness.reports import remarks
from harness.reports.grid_result import BY, GridResult
from harness.statistics import AVERAGE

BOTH = "mlvu"  # the benchmark that is reported under both aggregations
SAMPLES = f"{BOTH}_samples"
ENDS = (("", ""), ("_lo", "lower end of its 95% interval"), ("_hi", "upper end of its 95% interval"))
SEED_COLUMN = "average_seed_"
MEANINGS = {
    AVERAGE: "unweighted mean of the five scores, base seeds pooled",
    **{name: f"score on {name}, 0-100" for name in SCORES if name != AVERAGE},
    SAMPLES: f"{BOTH} as the mean over questions; `{BOTH}` is the mean over categories, as lmms-eval has it",
}
COLUMNS = {
    "cell": "the grid's name of the cell; the last line, `chance`, is the expected score of guessing (a line per suite "
    "where these differ)",
    "x": "the cell's place on the grid's axis, if it has one",
    "line": "the figure's line that it lies on",
    "architecture": "as in the row",
    "frames": "frames sampled from each video",
    "control": "as in the row",
    "world": "as in the row",
    "suite": "the first 12 digits of the suite's fingerprint",
    "overrides": "what the cell differs by, as typed",
    "seeds": "number of base seeds pooled",
    **{
        f"{name}{end}": text or MEANINGS[name]
        for name in (AVERAGE, *(name for name in SCORES if name != AVERAGE), SAMPLES)
        for end, text in ENDS
    },
    "reference": "the cell that it is compared with: the grid's reference, or its counterpart in the cell's own suite",
    "difference": "its average minus the reference's on the same questions, percentage points",
    "difference_lo": ENDS[1][1],
    "difference_hi": ENDS[2][1],
    "p": "two-sided, from the same draws of videos and base seeds",
    "p_holm": "the same, corrected for all of the grid's comparisons (Holm)",
    "p_mcnemar": "exact McNemar test over all questions, the largest p over base seeds; takes questions as independent",
    "detectable": "the smallest difference that would be found with 80% power at 5%, percentage points",
    "n_samples": "answers scored, all base seeds together",
    "failures": "answers that failed among them, scored wrong",
    "unparsed": "answers that named no option among them, scored wrong",
    "fast_tokens": "video tokens in the prompt",
    "slow_tokens": "video tokens read by cross-attention",
    "prefill_mflop_mini": "LLM prefill of the model measured, MFLOP = 2 x MAC",
    "prefill_tflop_7b": "LLM prefill at the 7B configuration, TFLOP = 2 x MAC",
    remarks.TOKENS: "video tokens in the prompt at the 7B configuration; empty where the rows do not say",
    remarks.BUDGET: "these against the reference's: "
    + "; ".join(f"`{name}`: {text}" for name, text in remarks.BUDGETS.items()),
    "prefill_over_reference_pct": "prefill_tflop_7b over the grid's reference, percent",
    "prefill_over_16_frames_pct": "the same over self_attention at 16 frames, percent; empty without such a cell",
    "model_tflop_7b": "whole model at the 7B configuration, with the vision tower, TFLOP = 2 x MAC",
    "model_over_reference_pct": "the same over the grid's reference, percent",
    "model_over_16_frames_pct": "the same over self_attention at 16 frames, percent",
    "seconds": "adaptation and evaluation, all base seeds together",
    "rows": "content hashes of the rows behind the line, by base seed",
}
"""The CSV of a grid, column by column; each base seed's average follows as `average_seed_N`."""
SEED_MEANING = "the average of base seed N alone"


def table(result: GridResult) -> pd.DataFrame:
    """One line per cell in the grid's order, then chance; COLUMNS, then each base seed's average."""
    lines = [_line(result, cell, group) for cell, group in result.rows.groupby("cell", sort=False)]
    seeds = [f"{SEED_COLUMN}{seed}" for seed in result.seeds]
    made = pd.DataFrame(lines).set_index("cell", drop=False)
    for suite in result.suites:
        _put_scores(made, statistics.bootstrap(suite.scores), {})
        _put_scores(made, statistics.bootstrap(_by_samples(result, suite.cells)), {BOTH: SAMPLES})
    _put_differences(made, result)
    _put_overheads(made, result)
    made = made.join(remarks.budgets(result.rows, result.grid.reference)[[remarks.TOKENS, remarks.BUDGET]])
    whole = pd.DataFrame([*made.to_dict("records"), *chance_lines(result)]).reindex(columns=[*COLUMNS, *seeds])
    return whole.astype({remarks.TOKENS: "Int64"})


def chance_lines(result: GridResult) -> list[dict]:
    """Guessing: one line, or one per suite where suites differ in what it gives."""
    levels = {}
    for suite in result.suites:
        asked = result.samples[result.samples["cell"].eq(suite.cells[0])]
        line = {name: value for name, value in chance_line(asked).items() if name not in ("architecture", "frames")}
        mean = 100 * (1 / asked.drop_duplicates(statistics.QUESTION).query("benchmark == @BOTH")["n_options"]).mean()
        line |= {f"{SAMPLES}{end}": mean for end, _ in ENDS if pd.notna(mean)}
        levels.setdefault(round(line[AVERAGE], 1), {"cell": f"{CHANCE}, {suite.cells[0]}", **line})
    lines = list(levels.values())
    return lines if len(lines) > 1 else [{**lines[0], "cell": CHANCE}]


def family_table(result: GridResult) -> pd.DataFrame:
    """Percent right per kind of event, over all benchmarks: cells by families."""
    shares = result.samples.groupby(["cell", "family"], sort=True)["correct"].mean().mul(100)
    return shares.unstack("family").loc[result.cells]


# --------------------------------------------------------------------------------------------------- blocks


def blocks(result: GridResult, table: pd.DataFrame) -> list[Block]:
    """The table for reading: scores, differences, base seeds and counts, events, cost, MLVU twice."""
    measured = table[table["seeds"] > 0]
    made = [
        Block("Scores, 0-100, with 95% intervals", [_names(table), *_scores(table)], names=1),
        differences_block(result, measured),
        counts_block(measured),
        Block("Percent right by kind of event", [_names(measured), *_families(result)], names=1),
        cost_block(measured),
        aggregations_block(table),
    ]
    return [block for block in made if block is not None]


def differences_block(result: GridResult, measured: pd.DataFrame) -> Block | None:
    """Every cell against the reference; None if nothing is compared."""
    compared = measured[measured["difference"].notna()]
    if compared.empty:
        return None
    references = compared["reference"].unique()
    ends = zip(compared["difference"], compared["difference_lo"], compared["difference_hi"], strict=True)
    points = [f"{Interval(*each, signed=True):wide}" for each in ends]
    minus = [("minus", list(compared["reference"]))] if len(references) > 1 else []
    against = "each suite's reference" if minus else references[0]
    return Block(
        f"Average minus that of {against}, percentage points, on the same questions",
        [
            _names(compared),
            *minus,
            ("difference", points),
            ("p", _p(compared["p"])),
            ("p\nHolm", _p(compared["p_holm"])),
            ("p Mc-\nNemar", _p(compared["p_mcnemar"])),
            ("detect-\nable", _numbers(compared["detectable"], ".1f")),
        ],
        names=1 + len(minus),
    )


def counts_block(measured: pd.DataFrame) -> Block:
    """Each base seed's average, how many answers went wrong for which reason, tokens."""
    seeds = [name for name in measured if name.startswith(SEED_COLUMN)]
    return Block(
        "Average by base seed; answers; tokens",
        [
            _names(measured),
            *((f"base\nseed {name.removeprefix(SEED_COLUMN)}", _numbers(measured[name], ".1f")) for name in seeds),
            ("ans-\nwers", _numbers(measured["n_samples"], ".0f")),
            ("fail-\nures", _numbers(measured["failures"], ".0f")),
            ("no\noption", _numbers(measured["unparsed"], ".0f")),
            ("fast\ntokens", _numbers(measured["fast_tokens"], ".0f")),
            ("slow\ntokens", _numbers(measured["slow_tokens"], ".0f")),
        ],
        names=1,
    )


def cost_block(measured: pd.DataFrame) -> Block:
    """Fast tokens and FLOPs of one video at 7B, both scopes; what the latter are over the reference and 16 frames."""
    columns: Columns = [_names(measured), ("fast\ntokens\n7B", _tokens_7b(measured))]
    for head, scope in (("prefill", "prefill"), ("model", "model")):
        over = measured[f"{scope}_over_reference_pct"], measured[f"{scope}_over_16_frames_pct"]
        columns += [
            (f"{head}\n7B\nTFLOP", _numbers(measured[f"{scope}_tflop_7b"], ".2f" if scope == "prefill" else ".1f")),
            ("over\nrefer-\nence", _numbers(over[0], "+.2f", "%")),
            ("over\n16 fra-\nmes", _numbers(over[1], "+.2f", "%")),
        ]
        if over[0].equals(over[1]):  # the reference is self-attention at 16 frames
            columns.pop()
    columns = [column for column in columns if set(column[1]) != {NONE}]
    columns.append(("prefill\nmini\nMFLOP", _numbers(measured["prefill_mflop_mini"], ".1f")))
    return Block("Cost of one video", columns, names=1)


def aggregations_block(table: pd.DataFrame) -> Block | None:
    """MLVU both ways; None where it was not asked."""
    if table[SAMPLES].isna().all():
        return None
    title = TITLES[BOTH]
    both = [(f"{title}, mean over categories", BOTH), (f"{title}, mean over questions", SAMPLES)]
    return Block(
        f"{title} under both aggregations",
        [_names(table), *((head, _interval_cells(table, name)) for head, name in both)],
        names=1,
    )


# -------------------------------------------------------------------------------------------------- helpers


def _line(result: GridResult, cell: str, group: pd.DataFrame) -> dict:
    """What the rows alone say of a cell."""
    asked = result.grid.cells[cell]
    own = {(stage, seconds) for timings in group["timings"] for stage, seconds in timings.items()}
    line = {"cell": cell, "x": asked.x, "line": asked.line, "overrides": " ".join(asked.set), "seeds": len(group)}
    line |= {name: shared(group, name) for name in ("architecture", "frames", "control", "world")}
    line |= {name: int(shared(group, name)) for name in ("fast_tokens", "slow_tokens")}
    line |= {name: shared(group, name) for name in ("prefill_mflop_mini", "prefill_tflop_7b", "model_tflop_7b")}
    line |= {name: int(group[name].sum()) for name in ("n_samples", "failures", "unparsed")}
    line |= {f"{SEED_COLUMN}{row.base_seed}": row.average for row in group.itertuples()}
    line["suite"] = shared(group, "suite_fingerprint")[:12]
    line["seconds"] = sum(seconds for stage, seconds in own if stage in ("adapt", "evaluate"))
    return line | {"rows": " ".join(group["content_hash"])}


def _by_samples(result: GridResult, cells: list[str]) -> statistics.Scores:
    """The benchmark with two aggregations, resampled as the mean over questions."""
    asked = result.samples[result.samples["cell"].isin(cells) & result.samples["benchmark"].eq(BOTH)]
    return statistics.resample(asked, (), by=BY)


def _put_scores(made: pd.DataFrame, found: pd.DataFrame, named: dict[str, str]) -> None:
    """Scores with intervals into their columns; with `named`, only the benchmarks in it, under those names."""
    for row in found.itertuples():
        if named and row.benchmark not in named:
            continue
        name = named.get(row.benchmark, row.benchmark)
        made.loc[row.cell, [name, f"{name}_lo", f"{name}_hi"]] = [row.estimate, row.lo, row.hi]


def _put_differences(made: pd.DataFrame, result: GridResult) -> None:
    names = {"difference": "difference", "lo": "difference_lo", "hi": "difference_hi"}
    names |= {name: name for name in ("reference", "p", "p_holm", "p_mcnemar", "detectable")}
    for source, target in names.items():
        made[target] = result.differences[source] if len(result.differences) else float("nan")


def _put_overheads(made: pd.DataFrame, result: GridResult) -> None:
    for over, cell in (("reference", result.grid.reference), ("16_frames", result.baseline)):
        for scope in ("prefill", "model"):
            costs = made[f"{scope}_tflop_7b"]
            there = cell in made.index
            made[f"{scope}_over_{over}_pct"] = 100 * (costs / costs[cell] - 1) if there else float("nan")


def _names(table: pd.DataFrame) -> tuple[str, list[str]]:
    return "cell", list(table["cell"])


def _scores(table: pd.DataFrame) -> Columns:
    """The average first, then the benchmarks."""
    *benchmarks, average = intervals(table)
    return [average, *benchmarks]


def _interval_cells(table: pd.DataFrame, name: str) -> list[Interval]:
    return [Interval(*ends) for ends in zip(table[name], table[f"{name}_lo"], table[f"{name}_hi"], strict=True)]


def _families(result: GridResult) -> Columns:
    return [(family, _numbers(shares, ".1f")) for family, shares in family_table(result).items()]


def _numbers(values: pd.Series, form: str, unit: str = "") -> list[str]:
    return [NONE if pd.isna(value) else f"{value:{form}}{unit}" for value in values]


def _tokens_7b(measured: pd.DataFrame) -> list[str]:
    both = zip(measured[remarks.TOKENS], measured[remarks.BUDGET], strict=True)
    return [NONE if pd.isna(tokens) else remarks.marked(tokens, budget) for tokens, budget in both]


def _p(values: pd.Series) -> list[str]:
    return [NONE if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in values]
