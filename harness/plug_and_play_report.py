"""The plug-and-play study's points and samples in, table and figure out; nothing here trains or evaluates.

Statistics, blocks and figure are the main table's. They know a setting as (architecture, frames, control), so here
a curve takes the architecture's place and its steps take that of the frames: see `as_settings`.
"""

from pathlib import Path

import pandas as pd
from rich.console import Console

from harness import figures, foot, report, statistics
from harness.layout import Block, Interval
from harness.plug_and_play_points import CURVES, TABLE, meanings
from harness.report import CHANCE, SCORES
from harness.rows import seed_suffix
from harness.statistics import AVERAGE, Scores, Setting

NAMES = [curve.name for curve in CURVES]
COLUMNS = {
    "curve": "name of the curve; the last line, `chance`, is the expected score of guessing",
    "step": "steps trained before the evaluation",
    "frames": "frames sampled from each video",
    "seeds": "number of base seeds pooled",
    "n_trained": "parameters that the curve trains",
    "n_parameters": "parameters of its model, the encoder's included",
    **{name: text for name, text in report.COLUMNS.items() if name.removesuffix("_lo").removesuffix("_hi") in SCORES},
    "n_samples": "answers scored, all base seeds together",
    "failures": "answers that failed among them, scored wrong",
    "unparsed": "answers that named no option among them, scored wrong",
}
"""The study's CSV, column by column, in order."""
DIFFERENCES = {
    "first, first_step": "a curve and its steps",
    "second, second_step": "another",
    "NAME, NAME_lo, NAME_hi": f"for NAME in {', '.join(SCORES)}: the first's score minus the second's on the same "
    "questions, percentage points, and the 95% interval",
    "p_largest": "exact McNemar test over all questions, the largest p over base seeds",
}
"""The differences' CSV."""


def as_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """Points or samples with a curve and its steps where statistics expects an architecture and frames."""
    there = frame.rename(columns={"frames": "sampled_frames"})
    return there.rename(columns={"curve": "architecture", "step": "frames"}).assign(control="none")


def resampled(points: pd.DataFrame, samples: pd.DataFrame) -> Scores:
    """The samples resampled; UserError if they, or the points, do not belong together."""
    return report.scores_of(as_settings(points), as_settings(samples))


def study_table(points: pd.DataFrame, samples: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """One line per curve and step, base seeds pooled, then chance; columns as in COLUMNS."""
    bounds = statistics.bootstrap(scores).set_index([*statistics.SETTING[:2], "benchmark"])
    lines = []
    for curve, step in _in_order(points):
        group = points[points["curve"].eq(curve) & points["step"].eq(step)]
        same = ("frames", "n_trained", "n_parameters")
        line = {"curve": curve, "step": step, "seeds": len(group)} | {name: int(group[name].iloc[0]) for name in same}
        for name in SCORES:
            found = bounds.loc[(curve, step, name)]
            line |= {name: found["estimate"], f"{name}_lo": found["lo"], f"{name}_hi": found["hi"]}
        lines.append(line | {name: int(group[name].sum()) for name in ("n_samples", "failures", "unparsed")})
    chance = report.chance_line(samples)
    lines.append({"n_trained": 0, "n_parameters": 0, "unparsed": 0, **chance, "curve": CHANCE, "step": 0})
    return pd.DataFrame(lines)[list(COLUMNS)]


def differences(samples: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """What each curve gained over where the baseline stood, over training that further, and over the reference.

    Paired on the same questions; columns as in DIFFERENCES.
    """
    answers, lines = as_settings(samples), []
    for first, second in _pairs(int(samples["step"].max())):
        line = {"first": first[0], "first_step": first[1], "second": second[0], "second_step": second[1]}
        for found in statistics.paired(scores, first, second).itertuples():
            name = found.benchmark
            line |= {name: found.difference, f"{name}_lo": found.lo, f"{name}_hi": found.hi}
        lines.append(line | {"p_largest": statistics.mcnemar(answers, first, second)["p"].max()})
    return pd.DataFrame(lines)


def write_study(points: pd.DataFrame, samples: pd.DataFrame, out_dir: Path, console: Console | None = None) -> None:
    """Write tables/plug_and_play_SCALE.{csv,md,tex}, its differences' csv and its figure below `out_dir`; print it.

    The files' names end in `rows.seed_suffix` of the points' seed.
    """
    scale, suffix = report.shared(as_settings(points), "scale"), seed_suffix(points["seed"].iloc[0])
    scores = resampled(points, samples)
    table, gained = study_table(points, samples, scores), differences(samples, scores)
    by_seed = report.seed_table(as_settings(points)).set_index(["architecture", "frames"]).loc[list(_in_order(points))]
    tables = Path(out_dir) / "tables"
    gained.round(4).to_csv(_made(tables) / f"{TABLE}_differences_{scale}{suffix}.csv", index=False, lineterminator="\n")
    title = f"Plug-and-play: a trained baseline converted to slow-fast, {scale} scale"
    blocks = [
        steps_block(table),
        seeds_block(by_seed),
        differences_block(gained),
        parameters_block(table),
        families_block(table, samples),
    ]
    figures.write_curves(
        table.rename(columns={"frames": "sampled_frames", "curve": "architecture", "step": "frames"}),
        by_seed.reset_index(),
        Path(out_dir) / "figures" / f"{TABLE}{suffix}",
        scale,
    )
    report.write_table(tables / f"{TABLE}_{scale}{suffix}", table, blocks, title, study_foot(points, samples), console)


# -------------------------------------------------------------------------------------------------- blocks


def steps_block(table: pd.DataFrame) -> Block:
    """The average by curve and steps; chance has one level."""
    measured = table[table["seeds"] > 0]
    steps = list(measured["step"].unique())
    columns = [(f"{step} steps", [_average(table, curve, step) for curve in [*NAMES, CHANCE]]) for step in steps]
    return Block("Average of the five benchmarks by training steps", [("curve", [*NAMES, CHANCE]), *columns], names=1)


def seeds_block(by_seed: pd.DataFrame) -> Block:
    """Each base seed's own average."""
    wide = by_seed.stack().unstack("frames", sort=False).rename_axis(["curve", "seed"])
    columns = [(f"{step} steps", [f"{value:.1f}" for value in wide[step]]) for step in wide]
    curves, seeds = zip(*wide.index, strict=True)
    return Block("The same by base seed", [("curve", list(curves)), ("base\nseed", list(map(str, seeds))), *columns])


def differences_block(gained: pd.DataFrame) -> Block:
    """Paired differences of the average."""
    p = ["<0.001" if p < 0.001 else f"{p:.3f}" for p in gained["p_largest"]]
    points = [Interval(*ends, signed=True) for ends in gained[[AVERAGE, f"{AVERAGE}_lo", f"{AVERAGE}_hi"]].to_numpy()]
    pairs = gained[["first", "first_step", "second", "second_step"]].itertuples(index=False)
    first, second = zip(*((f"{a} @{m}", f"{b} @{n}") for a, m, b, n in pairs), strict=True)
    columns = [("curve @steps", list(first)), ("minus", list(second)), ("average", points), ("p\nMcNemar", p)]
    return Block("Percentage points gained, on the same questions", columns)


def parameters_block(table: pd.DataFrame) -> Block:
    """What each curve trains, and how much of its model that is."""
    last = table[table["step"].eq(table["step"].max())].set_index("curve").loc[NAMES]
    share = 100 * last["n_trained"] / last["n_parameters"]
    columns = [
        ("curve", NAMES),
        ("start", [curve.start for curve in CURVES]),
        ("frames", [str(frames) for frames in last["frames"]]),
        ("trained\nparameters", [f"{n:,}" for n in last["n_trained"]]),
        ("of all\n%", [f"{percent:.1f}" for percent in share]),
    ]
    return Block("What is trained", columns)


def families_block(table: pd.DataFrame, samples: pd.DataFrame) -> Block:
    """Percent right per kind of event, and answers that went wrong, of the start and after the last step."""
    shown = table[table["seeds"].gt(0) & table["step"].isin([0, table["step"].max()])].set_index(["curve", "step"])
    shares = samples.groupby(["curve", "step", "family"])["correct"].mean().mul(100).unstack("family").loc[shown.index]
    events = [(family, [f"{share:.1f}" for share in shares[family]]) for family in shares]
    heads = {"failures": "fail-\nures", "unparsed": "no\noption"}
    wrong = [(head, [str(n) for n in shown[name]]) for name, head in heads.items()]
    curves, steps = zip(*shown.index, strict=True)
    names = [("curve", list(curves)), ("steps", list(map(str, steps)))]
    return Block("Percent right by kind of event; answers", [*names, *events, *wrong])


def study_foot(points: pd.DataFrame, samples: pd.DataFrame) -> list[str]:
    """The lines under the table."""
    rows, last = as_settings(points), points["step"].max()
    return [
        *(foot.SCALES.get(scale, f"Scale: {scale}.") for scale in points["scale"].unique()),
        "Curves: " + "; ".join(f"{name}: {meaning}" for name, meaning in meanings().items()) + ".",
        "baseline_further at 0 steps is the baseline, the main table's row, which had its own adaptation before; at "
        f"{last} steps it is the control that more training is not what helps. The three curves that start there "
        "share recipe, steps and draws of clips and questions (new ones, the same for all three); at equal steps they "
        f"have had {last} steps more than slow_fast, which starts from the base with the main table's draws.",
        "At 0 steps the converted model's gates are closed: it differs from the baseline by its fast tokens alone, "
        "which the compressor makes of more frames. With only the new parameters trained these stay as they are, so "
        "that all it gains over 0 steps comes through the slow tokens.",
        "One training run per curve, its rate warming up and then falling by a cosine until its end at "
        f"{last} steps: the points before are on the way of that longer schedule, not ends of shorter ones.",
        "p: exact McNemar test over all questions, the largest over base seeds; it takes questions as independent.",
        foot.scores_line(samples),
        foot.seeds_line(rows, samples),
        *foot.made_lines(rows),
        *foot.failure_lines(samples),
        *foot.disclosure_lines(rows),
    ]


# ------------------------------------------------------------------------------------------------- helpers


def _in_order(points: pd.DataFrame) -> list[tuple[str, int]]:
    """Every curve and step, in the order of the curves."""
    there = set(zip(points["curve"], points["step"], strict=True))
    return sorted(there, key=lambda each: (NAMES.index(each[0]), each[1]))


def _pairs(last: int) -> list[tuple[Setting, Setting]]:
    """Who is compared with whom."""
    further, new, whole, reference = ([(name, step, "none") for step in (0, last)] for name in NAMES)
    start = further[0]
    pairs = [(each, start) for each in (whole[0], new[1], whole[1], further[1])]
    pairs += [(each, further[1]) for each in (new[1], whole[1])]
    return pairs + [(each, reference[1]) for each in (new[1], whole[1])]


def _average(table: pd.DataFrame, curve: str, step: int) -> Interval | str:
    chosen = table[table["curve"].eq(curve) & table["step"].eq(0 if curve == CHANCE else step)].iloc[0]
    return Interval(*(chosen[f"{AVERAGE}{end}"] for end in ("", "_lo", "_hi")))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
