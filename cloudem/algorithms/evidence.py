"""Whether images know, beyond the shells that decided their poses, which way they look.

An image is compared with the map of the *other* half-set, in which it has no part, on shells that its pose owes nothing
to (`cloudem.algorithms.expectation.mask_scored`): once seen its own way, and once the way of another image. Of noise,
the one is as good as the other, whatever it was aligned to, in each point group, and whatever the masks of the maps
carry from shell to shell: the noise of an image's Fourier pixels is independent of that of others. A blurred map of
images turned at random gains nothing, either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.batch import Batch
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import half_disc, sample_half_disc
from cloudem.kernels.slices import extract, padded_box

Float64 = NDArray[np.float64]

TOGETHER = 4
"""Shells that are judged together."""


def gains(
    batch: Batch,
    rotations: Float64,
    shifts: Float64,
    volume: NDArray[np.complex64],
    inverse: NDArray[np.float32],
    shells: tuple[int, int],
    pixel_size: float,
) -> Float64:
    """Return by how much each image matches a map better from its own side than from another image's.

    Parameters
    ----------
    batch
        At least two images of one half-set.
    rotations, shifts
        Pose of each, (b, 3, 3) and (b, 2) pixels.
    volume
        Padded half-volume of the other half-set's map (:func:`cloudem.algorithms.reconstruct.reference_volume`).
    inverse
        1 / σ² by image and shell, (b, n // 2 + 1).
    shells
        First and last one that is compared.
    pixel_size
        Å.

    Returns
    -------
    Shape (b, shells): ``Re ⟨C X / σ², S_own - S_other⟩`` by shell, where image i is turned as image i + b // 2.
    """
    box, other = batch.images.shape[-1], np.roll(np.arange(len(rotations)), -(len(rotations) // 2))
    whole = half_disc(box, shells[1])
    disc = whole.take((whole.shell >= shells[0]) & (batch.aberrations.reach(whole) <= shells[1]))
    weighted = sample_half_disc(batch.transforms(box * pixel_size), disc)
    weighted *= ctf_values(disc.kx, disc.ky, batch.terms, 1 / (box * pixel_size)) * inverse[:, disc.shell]
    weighted *= batch.scale.astype(np.float32)[:, None]
    angle = 2 * np.pi / box * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky)
    weighted *= np.exp(1j * angle.astype(np.float32))
    axes = batch.aberrations.axes(rotations, batch.optics_group)
    slices: Any = extract(volume, axes, disc.kx, disc.ky, padded_box(box) / box)
    weighted *= (slices - slices[other]).conj()
    from_first = disc.shell - shells[0]
    count = shells[1] - shells[0] + 1
    return np.stack([np.bincount(from_first, row, count) for row in weighted.real])


def luck(gain: Float64) -> float:
    """Return by how many of its standard deviations a sum of gains differs from 0; 0 where nothing was measured."""
    power = float(np.sum(np.square(gain)))
    return float(np.sum(gain)) / power**0.5 if power > 0 else 0.0


def known_up_to(by_shell: Float64, least: float) -> int:
    """Return the last shell up to which images know their way, with the `TOGETHER` - 1 shells before it; -1 if none.

    Parameters
    ----------
    by_shell
        Deviations of the gains of each shell (`luck`), NaN where images were not asked.
    least
        Deviations from which on they are believed.
    """
    asked = np.flatnonzero(np.isfinite(by_shell))
    for shell in asked[::-1]:
        window = by_shell[max(shell - TOGETHER + 1, 0) : shell + 1]
        window = window[np.isfinite(window)]
        if np.sum(window) / len(window) ** 0.5 > least:
            return int(shell)
    return -1
