"""Distribution of view directions over the sphere of the map."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cloudem.report.style import FAINT, INK, draw_svg

Array: TypeAlias = NDArray[np.floating[Any]]

_GRID = 2000
"""Points on the sphere at which density is kept: 4.5 degrees apart."""
_VIEWS_PER_SPOT = 64
"""Views that fall on the area smoothed over if they are spread evenly: chance then varies density by an eighth."""


class ViewDensity(NamedTuple):
    """Density of views on the sphere.

    Parameters
    ----------
    directions : (m, 3) float array
        Evenly spread unit vectors in map coordinates.
    density : (m,) float array
        Views per area relative to the mean over the sphere.
    smoothing : float
        Radius, radians, over which views were smoothed; the fewer there are, the larger.
    least_sampled : float
        Sampling of the worst direction of Fourier space relative to the mean: 1 for evenly spread views, 0 for a
        missing cone.
    """

    directions: Array
    density: Array
    smoothing: float
    least_sampled: float


def view_directions(rot: Array, tilt: Array) -> Array:
    """View direction in map coordinates, the third row of the rotation matrix (p, 3), of angles in radians."""
    return np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=-1)


def even_directions(count: int) -> Array:
    """Spread directions evenly: Fibonacci lattice, equal area per point (González 2010, 10.1007/s11004-009-9257-x)."""
    index = np.arange(count) + 0.5
    z = 1 - 2 * index / count
    longitude = np.pi * (1 + np.sqrt(5)) * index
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(longitude), radius * np.sin(longitude), z], axis=-1)


def view_density(rot: Array, tilt: Array, operators: Array | None = None) -> ViewDensity:
    """Smooth the directions of views, and those equivalent by symmetry, to a density on the sphere.

    Parameters
    ----------
    rot, tilt : (p,) float array
        Radians; particles whose angles are not finite are left out.
    operators : (g, 3, 3) float array, optional
        Rotations that leave the map unchanged.

    Notes
    -----
    A view along d samples the Fourier plane perpendicular to d, so the sampling of a direction is the density of
    views on the great circle around it (as in Baldwin & Lyumkis 2020, 10.1016/j.pbiomolbio.2019.09.002).
    """
    grid = even_directions(_GRID).astype(np.float32)
    known = np.isfinite(rot) & np.isfinite(tilt)
    if not known.any():
        return ViewDensity(grid, np.full(_GRID, np.nan), float("nan"), float("nan"))
    tree = cKDTree(grid)
    _, nearest = tree.query(view_directions(np.asarray(rot)[known], np.asarray(tilt)[known]))
    counts = np.bincount(nearest, minlength=_GRID)
    if operators is not None:
        occupied = np.flatnonzero(counts)
        equivalent = np.einsum("pi,gij->gpj", grid[occupied], np.asarray(operators, dtype=np.float32)).reshape(-1, 3)
        weights = np.tile(counts[occupied], len(operators))
        counts = np.bincount(tree.query(equivalent)[1], weights=weights, minlength=_GRID)
    smoothing = float(np.clip(np.sqrt(_VIEWS_PER_SPOT / counts.sum()), np.deg2rad(4), np.deg2rad(15)))
    counts = counts.astype(np.float32)
    cosine = grid @ grid.T
    density = np.exp((cosine - 1) / np.float32(smoothing**2)) @ counts
    sampling = np.exp(-0.5 * (cosine / np.float32(smoothing)) ** 2) @ counts
    return ViewDensity(grid, density / density.mean(), smoothing, float(sampling.min() / sampling.mean()))


def _mollweide(longitude: Array, latitude: Array) -> tuple[Array, Array]:
    """Project to the plane, equal-area, onto an ellipse of half-axes 2 and 1 (Snyder 1987, USGS PP 1395, p. 251)."""
    theta = np.array(latitude, dtype=float)
    for _ in range(60):
        slope = np.maximum(2 + 2 * np.cos(2 * theta), 1e-9)
        theta = theta - (2 * theta + np.sin(2 * theta) - np.pi * np.sin(latitude)) / slope
    return 2 / np.pi * longitude * np.cos(theta), np.sin(theta)


def sphere_raster(directions: Array, values: Array, width: int, height: int) -> Array:
    """Spread values at directions (m, 3) over the Mollweide ellipse, (height, width), bottom row first."""
    x, y = np.meshgrid(
        (np.arange(width) + 0.5) / width * 4 - 2, (np.arange(height) + 0.5) / height * 2 - 1, indexing="xy"
    )
    theta = np.arcsin(y)
    latitude = np.arcsin(np.clip((2 * theta + np.sin(2 * theta)) / np.pi, -1, 1))
    # Beyond the ellipse the edge is repeated, so that smoothing for display does not fade it.
    longitude = np.clip(np.pi * x / (2 * np.cos(theta)), -np.pi, np.pi)
    towards = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=-1
    )
    distance, nearest = cKDTree(directions).query(towards, k=3)
    weight = 1 / (np.asarray(distance) ** 2 + 1e-4)
    return np.asarray((values[nearest] * weight).sum(-1) / weight.sum(-1))


def views_figure(views: ViewDensity, width: int = 620) -> str:
    """Draw the density of views."""
    limit = max(2.0, float(np.nanpercentile(views.density, 99.8)))
    image = sphere_raster(views.directions, views.density, 240, 120)
    label = "Distribution of view directions"
    return sphere_figure(image, (0, limit), "Blues", "views relative to even", label, width)


def sphere_figure(
    image: Array,
    limits: tuple[float, float],
    colours: str,
    unit: str,
    label: str,
    width: int = 620,
    marks: Array | None = None,
) -> str:
    """Draw values on a sphere as a Mollweide map; the map's z axis is up, its x axis in the middle.

    Parameters
    ----------
    image : (h, w) float array
        As by `sphere_raster`.
    limits : pair of float
        Ends of the colour scale.
    colours, unit, label : str
        Name of the colour map, what the scale shows, what the figure shows.
    width : int
        CSS pixels.
    marks : (m, 3) float array, optional
        Directions to mark with a cross.
    """
    height = round(0.468 * width)
    every = 60 if width > 550 else 120

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((4 / width, 4 / height, 1 - 84 / width, 1 - 8 / height))
        shown = axes.imshow(
            image, origin="lower", extent=(-2, 2, -1, 1), cmap=colours, vmin=limits[0], vmax=limits[1],
            interpolation="bilinear",
        )  # fmt: skip
        ellipse = Ellipse((0, 0), 4, 2, fill=False, edgecolor=FAINT, lw=1.0, transform=axes.transData)
        shown.set_clip_path(ellipse)
        axes.add_patch(ellipse)
        _graticule(axes, every)
        for direction in () if marks is None else marks:
            x, y = _mollweide(np.arctan2(direction[1:2], direction[:1]), np.arcsin(np.clip(direction[2:], -1, 1)))
            axes.plot(x, y, "x", ms=9, mew=3.6, color="white")
            axes.plot(x, y, "x", ms=8, mew=1.8, color=INK)
        axes.set_xlim(-2.38, 2.03)
        axes.set_ylim(-1.14, 1.14)
        axes.set_axis_off()
        scale = figure.add_axes((1 - 64 / width, 0.2, 12 / width, 0.6))
        bar = figure.colorbar(shown, cax=scale)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=3)
        bar.ax.grid(visible=False)
        bar.set_label(unit, fontsize=11.5)

    return draw_svg(width, height, draw, label)


def _graticule(axes: Axes, every: int) -> None:
    """Draw meridians and parallels, and name them; meridians ``every`` so many degrees have their name."""
    line = np.linspace(-1, 1, 61)
    faint: dict[str, Any] = {"color": INK, "lw": 0.5, "alpha": 0.28}
    for degrees in (-120, -60, 0, 60, 120):
        axes.plot(*_mollweide(np.deg2rad(np.full(61, float(degrees))), line * np.pi / 2), **faint)
    for degrees in (-60, -30, 0, 30, 60):
        axes.plot(*_mollweide(line * np.pi, np.deg2rad(np.full(61, float(degrees)))), **faint)
    for degrees in (30, 60, 120, 150):
        x, y = _mollweide(np.array([-np.pi]), np.deg2rad(np.array([90.0 - degrees])))
        axes.text(float(x[0]) - 0.03, float(y[0]), f"{degrees}°", ha="right", va="center", fontsize=11, color=FAINT)
    axes.text(0, 1.03, "tilt 0°", ha="center", va="bottom", fontsize=11, color=FAINT)
    axes.text(0, -1.04, "tilt 180°", ha="center", va="top", fontsize=11, color=FAINT)
    axes.text(-2.03, 0, "rot\n−180°", ha="right", va="center", fontsize=11, color=FAINT)
    for degrees in range(-120, 121, every):
        name = "rot 0°" if degrees == 0 else f"{degrees}°".replace("-", "−")
        axes.text(degrees / 90 + 0.02, -0.02, name, ha="left", va="top", fontsize=10, color=INK)
