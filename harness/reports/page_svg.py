"""Figures as parts of a page: matplotlib's svg with unique ids, without what every figure repeats."""

import re
from html import escape
from pathlib import Path

GLYPH = re.compile(r'<path id="([A-Za-z]+-[A-Za-z]*-?[0-9a-f]+)"([^>]*?)/>', re.DOTALL)
LARGEST = 1.5  # times its own size that a figure is shown at, before anyone zooms
FONT = re.compile(r"^(DejaVu|STIX|Cm)", re.IGNORECASE)


class Figures:
    """The figures of one page. Letters that they share are drawn once, in `glyphs`, and referred to."""

    def __init__(self) -> None:
        self._glyphs: dict[str, str] = {}
        self._count = 0

    def inline(self, path: Path, title: str) -> str:
        """The file's svg for the body of a page; `title` is what it is called where it cannot be seen."""
        self._count += 1
        prefix = f"f{self._count}-"
        text = Path(path).read_text(encoding="utf-8")
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
        kept: set[str] = set()
        text = GLYPH.sub(lambda found: self._share(found, kept), text)
        text = re.sub(r'\bid="([^"]+)"', lambda found: f'id="{prefix}{found[1]}"', text)
        text = re.sub(
            r'(?:xlink:)?href="#([^"]+)"',
            lambda found: f'href="#{self._name(found[1], kept, prefix)}"',
            text,
        )
        text = re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{prefix}{found[1]})", text)
        text = text.replace("xlink:href", "href")
        text = re.sub(r'\bd="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
        text = re.sub(r">\s+<", "><", re.sub(r"[ \t]*\n[ \t]*", " ", text))
        box = re.search(r'viewBox="([^"]+)"', text)[1]
        width, height = (float(number) for number in box.split()[2:])
        size = f'viewBox="{box}" width="{width:.0f}" height="{height:.0f}" style="max-width:{LARGEST * width:.0f}pt"'
        head = f'<svg {size} role="img" aria-label="{escape(title)}">'
        return head + text[text.index(">") + 1 :].rstrip()

    @property
    def glyphs(self) -> str:
        """The letters of all figures so far, as an svg that takes no room."""
        paths = "".join(f'<path id="{name}"{rest}/>' for name, rest in sorted(self._glyphs.items()))
        return f'<svg width="0" height="0" aria-hidden="true" class="glyphs"><defs>{paths}</defs></svg>'

    def _share(self, found: re.Match, kept: set[str]) -> str:
        """Move a letter to the page's; one that is drawn otherwise there stays in its figure."""
        name, rest = found[1], re.sub(r"\s+", " ", found[2])
        if not FONT.match(name) or self._glyphs.setdefault(name, rest) != rest:
            return found[0]
        kept.add(name)
        return ""

    def _name(self, name: str, shared: set[str], prefix: str) -> str:
        return name if name in shared else f"{prefix}{name}"
