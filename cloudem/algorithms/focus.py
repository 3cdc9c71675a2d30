"""A local refinement's frame: maps and images about a pivot, from which poses are measured.

A pose (A, t) of the map V is the pose ``(A, t + (A c)_xy)`` of ``V_c(r) = V(r + c)``: turns are about the pivot c, not
about the middle of the box. c is whole pixels, and images are moved by whole pixels, so that nothing is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class FocusedPoses(NamedTuple):
    """Poses about the pivot, and where images are cut.

    Attributes
    ----------
    rotations
        (b, 3, 3), as they were.
    shifts
        Of the pivot from the middle of the cut images, (b, 2) pixels.
    corners
        The pixel of each image that becomes the middle, from its own middle, (b, 2) as x, y.
    """

    rotations: Float64
    shifts: Float64
    corners: NDArray[np.int64]


@dataclass(frozen=True)
class Focus:
    """Where a local refinement looks, and how far poses are believed to have moved there.

    Attributes
    ----------
    pivot
        Whole pixels from the middle of the box along x, y, z.
    box
        Side of the images and maps about the pivot, pixels.
    turn_variance, shift_variance
        Of the Gaussian prior about the poses of the table, for each axis: radians² and pixels²; 0 where it is to be
        found.
    """

    pivot: tuple[int, int, int]
    box: int
    turn_variance: float = 0.0
    shift_variance: float = 0.0

    def about_pivot(self, axes: Float64, shifts: Float64) -> tuple[Float64, NDArray[np.int64]]:
        """Return `FocusedPoses.shifts` and ``corners`` of poses of the map.

        Parameters
        ----------
        axes
            Rotations (b, 3, 3), with the magnification of the images
            (`cloudem.algorithms.aberrations.Aberrations.axes`).
        shifts
            Pixels, (b, 2).
        """
        moved = shifts + (axes @ np.array(self.pivot, np.float64))[:, :2]
        corners = np.rint(moved).astype(np.int64)
        return moved - corners, corners

    def undone(self, axes: Float64, shifts: Float64, corners: NDArray[np.int64]) -> Float64:
        """Return the shifts in pixels, (b, 2), of poses about the pivot as those of the map itself."""
        return np.asarray(shifts + corners - (axes @ np.array(self.pivot, np.float64))[:, :2])

    def cut(self, images: Float32, corners: NDArray[np.int64]) -> Float32:
        """Return images with other pixels in their middle, (b, m, m).

        What lies beyond an image's edge comes from its other side, so that the noise keeps its spectrum.
        """
        box, side = images.shape[-1], np.arange(self.box) - self.box // 2
        x, y = ((corners[:, axis, None] + side + box // 2) % box for axis in (0, 1))
        return np.asarray(images[np.arange(len(images))[:, None, None], y[:, :, None], x[:, None, :]])

    def map_about_pivot(self, volume: Float32) -> Float32:
        """Return ``V_c(r) = V(r + c)``, (m, m, m); zero where V has no voxels."""
        return _moved(volume, self.box, self.pivot)

    def map_undone(self, volume: Float32, box: int) -> Float32:
        """Return ``V(r) = V_c(r - c)`` in a box; zero where V_c has no voxels."""
        x, y, z = self.pivot
        return _moved(volume, box, (-x, -y, -z))


def _moved(volume: Float32, box: int, by: tuple[int, int, int]) -> Float32:
    out = np.zeros((box,) * 3, np.float32)
    source, target = [], []
    for move in by[::-1]:  # axes are z, y, x
        first = len(volume) // 2 + move - box // 2  # of the old voxels, the one that becomes the first new one
        low, high = max(first, 0), min(first + box, len(volume))
        if low >= high:
            return out
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    out[tuple(target)] = volume[tuple(source)]
    return out


def centre_of_mass(mask: Float32) -> Float64:
    """Return the centre of mass of a mask from the middle of its box, (3,) voxels as x, y, z."""
    total = float(mask.sum(dtype=np.float64))
    found = []
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        along = mask.sum(axis=others, dtype=np.float64)
        found.append(float(along @ (np.arange(len(mask)) - len(mask) // 2)) / total)
    return np.array(found)


def keeps_pivot(group: Float64, pivot: tuple[int, int, int]) -> bool:
    """Return whether all operators (g, 3, 3) leave the pivot where it is."""
    at = np.array(pivot, np.float64)
    return bool(np.abs(group @ at - at).max() < 1e-6 + 1e-9 * np.abs(at).max())


def by_shell_undone(values: Float64, box: int) -> Float64:
    """Return what is known by shell of a small box, (m // 2 + 1,), by shell of another one, (n // 2 + 1,).

    Each value stands at the shell that is nearest to its frequency; the others are NaN.
    """
    small = 2 * (len(values) - 1)
    if small == box:
        return values
    out = np.full(box // 2 + 1, np.nan)
    for shell, value in enumerate(values):
        place = round(shell * box / small)
        if np.isfinite(value) and place < len(out):
            out[place] = value
    return out
