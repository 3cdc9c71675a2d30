"""Arrays of a result as any job may have them: a histogram, a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cloudem.model.columns import Column, meanings_of
from cloudem.report.blocks import Block, Cell, Drawn, Figure, Figures, Row, Table, Words, facts
from cloudem.report.content import ReportContent
from cloudem.report.sections.curves import histogram
from cloudem.report.sections.particles import finite


def array_histogram(content: ReportContent, array: str, column: Column, title: str, caption: str = "") -> Drawn | None:
    """Show how the values of an array are distributed, and a few numbers about it."""
    values = content.arrays.get(array)
    if values is None:
        return None
    known = finite(values) * column.factor
    if not known.size:
        return Drawn(title, [Words(f"None of {np.size(values):,} values is known.")])
    lost = np.size(values) - known.size
    shown = [
        ("values", f"{known.size:,}" + (f" (and {lost:,} not known)" if lost else "")),
        ("median", column.text(float(np.median(known) / column.factor))),
        ("5 % to 95 %", " to ".join(column.cell(float(v / column.factor)) for v in np.percentile(known, [5, 95]))),
        ("least and most", " and ".join(column.cell(float(v / column.factor)) for v in (known.min(), known.max()))),
    ]
    figure = Figure(
        480, histogram(known, column.title, "", width=480, height=260, unit="count"), caption or column.meaning
    )
    return Drawn(title, [Figures([figure, Figure(376, facts(shown))])])


def array_table(content: ReportContent, title: str, columns: Sequence[Column], most: int) -> Drawn | None:
    """Show arrays as columns; the first rows of them where they are long."""
    known = [(column, content.arrays[column.name]) for column in columns if column.name in content.arrays]
    if not known:
        return None
    length = min(len(values) for _, values in known)
    rows = [Row([_cell(column, values[number]) for column, values in known]) for number in range(min(length, most))]
    head = [Cell(column.title, "" if values.dtype.kind in "UTO" else "n") for column, values in known]
    blocks: list[Block] = [Table(head, rows)]
    if length > most:
        blocks.append(Words(f"The first {most:,} of {length:,} rows."))
    if meanings := meanings_of([column for column, _ in known]):
        blocks.append(Words(meanings))
    return Drawn(title, blocks)


def _cell(column: Column, value: object) -> Cell:
    plain = value.item() if isinstance(value, np.generic) else value
    return Cell(column.cell(plain), "" if isinstance(plain, str) else "n")  # type: ignore[arg-type]
