"""Maps and images, coarser: their low frequencies on fewer voxels or pixels; for looking at, maps also of 8 bit.

The transform of a map is cropped to those frequencies that the coarse box holds, which
low-passes the map and keeps its centre, voxel ``n // 2``, at the coarse centre.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cloudem.backend.threads import over_slabs
from cloudem.errors import ParameterError
from cloudem.kernels.pruned import slab_of

Complex64 = NDArray[np.complex64]


class Levels(NamedTuple):
    """A map in 256 levels, evenly from its least value to its greatest, and what these and its moments were."""

    values: NDArray[np.uint8]
    minimum: float
    maximum: float
    mean: float
    sigma: float


def coarse_side(box: int, most: int) -> int:
    """Return the voxels along an edge of a coarse map: at most so many, and no more than the map has."""
    return min(box, most)


def coarse_spectrum(volume: NDArray[np.float32], side: int) -> Complex64:
    """Return the low frequencies of a map as the transform of a coarse one.

    Axis after axis is transformed and cropped, so that little more than one slab is held beside the map.

    Parameters
    ----------
    volume
        (n, n, n).
    side
        m, at most n.

    Returns
    -------
        (m, m, m // 2 + 1), layout of ``rfftn``; 0 at the coarse Nyquist frequency of an even m, which has no sign.
        Scaled such that the inverse transform has the values of the map.
    """
    box = len(volume)
    if not 0 < side <= box:
        raise ParameterError(f"a coarse map of a box of {box} has 1 to {box} voxels along an edge, not {side}")
    rows = np.fft.fftfreq(side, 1 / side).astype(int)  # negative ones count from the end of the whole transform
    columns = side // 2 + 1
    planes = np.empty((box, side, columns), np.complex64)

    def within_planes(first: int, stop: int) -> None:
        along_x = fft.rfft(np.asarray(volume[first:stop], np.float32), axis=2)[:, :, :columns]
        planes[first:stop] = fft.fft(along_x, axis=1, overwrite_x=True)[:, rows]

    over_slabs(within_planes, box, slab_of(box, box))
    found = np.asarray(fft.fft(planes, axis=0, overwrite_x=True)[rows], np.complex64)
    if side < box:
        shift = _phases(rows, box, side)
        found *= shift[:, None, None] * shift[:, None] * shift[:columns] * np.float32((side / box) ** 3)
        if side % 2 == 0:
            found[side // 2], found[:, side // 2], found[:, :, side // 2] = 0, 0, 0
    return found


def _phases(rows: NDArray[np.int_], box: int, side: int) -> Complex64:
    """Return what takes the centre of one box to that of another: both are even, or it is a part of a voxel."""
    apart = (box // 2) / box - (side // 2) / side
    return np.asarray(np.exp(2j * np.pi * rows * apart), np.complex64)


def coarse_map(spectrum: Complex64, curve: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
    """Return the coarse map of a spectrum, (m, m, m), multiplied with a curve by shell, zero beyond its last one."""
    side = len(spectrum)
    if curve is not None:
        k = np.fft.fftfreq(side, 1 / side) ** 2
        radius = np.sqrt(k[:, None, None] + k[:, None] + np.arange(side // 2 + 1) ** 2)
        spectrum = spectrum * np.interp(radius, np.arange(len(curve)), curve, right=0.0).astype(np.float32)
    return np.asarray(fft.irfftn(spectrum, s=(side,) * 3), np.float32)


def coarse_images(
    images: NDArray[np.float32], side: int, curve: NDArray[np.floating] | None = None
) -> NDArray[np.float32]:
    """Return images on fewer pixels: their low frequencies, multiplied with a curve by shell.

    Parameters
    ----------
    images
        (b, n, n).
    side
        m, at most n.
    curve
        (n // 2 + 1,), by shell; None for 1 everywhere.

    Returns
    -------
        (b, m, m), in the units of the images; the centre, pixel ``n // 2``, is at the coarse centre.
    """
    box = images.shape[-1]
    if not 0 < side <= box:
        raise ParameterError(f"a coarse image of a box of {box} has 1 to {box} pixels along an edge, not {side}")
    rows = np.fft.fftfreq(side, 1 / side).astype(int)
    columns = side // 2 + 1
    found = np.asarray(fft.rfft2(np.asarray(images, np.float32))[:, rows, :columns], np.complex64)
    if curve is not None:
        radius = np.hypot(rows[:, None], np.arange(columns))
        found *= np.interp(radius, np.arange(len(curve)), curve, right=0.0).astype(np.float32)
    if side < box:
        shift = _phases(rows, box, side)
        found *= shift[:, None] * shift[:columns] * np.float32((side / box) ** 2)
        if side % 2 == 0:  # the coarse Nyquist frequency has no sign
            found[:, side // 2], found[:, :, side // 2] = 0, 0
    return np.asarray(fft.irfft2(found, s=(side, side)), np.float32)


def in_levels(density: NDArray[np.float32]) -> Levels:
    """Return a map in 256 levels: ``value = minimum + level / 255 * (maximum - minimum)``, to half a level."""
    low, high = float(density.min()), float(density.max())
    scale = 255.0 / (high - low) if high > low else 0.0
    values = np.rint((density - np.float32(low)) * np.float32(scale)).clip(0, 255).astype(np.uint8)
    return Levels(values, low, high, float(density.mean(dtype=np.float64)), float(density.std(dtype=np.float64)))
