"""CuPy twins of :mod:`cloudem.kernels.packed_sphere`: on the device, with the bits of the Numba twins."""

from __future__ import annotations

import functools
from typing import Any

import cupy
import numpy as np

from cloudem.kernels._cupy.launch import blocks, device, launch

Array = Any
"""A CuPy array, or a NumPy one that will be brought to the device."""

WARP = 32


def pack_sphere(
    data: Array, weight: Array, permutations: Array, squared_radius: int, count: int
) -> tuple[Array, Array]:
    """Twin of :func:`cloudem.kernels.packed_sphere.pack_sphere`; the line stays on the device."""
    m, weighed = int(data.shape[2]) - 2, weight.size > 0
    values, weights = cupy.empty(count, np.complex64), cupy.empty(count if weighed else 0, np.float32)
    sums = device(data, np.complex64), device(weight, np.float32)
    launch("packed_sphere", "fold", _rows(m), *sums, weighed, *_where(permutations, m, squared_radius), values, weights)
    return values, weights


def unpack_sphere(
    values: Array, weights: Array, permutations: Array, squared_radius: int, m: int
) -> tuple[Array, Array]:
    """Twin of :func:`cloudem.kernels.packed_sphere.unpack_sphere`; the half-volumes stay on the device."""
    weighed, shape = weights.size > 0, (2 * m + 1, 2 * m + 1, m + 2)
    data, weight = cupy.zeros(shape, np.complex64), cupy.zeros(shape if weighed else (0, 0, 0), np.float32)
    line = device(values, np.complex64), device(weights, np.float32)
    launch("packed_sphere", "unfold", _rows(m), *line, weighed, *_where(permutations, m, squared_radius), data, weight)
    return data, weight


def _rows(m: int) -> tuple[int, int]:
    """Return the grid that gives each row of a half-volume a warp."""
    return blocks(2 * m + 1, WARP * (2 * m + 1))


def _where(permutations: Array, m: int, squared_radius: int) -> tuple[Array, int, int, int, Array]:
    """Return what says which voxels are kept, and where those of each row begin in the line."""
    own = np.ascontiguousarray(permutations, np.int64)
    operators = device(own, np.int32)
    return operators, len(own), m, squared_radius, _starts(own.tobytes(), m, squared_radius)


@functools.lru_cache(maxsize=4)
def _starts(permutations: bytes, m: int, squared_radius: int) -> Array:
    """Return how many independent voxels lie before each row, (2 m + 1)², on the device: the same for all tasks."""
    operators = device(np.frombuffer(permutations, np.int64).reshape(-1, 3, 3), np.int32)
    counts = cupy.empty((2 * m + 1) ** 2, np.int64)
    launch("packed_sphere", "count_rows", _rows(m), operators, len(operators), m, squared_radius, counts)
    return cupy.cumsum(counts) - counts
