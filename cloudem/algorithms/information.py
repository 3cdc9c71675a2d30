"""How much a micrograph shows: its signal-to-noise ratio by frequency, and the bits that follow.

Two sums of alternate frames share the specimen and no shot noise. What they also share is a pattern of the detector,
which is left out as far as it is known. A Fourier component of signal-to-noise ratio S carries ``log2(1 + S)`` bits
(Shannon 1948); a micrograph's bits are the sum over all of them. Rings in which nothing is certain count as none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0

from cloudem.kernels.motion import ring_products

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

BANDS = 128
"""Rings from the origin to the shortest wave along the rows."""

CERTAIN = 4.0
"""Standard errors by which a ring's signal has to be above none."""


class SharedInformation(NamedTuple):
    """What two sums of alternate frames have in common.

    Attributes
    ----------
    frequency
        1/Å, of each ring, ``(BANDS,)``.
    correlation
        Of the two sums, ``(BANDS,)``; without the detector's pattern.
    ratio
        Signal-to-noise ratio of the sum of both, ``(BANDS,)``; 0 where nothing is certain.
    bits
        Of the whole micrograph.
    """

    frequency: Float64
    correlation: Float64
    ratio: Float64
    bits: float


def shared_information(
    even: Complex64, odd: Complex64, shape: tuple[int, int], pixel_size: float, pattern: Float64 | None = None
) -> SharedInformation:
    """Compare two sums of alternate frames.

    Parameters
    ----------
    even, odd
        Half transforms, of images of `shape`.
    shape
        Rows and columns, both even.
    pixel_size
        Å.
    pattern
        Expected product of the detector's pattern in both, ``(BANDS,)``; see `pattern_products`.
    """
    cross, first, second, counts = ring_products(even, odd, BANDS)
    counts = np.maximum(counts, 1)
    common = cross / counts - (0 if pattern is None else pattern)
    power: Float64 = np.sqrt(np.maximum(first * second, 0)) / counts
    correlation: Float64 = common / np.maximum(power, 1e-30)
    error = 1 / np.sqrt(2 * counts)
    known = np.clip(correlation, -0.999, 0.999)
    ratio = np.where(correlation > CERTAIN * error, 2 * known / (1 - known), 0.0)
    frequency: Float64 = (np.arange(BANDS, dtype=np.float64) + 0.5) / (2 * BANDS * pixel_size)
    return SharedInformation(
        frequency, correlation, np.asarray(ratio, np.float64), float((counts * np.log2(1 + ratio)).sum())
    )


def pattern_products(track: Float64, weights: Float64, pattern: float, shape: tuple[int, int]) -> Float64:
    """Return what a white pattern of the detector adds to the product of two sums of alternate frames, by ring.

    Parameters
    ----------
    track
        Displacements by which frames were moved back, pixels, ``(frames, 2)``.
    weights
        Of each frame in each ring, ``(frames, BANDS)``.
    pattern
        Variance of the pattern in a frame.
    shape
        Of the frames: the transform's powers are sums over pixels.
    """
    radians = np.pi * (np.arange(BANDS) + 0.5) / BANDS
    apart = np.hypot(*(track[0::2, None] - track[None, 1::2]).transpose(2, 0, 1))
    waves = j0(radians * apart[..., None])
    both = np.einsum("fk,gk,fgk->k", weights[0::2], weights[1::2], waves)
    return np.asarray(pattern * shape[0] * shape[1] * both)
