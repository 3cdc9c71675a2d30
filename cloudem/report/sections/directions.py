"""Resolution by direction, beside the views that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.report.blocks import Block, Drawn, Figure, Figures, facts
from cloudem.report.content import ReportContent
from cloudem.report.sections.particles import views_panel
from cloudem.report.sections.view_directions import even_directions, sphere_figure, sphere_raster

Float64 = NDArray[np.float64]

SPREAD = 1.2
"""The colour scale reaches at least from the mean divided by this to the mean times this: chance looks like little."""


def directional_maps(content: ReportContent) -> Drawn | None:
    """Show the resolution by direction and the views side by side, and what figures say of them."""
    resolution, directions = content.directional_resolution, content.arrays.get("directions")
    said = content.directional
    if resolution is None or directions is None or not len(resolution):
        return None
    views = views_panel(content, 488)
    width = 488 if views else 560
    picture = Figure(width, resolution_figure(directions, resolution, said, width), _caption(said))
    rows = [
        (name, text.format(said[key]))
        for key, name, text in (
            ("best_A", "best directions (mean of the best 5 %)", "{:.2f} Å"),
            ("mean_A", "mean over directions", "{:.2f} Å"),
            ("worst_A", "worst directions (mean of the worst 5 %)", "{:.2f} Å"),
            ("deviations", "differences between directions, standard deviations (1 by chance)", "{:.1f}"),
            ("sphericity", "sphericity of the directional FSC at 0.5, 1 for even", "{:.3f}"),
            ("sampling_compensation", "sampling compensation factor of the views (SCF), 1 for even", "{:.2f}"),
        )
        if key in said
    ]
    if views is None:
        return Drawn("Directions", [Figures([picture, Figure(400, facts(rows))])])
    blocks: list[Block] = [Figures([picture, views[0]]), facts([*rows, views[1]], width=560)]
    return Drawn("Directions", blocks)


def _caption(said: Mapping[str, Any]) -> str:
    half = f" of {said['half_angle_deg']:g}° half angle" if "half_angle_deg" in said else ""
    return f"Resolution by direction: where the FSC within cones{half} falls below 0.143; equal-area map." + (
        " Crosses: the worst directions." if "worst_direction" in said else ""
    )


def resolution_figure(directions: Float64, resolution: Float64, said: Mapping[str, Any], width: int) -> str:
    """Draw the resolution, Å (d,), by direction (d, 3) and its opposite; crosses mark the worst."""
    mean = float(said.get("mean_A", np.mean(resolution)))
    limits = min(float(resolution.min()), mean / SPREAD), max(float(np.quantile(resolution, 0.98)), mean * SPREAD)
    both = np.concatenate([directions, -directions])
    fine = _smooth(both, np.tile(resolution, 2))
    marks = None
    if "worst_direction" in said:
        axis = np.asarray(said["worst_direction"], np.float64)
        marks = np.stack([axis, -axis])
    label = "Resolution by direction"
    return sphere_figure(sphere_raster(*fine, 240, 120), limits, "YlOrRd", "resolution (Å)", label, width, marks)


def _smooth(directions: Float64, values: Float64) -> tuple[Float64, Float64]:
    """Return values on a finer grid of directions, smoothed over half the distance of those given."""
    grid = even_directions(4000)
    width = np.sqrt(4 * np.pi / len(directions)) / 2
    weights = np.exp((grid @ directions.T - 1) / width**2)
    return np.asarray(grid), np.asarray(weights @ values / weights.sum(axis=1))
