"""numba twin of :mod:`cloudem.kernels.particle_spectra`."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
Array = NDArray[Any]


def compare_spectra(
    transforms: Array, views: Array, shifts: Array, groups: Array, kx: Array, ky: Array, shell: Array, products: Array,
    powers: Array,
) -> None:  # fmt: skip
    """Twin of :func:`cloudem.kernels.particle_spectra.compare_spectra`."""
    side, half = transforms.shape[1:]
    flat = np.ascontiguousarray(transforms).view(np.float32).reshape(len(transforms), -1, 2)
    _compare(flat, side, half, _pairs(views), shifts, groups, kx, ky, shell, _pairs(products), powers)


def add_spectra(
    transforms: Array, shifts: Array, weights: Array, groups: Array, kx: Array, ky: Array, sums: Array
) -> None:
    """Twin of :func:`cloudem.kernels.particle_spectra.add_spectra`."""
    side, half = transforms.shape[1:]
    flat = np.ascontiguousarray(transforms).view(np.float32).reshape(len(transforms), -1, 2)
    _add(flat, side, half, shifts, weights, groups, kx, ky, _pairs(sums))


def _pairs(values: Array) -> Array:
    """Return complex numbers as real and imaginary parts, a view."""
    return values.view(np.float32).reshape(*values.shape, 2)


@jit
def _phases(shift: float, reach: int, out: Any) -> None:
    """Write cosine and sine of ``2π k s`` for k from -reach to reach."""
    for k in range(-reach, reach + 1):
        out[k + reach, 0] = math.cos(2 * math.pi * k * shift)
        out[k + reach, 1] = math.sin(2 * math.pi * k * shift)


@jit
def _compare(
    flat: Any,
    side: int,
    half: int,
    views: Any,
    shifts: Any,
    groups: Any,
    kx: Any,
    ky: Any,
    shell: Any,
    products: Any,
    powers: Any,
) -> None:
    reach = kx.max()
    x, y = np.empty((2 * reach + 1, 2), np.float32), np.empty((2 * reach + 1, 2), np.float32)
    for n in range(len(flat)):
        _phases(shifts[n, 0], reach, x)
        _phases(shifts[n, 1], reach, y)
        group = groups[n]
        for p in range(len(kx)):
            at = (ky[p] if ky[p] >= 0 else ky[p] + side) * half + kx[p]
            re, im = flat[n, at, 0], flat[n, at, 1]
            powers[group, shell[p]] += np.float64(re) * re + np.float64(im) * im
            a, b = views[n, p, 0], views[n, p, 1]
            u, v = re * a + im * b, im * a - re * b
            c, s = x[kx[p] + reach, 0], x[kx[p] + reach, 1]
            d, t = y[ky[p] + reach, 0], y[ky[p] + reach, 1]
            q, r = c * d - s * t, c * t + s * d
            products[n, p, 0] = u * q - v * r
            products[n, p, 1] = u * r + v * q


@jit
def _add(flat: Any, side: int, half: int, shifts: Any, weights: Any, groups: Any, kx: Any, ky: Any, sums: Any) -> None:
    reach = kx.max()
    x, y = np.empty((2 * reach + 1, 2), np.float32), np.empty((2 * reach + 1, 2), np.float32)
    for n in range(len(flat)):
        _phases(shifts[n, 0], reach, x)
        _phases(shifts[n, 1], reach, y)
        group = groups[n]
        for p in range(len(kx)):
            at = (ky[p] if ky[p] >= 0 else ky[p] + side) * half + kx[p]
            re, im = flat[n, at, 0], flat[n, at, 1]
            c, s = x[kx[p] + reach, 0], x[kx[p] + reach, 1]
            d, t = y[ky[p] + reach, 0], y[ky[p] + reach, 1]
            q, r = c * d - s * t, c * t + s * d
            w = weights[group, p]
            sums[n, p, 0] += w * (re * q - im * r)
            sums[n, p, 1] += w * (re * r + im * q)
