"""numba twins of :mod:`cloudem.kernels.thon_rings`."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
Array = NDArray[Any]


def add_power(transform: Array, radius: int, total: Array) -> None:
    """Twin of :func:`cloudem.kernels.thon_rings.add_power`."""
    _add_power(transform, radius, total)


@jit
def _add_power(transform: Any, radius: int, total: Any) -> None:
    for row in range(2 * radius + 1):
        source = (row - radius) % transform.shape[0]
        for column in range(radius + 1):
            value = transform[source, column]
            total[row, column] += value.real * value.real + value.imag * value.imag


def thon_equations(
    values: Array, weights: Array, amplitude: Array, squares: Array, angles: Array, optics: Array, parameters: Array
) -> tuple[Array, Array, float]:
    """Twin of :func:`cloudem.kernels.thon_rings.thon_equations`."""
    sums = np.zeros(15)
    _thon_equations(values, weights, amplitude, squares, angles, optics, parameters, sums)
    normal = np.empty((4, 4))
    normal[np.triu_indices(4)] = sums[:10]
    normal.T[np.triu_indices(4)] = sums[:10]
    return normal, sums[10:14], float(sums[14])


@jit
def _thon_equations(
    values: Any, weights: Any, amplitude: Any, squares: Any, angles: Any, optics: Any, parameters: Any, sums: Any
) -> None:
    lam, cs, offset = optics[0], optics[1], optics[2]
    aberration, shift = math.pi / 2 * cs * lam * lam * lam, parameters[3] + offset
    for sector in range(values.shape[1]):
        cosine, sine = angles[sector, 0], angles[sector, 1]
        defocus = parameters[0] + cosine * parameters[1] + sine * parameters[2]
        # sums of one sector: its angle is a factor of all of them
        dd, dp, pp, d, p = 0.0, 0.0, 0.0, 0.0, 0.0
        for ring in range(values.shape[0]):
            weight, height = weights[ring, sector], amplitude[ring]
            if weight == 0.0:
                continue
            square = squares[ring, sector]
            slope = math.pi * lam * square
            twice = 2 * (slope * defocus - aberration * square * square + shift)
            residual = values[ring, sector] + height * math.cos(twice)
            by_phase = 2 * height * math.sin(twice)
            by_defocus = by_phase * slope
            dd += weight * by_defocus * by_defocus
            dp += weight * by_defocus * by_phase
            pp += weight * by_phase * by_phase
            d += weight * by_defocus * residual
            p += weight * by_phase * residual
            sums[14] += weight * residual * residual
        sums[0] += dd
        sums[1] += dd * cosine
        sums[2] += dd * sine
        sums[3] += dp
        sums[4] += dd * cosine * cosine
        sums[5] += dd * cosine * sine
        sums[6] += dp * cosine
        sums[7] += dd * sine * sine
        sums[8] += dp * sine
        sums[9] += pp
        sums[10] += d
        sums[11] += d * cosine
        sums[12] += d * sine
        sums[13] += p
