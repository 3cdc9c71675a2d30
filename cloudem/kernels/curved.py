"""Sections of a volume along the Ewald sphere: extract and insert samples beside the central plane.

Electrons of wavelength λ see the transform of a molecule on a sphere and not on the plane ``k_z = 0``: to second order
at ``k_z = ±λ |k|² / 2``, on one side for either sideband (DeRosier 2000, 10.1016/S0304-3991(99)00120-5; Russo &
Henderson 2018, 10.1016/j.ultramic.2018.01.005). With V the transform of the density, A the pose, χ and E the phase and
the envelope of the CTF, and z = ±λ |k|² / 2 with the sign of the hand:

    X(k) = exp(-2 pi i k.t) E (exp(iχ) V(Aᵀ(k, z)) - exp(-iχ) V(Aᵀ(k, -z))) / 2i

which is ``E sin(χ) V`` where there is no curvature. Layouts are those of :mod:`cloudem.kernels.slices`; here a sample
has ``k_z = c₀ k_x² + c₁ k_x k_y + c₂ k_y²``, in cycles per box, with coefficients for each image, so that wavelengths
and magnifications may differ. There are twins for the host alone: a reconstruction from known poses runs there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudem.backend.kernel import kernel
from cloudem.kernels.ctf import phase_and_envelope, wavelength
from cloudem.kernels.slices import add_at, read_at, weighted_at_poses

Float = NDArray[np.floating[Any]]
Int32 = NDArray[np.int32]


def curvatures(voltage: ArrayLike, length: float, magnification: Float | None = None) -> NDArray[np.float64]:
    """Return the coefficients of ``k_z`` of the Ewald sphere on the side of positive z, (b, 3).

    Parameters
    ----------
    voltage
        kV, (b,).
    length
        Of the box, Å.
    magnification
        Matrices M, (b, 2, 2): the sphere is that of ``M k``; None for unit ones.
    """
    half = np.atleast_1d(wavelength(voltage)) / (2 * length)
    if magnification is None:
        return np.outer(half, [1.0, 0.0, 1.0])
    form = np.swapaxes(magnification, 1, 2) @ magnification
    return half[:, None] * np.stack([form[:, 0, 0], 2 * form[:, 0, 1], form[:, 1, 1]], axis=1)


def heights(kx: Int32, ky: Int32, curvature: Float) -> NDArray[np.float64]:
    """Return ``k_z`` of samples, (b, p) in cycles per box, from coefficients (b, 3)."""
    x, y = kx.astype(np.float64), ky.astype(np.float64)
    return np.asarray(curvature @ np.array([x * x, x * y, y * y]))


def sidebands(
    kx: NDArray[Any], ky: NDArray[Any], terms: NDArray[np.float64], frequency_step: float
) -> NDArray[np.complex64]:
    """Return ``E exp(iχ)``, of which the CTF is the imaginary part, (b, p) complex64.

    Parameters
    ----------
    kx, ky, terms, frequency_step
        As for :func:`cloudem.kernels.ctf.ctf_values`.
    """
    turned, envelope = phase_and_envelope(kx, ky, terms, frequency_step)
    phase, values = np.mod(turned, 2 * np.pi).astype(np.float32), envelope.astype(np.float32)
    out = np.empty(phase.shape, np.complex64)
    out.real, out.imag = values * np.cos(phase), values * np.sin(phase)
    return out


def sides_alike(height: Float, diameter: float, length: float) -> NDArray[np.float64]:
    """Return how far a volume is the same on both sides of the plane: the correlation of V(k, z) and V(k, -z).

    It is the transform of a ball at twice the height: ``3 (sin u - u cos u) / u³`` with ``u = 2 pi z d``.

    Parameters
    ----------
    height
        z in cycles per box, any shape.
    diameter, length
        Of the particle, and of the box, Å.
    """
    u = np.maximum(np.abs(2 * np.pi * height * (diameter / length)), 1e-2)
    return np.asarray(3 * (np.sin(u) - u * np.cos(u)) / u**3)


def _curved_positions(
    rotations: Float, kx: Int32, ky: Int32, curvature: Float, padding: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return padded map frequencies (b, p, 3) as x, y, z with x >= 0, and where Friedel's law was used."""
    height = heights(kx, ky, curvature)
    plane = np.broadcast_to(np.stack([kx, ky], axis=-1).astype(np.float64), (*height.shape, 2))
    position = padding * np.concatenate([plane, height[..., None]], axis=-1) @ np.asarray(rotations, np.float64)
    flipped = position[..., 0] < 0
    return np.where(flipped[..., None], -position, position), flipped


@kernel
def extract_curved(
    volume: NDArray[np.complex64], rotations: Float, kx: Int32, ky: Int32, curvature: Float, padding: float
) -> NDArray[np.complex64]:
    """Extract curved sections.

    Parameters
    ----------
    volume, rotations, kx, ky, padding
        As for :func:`cloudem.kernels.slices.extract`; samples have to lie within the volume's last shell.
    curvature
        Coefficients of ``k_z``, (b, 3).

    Returns
    -------
    Shape (b, p), complex64. Tolerance against float64: 2e-6 of the largest voxel.
    """
    return read_at(volume, *_curved_positions(rotations, kx, ky, curvature, padding))


@kernel
def insert_curved(
    sums: NDArray[np.complex64],
    weights: NDArray[np.float32],
    images: NDArray[np.int32],
    rotations: Float,
    shifts: Float,
    pose_weights: Float,
    numerators: NDArray[np.complex64],
    denominators: NDArray[np.float32],
    kx: Int32,
    ky: Int32,
    curvature: Float,
    padding: float,
    box: int,
) -> None:
    """Add weighted curved sections to an accumulator, in place: the adjoint of :func:`extract_curved`.

    Parameters
    ----------
    sums, weights, images, rotations, shifts, pose_weights, numerators, denominators, kx, ky, padding, box
        As for :func:`cloudem.kernels.slices.insert`.
    curvature
        Coefficients of ``k_z`` of each image, (b, 3).
    """
    values = weighted_at_poses(images, shifts, pose_weights, numerators, denominators, kx, ky, box)
    add_at(sums, weights, *_curved_positions(rotations, kx, ky, curvature[images], padding), *values)
