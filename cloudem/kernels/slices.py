"""Fourier slices: extract them from a volume, insert them into one, and differentiate a score along the way.

The padded half-volume of these kernels has shape (2 m + 1, 2 m + 1, m + 1), axes [kz, ky, kx], the origin at
[m, m, 0], and ``m >= padding · k_max + 1``; a voxel is 1 / (padding · box) of a cycle per pixel. Interpolation is
trilinear: a volume must have been divided by the interpolation's transform (:func:`gridding`) in real space.

A pose is the matrix A (map to image) and the shift t in pixels: ``X(k) = exp(-2 pi i k.t / n) C(k) V(A^T k)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float = NDArray[np.floating[Any]]
Complex = NDArray[np.complexfloating[Any, Any]]
Int32 = NDArray[np.int32]


def gridding(box: int, padding: int) -> NDArray[np.float64]:
    """Return the transform of the trilinear kernel, sinc²(x) sinc²(y) sinc²(z) over a box: (n, n, n)."""
    line = np.sinc((np.arange(box) - box // 2) / (box * padding)) ** 2
    return np.asarray(line[:, None, None] * line[None, :, None] * line[None, None, :])


def _positions(rotations: Float, kx: Int32, ky: Int32, padding: int) -> tuple[Float, NDArray[np.bool_]]:
    """Return padded map frequencies (b, p, 3) as x, y, z with x >= 0, and where Friedel's law was used."""
    plane = np.stack([kx, ky], axis=-1).astype(np.float64) * padding
    position = plane @ rotations[:, :2, :]
    flipped = position[..., 0] < 0
    return np.where(flipped[..., None], -position, position), flipped


def _corners(position: Float, m: int) -> tuple[NDArray[np.int64], Float, Float]:
    """Return flat voxel indices (8, b, p), trilinear weights (8, b, p) and their gradients (8, b, p, 3)."""
    base = np.floor(position).astype(np.int64)
    f = position - base
    indices, weights, gradients = [], [], []
    for dz in (0, 1):
        for dy in (0, 1):
            for dx in (0, 1):
                x, y, z = base[..., 0] + dx, base[..., 1] + dy + m, base[..., 2] + dz + m
                wx, wy, wz = (f[..., i] if d else 1 - f[..., i] for i, d in enumerate((dx, dy, dz)))
                indices.append((z * (2 * m + 1) + y) * (m + 1) + x)
                weights.append(wx * wy * wz)
                sx, sy, sz = (2 * d - 1 for d in (dx, dy, dz))
                gradients.append(np.stack([sx * wy * wz, sy * wx * wz, sz * wx * wy], axis=-1))
    return np.array(indices), np.array(weights), np.array(gradients)


@kernel
def extract(volume: Complex, rotations: Float, kx: Int32, ky: Int32, padding: int) -> NDArray[np.complex64]:
    """Extract Fourier slices.

    Parameters
    ----------
    volume
        Padded half-volume, complex64.
    rotations
        Shape (b, 3, 3), float64.
    kx, ky
        Shape (p,), int32, cycles per box.
    padding
        Oversampling of the volume.

    Returns
    -------
    Shape (b, p), complex64. Tolerance against float64: 2e-6 of the largest voxel.
    """
    position, flipped = _positions(rotations, kx, ky, padding)
    index, weight, _ = _corners(position, volume.shape[2] - 1)
    value = np.sum(volume.ravel()[index] * weight, axis=0)
    return np.where(flipped, value.conj(), value).astype(np.complex64)


@kernel
def insert(
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
    padding: int,
    box: int,
) -> None:
    """Add weighted slices to an accumulator, in place: the adjoint of :func:`extract`.

    Parameters
    ----------
    sums, weights
        Padded half-volumes, complex64 and float32: sums of γ C X / σ² and of γ C² / σ².
    images
        Shape (c,), int32: the row of ``numerators`` that each pose belongs to.
    rotations, shifts, pose_weights
        Poses (c, 3, 3), (c, 2) in pixels, and γ (c,), float64.
    numerators, denominators
        C X / σ² (b, p), complex64, and C² / σ² (b, p), float32.
    kx, ky, padding, box
        As for :func:`extract`; the box in pixels, for the shift.

    Notes
    -----
    Only the half kx >= 0 is stored: the plane kx = 0 misses its Friedel mates until
    :func:`complete_friedel` has added them.
    """
    m = sums.shape[2] - 1
    position, flipped = _positions(rotations, kx, ky, padding)
    index, corner, _ = _corners(position, m)
    phase = np.exp(2j * np.pi / box * (shifts[:, :1] * kx + shifts[:, 1:] * ky))
    value = numerators[images] * phase * pose_weights[:, None]
    value = np.where(flipped, value.conj(), value)
    weight = denominators[images] * pose_weights[:, None]
    for i, c in zip(index, corner, strict=True):
        np.add.at(sums.reshape(-1), i, (c * value).astype(np.complex64))
        np.add.at(weights.reshape(-1), i, (c * weight).astype(np.float32))


def complete_friedel(sums: NDArray[Any], weights: NDArray[Any]) -> None:
    """Add to the plane kx = 0 of an accumulator its Friedel mates, in place."""
    sums[:, :, 0] += sums[::-1, ::-1, 0].conj()
    weights[:, :, 0] += weights[::-1, ::-1, 0].copy()


@kernel
def score_derivatives(
    volume: NDArray[np.complex64],
    images: NDArray[np.int32],
    rotations: Float,
    shifts: Float,
    numerators: NDArray[np.complex64],
    denominators: NDArray[np.float32],
    kx: Int32,
    ky: Int32,
    padding: int,
    box: int,
) -> NDArray[np.float64]:
    """Return the score of each pose with its gradient and Gauss-Newton matrix.

    With S the slice of the pose, y = W exp(2 pi i k.t / n), W = C X / σ², Q = C² / σ²: the score is
    ``N - D / 2`` with ``N = Re sum y S*``, ``D = sum Q |S|²``. Derivatives are with respect to a rotation vector ω in
    the image frame (:func:`cloudem.model.poses.rotate`), radians, and to the shift, pixels.

    Parameters
    ----------
    volume, images, rotations, shifts, numerators, denominators, kx, ky, padding, box
        As for :func:`insert` and :func:`extract`.

    Returns
    -------
    Shape (c, 22), float64: N, D, the gradient (ωx, ωy, ωz, tx, ty), and the upper triangle of the 5 × 5 matrix
    ``sum Q Re(∂a M ∂b M*)``, row by row, where M is the shifted slice. Tolerance against float64: 1e-4 of D.
    """
    position, flipped = _positions(rotations, kx, ky, padding)
    index, corner, slope = _corners(position, volume.shape[2] - 1)
    voxels = volume.ravel().astype(np.complex128)[index]
    value = np.sum(voxels * corner, axis=0)
    gradient = np.sum(voxels[..., None] * slope, axis=0)
    gradient *= np.where(flipped, -1.0, 1.0)[..., None]  # the position was negated
    value = np.where(flipped, value.conj(), value)
    gradient = np.where(flipped[..., None], gradient.conj(), gradient)
    in_image = padding * np.einsum("cab,cpb->cpa", rotations, gradient)
    by_omega = [ky * in_image[..., 2], -kx * in_image[..., 2], kx * in_image[..., 1] - ky * in_image[..., 0]]
    by_shift = [-2j * np.pi / box * kx * value, -2j * np.pi / box * ky * value]
    slopes = np.array([*by_omega, *by_shift])
    phase = np.exp(2j * np.pi / box * (shifts[:, :1] * kx + shifts[:, 1:] * ky))
    shifted = numerators[images] * phase
    q = denominators[images].astype(np.float64)
    out = np.empty((len(images), 22))
    out[:, 0] = np.sum((shifted * value.conj()).real, axis=-1)
    out[:, 1] = np.sum(q * np.abs(value) ** 2, axis=-1)
    residual = np.concatenate([np.broadcast_to(shifted - q * value, (3, *value.shape)), np.array([shifted] * 2)])
    out[:, 2:7] = np.sum((residual * slopes.conj()).real, axis=-1).T
    pairs = [(a, b) for a in range(5) for b in range(a, 5)]
    out[:, 7:] = np.stack([np.sum(q * (slopes[a] * slopes[b].conj()).real, axis=-1) for a, b in pairs], axis=1)
    return out


def crop_volume(transform: Complex, k_max: int, padding: int) -> NDArray[np.complex64]:
    """Cut the padded half-volume for shells up to ``k_max`` out of :func:`cloudem.kernels.fourier.fourier_volume`.

    Parameters
    ----------
    transform
        Shape (p n, p n, p n // 2 + 1).
    k_max
        Highest shell, cycles per box.
    padding
        The p of the transform.

    Returns
    -------
    Shape (2 m + 1, 2 m + 1, m + 1), m from :func:`half_width`, complex64, read by the kernels above.
    """
    m = half_width(k_max, padding)
    rows = np.arange(-m, m + 1) % transform.shape[0]
    return np.ascontiguousarray(transform[np.ix_(rows, rows, np.arange(m + 1))], np.complex64)


def half_width(k_max: int, padding: int) -> int:
    """Return the m of the padded half-volume for shells up to ``k_max`` (``|k| < k_max + 1/2``, and one to spare)."""
    return padding * k_max + padding // 2 + 1
