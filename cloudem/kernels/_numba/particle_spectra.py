"""numba twin of :mod:`cloudem.kernels.particle_spectra`: along the rows of a half disc, which lie side by side.

Sums over windows are kept for each wave and put into shells at the end: waves of a row are in neighbouring shells, and
adding to those one after another would keep the loop from running in vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz"})
Array = NDArray[Any]


def compare_spectra(
    transforms: Array, views: Array, shifts: Array, groups: Array, kx: Array, ky: Array, shell: Array, products: Array,
    powers: Array,
) -> None:  # fmt: skip
    """Twin of :func:`cloudem.kernels.particle_spectra.compare_spectra`."""
    waves = np.zeros((len(powers), len(kx)), np.float32)
    values = _pairs(np.ascontiguousarray(transforms))
    _compare(values, _pairs(views), shifts, groups, _rows(kx, ky), _pairs(products), waves)
    for group in range(len(powers)):
        powers[group] += np.bincount(shell, waves[group], powers.shape[1])


def add_spectra(
    transforms: Array, shifts: Array, weights: Array, groups: Array, kx: Array, ky: Array, sums: Array
) -> None:
    """Twin of :func:`cloudem.kernels.particle_spectra.add_spectra`."""
    _add(_pairs(np.ascontiguousarray(transforms)), shifts, weights, groups, _rows(kx, ky), _pairs(sums))


def _pairs(values: Array) -> Array:
    """Return complex numbers as real and imaginary parts, a view."""
    return values.view(np.float32).reshape(*values.shape, 2)


@jit
def _rows(kx: Any, ky: Any) -> Any:
    """Return ky of each row of the half disc, its first kx, and where it begins and ends: ``(rows, 4)``."""
    rows = np.empty((ky[-1] - ky[0] + 1, 4), np.int64)
    count = 0
    for p in range(len(ky)):
        if p == 0 or ky[p] != ky[p - 1]:
            rows[count, 0], rows[count, 1], rows[count, 2] = ky[p], kx[p], p
            count += 1
        rows[count - 1, 3] = p + 1
    return rows[:count]


@jit
def _ramps(shifts: Any, reach: int) -> Any:
    """Return cosine and sine of ``2π k s`` along x and y for k = 0, 1, …, each turned from the last, ``(4, reach)``."""
    out = np.empty((4, reach), np.float32)
    for axis in range(2):
        c, s = math.cos(2 * math.pi * shifts[axis]), math.sin(2 * math.pi * shifts[axis])
        a, b = 1.0, 0.0
        for k in range(reach):
            out[2 * axis, k], out[2 * axis + 1, k] = a, b
            a, b = a * c - b * s, a * s + b * c
    return out


@jit
def _along_y(ramps: Any, ky: int) -> Any:
    """Return cosine and sine of the phase of a row."""
    s = ramps[3, abs(ky)]
    return ramps[2, abs(ky)], s if ky >= 0 else -s


@jit
def _turned(re: Any, im: Any, cx: Any, sx: Any, cy: Any, sy: Any) -> Any:
    """Return a wave times its phases along x and y."""
    q, r = cx * cy - sx * sy, cx * sy + sx * cy
    return re * q - im * r, re * r + im * q


@jit
def _compare(values: Any, views: Any, shifts: Any, groups: Any, rows: Any, products: Any, waves: Any) -> None:
    side, reach = values.shape[1], rows[:, 0].max() + 1
    for n in range(len(values)):
        ramps, group = _ramps(shifts[n], reach), groups[n]
        for number in range(len(rows)):
            ky, first = rows[number, 0], rows[number, 2]
            column, row = rows[number, 1] - first, ky if ky >= 0 else ky + side
            cy, sy = _along_y(ramps, ky)
            for p in range(first, rows[number, 3]):
                re, im = values[n, row, p + column, 0], values[n, row, p + column, 1]
                a, b = views[n, p, 0], views[n, p, 1]
                waves[group, p] += re * re + im * im
                u, v = re * a + im * b, im * a - re * b
                u, v = _turned(u, v, ramps[0, p + column], ramps[1, p + column], cy, sy)
                products[n, p, 0], products[n, p, 1] = u, v


@jit
def _add(values: Any, shifts: Any, weights: Any, groups: Any, rows: Any, sums: Any) -> None:
    side, reach = values.shape[1], rows[:, 0].max() + 1
    for n in range(len(values)):
        ramps, group = _ramps(shifts[n], reach), groups[n]
        for number in range(len(rows)):
            ky, first = rows[number, 0], rows[number, 2]
            column, row = rows[number, 1] - first, ky if ky >= 0 else ky + side
            cy, sy = _along_y(ramps, ky)
            for p in range(first, rows[number, 3]):
                re, im = values[n, row, p + column, 0], values[n, row, p + column, 1]
                u, v = _turned(re, im, ramps[0, p + column], ramps[1, p + column], cy, sy)
                sums[n, p, 0] += weights[group, p] * u
                sums[n, p, 1] += weights[group, p] * v
