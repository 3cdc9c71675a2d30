"""A map at points inside a particle, compared with another map that is turned there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.backend.kernel import kernel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@kernel
def turned_correlations(fine: Float32, points: Float32, own: Float32, rotations: Float64, about: Float64) -> Float64:
    """Return the correlation of values at points with those of a map once turned, for each of some rotations.

    Parameters
    ----------
    fine
        The map that is turned, (m, m, m) float32 [z, y, x], on a grid of half the spacing of the points' unit; its
        centre is voxel m // 2. Linear between voxels, 0 outside.
    points
        (p, 3) float32, x, y, z from the centre.
    own
        Values at the points, (p,) float32.
    rotations
        (k, 3, 3): the map is read at ``R (x - c) + c``.
    about
        Their centre c, (3,).

    Returns
    -------
        (k,), 0 where the turned values are all equal.
    """
    middle, values = len(fine) // 2, own.astype(np.float64) - own.mean(dtype=np.float64)
    found = np.zeros(len(rotations))
    for number, rotation in enumerate(rotations):
        there = (points - about) @ rotation.T + about
        at = (2 * there + middle).T[::-1]
        turned = ndimage.map_coordinates(fine, at, output=np.float64, order=1, mode="constant")
        turned = turned - turned.mean()
        norm = float((turned @ turned) * (values @ values))
        found[number] = turned @ values / norm**0.5 if norm > 0 else 0.0
    return found
