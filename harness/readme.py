"""Puts what is computed into the READMEs: `python -m harness.readme`, in the checkout's root.

README.md gets the numbers of results/, architectures/README.md the registries' table.
"""

import re
from pathlib import Path

import pandas as pd

from architectures import zoo
from harness.benchmarks import BENCHMARKS
from harness.mini.schema import EGOSCHEMA_FAMILIES, FAMILY_OF
from harness.paths import write_text
from harness.profilers import headline
from harness.report import SCORES

README, ZOO = Path("README.md"), Path("architectures/README.md")
NO_GPU = (
    "This table is owed: no GPU has been at hand yet. `make profile-gpu` on a machine with one writes it, and "
    "`make readme` puts it here; the same code has been run on a processor only."
)
TITLES = {name: benchmark.title for name, benchmark in BENCHMARKS.items()} | {"average": "average"}


def blocks(results: Path) -> dict[str, str]:
    """Every block of the README that is computed, by the name of its markers; further runs' where they are."""
    made = {
        "table": main_block(pd.read_csv(results / "tables" / "main_mini.csv")),
        "controls": controls_block(pd.read_csv(results / "tables" / "controls_mini.csv")),
        "families": families_block(),
    }
    profiles = results / "profiles"
    made["three_percent"] = "\n".join(
        f"- {line}" for line in headline.sentences(pd.read_csv(profiles / "three_percent_paper.csv"))
    )
    made["scaling"] = (profiles / "scaling.md").read_text(encoding="utf-8").strip()
    made["measured"] = measured_block(profiles)
    made["bench"] = bench_block(pd.read_csv(profiles / "bench.csv"))
    for name, block in (("plug_and_play", study_block), ("plug_and_play_differences", differences_block)):
        path = results / "tables" / f"{name}_mini.csv"
        if path.is_file():
            made[name] = block(pd.read_csv(path))
    return made


def bench_block(rows: pd.DataFrame) -> str:
    """This project's own speed: medians, each beside the first variant of its kind; single decoding threads only."""
    lines = []
    for (part, what), group in rows[rows["part"].eq("evaluation") | rows["threads"].eq(1)].groupby(
        ["part", "what"], sort=False
    ):
        first = group.iloc[0]
        faster = group["value"] / first["value"] if first["unit"] != "ms" else first["value"] / group["value"]
        for row, times in zip(group.itertuples(), faster, strict=True):
            spread = f"{row.value:,.4g} {row.unit} ({row.quartile_1:,.4g} to {row.quartile_3:,.4g})"
            lines.append([f"{part.partition(',')[0]}: {what}", row.variant, spread, f"{times:,.4g} x"])
    return _markdown(["what", "variant", "median (quartiles)", "speed"], lines)


def measured_block(profiles: Path) -> str:
    """What `make profile-gpu` wrote on each GPU that it ran on; or that none has been measured yet."""
    of_gpus = [path for path in sorted(profiles.glob("measured_*.csv")) if pd.read_csv(path)["driver"].notna().all()]
    written = [path.with_suffix(".md").read_text(encoding="utf-8").strip() for path in of_gpus]
    return "\n\n".join(written) or NO_GPU


def main_block(table: pd.DataFrame) -> str:
    """Accuracy (0-100, 95% interval) and cost of every row, in markdown."""
    header = ["architecture", "frames", *(TITLES[name] for name in SCORES), "gain", "7B prefill", "7B model"]
    lines = []
    for row in table.to_dict("records"):
        scores = [f"{row[name]:.1f} ± {(row[f'{name}_hi'] - row[f'{name}_lo']) / 2:.1f}" for name in SCORES]
        if row["architecture"] == "chance":
            lines.append(["chance", "", *(f"{row[name]:.1f}" for name in SCORES), "", "", ""])
            continue
        costs = [f"{row[f'{of}_overhead_7b_pct']:+.1f}%" for of in ("prefill", "model")]
        gain = f"{row['relative_gain_pct']:+.0f}%"
        lines.append([f"`{row['architecture']}`", str(row["frames"]), *scores, gain, *costs])
    return _markdown(header, lines)


def controls_block(table: pd.DataFrame) -> str:
    """slow_fast at 128 frames and its controls, minus the compressor alone, on the same questions."""
    what = {
        "none": "as trained",
        "gate_closed": "gate closed",
        "other_video": "slow tokens of another video",
    }
    header = ["`slow_fast` at 128 frames", "average minus `compressor_only`", "95% interval"]
    lines = [
        [
            what[row["control"]],
            f"{row['average']:+.1f}",
            f"{row['average_lo']:+.1f} to {row['average_hi']:+.1f}",
        ]
        for row in table.to_dict("records")
    ]
    return _markdown(header, lines)


def study_block(table: pd.DataFrame) -> str:
    """The plug-and-play study: average (0-100, 95% interval) by curve and training steps, in markdown."""
    steps = sorted(table["step"].unique())
    lines = []
    for curve, group in table.groupby("curve", sort=False):
        by_step = group.set_index("step")
        if curve == "chance":
            lines.append([curve, "", *[f"{by_step['average'][0]:.1f}"] * len(steps)])
            continue
        half = (by_step["average_hi"] - by_step["average_lo"]) / 2
        cells = [f"{by_step['average'][step]:.1f} ± {half[step]:.1f}" for step in steps]
        lines.append([f"`{curve}`", f"{by_step['n_trained'][0]:,}", *cells])
    return _markdown(["curve", "parameters trained", *(f"{step} steps" for step in steps)], lines)


def differences_block(table: pd.DataFrame) -> str:
    """The plug-and-play study's paired differences of the average, percentage points, in markdown."""
    lines = [
        [
            *(f"`{row[name]}` at {row[f'{name}_step']}" for name in ("first", "second")),
            f"{row['average']:+.1f}",
            f"{row['average_lo']:+.1f} to {row['average_hi']:+.1f}",
        ]
        for row in table.to_dict("records")
    ]
    return _markdown(["after so many steps", "minus", "average", "95% interval"], lines)


def families_block() -> str:
    """Benchmark, family and the categories that carry it."""
    lines = []
    for benchmark, family_of in FAMILY_OF.items():
        for family in dict.fromkeys(family_of.values()):
            categories = [category for category, f in family_of.items() if f == family]
            lines.append([TITLES[benchmark], family, ", ".join(categories)])
    lines.append([TITLES["egoschema"], ", ".join(EGOSCHEMA_FAMILIES), "(no categories; in turn, five options)"])
    return _markdown(["benchmark", "family", "published categories"], lines)


def fill(text: str, filled: dict[str, str]) -> str:
    """`text` with the content between `<!-- NAME -->` and `<!-- /NAME -->` replaced; ValueError if one is missing."""
    for name, block in filled.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no markers <!-- {name} --> ... <!-- /{name} -->")
        text = pattern.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
    return text


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def filled(root: Path) -> dict[Path, str]:
    """Both READMEs of a checkout at `root`, their computed blocks anew."""
    computed = {README: blocks(root / "results"), ZOO: {"zoo": zoo.table()}}
    return {file: fill((root / file).read_text(encoding="utf-8"), content) for file, content in computed.items()}


if __name__ == "__main__":
    for file, text in filled(Path()).items():
        write_text(file, text)
