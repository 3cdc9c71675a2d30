"""From sums over slices to a map: symmetry, Wiener filter, gridding correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.mask import soft_sphere
from cloudem.backend.arrays import array_namespace
from cloudem.backend.threads import over_slabs
from cloudem.kernels.fourier import fourier_volume, real_volume
from cloudem.kernels.pruned import (
    columns_within,
    frequencies,
    mixed_to_planes,
    mixed_to_spectrum,
    planes_to_mixed,
    rows_within,
    slab_of,
    spectrum_to_mixed,
)
from cloudem.kernels.real_space import scale_planes
from cloudem.kernels.slices import (
    fast_even,
    gridding,
    half_width,
    padded_box,
    place_volume,
    touched_radius,
)
from cloudem.kernels.wiener import divide, weights_by_shell

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

CORNER_EDGE = 3.0
"""Width in pixels of the soft edge with which a map ends at half the box."""

REACH, REACH_EDGE = 0.6, 0.15
"""Distance, in boxes, up to which the points of a map are known to spread into one another, and the soft edge of that:
beyond it the accumulator's transform is aliased."""

LEVELLED = 6
"""Shells up to which a map is corrected for uneven weights, whatever it is made of (:func:`levelled_shells`)."""

MOST_LEVELLED, SLICES_BY_SHELL = 16, 100
"""The most, and how many slices there have to be for each."""

LEVEL_MARGIN = 5
"""Shells beyond the corrected ones that the correction reads."""


@dataclass
class Sums:
    """An accumulator: Σ γ C X / σ² and Σ γ C² / σ² in a padded half-volume (see :mod:`cloudem.kernels.slices`)."""

    data: NDArray[np.complex64]
    weight: NDArray[np.float32]


def empty_sums(box: int, k_max: int, beside: NDArray[Any] | None = None) -> Sums:
    """Return an accumulator for shells up to ``k_max``, where an array lives; on the host by default."""
    xp = np if beside is None else array_namespace(beside)
    m = half_width(k_max, padded_box(box) / box)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    return Sums(xp.zeros(shape, np.complex64), xp.zeros(shape, np.float32))


def shells_of(sums: Sums, box: int) -> NDArray[np.int32]:
    """Return the shell, in cycles per box, of every voxel of an accumulator."""
    m = sums.data.shape[2] - 2
    padding = padded_box(box) / box
    full = (np.arange(-m, m + 1) / padding) ** 2
    half = (np.arange(-1, m + 1) / padding) ** 2
    return np.rint(np.sqrt(full[:, None, None] + full[None, :, None] + half)).astype(np.int32)


def shell_weights(sums: Sums, box: int) -> Float64:
    """Return the mean weight of each shell, (n // 2 + 1,)."""
    count, padding = box // 2 + 1, padded_box(box) / box
    parts = over_slabs(
        lambda first, last: weights_by_shell(sums.weight, padding, count, first, last), len(sums.weight), 16
    )
    total, number = sum(parts[1:], parts[0])
    return np.asarray(total / np.maximum(number, 1))


def levelled_shells(slices: int) -> int:
    """Return the shell up to which a map of so many slices, mates included, is to be corrected for uneven weights.

    Where views crowd about an axis, the quotient of a voxel is that of the weights' centroid in its window. That is
    nearer to the plane across the axis, by a share that falls as 1 / k²: the map is flattened along the axis, and poses
    compared with it come out tilted by more than they are (by 5 % where 80 % of the views are within 15°, if only six
    shells are corrected; by 1 % with 16). Where slices are few, weights are uneven by chance, and the correction
    amplifies noise: made of 300 slices, shells 7 to 16 lose 0.007 of their FSC.
    """
    return int(np.clip(slices // SLICES_BY_SHELL, LEVELLED, MOST_LEVELLED))


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
    added = _added_weights(shell_weights(sums, box), ssnr).astype(np.float32)
    last = box // 2 if k_max is None else min(k_max, box // 2)
    padded, m = padded_box(box), sums.data.shape[2] - 2
    # shells beyond n // 2 count as that one: without a last shell all that was inserted is kept
    radius = padded / box * (last + 0.5) if last < box // 2 else 2.0 * m
    rows, columns = rows_within(min(m, int(radius)), padded)
    missing = _level(sums, added, last, box, levelled) if levelled else None
    mixed = np.zeros((box, rows, columns), np.complex64)

    def along_z(first: int, stop: int) -> None:
        ky = frequencies(rows)[first:stop]
        width = columns_within(ky, radius**2, columns)
        spectrum = np.zeros((padded, stop - first, width), np.complex64)
        divide(sums.data, sums.weight, added, padded / box, last, ky, spectrum)
        if missing is not None:
            _add_inner(spectrum, missing, ky)
        mixed[:, first:stop, :width] = spectrum_to_mixed(spectrum, -(box // 2), box)

    over_slabs(along_z, rows, slab_of(padded, columns))
    return _density(mixed, box, padded)


def _added_weights(mean: Float64, ssnr: Float64 | None) -> Float64:
    """Return ``1 / τ²`` by shell, from the mean weights of the shells."""
    # 1e-3 of the mean weight: an empty corner of a shell stays empty instead of holding a few samples' noise
    floor = 1e-3 * mean + 1e-12 * mean.max() + 1e-30
    return floor if ssnr is None else np.asarray(np.maximum(mean / np.maximum(ssnr, 1e-6), floor))


def own_share(sums: Sums, ssnr: Float64, mask: Float32, circle: Float32, k_max: int) -> Float64:
    """Return which part of ``C X / σ²`` of an image comes back in the slice of the map at the pose it was inserted at.

    Inserting and solving smears an image along its view; the mask keeps, of the length of the box, the mean thickness
    ``sum(mask) / sum(circle²)`` of the molecule within the image's circle. A slice through that holds, in shell k,
    ``C X / σ²`` times ``(thickness / n) / padding³ / (mean weight + 1 / τ²)``.

    Parameters
    ----------
    sums, ssnr
        As for :func:`solve`.
    mask
        By which the map is multiplied, (n, n, n).
    circle
        By which images are masked, (n, n).
    k_max
        Last shell that was inserted.

    Returns
    -------
    Shape (n // 2 + 1,), in units of σ²; 0 beyond ``k_max``.
    """
    box = len(mask)
    mean = shell_weights(sums, box)
    thickness = float(mask.sum(dtype=np.float64)) / float(np.square(circle, dtype=np.float64).sum())
    share = thickness * box**2 / padded_box(box) ** 3 / (mean + _added_weights(mean, ssnr))
    return np.where(np.arange(len(mean)) <= k_max, share, 0.0)


def _density(mixed: NDArray[np.complex64], box: int, padded: int) -> Float32:
    """Return the map of mixed planes, corrected for the window, without its corners."""
    density = np.zeros((box, box, box), np.float32)
    # the transform is that of the padded box: (n_padded / n)³ more voxels in the sum of its inverse
    line = (1 / gridding(box, padded)).astype(np.float32)
    # corners that no circle of the images covers hold little but aliased noise
    radius, edge = box / 2 - CORNER_EDGE, CORNER_EDGE

    def in_plane(first: int, stop: int) -> None:
        off = min(abs(z - box // 2) for z in range(first, stop))
        half = min(int(np.sqrt(max((radius + edge) ** 2 - off**2, 0.0))), box // 2 - 1)
        rows = slice(box // 2 - half, box // 2 + half + 1)
        planes = mixed_to_planes(mixed[first:stop], -(box // 2), -half, padded, 2 * half + 1, box)
        scale_planes(planes, line, first, rows.start, radius, edge)
        density[first:stop, rows] = planes

    over_slabs(in_plane, box, slab_of(padded, mixed.shape[2]))
    return density


def _level(sums: Sums, added: Float32, last: int, box: int, levelled: int) -> NDArray[np.complex64]:
    """Return what the quotient of data and weights misses in the inner shells, where the weights are not even.

    Dividing voxel by voxel is exact where weights are constant across the window. Near the origin they are not, since
    slices crowd there as 1 / |k|, nor at the first oscillations of the CTF: shells 1 to 4 come out up to 15 % wrong.
    One step of iterative refinement: predict the accumulator from the map, by convolution with what the slices make
    of a single point, and add the quotient of what is missing. Only the inner shells are transformed, on a small grid.

    Returns
    -------
    Shape (2 i + 1, 2 i + 1, i + 1), axes [kz, ky, kx], the origin at [i, i, 0].
    """
    padded = padded_box(box)
    m = sums.data.shape[2] - 2
    inner = min(half_width(levelled + LEVEL_MARGIN, padded / box), m)
    size = padded if inner == m else fast_even(2 * inner + 2)
    rows = slice(m - inner, m + inner + 1)
    part = Sums(sums.data[rows, rows, : inner + 2], sums.weight[rows, rows, : inner + 2])
    shells = shells_of(part, box)
    raised = added[np.minimum(shells, box // 2)]
    inverse = np.where(np.minimum(shells, box // 2) <= last, 1 / (part.weight + raised), np.float32(0))
    solved = part.data * inverse
    pixel = size / padded  # of the map, in pixels of the small grid
    line = gridding(size, size)
    window = np.asarray(line[:, None, None] * line[:, None] * line, np.float32)
    point = real_volume(place_volume(part.weight.astype(np.complex64), size))
    point *= soft_sphere(size, REACH * box * pixel, REACH_EDGE * box * pixel) / window
    response = fourier_volume(point).real
    ball = soft_sphere(size, (box / 2 - CORNER_EDGE) * pixel, max(CORNER_EDGE * pixel, 1.0))
    density = real_volume(place_volume(solved, size)) * (ball / window)
    predicted = fourier_volume(real_volume(fourier_volume(density) * response) * window)
    around = np.arange(-inner, inner + 1) % size
    known = np.minimum(inner, size // 2 - 1) + 1
    here = np.s_[:, :, 1 : known + 1]
    # what was added to the weights counts voxel by voxel: where it is large, all that the ball spreads would grow by it
    missing = part.data[here] - raised[here] * solved[here] - predicted[np.ix_(around, around, np.arange(known))]
    # in the last shell inserted (see half_width) the weights end, and nothing is to be gained
    end = min(levelled, int((m - 2) * box / padded - 0.5) - 1)
    return np.asarray(np.where(shells[here] <= end, missing * inverse[here], 0), np.complex64)


def _add_inner(spectrum: NDArray[np.complex64], inner: NDArray[np.complex64], ky: NDArray[np.int64]) -> None:
    """Add an inner part of a half-volume to a slab of the spectrum, in place."""
    size, _, width = spectrum.shape
    reach = min(len(inner) // 2, size // 2 - 1)
    width = min(width, inner.shape[2])
    kz, centre = np.arange(-reach, reach + 1), len(inner) // 2
    for row in np.flatnonzero(np.abs(ky) <= reach):
        spectrum[kz % size, row, :width] += inner[kz + centre, ky[row] + centre, :width]


def reference_volume(density: Float32, k_max: int) -> NDArray[np.complex64]:
    """Return the padded half-volume of a map, for shells up to ``k_max``, ready for :func:`extract`.

    Voxels that no window of these shells touches are left zero.
    """
    box = density.shape[0]
    padded = padded_box(box)
    m, radius2 = half_width(k_max, padded / box), touched_radius(k_max, padded / box)
    rows, columns = rows_within(m, padded)
    line = (1 / gridding(box, padded)).astype(np.float32)
    mixed = np.empty((box, rows, columns), np.complex64)

    def in_plane(first: int, stop: int) -> None:
        planes = density[first:stop].astype(np.float32)
        scale_planes(planes, line, first, 0, np.inf, 0.0)
        mixed[first:stop] = planes_to_mixed(planes, -(box // 2), -(box // 2), padded, rows, columns)

    over_slabs(in_plane, box, slab_of(padded, columns))
    volume = np.zeros((2 * m + 1, 2 * m + 1, m + 2), np.complex64)
    kz = frequencies(rows)

    def along_z(first: int, stop: int) -> None:
        ky = kz[first:stop]
        width = columns_within(ky, radius2, columns)
        spectrum = mixed_to_spectrum(mixed[:, first:stop, :width], -(box // 2), padded)
        volume[(kz + m)[:, None], ky + m, 1 : width + 1] = spectrum[kz % padded]

    over_slabs(along_z, rows, slab_of(padded, columns))
    volume[:, :, 0] = volume[::-1, ::-1, 2].conj()
    return volume


def signal_to_noise(fsc: Float64) -> Float64:
    """Return the spectral signal-to-noise ratio of a half-map from the correlation of two: FSC / (1 - FSC)."""
    clipped = np.clip(fsc, 0.0, 0.9999)
    return np.asarray(clipped / (1 - clipped))
