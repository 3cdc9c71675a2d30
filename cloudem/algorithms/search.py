"""Exhaustive search of orientation, in-plane rotation and shift on a grid, by matrix products of angular harmonics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.arrays import array_namespace, on_device
from cloudem.kernels.fourier import HalfDisc, half_disc
from cloudem.kernels.polar import (
    Harmonics,
    PolarGrid,
    Workspace,
    best_rotations,
    decode,
    harmonics,
    polar_grid,
    polar_interpolation,
    ring_norms,
    rotation_scores,
    shift_samples,
)
from cloudem.kernels.slices import extract
from cloudem.model.poses import asymmetric_directions, view_rotations

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

DIRECTION_TILE = 96
ROW_TILE = 64
"""Directions, and images × shifts, of one matrix product: its output then stays in the second-level cache."""

DEVICE_TILES = 1024, 1024
"""The same on a GPU, which needs more at once: its output then takes half a gigabyte."""

MARGIN = 3
"""Shells beyond the search limit that the interpolation to polar samples reads."""

OPPOSITE = np.diag([1.0, -1.0, -1.0])
"""From the slice of a direction to that of its opposite: half a turn about the image's x axis."""


@dataclass(frozen=True)
class SearchGrid:
    """A reference made ready for the search; built once per iteration and half-set, read by every task.

    Attributes
    ----------
    grid, disc
        Polar samples, and the half disc (of the grid's limit and a margin) from which images are interpolated.
    to_real, to_imaginary, from_origin
        :func:`cloudem.kernels.polar.polar_interpolation`.
    rotations
        Shape (d, 3, 3): a pose for each direction, in-plane angle 0.
    slices
        Harmonics of the reference's slices, (q, 2, K, d).
    power
        Mean of ``|S|²`` over each ring, (K, d).
    """

    box: int
    grid: PolarGrid
    disc: HalfDisc
    to_real: Float32
    to_imaginary: Float32
    from_origin: Float32
    rotations: Float64
    slices: Harmonics
    power: Float32


def search_grid(
    volume: NDArray[np.complex64], padding: float, box: int, k_max: int, radius: float, step: float, group: Float64
) -> SearchGrid:
    """Take the slices of a reference on a grid of directions.

    Parameters
    ----------
    volume, padding, box
        As for :func:`cloudem.kernels.slices.extract`.
    k_max
        Search limit, cycles per box.
    radius
        Particle radius, pixels.
    step
        Distance between directions, radians.
    group
        Symmetry operators (g, 3, 3).
    """
    grid = polar_grid(k_max, radius, box)
    disc = half_disc(box, min(k_max + MARGIN, box // 2 - 1))
    rotations = view_rotations(asymmetric_directions(step, group))
    samples = extract(volume, rotations, grid.kx, grid.ky, padding).reshape(len(rotations), k_max, -1)  # type: ignore[arg-type]
    xp = array_namespace(samples)
    slices = harmonics(samples.real.copy(), samples.imag.copy(), grid)
    power = np.mean(samples.real**2 + samples.imag**2, axis=-1).T
    to_real, to_imaginary, from_origin = map(xp.asarray, polar_interpolation(grid, disc, box, radius))
    return SearchGrid(
        box, grid, disc, to_real, to_imaginary, from_origin, rotations, slices, xp.ascontiguousarray(power, np.float32)
    )


@dataclass(frozen=True)
class Hits:
    """Best in-plane rotation and shift of each image for each direction and its opposite.

    Attributes
    ----------
    numerator
        ``N = Re⟨X C / σ², S⟩`` with the shift's prior added, (b, 2, d).
    norm
        ``D = ⟨C² / σ², |S|²⟩``, (b, d); the opposite direction has the same.
    code
        For :func:`cloudem.kernels.polar.decode`, (b, 2, d).
    """

    numerator: Float32
    norm: Float32
    code: NDArray[np.int32]


def search(
    reference: SearchGrid,
    samples: NDArray[np.complex64],
    origin: Float32,
    weight: Float32,
    power: Float32,
    shifts: Float64,
    prior: Float32,
) -> Hits:
    """Score images against all directions, in-plane rotations and shifts.

    Parameters
    ----------
    reference
        The grid.
    samples, origin
        Fourier coefficients of the masked images on ``reference.disc``, (b, p), and their zero frequency, (b,).
    weight
        ``C / σ²`` on the polar samples, (b, s).
    power
        Ring means of ``C² / σ²``, (b, K): the norm neglects that astigmatism makes it depend on the angle, which
        matters only at frequencies far beyond what a grid can use.
    shifts, prior
        Shifts to try, (b, t, 2) pixels, and the logarithm of their prior, (b, t).
    """
    xp = array_namespace(samples)
    grid = reference.grid
    count, tried = shifts.shape[:2]
    directions = reference.power.shape[1]
    real = (samples.real @ reference.to_real + origin[:, None] * reference.from_origin) * weight
    imaginary = (samples.imag @ reference.to_imaginary) * weight
    rings = np.arange(1, grid.k_max + 1)
    # a ring's half circle stands for pi k pixels; harmonics of q > 0 count twice, for -q
    fold = xp.asarray((np.pi * rings).astype(np.float32)[:, None])
    twice = xp.asarray((1 + (grid.even > 0)).astype(np.float32)[:, None, None, None])
    norm = ring_norms(power * fold.T, reference.power)
    numerator = np.empty((count, 2, directions), np.float32)
    code = np.empty((count, 2, directions), np.int32)
    row_tile, direction_tile = DEVICE_TILES if on_device(samples) else (ROW_TILE, DIRECTION_TILE)
    per_tile = max(1, row_tile // tried)
    workspace = Workspace()
    for first in range(0, count, per_tile):
        rows = slice(first, min(first + per_tile, count))
        turned = shift_samples(real[rows], imaginary[rows], grid.kx, grid.ky, shifts[rows], reference.box)
        parts = [part.reshape(-1, grid.k_max, grid.angles // 2) for part in turned]
        image = harmonics(parts[0], parts[1], grid)
        image = Harmonics(image.even * (fold * twice), image.odd * (2 * fold))
        offset = xp.asarray(prior[rows].ravel())
        for start in range(0, directions, direction_tile):
            tile = slice(start, min(start + direction_tile, directions))
            slices = Harmonics(reference.slices.even[..., tile], reference.slices.odd[..., tile])
            sums = rotation_scores(image, slices, grid, offset, workspace)
            numerator[rows, :, tile], code[rows, :, tile] = best_rotations(*sums, tried)
    return Hits(numerator, norm, code)


def poses(
    reference: SearchGrid,
    hits: Hits,
    images: NDArray[Any],
    side: NDArray[Any],
    direction: NDArray[Any],
    shifts: Float64,
) -> tuple[Float64, Float64]:
    """Return rotations (c, 3, 3) and shifts (c, 2) of chosen hits: image, side (0, or 1 for opposite), direction."""
    shift, psi = decode(hits.code[images, side, direction], reference.grid.angles)
    base = reference.rotations[direction]
    base = np.where((side == 1)[:, None, None], OPPOSITE @ base, base)
    cosine, sine, zero = np.cos(psi), np.sin(psi), np.zeros_like(psi)
    in_plane = np.stack([cosine, sine, zero, -sine, cosine, zero, zero, zero, zero + 1], axis=-1).reshape(-1, 3, 3)
    return in_plane @ base, shifts[images, shift]


def shift_grid(radius: float, step: float) -> Float64:
    """Return the shifts (t, 2) in pixels of a hexagonal lattice inside a circle; the centre is one of them."""
    if step <= 0 or radius < step / 2:
        return np.zeros((1, 2))
    count = int(np.ceil(radius / step)) + 1
    i, j = np.mgrid[-2 * count : 2 * count + 1, -2 * count : 2 * count + 1]
    lattice = np.stack([step * (i + 0.5 * j), step * np.sqrt(0.75) * j], axis=-1).reshape(-1, 2)
    inside = np.hypot(*lattice.T) <= radius + 1e-9
    order = np.argsort(np.round(np.hypot(*lattice[inside].T), 6), kind="stable")
    return np.asarray(lattice[inside][order], np.float64)
