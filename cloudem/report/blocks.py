"""What a section of a page is made of, as plain data: the templates turn it into HTML and escape every text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes
    ----------
    text
        What it says.
    kind
        ``n`` for a number, ``name``, ``bar``, or another class of the style sheet.
    swatch
        Colour of a stroke before the text.
    bars
        Lengths of bars instead of a text, per cent.
    link
        Where the text leads, relative to the page.
    svg
        A drawing instead of a text.
    span
        Columns that it takes.
    """

    text: str = ""
    kind: str = ""
    swatch: str = ""
    bars: Sequence[float] = ()
    link: str = ""
    svg: str = ""
    span: int = 1


@dataclass(frozen=True)
class Row:
    """A row of a table, perhaps of a kind that looks different: ``total``."""

    cells: Sequence[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes
    ----------
    head
        Headings; empty for a list of facts.
    rows
        Below them.
    kind
        Class of the style sheet.
    width
        Pixels; 0 for all there is.
    widths
        Of the columns, per cent; empty for what the text needs.
    summary
        What it says while it is folded; empty if it is always open.
    """

    head: Sequence[Cell]
    rows: Sequence[Row]
    kind: str = ""
    width: int = 0
    widths: Sequence[int] = ()
    summary: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing (SVG that this package made) or a table, as wide as ``width`` allows, with a caption."""

    width: int
    body: str | Table
    caption: str = ""


@dataclass(frozen=True)
class Figures:
    """Figures side by side, their widths in proportion."""

    items: Sequence[Figure]


@dataclass(frozen=True)
class Panels:
    """Pictures in rows of three: (SVG, caption, quieter words)."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Words:
    """A paragraph; ``kind`` is ``quiet``, ``told``, or ``pre`` for a command."""

    text: str
    kind: str = "quiet"


@dataclass(frozen=True)
class Remarks:
    """A list of sentences, below a line that says what they are."""

    items: Sequence[str]
    title: str = ""


@dataclass(frozen=True)
class Part:
    """A drawing in the middle of a section, with its own template: for what no other block can say."""

    template: str
    values: dict[str, Any]


Block: TypeAlias = Table | Figures | Panels | Words | Remarks | Part


@dataclass(frozen=True)
class Drawn:
    """A section as it stands on the page: a heading and what is below it."""

    title: str
    blocks: Sequence[Block]


def numbers(texts: Iterable[str]) -> list[Cell]:
    """Return cells of numbers."""
    return [Cell(text, "n") for text in texts]


def facts(pairs: Iterable[tuple[str, str]], width: int = 0, kind: str = "") -> Table:
    """Return a table of names and values."""
    value = "" if kind else "n"
    return Table((), [Row([Cell(name), Cell(text, value)]) for name, text in pairs], kind, width)


@cache
def templates() -> Environment:
    """Return the templates; they escape whatever is no drawing of this package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("cloudem.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.tests["text"] = lambda value: isinstance(value, str)
    found.globals["kind_of"] = lambda block: type(block).__name__
    return found


def render_page(template: str, **values: Any) -> str:
    """Return a page."""
    from cloudem.report.style import CSS

    return templates().get_template(template).render(css=CSS, **values)
