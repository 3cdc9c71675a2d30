"""What a map looks like in images: its projections with their CTF, to be subtracted from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.batch import Batch
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.algorithms.resolution import multiply_shells
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import HalfDisc, fill_half_disc, half_disc, real_images, sample_half_disc
from cloudem.kernels.slices import extract, padded_box

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]


class ProjectedMap(NamedTuple):
    """A map ready to be projected.

    Attributes
    ----------
    volume
        Its padded half-volume up to the last shell before Nyquist.
    box
        Pixels.
    total
        Sum of its voxels: the zero frequency of all projections.
    """

    volume: Complex64
    box: int
    total: float

    @classmethod
    def of(cls, density: Float32) -> ProjectedMap:
        """Transform a map, (n, n, n)."""
        box = len(density)
        return cls(reference_volume(density, box // 2 - 1), box, float(density.sum(dtype=np.float64)))


def part_of_half(half: Float32, where: Float32, fsc: Float64) -> Float32:
    """Return a part of a half-map as far as it is known, (n, n, n).

    Parameters
    ----------
    half
        Without filter.
    where
        The part, 0 to 1.
    fsc
        Of the half-maps, (n // 2 + 1,). A half-map is signal and noise with powers S and N; of it, the share
        ``S / (S + N)``, which is the FSC, is nearest to the signal.
    """
    weight = np.clip(np.nan_to_num(fsc), 0.0, 1.0)
    weight[0] = 1.0
    below = np.flatnonzero(weight < 0.143)
    if len(below):  # what correlates beyond does so by chance
        weight[below[0] :] = 0.0
    return multiply_shells(half, weight) * where


def projections(batch: Batch, projected: ProjectedMap, pixel_size: float) -> tuple[Complex64, HalfDisc]:
    """Return what a map is in the images of a batch, freed of odd aberrations as `Batch.transforms` are, (b, p).

    Each image's first pose is taken, and its factor on the CTF.
    """
    assert batch.poses is not None  # noqa: S101 - the caller's batch has one pose for each image
    box, poses = projected.box, batch.poses
    disc = half_disc(box, box // 2 - 1)
    disc = disc.take(np.flatnonzero(batch.aberrations.reach(disc) < box // 2))
    axes = batch.aberrations.axes(poses.rotations, batch.optics_group)
    values: Any = extract(projected.volume, axes, disc.kx, disc.ky, padded_box(box) / box)
    shifts = poses.shifts
    angle = (-2 * np.pi / box * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky)).astype(np.float32)
    values *= np.exp(1j * angle)
    values *= ctf_values(disc.kx, disc.ky, batch.terms, 1 / (box * pixel_size))
    values *= batch.scale.astype(np.float32)[:, None]
    return values, disc


def images_of_map(batch: Batch, projected: ProjectedMap, pixel_size: float) -> Float32:
    """Return what a map is in the images of a batch, (b, n, n): CTF, aberrations, shift and factor included."""
    values, disc = projections(batch, projected, pixel_size)
    box, origin = projected.box, np.zeros(1, np.int32)
    transforms = fill_half_disc(values, disc, box)
    transforms[:, 0, 0] = projected.total * ctf_values(origin, origin, batch.terms, 0.0)[:, 0] * batch.scale
    # `freed` takes a phase away; of the conjugate it takes away the opposite one
    freed = batch.aberrations.freed(transforms.conj(), batch.optics_group, box * pixel_size)
    return np.asarray(real_images(freed.conj()), np.float32)


def amplitude_terms(batch: Batch, projected: ProjectedMap, pixel_size: float, inverse: Float32) -> Float64:
    """Return N and D of the amplitude ``N / D`` with which a map fits each image best, (b, 2).

    That is ``Re⟨X, S⟩`` and ``⟨S, S⟩``, weighted by 1 / σ² by image and shell (``inverse``, (b, n // 2 + 1)): D is the
    amplitude's inverse variance.
    """
    values, disc = projections(replace(batch, scale=np.ones(len(batch.scale))), projected, pixel_size)
    images = sample_half_disc(batch.transforms(projected.box * pixel_size), disc)
    weight = inverse[:, disc.shell]
    numerator = np.sum((images * values.conj()).real * weight, axis=1, dtype=np.float64)
    norm = np.sum((values.real**2 + values.imag**2) * weight, axis=1, dtype=np.float64)
    return np.stack([numerator, norm], axis=1)
