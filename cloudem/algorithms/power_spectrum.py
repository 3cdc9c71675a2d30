"""The power spectrum of a micrograph: that of overlapping tiles, averaged, by rings and sectors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.errors import ParameterError
from cloudem.kernels.thon_rings import add_power

SECTORS = 36
"""Of half a turn."""

TILE_A, LEAST_TILE = 1000.0, 256
"""Edge of a tile in Å and, at least, in pixels: long enough for the rings of 5 µm at 4 Å."""


class Tiles(NamedTuple):
    """Squares of an image that overlap by about half.

    Attributes
    ----------
    edge
        Pixels.
    corners
        (t, 2) first row and first column of each.
    centres
        (t, 2) x and y of the centre of each, pixels from the centre of the image.
    """

    edge: int
    corners: NDArray[np.int64]
    centres: NDArray[np.float64]


class PowerSpectrum(NamedTuple):
    """The average power of tiles of an image.

    Attributes
    ----------
    power
        (2 radius + 1, radius + 1) rows ky = -radius … radius, columns kx = 0 … radius.
    step
        1/Å from one pixel of it to the next.
    independent
        So many tiles without overlap would be as noisy.
    """

    power: NDArray[np.float64]
    step: float
    independent: float

    @property
    def radius(self) -> int:
        """Highest frequency in steps."""
        return int(self.power.shape[1]) - 1


class PolarSpectrum(NamedTuple):
    """A power spectrum by rings of one step and sectors of half a turn.

    Attributes
    ----------
    values
        (r, k) natural logarithm of the mean power; 0 where a bin has no pixel.
    weights
        (r, k) inverse variance of that, from the number of pixels; 0 without one.
    squares
        (r, k) mean s² in 1/Å².
    angles
        (k, 2) cos 2θ and sin 2θ of the middle of each sector.
    step
        1/Å from one ring to the next; ring 0 is the origin.
    """

    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    squares: NDArray[np.float64]
    angles: NDArray[np.float64]
    step: float

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """(r,) 1/Å of each ring."""
        return np.arange(len(self.values), dtype=np.float64) * self.step


def lay_tiles(shape: tuple[int, int], pixel_size: float, edge_A: float = TILE_A) -> Tiles:
    """Return tiles that cover an image, half of each in the next one.

    Parameters
    ----------
    shape
        Rows and columns.
    pixel_size
        Å.
    edge_A
        Edge of a tile in Å, where the image allows it.

    Raises
    ------
    ParameterError
        The image is too small for a spectrum.
    """
    if min(shape) < 64:
        raise ParameterError(f"an image of {shape[1]} x {shape[0]} px came; a spectrum needs at least 64 x 64")
    wanted = min(max(round(edge_A / pixel_size), LEAST_TILE), min(shape))
    edge = wanted if wanted < 64 else next(n for n in range(wanted - wanted % 2, 1, -2) if _smooth(n))
    starts = [
        np.rint(np.linspace(0, n - edge, 1 + max(round((n - edge) / (edge / 2)), int(n > edge)))).astype(np.int64)
        for n in shape
    ]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    middle = corners[:, ::-1] + edge / 2 - np.array(shape[::-1]) / 2
    return Tiles(edge, corners, middle)


def _smooth(number: int) -> bool:
    """Return whether a number has only the prime factors 2, 3 and 5: its transforms are fast."""
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number == 1


def average_spectrum(image: NDArray[Any], tiles: Tiles, pixel_size: float, highest: float) -> PowerSpectrum:
    """Return the average power of tiles, each of the same weight whatever its contrast.

    Parameters
    ----------
    image
        (rows, columns).
    tiles
        Of it, from `lay_tiles`.
    pixel_size
        Å.
    highest
        1/Å up to which the power is needed.

    Raises
    ------
    ParameterError
        All tiles are flat, or hold values that are too large.
    """
    radius = radius_of(tiles, pixel_size, highest)
    total, count = np.zeros((2 * radius + 1, radius + 1)), 0
    for corner in tiles.corners:
        one = tile_power(image, corner, tiles.edge, radius)
        level = float(one[:, radius // 4 :].mean())
        if 0 < level < np.inf:  # a damaged pixel may be too large to be squared
            total += one / level
            count += 1
    if not count:
        raise ParameterError("the image is flat, or its values are too large: its spectrum is empty")
    total /= count
    return PowerSpectrum(total, 1 / (tiles.edge * pixel_size), independent_tiles(image.shape, tiles))


def radius_of(tiles: Tiles, pixel_size: float, highest: float) -> int:
    """Return the highest frequency in steps of a tile's transform that is at most ``highest`` in 1/Å."""
    return int(min(np.floor(highest * tiles.edge * pixel_size), tiles.edge // 2 - 1))


def independent_tiles(shape: tuple[int, ...], tiles: Tiles) -> float:
    """Return how many tiles without overlap would be as noisy as these: a sine window leaves most of the image in."""
    return float(min(len(tiles.corners), max(1.0, shape[0] * shape[1] / tiles.edge**2 * 1.4)))


def tile_power(image: NDArray[Any], corner: NDArray[np.int64], edge: int, radius: int) -> NDArray[np.float64]:
    """Return the power of one tile under a sine window, as `PowerSpectrum.power`; its mean is taken off before."""
    first, column = (int(at) for at in corner)
    window = _window(edge)
    tile = image[first : first + edge, column : column + edge].astype(np.float32)
    tile -= tile.mean()
    tile *= window[:, None]
    tile *= window
    rows = np.ascontiguousarray(scipy.fft.rfft(tile, axis=1)[:, : radius + 1])
    transform: NDArray[Any] = scipy.fft.fft(rows, axis=0, overwrite_x=True)
    power = np.zeros((2 * radius + 1, radius + 1))
    add_power(transform, radius, power)
    return power


@lru_cache(maxsize=4)
def _window(edge: int) -> NDArray[np.float32]:
    return np.sin(np.pi * (np.arange(edge) + 0.5) / edge).astype(np.float32)


class SpectrumBins(NamedTuple):
    """Rings and sectors of a power spectrum of some size.

    Attributes
    ----------
    squared, cosine, sine
        (p,) squared radius of each pixel in steps, cos 2θ and sin 2θ of its direction.
    number
        (p,) its bin, ``ring * sectors + sector``; their number for pixels that are left out: corners and axes.
    counts
        (r, k) pixels of each bin.
    squares
        (r, k) their mean squared radius.
    angles
        (k, 2) cos 2θ and sin 2θ of the middle of each sector.
    """

    squared: NDArray[np.float64]
    cosine: NDArray[np.float64]
    sine: NDArray[np.float64]
    number: NDArray[np.int64]
    counts: NDArray[np.float64]
    squares: NDArray[np.float64]
    angles: NDArray[np.float64]


@lru_cache(maxsize=4)
def spectrum_bins(radius: int, sectors: int) -> SpectrumBins:
    """Return the bins of a power spectrum.

    Parameters
    ----------
    radius
        Of the spectrum, in steps.
    sectors
        Of half a turn.
    """
    ky, kx = np.mgrid[-radius : radius + 1, 0 : radius + 1]
    squared = (kx * kx + ky * ky).astype(np.float64)
    ring = np.rint(np.sqrt(squared)).astype(np.int64)
    sector = ((np.arctan2(ky, kx) + np.pi / 2) / np.pi * sectors).astype(np.int64) % sectors
    outside = (ring > radius) | (kx == 0) | (ky == 0)  # lines of a camera and of edges lie on the axes
    size = (radius + 1) * sectors
    number = np.where(outside, size, ring * sectors + sector).ravel()
    counts = np.bincount(number, minlength=size + 1)[:size].reshape(-1, sectors).astype(np.float64)
    sums = np.bincount(number, squared.ravel(), minlength=size + 1)[:size].reshape(-1, sectors)
    squares = np.where(counts > 0, sums / np.maximum(counts, 1), np.arange(radius + 1.0)[:, None] ** 2)
    theta = (np.arange(sectors) + 0.5) / sectors * np.pi - np.pi / 2
    double = 2 * np.arctan2(ky, kx).ravel()
    return SpectrumBins(
        squared.ravel(),
        np.cos(double),
        np.sin(double),
        number,
        counts,
        squares,
        np.stack([np.cos(2 * theta), np.sin(2 * theta)], axis=1),
    )


def polar_spectrum(spectrum: PowerSpectrum, sectors: int = SECTORS) -> PolarSpectrum:
    """Return a power spectrum by rings and sectors.

    Parameters
    ----------
    spectrum
        From `average_spectrum`.
    sectors
        Of half a turn.
    """
    bins = spectrum_bins(spectrum.radius, sectors)
    size = bins.counts.size
    sums = np.bincount(bins.number, spectrum.power.ravel(), minlength=size + 1)[:size].reshape(-1, sectors)
    known = (bins.counts > 0) & (sums > 0)
    values = np.log(np.where(known, sums / np.maximum(bins.counts, 1), 1.0))
    weights = np.where(known, bins.counts * spectrum.independent, 0.0)
    return PolarSpectrum(values, weights, bins.squares * spectrum.step**2, bins.angles, spectrum.step)
