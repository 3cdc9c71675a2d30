"""A map as central slices and projections, each with its scale bar."""

from __future__ import annotations

import base64
import io
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cloudem.report.blocks import Panels

Array: TypeAlias = NDArray[np.floating[Any]]

_RASTER = 420
"""Pixels along a panel; the browser scales on from there."""

# Axis summed or cut, and what then runs to the right and upwards.
VIEWS = ((0, "z", "x", "y"), (1, "y", "x", "z"), (2, "x", "y", "z"))


def map_panels(volume: Array, pixel_size: float | None, mask: Array | None = None) -> Panels:
    """Return three central slices and three projections of a map (n, n, n), with a common grey scale per row.

    Protein is bright. Values that are not finite are drawn as zero. The mask, if given, is outlined on the slices.
    """
    finite = np.nan_to_num(np.asarray(volume, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    middle = finite.shape[0] // 2
    slices = [finite.take(middle, axis=axis) for axis, *_ in VIEWS]
    projections = [finite.sum(axis=axis) for axis, *_ in VIEWS]
    outlines = [_outline(mask.take(middle, axis=axis)) if mask is not None else "" for axis, *_ in VIEWS]
    panels = []
    for images, paths, word, top in ((slices, outlines, "slice", 99.9), (projections, [""] * 3, "projection", 100.0)):
        low, high = grey_limits(np.stack(images), top)
        for image, path, (_, along, right, up) in zip(images, paths, VIEWS, strict=True):
            where = f"Central slice across {along}" if word == "slice" else f"Projection along {along}"
            svg = picture(image, low, high, pixel_size, where, outline=path)
            panels.append((svg, where, f"({right} right, {up} up)"))
    return Panels(panels)


def grey_limits(images: Array, top: float) -> tuple[float, float]:
    """Return grey-scale limits, percentiles, that a few extreme pixels cannot spoil."""
    low, high = (float(value) for value in np.percentile(images, [0.5, top]))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def picture(
    image: Array,
    low: float,
    high: float,
    pixel_size: float | None,
    label: str,
    across: int = _RASTER,
    outline: str = "",
) -> str:
    """One grey image with a scale bar as SVG in units of its pixels, first row at the bottom.

    Parameters
    ----------
    image
        (n, n).
    low, high
        Values that become black and white.
    pixel_size
        Å, for the bar.
    label
        What it shows, for readers who cannot see it. Trusted text.
    across
        Pixels along the picture.
    outline
        An SVG path.
    """
    n = image.shape[0]
    scaled = (np.flipud(image) - low) * np.float32(255 / (high - low))
    raster = Image.fromarray(scaled.astype(np.float32)).resize((across, across), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.rint(np.asarray(raster)), 0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=4)
    data = base64.b64encode(buffer.getvalue()).decode()
    parts = [
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {n} {n}">',
        f'<image href="data:image/png;base64,{data}" width="{n}" height="{n}"/>',
    ]
    if outline:
        parts.append(f'<path d="{outline}" fill="none" stroke="#e69f00" stroke-width="{n / 260:.3f}"/>')
    return "".join([*parts, scale_bar(n, pixel_size)]) + "</svg>"


def scale_bar(n: int, pixel_size: float | None) -> str:
    """Return the SVG of a bar at the bottom of a picture of n pixels, with its length; "" without a pixel size."""
    if not pixel_size:
        return ""
    length = round_length(0.3 * n * pixel_size)
    bar, unit = length / pixel_size, n / 100
    return (
        f'<rect x="{4 * unit:.3f}" y="{94.4 * unit:.3f}" width="{bar:.3f}" height="{1.3 * unit:.3f}" fill="#fff"/>'
        f'<text x="{4 * unit + bar / 2:.3f}" y="{92.6 * unit:.3f}" font-size="{4.4 * unit:.3f}" fill="#fff" '
        f'text-anchor="middle" font-weight="600">{length:g} Å</text>'
    )


def round_length(longest: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is no longer than ``longest``."""
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9)) * power)


def _outline(mask: Array) -> str:
    """SVG path of the line where a slice of the mask is one half, first row at the bottom."""
    if not (np.nanmin(mask) < 0.5 < np.nanmax(mask)):
        return ""
    lines = Figure().add_subplot().contour(mask, [0.5]).allsegs[0]
    n = mask.shape[0]
    # A contour counts from the centre of the first pixel, SVG from its corner.
    return "".join("M" + "L".join(f"{x + 0.5:.1f} {n - y - 0.5:.1f}" for x, y in line) for line in lines)
