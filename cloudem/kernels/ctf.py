"""The contrast transfer function."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudem.backend.kernel import kernel

Float = NDArray[np.floating[Any]]


def wavelength(voltage: ArrayLike) -> NDArray[np.float64]:
    """Return the relativistic electron wavelength in Å for a voltage in kV.

    Source: ``lambda = h / sqrt(2 m e U (1 + e U / (2 m c^2)))`` with CODATA constants, as 12.2643247 / sqrt(U (1 +
    0.978466e-6 U)) for U in volts, the digits that RELION uses.
    """
    volts = 1e3 * np.asarray(voltage, np.float64)
    return np.asarray(12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts)))


@kernel
def ctf_values(
    kx: NDArray[Any], ky: NDArray[Any], terms: NDArray[np.float64], frequency_step: float
) -> NDArray[np.float32]:
    """Evaluate the CTF from its phase polynomial.

    Parameters
    ----------
    kx, ky
        Shape (p,), cycles per box.
    terms
        Shape (b, 6), float64: coefficients of the phase ``a kx² + 2 b kx ky + c ky² + d k⁴ + e`` with k in 1/Å, and
        the envelope's B-factor in Å²: (a, b, c, d, e, B).
    frequency_step
        1 / (n · pixel_size) in 1/Å.

    Returns
    -------
    Shape (b, p), float32: ``exp(-B k² / 4) sin(phase)``.
    """
    x, y = kx * frequency_step, ky * frequency_step
    xx, xy, yy = x * x, 2 * x * y, y * y
    k2 = xx + yy
    a, b, c, d, e, envelope = (terms[:, j, None] for j in range(6))
    phase = a * xx + b * xy + c * yy + d * k2 * k2 + e
    values = np.exp(-envelope / 4 * k2) * np.sin(phase)
    return values.astype(np.float32)


def ctf_terms(
    *,
    voltage: ArrayLike,
    spherical_aberration: ArrayLike,
    amplitude_contrast: ArrayLike,
    defocus_u: Float,
    defocus_v: Float,
    defocus_angle: Float,
    phase_shift: ArrayLike = 0.0,
    b_factor: ArrayLike = 0.0,
) -> NDArray[np.float64]:
    """Return the coefficients that :func:`ctf_values` reads, (b, 6).

    Source: Rohou & Grigorieff 2015, 10.1016/j.jsb.2015.08.008, with the signs of :mod:`cloudem.conventions` (positive
    defocus is underfocus, bright protein, ``C(0) = sin(asin(w) + phase_shift)`` is positive).

    Parameters
    ----------
    voltage, spherical_aberration, amplitude_contrast
        kV, Å, fraction; scalars or (b,).
    defocus_u, defocus_v, defocus_angle
        Shape (b,): Å, Å, radians from the x axis to the direction of ``defocus_u``.
    phase_shift, b_factor
        Radians, Å²; scalars or (b,).

    Notes
    -----
    Beam tilt and higher aberrations are left out: they are carried, not applied.
    """
    u, v, angle = (np.asarray(value, np.float64) for value in (defocus_u, defocus_v, defocus_angle))
    lam = wavelength(voltage)
    mean, difference = (u + v) / 2, (u - v) / 2
    terms = np.empty((len(u), 6))
    terms[:, 0] = np.pi * lam * (mean + difference * np.cos(2 * angle))
    terms[:, 1] = np.pi * lam * difference * np.sin(2 * angle)
    terms[:, 2] = np.pi * lam * (mean - difference * np.cos(2 * angle))
    terms[:, 3] = -np.pi / 2 * np.asarray(spherical_aberration) * lam**3
    terms[:, 4] = np.asarray(phase_shift) + np.arcsin(amplitude_contrast)
    terms[:, 5] = b_factor
    return terms


def ctf(
    kx: NDArray[Any], ky: NDArray[Any], pixel_size: float, box: int, *, scale: ArrayLike = 1.0, **optics: Any
) -> NDArray[np.float32]:
    """Return the CTF of each image on a list of Fourier pixels.

    Parameters
    ----------
    kx, ky
        Shape (p,), cycles per box.
    pixel_size, box
        Å, and pixels along an edge.
    scale
        Factor, scalar or (b,).
    **optics
        The parameters of :func:`ctf_terms`.

    Returns
    -------
    Shape (b, p), float32.
    """
    values = ctf_values(kx, ky, ctf_terms(**optics), 1 / (box * pixel_size))
    if np.ndim(scale) or scale != 1:
        values *= np.asarray(scale, np.float32).reshape(-1, 1)
    return values
