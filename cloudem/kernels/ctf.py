"""The contrast transfer function."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudem.backend.kernel import kernel

Float = NDArray[np.floating[Any]]


def wavelength(voltage: ArrayLike) -> NDArray[np.float64]:
    """Return the relativistic electron wavelength in Å for a voltage in kV.

    Source: ``lambda = h / sqrt(2 m e U (1 + e U / (2 m c^2)))``, as 12.2643247 / sqrt(U (1 + 0.978466e-6 U)) for U in
    volts, the digits that RELION uses. CODATA's (12.2642597) are 5e-6 smaller: half a milliradian in a phase of 100.
    """
    volts = 1e3 * np.asarray(voltage, np.float64)
    return np.asarray(12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts)))


TERMS = 12
"""Coefficients that describe the CTF of an image."""


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
        Shape (b, 12), float64: the phase's coefficients of 1, x², xy, y², x⁴, x³y, x²y², xy³, y⁴ with x and y in 1/Å,
        then the envelope's of x², xy, y², in Å².
    frequency_step
        1 / (n · pixel_size) in 1/Å.

    Returns
    -------
    Shape (b, p), float32: ``exp(-envelope / 4) sin(phase)``.
    """
    phase, envelope = phase_and_envelope(kx, ky, terms, frequency_step)
    return np.asarray(envelope * np.sin(phase), np.float32)


def phase_and_envelope(
    kx: NDArray[Any], ky: NDArray[Any], terms: NDArray[np.float64], frequency_step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the CTF's phase in radians and its envelope, (b, p) each; parameters are those of :func:`ctf_values`."""
    x, y = kx * frequency_step, ky * frequency_step
    xx, xy, yy = x * x, x * y, y * y
    monomials = np.array([np.ones(len(xx)), xx, xy, yy, xx * xx, xx * xy, xx * yy, xy * yy, yy * yy])
    return terms[:, :9] @ monomials, np.exp(-(terms[:, 9:] @ np.array([xx, xy, yy])) / 4)


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
    """Return the coefficients that :func:`ctf_values` reads, (b, 12), without aberrations of higher order.

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
    :func:`cloudem.kernels.aberrations.aberrated` adds even aberrations and magnification.
    """
    u, v, angle = (np.asarray(value, np.float64) for value in (defocus_u, defocus_v, defocus_angle))
    lam = wavelength(voltage)
    mean, difference = (u + v) / 2, (u - v) / 2
    terms = np.zeros((len(u), TERMS))
    terms[:, 0] = np.asarray(phase_shift) + np.arcsin(amplitude_contrast)
    terms[:, 1] = np.pi * lam * (mean + difference * np.cos(2 * angle))
    terms[:, 2] = 2 * np.pi * lam * difference * np.sin(2 * angle)
    terms[:, 3] = np.pi * lam * (mean - difference * np.cos(2 * angle))
    quartic = -np.pi / 2 * np.asarray(spherical_aberration) * lam**3
    terms[:, 4] = terms[:, 8] = quartic
    terms[:, 6] = 2 * quartic
    terms[:, 9] = terms[:, 11] = b_factor
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
