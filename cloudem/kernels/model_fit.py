"""Products of the image model's derivatives: what a joint fit of poses, defocus and aberrations needs of each image.

The model is that of :mod:`cloudem.kernels.aberrations`. With C the CTF, C' its derivative by the phase and S the slice,
the derivatives fall into three families: those of shifts and odd aberrations are i C S times a polynomial, those of
defocus and even aberrations C' S times one, those of rotation and magnification C times the slice's gradient. Odd and
even aberrations are therefore independent of each other, pixel by pixel.

Polynomials are chosen such that none holds what another parameter says: a fit of Z(±1, 3) would move the shifts, which
are its -2 rho, and one of Z(0, 4) the defocus, its -6 rho².
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.kernels.aberrations import EVEN_DEGREES, ODD_DEGREES
from cloudem.kernels.slices import Complex, Float, Int32, magnified_axes, read_with_gradient, slice_positions

Float64 = NDArray[np.float64]

ROTATION, SHIFT, DEFOCUS, SCALE, FALL_OFF = slice(0, 3), slice(3, 5), 5, 6, 7
"""Columns of an image: rotation vector in the image frame (radians), shift (pixels), defocus (Å), logarithm of the
scale, B-factor (Å²)."""

MAGNIFICATION, TRACE, ODD, EVEN = slice(8, 10), 10, slice(11, 15), slice(15, 22)
"""Columns of an optics group: what is added to M, ``[[t + a, b], [b, t - a]]``, a and b before t; odd terms in radians
Å³, k² kx, k² ky, kx³ - 3 kx ky², 3 kx² ky - ky³; even terms in radians Å² and Å⁴: k² cos 2φ, k² sin 2φ, k⁴, k⁴ cos 2φ,
k⁴ sin 2φ, k⁴ cos 4φ, k⁴ sin 4φ."""

RESIDUAL, COLUMNS = 22, 23
"""Column of the residual, and how many there are."""


def odd_basis(x: Any, y: Any) -> list[Any]:
    """Return the odd polynomials of :data:`ODD` at frequencies in 1/Å."""
    return [x * (x * x + y * y), y * (x * x + y * y), x * (x * x - 3 * y * y), y * (3 * x * x - y * y)]


def even_basis(x: Any, y: Any) -> list[Any]:
    """Return the even polynomials of :data:`EVEN` at frequencies in 1/Å."""
    square, cosine, sine = x * x + y * y, x * x - y * y, 2 * x * y
    quartic = [square * square, square * cosine, square * sine, cosine * cosine - sine * sine, 2 * cosine * sine]
    return [cosine, sine, *quartic]


def _polynomial(x: Float64, y: Float64, terms: Float, degrees: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Return polynomials (b, p) of coefficients (b, t), and their derivatives by x and y."""
    powers = [(d - j, j) for d in degrees for j in range(d + 1)]
    value, by_x, by_y = np.zeros((3, *x.shape))
    for column, (i, j) in zip(terms.T[:, :, None], powers, strict=True):
        value += column * x**i * y**j
        by_x += column * (i * x ** max(i - 1, 0) * y**j)
        by_y += column * (j * x**i * y ** max(j - 1, 0))
    return value, by_x, by_y


@kernel
def model_products(
    volume: Complex,
    rotations: Float,
    shifts: Float,
    magnification: Float,
    phase: Float,
    odd: Float,
    scale: Float,
    per_defocus: Float,
    images: Complex,
    precision: NDArray[np.float32],
    kx: Int32,
    ky: Int32,
    padding: float,
    box: int,
    frequency_step: float,
) -> Float64:
    """Return the products of all derivatives of each image's model, and of its residual.

    Parameters
    ----------
    volume
        Padded half-volume, complex64 (:mod:`cloudem.kernels.slices`).
    rotations, shifts
        Poses, (b, 3, 3) and (b, 2) in pixels.
    magnification
        M of each image, (b, 2, 2).
    phase
        Shape (b, 12): :func:`cloudem.kernels.ctf.ctf_terms` less the even phase, as polynomials of ``M k``.
    odd
        Shape (b, 12): the odd phase, as a polynomial of ``M k``; degrees 1, 3, 5.
    scale
        Factor on the CTF, (b,).
    per_defocus
        ``pi lambda`` of each image, (b,), Å.
    images
        Transforms (b, p), complex64.
    precision
        1 / σ², (b, p), float32.
    kx, ky, padding, box
        As for :func:`cloudem.kernels.slices.extract`; the box in pixels.
    frequency_step
        1 / (n · pixel size) in 1/Å.

    Returns
    -------
    Shape (b, 23, 23), float64: ``sum Re(a b*) / σ²`` over the pixels for a and b among the derivatives of the model,
    in the order of the columns above, and the residual, data less model. Tolerance against float64: 1e-4 of the root of
    the product of both diagonals.
    """
    position = slice_positions(magnified_axes(rotations, magnification), kx, ky, padding)
    value, gradient = read_with_gradient(volume, *position)
    h = np.moveaxis(padding * np.einsum("cab,cpb->cpa", rotations, gradient), -1, 0)
    u, v = (magnification[:, row, :1] * kx + magnification[:, row, 1:] * ky for row in (0, 1))
    x, y = u * frequency_step, v * frequency_step
    chi, chi_x, chi_y = _polynomial(x, y, phase[:, :9], EVEN_DEGREES)
    _, *fall_off = _polynomial(x, y, phase[:, 9:], (2,))
    envelope = np.exp(-(phase[:, 9:10] * x * x + phase[:, 10:11] * x * y + phase[:, 11:] * y * y) / 4)
    amplitude = envelope * np.asarray(scale)[:, None]
    angle, odd_x, odd_y = _polynomial(x, y, odd, ODD_DEGREES)
    contrast, slope_of_contrast = amplitude * np.sin(chi), amplitude * np.cos(chi)
    model, by_phase = contrast * value, slope_of_contrast * value
    beta, square = 2 * np.pi / box, x * x + y * y
    columns = [contrast * part for part in (v * h[2], -u * h[2], u * h[1] - v * h[0])]
    columns += [-1j * beta * kx * model, -1j * beta * ky * model]
    columns += [np.asarray(per_defocus)[:, None] * square * by_phase, model, -square / 4 * model]
    for du, dv in ((kx, -ky), (ky, kx), (kx, ky)):
        dx, dy = du * frequency_step, dv * frequency_step
        turned = by_phase * (chi_x * dx + chi_y * dy) + 1j * model * (odd_x * dx + odd_y * dy)
        columns.append(contrast * (h[0] * du + h[1] * dv) + turned - model * (fall_off[0] * dx + fall_off[1] * dy) / 4)
    columns += [1j * part * model for part in odd_basis(x, y)]
    columns += [-part * by_phase for part in even_basis(x, y)]
    phases = np.exp(1j * (beta * (shifts[:, :1] * kx + shifts[:, 1:] * ky) - angle))
    columns.append(images * phases - model)
    rows = np.moveaxis(np.array(columns) * np.sqrt(precision.astype(np.float64)), 0, 1)
    return np.asarray((rows @ np.swapaxes(rows.conj(), 1, 2)).real)
