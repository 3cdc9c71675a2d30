"""The map: slices and projections."""

from __future__ import annotations

from cloudem.report.blocks import Drawn, Words
from cloudem.report.content import ReportContent
from cloudem.report.sections.map_panels import map_panels


def slices_and_projections(content: ReportContent) -> Drawn | None:
    """Show three central slices with the mask's outline, and three projections."""
    if content.map is None:
        return None
    outline = " The orange line is the mask at one half." if content.mask is not None else ""
    words = Words(f"One grey scale per row; density of the molecule is bright.{outline}")
    return Drawn("Map", [map_panels(content.map, content.pixel_size, content.mask), words])
