"""LaTeX as the tables write it, read by a small parser: what would not compile, or would print something else."""

import re
from pathlib import Path

import pytest

from harness.layout import Block, Interval, latex

TABLES = Path(__file__).parents[1] / "results" / "tables"
SPECIAL = "a_b & 50% of $5 #1 {x} ~y^2 \\z <p> ± – † ‡ |v| [0_1]"
TOKEN = re.compile(
    r"\\label\{[^{}]*\}|\\(?P<edge>begin|end)\{(?P<name>\w+\*?)\}|\\\\|\\[A-Za-z]+|\\.|[{}&$^_#~%<>|]|[^\\{}&$^_#~%<>|]+",
    re.DOTALL,
)
ALIGNMENT = ("centering", "noindent", "par", "begingroup", "endgroup", "setlength", "tabcolsep", "caption")
SIZES = ("tiny", "scriptsize", "footnotesize")
CHARACTERS = ("textbackslash", "textasciitilde", "textasciicircum", "dagger", "ddagger", "pm")
COMMANDS = {*ALIGNMENT, *SIZES, *CHARACTERS, "toprule", "midrule", "bottomrule"}
RULES = {"\\toprule", "\\midrule", "\\bottomrule"}
ESCAPED = {f"\\{character}" for character in "&%$#_{}"}
ONLY_IN_MATH = set("^_<>|")
NEVER = set("#~%")


class Table:
    """A tabular that is being read: its columns, and the cells and content of its present line."""

    def __init__(self, columns: str):
        self.columns = len(re.sub(r"@\{[^{}]*\}", "", columns))
        self.lines, self.cells, self.filled = 0, 1, False

    def end_line(self) -> None:
        assert self.cells == self.columns, f"{self.cells} cells in a line of {self.columns} columns"
        self.lines, self.cells, self.filled = self.lines + 1, 1, False


def check(text: str) -> list[Table]:
    """The tables of a LaTeX text; AssertionError for what LaTeX would refuse, or print as something else."""
    text = re.sub(r"(?<!\\)%.*\n", "", text)  # a comment takes its line's end with it
    assert text.isascii()
    stack: list = []
    tables, place, groups = [], 0, 0
    while place < len(text):
        token = TOKEN.match(text, place)
        assert token, f"nothing can begin with {text[place : place + 20]!r}"
        spelt, place = token[0], token.end()
        top = stack[-1] if stack else None
        if isinstance(top, Table) and spelt.strip() and spelt not in (*RULES, "\\\\", "&") and token["edge"] != "end":
            top.filled = True
        if token["edge"] == "begin":
            if token["name"] == "tabular":
                columns = re.compile(r"(?:\[[tbc]\])?\{((?:[^{}]|\{[^{}]*\})*)\}").match(text, place)
                assert columns, "a tabular without columns"
                place = columns.end()
                stack.append(Table(columns[1]))
                tables.append(stack[-1])
            else:
                stack.append(token["name"])
        elif token["edge"] == "end":
            assert stack, f"{spelt} ends nothing"
            ended = stack.pop()
            if isinstance(ended, Table):
                assert token["name"] == "tabular"
                if ended.filled or ended.cells > 1:
                    ended.end_line()
            else:
                assert ended == token["name"], f"{ended} ends as {token['name']}"
        elif spelt == "{":
            stack.append("{")
        elif spelt == "}":
            assert stack, "} closes nothing"
            assert stack.pop() == "{", "} closes what no { began"
        elif spelt == "$":
            if top == "$":
                stack.pop()
            else:
                stack.append("$")
        elif spelt == "&":
            assert isinstance(top, Table), "& outside a table"
            top.cells += 1
        elif spelt == "\\\\":
            assert isinstance(top, Table), "\\\\ outside a table"
            assert not re.match(r"\s*[\[*]", text[place:]), "\\\\ takes what follows for its argument"
            top.end_line()
        elif spelt.startswith("\\label"):
            continue
        elif spelt.startswith("\\") and spelt[1].isalpha():
            assert spelt[1:] in COMMANDS, f"{spelt} is no command of these tables"
            groups += {"\\begingroup": 1, "\\endgroup": -1}.get(spelt, 0)
        elif spelt.startswith("\\"):
            assert spelt in ESCAPED, f"{spelt} is no escaped character"
        elif spelt in ONLY_IN_MATH:
            assert "$" in stack, f"{spelt} outside mathematics"
        else:
            assert spelt not in NEVER, f"{spelt} not escaped"
    assert not stack, f"{stack} do not end"
    assert groups == 0
    return tables


def blocks() -> list[Block]:
    """Two tables full of what LaTeX reads in its own way, heads too."""
    names = ("cell", [SPECIAL, "plain", "bracket"])
    heads = ("fast\ntokens\n7B", ["1,296", "938‡", "–"])
    scores = ("50% &\nmore", [Interval(50, 45, 55), Interval(-1, -2, 3, signed=True), Interval(25, 25, 25)])
    return [Block(f"Scores: {SPECIAL}", [names, heads, scores], names=1), Block("Alone", [names], names=1)]


def test_what_is_written_compiles_and_every_line_has_every_column():
    text = latex(blocks(), f"Does {SPECIAL} matter?", [SPECIAL, "p < 0.05"], label="gates_mini")
    tables = check(text)
    whole = [table for table in tables if table.lines >= 4]  # the others are heads of several lines
    assert [(table.columns, table.lines) for table in whole] == [(3, 4), (1, 4)]
    assert len(tables) == 4


def test_special_characters_print_as_themselves():
    text = latex([], "t", [SPECIAL], label="x")
    for printed in ("a\\_b", "\\&", "50\\%", "\\$5", "\\#1", "\\{x\\}", "$<$p$>$", "$\\pm$", "$^\\ddagger$", "$|$v$|$"):
        assert printed in text
    assert "\\textbackslash{}z" in text
    assert "\\textasciitilde{}y\\textasciicircum{}2" in text


@pytest.mark.parametrize(
    ("sound", "broken"),
    [
        ("a\\_b", "a_b"),
        ("0\\_1", "0_1"),
        ("50\\% of", "50% of"),
        ("\\& 50", "& 50"),
        ("1,296 & ", "1,296 & & "),
        ("938$^\\ddagger$", "938^\\ddagger"),
        ("\\caption{", "\\caption"),
        ("{@{}lrr@{}}", "{@{}lr@{}}"),
        ("\\end{table*}", "\\end{table}"),
        ("{\\tiny [45.0", "{\\tiny {[45.0"),
        (" \\\\\nplain", "\nplain"),
        ("\\endgroup", ""),
        ("plain", "[plain]"),
        ("\\#1", "\\!1"),
        ("$<$p", "<p"),
    ],
)
def test_the_parser_sees_what_would_not_compile(sound, broken):
    text = latex(blocks(), "A title", [SPECIAL], label="x")
    assert sound in text
    with pytest.raises(AssertionError):
        check(text.replace(sound, broken, 1))


@pytest.mark.parametrize("path", sorted(TABLES.rglob("*.tex")), ids=lambda path: path.stem)
def test_the_committed_tables_compile(path):
    tables = check(path.read_text(encoding="utf-8"))
    assert max(table.lines for table in tables) >= 3
