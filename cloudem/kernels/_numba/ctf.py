"""numba twin of :mod:`cloudem.kernels.ctf`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def ctf_values(
    kx: NDArray[Any], ky: NDArray[Any], terms: NDArray[np.float64], frequency_step: float
) -> NDArray[np.float32]:
    """Twin of :func:`cloudem.kernels.ctf.ctf_values`."""
    out = np.empty((len(terms), len(kx)), np.float32)
    _ctf_values(kx * frequency_step, ky * frequency_step, terms, out)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz"})
def _ctf_values(x: Any, y: Any, terms: Any, out: Any) -> None:
    turn = 1 / (2 * np.pi)
    for i in range(terms.shape[0]):
        a, b, c, d, e, envelope = terms[i]
        a, b, c, d, e = a * turn, b * turn, c * turn, d * turn, e * turn
        for j in range(x.shape[0]):
            xx, yy = x[j] * x[j], y[j] * y[j]
            k2 = xx + yy
            # whole turns are taken off in double precision: the phase reaches hundreds of radians
            phase = a * xx + 2 * b * x[j] * y[j] + c * yy + d * k2 * k2 + e
            phase -= np.rint(phase)
            # sin(2 pi p) for |p| <= 1/2: fold to |p| <= 1/4, then a polynomial that the compiler can vectorise
            if phase > 0.25:
                phase = 0.5 - phase
            elif phase < -0.25:
                phase = -0.5 - phase
            t = np.float32(2 * np.pi * phase)
            u = t * t
            sine = t * (
                np.float32(0.9999999995)
                + u
                * (
                    np.float32(-0.1666666580)
                    + u * (np.float32(0.0083332963) + u * (np.float32(-0.0001983405) + u * np.float32(2.7161e-6)))
                )
            )
            out[i, j] = sine
        if envelope != 0:
            for j in range(x.shape[0]):
                out[i, j] *= np.float32(np.exp(-envelope / 4 * (x[j] * x[j] + y[j] * y[j])))
