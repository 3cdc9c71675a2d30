"""How evenly views sample Fourier space: the sampling compensation factor (SCF).

Baldwin & Lyumkis 2020, 10.1016/j.pbiomolbio.2019.09.002: the slice of a view along d holds the frequencies
perpendicular to d. With the sampling s(u) of the directions u of a shell, its mean over the shell set to 1, the
spectral signal-to-noise ratio of the shell is that of even views times the harmonic mean ``SCF = 1 / mean(1 / s)``. It
is 1 for even views, 8 / pi² = 0.81 for views from all sides of one axis, and 0 where a part is not sampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.directional import HALF_ANGLE
from cloudem.backend.threads import over_slabs
from cloudem.model.poses import sphere_directions
from cloudem.model.symmetry import asymmetric_unit

Float64 = NDArray[np.float64]

POINTS = 2000
"""Directions of the shell at which sampling is counted, with those equivalent by symmetry."""

VIEWS_IN_SLICE = 64
"""A slice is so thick that, of even views, this many hold a direction: counting them then lowers the SCF by 1.6 %."""

UNSEEN = 0.5
"""What is counted where no slice is: half a view, so that a gap by chance does not make the SCF 0."""

MOST_VIEWS = 100_000
"""Of more views this many, from all over the table, are counted: at shell 200 they are 250 in a slice."""

BLOCK = 2048
"""Views that are compared with all directions at a time."""


def sampling_compensation(views: NDArray[Any], group: Float64, shell: float) -> float:
    """Return the sampling compensation factor of views, their equivalents under a point group included; 0 to 1.

    Slices are counted where they lie within half a voxel of a direction at a shell, or within more where views are few,
    up to the angle of the cones of the directional FSC.

    Parameters
    ----------
    views
        View directions in map coordinates, unit vectors (p, 3); NaN for unknown ones, which are left out.
    group
        Operators (g, 3, 3).
    shell
        |k| in voxels, at which sampling is counted.

    Returns
    -------
    NaN where no view is known.
    """
    known = np.asarray(views, np.float32)[np.isfinite(views).all(axis=1)]
    if not len(known):
        return float("nan")
    known = known[:: -(-len(known) // MOST_VIEWS)]
    lattice = sphere_directions(np.sqrt(2 * np.pi / POINTS))
    unit = lattice[asymmetric_unit(lattice, group)]
    points = np.einsum("gij,pj->gpi", group, unit).astype(np.float32)
    every = len(known) * len(group)
    half = min(max(0.5 / max(shell, 0.5), VIEWS_IN_SLICE / every), np.sin(HALF_ANGLE))

    def count(first: int, last: int) -> NDArray[np.int64]:
        cosines = points.reshape(-1, 3) @ known[first:last].T
        near = np.count_nonzero(np.abs(cosines) <= half, axis=1)
        return np.asarray(near.reshape(len(group), -1).sum(axis=0), np.int64)

    seen = np.maximum(np.sum(over_slabs(count, len(known), BLOCK), axis=0), UNSEEN)
    mean = half * len(known) * len(group)  # exactly, over the sphere: |u·d| <= h holds for the share h of it
    return float(min(1 / np.mean(mean / seen), 1.0))
