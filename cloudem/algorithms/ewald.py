"""Insertion of images along the Ewald sphere: each sideband of an image on its own side of the plane.

The image model is that of :mod:`cloudem.kernels.curved`. An image X(k) holds two unknowns, the volume at ``+z`` and at
``-z``. Its adjoint puts ``(i/2) E exp(-iχ) X`` at one and ``-(i/2) E exp(iχ) X`` at the other: the P and Q images of
Russo & Henderson (2018, 10.1016/j.ultramic.2018.01.005), of which no image or half has to be told apart, since the half
disc holds each pair of mates once. Of the normal equations, the diagonal is ``E² / 4``, and what couples the two sides
is ``-E² exp(∓2iχ) / 4``; it is added to the diagonal by the share c to which both sides are the same
(:func:`cloudem.kernels.curved.sides_alike`): the weights are ``E² (1 - c cos 2χ) / 4``. Where the sphere is flat
(c = 1), both together are ``E sin(χ) X`` and ``E² sin²(χ)``, as without curvature; far from the origin (c = 0), no
frequency is lost to zeros of the CTF.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import by_direction
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.reconstruct import Sums
from cloudem.kernels.ctf import wavelength
from cloudem.kernels.curved import curvatures, heights, insert_curved, sidebands, sides_alike
from cloudem.kernels.fourier import sample_half_disc
from cloudem.kernels.slices import magnified_axes, padded_box

Float64 = NDArray[np.float64]

TOGETHER = 32
"""Images whose sidebands are in memory at a time."""


class Curvature(NamedTuple):
    """The Ewald sphere of a data set.

    Attributes
    ----------
    reverse
        Whether it is curved the other way round: the hand of the map or the direction of the beam is the other one.
    diameter
        Of the particle, Å: beyond which height both sides of the sphere differ.
    """

    reverse: bool
    diameter: float


def insert_sphere(
    batch: Batch, voltage: Float64, curvature: Curvature, pixel_size: float, k_max: int, sums: Sums
) -> None:
    """Insert a batch along the Ewald sphere at the poses that it came with, in place.

    Parameters
    ----------
    batch
        With one pose for each image.
    voltage
        kV of each image, (b,).
    curvature
        Hand and diameter.
    pixel_size, k_max, sums
        As for :func:`cloudem.algorithms.batch.insert_known`.
    """
    poses = batch.poses
    assert poses is not None  # noqa: S101 - the job has checked the columns
    box = batch.images.shape[-1]
    length, group = box * pixel_size, batch.optics_group
    magnification = batch.aberrations.of(group)
    bent = curvatures(voltage, length, magnification)
    disc = batch.aberrations.pixels(box, k_max)
    kinds, kind = np.unique(np.column_stack([bent, wavelength(voltage)]), axis=0, return_inverse=True)
    height = heights(disc.kx, disc.ky, kinds[:, :3])
    radius2 = height * (2 * length / kinds[:, 3:]) + height**2
    inside = np.flatnonzero(radius2.max(axis=0) < (k_max + 0.5) ** 2)
    disc, same = disc.take(inside), sides_alike(height[:, inside], curvature.diameter, length)
    data = sample_half_disc(batch.transforms(length), disc)
    sign, order = -1.0 if curvature.reverse else 1.0, by_direction(poses.rotations)
    for first in range(0, len(order), TOGETHER):
        # neighbours in direction one after the other, which keeps the accumulator in the cache
        which = order[first : first + TOGETHER]
        rows = poses.images[which]
        bands = sidebands(disc.kx, disc.ky, batch.terms[rows], 1 / length)
        bands *= batch.scale[rows].astype(np.float32)[:, None]
        square = (bands * bands).real * same[kind.reshape(-1)[rows]].astype(np.float32)
        power = np.maximum(np.abs(bands) ** 2 - square, 0) / np.float32(4)
        axes = poses.rotations[which]
        if magnification is not None:
            axes = magnified_axes(axes, magnification[rows])
        placed = (np.arange(len(rows), dtype=np.int32), axes, poses.shifts[which], np.ones(len(rows)))
        images = data[rows]
        for side, numerators in ((sign, 0.5j * bands.conj() * images), (-sign, -0.5j * bands * images)):
            insert_curved(
                sums.data, sums.weight, *placed, numerators.astype(np.complex64), power, disc.kx, disc.ky,
                side * bent[rows], padded_box(box) / box, box,
            )  # fmt: skip
