"""numba twins of :mod:`cloudem.kernels.real_space`."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
Array = NDArray[Any]


def scale_planes(planes: Array, line: Array, first: int, first_row: int, radius: float, edge: float) -> None:
    """Twin of :func:`cloudem.kernels.real_space.scale_planes`."""
    _scale_planes(planes, line, first, first_row, float(radius), float(edge))


def soft_outline(distance: Array, first: int, scale: float, extend: float, edge: float, mask: Array) -> None:
    """Twin of :func:`cloudem.kernels.real_space.soft_outline`."""
    _soft_outline(distance, first, float(scale), float(extend), float(edge), mask)


@jit
def _raised_cosine(distance: float, edge: float) -> float:
    if distance <= 0:
        return 1.0
    if distance >= edge:
        return 0.0
    return 0.5 + 0.5 * math.cos(math.pi / max(edge, 1e-6) * distance)


@jit
def _scale_planes(planes: Any, line: Any, first: int, first_row: int, radius: float, edge: float) -> None:
    n = planes.shape[2]
    centre = n // 2
    inner = radius * radius if radius > 0 else -1.0
    outer = max(radius + edge, 0.0) ** 2
    for i in range(planes.shape[0]):
        for j in range(planes.shape[1]):
            z, y = first + i, first_row + j
            factor = line[z] * line[y]
            rest = (z - centre) ** 2 + (y - centre) ** 2
            row = planes[i, j]
            for x in range(n):
                squared = rest + (x - centre) ** 2
                if squared <= inner:
                    row[x] *= factor * line[x]
                elif squared >= outer:
                    row[x] = 0
                else:
                    row[x] *= factor * line[x] * np.float32(_raised_cosine(np.sqrt(squared) - radius, edge))


@jit
def _soft_outline(distance: Any, first: int, scale: float, extend: float, edge: float, mask: Any) -> None:
    n, c = mask.shape[2], distance.shape[0]
    below, share = np.empty(n, np.int64), np.empty(n, np.float32)
    for x in range(n):
        place = min(x * scale, c - 1.0)
        below[x] = min(int(place), c - 2)
        share[x] = place - below[x]
    plane, row = np.empty((c, c), np.float32), np.empty(c, np.float32)
    for i in range(mask.shape[0]):
        low, high = distance[below[first + i]], distance[below[first + i] + 1]
        for j in range(c):
            for k in range(c):
                plane[j, k] = low[j, k] + share[first + i] * (high[j, k] - low[j, k])
        for y in range(n):
            b, f = below[y], share[y]
            for k in range(c):
                row[k] = plane[b, k] + f * (plane[b + 1, k] - plane[b, k])
            out = mask[i, y]
            for x in range(n):
                k = below[x]
                away = row[k] + share[x] * (row[k + 1] - row[k])
                out[x] = 1.0 if away <= 0.5 else _raised_cosine(away - extend, edge)
