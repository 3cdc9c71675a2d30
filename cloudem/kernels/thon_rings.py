"""Thon rings: the power of transformed tiles, and how far a CTF is from explaining it.

The logarithm of an image's power, less its smooth background, is ``-a(s) cos(2 phase(s, angle))`` where its CTF is
``sin(phase)``: ``sin² = (1 - cos 2 phase) / 2``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float64 = NDArray[np.float64]


@kernel
def add_power(transform: NDArray[np.complex64], radius: int, total: Float64) -> None:
    """Add the power of a tile to a sum.

    Parameters
    ----------
    transform
        (n, columns) complex64, rows in the order of `numpy.fft.fftfreq`, columns kx = 0, 1, …: at least ``radius + 1``.
    radius
        Highest frequency that is kept, cycles per tile; less than n / 2.
    total
        (2 radius + 1, radius + 1) float64, rows ky = -radius … radius; what is added to.
    """
    rows = np.arange(-radius, radius + 1) % len(transform)
    kept = transform[rows, : radius + 1].astype(np.complex128)
    total += kept.real**2 + kept.imag**2


@kernel
def thon_equations(
    values: Float64,
    weights: Float64,
    amplitude: Float64,
    squares: Float64,
    angles: Float64,
    optics: Float64,
    parameters: Float64,
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Return the normal equations of a fit of Thon rings to polar values, linearised around parameters.

    The model is ``m = -amplitude cos(2 phase)``, ``phase = pi lambda D s² - pi/2 Cs lambda³ s⁴ + p + asin(w)`` with
    the defocus ``D = parameters[0] + parameters[1] cos 2θ + parameters[2] sin 2θ``, and ``p = parameters[3]``.

    Parameters
    ----------
    values, weights
        (r, k) by ring and sector; what is fitted, and its inverse variance.
    amplitude
        (r,) of each ring; may be negative behind a node.
    squares
        (r, k) mean s² of each bin in 1/Å².
    angles
        (k, 2) cos 2θ and sin 2θ of each sector.
    optics
        (3,) wavelength in Å, spherical aberration in Å, asin of the amplitude contrast.
    parameters
        (4,) mean defocus and two components of the astigmatism in Å, phase shift in radians.

    Returns
    -------
    normal, gradient, cost
        JᵀWJ (4, 4), JᵀW(values - m) (4,), and Σ W (values - m)².
    """
    lam, cs, offset = optics
    defocus = parameters[0] + angles @ parameters[1:3]
    slope = np.pi * lam * squares
    phase = slope * defocus - np.pi / 2 * cs * lam**3 * squares**2 + parameters[3] + offset
    residual = values + amplitude[:, None] * np.cos(2 * phase)
    by_phase = 2 * amplitude[:, None] * np.sin(2 * phase)
    by_defocus = by_phase * slope
    jacobian = np.stack([by_defocus, by_defocus * angles[:, 0], by_defocus * angles[:, 1], by_phase])
    weighted = jacobian * weights
    normal = np.einsum("irk,jrk->ij", weighted, jacobian)
    return normal, np.einsum("irk,rk->i", weighted, residual), float((weights * residual**2).sum())
