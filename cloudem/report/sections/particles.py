"""The particles: how they lie, and what their columns say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cloudem.model.particles import DOUBTFUL
from cloudem.report.blocks import Block, Drawn, Figure, Figures, facts
from cloudem.report.content import ReportContent
from cloudem.report.sections.curves import histogram
from cloudem.report.sections.view_directions import view_density, views_figure


def views_and_histograms(content: ReportContent) -> Drawn | None:
    """Show the distribution of views, unless it stands beside the resolution by direction, and histograms."""
    blocks: list[Block] = []
    known = particle_facts(content)
    beside = content.directional_resolution is not None
    if not beside and (panel := views_panel(content, 620)) is not None:
        figure, sampled = panel
        blocks.append(Figures([figure, Figure(350, facts([*known, sampled]))]))
        known = []
    if known:
        blocks.append(facts(known, width=420))
    if drawn := [Figure(320, figure) for figure in histograms(content)]:
        blocks.append(Figures(drawn))
    return Drawn("Particles", blocks) if blocks else None


def views_panel(content: ReportContent, width: int) -> tuple[Figure, tuple[str, str]] | None:
    """Return the map of view directions, and what the worst direction of Fourier space has; None without poses."""
    if content.rot is None or content.tilt is None or not len(content.rot):
        return None
    views = view_density(content.rot, content.tilt, content.symmetry_operators)
    if not np.isfinite(views.least_sampled):
        return None
    equivalent = ", equivalent ones included" if content.symmetry_operators is not None else ""
    caption = (
        f"View directions in map coordinates{equivalent}; equal-area map, smoothed over "
        f"{np.rad2deg(views.smoothing):.0f}°."
    )
    sampled = ("sampling of Fourier space, worst direction", f"{100 * views.least_sampled:.0f} % of mean")
    return Figure(width, views_figure(views, width), caption), sampled


def half_sizes(content: ReportContent) -> tuple[int, int] | None:
    """Return the particles of each half-set; None where they are not assigned."""
    if content.half_set is None:
        return None
    one, two = (int(np.count_nonzero(content.half_set == half)) for half in (1, 2))
    return (one, two) if one + two else None


def particle_facts(content: ReportContent) -> list[tuple[str, str]]:
    """Return what a few numbers say of the particles."""
    known = []
    if content.particles is not None:
        known.append(("particles", f"{content.particles:,}"))
    if halves := half_sizes(content):
        known.append(("half-sets 1 and 2", f"{halves[0]:,} and {halves[1]:,}"))
    if content.defocus_u is not None and content.defocus_v is not None:
        mean = finite((np.asarray(content.defocus_u) + np.asarray(content.defocus_v)) / 2e4)
        if mean.size:
            known.append(("defocus", f"{mean.min():.2f} to {mean.max():.2f} µm"))
    if content.shift_x is not None and content.shift_y is not None:
        shift = finite(np.hypot(content.shift_x, content.shift_y))
        if shift.size:
            known.append(("shift, root mean square", f"{np.sqrt(np.mean(shift**2)):.2f} Å"))
    if content.keep is not None and len(content.keep):
        doubtful = int(np.count_nonzero(np.asarray(content.keep) < DOUBTFUL))
        share = f"{doubtful:,} ({doubtful / len(content.keep):.1%})"
        known.append(("another molecule, nothing, or a wrong pose", share if doubtful else "none told from the others"))
    return known


def histograms(content: ReportContent) -> Iterable[str]:
    """Yield histograms of defocus, astigmatism, shifts, and the evidence of each image."""
    if content.defocus_u is not None and content.defocus_v is not None:
        u, v = np.asarray(content.defocus_u, dtype=float), np.asarray(content.defocus_v, dtype=float)
        if finite(u + v).size:
            yield histogram((u + v) / 2e4, "mean defocus (µm)", "Defocus")
            yield histogram(np.abs(u - v) / 1e4, "difference of the two defoci (µm)", "Astigmatism")
    if content.shift_x is not None and content.shift_y is not None:
        length = np.hypot(content.shift_x, content.shift_y)
        if finite(length).size:
            yield histogram(length, "distance from the box centre (Å)", "Shifts")
    for values, axis, title in (
        (content.noise_evidence, "natural log of the Bayes factor against noise", "Molecule or noise"),
        (content.other_evidence, "the same against another molecule", "This molecule or another"),
        (content.keep, "probability, and weight in the map", "Shows this molecule in its pose"),
    ):
        if values is not None and np.any(finite(values) != 0):
            yield histogram(np.asarray(values, dtype=float), axis, title)


def finite(values: Any) -> Any:
    """Return the values that are numbers."""
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]
