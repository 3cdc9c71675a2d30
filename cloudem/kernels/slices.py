"""Fourier slices: extract them from a volume, insert them into one, and differentiate a score along the way.

Layout of the padded half-volume: shape (2 m + 1, 2 m + 1, m + 2), axes [kz, ky, kx], the origin at [m, m, 1]; the
column kx = -1 repeats Friedel mates so that a window never leaves the array. One voxel is ``1 / padding`` cycles per
box, ``m`` comes from :func:`half_width`.

Interpolation uses four voxels along each axis, weighted by a Kaiser-Bessel window written as a polynomial of sixth
degree on each of its four unit intervals. At padding 1.5 slices are within 0.2 % (root mean square) of exact ones,
against 1 to 3 % for trilinear interpolation at padding 2, and the volume is 2.4 times smaller, so that a slice stays in
the second-level cache: that, and whole rows of a window fitting one vector register, is where the speed comes from.

A pose is the matrix A (map to image) and the shift t in pixels: ``X(k) = exp(-2 pi i k.t / n) C(k) V(A^T k)``. With a
magnification matrix M, an image shows ``V(A^T (M k, 0))``: :func:`magnified_axes` gives :func:`extract` and
:func:`insert` the matrix that does this in place of A.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
import scipy.special
from numpy.polynomial import Polynomial, chebyshev
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float = NDArray[np.floating[Any]]
Complex = NDArray[np.complexfloating[Any, Any]]
Int32 = NDArray[np.int32]

PADDING = 1.5
"""Smallest oversampling of a Fourier volume; :func:`padded_box` rounds it up to a size with small factors."""

WINDOW = 4
"""Voxels along each axis that a sample touches."""


def _window_polynomials() -> NDArray[np.float64]:
    """Return the window's coefficients, shape (4, 7): row j, column d is the factor of f^d for the voxel j - 1.

    Kaiser-Bessel with the shape of Beatty et al. 2005, 10.1109/TMI.2005.848376, for an oversampling of 1.5, scaled to
    unit integral. f in [0, 1) is the distance from the voxel below.
    """
    beta = np.pi * np.sqrt((WINDOW / PADDING) ** 2 * (PADDING - 0.5) ** 2 - 0.8)
    f = chebyshev.chebpts1(200) / 2 + 0.5
    rows = []
    for j in range(WINDOW):
        inside = np.maximum(1 - ((f + 1 - j) / (WINDOW / 2)) ** 2, 0)
        rows.append(Polynomial.fit(f, scipy.special.i0(beta * np.sqrt(inside)), 6, domain=[0, 1], window=[0, 1]).coef)
    coefficients: NDArray[np.float64] = np.array(rows, np.float64)
    return coefficients / float(np.sum(coefficients / np.arange(1, 8)))


POLYNOMIALS = _window_polynomials()


def window(f: Float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the four weights for fractions f in [0, 1), and their derivatives by f: two arrays (4, *f.shape)."""
    weights = np.array([Polynomial(row)(f) for row in POLYNOMIALS])
    return weights, np.array([Polynomial(row).deriv()(f) for row in POLYNOMIALS])


def padded_box(box: int) -> int:
    """Return the even edge of the padded volume, at least 1.5 boxes, that transforms fast."""
    return fast_even(int(np.ceil(box * PADDING)))


def half_width(k_max: int, padding: float) -> int:
    """Return m of the padded half-volume for samples in shells up to ``k_max`` (``|k| < k_max + 1/2``)."""
    return int(np.ceil(padding * (k_max + 0.5))) + WINDOW // 2


def touched_radius(k_max: int, padding: float) -> int:
    """Return the squared radius, voxels², of the sphere that holds all voxels under windows of shells to ``k_max``."""
    return int((padding * (k_max + 0.5) + WINDOW / 2 * 3**0.5) ** 2) + 1


def gridding(box: int, padded: int) -> NDArray[np.float64]:
    """Return the transform of the window along one axis of the box, (n,): a volume is divided by it on each axis."""
    position = (np.arange(box) - box // 2) / padded
    nodes, quadrature = np.polynomial.legendre.leggauss(24)
    f = (nodes + 1) / 2
    weights, _ = window(f)
    line = np.zeros(box)
    for j in range(WINDOW):
        line += np.cos(2 * np.pi * position[:, None] * (f + 1 - j)) @ (weights[j] * quadrature / 2)
    return line


def correct_gridding(volume: Float, padded: int) -> NDArray[Any]:
    """Divide a volume (n, n, n) by the window's transform."""
    line = (1 / gridding(volume.shape[0], padded)).astype(volume.dtype)
    return np.asarray(volume * line[:, None, None] * line[None, :, None] * line[None, None, :])


def crop_volume(transform: Complex, box: int, k_max: int) -> NDArray[np.complex64]:
    """Cut the padded half-volume for shells up to ``k_max`` out of a transform.

    Parameters
    ----------
    transform
        :func:`cloudem.kernels.fourier.fourier_volume` of the padded box, (m, m, m // 2 + 1).
    box
        Edge of the images in pixels: the padding is ``m / box``.
    k_max
        Highest shell, cycles per box.

    Returns
    -------
    Complex64 array in the layout above; voxels beyond the transform are zero.
    """
    size = transform.shape[0]
    m = half_width(k_max, size / box)
    half = min(m, size // 2 - 1)
    out = np.zeros((2 * m + 1, 2 * m + 1, m + 2), np.complex64)
    rows = np.arange(-half, half + 1)
    inner = out[m - half : m + half + 1, m - half : m + half + 1]
    inner[:, :, 1 : half + 2] = transform[np.ix_(rows % size, rows % size, np.arange(half + 1))]
    out[:, :, 0] = out[::-1, ::-1, 2].conj()
    return out


def place_volume(cropped: Complex, padded: int) -> Complex:
    """Put a padded half-volume back into a transform of edge ``padded``: the inverse of :func:`crop_volume`."""
    m = cropped.shape[2] - 2
    half = min(m, padded // 2 - 1)
    rows = np.arange(-half, half + 1) % padded
    transform = np.zeros((padded, padded, padded // 2 + 1), cropped.dtype)
    inner = cropped[m - half : m + half + 1, m - half : m + half + 1, 1 : half + 2]
    transform[np.ix_(rows, rows, np.arange(half + 1))] = inner
    return transform


def complete_friedel(sums: NDArray[Any]) -> None:
    """Add the Friedel mates that an accumulator misses along kx = 0 and kx = 1, and empty its column kx = -1."""
    sums[:, :, 2] += sums[::-1, ::-1, 0].conj()
    sums[:, :, 1] += sums[::-1, ::-1, 1].conj()
    sums[:, :, 0] = 0


def split_group(group: Float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the operators of a point group that permute the axes, and one operator of each other right coset of them.

    Summing a function over the permutations, and the result over the identity and the others, sums it over the group.

    Parameters
    ----------
    group
        Rotations (g, 3, 3), the identity first.

    Returns
    -------
    Shapes (p, 3, 3) int64, the identity first, and (t, 3, 3) with ``p (1 + t) = g``.
    """
    group = np.asarray(group, np.float64)
    permutes = np.abs(group - np.rint(group)).max(axis=(1, 2)) < 1e-9
    permutations, rest = np.rint(group[permutes]), group[~permutes]
    turns = []
    while len(rest):
        turns.append(rest[0])
        coset = permutations @ rest[0]
        rest = rest[np.abs(rest[:, None] - coset).max(axis=(2, 3)).min(axis=1) > 1e-6]
    return permutations.astype(np.int64), np.array(turns).reshape(-1, 3, 3)


def fast_even(size: int) -> int:
    """Return the smallest even size from ``size`` on that transforms fast."""
    while size % 2 or scipy.fft.next_fast_len(size, real=True) != size:
        size += 1
    return size


def magnified_axes(rotations: Float, magnification: Float) -> NDArray[np.float64]:
    """Return poses with the first two rows ``M^T A[:2]``, (c, 3, 3), for :func:`extract` and :func:`insert`.

    They take a point of the map to where images show it, too: ``(M^T A r)_xy``.

    Parameters
    ----------
    rotations, magnification
        A (c, 3, 3), and M (c, 2, 2).
    """
    axes = np.array(rotations, np.float64)
    axes[:, :2] = np.swapaxes(magnification, 1, 2) @ axes[:, :2]
    return axes


def turning_axes(rotations: Float, magnification: Float) -> NDArray[np.float64]:
    """Return the poses whose axes twins of :func:`score_derivatives` take gradients along, (c, 3, 3).

    A turn about z moves the sample by ``(-κ_y, κ_x)`` with κ = M k, and the slice changes by ``κ_x h_y - κ_y h_x`` with
    ``h = A ∇V``. That is ``k_x h'_y - k_y h'_x`` if h' is taken along ``adj(M) A[:2]``, so that loops need M k nowhere.
    """
    return magnified_axes(rotations, _cofactors(magnification))


def _cofactors(magnification: Float) -> NDArray[np.float64]:
    """Return the transposed adjugates of matrices (c, 2, 2)."""
    cofactors = np.array(magnification[:, ::-1, ::-1], np.float64)
    cofactors[:, [0, 1], [1, 0]] *= -1
    return cofactors


def turned_about_axes(sums: NDArray[np.float64], magnification: Float) -> None:
    """Complete in place what twins of :func:`score_derivatives` summed with ``k`` for turns about x and y.

    These change the slice by ``κ_y h_z`` and ``-κ_x h_z``, which M mixes of ``k_y h_z`` and ``-k_x h_z``.
    """
    mix = np.zeros((len(sums), 5, 5))
    mix[:, [2, 3, 4], [2, 3, 4]] = 1
    mix[:, :2, :2] = _cofactors(magnification)
    rows, columns = np.triu_indices(5)
    matrix = np.empty(mix.shape)
    matrix[:, rows, columns] = matrix[:, columns, rows] = sums[:, 7:]
    sums[:, 2:7] = (mix @ sums[:, 2:7, None])[:, :, 0]
    sums[:, 7:] = (mix @ matrix @ np.swapaxes(mix, 1, 2))[:, rows, columns]


def slice_positions(rotations: Float, kx: Int32, ky: Int32, padding: float) -> tuple[Float, NDArray[np.bool_]]:
    """Return padded map frequencies (b, p, 3) as x, y, z with x >= 0, and where Friedel's law was used."""
    plane = np.stack([kx, ky], axis=-1).astype(np.float64) * padding
    position = plane @ rotations[:, :2, :]
    flipped = position[..., 0] < 0
    return np.where(flipped[..., None], -position, position), flipped


def window_taps(position: Float, m: int) -> list[tuple[NDArray[np.int64], Float, Float]]:
    """Return for each of the 64 voxels its flat index (b, p), weight (b, p) and the weight's gradient (b, p, 3)."""
    base = np.floor(position).astype(np.int64)
    w, d = window(position - base)  # (4, b, p, 3)
    taps: list[tuple[NDArray[np.int64], Float, Float]] = []
    for k in range(WINDOW):
        for j in range(WINDOW):
            for i in range(WINDOW):
                x, y, z = base[..., 0] + i, base[..., 1] + j - 1 + m, base[..., 2] + k - 1 + m
                wx, wy, wz = w[i, ..., 0], w[j, ..., 1], w[k, ..., 2]
                slope = [d[i, ..., 0] * wy * wz, wx * d[j, ..., 1] * wz, wx * wy * d[k, ..., 2]]
                taps.append(((z * (2 * m + 1) + y) * (m + 2) + x, wx * wy * wz, np.stack(slope, axis=-1)))
    return taps


def read_at(volume: Complex, position: Float, flipped: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Return a volume's values at positions (b, p, 3), conjugated where Friedel's law was used, (b, p)."""
    flat = volume.ravel()
    value = sum(flat[index] * weight for index, weight, _ in window_taps(position, volume.shape[2] - 2))
    return np.where(flipped, np.conj(value), value).astype(np.complex64)


def read_with_gradient(
    volume: Complex, position: Float, flipped: NDArray[np.bool_]
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return a volume's values (b, p) as :func:`read_at` does, and their gradient by x, y, z in voxels (b, p, 3)."""
    flat = volume.ravel().astype(np.complex128)
    value = np.zeros(position.shape[:2], np.complex128)
    gradient = np.zeros(position.shape, np.complex128)
    for index, tap, slope in window_taps(position, volume.shape[2] - 2):
        value += flat[index] * tap
        gradient += flat[index][..., None] * slope
    gradient *= np.where(flipped, -1.0, 1.0)[..., None]  # the position was negated
    return np.where(flipped, value.conj(), value), np.where(flipped[..., None], gradient.conj(), gradient)


def add_at(
    sums: NDArray[np.complex64],
    weights: NDArray[np.float32],
    position: Float,
    flipped: NDArray[np.bool_],
    value: Complex,
    weight: Float,
) -> None:
    """Add values and weights (c, p) at positions to an accumulator, in place: the adjoint of :func:`read_at`."""
    value = np.where(flipped, value.conj(), value)
    for index, tap, _ in window_taps(position, sums.shape[2] - 2):
        np.add.at(sums.reshape(-1), index, (tap * value).astype(np.complex64))
        np.add.at(weights.reshape(-1), index, (tap * weight).astype(np.float32))


def weighted_at_poses(
    images: NDArray[np.int32],
    shifts: Float,
    pose_weights: Float,
    numerators: Complex,
    denominators: Float,
    kx: Int32,
    ky: Int32,
    box: int,
) -> tuple[Complex, Float]:
    """Return what each pose adds to an accumulator and to its weights, (c, p) both; parameters as :func:`insert`."""
    phase = np.exp(2j * np.pi / box * (shifts[:, :1] * kx + shifts[:, 1:] * ky))
    return numerators[images] * phase * pose_weights[:, None], denominators[images] * pose_weights[:, None]


@kernel
def extract(volume: Complex, rotations: Float, kx: Int32, ky: Int32, padding: float) -> NDArray[np.complex64]:
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
        Voxels per cycle per box.

    Returns
    -------
    Shape (b, p), complex64. Tolerance against float64: 2e-6 of the largest voxel.
    """
    return read_at(volume, *slice_positions(rotations, kx, ky, padding))


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
    padding: float,
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
    :func:`complete_friedel` must be called once after the last insertion.
    """
    values = weighted_at_poses(images, shifts, pose_weights, numerators, denominators, kx, ky, box)
    add_at(sums, weights, *slice_positions(rotations, kx, ky, padding), *values)


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
    padding: float,
    box: int,
    magnification: Float | None = None,
) -> NDArray[np.float64]:
    """Return the score of each pose with its gradient and Gauss-Newton matrix.

    With S the slice of the pose, y = W exp(2 pi i k.t / n), W = C X / σ², Q = C² / σ²: the score is
    ``N - D / 2`` with ``N = Re sum y S*``, ``D = sum Q |S|²``. Derivatives are with respect to a rotation vector ω in
    the image frame (:func:`cloudem.model.poses.rotate`), radians, and to the shift, pixels.

    Parameters
    ----------
    volume, images, rotations, shifts, numerators, denominators, kx, ky, padding, box
        As for :func:`insert` and :func:`extract`; the rotations are those of the poses, without magnification.
    magnification
        Shape (c, 2, 2): of the image of each pose; None for none.

    Returns
    -------
    Shape (c, 22), float64: N, D, the gradient (ωx, ωy, ωz, tx, ty), and the upper triangle of the 5 × 5 matrix
    ``sum Q Re(∂a M ∂b M*)``, row by row, where M is the shifted slice. Tolerance against float64: 1e-4 of the
    largest entry of each column.
    """
    matrices = np.broadcast_to(np.eye(2), (len(images), 2, 2)) if magnification is None else magnification
    position, flipped = slice_positions(magnified_axes(rotations, matrices), kx, ky, padding)
    value, gradient = read_with_gradient(volume, position, flipped)
    in_image = padding * np.einsum("cab,cpb->cpa", rotations, gradient)
    mx, my = np.moveaxis(matrices @ np.stack([kx, ky]).astype(np.float64), 1, 0)  # M k, (c, p) each
    by_omega = [my * in_image[..., 2], -mx * in_image[..., 2], mx * in_image[..., 1] - my * in_image[..., 0]]
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
