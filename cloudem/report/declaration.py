"""The sections of a report, as a job declares them: data, so that a declaration needs no plotting library.

A section is drawn by a function of a module of `cloudem.report.sections`, ``draw(content, **options)``, which returns
None where the result holds nothing of what it shows (`cloudem.report.page`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudem.model.columns import Column


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes
    ----------
    draw
        ``module:function``; a module of `cloudem.report.sections` by its short name, any other by its full one.
    options
        What the function is given besides the content.
    """

    draw: str
    options: Mapping[str, Any] = field(default_factory=dict)


MAP = Section("maps:slices_and_projections")
RESOLUTION = Section("resolution:curves")
DIRECTIONS = Section("directions:directional_maps")
PARTICLES = Section("particles:views_and_histograms")
COST = Section("cost:stages")
ITERATIONS = Section("tables:iterations")
NETWORK = Section("traffic:transfers")
PARAMETERS = Section("tables:parameters")
PROVENANCE = Section("tables:provenance")
SESSION = Section("micrographs:session_over_time")
GALLERY = Section("micrographs:micrograph_gallery")

STANDARD = (MAP, RESOLUTION, DIRECTIONS, PARTICLES, COST, ITERATIONS, NETWORK, PARAMETERS, PROVENANCE)
"""What every report shows, as far as the result holds it."""


def histogram_of(array: str, column: Column, title: str, caption: str = "") -> Section:
    """Declare a histogram of an array of the result, or of a column of its particles."""
    return Section("values:array_histogram", {"array": array, "column": column, "title": title, "caption": caption})


def table_of(title: str, *columns: Column, rows: int = 50) -> Section:
    """Declare a table of arrays of the result that have the same length; each column names its array."""
    return Section("values:array_table", {"title": title, "columns": columns, "most": rows})
