"""One table of looks for every figure of the grids and of the book: an architecture looks alike in all of them."""

from collections.abc import Iterable

from harness.figures import FURTHER, STYLES, Style

SPECIAL = {
    "self_attention_selected": FURTHER[0],
    "flamingo": Style("#CC79A7", "p", (0, (5, 1))),
    "hyper_attention": FURTHER[2],
    "two_stream": Style("#7F7F7F", "*", (0, (5, 5))),
    "slow_and_faster": Style("#882255", "h", (0, (4, 2, 1, 2))),
}
"""Architectures that the main table's figure has no style of its own for."""
KNOWN = {**STYLES, **SPECIAL}
SPARE = [
    FURTHER[0],
    SPECIAL["flamingo"],
    FURTHER[2],
    SPECIAL["slow_and_faster"],
    *(STYLES[name] for name in ("compressor_only", "slow_fast_official", "self_attention", "slow_fast")),
]
"""For lines that are named after no architecture."""


def style_of(architecture: str) -> Style:
    """The look of an architecture."""
    return KNOWN.get(architecture, FURTHER[0])


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A look for each line: that of the architecture in its name's first part, for the last such line; else a spare."""
    chosen: dict[str, Style] = {}
    last_first = list(dict.fromkeys(names))[::-1]
    # Known ones first, for a spare to take no look of theirs.
    for name in sorted(last_first, key=lambda name: name.partition("@")[0] not in KNOWN):
        style = KNOWN.get(name.partition("@")[0])
        if style is None or _taken(style, chosen.values()):
            style = next((spare for spare in SPARE if not _taken(spare, chosen.values())), FURTHER[3])
        chosen[name] = style
    return chosen


def _taken(style: Style, chosen: Iterable[Style]) -> bool:
    return any(style.colour == each.colour for each in chosen)
