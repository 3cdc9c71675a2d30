"""A map filtered and sharpened from place to place: each band by what is to be believed of it, and by a local B-factor.

Beyond the first band in which a voxel is not resolved, nothing of it passes, whatever agrees there by chance.

The B-factor of a voxel is that of a line through the logarithm of the signal's amplitude in bands around it, against
1/d² (a Guinier plot in the window of `cloudem.algorithms.local_agreement`). The signal's power in a band is the
half-maps' mean product there, to which noise does not add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.local_agreement import (
    RATIO,
    SLAB,
    BandAgreement,
    add_with_gain,
    agreements,
    map_from,
    transform_of,
)
from cloudem.algorithms.local_filter import at_voxels, believed
from cloudem.algorithms.local_resolution import bands_to_nyquist
from cloudem.conventions import FSC_THRESHOLD
from cloudem.kernels.bands import SoftBand, on_finer_grid

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

FEWEST_BANDS = 4
"""Bands to fit a line through; the fit begins at a coarser resolution where the map has fewer."""

SCATTER = 0.25
"""Standard deviation of a band's logarithm of amplitude about the line: protein's own spectrum is not flat."""

SPREAD_A2 = 60.0
"""Standard deviation of local B-factors about that of the whole map, before a voxel's bands are looked at, Å²."""

MOST_A2 = 200.0
"""By how much a local B-factor may exceed that of the whole map, Å²."""


class LocallySharpened(NamedTuple):
    """A map to look at, (n, n, n), and the B-factor it was sharpened with around each voxel, Å², on a coarse grid."""

    map: Float32
    b_factor: Float32


def sharpened_locally(
    first: Float32,
    second: Float32,
    pixel_size: float,
    b_factor: float,
    low_resolution: float = 10.0,
    *,
    fitted: bool = True,
) -> LocallySharpened:
    """Return the mean of two half-maps, filtered and sharpened around each voxel.

    Parameters
    ----------
    first, second
        Unfiltered half-maps, (n, n, n), n even.
    pixel_size
        Å.
    b_factor
        Of the whole map's fall-off, Å²; positive sharpens.
    low_resolution
        Where the local fit begins, Å.
    fitted
        Fit the B-factor from place to place; otherwise the given one counts everywhere.
    """
    n = len(first)
    bands = bands_to_nyquist(n, pixel_size)
    spectra = transform_of(first), transform_of(second)
    found = list(agreements(spectra, bands))
    s2 = np.array([(band.centre / (n * pixel_size)) ** 2 for band in bands])
    local = np.full_like(found[-1].agreement, b_factor)
    if fitted:
        start = min(float(np.searchsorted(s2, low_resolution**-2)), len(bands) - FEWEST_BANDS)
        local = local_b_factors(found, bands, s2, max(int(start), 0), b_factor)
    mean = (spectra[0] + spectra[1]) / np.float32(2)
    total = np.zeros_like(mean)
    least = np.ones_like(found[0].agreement)
    for number, agreement, _ in found:
        least = at_voxels(least, len(agreement))
        if s2[number] > low_resolution**-2:
            least = np.minimum(least, agreement)
        # a B-factor of 300 Å² makes a band at 3 Å 4,000 times as strong: what agrees there by chance must not pass
        resolved = np.clip((least - FSC_THRESHOLD) / FSC_THRESHOLD, 0, 1)
        boost = np.exp(np.minimum(at_voxels(local, len(agreement)) * np.float32(s2[number] / 4), 40))
        add_with_gain(total, mean, bands[number], believed(agreement) * resolved * boost)
    return LocallySharpened(map_from(total), local)


def local_b_factors(
    found: Sequence[BandAgreement], bands: Sequence[SoftBand], s2: Float64, start: int, b_factor: float
) -> Float32:
    """Return B-factors on the grid of the last band's agreement, Å², between 0 and `MOST_A2` above that of the whole.

    The line is that of least squares, bands weighted by how far their agreement lies above 0.143, and drawn towards the
    whole map's slope by a Gaussian prior: ``SPREAD_A2`` against ``SCATTER`` of a band.

    Parameters
    ----------
    found, bands, s2
        Of each band: how half-maps agree, its shells, and 1/d² of its centre, 1/Å².
    start
        The band to begin with.
    b_factor
        Of the whole map, Å².
    """
    size = len(found[-1].agreement)
    sums = np.zeros((5, *(size,) * 3), np.float32)
    middle = float(s2[start:].mean())
    for number, agreement, power in found[start:]:
        x = np.float32(s2[number] - middle)
        weight = np.clip((agreement - FSC_THRESHOLD) / (1 - FSC_THRESHOLD), 0, 1)
        signal = np.maximum(agreement * power, 1e-30) / band_power(bands[number])
        y = np.asarray(0.5 * np.log(signal) + b_factor / 4 * s2[number], np.float32)  # beyond the whole map's slope
        terms = weight * np.stack([np.ones_like(y), np.full_like(y, x), y, np.full_like(y, x * x), x * y])
        for total, term in zip(sums, terms, strict=True):
            for z in range(0, size, SLAB):
                last = min(z + SLAB, size)
                total[z:last] += on_finer_grid(np.asarray(term, np.float32), z, last, size)
    w, wx, wy, wxx, wxy = sums
    w = np.maximum(w, 1e-6)
    ridge = (SCATTER / (SPREAD_A2 / 4)) ** 2
    slope = (wxy - wx * wy / w) / (np.maximum(wxx - wx * wx / w, 0) + ridge)
    return np.asarray(np.clip(b_factor - 4 * slope, 0, max(b_factor, 0) + MOST_A2), np.float32)


def band_power(band: SoftBand) -> float:
    """Return the power that a band has of white noise: the sum of its squared weights over all frequencies."""
    last = band.above if np.isfinite(band.above) else band.centre * RATIO
    k = np.linspace(band.below, last, 200)
    return float(np.trapezoid(4 * np.pi * k**2 * band.weight(k) ** 2, k))
