"""From sums over slices to a map: symmetry, Wiener filter, gridding correction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.mask import soft_sphere
from cloudem.kernels.fourier import fourier_volume, real_volume
from cloudem.kernels.slices import (
    correct_gridding,
    crop_volume,
    fast_even,
    gridding,
    half_width,
    padded_box,
    place_volume,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

CORNER_EDGE = 3.0
"""Width in pixels of the soft edge with which a map ends at half the box."""

REACH, REACH_EDGE = 0.6, 0.15
"""Distance, in boxes, up to which the points of a map are known to spread into one another, and the soft edge of that:
beyond it the accumulator's transform is aliased."""

LEVELLED = 6
"""Shells up to which a map is corrected for uneven weights: beyond, they are even enough and noise decides."""

LEVEL_MARGIN = 5
"""Shells beyond the corrected ones that the correction reads."""


@dataclass
class Sums:
    """An accumulator: Σ γ C X / σ² and Σ γ C² / σ² in a padded half-volume (see :mod:`cloudem.kernels.slices`)."""

    data: NDArray[np.complex64]
    weight: NDArray[np.float32]


def empty_sums(box: int, k_max: int) -> Sums:
    """Return an accumulator for shells up to ``k_max``."""
    m = half_width(k_max, padded_box(box) / box)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    return Sums(np.zeros(shape, np.complex64), np.zeros(shape, np.float32))


def shells_of(sums: Sums, box: int) -> NDArray[np.int32]:
    """Return the shell, in cycles per box, of every voxel of an accumulator."""
    m = sums.data.shape[2] - 2
    padding = padded_box(box) / box
    full = (np.arange(-m, m + 1) / padding) ** 2
    half = (np.arange(-1, m + 1) / padding) ** 2
    return np.rint(np.sqrt(full[:, None, None] + full[None, :, None] + half)).astype(np.int32)


def shell_weights(sums: Sums, box: int) -> Float64:
    """Return the mean weight of each shell, (n // 2 + 1,)."""
    count = box // 2 + 1
    shells = shells_of(sums, box)[:, :, 1:].ravel()
    total = np.bincount(shells, sums.weight[:, :, 1:].ravel(), minlength=count)[:count]
    number = np.bincount(shells, minlength=count)[:count]
    return np.asarray(total / np.maximum(number, 1))


def solve(sums: Sums, box: int, ssnr: Float64 | None, k_max: int | None = None, levelled: int = LEVELLED) -> Float32:
    """Return the map.

    ``V = Σ C X / σ² / (Σ C² / σ² + 1 / τ²)``, with ``1 / τ²`` such that the mean weight of a shell is its
    signal-to-noise ratio times that: ``1 / τ² = mean weight / SSNR``.

    Parameters
    ----------
    sums
        With all mates (:func:`cloudem.algorithms.bricks.unpack`).
    box
        Pixels.
    ssnr
        Spectral signal-to-noise ratio of the map, (n // 2 + 1,); None for no filter beyond a small constant.
    k_max
        Last shell of the map; beyond it is zero.
    levelled
        Last shell that is corrected for uneven weights (:func:`_level`), 0 for none. Noise-free data gain from
        ``n // 2``; noisy data lose by it, since where slices are few the correction amplifies noise.

    Returns
    -------
    Shape (n, n, n), float32.
    """
    shells = np.minimum(shells_of(sums, box), box // 2)
    mean = shell_weights(sums, box)
    floor = 1e-3 * mean + 1e-12 * mean.max() + 1e-30
    # 1e-3 of the mean weight: an empty corner of a shell stays empty instead of holding a few samples' noise
    regularise = floor if ssnr is None else np.maximum(mean / np.maximum(ssnr, 1e-6), floor)
    added = regularise.astype(np.float32)[shells]
    inverse = 1 / (sums.weight + added)
    if k_max is not None:
        inverse[shells > k_max] = 0
    solved = sums.data * inverse
    if levelled:
        _level(solved, sums, added, inverse, shells, box, levelled)
    padded = padded_box(box)
    # the transform is that of the padded box: (n_padded / n)³ more voxels in the sum of its inverse
    volume = correct_gridding(real_volume(place_volume(solved, padded), box), padded)
    # corners that no circle of the images covers hold little but aliased noise
    return np.asarray(volume * soft_sphere(box, box / 2 - CORNER_EDGE, CORNER_EDGE), np.float32)


def _level(
    solved: NDArray[np.complex64],
    sums: Sums,
    added: Float32,
    inverse: Float32,
    shells: NDArray[np.int32],
    box: int,
    levelled: int,
) -> None:
    """Correct the quotient of data and weights, in place, where the weights are not even.

    Dividing voxel by voxel is exact where weights are constant across the window. Near the origin they are not, since
    slices crowd there as 1 / |k|, nor at the first oscillations of the CTF: shells 1 to 4 come out up to 15 % wrong.
    One step of iterative refinement: predict the accumulator from the map, by convolution with what the slices make
    of a single point, and add the quotient of what is missing. Only the inner shells are transformed, on a small grid.
    """
    padded = padded_box(box)
    m = sums.data.shape[2] - 2
    inner = min(half_width(levelled + LEVEL_MARGIN, padded / box), m)
    size = padded if inner == m else fast_even(2 * inner + 2)
    rows = slice(m - inner, m + inner + 1)
    part = (rows, rows, slice(inner + 2))
    pixel = size / padded  # of the map, in pixels of the small grid
    line = gridding(size, size)
    window = np.asarray(line[:, None, None] * line[:, None] * line, np.float32)
    point = real_volume(place_volume(sums.weight[part].astype(np.complex64), size))
    point *= soft_sphere(size, REACH * box * pixel, REACH_EDGE * box * pixel) / window
    response = fourier_volume(point).real
    ball = soft_sphere(size, (box / 2 - CORNER_EDGE) * pixel, max(CORNER_EDGE * pixel, 1.0))
    density = real_volume(place_volume(solved[part], size)) * (ball / window)
    predicted = fourier_volume(real_volume(fourier_volume(density) * response) * window)
    around = np.arange(-inner, inner + 1) % size
    known = np.minimum(inner, size // 2 - 1) + 1
    part = (rows, rows, slice(1, known + 1))
    # what was added to the weights counts voxel by voxel: where it is large, all that the ball spreads would grow by it
    missing = sums.data[part] - added[part] * solved[part] - predicted[np.ix_(around, around, np.arange(known))]
    # in the last shell inserted (see half_width) the weights end, and nothing is to be gained
    last = min(levelled, int((m - 2) * box / padded - 0.5) - 1)
    solved[part] += np.where(shells[part] <= last, missing * inverse[part], 0)


def reference_volume(density: Float32, k_max: int) -> NDArray[np.complex64]:
    """Return the padded half-volume of a map, for shells up to ``k_max``, ready for :func:`extract`."""
    n = density.shape[0]
    padded = padded_box(n)
    enlarged = np.zeros((padded, padded, padded), np.float32)
    low = padded // 2 - n // 2
    enlarged[low : low + n, low : low + n, low : low + n] = correct_gridding(density, padded)
    return crop_volume(fourier_volume(enlarged), n, k_max)


def signal_to_noise(fsc: Float64) -> Float64:
    """Return the spectral signal-to-noise ratio of a half-map from the correlation of two: FSC / (1 - FSC)."""
    clipped = np.clip(fsc, 0.0, 0.9999)
    return np.asarray(clipped / (1 - clipped))
