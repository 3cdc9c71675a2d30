"""A batch of images as every job sees it: its transforms, masked and weighted, and how it is added to sums."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.aberrations import NO_ABERRATIONS, Aberrations
from cloudem.algorithms.align import Poses, Weighted, by_direction
from cloudem.algorithms.mask import circle_edge, soft_circle
from cloudem.algorithms.reconstruct import Sums
from cloudem.algorithms.search import MARGIN
from cloudem.backend.arrays import array_namespace
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import HalfDisc, fourier_images, low_passed, real_images, sample_half_disc
from cloudem.kernels.slices import fast_even, insert, magnified_axes, padded_box

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

MASK_SHELLS = 16
"""By how much the circle may widen a spectrum before it folds back onto what is scored."""


@dataclass(frozen=True)
class Batch:
    """Images of one half-set with what is known of each.

    Attributes
    ----------
    images
        (b, n, n) float32.
    terms
        Of the CTF, (b, 12), even aberrations included (:func:`cloudem.algorithms.aberrations.terms_with`).
    scale
        Factor on the CTF, (b,).
    optics_group
        (b,).
    settled
        Which images need no search any more, (b,): their last two searches led to the same maximum.
    poses
        Poses so far, whose ``images`` count rows of this batch; None where nothing is known.
    weights
        Of these poses, (c,); None for 1.
    keep
        Weight of each image in the sums, (b,): the probability that it shows the molecule; None for 1.
    aberrations
        Odd ones, and the magnification, of all optics groups.
    """

    images: Float32
    terms: Float64
    scale: Float64
    optics_group: NDArray[np.int32]
    settled: NDArray[np.bool_]
    poses: Poses | None
    weights: Float64 | None = None
    keep: Float64 | None = None
    aberrations: Aberrations = NO_ABERRATIONS

    def transforms(self, length: float) -> Complex64:
        """Return the transforms of the images, freed of odd aberrations; ``length`` is that of the box in Å."""
        return self.aberrations.freed(fourier_images(self.images), self.optics_group, length)

    def rows(self, index: NDArray[np.int64]) -> Batch:
        """Return some of the images, with the poses of these."""
        poses, weights = self.poses, self.weights
        if poses is not None:
            place = np.full(len(self.images), -1, np.int32)
            place[index] = np.arange(len(index))
            here = place[poses.images] >= 0
            poses, weights = poses.take(here), None if weights is None else weights[here]
            poses = replace(poses, images=place[poses.images])
        table = (self.scale[index], self.optics_group[index], self.settled[index])
        keep = None if self.keep is None else self.keep[index]
        return Batch(self.images[index], self.terms[index], *table, poses, weights, keep, self.aberrations)


def mask_scored_to(
    transforms: Complex64, disc: HalfDisc, whole_box: int, radius: float, k_score: int
) -> tuple[Complex64, Float32]:
    """Do what `mask_scored` does, for images of a box and particles of a radius in pixels, up to a shell."""
    xp = array_namespace(transforms)
    box = min(whole_box, fast_even(2 * k_score + MASK_SHELLS))
    scale = box / whole_box
    images = real_images(low_passed(transforms, k_score, box))
    images *= xp.asarray(soft_circle(box, scale * radius, scale * circle_edge(whole_box, radius)))
    low = fourier_images(images)
    pixels = np.flatnonzero(disc.shell <= min(k_score + MARGIN, box // 2 - 1))  # the search interpolates
    masked = xp.zeros((len(transforms), len(disc.kx)), transforms.dtype)
    masked[:, pixels] = sample_half_disc(low, disc.take(pixels))
    return masked, low[:, 0, 0].real.copy()


def weigh(
    images: Complex64,
    ctf: Float32,
    inverse: Float32,
    disc: HalfDisc,
    pixels: NDArray[np.integer[Any]],
    magnification: Float64 | None = None,
) -> Weighted:
    """Return C X / σ² and C² / σ² on some pixels of a disc.

    Parameters
    ----------
    images, ctf
        On the whole disc, (b, p).
    inverse
        1 / σ² by image and shell, (b, n // 2 + 1).
    disc, pixels
        The disc, and the numbers of its pixels.
    magnification
        Of each image, (b, 2, 2); None for none.
    """
    part = disc.take(pixels)
    weighted = np.take(ctf, pixels, axis=1)
    squared = weighted * weighted
    precision = inverse[:, part.shell]
    weighted *= precision
    squared *= precision
    return Weighted(np.take(images, pixels, axis=1) * weighted, squared, part, magnification)


def add_slices(sums: Sums, data: Weighted, found: Poses, weights: Float64, box: int) -> None:
    """Insert weighted images, neighbours in direction one after the other, which keeps the accumulator in the cache."""
    order = by_direction(found.rotations)
    axes = found.rotations[order]
    if data.magnification is not None:
        axes = magnified_axes(axes, data.magnification[found.images[order]])
    insert(
        sums.data, sums.weight, found.images[order], axes, found.shifts[order], weights[order],
        data.numerators, data.denominators, data.disc.kx, data.disc.ky, padded_box(box) / box, box,
    )  # fmt: skip


def insert_known(batch: Batch, pixel_size: float, k_max: int, sums: Sums) -> None:
    """Insert a batch at the poses that it came with, each with weight 1 and noise of variance 1, in place."""
    assert batch.poses is not None  # noqa: S101 - the job has checked the columns
    insert_weighted(batch, batch.poses, np.ones(len(batch.poses.images)), pixel_size, k_max, sums)


def insert_weighted(batch: Batch, poses: Poses, weights: Float64, pixel_size: float, k_max: int, sums: Sums) -> None:
    """Insert a batch at poses with their weights, and noise of variance 1, in place."""
    box = batch.images.shape[-1]
    aberrations, group = batch.aberrations, batch.optics_group
    disc = aberrations.pixels(box, k_max)
    values = ctf_values(disc.kx, disc.ky, batch.terms, 1 / (box * pixel_size))
    values *= batch.scale.astype(np.float32)[:, None]
    images = sample_half_disc(batch.transforms(box * pixel_size), disc)
    add_slices(sums, Weighted(images * values, values * values, disc, aberrations.of(group)), poses, weights, box)
