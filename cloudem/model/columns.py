"""A column of a table, stated once: what it is called, its unit, how its values are written, what it means.

Terminal, log, report and exported tables all take it from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cloudem import text

Value: TypeAlias = float | int | str


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes
    ----------
    name
        Key of its values in records; ends in the unit, as parameters do.
    heading
        What people call it, a word or two.
    unit
        Of the values as they are shown; empty for pure numbers.
    form
        Format of the shown number, as for `format`; or ``bytes``.
    factor
        Shown is the value times this: 100 for shares in per cent.
    meaning
        One sentence for whoever does not know it.
    """

    name: str
    heading: str
    unit: str = ""
    form: str = ".4g"
    factor: float = 1.0
    meaning: str = ""

    @property
    def title(self) -> str:
        """Heading with the unit: ``resolution (Å)``."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    def cell(self, value: Value | None) -> str:
        """Return a value without its unit, a dash where it is not known."""
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return "–"
        if isinstance(value, str):
            return value
        if self.form == "bytes":
            return text.size(int(value))
        scaled = value if self.factor == 1 else value * self.factor
        # "z": what rounds to nothing has no sign
        return format(int(scaled), self.form) if self.form.endswith("d") else format(scaled, f"z{self.form}")

    def text(self, value: Value | None) -> str:
        """Return a value with its unit: ``7.98 Å``, ``3.2%``."""
        cell = self.cell(value)
        if not self.unit or cell == "–":
            return cell
        return cell + self.unit if self.unit == "%" else f"{cell} {self.unit}"


ITERATION = Column("iteration", "iteration", form="d")
SECONDS = Column("seconds", "time", "s", ".1f")
RECEIVED = Column("received_bytes", "network", form="bytes")


def meanings_of(columns: Sequence[Column]) -> str:
    """Return what columns mean, in words to stand below their table; empty where none needs it."""
    said = [f"{column.heading}: {column.meaning}" for column in columns if column.meaning]
    return f"{'; '.join(said)}." if said else ""


def described(columns: Sequence[Column], name: str, value: Value = 0.0) -> Column:
    """Return the column of a name; a plain one, for such a value, where nobody declared it."""
    found = next((column for column in columns if column.name == name), None)
    return found or Column(name, name.replace("_", " "), form=",d" if isinstance(value, int) else ".4g")
