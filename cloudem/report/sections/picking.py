"""Picks: micrographs with circles around them, and the scores that decided."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cloudem.model.columns import Column
from cloudem.report.blocks import Block, Drawn, Figures, Panels, Words, facts
from cloudem.report.blocks import Figure as Shown
from cloudem.report.content import ReportContent
from cloudem.report.sections.map_panels import round_length
from cloudem.report.style import BLUE, GREY, INK, PALE_BLUE, VERMILION, draw_svg, label_axes

CIRCLE = "#ffb000"


def gallery(content: ReportContent, title: str = "") -> Drawn | None:
    """Show micrographs from the fewest to the most picks, each pick in a circle of the particle's diameter.

    With a title of its own, it shows micrographs without picks.
    """
    images = content.arrays.get("gallery_image")
    if images is None:
        return None
    counts = content.arrays["gallery_count"]
    places = content.arrays["gallery_place"]
    diameter = float(content.arrays.get("diameter", np.zeros(1))[0])
    ends = np.cumsum(counts)
    panels = []
    for at, (image, shape, name, count) in enumerate(
        zip(images, content.arrays["gallery_shape"], content.arrays["gallery_name"].tolist(), counts, strict=True)
    ):
        mine = places[ends[at] - count : ends[at]]
        size = float(mine[0, 2]) if len(mine) else 0.0
        drawn = _circled(image[: shape[0], : shape[1]], mine[:, :2], size, diameter, html.escape(str(name)))
        panels.append((drawn, _short(str(name)), "" if title else f"{count:,} picks"))
    if title:
        return Drawn(title, [Panels(panels), Words("The first row of each micrograph is at the bottom.")])
    words = "From the fewest picks to the most; the first row of each micrograph is at the bottom."
    return Drawn("Micrographs with picks", [Panels(panels), Words(words)])


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"…{name[-35:]}"


def _circled(
    image: NDArray[np.uint8], places: NDArray[np.float32], pixel_size: float, diameter: float, name: str
) -> str:
    """Return one picture as SVG in units of its pixels, first row at the bottom."""
    rows, columns = image.shape
    side = max(rows, columns)
    buffer = io.BytesIO()
    Image.fromarray(np.flipud(image)).save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    left, top = (side - columns) / 2, (side - rows) / 2
    parts = [
        f'<svg role="img" aria-label="{name}" viewBox="{-left:g} {-top:g} {side} {side}">',
        f'<svg width="{columns}" height="{rows}" viewBox="0 0 {columns} {rows}">'  # cuts circles at the edges
        f'<image href="data:image/jpeg;base64,{data}" width="{columns}" height="{rows}"/>',
    ]
    radius = diameter / 2 / pixel_size if pixel_size else 0
    circles = "".join(
        f'<circle cx="{x + 0.5:.1f}" cy="{rows - y - 0.5:.1f}" r="{radius:.1f}"/>' for x, y in places.tolist()
    )
    parts.append(f'<g fill="none" stroke="{CIRCLE}" stroke-width="{side / 260:.2f}">{circles}</g></svg>')
    if pixel_size:
        length = round_length(0.3 * columns * pixel_size)
        bar, unit = length / pixel_size, side / 100
        x, y = 3 * unit, rows - 4 * unit
        parts.append(
            f'<rect x="{x - unit:.2f}" y="{y - 6 * unit:.2f}" width="{bar + 2 * unit:.2f}" height="{9 * unit:.2f}" '
            f'fill="#000" opacity="0.55"/><rect x="{x:.2f}" y="{y:.2f}" width="{bar:.2f}" height="{1.3 * unit:.2f}" '
            f'fill="#fff"/><text x="{x + bar / 2:.2f}" y="{y - 1.4 * unit:.2f}" font-size="{4.2 * unit:.2f}" '
            f'fill="#fff" text-anchor="middle" font-weight="600">{length:g} Å</text>'
        )
    return "".join(parts) + "</svg>"


def scores(content: ReportContent) -> Drawn | None:
    """Show the scores of all candidates with what is expected of noise and of particles, and the threshold."""
    counts, edges = content.arrays.get("score_counts"), content.arrays.get("score_edges")
    if counts is None or edges is None:
        return None
    mixture = content.arrays["score_model"].reshape(3, 2)
    threshold = float(content.arrays["threshold"][0])
    total, width = int(counts.sum()), 560
    middles = (edges[1:] + edges[:-1]) / 2

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((66 / width, 50 / 280, 1 - 84 / width, 1 - 104 / 280))
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=PALE_BLUE, edgecolor="white", lw=0.3)
        for weight, mean, deviation, colour, label in zip(*mixture, (GREY, BLUE), ("noise", "particles"), strict=True):
            curve = np.exp(-((middles - mean) ** 2) / 2 / deviation**2) / deviation / np.sqrt(2 * np.pi)
            axes.plot(middles, curve * weight * total * (edges[1] - edges[0]), color=colour, lw=2, label=label)
        if np.isfinite(threshold):
            axes.axvline(threshold, color=VERMILION, lw=1.6, label="threshold")
        used = np.flatnonzero(counts)
        if used.size:
            axes.set_xlim(edges[max(used[0] - 1, 0)], edges[min(used[-1] + 2, len(edges) - 1)])
        label_axes(axes, "score", "candidates")
        figure.legend(loc="upper left", bbox_to_anchor=(58 / width, 1.0), ncols=3, frameon=False, labelcolor=INK)

    column = Column("score", "threshold", form=".2f")
    told = [
        ("candidates", f"{total:,}"),
        ("picks", f"{int(content.arrays['pick_count'].sum()):,}"),
        ("threshold", column.cell(threshold) if np.isfinite(threshold) else "none: nothing stands out"),
    ]
    caption = "0 is the mean score of noise, 1 that of particles. The curves are of the micrographs learned from."
    blocks: list[Block] = [
        Figures([Shown(560, draw_svg(width, 280, draw, "Scores of candidates"), caption), Shown(300, facts(told))])
    ]
    return Drawn("Scores", blocks)
