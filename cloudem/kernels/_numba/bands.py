"""numba twins of :mod:`cloudem.kernels.bands`."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.bands import SoftBand

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
Array = NDArray[Any]


def cut_band(spectrum: Array, band: SoftBand, size: int) -> Array:
    """Twin of :func:`cloudem.kernels.bands.cut_band`."""
    cut = np.zeros((size, size, size // 2 + 1), np.complex64)
    _cut_band(np.ascontiguousarray(spectrum), *(float(shell) for shell in band), cut)
    return cut


def add_band(spectrum: Array, part: Array, factor: float) -> None:
    """Twin of :func:`cloudem.kernels.bands.add_band`."""
    _add_band(spectrum, part, np.float32(factor))


def smoothed_correlation(product: Array, power: Array, other: Array, floor: float) -> Array:
    """Twin of :func:`cloudem.kernels.bands.smoothed_correlation`."""
    found = np.zeros(product.shape, np.float32)
    _correlation(product.ravel(), power.ravel(), other.ravel(), float(floor), found.ravel())
    return found


def on_finer_grid(coarse: Array, first: int, last: int, size: int) -> Array:
    """Twin of :func:`cloudem.kernels.bands.on_finer_grid`."""
    planes = np.empty((last - first, size, size), np.float32)
    _on_finer_grid(np.ascontiguousarray(coarse), first, planes)
    return planes


def lower_crossings(
    values: Array, before: Array, shells: tuple[float, float], threshold: float, crossed: Array
) -> None:
    """Twin of :func:`cloudem.kernels.bands.lower_crossings`."""
    _lower_crossings(values, before, float(shells[0]), float(shells[1]), np.float32(threshold), crossed)


@jit
def _cut_band(spectrum: Any, below: float, centre: float, above: float, cut: Any) -> None:
    n, size = spectrum.shape[0], cut.shape[0]
    least = below * below
    most = above * above
    rising = 1 / math.log(centre / below) if below > 0 else 0.0
    falling = 1 / math.log(above / centre) if above < np.inf else 0.0
    for iz in range(size):
        kz = iz if iz < size // 2 else iz - size
        for iy in range(size):
            ky = iy if iy < size // 2 else iy - size
            if size < n and (2 * abs(kz) == size or 2 * abs(ky) == size):
                continue
            rest = kz * kz + ky * ky
            if rest >= most:
                continue
            from_row, row = spectrum[kz % n, ky % n], cut[iz, iy]
            for kx in range(size // 2 + (size == n)):
                squared = float(rest + kx * kx)
                if squared <= least and below > 0:
                    continue
                if squared >= most:
                    break
                away = 0.5 * math.log(max(squared, 1e-18)) - math.log(centre)
                away = away * falling if away > 0 else -away * rising
                if away < 1:
                    row[kx] = from_row[kx] * np.float32(math.cos(0.5 * math.pi * away) ** 2)


@jit
def _add_band(spectrum: Any, part: Any, factor: float) -> None:
    n, m = spectrum.shape[0], part.shape[0]
    whole = n == m
    for iz in range(m):
        kz = iz if iz < m // 2 else iz - m
        for iy in range(m):
            ky = iy if iy < m // 2 else iy - m
            if not whole and (2 * kz == -m or 2 * ky == -m):
                continue
            row, other = spectrum[kz % n, ky % n], part[iz, iy]
            for kx in range(m // 2 + whole):
                row[kx] += factor * other[kx]


@jit
def _correlation(product: Any, power: Any, other: Any, floor: float, found: Any) -> None:
    for i in range(product.shape[0]):
        if power[i] > floor and other[i] > floor:
            value = product[i] / math.sqrt(np.float64(power[i]) * np.float64(other[i]))
            found[i] = min(max(value, -1.0), 1.0)


@jit
def _on_finer_grid(coarse: Any, first: int, planes: Any) -> None:
    c, size = coarse.shape[0], planes.shape[2]
    below, above, share = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32)
    for x in range(size):
        place = x * c / size
        below[x] = int(place)
        above[x] = (below[x] + 1) % c
        share[x] = place - below[x]
    plane, row = np.empty((c, c), np.float32), np.empty(c, np.float32)
    for i in range(planes.shape[0]):
        low, high, part = coarse[below[first + i]], coarse[above[first + i]], share[first + i]
        for j in range(c):
            for k in range(c):
                plane[j, k] = low[j, k] + part * (high[j, k] - low[j, k])
        for y in range(size):
            for k in range(c):
                row[k] = plane[below[y], k] + share[y] * (plane[above[y], k] - plane[below[y], k])
            for x in range(size):
                planes[i, y, x] = row[below[x]] + share[x] * (row[above[x]] - row[below[x]])


@jit
def _lower_crossings(values: Any, before: Any, low: float, high: float, threshold: float, crossed: Any) -> None:
    ratio = math.log(high / low)
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            now, last, found = values[z, y], before[z, y], crossed[z, y]
            for x in range(values.shape[2]):
                if found[x] == 0 and now[x] < threshold:
                    share = (last[x] - threshold) / max(last[x] - now[x], np.float32(1e-12))
                    found[x] = low * math.exp(ratio * min(max(share, np.float32(0)), np.float32(1)))
                last[x] = now[x]
