"""Bands of frequencies of a map, on grids of their own, and what those of two half-maps share around a voxel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.kernels.pruned import frequencies

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]


class SoftBand(NamedTuple):
    """A soft band of frequencies, in shells: it rises from the centre of the band below and falls to that above.

    Attributes
    ----------
    below, centre, above
        Shells, fractional. 0 and infinity where there is no other band: the first passes all that is lower, the last
        all that is higher.
    """

    below: float
    centre: float
    above: float

    def weight(self, radius: NDArray[np.floating]) -> Float64:
        """Return by how much frequencies at a radius in shells pass: half a cosine of the logarithm, squared.

        ``cos²(pi / 2 · ln(k / centre) / ln(above / centre))``, and alike towards the band below: neighbours make 1.
        """
        k = np.maximum(np.asarray(radius, np.float64), 1e-9)
        with np.errstate(divide="ignore", invalid="ignore"):
            rising = np.log(self.centre / k) / np.log(self.centre / self.below) if self.below else 0.0 * k
            falling = np.log(k / self.centre) / np.log(self.above / self.centre) if np.isfinite(self.above) else 0.0 * k
        away = np.clip(np.where(k < self.centre, rising, falling), 0, 1)
        return np.asarray(np.cos(np.pi / 2 * away) ** 2)


@kernel
def cut_band(spectrum: Complex64, band: SoftBand, size: int) -> Complex64:
    """Return the band of a map's transform, for a grid of fewer voxels along each edge.

    Parameters
    ----------
    spectrum
        Shape (n, n, n // 2 + 1), complex64, layout of ``rfftn``; n even.
    band
        Shells in cycles per box.
    size
        Edge of the smaller grid, even, at most n. What lies at its Nyquist frequency is left out unless it is n.

    Returns
    -------
    Shape (size, size, size // 2 + 1), complex64; its inverse transform is the band's map times ``(size / n)³``.
    """
    n = spectrum.shape[0]
    k = frequencies(size)
    half = np.arange(size // 2 + 1)
    radius = np.sqrt((k[:, None, None] ** 2 + k[:, None] ** 2 + half**2).astype(np.float64))
    weight = band.weight(radius)
    if size < n:
        for axis in range(3):
            np.moveaxis(weight, axis, 0)[size // 2] = 0
    cut = spectrum[np.ix_(k % n, k % n, half)] * weight.astype(np.float32)
    return np.asarray(cut, np.complex64)


@kernel
def add_band(spectrum: Complex64, part: Complex64, factor: float) -> None:
    """Add a spectrum of a smaller grid, times a factor, to that of a larger one, in place.

    Parameters
    ----------
    spectrum
        Shape (n, n, n // 2 + 1), complex64.
    part
        Shape (m, m, m // 2 + 1), m even, at most n. What lies at its Nyquist frequency is left out unless m is n.
    factor
        On all of it: ``(n / m)³`` for the transform of a map on the smaller grid.
    """
    n, m = len(spectrum), len(part)
    k = frequencies(m)
    inside, columns = (k > -m // 2) | (m == n), m // 2 + (m == n)
    kept = np.flatnonzero(inside)
    where = np.ix_(k[kept] % n, k[kept] % n, np.arange(columns))
    spectrum[where] += np.float32(factor) * part[np.ix_(kept, kept, np.arange(columns))]


@kernel
def smoothed_correlation(product: Float32, power: Float32, other: Float32, floor: float) -> Float32:
    """Return ``product / sqrt(power · other)`` of three smoothed maps, (n, n, n) float32, between -1 and 1.

    0 where either power is at most ``floor``: there is nothing to correlate.
    """
    there = (power > floor) & (other > floor)
    scale = np.sqrt(np.maximum(power, 1e-38).astype(np.float64) * np.maximum(other, 1e-38))
    return np.where(there, np.clip(product / scale, -1, 1), 0).astype(np.float32)


@kernel
def on_finer_grid(coarse: Float32, first: int, last: int, size: int) -> Float32:
    """Return planes of a periodic map on a finer grid, interpolated linearly; first voxels lie on one another.

    Parameters
    ----------
    coarse
        Shape (c, c, c), float32.
    first, last
        Which planes of the finer grid: from the first to before the last.
    size
        Edge of the finer grid, at least c.

    Returns
    -------
    Shape (last - first, size, size), float32.
    """
    c = len(coarse)
    place = np.arange(size) * c / size
    below = place.astype(np.int64)
    share = (place - below).astype(np.float32)
    above = (below + 1) % c
    z = slice(first, last)
    lines = coarse[below[z]] + share[z, None, None] * (coarse[above[z]] - coarse[below[z]])
    lines = lines[:, below] + share[:, None] * (lines[:, above] - lines[:, below])
    return np.asarray(lines[:, :, below] + share * (lines[:, :, above] - lines[:, :, below]), np.float32)


@kernel
def lower_crossings(
    values: Float32, before: Float32, shells: tuple[float, float], threshold: float, crossed: Float32
) -> None:
    """Note where a curve that is known voxel by voxel, band after band, first falls below a threshold; in place.

    Parameters
    ----------
    values
        Of this band, (m, n, n) float32.
    before
        Of the band before, (m, n, n); becomes ``values``.
    shells
        Centres of the band before and of this one.
    threshold
        Below which the curve is to fall.
    crossed
        Shell at which it did, (m, n, n); 0 where it has not yet. Interpolated linearly in the logarithm of the shell.
    """
    low, high = shells
    falls = (crossed == 0) & (values < threshold)
    drop = np.maximum(before - values, 1e-12)
    share = np.clip((before - threshold) / drop, 0, 1)
    crossed[falls] = (low * (high / low) ** share)[falls]
    before[...] = values
