"""Polar Fourier samples and their angular harmonics: in-plane rotation becomes a phase.

On a ring of radius k a function F(k, φ) has the harmonics ``F_q(k) = 1/m sum_φ F(k, φ) exp(-i q φ)``. Those of a real
image or of a slice obey ``F_{-q} = (-1)^q conj(F_q)``, so q >= 0 suffices; and since the real part of F has period π
and the imaginary part changes sign after π, harmonics of even q come from the real part alone and those of odd q from
the imaginary part alone, each on half a circle.

Rotating a slice in its plane by ψ multiplies F_q by exp(i q ψ); seeing the molecule from the opposite direction
replaces F_q by ``(-1)^q conj(F_q)``.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0

from cloudem.backend.arrays import array_namespace
from cloudem.backend.kernel import kernel
from cloudem.kernels.fourier import HalfDisc

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class PolarGrid(NamedTuple):
    """Samples on half circles: rings k = 1 … K, angles φ_j = 2 π j / m for j < m / 2.

    Attributes
    ----------
    k_max, angles
        K, and m (a multiple of four).
    kx, ky
        Shape (K · m / 2,), float64, cycles per box; ring by ring.
    even, odd
        The angular frequencies in use, ascending.
    """

    k_max: int
    angles: int
    kx: Float64
    ky: Float64
    even: NDArray[np.int64]
    odd: NDArray[np.int64]


def polar_grid(k_max: int, radius: float, box: int) -> PolarGrid:
    """Lay a polar grid for objects of a radius.

    Parameters
    ----------
    k_max
        Highest ring, cycles per box.
    radius
        Radius of the object in pixels: harmonics beyond ``2 pi k radius / n`` vanish (Bessel functions of higher order
        than argument).
    box
        Pixels.
    """
    q_max = int(np.ceil(2 * np.pi * k_max * radius / box)) + 1
    angles = 4 * int(np.ceil((2 * q_max + 1) / 4))
    phi = 2 * np.pi / angles * np.arange(angles // 2)
    rings = np.arange(1, k_max + 1)[:, None]
    kx, ky = (rings * np.cos(phi)).ravel(), (rings * np.sin(phi)).ravel()
    return PolarGrid(k_max, angles, kx, ky, np.arange(0, q_max + 1, 2), np.arange(1, q_max + 1, 2))


def polar_interpolation(grid: PolarGrid, disc: HalfDisc, box: int, radius: float) -> tuple[Float32, Float32, Float32]:
    """Return what takes a half disc to polar samples, for images that vanish outside a circle.

    Such an image is known between its Fourier pixels: ``F(κ) = sum_κ' g(|κ - κ'|) F(κ')`` with g the transform of any
    window that is 1 on the circle and falls to 0 at the edge of the box. Summed over both halves of the disc, real
    and imaginary part do not mix.

    Parameters
    ----------
    grid, disc
        Where to, and from where; the disc should reach two shells beyond the grid.
    box, radius
        Pixels; beyond the radius the window falls to zero at half the box.

    Returns
    -------
    Float32 arrays (p, samples), (p, samples), (samples,): real parts are ``Re F @ first + F(0) third``, imaginary
    parts ``Im F @ second``.
    """
    distance = np.linspace(0, 2.2 * disc.shell.max() + 4, 4000)
    r = np.arange(0.5, box / 2, 0.5) if radius < box / 2 else np.arange(0.5, radius, 0.5)
    taper = np.clip((r - radius) / max(box / 2 - radius, 1e-6), 0, 1)
    profile = 0.5 + 0.5 * np.cos(np.pi * taper)
    table = 2 * np.pi * 0.5 / box**2 * (j0(2 * np.pi / box * distance[:, None] * r) @ (r * profile))

    def g(dx: Float64, dy: Float64) -> Float64:
        return np.interp(np.hypot(dx, dy), distance, table)

    kx, ky = disc.kx[:, None].astype(np.float64), disc.ky[:, None].astype(np.float64)
    near, mate = g(grid.kx - kx, grid.ky - ky), g(grid.kx + kx, grid.ky + ky)
    origin = g(grid.kx, grid.ky)
    return (near + mate).astype(np.float32), (near - mate).astype(np.float32), origin.astype(np.float32)


class Harmonics(NamedTuple):
    """Angular harmonics of even and of odd frequency: each (q, 2, k, rows), real and imaginary part."""

    even: Float32
    odd: Float32


def angular_matrices(grid: PolarGrid) -> tuple[Float32, Float32]:
    """Return the real matrices (m / 2, 2 q) from half circles to harmonics, of the real and of the imaginary part."""
    phi = 2 * np.pi / grid.angles * np.arange(grid.angles // 2)
    even, odd = (np.exp(-1j * phi[:, None] * q) * 2 / grid.angles for q in (grid.even, grid.odd))
    # i times the imaginary part gives the odd ones
    return tuple(  # type: ignore[return-value]
        np.concatenate([h.real, h.imag], axis=1).astype(np.float32) for h in (even, 1j * odd)
    )


def harmonics(real: Float32, imaginary: Float32, grid: PolarGrid) -> Harmonics:
    """Return the angular harmonics of polar samples.

    Parameters
    ----------
    real, imaginary
        Shape (rows, K, m / 2), float32.
    grid
        Where they were taken.

    Returns
    -------
    :class:`Harmonics` with arrays (q, 2, K, rows).
    """
    xp = array_namespace(real)
    rows = len(real)
    parts = []
    for samples, matrix in zip((real, imaginary), angular_matrices(grid), strict=True):
        flat = samples.reshape(rows * grid.k_max, -1) @ xp.asarray(matrix)
        parts.append(xp.ascontiguousarray(flat.reshape(rows, grid.k_max, 2, -1).transpose(3, 2, 1, 0)))
    return Harmonics(*parts)


@kernel
def shift_samples(
    real: Float32, imaginary: Float32, kx: Float64, ky: Float64, shifts: Float64, box: int
) -> tuple[Float32, Float32]:
    """Multiply polar samples by ``exp(2 pi i k.t / n)`` for many shifts.

    Parameters
    ----------
    real, imaginary
        Shape (b, s), float32.
    kx, ky
        Shape (s,).
    shifts
        Shape (b, t, 2), pixels: for each image its own.
    box
        Pixels.

    Returns
    -------
    Two float32 arrays (b, t, s).
    """
    angle = 2 * np.pi / box * (shifts[..., :1] * kx + shifts[..., 1:] * ky)
    turned = (real + 1j * imaginary)[:, None] * np.exp(1j * angle)
    return turned.real.astype(np.float32), turned.imag.astype(np.float32)


@kernel
def ring_norms(power: Float32, slices: Float32) -> Float32:
    """Return the sums over rings of the products of (b, K) and (K, d): (b, d), on the host."""
    return power @ slices


@kernel
def best_rotations(
    cos_even: Float32, sin_even: Float32, cos_odd: Float32, sin_odd: Float32, shifts: int
) -> tuple[Float32, NDArray[np.int32]]:
    """Find the best in-plane rotation and shift for each image, direction and opposite direction.

    The arrays hold, for the angles ψ_j = 2 π j / m with j <= m / 4, the cosine sums of the products Yr Sr and Yi Si
    and the sine sums of Yi Sr and Yr Si; the other three quadrants and the opposite direction follow by symmetry.

    Parameters
    ----------
    cos_even, sin_even, cos_odd, sin_odd
        Shape (j, 2, rows, d), float32; rows are images × shifts.
    shifts
        Number of shifts per image.

    Returns
    -------
    Scores (images, 2, d), float32, for the directions and their opposites, and codes of the same shape, int32:
    ``(shift * j_count + j) * 4 + quadrant`` with quadrants ψ, -ψ, π + ψ, π - ψ.
    """
    count, _, rows, directions = cos_even.shape
    images = rows // shifts
    everything = []
    for flip in (1, -1):
        # the opposite direction conjugates the slice's harmonics and changes the sign of the odd ones
        ce, co = (c[:, 0] + flip * c[:, 1] for c in (cos_even, flip * cos_odd))
        se, so = (s[:, 0] - flip * s[:, 1] for s in (sin_even, flip * sin_odd))
        quadrants = [(ce + co) + (se + so), (ce + co) - (se + so), (ce - co) + (se - so), (ce - co) - (se - so)]
        values = np.array(quadrants).reshape(4, count, images, shifts, directions)
        everything.append(values.transpose(2, 4, 3, 1, 0).reshape(images, directions, -1))
    stacked = np.array(everything).swapaxes(0, 1)
    code = stacked.argmax(axis=-1).astype(np.int32)
    return np.take_along_axis(stacked, code[..., None], axis=-1)[..., 0], code


@kernel
def posterior_rotations(
    cos_even: Float32, sin_even: Float32, cos_odd: Float32, sin_odd: Float32, offset: Float32, shifts: int
) -> tuple[Float64, Float32]:
    """Turn scores into probabilities of every direction, side, in-plane rotation and shift, in place.

    Afterwards the four arrays hold the probabilities, summed as the adjoint of how scores come from them: the products
    of :func:`rotation_weights` with them are sums over all poses, each by its probability.

    Parameters
    ----------
    cos_even, sin_even, cos_odd, sin_odd
        As for :func:`best_rotations`; overwritten.
    offset
        Added to the scores of each image, side and direction, (images, 2, d): the norm, and the logarithm of a prior.
    shifts
        Number of shifts per image.

    Returns
    -------
    Logarithm of the sum of ``exp(score)`` over all poses of each image, (images,), and probability by side and
    direction, (images, 2, d).
    """
    count, _, rows, directions = cos_even.shape
    images = rows // shifts
    # ψ = 0 and ψ = π / 2 are reached from two quadrants each
    share = np.ones(count)
    share[0] = share[-1] = 0.5
    scores = []
    for side, flip in enumerate((1, -1)):
        ce, co = (c[:, 0].astype(float) + flip * c[:, 1] for c in (cos_even, flip * cos_odd))
        se, so = (s[:, 0].astype(float) - flip * s[:, 1] for s in (sin_even, flip * sin_odd))
        quadrants = [(ce + co) + (se + so), (ce + co) - (se + so), (ce - co) + (se - so), (ce - co) - (se - so)]
        values = np.array(quadrants).reshape(4, count, images, shifts, directions)
        scores.append(values + offset[:, side, None].astype(float))
    everything = np.array(scores)  # side, quadrant, ψ, image, shift, direction
    highest = everything.max(axis=(0, 1, 2, 4, 5))
    weights = np.exp(everything - highest[:, None, None]) * share[:, None, None, None]
    total = weights.sum(axis=(0, 1, 2, 4, 5))
    weights /= total[:, None, None]
    flat = weights.reshape(2, 4, count, rows, directions)
    for side, flip in enumerate((1, -1)):
        first, second, third, fourth = flat[side]
        parts = (first + second + third + fourth, first - second + third - fourth)
        odd = (first + second - third - fourth, first - second - third + fourth)
        for kind, (array, sign) in enumerate(
            ((cos_even, flip), (sin_even, -flip), (cos_odd, flip), (sin_odd, -flip)),
        ):
            part = (parts if kind < 2 else odd)[kind % 2] * (flip if kind >= 2 else 1)
            if side == 0:
                array[:, 0], array[:, 1] = part, sign * part
            else:
                array[:, 0] += part
                array[:, 1] += sign * part
    return highest + np.log(total), weights.sum(axis=(1, 2, 4)).transpose(1, 0, 2).astype(np.float32)


def decode(code: NDArray[np.int32], angles: int) -> tuple[NDArray[np.int32], Float64]:
    """Return shift index and angle ψ in radians for the codes of :func:`best_rotations`."""
    count = angles // 4 + 1
    step = 2 * np.pi / angles * ((code // 4) % count)
    quadrant = code % 4
    psi = np.where(quadrant % 2 == 1, -step, step) + np.where(quadrant >= 2, np.pi, 0.0)
    return (code // (4 * count)).astype(np.int32), psi


def rotation_matrices(grid: PolarGrid) -> tuple[Float32, Float32, Float32, Float32]:
    """Return cos(q ψ_j) and sin(q ψ_j), (j, q), for even and for odd q: cos_even, sin_even, cos_odd, sin_odd."""
    return _rotation_matrices(grid.angles, len(grid.even) + len(grid.odd))


@functools.lru_cache(maxsize=4)
def _rotation_matrices(angles: int, frequencies: int) -> tuple[Float32, Float32, Float32, Float32]:
    psi = 2 * np.pi / angles * np.arange(angles // 4 + 1)[:, None]
    q = np.arange(frequencies)
    tables = [f(psi * part).astype(np.float32) for part in (q[::2], q[1::2]) for f in (np.cos, np.sin)]
    return tables[0], tables[1], tables[2], tables[3]


class Workspace:
    """Memory that is used again from tile to tile.

    Asking the system for fresh pages costs more than the matrix products that fill them (up to three times the time
    of the search, measured).
    """

    def __init__(self) -> None:
        self._arrays: dict[str, Any] = {}

    def array(self, name: str, shape: tuple[int, ...], namespace: Any) -> Any:
        """Return an array of float32 whose values are left over; the same memory for the same name."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = namespace.empty(size, np.float32)
        return self._arrays[name][:size].reshape(shape)


def rotation_scores(
    image: Harmonics, reference: Harmonics, grid: PolarGrid, offset: Float32, workspace: Workspace
) -> tuple[Float32, Float32, Float32, Float32]:
    """Correlate images with slices for all in-plane rotations by matrix products.

    Parameters
    ----------
    image
        Weighted harmonics of the images, (q, 2, K, rows): the sum over rings and both signs of q must be folded in.
    reference
        Harmonics of slices, (q, 2, K, d).
    grid
        Of both.
    offset
        Added to all scores of a row, (rows,): the logarithm of its prior.
    workspace
        Holds the result until the next call.

    Returns
    -------
    The four arrays that :func:`best_rotations` reads.
    """
    xp = array_namespace(offset)
    tables = [xp.asarray(table) for table in rotation_matrices(grid)]
    out = []
    for parity, (y, s) in enumerate(((image.even, reference.even), (image.odd, reference.odd))):
        q, _, _, rows = y.shape
        shape = (q, 2, rows, s.shape[-1])
        left = y.swapaxes(-1, -2)
        cosine, sine = (workspace.array(name, shape, xp) for name in ("cosine", "sine"))
        xp.matmul(left[:, 0], s[:, 0], out=cosine[:, 0])
        xp.matmul(left[:, 1], s[:, 1], out=cosine[:, 1])
        xp.matmul(left[:, 1], s[:, 0], out=sine[:, 0])
        xp.matmul(left[:, 0], s[:, 1], out=sine[:, 1])
        if parity == 0:
            cosine[0, 0] += offset[:, None]  # the frequency 0 is the same for all angles
        for kind, products in enumerate((cosine, sine)):
            table = tables[2 * parity + kind]
            sums = workspace.array(f"sums {parity} {kind}", (len(table), *shape[1:]), xp)
            xp.matmul(table, products.reshape(q, -1), out=sums.reshape(len(table), -1))
            out.append(sums)
    return out[0], out[1], out[2], out[3]


def rotation_weights(
    image: Harmonics,
    cos_even: Float32,
    sin_even: Float32,
    cos_odd: Float32,
    sin_odd: Float32,
    grid: PolarGrid,
    workspace: Workspace,
) -> Harmonics:
    """Sum images over all poses by their probability: the adjoint of :func:`rotation_scores` in the slices.

    Parameters
    ----------
    image, grid, workspace
        As for :func:`rotation_scores`.
    cos_even, sin_even, cos_odd, sin_odd
        Probabilities from :func:`posterior_rotations`.

    Returns
    -------
    Harmonics (q, 2, K, d).
    """
    xp = array_namespace(cos_even)
    tables = [xp.asarray(table) for table in rotation_matrices(grid)]
    out = []
    for parity, (y, cosine, sine) in enumerate(((image.even, cos_even, sin_even), (image.odd, cos_odd, sin_odd))):
        q = len(y)
        back = []
        for kind, sums in enumerate((cosine, sine)):
            shape = (q, *sums.shape[1:])
            products = workspace.array(("cosine", "sine")[kind], shape, xp)
            xp.matmul(tables[2 * parity + kind].T, sums.reshape(len(sums), -1), out=products.reshape(q, -1))
            back.append(products)
        total = xp.empty((q, 2, y.shape[2], cosine.shape[-1]), np.float32)
        xp.matmul(y[:, 0], back[0][:, 0], out=total[:, 0])
        total[:, 0] += xp.matmul(y[:, 1], back[1][:, 0])
        xp.matmul(y[:, 1], back[0][:, 1], out=total[:, 1])
        total[:, 1] += xp.matmul(y[:, 0], back[1][:, 1])
        out.append(total)
    return Harmonics(*out)
