"""numba twins of :mod:`cloudem.kernels.wiener`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
Array = NDArray[Any]


def weights_by_shell(weight: Array, padding: float, count: int, first: int, last: int) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.wiener.weights_by_shell`."""
    sums = np.zeros((2, count))
    _weights_by_shell(weight, float(padding), first, last, sums)
    return sums


def divide(data: Array, weight: Array, added: Array, padding: float, last: int, ky: Array, spectrum: Array) -> None:
    """Twin of :func:`cloudem.kernels.wiener.divide`."""
    _divide(data, weight, added, float(padding), last, ky, spectrum)


@jit
def _weights_by_shell(weight: Any, padding: float, first: int, last: int, sums: Any) -> None:
    m, count = weight.shape[2] - 2, sums.shape[1]
    for iz in range(first, last):
        for iy in range(2 * m + 1):
            rest = (iz - m) ** 2 + (iy - m) ** 2
            # neighbours share a shell: their sum stays in a register
            shell, total, number = 0, 0.0, 0
            for kx in range(m + 1):
                here = int(np.rint(np.sqrt(rest + kx * kx) / padding))
                if here != shell:
                    if number:
                        sums[0, shell] += total
                        sums[1, shell] += number
                    shell, total, number = here, 0.0, 0
                    if shell >= count:
                        break
                total += weight[iz, iy, kx + 1]
                number += 1
            if number:
                sums[0, shell] += total
                sums[1, shell] += number


@jit
def _divide(data: Any, weight: Any, added: Any, padding: float, last: int, ky: Any, spectrum: Any) -> None:
    m, size, columns = data.shape[2] - 2, spectrum.shape[0], spectrum.shape[2]
    reach, outermost = min(m, size // 2 - 1), added.shape[0] - 1
    for kz in range(-reach, reach + 1):
        iz = kz if kz >= 0 else kz + size
        for row in range(ky.shape[0]):
            rest = kz * kz + ky[row] * ky[row]
            sums, norms, out = data[kz + m, ky[row] + m], weight[kz + m, ky[row] + m], spectrum[iz, row]
            for kx in range(columns):
                shell = min(int(np.rint(np.sqrt(rest + kx * kx) / padding)), outermost)
                if shell > last:
                    break
                out[kx] = sums[kx + 1] * (np.float32(1) / (norms[kx + 1] + added[shell]))
