"""numba twin of :mod:`cloudem.kernels.turned_points`."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
Array = NDArray[Any]


def turned_correlations(fine: Array, points: Array, own: Array, rotations: Array, about: Array) -> Array:
    """Twin of :func:`cloudem.kernels.turned_points.turned_correlations`."""
    found = np.empty(len(rotations))
    _correlations(fine, points, own, np.ascontiguousarray(rotations, np.float64), np.asarray(about, np.float64), found)
    return found


@jit
def _correlations(fine: Any, points: Any, own: Any, rotations: Any, about: Any, found: Any) -> None:
    m, count = len(fine), len(points)
    cx, cy, cz = about
    for number in range(len(rotations)):
        r = rotations[number]
        total, square, mixed, own_total, own_square = 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(count):
            x, y, z = points[i, 0] - cx, points[i, 1] - cy, points[i, 2] - cz
            u = 2 * (r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + cx) + m // 2
            v = 2 * (r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + cy) + m // 2
            w = 2 * (r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + cz) + m // 2
            value = 0.0
            if 0 <= u <= m - 1 and 0 <= v <= m - 1 and 0 <= w <= m - 1:
                a, b, c = min(int(u), m - 2), min(int(v), m - 2), min(int(w), m - 2)
                p, q, s = u - a, v - b, w - c
                low = (1 - q) * ((1 - p) * fine[c, b, a] + p * fine[c, b, a + 1])
                low += q * ((1 - p) * fine[c, b + 1, a] + p * fine[c, b + 1, a + 1])
                high = (1 - q) * ((1 - p) * fine[c + 1, b, a] + p * fine[c + 1, b, a + 1])
                high += q * ((1 - p) * fine[c + 1, b + 1, a] + p * fine[c + 1, b + 1, a + 1])
                value = (1 - s) * low + s * high
            mine = float(own[i])
            total += value
            square += value * value
            mixed += value * mine
            own_total += mine
            own_square += mine * mine
        spread = (square - total * total / count) * (own_square - own_total * own_total / count)
        found[number] = (mixed - total * own_total / count) / math.sqrt(spread) if spread > 0 else 0.0
