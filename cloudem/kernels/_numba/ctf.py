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
        one, a, b, c = terms[i, 0] * turn, terms[i, 1] * turn, terms[i, 2] * turn, terms[i, 3] * turn
        d, e, f, g, h = (
            terms[i, 4] * turn, terms[i, 5] * turn, terms[i, 6] * turn, terms[i, 7] * turn, terms[i, 8] * turn,
        )  # fmt: skip
        for j in range(x.shape[0]):
            xx, xy, yy = x[j] * x[j], x[j] * y[j], y[j] * y[j]
            # whole turns are taken off in double precision: the phase reaches hundreds of radians
            phase = one + xx * (a + d * xx + e * xy + f * yy) + xy * (b + g * yy) + yy * (c + h * yy)
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
        p, q, r = terms[i, 9] / 4, terms[i, 10] / 4, terms[i, 11] / 4
        if p != 0 or q != 0 or r != 0:
            for j in range(x.shape[0]):
                out[i, j] *= np.float32(np.exp(-(p * x[j] * x[j] + q * x[j] * y[j] + r * y[j] * y[j])))
