"""What is left of each band of a map around each voxel: the filter of a reference, and of a map to look at.

The expected share of signal in the power of a half-map is its correlation with the other one. The best filter of a
half-map, in the sense of least squares, therefore multiplies each shell by the FSC (Wiener); where signal and noise
differ from place to place, each band by its local agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.local_agreement import RATIO, SLAB, agreements, bands_up_to, recombined, transform_of
from cloudem.algorithms.reconstruct import signal_to_noise
from cloudem.algorithms.resolution import fsc_weight
from cloudem.algorithms.significance import resolution_shell
from cloudem.conventions import FSC_THRESHOLD
from cloudem.kernels.bands import SoftBand, on_finer_grid

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LOCAL_FROM_A = 10.0
"""Resolution from which on filters are local: windows of coarser bands are as large as a molecule."""

FEWEST_SHELLS = 2
"""Beyond that, for a local filter to differ from that of the shells."""

CHANCE = 0.05
"""Standard deviation of the agreement of noise. Measured: 0.040 to 0.049 in bands from 10 waves along the box on."""

BEST = 99.0
"""Percentile of the agreement inside the mask that counts as the best: the largest one may be noise."""

CORE = (0.25, 0.75)
"""Shares of the best agreement between which the core of a map rises from 0 to 1."""


class LocalGains(NamedTuple):
    """How two half-sets' maps become references that are filtered from place to place.

    Attributes
    ----------
    bands
        The first holds all that is coarser than `LOCAL_FROM_A`.
    gains
        Of each band, 0 to 1: None, which is 1, of the first, then (c, c, c). They come on top of the filter by ``snr``.
    snr
        Signal-to-noise ratio by shell, (n // 2 + 1,), where the half-maps agree best: what the sums are solved with.
    passed
        Mean share of each shell that the filter leaves inside the mask of either half-map, (2, n // 2 + 1).
    """

    bands: Sequence[SoftBand]
    gains: Sequence[Float32 | None]
    snr: Float64
    passed: Float64


def local_gains(
    first: Float32,
    second: Float32,
    first_mask: Float32,
    second_mask: Float32,
    snr: Float64,
    core_snr: Float64,
    pixel_size: float,
) -> LocalGains | None:
    """Return the local filter of two half-sets' references; None where no shell is fine enough for one.

    Both halves are filtered by one set of gains, as by the shells' one FSC; nothing else passes between them.

    Parameters
    ----------
    first, second
        Unfiltered half-maps, (n, n, n).
    first_mask, second_mask
        By which they will be multiplied, 0 to 1.
    snr
        Of the shells, (n // 2 + 1,), as the references would otherwise be filtered by.
    core_snr
        The same where the half-maps agree best (`core_mask`); where it is 0, nothing passes.
    pixel_size
        Å.
    """
    box = len(first)
    last, seam = float(np.flatnonzero(core_snr)[-1]) if core_snr.any() else 0.0, box * pixel_size / LOCAL_FROM_A
    if last < seam + FEWEST_SHELLS:
        return None
    # one band more, which is not measured: in the last one all higher shells, of noise, would count
    bands = bands_up_to(seam, last * RATIO)
    gains: list[Float32 | None] = [None]
    shells = np.arange(len(snr), dtype=np.float64)
    uniform = snr / (1 + snr)
    best = bands[0].weight(shells) * uniform
    passed = np.stack([best, best])
    means, most = [0.0, 0.0], 0.0
    for found in agreements((transform_of(first), transform_of(second)), bands[:-1], 1):
        kept = np.maximum((found.agreement - CHANCE) / (1 - CHANCE), 0)
        weights = [at_voxels(mask, len(kept)) for mask in (first_mask, second_mask)]
        inside = np.maximum(*weights) > 0.5
        most = float(np.percentile(kept[inside], BEST)) if inside.any() else 0.0
        gains.append(np.asarray(np.minimum(kept / max(most, 1e-6), 1), np.float32))
        means = [float(np.average(np.minimum(kept, most), weights=weight + 1e-12)) for weight in weights]
        share = bands[found.number].weight(shells)
        best, passed = best + share * most, passed + share * np.array(means)[:, None]
    share = bands[-1].weight(shells)
    best, passed = best + share * most, passed + share * np.array(means)[:, None]
    gains.append(gains[-1])
    passes = core_snr > 0
    return LocalGains(bands, gains, np.where(passes, signal_to_noise(best), 0.0), passed * passes)


def core_mask(first: Float32, second: Float32, mask: Float32, fsc: Float64, pixel_size: float) -> Float32 | None:
    """Return the part of a mask in which two half-maps agree best; None while that would be no finer than the mask.

    Best is taken from the band that ends at the resolution of the whole mask. Shells beyond have no part in it, so that
    their FSC inside this mask is not better for having been chosen.

    Parameters
    ----------
    first, second
        Unfiltered half-maps, (n, n, n).
    mask
        0 to 1.
    fsc
        Corrected, inside that mask, (n // 2 + 1,).
    pixel_size
        Å.
    """
    box = len(first)
    end, seam = resolution_shell(fsc), box * pixel_size / LOCAL_FROM_A
    if end < seam * RATIO + FEWEST_SHELLS:
        return None
    bands = [SoftBand(end / RATIO**2, end / RATIO, end), SoftBand(end / RATIO, end, np.inf)]
    found = next(agreements((transform_of(first), transform_of(second)), bands)).agreement
    inside = at_voxels(mask, len(found)) > 0.5
    most = float(np.percentile(found[inside], BEST)) if inside.any() else 0.0
    if most <= FSC_THRESHOLD:
        return None
    begins, whole = CORE
    share = np.clip((found / most - begins) / (whole - begins), 0, 1).astype(np.float32)
    slabs = range(0, box, SLAB)
    return np.concatenate([on_finer_grid(share, z, min(z + SLAB, box), box) * mask[z : z + SLAB] for z in slabs])


def at_voxels(volume: Float32, size: int) -> Float32:
    """Return a map at the voxels of a coarser grid whose first voxel is the map's, the nearest ones; (size,) * 3."""
    nearest = np.rint(np.arange(size) * len(volume) / size).astype(np.int64) % len(volume)
    return volume[np.ix_(nearest, nearest, nearest)]


def believed(agreement: Float32) -> Float32:
    """Return by how much a band of the mean of two half-maps is to be shown, 0 to 1.

    The expected correlation with the truth, ``sqrt(2 cc / (1 + cc))`` (see `cloudem.algorithms.resolution.fsc_weight`).
    It falls to zero between an agreement of 0.143 and what chance has: otherwise the square root would show noise.
    """
    seen = np.clip((agreement - CHANCE) / (FSC_THRESHOLD - CHANCE), 0, 1)
    return np.asarray(fsc_weight(agreement.astype(np.float64)) * seen, np.float32)


def filtered_locally(density: Float32, local: LocalGains) -> Float32:
    """Return a map, solved with ``local.snr``, whose bands were multiplied by their gains."""
    return recombined(transform_of(density), local.bands, local.gains)
