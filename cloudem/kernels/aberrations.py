"""Aberrations beyond defocus and Cs, as polynomials in the spatial frequency.

A phase is a sum of homogeneous polynomials, one for each degree d, with the d + 1 coefficients of ``x^(d-j) y^j`` for
j = 0 … d. Here x and y are in 1/Å, coefficients in radians Å^d. Polynomials stay polynomials when the frequency is
multiplied by the magnification matrix, so one list of coefficients says all: :func:`aberrated` adds the even degrees to
those of the CTF, :func:`odd_phase` evaluates the odd ones.

The image model is ``X(k) = exp(-2 pi i k.t) exp(i odd(M k)) E(M k) sin(chi(M k) - even(M k)) V(A^T (M k, 0))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.ctf import wavelength

Float64 = NDArray[np.float64]

ODD_DEGREES, EVEN_DEGREES = (1, 3, 5), (0, 2, 4)
"""Degrees that are applied: the odd ones as RELION has them, the even ones up to tetrafoil."""

ODD_ORDERS = tuple((m, n) for n in ODD_DEGREES for m in range(-n, n + 1, 2))
"""(m, n) of the entries of ``rlnOddZernike``, in order."""

EVEN_ORDERS = tuple((m, n) for n in EVEN_DEGREES for m in range(-n, n + 1, 2))
"""(m, n) of the entries of ``rlnEvenZernike``, in order."""

ODD_TERMS, EVEN_TERMS = sum(d + 1 for d in ODD_DEGREES), sum(d + 1 for d in EVEN_DEGREES)
"""Coefficients of an odd and of an even phase: 12 and 9, degree after degree."""


def zernike(m: int, n: int) -> dict[int, Float64]:
    """Return a Zernike polynomial, not normalised, on the circle of 1/Å, by degree.

    Parameters
    ----------
    m, n
        ``R_n^|m|(rho)`` times ``cos m phi`` for m >= 0 and ``sin |m| phi`` for m < 0; ``|m| <= n``, n - m even.

    Returns
    -------
    For each degree d, the coefficients (d + 1,) of ``x^(d-j) y^j``.
    """
    order = abs(m)
    # rho^|m| times cosine or sine is the real or the imaginary part of (x + iy)^|m|
    power = np.array([comb(order, j) * 1j**j for j in range(order + 1)])
    angular = power.real if m >= 0 else power.imag
    out = {}
    for k in range((n - order) // 2 + 1):
        factor = (-1) ** k * factorial(n - k)
        factor //= factorial(k) * factorial((n + order) // 2 - k) * factorial((n - order) // 2 - k)
        rounds = np.zeros(1 + n - 2 * k - order)  # rho^(n - 2k - |m|), a power of x² + y²
        half = (n - order) // 2 - k
        rounds[::2] = [comb(half, j) for j in range(half + 1)]
        out[n - 2 * k] = factor * np.convolve(angular, rounds)
    return out


def zernike_terms(coefficients: Sequence[float], *, odd: bool) -> Float64:
    """Return the polynomial of a list of Zernike coefficients.

    Parameters
    ----------
    coefficients
        Radians, in the order of :data:`ODD_ORDERS` or :data:`EVEN_ORDERS`; the list may be shorter, or end with zeros.
    odd
        Which of the two.

    Returns
    -------
    Shape (12,) or (9,): the coefficients of degree 1, 3, 5, or of degree 0, 2, 4.
    """
    orders, degrees = (ODD_ORDERS, ODD_DEGREES) if odd else (EVEN_ORDERS, EVEN_DEGREES)
    if any(coefficients[len(orders) :]):
        raise ValueError(f"{len(coefficients)} Zernike coefficients, of which at most {len(orders)} can be applied")
    by_degree = {d: np.zeros(d + 1) for d in degrees}
    for value, (m, n) in zip(coefficients, orders, strict=False):
        for degree, polynomial in zernike(m, n).items():
            by_degree[degree] += value * polynomial
    return np.concatenate(list(by_degree.values()))


def beam_tilt_terms(tilt: Sequence[float], spherical_aberration: float, voltage: float) -> Float64:
    """Return the odd phase of a beam tilt, (12,): ``-2 pi 10^-3 Cs lambda² k² (k . tilt)``.

    Parameters
    ----------
    tilt
        ``rlnBeamTiltX`` and ``rlnBeamTiltY``, mrad.
    spherical_aberration, voltage
        Å, kV.
    """
    out = np.zeros(ODD_TERMS)
    if not any(tilt):  # whatever else is known of the microscope, or not
        return out
    factor = -2e-3 * np.pi * spherical_aberration * float(wavelength(voltage)) ** 2
    out[2:6] = factor * np.convolve([tilt[0], tilt[1]], [1, 0, 1])
    return out


def magnified(terms: Float64, matrices: Float64, degrees: Sequence[int]) -> Float64:
    """Return polynomials in k that have the values of polynomials at ``M k``.

    Parameters
    ----------
    terms
        Shape (b, t): the coefficients of each degree, one after the other.
    matrices
        Shape (b, 2, 2).
    degrees
        Of the coefficients.
    """
    out = np.zeros(terms.shape)
    first = 0
    for degree in degrees:
        stop = first + degree + 1
        for j in range(degree + 1):
            powers = np.ones((len(terms), 1))
            for row in [0] * (degree - j) + [1] * j:
                grown = np.zeros((len(terms), powers.shape[1] + 1))
                grown[:, :-1] += powers * matrices[:, row, :1]
                grown[:, 1:] += powers * matrices[:, row, 1:]
                powers = grown
            out[:, first:stop] += terms[:, first + j, None] * powers
        first = stop
    return out


def odd_phase(kx: NDArray[Any], ky: NDArray[Any], terms: Float64, frequency_step: float) -> Float64:
    """Return odd phases on a list of Fourier pixels.

    Parameters
    ----------
    kx, ky
        Shape (p,), cycles per box.
    terms
        Shape (g, 12), degrees 1, 3, 5; radians Å^d.
    frequency_step
        1 / (n · pixel size) in 1/Å.

    Returns
    -------
    Shape (g, p), radians: images have the factor ``exp(+i phase)``, and are freed of it by ``exp(-i phase)``.
    """
    x, y = kx * frequency_step, ky * frequency_step
    powers = [x ** (d - j) * y**j for d in ODD_DEGREES for j in range(d + 1)]
    return np.asarray(terms @ np.array(powers))


def aberrated(terms: Float64, even: Float64, matrices: Float64) -> Float64:
    """Return the coefficients of a CTF with even aberrations and magnification.

    Parameters
    ----------
    terms
        Shape (b, 12), :func:`cloudem.kernels.ctf.ctf_terms`.
    even
        Shape (b, 9): the even phase, degrees 0, 2, 4; it is taken off the CTF's phase.
    matrices
        Magnification of each image, (b, 2, 2): the CTF, its envelope and the even phase are those at ``M k``.

    Returns
    -------
    Shape (b, 12), for :func:`cloudem.kernels.ctf.ctf_values` at k.
    """
    out = terms.copy()
    out[:, :9] = magnified(terms[:, :9] - even, matrices, EVEN_DEGREES)
    out[:, 9:] = magnified(terms[:, 9:], matrices, (2,))
    return out
