"""Transforms of whole maps in place and slab by slab, and what two half-maps' have in common in each shell.

A map (n, n, n) becomes a mixed array, this in place a spectrum, and back (:mod:`cloudem.kernels.pruned`): no more than
(n, n, n // 2 + 1) is kept of a map, and only the planes and rows that a mask reaches are transformed. The origin is the
first voxel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.threads import over_slabs
from cloudem.kernels.cones import cone_products
from cloudem.kernels.correlation import shell_products, turn_phases
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

Complex64 = NDArray[np.complex64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def is_finite(volume: Float32) -> bool:
    """Say whether a volume holds neither NaN nor infinite voxels."""
    return all(over_slabs(lambda first, last: bool(np.isfinite(volume[first:last]).all()), len(volume), 8))


class Extent(NamedTuple):
    """The first of the planes and rows that hold a mask, and the ones after the last."""

    first_plane: int
    last_plane: int
    first_row: int
    last_row: int


def extent_of(mask: Float32) -> Extent:
    """Return where a mask is not zero."""
    planes = over_slabs(lambda first, last: mask[first:last].any(axis=2), len(mask), slab_of(*mask.shape[1:]))
    lines = np.concatenate(planes)
    edges: list[int] = []
    for axis in (1, 0):
        here = np.flatnonzero(lines.any(axis=axis))
        edges += [int(here[0]), int(here[-1]) + 1] if len(here) else [0, 0]
    return Extent(*edges)


def mixed_of(volume: Float32, mask: Float32 | None = None, extent: Extent | None = None) -> Complex64:
    """Return the mixed planes of a map, times a mask, within its extent: (planes, n, n // 2 + 1)."""
    n = len(volume)
    bottom, top, first_row, last_row = extent or Extent(0, n, 0, n)
    mixed = np.empty((top - bottom, n, n // 2 + 1), np.complex64)

    def in_plane(first: int, last: int) -> None:
        part = np.s_[bottom + first : bottom + last, first_row:last_row]
        planes = volume[part] if mask is None else volume[part] * mask[part]
        mixed[first:last] = planes_to_mixed(np.asarray(planes, np.float32), 0, first_row, n, n, n // 2 + 1)

    over_slabs(in_plane, len(mixed), slab_of(n, n // 2 + 1))
    return mixed


def products(a: Complex64, b: Complex64, first_plane: int = 0, *, keep: bool = False) -> Float64:
    """Return the sums over shells of :func:`shell_products`, (3, n // 2 + 1), of two maps' mixed planes.

    Parameters
    ----------
    a, b
        Shape (planes, n, n // 2 + 1).
    first_plane
        Which planes of the maps: from this one on; the others are zero.
    keep
        Leave the spectra in their place; all planes must be there.
    """
    n = a.shape[1]

    def along_z(first: int, last: int) -> Float64:
        ky = frequencies(n)[first:last]
        # beyond n // 2 no shell is summed
        width = n // 2 + 1 if keep else columns_within(ky, (n / 2 + 0.5) ** 2, n // 2 + 1)
        one, other = (mixed_to_spectrum(mixed[:, first:last, :width], first_plane, n) for mixed in (a, b))
        if keep:
            a[:, first:last], b[:, first:last] = one, other
        return shell_products(one, other, ky)

    parts = over_slabs(along_z, n, slab_of(n, n // 2 + 1))
    return np.asarray(sum(parts[1:], parts[0]), np.float64)


def to_spectrum(mixed: Complex64) -> None:
    """Turn all mixed planes of a map into its spectrum, in place."""
    n = mixed.shape[1]

    def along_z(first: int, last: int) -> None:
        mixed[:, first:last] = mixed_to_spectrum(mixed[:, first:last], 0, n)

    over_slabs(along_z, n, slab_of(n, n // 2 + 1))


def randomise(spectrum: Complex64, first_shell: int, seed: int) -> None:
    """Turn a spectrum in place into the mixed planes of the map whose phases, from a shell on, are random ones."""
    n = spectrum.shape[1]

    def along_z(first: int, last: int) -> None:
        part = spectrum[:, first:last].copy()
        turn_phases(part, frequencies(n)[first:last], first_shell, seed)
        spectrum[:, first:last] = spectrum_to_mixed(part, 0, n)

    over_slabs(along_z, n, slab_of(n, n // 2 + 1))


def multiply(mixed: Complex64, mask: Float32, extent: Extent) -> Complex64:
    """Multiply a map by a mask, in place; return what remains of its mixed planes, those within the mask's extent."""
    n = mixed.shape[1]
    bottom, top, first_row, last_row = extent

    def in_plane(first: int, last: int) -> None:
        first, last = bottom + first, bottom + last
        planes = mixed_to_planes(mixed[first:last], 0, first_row, n, last_row - first_row, n)
        planes *= mask[first:last, first_row:last_row]
        mixed[first:last] = planes_to_mixed(planes, 0, first_row, n, n, n // 2 + 1)

    over_slabs(in_plane, top - bottom, slab_of(n, n // 2 + 1))
    return mixed[bottom:top]


def map_of(mixed: Complex64, n: int) -> Float32:
    """Return the map of all its mixed planes, (n, n, n)."""
    planes = over_slabs(
        lambda first, last: mixed_to_planes(mixed[first:last], 0, 0, n, n, n), n, slab_of(n, n // 2 + 1)
    )
    return np.concatenate(planes)


def low_frequencies(volume: Float32, reach: int) -> Complex64:
    """Return the spectrum of a map up to a frequency, (rows, rows, columns) of :func:`rows_within`, in FFT order."""
    n = len(volume)
    rows, columns = rows_within(reach, n)
    mixed, spectrum = np.empty((n, rows, columns), np.complex64), np.empty((rows, rows, columns), np.complex64)

    def in_plane(first: int, last: int) -> None:
        planes = np.asarray(volume[first:last], np.float32)
        mixed[first:last] = planes_to_mixed(planes, 0, 0, n, rows, columns)

    def along_z(first: int, last: int) -> None:
        part = mixed_to_spectrum(mixed[:, first:last], 0, n)
        spectrum[:, first:last] = part[frequencies(rows) % n]

    over_slabs(in_plane, n, slab_of(n, n // 2 + 1))
    over_slabs(along_z, rows, slab_of(n, columns))
    return spectrum


def resampled(spectrum: Complex64, box: int, size: int) -> Float32:
    """Return the map of low frequencies on a grid of ``size`` instead of ``box`` voxels along each edge."""
    rows, _, columns = spectrum.shape
    mixed = np.empty((size, rows, columns), np.complex64)

    def along_z(first: int, last: int) -> None:
        part = np.zeros((size, last - first, columns), np.complex64)
        part[frequencies(rows) % size] = spectrum[:, first:last]
        mixed[:, first:last] = spectrum_to_mixed(part, 0, size)

    over_slabs(along_z, rows, slab_of(size, columns))
    return map_of(mixed, size) * np.float32((size / box) ** 3)


def cone_sums(a: Complex64, b: Complex64, first_plane: int, directions: Float64, cosine: float, last: int) -> Float64:
    """Return the sums of :func:`cloudem.kernels.cones.cone_products`, (3, d, last + 1), of two maps' mixed planes.

    Parameters
    ----------
    a, b, first_plane
        As for :func:`products`.
    directions, cosine, last
        Of the cones; last shell.
    """
    n = a.shape[1]

    def along_z(first: int, last_row: int) -> Float64:
        ky = frequencies(n)[first:last_row]
        width = columns_within(ky, (last + 0.5) ** 2, n // 2 + 1)
        one, other = (mixed_to_spectrum(mixed[:, first:last_row, :width], first_plane, n) for mixed in (a, b))
        return cone_products(one, other, ky, directions, cosine, last)

    # no fewer rows than this: in a large box, the sums of each slab would together take as much memory as the maps
    parts = over_slabs(along_z, n, max(slab_of(n, n // 2 + 1), 8))
    return np.asarray(sum(parts[1:], parts[0]), np.float64)
