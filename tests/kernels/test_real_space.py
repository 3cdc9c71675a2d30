"""Passes over planes of a map."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cloudem.kernels.real_space import scale_planes, soft_outline
from tests.conftest import Twin


@pytest.mark.parametrize(("radius", "edge"), [(3.0, 2.5), (0.5, 0.0), (np.inf, 0.0), (0.0, 4.0), (-1.0, 3.0)])
def test_planes_are_scaled_and_end_softly(twin: Twin, radius: float, edge: float) -> None:
    n, first, top = 12, 3, 2
    rng = np.random.default_rng(0)
    planes, line = rng.standard_normal((5, 8, n)).astype(np.float32), rng.random(n).astype(np.float32)
    expected = np.zeros(planes.shape)
    for i, j, x in np.ndindex(planes.shape):
        away = np.sqrt((first + i - 6) ** 2 + (top + j - 6) ** 2 + (x - 6) ** 2) - radius
        ramp = 1.0 if away <= 0 else 0.0 if away >= edge else 0.5 + 0.5 * np.cos(np.pi * away / edge)
        expected[i, j, x] = planes[i, j, x] * line[first + i] * line[top + j] * line[x] * ramp
    twin(scale_planes)(planes, line, first, top, radius, edge)
    np.testing.assert_allclose(planes, expected, atol=1e-6)


@pytest.mark.parametrize("extend", [0.0, 0.7])
@pytest.mark.parametrize("coarse", [4, 6, 11, 20])
def test_outline_is_made_from_interpolated_distances(twin: Twin, coarse: int, extend: float) -> None:
    """Against SciPy's interpolation of order 1, beyond the grid the nearest voxel; 1e-5."""
    n, first, edge = 20, 4, 1.9
    distance = 3 * np.random.default_rng(coarse).random((coarse,) * 3).astype(np.float32)
    mask = np.empty((9, n, n), np.float32)
    twin(soft_outline)(distance, first, coarse / n, extend, edge, mask)
    axis = np.arange(n) * coarse / n
    points = np.meshgrid(axis[first : first + 9], axis, axis, indexing="ij")
    away = ndimage.map_coordinates(distance.astype(np.float64), points, order=1, mode="nearest")
    ramp = 0.5 + 0.5 * np.cos(np.pi * np.clip((away - extend) / edge, 0, 1))
    np.testing.assert_allclose(mask, np.where(away <= 0.5, 1, ramp), atol=1e-5)
