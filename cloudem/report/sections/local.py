"""Local resolution: slices of a map coloured by it, and how it is distributed inside the mask."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray
from PIL import Image

from cloudem.conventions import RESOLUTION_COLOURS
from cloudem.report.blocks import Block, Cell, Drawn, Figure, Figures, Panels, Row, Table, Words, numbers
from cloudem.report.content import ReportContent
from cloudem.report.sections.map_panels import VIEWS, grey_limits, scale_bar
from cloudem.report.style import FAINT, INK, draw_svg, label_axes

Array = NDArray[np.floating[Any]]

COLOURS = LinearSegmentedColormap.from_list("resolution", RESOLUTION_COLOURS)
"""From fine to coarse."""

RASTER, BINS = 420, 48

SHARES = (5, 25, 50, 75, 95)
"""Per cent of the voxels whose resolution the table states."""


def slices_and_histogram(content: ReportContent) -> Drawn | None:
    """Show three central slices, coloured by the local resolution inside the mask, and its distribution."""
    resolution, mask = content.arrays.get("local_resolution"), content.mask
    if resolution is None or content.map is None or mask is None:
        return None
    inside = resolution[mask > 0.5]
    low, high = colour_range(inside)
    middle = len(resolution) // 2
    cuts = [[each.take(middle, axis=axis) for axis, *_ in VIEWS] for each in (content.map, resolution, mask)]
    limits = grey_limits(np.stack(cuts[0]), 99.9)
    panels = []
    for density, values, part, (_, along, right, up) in zip(*cuts, VIEWS, strict=True):
        where = f"Central slice across {along}"
        svg = coloured(density, values, part, limits, (low, high), content.pixel_size, where)
        panels.append((svg, where, f"({right} right, {up} up)"))
    words = (
        "Brightness is the density, filtered by what the half-maps agree on around each voxel; colour is the local "
        "resolution, inside the mask; the bars below have the same colours."
    )
    drawn = Figure(600, distribution(inside, low, high, content.resolution))
    rows = [Row(numbers((f"{part} %", f"{value:.2f} Å"))) for part, value in zip(SHARES, reached(inside), strict=True)]
    table = Table([Cell("of the voxels inside the mask", "n"), Cell("are resolved to", "n")], rows)
    blocks: list[Block] = [Panels(panels), Words(words), Figures([drawn, Figure(376, table)])]
    return Drawn("Local resolution", blocks)


def reached(values: Array) -> Array:
    """Return the resolutions that the shares `SHARES` of some values reach, Å."""
    return np.asarray(np.percentile(values, SHARES))


def colour_range(values: Array) -> tuple[float, float]:
    """Return the resolutions that the first and the last colour stand for: most values lie between, Å."""
    low, high = (float(v) for v in np.percentile(values, [2, 95])) if values.size else (0.0, 1.0)
    return (low, high) if high - low > 0.05 * low else (0.95 * low, 1.1 * low + 1e-6)


def coloured(
    density: Array,
    values: Array,
    mask: Array,
    grey: tuple[float, float],
    between: tuple[float, float],
    pixel_size: float | None,
    label: str,
) -> str:
    """Return a slice as SVG: brightness by density, colour by value inside the mask; first row at the bottom.

    All (n, n); ``grey`` and ``between`` are what black and white, and the first and the last colour, stand for.
    """
    n = len(density)
    bright = np.clip((density - grey[0]) / (grey[1] - grey[0]), 0, 1)
    hue = COLOURS(np.clip((values - between[0]) / (between[1] - between[0]), 0, 1))[..., :3]
    part = np.clip(mask, 0, 1)[..., None]
    # lighter than the density alone would be: in dark places, colours could not be told apart
    shown = part * hue * (0.35 + 0.65 * bright)[..., None] + (1 - part) * 0.6 * bright[..., None]
    picture = Image.fromarray(np.flipud(np.rint(255 * shown)).astype(np.uint8))
    buffer = io.BytesIO()
    picture.resize((RASTER, RASTER), Image.Resampling.BICUBIC).save(buffer, "PNG", compress_level=6)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {n} {n}">'
        f'<image href="data:image/png;base64,{data}" width="{n}" height="{n}"/>{scale_bar(n, pixel_size)}</svg>'
    )


def distribution(values: Array, low: float, high: float, whole: float | None) -> str:
    """Draw how the resolution is distributed, in the colours of the slices, with that of the whole map marked."""

    def draw(figure: Drawing) -> None:
        axes: Axes = figure.add_axes((64 / 600, 50 / 260, 1 - 80 / 600, 1 - 104 / 260))
        first, last = float(values.min()), max(float(np.percentile(values, 99)), high)
        counts, edges = np.histogram(np.minimum(values, last), BINS, range=(first - 1e-3, last + 1e-3))
        middles = (edges[1:] + edges[:-1]) / 2
        colours = COLOURS(np.clip((middles - low) / (high - low), 0, 1))
        axes.bar(edges[:-1], 100 * counts / values.size, np.diff(edges), align="edge", color=colours)
        median = float(np.median(values))
        marks: list[tuple[float, str, str, Any, int]] = [(median, f"median {median:.2f} Å", INK, "-", 15)]
        if whole is not None and np.isfinite(whole) and first <= whole <= last:
            marks.append((whole, f"whole mask {whole:.2f} Å", FAINT, (0, (4, 2)), 0))
        for at, text, colour, dash, higher in marks:
            axes.axvline(at, color=colour, lw=1.4, ls=dash)
            right = at > (first + last) / 2
            axes.annotate(
                text, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(-5 if right else 5, higher),
                textcoords="offset points", ha="right" if right else "left", va="bottom", fontsize=11, color=colour,
            )  # fmt: skip
        label_axes(axes, "local resolution (Å)", "% of the voxels")
        axes.grid(visible=False, axis="x")

    return draw_svg(600, 260, draw, "Distribution of the local resolution inside the mask")
