"""The zoo: every registered variant with what it is and where it comes from, printed as Markdown.

python -m architectures.zoo
"""

import inspect
import re
from collections.abc import Iterator

from architectures.compressors import COMPRESSORS
from architectures.encoders import ENCODERS
from architectures.fusions import FUSIONS
from architectures.gates import GATES
from architectures.placement import PLACEMENTS
from architectures.registry import Registry
from architectures.scope import SCOPES
from architectures.selectors import SELECTORS
from architectures.time_positions import TIME_POSITIONS

REGISTRIES = (ENCODERS, SELECTORS, COMPRESSORS, FUSIONS, GATES, PLACEMENTS, SCOPES, TIME_POSITIONS)
PER_FILE = (ENCODERS, SELECTORS, COMPRESSORS, FUSIONS)  # whose modules' docstrings are about one source
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def entries(registry: Registry) -> Iterator[tuple[str, str, list[str]]]:
    """(name, first sentence of its docstring, arXiv numbers) of each variant of a family."""
    for name, variant in registry.items():
        text = inspect.getdoc(variant)
        paragraph = " ".join(text.partition("\n\n")[0].split())
        sentence = re.split(r"(?<=[^A-Z].[.:]) (?=[A-Z`])", paragraph)[0].rstrip(".:")
        if registry in PER_FILE:
            text += inspect.getdoc(inspect.getmodule(variant))
        yield name, sentence, sorted(set(ARXIV.findall(text)))


def table() -> str:
    """All families, one table."""
    lines = ["| family | name | what it is | source |", "| --- | --- | --- | --- |"]
    for registry in REGISTRIES:
        for name, sentence, sources in entries(registry):
            links = ", ".join(f"[{source}](https://arxiv.org/abs/{source})" for source in sources)
            lines.append(f"| {registry.family} | `{name}` | {sentence.replace('|', '/')} | {links} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
