"""The resolution of a map around each voxel, from two half-maps.

By bands: where the local agreement (`cloudem.algorithms.local_agreement`) falls below a threshold. By spheres: where
the FSC inside a soft sphere around a point does, corrected by phase randomisation; this is what RELION means by local
resolution (Kucukelbir et al. 2014, 10.1038/nmeth.2727, compare the definitions).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.local_agreement import (
    RATIO,
    SLAB,
    add_with_gain,
    agreements,
    bands_up_to,
    map_from,
    transform_of,
)
from cloudem.algorithms.local_filter import believed
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import randomise_phases
from cloudem.conventions import FSC_THRESHOLD
from cloudem.kernels.bands import SoftBand, lower_crossings, on_finer_grid
from cloudem.kernels.shells import crossing, fourier_shell_correlation
from cloudem.kernels.slices import fast_even

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COARSEST_A = 50.0
"""Coarser is not asked for: windows would be as large as a particle."""

FEWEST_WAVES = 4.0
"""Nor are fewer waves along the box."""

RANDOMISE_A = 25.0
"""Spheres: phases are randomised from this resolution on (RELION's default)."""

EDGE_SHARE = 2.0
"""Spheres: width of the soft edge, in radii (RELION's default)."""


class LocalMap(NamedTuple):
    """What bands say of two half-maps.

    Attributes
    ----------
    resolution
        Å, (n, n, n).
    filtered
        Mean of the half-maps, each band weighted by what is to be believed of it around each voxel; (n, n, n).
    """

    resolution: Float32
    filtered: Float32


def coarsest_shell(box: int, pixel_size: float) -> float:
    """Return the shell from which on local resolution is asked for."""
    return min(max(box * pixel_size / COARSEST_A, FEWEST_WAVES), box / 4)


def bands_to_nyquist(box: int, pixel_size: float) -> list[SoftBand]:
    """Return the bands of a map that are looked at; the corners beyond Nyquist belong to none."""
    return bands_up_to(coarsest_shell(box, pixel_size), box / 2 * RATIO)[:-1]


def local_resolution(first: Float32, second: Float32, pixel_size: float, threshold: float = FSC_THRESHOLD) -> LocalMap:
    """Return where the local agreement of two half-maps falls below a threshold, and their mean filtered by it.

    The curve of a voxel is interpolated in the logarithm of the frequency; where it never falls, the resolution is that
    of the last shell. Where it is below from the beginning, it is that of the first band.

    Parameters
    ----------
    first, second
        Unfiltered half-maps without mask, (n, n, n), n even.
    pixel_size
        Å.
    threshold
        Between 0 and 1.
    """
    n = len(first)
    bands = bands_to_nyquist(n, pixel_size)
    spectra = transform_of(first), transform_of(second)
    crossed, before = np.zeros((n, n, n), np.float32), np.ones((n, n, n), np.float32)
    mean = (spectra[0] + spectra[1]) / np.float32(2)
    total, low = np.zeros_like(mean), bands[0].centre / RATIO
    for number, agreement, _ in agreements(spectra, bands):
        band = bands[number]
        for z in range(0, n, SLAB):
            part = slice(z, min(z + SLAB, n))
            values = on_finer_grid(agreement, z, part.stop, n)
            lower_crossings(values, before[part], (low, band.centre), threshold, crossed[part])
        add_with_gain(total, mean, band, believed(agreement))
        low = band.centre
    np.copyto(crossed, n / 2, where=crossed == 0)
    np.clip(crossed, bands[0].centre, n / 2, out=crossed)
    return LocalMap(np.float32(n * pixel_size) / crossed, map_from(total))


def spherical_resolution(
    first: Float32,
    second: Float32,
    mask: Float32,
    pixel_size: float,
    threshold: float = FSC_THRESHOLD,
    step_A: float = 25.0,
    seed: int = 0,
) -> Float32:
    """Return the local resolution by the FSC inside soft spheres, as RELION defines it, Å, (n, n, n).

    Spheres have a radius of half the distance of their centres and a soft edge of `EDGE_SHARE` times that. A voxel has
    the mean of the spheres about it, weighted by these. Each sphere is looked at in a box twice as large as itself, or
    in that of the map where this is smaller: shells then lie no closer than half of what a sphere can tell apart.

    Parameters
    ----------
    first, second, pixel_size, threshold
        As `local_resolution`.
    mask
        Centres of spheres lie where it is above one half, (n, n, n).
    step_A
        Distance of the centres, Å.
    seed
        Of the random phases.
    """
    n = len(first)
    step = max(step_A / pixel_size, 1.0)
    radius = step / 2
    edge = EDGE_SHARE * radius
    half = min(fast_even(2 * int(np.ceil(radius + edge)) + 4), n) // 2
    sphere, size = soft_sphere(2 * half, radius, edge), min(fast_even(4 * half), n)
    corner = slice(0, 2 * half)
    from_shell = max(int(n * pixel_size / RANDOMISE_A), 1)
    random = [randomise_phases(volume, from_shell, seed + number) for number, volume in enumerate((first, second), 1)]
    line = np.unique(np.rint(n // 2 + step * np.arange(-int(n / 2 / step), int(n / 2 / step) + 1)).astype(np.int64) % n)
    total, weight = np.zeros((n, n, n), np.float32), np.zeros((n, n, n), np.float32)
    shells, least = size * pixel_size, n * pixel_size / coarsest_shell(n, pixel_size)
    padded = np.zeros((4, size, size, size), np.float32)
    for z, y, x in np.argwhere(mask[np.ix_(line, line, line)] > 0.5):
        where = np.ix_(*(np.arange(line[at] - half, line[at] + half) % n for at in (z, y, x)))
        for place, volume in zip(padded, (first, second, *random), strict=True):
            np.multiply(volume[where], sphere, out=place[corner, corner, corner])
        curve, chance = (fourier_shell_correlation(*padded[pair]) for pair in (slice(2), slice(2, 4)))
        beyond = np.arange(len(curve)) > shells / RANDOMISE_A + 1
        corrected = np.where(beyond, (curve - chance) / np.maximum(1 - chance, 1e-6), curve)
        shell = crossing(corrected, threshold)
        found = 2 * pixel_size if np.isnan(shell) else shells / max(shell, shells / least)
        total[where] += np.float32(found) * sphere
        weight[where] += sphere
    known = weight > 1e-3
    return np.where(known, total / np.maximum(weight, 1e-3), np.float32(least)).astype(np.float32)
