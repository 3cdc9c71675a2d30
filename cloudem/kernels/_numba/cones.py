"""numba twin of :mod:`cloudem.kernels.cones`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")


def cone_products(
    a: NDArray[Any],
    b: NDArray[Any],
    ky: NDArray[np.int64],
    directions: NDArray[np.float64],
    cosine: float,
    last: int,
) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.cones.cone_products`."""
    sums = np.zeros((last + 1, len(directions), 3))
    x, y, z = (np.ascontiguousarray(axis, np.float64) for axis in np.transpose(directions))
    _cone_products(np.ascontiguousarray(a), np.ascontiguousarray(b), ky, x, y, z, float(cosine), sums)
    return np.ascontiguousarray(sums.transpose(2, 1, 0))


@jit
def _cone_products(a: Any, b: Any, rows: Any, x: Any, y: Any, z: Any, cosine: float, sums: Any) -> None:
    box, count = a.shape[0], x.shape[0]
    aside, least = np.empty(count), np.empty(count)
    for iz in range(box):
        kz = iz if iz < box // 2 else iz - box
        for row in range(rows.shape[0]):
            ky = rows[row] % box
            ky = ky if ky < box // 2 else ky - box
            rest = kz * kz + ky * ky
            for d in range(count):
                aside[d] = ky * y[d] + kz * z[d]
            for kx in range(a.shape[2]):
                length = np.sqrt(np.float64(rest + kx * kx))
                shell = int(np.rint(length))
                if shell >= sums.shape[0]:
                    break
                mates = 1.0 if kx in (0, box // 2) else 2.0
                u, v = a[iz, row, kx], b[iz, row, kx]
                ur, ui, vr, vi = np.float64(u.real), np.float64(u.imag), np.float64(v.real), np.float64(v.imag)
                cross, one, other = (
                    mates * (ur * vr + ui * vi),
                    mates * (ur * ur + ui * ui),
                    mates * (vr * vr + vi * vi),
                )
                bound, here = cosine * length, sums[shell]
                for d in range(count):  # apart from what branches, so that it is done by vectors
                    least[d] = abs(aside[d] + kx * x[d]) - bound
                for d in range(count):
                    if least[d] >= 0:
                        here[d, 0] += cross
                        here[d, 1] += one
                        here[d, 2] += other
