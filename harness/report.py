"""Rows and samples in, tables out: the main table and the controls, as csv, md, tex and on the terminal.

The same rows and samples give the same bytes. Nothing here trains, evaluates or measures.
"""

from pathlib import Path

import pandas as pd
from rich.console import Console

from harness import figures, foot, layout, statistics
from harness.benchmarks import BENCHMARKS
from harness.errors import UserError
from harness.foot import BASELINE
from harness.paths import write_text
from harness.rows import CONTROLLED, KEYS, REFERENCE, seed_suffix
from harness.statistics import AVERAGE, Scores

CHANCE = "chance"
SCORES = [*BENCHMARKS, AVERAGE]
COUNTED = ["prefill_mflop_mini", "prefill_tflop_7b", "model_tflop_7b"]
TIMED = ["prefill_ms", "decode_ms_per_token"]
COLUMNS = {
    "architecture": "the row's name; the last line, `chance`, is the expected score of guessing",
    "frames": "frames sampled from each video",
    "seeds": "number of base seeds pooled",
    "fast_tokens": "video tokens in the prompt",
    "slow_tokens": "video tokens read by cross-attention",
    **{
        f"{name}{end}": text
        for name in SCORES
        for end, text in (
            ("", f"score on {name}, 0-100" if name != AVERAGE else "unweighted mean of the five scores"),
            ("_lo", "lower end of its 95% interval"),
            ("_hi", "upper end of its 95% interval"),
        )
    },
    "relative_gain_pct": "gain of the average over self_attention at 16 frames, in percent of the latter",
    "n_samples": "answers scored, all base seeds together",
    "failures": "answers that failed among them, scored wrong",
    "prefill_mflop_mini": "LLM prefill of the model measured, MFLOP = 2 x MAC",
    "prefill_tflop_7b": "LLM prefill at the 7B configuration, TFLOP = 2 x MAC",
    "prefill_overhead_7b_pct": "the same over self_attention at 16 frames, percent",
    "model_tflop_7b": "whole model at the 7B configuration, with the vision tower, TFLOP = 2 x MAC",
    "model_overhead_7b_pct": "the same over self_attention at 16 frames, percent",
    "prefill_ms": "median prefill time of the mini model on the row's machine, ms",
    "decode_ms_per_token": "median time of one further token, ms",
}
"""The main table's CSV, column by column, in order."""

ORDER = ("self_attention", "compressor_only", "slow_fast", "slow_fast_official")
"""Architectures in the order of the table; others follow by name."""


def main_table(rows: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """One line per (architecture, frames) pooled over base seeds, then chance; columns as in COLUMNS.

    rows, samples: as `read_rows` and `read_samples` give them; controls are left out.
    Raises UserError if the rows do not belong together (other suites, other questions, other base seeds) or
    if the samples do not add up to the rows' scores.
    """
    rows, samples = _without_controls(rows), _without_controls(samples)
    scores = scores_of(rows, samples)
    intervals = statistics.bootstrap(scores).set_index([*statistics.SETTING[:2], "benchmark"])
    lines = []
    for (architecture, frames), group in _in_order(rows):
        line = {"architecture": architecture, "frames": frames, "seeds": group["base_seed"].nunique()}
        line |= _tokens(group) | {name: shared(group, name) for name in COUNTED}
        line |= {name: group[name].median() for name in TIMED}
        line |= {name: int(group[name].sum()) for name in ("n_samples", "failures")}
        for name in scores.benchmarks:
            found = intervals.loc[(architecture, frames, name)]
            line |= {name: found["estimate"], f"{name}_lo": found["lo"], f"{name}_hi": found["hi"]}
        lines.append(line)
    return _against_baseline(pd.DataFrame([*lines, chance_line(samples)]).reindex(columns=list(COLUMNS)))


def seed_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Each base seed's own average: columns architecture, frames, then one per base seed."""
    averages = _without_controls(rows).pivot(index=["architecture", "frames"], columns="base_seed", values="average")
    ordered = [setting for setting, _ in _in_order(_without_controls(rows))]
    return averages.loc[ordered].reset_index().rename_axis(columns=None)


def family_table(rows: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Percent right per kind of event, over all benchmarks: columns architecture, frames, then families."""
    shares = _without_controls(samples).groupby(["architecture", "frames", "family"])["correct"].mean().mul(100)
    ordered = [setting for setting, _ in _in_order(_without_controls(rows))]
    return shares.unstack("family").loc[ordered].reset_index().rename_axis(columns=None)


def write_main_table(
    rows: pd.DataFrame, samples: pd.DataFrame, out_dir: Path, console: Console | None = None
) -> pd.DataFrame:
    """Write out_dir/tables/main_SCALE.{csv,md,tex} and out_dir/figures/, print the table, and return it.

    The files' names end in `rows.seed_suffix` of the rows' seed.
    """
    rows, samples = _sorted(_without_controls(rows)), _without_controls(samples)
    table = main_table(rows, samples)
    suffix = seed_suffix(shared(rows, "seed"))
    name = f"main_{shared(rows, 'scale')}{suffix}"
    by_seed, by_family = seed_table(rows), family_table(rows, samples)
    title = f"Slow-fast against its baselines, {shared(rows, 'scale')} scale"
    unparsed = rows.groupby(["architecture", "frames"])["unparsed"].sum()
    blocks = layout.main_blocks(table, by_seed, by_family, unparsed)
    figures.write_figures(table, by_seed, Path(out_dir) / "figures", shared(rows, "scale"), suffix)
    write_table(Path(out_dir) / "tables" / name, table, blocks, title, foot.foot(rows, samples), console)
    return table


def controls_table(rows: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """slow_fast as trained and under each control, minus `REFERENCE`, on the same questions.

    Columns: architecture, frames, control, seeds; for every score NAME, NAME_lo, NAME_hi in percentage
    points; p_largest (exact McNemar over all questions, the largest over base seeds); gain (whether
    average_lo > 0).
    """
    chosen = rows["frames"].eq(CONTROLLED[1]) & (
        rows["control"].ne("none") | rows["architecture"].isin([CONTROLLED[0], REFERENCE[0]])
    )
    rows = rows[chosen]
    keys = pd.MultiIndex.from_frame(rows[statistics.SETTING])
    samples = samples[pd.MultiIndex.from_frame(samples[statistics.SETTING]).isin(keys)]
    scores = scores_of(rows, samples)
    lines = []
    for setting in sorted(scores.settings, key=lambda each: (each[2] != "none", each)):
        if setting == REFERENCE:
            continue
        line = dict(zip(statistics.SETTING, setting, strict=True)) | {"seeds": rows["base_seed"].nunique()}
        for found in statistics.paired(scores, setting, REFERENCE).itertuples():
            name = found.benchmark
            line |= {name: found.difference, f"{name}_lo": found.lo, f"{name}_hi": found.hi}
        line["p_largest"] = statistics.mcnemar(samples, setting, REFERENCE)["p"].max()
        lines.append(line | {"gain": bool(line[f"{AVERAGE}_lo"] > 0)})
    if not lines:
        raise UserError("no row to compare with compressor_only at 128 frames; run the controls first.")
    ends = [f"{name}{end}" for name in SCORES if name in lines[0] for end in ("", "_lo", "_hi")]
    return pd.DataFrame(lines)[[*statistics.SETTING, "seeds", *ends, "p_largest", "gain"]]


def write_controls_table(
    rows: pd.DataFrame, samples: pd.DataFrame, out_dir: Path, console: Console | None = None
) -> pd.DataFrame:
    """Write out_dir/tables/controls_SCALE.{csv,md,tex}, print the table, and return it; names as the main table's.

    rows, samples: the controls' together with the main table's.
    """
    table = controls_table(rows, samples)
    rows = _sorted(rows[rows["frames"].eq(CONTROLLED[1])])
    scale = shared(rows, "scale")
    title = f"Controls: {CONTROLLED[0]} minus {REFERENCE[0]} at {CONTROLLED[1]} frames, {scale} scale"
    lines = foot.controls_foot(rows, samples[samples["frames"].eq(CONTROLLED[1])])
    blocks = [layout.controls_block(table)]
    name = f"controls_{scale}{seed_suffix(shared(rows, 'seed'))}"
    write_table(Path(out_dir) / "tables" / name, table, blocks, title, lines, console)
    return table


def write_table(
    stem: Path, table: pd.DataFrame, blocks: list[layout.Block], title: str, lines: list[str], console: Console | None
) -> None:
    """Write a table's csv, the blocks with their title and foot as md and tex, and print these."""
    write_text(
        stem.with_suffix(".csv"),
        table.round({name: 4 for name in table if name != "p_largest"}).to_csv(index=False, lineterminator="\n"),
    )
    write_text(stem.with_suffix(".md"), layout.markdown(blocks, title, lines))
    write_text(stem.with_suffix(".tex"), layout.latex(blocks, title, lines, label=stem.name))
    layout.print_table(blocks, title, lines, console or Console())


def scores_of(rows: pd.DataFrame, samples: pd.DataFrame) -> Scores:
    """The samples resampled, after checking that they are the samples of `rows`."""
    if rows.empty:
        raise UserError("there are no rows to report; `python -m harness table` makes them.")
    if rows["suite_fingerprint"].nunique() > 1:
        raise UserError("the rows come from different suites, so their questions differ; report them apart.")
    category_means = [name for name, b in BENCHMARKS.items() if b.aggregation == "categories"]
    scores = statistics.resample(samples, category_means)
    for setting, group in rows.groupby(statistics.SETTING):
        expected = pd.DataFrame(group["scores"].tolist()).mean()
        found = dict(zip(scores.benchmarks, scores.estimate_SN[scores.of(setting)], strict=True))
        for name, score in expected.items():
            if abs(found.get(name, float("nan")) - score) < 1e-3:  # lmms-eval rounds one metric to 0.001 %
                continue
            raise UserError(
                f"{setting}: the samples give {found.get(name)} on {name}, the rows {score}: rows and "
                "samples files are of different runs, or the suite lacks a category of the benchmark."
            )
    return scores


def _against_baseline(table: pd.DataFrame) -> pd.DataFrame:
    """Fill the three relative columns; they stay empty when the baseline is not among the rows."""
    is_baseline = table["architecture"].eq(BASELINE[0]) & table["frames"].eq(BASELINE[1])
    if not is_baseline.any():
        return table
    baseline = table[is_baseline].iloc[0]
    for column, of in (
        ("relative_gain_pct", AVERAGE),
        ("prefill_overhead_7b_pct", "prefill_tflop_7b"),
        ("model_overhead_7b_pct", "model_tflop_7b"),
    ):
        table[column] = 100 * (table[of] / baseline[of] - 1)
    return table


def chance_line(samples: pd.DataFrame) -> dict:
    """Guessing: no frames, no answers, no cost, and exactly known given the questions."""
    asked = samples.drop_duplicates(statistics.QUESTION)
    levels = {
        name: BENCHMARKS[name].chance(group["n_options"], group["category"])
        for name, group in asked.groupby("benchmark")
    }
    levels[AVERAGE] = sum(levels.values()) / len(levels)
    ends = {f"{name}{end}": level for name, level in levels.items() for end in ("", "_lo", "_hi")}
    nothing = dict.fromkeys(["frames", "seeds", "fast_tokens", "slow_tokens", "n_samples", "failures"], 0)
    return {"architecture": CHANCE, **nothing, **ends}


def _in_order(rows: pd.DataFrame):
    """((architecture, frames), its rows) in the table's order."""
    groups = dict(iter(rows.groupby(["architecture", "frames"])))
    rank = {name: place for place, name in enumerate(ORDER)}
    return sorted(groups.items(), key=lambda item: (rank.get(item[0][0], len(ORDER)), *item[0]))


def _tokens(group: pd.DataFrame) -> dict[str, int]:
    return {name: int(shared(group, name)) for name in ("fast_tokens", "slow_tokens")}


def shared(rows: pd.DataFrame, field: str):
    """The one value that all `rows` have in `field`; UserError if they differ."""
    values = rows[field].unique()
    if len(values) > 1:
        named = ", ".join(f"{row.architecture} @{row.frames}" for row in rows.head(3).itertuples())
        raise UserError(f"rows that belong together ({named}...) differ in {field}: {list(values)}.")
    return values[0]


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in an order that does not depend on which finished first."""
    return rows.sort_values(KEYS, kind="stable", ignore_index=True)


def _without_controls(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["control"].eq("none")]
