"""The table of picked particles: one row for each, where it lies in its micrograph."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cloudem.model.table import SHARED_COLUMNS, ColumnMeaning, ItemTable

COLUMNS: dict[str, ColumnMeaning] = {
    "micrograph": SHARED_COLUMNS["micrograph"],
    "coordinate_x": ColumnMeaning(
        "float64", "px", "x in the micrograph; 0 is the centre of the first column", "rlnCoordinateX"
    ),
    "coordinate_y": ColumnMeaning(
        "float64", "px", "y in the micrograph; 0 is the centre of the first row", "rlnCoordinateY"
    ),
    "pick_score": ColumnMeaning(
        "float64", "", "how sure the picking program was", "rlnAutopickFigureOfMerit", 1.0, "pick_stats/ncc_score"
    ),
}
"""Every column of picks that cloudem understands."""


@dataclass(frozen=True)
class Picks(ItemTable):
    """A table of picked particles, see `ItemTable`; rows of one micrograph follow one another."""

    COLUMNS: ClassVar[Mapping[str, ColumnMeaning]] = COLUMNS
    ITEM: ClassVar[str] = "pick"
