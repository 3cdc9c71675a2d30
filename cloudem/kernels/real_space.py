"""Passes over the planes of a map in real space: corrections, spheres with soft edges, and outlines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float32 = NDArray[np.float32]


@kernel
def scale_planes(planes: Float32, line: Float32, first: int, first_row: int, radius: float, edge: float) -> None:
    """Multiply planes of a map, in place, by a factor along each axis and by a sphere with a soft edge.

    Parameters
    ----------
    planes
        Shape (s, r, n), float32.
    line
        The factor along an axis, (n,) float32.
    first, first_row
        Which planes and rows of the map: from these on.
    radius, edge
        Of the sphere about the voxel n // 2: 1 up to ``radius``, 0 from ``radius + edge`` on, half a cosine between;
        pixels. An infinite radius is none.
    """
    count, rows, n = planes.shape
    planes *= line[first : first + count, None, None] * line[first_row : first_row + rows, None] * line
    axis2 = (np.arange(n) - n // 2) ** 2.0
    distance = np.sqrt(axis2[first : first + count, None, None] + axis2[first_row : first_row + rows, None] + axis2)
    planes *= _raised_cosine(distance - radius, edge)


@kernel
def soft_outline(distance: Float32, first: int, scale: float, extend: float, edge: float, mask: Float32) -> None:
    """Make planes of a soft mask from the distances to a solid, which are known on a coarser grid.

    Parameters
    ----------
    distance
        Shape (c, c, c), float32, in coarse voxels, the first where the mask's first is; interpolated linearly, the
        outermost value beyond the grid.
    first
        First plane of the mask.
    scale
        Coarse voxels per voxel of the mask, at most 1.
    extend, edge
        The mask is 1 up to the distance ``extend``, at least up to half a voxel, which belongs to the solid, and falls
        to 0 over ``edge`` more; coarse voxels.
    mask
        Filled, (s, n, n) float32.
    """
    n, c = mask.shape[2], len(distance)
    place = np.minimum(np.arange(n) * scale, c - 1)
    below = np.minimum(place.astype(np.int64), c - 2)
    share = place - below
    part = slice(first, first + len(mask))
    values = _between(distance[below[part]], distance[below[part] + 1], share[part, None, None])
    values = _between(values[:, below], values[:, below + 1], share[:, None])
    values = _between(values[:, :, below], values[:, :, below + 1], share)
    mask[...] = np.where(values <= 0.5, 1, _raised_cosine(values - extend, edge))


def _between(low: NDArray[np.floating], high: NDArray[np.floating], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(low + share * (high - low), np.float64)


def _raised_cosine(distance: NDArray[np.floating], edge: float) -> NDArray[np.float64]:
    falling = 0.5 + 0.5 * np.cos(np.pi / max(edge, 1e-6) * np.clip(distance, 0, edge))
    return np.where(distance <= 0, 1.0, np.where(distance >= edge, 0.0, falling))
