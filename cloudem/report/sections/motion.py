"""Motion of specimens: tracks over the frames, how much there was, and what micrographs show."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cloudem.model.columns import Column
from cloudem.report.blocks import Drawn, Figure, Figures, Words, facts
from cloudem.report.content import ReportContent
from cloudem.report.sections.curves import histogram
from cloudem.report.style import BLUE, GREY, INK, VERMILION, draw_svg, label_axes

GRID = "#e6eaee"

MOST_TRACKS = 300
"""Tracks that are drawn; of more, some evenly over the session."""


def tracks(content: ReportContent) -> Drawn | None:
    """Show tracks of micrographs on one scale, and their usual speed over the frames."""
    counts, x, y = (content.arrays.get(name) for name in ("each_count", "each_x", "each_y"))
    if counts is None or x is None or y is None or not np.any(counts > 1):
        return None
    ends = np.cumsum(counts)
    moved = np.flatnonzero(counts > 1)
    chosen = moved[np.linspace(0, len(moved) - 1, min(len(moved), MOST_TRACKS)).astype(int)]
    paths = [
        np.column_stack([x[ends[at] - counts[at] : ends[at]], y[ends[at] - counts[at] : ends[at]]]) for at in chosen
    ]
    drawn = "all" if len(chosen) == len(moved) else f"{len(chosen)} of {len(moved):,}"
    figures = [
        Figure(430, _paths(paths), f"Tracks of {drawn} micrographs as wholes, from the first frame (0, 0) on."),
        Figure(
            430, _speeds(paths), "Distance from each frame to the next: median, and the middle 80 % of micrographs."
        ),
    ]
    return Drawn("Tracks", [Figures(figures)])


def information(content: ReportContent) -> Drawn | None:
    """Show how much information micrographs hold, and local motion."""
    bits = content.arrays.get("bits")
    if bits is None or not np.isfinite(bits).any():
        return None
    known = bits[np.isfinite(bits)]
    figures = [
        Figure(
            430,
            histogram(known / 1e3, "information (kbit)", "", width=430, height=240, unit="micrographs"),
            "How much information micrographs hold.",
        ),
        Figure(430, facts(_told(content, known))),
    ]
    words = (
        "Bits of information follow from what sums of alternate frames share: log₂(1 + signal/noise) over all Fourier"
        " components, without the detector's own pattern. They compare micrographs of one kind, and include whatever"
        " ice and carbon show."
    )
    return Drawn("Information", [Figures(figures), Words(words)])


def _told(content: ReportContent, bits: NDArray[Any]) -> list[tuple[str, str]]:
    lines = [("information, median", f"{np.median(bits):,.0f} bit"), ("all together", f"{bits.sum() / 1e6:,.2f} Mbit")]
    columns = (
        Column("local_motion_A", "local motion, median", "Å", ".2f"),
        Column("motion_early_A", "motion up to 4 e/Å², median", "Å", ".1f"),
        Column("motion_late_A", "motion from there on, median", "Å", ".1f"),
    )
    for column in columns:
        values = content.arrays.get(column.name)
        if values is not None and np.isfinite(values).any():
            lines.append((column.heading, column.text(float(np.nanmedian(values)))))
    return lines


def _paths(paths: list[NDArray[np.float64]]) -> str:
    few = len(paths) <= 3

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.15, 0.15, 0.82, 0.82))
        for path in paths:
            axes.plot(path[:, 0], path[:, 1], "-", color=BLUE, lw=1.4 if few else 0.8, alpha=1.0 if few else 0.45)
            if few:
                axes.plot(path[:, 0], path[:, 1], "o", color=BLUE, ms=3)
            axes.plot(path[-1, 0], path[-1, 1], "o", color=VERMILION, ms=4 if few else 2.5)
        axes.plot(0, 0, "+", color=INK, ms=10)
        axes.set_aspect("equal", "datalim")
        axes.grid(color=GRID, lw=0.8)
        label_axes(axes, "x (Å)", "y (Å)")

    return draw_svg(430, 340, draw, "Tracks of micrographs over the frames")


def _speeds(paths: list[NDArray[np.float64]]) -> str:
    longest = max(len(path) for path in paths)
    speeds = np.full((len(paths), longest - 1), np.nan)
    for row, path in zip(speeds, paths, strict=True):
        row[: len(path) - 1] = np.hypot(*np.diff(path, axis=0).T)
    low, middle, high = np.nanpercentile(speeds, [10, 50, 90], axis=0)
    frames = np.arange(2, longest + 1)

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.15, 0.15, 0.82, 0.82))
        if len(paths) > 1:
            axes.fill_between(frames, low, high, color=GREY, alpha=0.3, lw=0)
        axes.plot(frames, middle, color=BLUE, lw=1.8)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GRID, lw=0.8)
        label_axes(axes, "frame", "motion (Å per frame)")

    return draw_svg(430, 340, draw, "Distance moved in each frame")
