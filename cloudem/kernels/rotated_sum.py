"""Sums over rotations that do not permute the axes: an accumulator turned by each, and interpolated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.backend.threads import over_slabs
from cloudem.kernels.pruned import (
    frequencies,
    mixed_to_planes,
    mixed_to_spectrum,
    planes_to_mixed,
    rows_within,
    slab_of,
    spectrum_to_mixed,
)
from cloudem.kernels.real_space import scale_planes
from cloudem.kernels.slices import extract, fast_even, gridding

Complex64 = NDArray[np.complex64]
Float64 = NDArray[np.float64]

SLAB = 4
"""Planes that a thread takes at a time."""

REACH, REACH_EDGE = 0.4, 0.1
"""Radius of what is turned, in boxes of the accumulator, and its soft edge: what lies farther out than half the box
would fold back inside."""


ON_VOXEL = 1e-9
"""A point closer to a voxel than this is on it."""


def rotated_sum(volume: Complex64, turns: Float64) -> Complex64:
    """Return the sum over rotations g of an accumulator at ``g k``; zero beyond m - 2.

    The accumulator is freed of its window and interpolated with it again, as if the slices had been inserted there;
    trilinear interpolation would weaken a map away from its centre, by a tenth at a quarter of the box.

    Parameters
    ----------
    volume
        Half-volume with all mates, (2 m + 1, 2 m + 1, m + 2), in the layout of :mod:`cloudem.kernels.slices`.
    turns
        Rotations (t, 3, 3).
    """
    smooth, total = _freed(volume), np.zeros_like(volume)
    over_slabs(lambda first, last: add_rotated(smooth, turns, first, last, total), len(volume), SLAB)
    return total


def _freed(volume: Complex64) -> Complex64:
    """Return an accumulator whose map is divided by the window's transform, and ends softly."""
    m = volume.shape[2] - 2
    size = fast_even(2 * m + 2)
    rows, columns = rows_within(m, size)
    ky, line = frequencies(rows), (1 / gridding(size, size)).astype(np.float32)
    mixed = np.empty((size, rows, columns), np.complex64)
    around = ky % size

    def backward(first: int, last: int) -> None:
        spectrum = np.zeros((size, last - first, columns), np.complex64)
        spectrum[around] = volume[(ky + m)[:, None], ky[first:last] + m, 1:]
        mixed[:, first:last] = spectrum_to_mixed(spectrum, -(size // 2), size)

    def in_plane(first: int, last: int) -> None:
        off = min(abs(z - size // 2) for z in range(first, last))
        half = min(int(np.sqrt(max(((REACH + REACH_EDGE) * size) ** 2 - off**2, 0.0))), size // 2 - 1)
        planes = mixed_to_planes(mixed[first:last], -(size // 2), -half, size, 2 * half + 1, size)
        scale_planes(planes, line, first, size // 2 - half, REACH * size, REACH_EDGE * size)
        mixed[first:last] = planes_to_mixed(planes, -(size // 2), -half, size, rows, columns)

    smooth = np.empty_like(volume)

    def forward(first: int, last: int) -> None:
        spectrum = mixed_to_spectrum(mixed[:, first:last], -(size // 2), size)
        smooth[(ky + m)[:, None], ky[first:last] + m, 1:] = spectrum[around]

    over_slabs(backward, rows, slab_of(size, columns))
    over_slabs(in_plane, size, slab_of(size, columns))
    over_slabs(forward, rows, slab_of(size, columns))
    smooth[:, :, 0] = smooth[::-1, ::-1, 2].conj()
    return smooth


@kernel
def add_rotated(volume: Complex64, turns: Float64, first: int, last: int, total: Complex64) -> None:
    """Add the interpolated values of a half-volume at ``g k`` for each rotation g, in place.

    Parameters
    ----------
    volume
        Half-volume (2 m + 1, 2 m + 1, m + 2), complex64, in the layout of :mod:`cloudem.kernels.slices`.
    turns
        Rotations g, (t, 3, 3).
    first, last
        Planes kz of the array that are added to.
    total
        Of the shape of ``volume``; voxels beyond m - 2, and its column kx = -1, are left alone.
    """
    m = volume.shape[2] - 2
    z, y, x = np.meshgrid(np.arange(first, last) - m, np.arange(-m, m + 1), np.arange(m + 1), indexing="ij")
    inside = x * x + y * y + z * z <= (m - 2) ** 2
    points = np.stack([x[inside], y[inside], z[inside]], axis=-1)
    # a point is the frequency kx = 1 of a pose whose first row points there
    one, zero, poses = np.ones(1, np.int32), np.zeros(1, np.int32), np.zeros((len(points), 3, 3))
    for turn in turns:
        # rotations map many points on voxels: rounding must not decide from which side a window is read
        turned = points @ turn.T
        nearest = np.rint(turned)
        poses[:, 0] = np.where(np.abs(turned - nearest) < ON_VOXEL, nearest, turned)
        total[first:last, :, 1:][inside] += extract.reference(volume, poses, one, zero, 1.0)[:, 0]
