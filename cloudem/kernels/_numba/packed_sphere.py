"""Twins of :mod:`cloudem.kernels.packed_sphere`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudem.backend.threads import over_slabs

Array = NDArray[Any]
jit = njit(nogil=True, cache=True, error_model="numpy")

SLAB = 8
"""Planes that a thread takes at a time."""


def count_packed(permutations: Array, m: int, squared_radius: int) -> int:
    """Twin of :func:`cloudem.kernels.packed_sphere.count_packed`."""
    return int(_starts(permutations, m, squared_radius)[-1])


def pack_sphere(
    data: Array, weight: Array, permutations: Array, squared_radius: int, count: int
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Twin of :func:`cloudem.kernels.packed_sphere.pack_sphere`."""
    values, weights = np.empty(count, np.complex64), np.empty(count if weight.size else 0, np.float32)
    m = data.shape[2] - 2
    starts = _starts(permutations, m, squared_radius)

    def fold(first: int, last: int) -> None:
        part = slice(starts[first], starts[last])
        _fold(data, weight, permutations, squared_radius, first - m, last - m, values[part], weights[part])

    over_slabs(fold, 2 * m + 1, SLAB)
    return values, weights


def unpack_sphere(
    values: Array, weights: Array, permutations: Array, squared_radius: int, m: int
) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Twin of :func:`cloudem.kernels.packed_sphere.unpack_sphere`."""
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    data, weight = np.zeros(shape, np.complex64), np.zeros(shape if weights.size else (0, 0, 0), np.float32)
    starts = _starts(permutations, m, squared_radius)

    def unfold(first: int, last: int) -> None:
        part = slice(starts[first], starts[last])
        _unfold(values[part], weights[part], permutations, squared_radius, first - m, last - m, data, weight)

    over_slabs(unfold, 2 * m + 1, SLAB)
    return data, weight


def _starts(permutations: Array, m: int, squared_radius: int) -> NDArray[np.int64]:
    """Return how many independent voxels lie before each plane, (2 m + 2,)."""
    return _cached_starts(permutations.tobytes(), m, squared_radius)


@functools.lru_cache(maxsize=64)
def _cached_starts(permutations: bytes, m: int, squared_radius: int) -> NDArray[np.int64]:
    counts = np.zeros(2 * m + 1, np.int64)
    operators = np.frombuffer(permutations, np.int64).reshape(-1, 3, 3)
    over_slabs(
        lambda first, last: _count(operators, m, squared_radius, first - m, counts[first:last]), len(counts), SLAB
    )
    return np.concatenate([[0], np.cumsum(counts)])


@jit
def _turned(p: Any, x: int, y: int, z: int) -> tuple[int, int, int]:
    return (
        p[0, 0] * x + p[0, 1] * y + p[0, 2] * z,
        p[1, 0] * x + p[1, 1] * y + p[1, 2] * z,
        p[2, 0] * x + p[2, 1] * y + p[2, 2] * z,
    )


@jit
def _comes_first(permutations: Any, m: int, x: int, y: int, z: int) -> bool:
    """Say whether a point with kx >= 0 is the first of its orbit."""
    if x == 0 and (y < 0 or (y == 0 and z < 0)):
        return False
    own = ((z + m) * (2 * m + 1) + y + m) * (m + 1) + x
    for i in range(1, permutations.shape[0]):  # the first is the identity
        u, v, w = _turned(permutations[i], x, y, z)
        if u < 0 or (u == 0 and (v < 0 or (v == 0 and w < 0))):
            u, v, w = -u, -v, -w
        if ((w + m) * (2 * m + 1) + v + m) * (m + 1) + u < own:
            return False
    return True


@jit
def _reach(squared_radius: int, m: int, y: int, z: int) -> int:
    """Return the last kx inside the sphere in a row; -1 for none."""
    left = squared_radius - y * y - z * z
    if left < 0:
        return -1
    return min(m, int(np.sqrt(left)))


@jit
def _count(permutations: Any, m: int, squared_radius: int, first: int, counts: Any) -> None:
    for plane in range(counts.shape[0]):
        z = first + plane
        for y in range(-m, m + 1):
            end = _reach(squared_radius, m, y, z) + 1
            alone = end if permutations.shape[0] > 1 else min(end, 1)  # from there on all come first
            counts[plane] += end - alone
            for x in range(alone):
                counts[plane] += _comes_first(permutations, m, x, y, z)


@jit
def _fold(
    data: Any, weight: Any, permutations: Any, squared_radius: int, first: int, last: int, values: Any, weights: Any
) -> None:
    m, weighed = data.shape[2] - 2, weight.size > 0
    count = 0
    for z in range(first, last):
        for y in range(-m, m + 1):
            for x in range(_reach(squared_radius, m, y, z) + 1):
                if not _comes_first(permutations, m, x, y, z):
                    continue
                total, norm = data[z + m, y + m, x + 1], np.float32(0)
                if weighed:
                    norm = weight[z + m, y + m, x + 1]
                for i in range(1, permutations.shape[0]):
                    u, v, w = _turned(permutations[i], x, y, z)
                    if u < 0:
                        total += np.conj(data[m - w, m - v, 1 - u])
                    else:
                        total += data[w + m, v + m, u + 1]
                    if weighed and u < 0:
                        norm += weight[m - w, m - v, 1 - u]
                    elif weighed:
                        norm += weight[w + m, v + m, u + 1]
                values[count] = total
                if weighed:
                    weights[count] = norm
                count += 1


@jit
def _unfold(
    values: Any, weights: Any, permutations: Any, squared_radius: int, first: int, last: int, data: Any, weight: Any
) -> None:
    m, weighed = data.shape[2] - 2, weights.size > 0
    count = 0
    for z in range(first, last):
        for y in range(-m, m + 1):
            for x in range(_reach(squared_radius, m, y, z) + 1):
                if not _comes_first(permutations, m, x, y, z):
                    continue
                value, norm = values[count], np.float32(0)
                if weighed:
                    norm = weights[count]
                count += 1
                for i in range(permutations.shape[0]):
                    u, v, w = _turned(permutations[i], x, y, z)
                    if u >= -1:
                        data[w + m, v + m, u + 1] = value
                    if u <= 1:
                        data[m - w, m - v, 1 - u] = np.conj(value)
                    if weighed and u >= -1:
                        weight[w + m, v + m, u + 1] = norm
                    if weighed and u <= 1:
                        weight[m - w, m - v, 1 - u] = norm
