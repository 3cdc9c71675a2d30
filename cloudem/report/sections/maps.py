"""The map: slices and projections."""

from __future__ import annotations

from cloudem.report.blocks import Drawn, Words
from cloudem.report.content import ReportContent
from cloudem.report.sections.map_panels import map_panels


def slices_and_projections(content: ReportContent, title: str = "Map", mask: str = "the mask") -> Drawn | None:
    """Show three central slices with the outline of a mask, and three projections, under a title."""
    if content.map is None:
        return None
    outline = f" The orange line is {mask} at one half." if content.mask is not None else ""
    words = Words(f"One grey scale per row; density of the molecule is bright.{outline}")
    return Drawn(title, [map_panels(content.map, content.pixel_size, content.mask), words])
