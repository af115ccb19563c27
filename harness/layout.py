"""A report's numbers as people read them: blocks of text cells, for the terminal, markdown and LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.benchmarks import BENCHMARKS
from harness.foot import BASELINE, MARK
from harness.statistics import AVERAGE

TITLES = {**{name: b.title for name, b in BENCHMARKS.items()}, AVERAGE: "average"}
NARROW = {"Video-MME": "Video-\nMME", "EgoSchema": "Ego-\nSchema", "LongVideoBench": "Long-\nVideo-\nBench"}
NARROW["frames"] = "fra-\nmes"
NONE = "–"


@dataclass(frozen=True)
class Interval:
    """A score or difference with its interval; each medium writes it its own way."""

    value: float
    lo: float
    hi: float
    signed: bool = False

    def __format__(self, medium: str) -> str:
        if pd.isna(self.value):
            return NONE
        sign = "+" if self.signed else ""
        if self.lo == self.hi == self.value:  # exactly known, as chance is
            return f"{self.value:{sign}.1f}"
        if medium == "narrow":
            half = (self.hi - self.lo) / 2
            return f"{self.value:{sign}.1f}±{half:.{1 if half < 9.95 else 0}f}"
        digits = 2 if self.hi - self.lo < 1 else 1  # or an end just below 0 would read -0.0
        return f"{self.value:{sign}.{digits}f} [{self.lo:{sign}.{digits}f}, {self.hi:{sign}.{digits}f}]"


Cells = list["str | Interval"]
Columns = list[tuple[str, Cells]]


@dataclass(frozen=True)
class Block:
    """One table, column by column: (head, cells); a head may break at "\\n". The first `names` are text."""

    caption: str
    columns: Columns
    names: int = 2

    @property
    def heads(self) -> list[str]:
        """The columns' heads."""
        return [head for head, _ in self.columns]

    @property
    def rows(self) -> list[Cells]:
        """The cells, line by line."""
        return [list(cells) for cells in zip(*(cells for _, cells in self.columns), strict=True)]


def main_blocks(
    table: pd.DataFrame, by_seed: pd.DataFrame, by_family: pd.DataFrame, unparsed: pd.Series
) -> list[Block]:
    """The main table in pieces of at most 80 characters: scores; base seeds and counts; events; cost.

    unparsed: answers that named no option, indexed by (architecture, frames).
    """
    measured = table[table["seeds"] > 0]
    events = [(family, _numbers(by_family[family], ".1f")) for family in by_family.columns[2:]]
    return [
        Block("Scores, 0-100, with 95% intervals", [*_names(table), *intervals(table)]),
        counts_block(measured, by_seed, unparsed),
        Block("Percent right by kind of event", [*_names(measured), *events]),
        cost_block(measured),
    ]


def counts_block(measured: pd.DataFrame, by_seed: pd.DataFrame, unparsed: pd.Series) -> Block:
    """The gain, each base seed's average, how many answers went wrong for which reason, tokens."""
    settings = pd.MultiIndex.from_frame(measured[["architecture", "frames"]])
    return Block(
        "Average by base seed; answers; tokens",
        [
            *_names(measured),
            ("gain\n%", _numbers(measured["relative_gain_pct"], "+.1f")),
            *((f"base\nseed {seed}", _numbers(by_seed[seed], ".1f")) for seed in by_seed.columns[2:]),
            ("ans-\nwers", _numbers(measured["n_samples"], "d")),
            ("fail-\nures", _numbers(measured["failures"], "d")),
            ("no\noption", _numbers(unparsed.loc[settings], "d")),
            ("fast\ntokens", _numbers(measured["fast_tokens"], "d")),
            ("slow\ntokens", _numbers(measured["slow_tokens"], "d")),
        ],
    )


def cost_block(measured: pd.DataFrame) -> Block:
    """FLOPs of both scopes at both scales, latencies."""
    is_baseline = measured["architecture"].eq(BASELINE[0]) & measured["frames"].eq(BASELINE[1])
    mini = measured["prefill_mflop_mini"]
    over = 100 * (mini / mini[is_baseline].mean() - 1)  # empty where the baseline is not among the rows
    return Block(
        "Cost of one video",
        [
            *_names(measured),
            ("prefill\nmini\nMFLOP", _numbers(mini, ".1f")),
            ("+%", _numbers(over, ".1f")),
            ("prefill\n7B\nTFLOP", _numbers(measured["prefill_tflop_7b"], ".2f")),
            ("+%", _numbers(measured["prefill_overhead_7b_pct"], ".2f")),
            ("model\n7B\nTFLOP", _numbers(measured["model_tflop_7b"], ".1f")),
            ("+%", _numbers(measured["model_overhead_7b_pct"], ".0f")),
            ("prefill\nms", _numbers(measured["prefill_ms"], ".1f")),
            ("ms per\ntoken", _numbers(measured["decode_ms_per_token"], ".2f")),
        ],
    )


def controls_block(table: pd.DataFrame) -> Block:
    """Paired differences, one line per control."""
    names = ["as trained" if control == "none" else control for control in table["control"]]
    if table["architecture"].nunique() > 1:
        names = [f"{architecture}, {name}" for architecture, name in zip(table["architecture"], names, strict=True)]
    p = ["<0.001" if p < 0.001 else f"{p:.3f}" for p in table["p_largest"]]
    return Block(
        "Percentage points gained over the compressor alone, with 95% intervals",
        [("slow tokens", names), *intervals(table, signed=True), ("p\nMcNemar", p)],
        names=1,
    )


def markdown(blocks: Sequence[Block], title: str, lines: Sequence[str]) -> str:
    """The blocks as GitHub tables under a heading, the lines below them."""
    parts = [f"### {title}"]
    for block in blocks:
        heads = [head.replace("-\n", "").replace("\n", " ") for head in block.heads]
        rule = [":--" if place < block.names else "--:" for place in range(len(heads))]
        body = [[escaped_md(_spelt(cell, "wide")) for cell in row] for row in block.rows]
        rows = "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *body))
        parts += [f"**{block.caption}**", rows]
    return "\n\n".join([*parts, "\n".join(f"- {escaped_md(line)}" for line in lines)]) + "\n"


def latex(blocks: Sequence[Block], title: str, lines: Sequence[str], label: str) -> str:
    """A `table*` (packages: booktabs) per block, so that each fits a page, and the lines as a paragraph below.

    The first is labelled tab:`label`, the others tab:`label`-2 and so on.
    """
    parts = ["% needs \\usepackage{booktabs}"]
    for number, block in enumerate(blocks, start=1):
        parts += _tex_float(block, title, label if number == 1 else f"{label}-{number}")
    note = "\n".join(f"{_escaped_tex(line)}\\par" for line in lines)
    return "\n".join([*parts, "\\begingroup\\scriptsize\\noindent", note]) + "\n\\endgroup\n"


def _tex_float(block: Block, title: str, label: str) -> list[str]:
    end = "" if title.endswith(("?", "!", ".")) else "."
    columns = "l" * block.names + "r" * (len(block.heads) - block.names)
    return [
        "\\begin{table*}",
        "\\centering",
        f"\\caption{{{_escaped_tex(title)}{end} {_escaped_tex(block.caption)}.}}",
        f"\\label{{tab:{label}}}",
        "\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        "\\toprule",
        " & ".join(map(_tex_head, block.heads)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(_tex_cell, row)) + " \\\\" for row in block.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table*}",
    ]


def print_table(blocks: Sequence[Block], title: str, lines: Sequence[str], console: Console) -> None:
    """Print the blocks, each at most 80 characters wide, and the lines wrapped below."""
    console.print(Text(title, style="bold"))
    for block in blocks:
        console.print(Text(f"\n{block.caption}", style="italic"))
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        for place, head in enumerate(block.heads):
            table.add_column(
                Text(NARROW.get(head, head)), justify="left" if place < block.names else "right", no_wrap=True
            )
        for row in block.rows:
            table.add_row(*(Text(_spelt(cell, "narrow")) for cell in row))
        console.print(table)
    console.print()
    for line in lines:
        console.print(Text(f"- {line}", style="dim"), width=min(console.width, 100))


def _names(table: pd.DataFrame) -> Columns:
    """Architecture, marked where answers failed, and frames (none for chance)."""
    marked = [
        name + (MARK if failures else "")
        for name, failures in zip(table["architecture"], table["failures"], strict=True)
    ]
    return [
        ("architecture", marked),
        ("frames", [str(frames) if frames else NONE for frames in table["frames"]]),
    ]


def intervals(table: pd.DataFrame, signed: bool = False) -> Columns:
    """A column of intervals for each benchmark in the table, and their average."""
    present = [name for name in TITLES if name in table and table[name].notna().any()]
    return [
        (
            TITLES[name],
            [
                Interval(*ends, signed=signed)
                for ends in zip(table[name], table[f"{name}_lo"], table[f"{name}_hi"], strict=True)
            ],
        )
        for name in present
    ]


def _numbers(values: pd.Series, form: str) -> Cells:
    return [NONE if pd.isna(value) else f"{value:{form}}" for value in values]


def _spelt(cell: str | Interval, medium: str) -> str:
    return f"{cell:{medium}}" if isinstance(cell, Interval) else cell


def escaped_md(text: str) -> str:
    """Text that means itself in a GitHub table's cell or below it."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _escaped_tex(text: str) -> str:
    replaced = {"\\": "\\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": "\\textasciitilde{}"}
    replaced |= {
        "^": "\\textasciicircum{}",
        MARK: "$^\\dagger$",
        "‡": "$^\\ddagger$",
        "|": "$|$",
        "±": "$\\pm$",
        "–": "--",
        "<": "$<$",
        ">": "$>$",
    }
    return "".join(replaced.get(character, character) for character in text)


def _tex_head(head: str) -> str:
    stacked = " \\\\ ".join(map(_escaped_tex, head.replace("-\n", "").split("\n")))
    return f"\\begin{{tabular}}[b]{{@{{}}c@{{}}}}{stacked}\\end{{tabular}}" if "\\\\" in stacked else stacked


def _tex_cell(cell: str | Interval) -> str:
    value, bracket, ends = _spelt(cell, "wide").partition(" [")
    return _escaped_tex(value) + (f" {{\\tiny [{_escaped_tex(ends)}}}" if bracket else "")
