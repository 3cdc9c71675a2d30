"""What is said in words: iterations, parameters, and how the result was made."""

from __future__ import annotations

from cloudem.model.columns import described, meanings_of
from cloudem.report.blocks import Block, Cell, Drawn, Remarks, Row, Table, Words, numbers
from cloudem.report.content import ParameterRow, ReportContent


def iterations(content: ReportContent) -> Drawn | None:
    """Show one row for each iteration, with the columns that the job declares."""
    if not content.iterations:
        return None
    names = dict.fromkeys(name for row in content.iterations for name in row)
    columns = [described(content.columns, name) for name in names]
    first, *others = columns
    rows = [
        Row([Cell(first.cell(row.get(first.name))), *numbers(column.cell(row.get(column.name)) for column in others)])
        for row in content.iterations
    ]
    blocks: list[Block] = [Table([Cell(first.title), *numbers(column.title for column in others)], rows)]
    if meanings := meanings_of(columns):
        blocks.append(Words(meanings))
    return Drawn("Iterations", blocks)


def parameters(content: ReportContent) -> Drawn | None:
    """Show every parameter with its value and meaning."""
    if not content.parameters:
        return None
    rows = [Row([Cell(name, "name"), _value(it), Cell(it.meaning)]) for name, it in content.parameters.items()]
    head = [Cell("parameter"), Cell("value"), Cell("meaning")]
    return Drawn("Parameters", [Table(head, rows, widths=(24, 30, 46))])


def provenance(content: ReportContent) -> Drawn | None:
    """Show the command, remarks and versions."""
    blocks: list[Block] = []
    if content.command:
        blocks.append(Words(content.command, "pre"))
    if content.notes:
        blocks.append(Remarks(content.notes))
    if content.versions:
        blocks.append(
            Words(" · ".join(f"{name} {version}" for name, version in content.versions.items()), "quiet wide")
        )
    return Drawn("How this was made", blocks) if blocks else None


def value_in_words(value: object, unit: str = "") -> str:
    """Return the value of a parameter as people read it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(value_in_words(one, unit) for one in value) or "none"
    return f"{value:g} {unit}".rstrip() if isinstance(value, float) else f"{value} {unit}".rstrip()


def _value(parameter: ParameterRow) -> Cell:
    return Cell(value_in_words(parameter.value, parameter.unit), "quiet" if parameter.value is None else "")
