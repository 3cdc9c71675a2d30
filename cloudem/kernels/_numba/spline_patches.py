"""numba twin of :mod:`cloudem.kernels.spline_patches`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")


def patch_values(coefficients: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.spline_patches.patch_values`."""
    found = np.empty((len(places), 3))
    _values(np.ascontiguousarray(coefficients), np.ascontiguousarray(places), found)
    return found


@jit
def _values(coefficients: Any, places: Any, found: Any) -> None:
    side = coefficients.shape[1]
    w, d = np.empty((2, 4)), np.empty((2, 4))
    base = np.empty(2, np.int64)
    inside = np.empty(2)
    for m in range(len(places)):
        for axis in range(2):
            at = min(max(places[m, axis], 1.0), side - 2.0)
            inside[axis] = 1.0 if at == places[m, axis] else 0.0
            base[axis] = min(int(at), side - 3)
            f = at - base[axis]
            g = 1.0 - f
            w[axis, 0], w[axis, 3] = g * g * g / 6, f * f * f / 6
            w[axis, 1] = (3 * f * f * f - 6 * f * f + 4) / 6
            w[axis, 2] = (-3 * f * f * f + 3 * f * f + 3 * f + 1) / 6
            d[axis, 0], d[axis, 3] = -g * g / 2, f * f / 2
            d[axis, 1], d[axis, 2] = (3 * f * f - 4 * f) / 2, (-3 * f * f + 2 * f + 1) / 2
        value, along_x, along_y = 0.0, 0.0, 0.0
        for j in range(4):
            row, slope = 0.0, 0.0
            for i in range(4):
                c = coefficients[m, base[1] + j - 1, base[0] + i - 1]
                row += c * w[0, i]
                slope += c * d[0, i]
            value += row * w[1, j]
            along_x += slope * w[1, j]
            along_y += row * d[1, j]
        found[m, 0], found[m, 1], found[m, 2] = value, along_x * inside[0], along_y * inside[1]
