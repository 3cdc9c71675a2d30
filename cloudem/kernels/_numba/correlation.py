"""numba twin of :mod:`cloudem.kernels.correlation`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")


def shell_products(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.correlation.shell_products`."""
    sums = np.zeros((a.shape[2], 3))
    _shell_products(np.ascontiguousarray(a), np.ascontiguousarray(b), sums)
    return np.ascontiguousarray(sums.T)


@jit
def _shell_products(a: Any, b: Any, sums: Any) -> None:
    box, count = a.shape[0], a.shape[2]
    for iz in range(box):
        kz = iz if iz <= box // 2 else iz - box
        for iy in range(box):
            ky = iy if iy <= box // 2 else iy - box
            rest = kz * kz + ky * ky
            for kx in range(count):
                shell = int(np.rint(np.sqrt(rest + kx * kx)))
                if shell >= count:
                    break
                mates = 1.0 if kx in (0, count - 1) else 2.0
                u, v = a[iz, iy, kx], b[iz, iy, kx]
                ur, ui, vr, vi = np.float64(u.real), np.float64(u.imag), np.float64(v.real), np.float64(v.imag)
                sums[shell, 0] += mates * (ur * vr + ui * vi)
                sums[shell, 1] += mates * (ur * ur + ui * ui)
                sums[shell, 2] += mates * (vr * vr + vi * vi)
