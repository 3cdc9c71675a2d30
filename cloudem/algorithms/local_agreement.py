"""How well two half-maps agree around each voxel, band by band; local resolution, filters and sharpening follow.

A map is cut into soft bands of the logarithm of the frequency, which add up to it. The agreement of two half-maps in a
band, around a voxel, is the correlation of the bands f and g in a window w,

``cc(x) = w∗(f g) / sqrt(w∗f² · w∗g²)``,

which, with a window as large as the map, is their FSC in that band. The band is cut out before the window is laid on
it, so that no stronger signal of other frequencies leaks into it, as it does where a map is multiplied by a sphere
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cloudem.kernels.bands import SoftBand, add_band, cut_band, on_finer_grid, smoothed_correlation
from cloudem.kernels.pruned import frequencies
from cloudem.kernels.slices import fast_even

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

RATIO = 1.15
"""Of the centres of neighbouring bands, where they are more than a shell apart."""

WINDOW_WAVES = 1.5
"""Standard deviation of the Gaussian window, in waves of the band's centre: 3 waves lie within one of it."""

GRID = 2.8
"""Voxels of a band's grid along an edge, per shell of its centre: it holds the band, and the low frequencies of its
square."""

SMOOTH_GRID = 1.6
"""The same of the grid on which the agreement is kept: its voxels are 0.4 standard deviations of the window."""

SLAB = 16
"""Planes that are interpolated at a time."""

LEAST_POWER = 1e-4
"""Of a band, as a share of its mean: where there is less, as outside a mask, there is nothing to compare."""


class BandAgreement(NamedTuple):
    """How two half-maps agree in a band.

    Attributes
    ----------
    number
        Of the band.
    agreement
        Local correlation on a coarse grid whose first voxel is the map's, (c, c, c), -1 to 1.
    power
        What it is the share of: geometric mean of the half-maps' squares in the window, (c, c, c).
    """

    number: int
    agreement: Float32
    power: Float32


def bands_up_to(first: float, last: float, ratio: float = RATIO) -> list[SoftBand]:
    """Return bands whose centres go from a shell to another one, each `ratio` or one shell beyond the one before.

    Parameters
    ----------
    first, last
        Shells, fractional; the last centre lies less than half a band from the last one.
    ratio
        Of centres.
    """
    centres = [float(first)]
    while (following := max(centres[-1] * ratio, centres[-1] + 1)) <= last * ratio**0.5:
        centres.append(following)
    edges = [0.0, *centres, np.inf]
    return [SoftBand(*edges[i : i + 3]) for i in range(len(centres))]


def band_size(band: SoftBand, box: int) -> int:
    """Return the edge of the grid that holds a band, voxels."""
    return min(fast_even(int(np.ceil(GRID * band.centre)) + 2), box) if np.isfinite(band.above) else box


def transform_of(volume: Float32) -> Complex64:
    """Return the spectrum of a map, (n, n, n // 2 + 1)."""
    return np.asarray(fft.rfftn(np.asarray(volume, np.float32)), np.complex64)


def band_map(spectrum: Complex64, band: SoftBand, size: int) -> Float32:
    """Return a band of a map on a grid with that edge, (size, size, size)."""
    part = fft.irfftn(cut_band(spectrum, band, size), s=(size,) * 3, overwrite_x=True)
    part *= np.float32((size / len(spectrum)) ** 3)
    return np.asarray(part, np.float32)


def windowed(values: Float32, window: Float64, size: int) -> Float32:
    """Return a periodic map smoothed by a window, on a coarser grid.

    Parameters
    ----------
    values
        Shape (m, m, m).
    window
        Transform of the window along an axis, by frequency from 0 to ``size // 2``.
    size
        Edge of the coarser grid.
    """
    m, k = len(values), frequencies(size)
    part = fft.rfftn(values)[np.ix_(k % m, k % m, np.arange(size // 2 + 1))]
    line = (window * (size / m)).astype(np.float32)
    part *= line[np.abs(k), None, None] * line[np.abs(k), None] * line
    return np.asarray(fft.irfftn(part, s=(size,) * 3, overwrite_x=True), np.float32)


def agreements(
    spectra: tuple[Complex64, Complex64], bands: Sequence[SoftBand], first: int = 0, waves: float = WINDOW_WAVES
) -> Iterator[BandAgreement]:
    """Yield how two half-maps agree, one band after the other.

    Parameters
    ----------
    spectra
        Of the half-maps (`transform_of`).
    bands
        As from `bands_up_to`.
    first
        The band to begin with.
    waves
        Width of the window, see `WINDOW_WAVES`.
    """
    n = len(spectra[0])
    for number in range(first, len(bands)):
        band = bands[number]
        size = band_size(band, n)
        coarse = min(fast_even(int(np.ceil(SMOOTH_GRID * WINDOW_WAVES / waves * band.centre)) + 2), size)
        one, other = (band_map(spectrum, band, size) for spectrum in spectra)
        # the transform of a Gaussian whose standard deviation is waves · n / k voxels of the map
        window = np.exp(-2 * (np.pi * waves / band.centre * np.arange(coarse // 2 + 1)) ** 2)
        squares = (one * one, other * other)
        product, own, others = (windowed(values, window, coarse) for values in (one * other, *squares))
        power = np.sqrt(np.maximum(own, 0) * np.maximum(others, 0))
        floor = LEAST_POWER * float(power.mean(dtype=np.float64))
        yield BandAgreement(number, smoothed_correlation(product, own, others, floor), power)


def add_with_gain(total: Complex64, spectrum: Complex64, band: SoftBand, gain: Float32) -> None:
    """Add a band of a map, times a gain that varies from place to place, to a spectrum, in place.

    Parameters
    ----------
    total, spectrum
        What is added to, and of the map (`transform_of`), (n, n, n // 2 + 1).
    band
        Shells.
    gain
        On a coarse grid whose first voxel is the map's, (c, c, c).
    """
    n = len(spectrum)
    # a product reaches as much farther as the gain varies
    size = min(fast_even(band_size(band, n) + len(gain) // 2), n)
    part = band_map(spectrum, band, size)
    for first in range(0, size, SLAB):
        last = min(first + SLAB, size)
        part[first:last] *= on_finer_grid(gain, first, last, size)
    add_band(total, np.asarray(fft.rfftn(part), np.complex64), (n / size) ** 3)


def map_from(spectrum: Complex64) -> Float32:
    """Return the map of a spectrum, which is lost, (n, n, n)."""
    return np.asarray(fft.irfftn(spectrum, s=(len(spectrum),) * 3, overwrite_x=True), np.float32)


def recombined(spectrum: Complex64, bands: Sequence[SoftBand], gains: Sequence[Float32 | None]) -> Float32:
    """Return a map whose bands were each multiplied by a gain: as for `add_with_gain`, or None for 1."""
    total = np.zeros_like(spectrum)
    for band, gain in zip(bands, gains, strict=True):
        if gain is None:
            add_band(total, cut_band(spectrum, band, band_size(band, len(spectrum))), 1.0)
        else:
            add_with_gain(total, spectrum, band, gain)
    return map_from(total)
