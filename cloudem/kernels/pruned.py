"""Fourier transforms of volumes of which only a part is kept on either side, one axis after the other, slab by slab.

A map is smaller than the padded box that it is transformed in, and so are the frequencies up to a limit: most of the
padded cube is zero before a transform, or thrown away after it, and is never made here. Between a map, axes [z, y, x],
and its spectrum, [kz, ky, kx], stands the *mixed* array (planes, rows, columns), axes [z, ky, kx]: planes are turned
into it by transforms of x and y, its lines along z into the spectrum. What is done to a slab of either side fits the
caches, where the caller puts in or takes out what it needs.

Positions are counted from the origin, negative ones before it; maps are given in their order, and where they begin.
Frequencies are in FFT order: ``rows`` of them along ky, kx from 0 to ``columns - 1``; a slab of the spectrum, (size,
rows, columns), holds all kz. Transforms are unnormalised forward and normalised by the padded box backward, as in
:mod:`cloudem.kernels.fourier`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Complex64 = NDArray[np.complex64]
Float32 = NDArray[np.float32]

SLAB_ELEMENTS = 1 << 17
"""Complex numbers of a slab, about: it stays in the second-level cache, and many slabs share the cost of a call."""


def slab_of(size: int, columns: int) -> int:
    """Return how many planes of either side make a slab."""
    return max(1, SLAB_ELEMENTS // (size * columns))


def rows_within(reach: int, size: int) -> tuple[int, int]:
    """Return how many rows and columns hold the frequencies up to ``reach``, below Nyquist of the padded box."""
    last = min(reach, size // 2 - 1)
    return 2 * last + 1, last + 1


def frequencies(rows: int) -> NDArray[np.int64]:
    """Return the frequency of each row, voxels of the padded box."""
    order = np.arange(rows)
    return np.where(order < (rows + 1) // 2, order, order - rows)


def planes_to_mixed(planes: Float32, left: int, top: int, size: int, rows: int, columns: int) -> Complex64:
    """Transform x and y of planes of a map.

    Parameters
    ----------
    planes
        Shape (s, r, c), float32: part of planes that are zero elsewhere.
    left, top
        Positions of its first column, x, and of its first row, y.
    size
        Edge of the padded box.
    rows, columns
        Frequencies that are kept.

    Returns
    -------
    Shape (s, rows, columns), complex64.
    """
    lines = scipy.fft.rfft(_spread(planes, 2, left, size), axis=2)[:, :, :columns]
    square = scipy.fft.fft(_spread(lines, 1, top, size), axis=1, overwrite_x=True)
    if rows == size:
        return np.asarray(square, np.complex64)
    mixed = np.empty((len(planes), rows, columns), np.complex64)
    for source, target in _kept(rows, size):
        mixed[:, source] = square[:, target]
    return mixed


def mixed_to_planes(mixed: Complex64, left: int, top: int, size: int, height: int, width: int) -> Float32:
    """Transform ky and kx of mixed planes back: the inverse of :func:`planes_to_mixed`.

    Returns
    -------
    Shape (s, height, width), float32: the part of the planes that begins at column ``left`` and row ``top``.
    """
    rows, columns = mixed.shape[1:]
    square = np.empty((len(mixed), size, columns), np.complex64)
    for source, target in _kept(rows, size):
        square[:, target] = mixed[:, source]
    square[:, (rows + 1) // 2 : size - rows // 2] = 0
    square = scipy.fft.ifft(square, axis=1, overwrite_x=True)
    lines = np.empty((len(mixed), height, size // 2 + 1), np.complex64)
    lines[:, :, columns:] = 0
    for source, target in _positions(top, height, size):
        lines[:, source, :columns] = square[:, target]
    padded = scipy.fft.irfft(lines, n=size, axis=2, overwrite_x=True)
    if left == 0:
        return np.asarray(padded[:, :, :width], np.float32)
    planes = np.empty((len(mixed), height, width), np.float32)
    for source, target in _positions(left, width, size):
        planes[:, :, source] = padded[:, :, target]
    return planes


def mixed_to_spectrum(mixed: Complex64, bottom: int, size: int) -> Complex64:
    """Transform z: (planes, rows, columns), the first plane at the position ``bottom``, to (size, rows, columns)."""
    spectrum = np.zeros((size, *mixed.shape[1:]), np.complex64)
    for source, target in _positions(bottom, len(mixed), size):
        spectrum[target] = mixed[source]
    return np.asarray(scipy.fft.fft(spectrum, axis=0, overwrite_x=True), np.complex64)


def spectrum_to_mixed(spectrum: Complex64, bottom: int, count: int) -> Complex64:
    """Transform kz back, (size, rows, columns) to ``count`` planes from the position ``bottom`` on.

    The spectrum is overwritten.
    """
    lines = scipy.fft.ifft(spectrum, axis=0, overwrite_x=True)
    if bottom == 0:
        return np.asarray(lines[:count], np.complex64)
    mixed = np.empty((count, *spectrum.shape[1:]), np.complex64)
    for source, target in _positions(bottom, count, len(spectrum)):
        mixed[source] = lines[target]
    return mixed


def _spread(values: NDArray[Any], axis: int, low: int, size: int) -> NDArray[Any]:
    """Return a transform's input of ``size`` along an axis with values from position ``low`` on; or them if all."""
    count = values.shape[axis]
    if low == 0 and count == size:
        return values
    spread = np.zeros((*values.shape[:axis], size, *values.shape[axis + 1 :]), values.dtype)
    before = (slice(None),) * axis
    for source, target in _positions(low, count, size):
        spread[(*before, target)] = values[(*before, source)]
    return spread


def _positions(low: int, count: int, size: int) -> list[tuple[slice, slice]]:
    """Return where ``count`` positions from ``low`` on lie in a transform of ``size``."""
    before = min(max(-low, 0), count)
    parts = [(slice(0, before), slice(low % size, low % size + before))]
    start = max(low, 0)
    parts.append((slice(before, count), slice(start, start + count - before)))
    return [part for part in parts if part[0].stop > part[0].start]


def _kept(rows: int, size: int) -> list[tuple[slice, slice]]:
    """Return where frequencies in FFT order lie among all those of a transform."""
    up = (rows + 1) // 2
    return [(slice(0, up), slice(0, up)), (slice(up, rows), slice(size - (rows - up), size))]


def columns_within(rows: NDArray[Any], squared_radius: float, columns: int) -> int:
    """Return how many columns of these rows, frequencies ky, lie within a sphere: those up to the widest row's."""
    left = squared_radius - float(np.min(np.square(rows)))
    return min(int(np.sqrt(left)) + 1, columns) if left >= 0 else 0
