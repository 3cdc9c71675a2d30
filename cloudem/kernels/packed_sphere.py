"""The independent voxels of a padded half-volume inside a sphere, as one line: what is sent, and nothing twice.

A voxel repeats another where a rotation that permutes the axes is part of the symmetry, and where it is a Friedel mate.
Of each such orbit one voxel is kept, the one that comes first in the order of kz, ky, kx; those of all orbits in that
order make the line. Its consecutive pieces are the bricks of the volume.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Int = NDArray[np.int64]


@kernel
def count_packed(permutations: Int, m: int, squared_radius: int) -> int:
    """Return the number of independent voxels.

    Parameters
    ----------
    permutations
        The rotations of the point group that permute the axes, (p, 3, 3), of -1, 0 and 1; the identity alone for none.
    m
        Of the half-volume (see :mod:`cloudem.kernels.slices`).
    squared_radius
        Of the sphere, voxels².
    """
    return int(np.count_nonzero(_independent(permutations, m, squared_radius)[1]))


@kernel
def pack_sphere(
    data: NDArray[np.complex64], weight: NDArray[np.float32], permutations: Int, squared_radius: int, count: int
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Return an accumulator summed over the permutations, one value for each independent voxel.

    Parameters
    ----------
    data, weight
        Half-volumes with their Friedel mates added (:func:`cloudem.kernels.slices.complete_friedel`),
        (2 m + 1, 2 m + 1, m + 2); an empty weight where there is none, which gives an empty line.
    permutations, squared_radius
        As in :func:`count_packed`.
    count
        What that returns.
    """
    m = data.shape[2] - 2
    points, first = _independent(permutations, m, squared_radius)
    values, weights = np.zeros(count, np.complex64), np.zeros(count if weight.size else 0, np.float32)
    for permutation in permutations:
        x, y, z = (points[first] @ permutation.T).T
        mate = x < 0
        x, y, z = (np.where(mate, -axis, axis) for axis in (x, y, z))
        found = data[z + m, y + m, x + 1]
        values += np.where(mate, found.conj(), found)
        if weight.size:
            weights += weight[z + m, y + m, x + 1]
    return values, weights


@kernel
def unpack_sphere(
    values: NDArray[np.complex64], weights: NDArray[np.float32], permutations: Int, squared_radius: int, m: int
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Return the half-volumes, symmetric by the permutations and with all Friedel mates, that a line stands for.

    The second one is empty where the line has no weights.
    """
    points, first = _independent(permutations, m, squared_radius)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    data, weight = np.zeros(shape, np.complex64), np.zeros(shape if weights.size else (0, 0, 0), np.float32)
    for permutation in permutations:
        turned = points[first] @ permutation.T
        for sign in (1, -1):
            x, y, z = (sign * turned).T
            here = x >= -1
            place = (z[here] + m, y[here] + m, x[here] + 1)
            data[place] = values[here] if sign == 1 else values[here].conj()
            if weights.size:
                weight[place] = weights[here]
    return data, weight


def _independent(permutations: Int, m: int, squared_radius: int) -> tuple[Int, NDArray[np.bool_]]:
    """Return all points (x, y, z) of the half-ball, in the order of kz, ky, kx, and which are the first of an orbit."""
    rows = np.arange(-m, m + 1)
    z, y, x = (axis.ravel() for axis in np.meshgrid(rows, rows, np.arange(m + 1), indexing="ij"))
    points = np.stack([x, y, z], axis=1)[x * x + y * y + z * z <= squared_radius]
    own = _code(points, m)
    first = _code(_upper(points), m) == own
    for permutation in permutations:
        first &= own <= _code(_upper(points @ permutation.T), m)
    return points, first


def _upper(points: Int) -> Int:
    """Return of each point and its Friedel mate the one with kx > 0, or else ky > 0, or else kz >= 0."""
    x, y, z = points.T
    lower = (x < 0) | ((x == 0) & ((y < 0) | ((y == 0) & (z < 0))))
    return np.asarray(np.where(lower[:, None], -points, points), np.int64)


def _code(points: Int, m: int) -> Int:
    x, y, z = points.T
    return np.asarray(((z + m) * (2 * m + 1) + y + m) * (m + 1) + x)
