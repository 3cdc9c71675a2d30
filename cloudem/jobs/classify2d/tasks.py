"""The tasks of a classification: what runs on workers, and the values that they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.batch import Batch
from cloudem.algorithms.classes import ClassSettings, class_references, on_rings
from cloudem.algorithms.coarse import coarse_images
from cloudem.algorithms.junk import alike_shell
from cloudem.algorithms.marginal import (
    ROUGH_STEP,
    SHIFT_STEP,
    PolarView,
    References,
    Rings,
    SoftSums,
    assign,
    near_choices,
    no_sums,
    polar_view,
    ring_matches,
    rings_of,
    shift_choices,
    summed,
)
from cloudem.algorithms.noise import power_spectrum
from cloudem.execution.executor import Added, Fold
from cloudem.io.storage.groups import read_group
from cloudem.jobs.dataset import Dataset, image_batches
from cloudem.jobs.iterative import CHECKPOINT
from cloudem.kernels.polar import decode, harmonics
from cloudem.traffic import purpose

Float64 = NDArray[np.float64]

NOISE_IMAGES = 1000
"""Images that the noise is measured on at the start."""

NEIGHBOURS = 1.0
"""Steps of the grid of shifts that an image may move by from one pass to the next."""


class ClassItem(NamedTuple):
    """One task: images of one part, and the shift (b, 2) of each in pixels, near which it lies; None: anywhere.

    ``rough``: the shifts that are tried lie further apart, since there will be another pass.
    """

    part: int
    indices: NDArray[np.int64]
    centres: NDArray[np.float32] | None
    rough: bool


class ClassCheckpoint(NamedTuple):
    """What the next iteration needs.

    Attributes
    ----------
    even, odd, weight, mass
        Sums of each part (:class:`cloudem.algorithms.marginal.SoftSums`), parts first.
    sigma2
        Noise variance by optics group and shell, (g, n // 2 + 1).
    class_number
        Of each particle, from 0, -1 where it is not known, (N,).
    shift
        Of each particle, pixels, NaN where it is not known, (N, 2).
    part
        Of each particle, -1 for one that is left out, (N,).
    order
        Random order of those that are not, (N',).
    """

    even: Float64
    odd: Float64
    weight: Float64
    mass: Float64
    sigma2: Float64
    class_number: NDArray[np.int32]
    shift: NDArray[np.float32]
    part: NDArray[np.int8]
    order: NDArray[np.int64]

    def sums(self) -> list[SoftSums]:
        """Return the sums of each part."""
        return [
            SoftSums(self.even[part], self.odd[part], self.weight[part], self.mass[part], np.zeros(0), 0.0, 0.0)
            for part in range(len(self.mass))
        ]

    def with_sums(self, parts: Sequence[SoftSums]) -> ClassCheckpoint:
        """Return the same with other sums."""
        names = ("even", "odd", "weight", "mass")
        return self._replace(**{name: np.stack([getattr(part, name) for part in parts]) for name in names})


def read_class_checkpoint(url: str) -> ClassCheckpoint:
    """Return the checkpoint in the store."""
    with purpose("poses"):
        return ClassCheckpoint(**read_group(url, CHECKPOINT)[0])


class ClassModel(NamedTuple):
    """What the images of a part are compared with, and their noise."""

    references: References
    sigma2: Float64


def read_class_model(url: str, part: int, settings: ClassSettings, limit: int) -> ClassModel:
    """Return what images of a part are compared with: averages of all others, once there are several parts."""
    checkpoint = read_class_checkpoint(url)
    parts = checkpoint.sums()
    others = [sums for number, sums in enumerate(parts) if number != part or len(parts) == 1]
    view = view_of(settings, limit)
    return ClassModel(class_references(on_rings(summed(others), view.grid), view), checkpoint.sigma2)


@lru_cache(maxsize=2)
def view_of(settings: ClassSettings, limit: int) -> PolarView:
    """Return the rings up to a limit: they take longer to lay than a small task to compare."""
    return polar_view(settings.box, settings.pixel_size, settings.radius, limit)


def batch_for_classes(dataset: Dataset, indices: NDArray[np.int64], images: NDArray[np.float32]) -> Batch:
    """Put images together with what the table says of them."""
    table = (dataset.terms[indices], dataset.ctf_scale[indices], dataset.optics_group[indices])
    return Batch(images, *table, np.zeros(len(indices), bool), None, aberrations=dataset.aberrations)


class Sorted(NamedTuple):
    """What becomes of the images of a task, each (b,): class from 0, its probability, evidence against noise, and pose.

    ``psi`` in radians, ``shifts`` (b, 2) in pixels, ``mirrored`` as 0 or 1: the pose in the class, in the last pass;
    ``detail``: the standard deviations of noise by which it matches there, beyond what all globules have in common.
    """

    indices: NDArray[np.int64]
    class_number: NDArray[np.int32]
    probability: NDArray[np.float32]
    evidence: NDArray[np.float32]
    psi: NDArray[np.float32]
    shifts: NDArray[np.float32]
    mirrored: NDArray[np.int8]
    detail: NDArray[np.float32]


def joined(parts: Sequence[Sorted]) -> Sorted:
    """Return what became of the images of several tasks."""
    return Sorted(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def sort_group(
    item: ClassItem, dataset: Dataset, model: ClassModel, settings: ClassSettings, limit: int, *, posed: bool
) -> Added[int, SoftSums, Sorted]:
    """Share out images of a part between the classes; the ``add`` of a classification's fold."""
    view = view_of(settings, limit)
    sums, found = no_sums(view.grid, settings.classes), []
    for indices, images in image_batches(dataset, item.indices):
        rings = rings_of(batch_for_classes(dataset, indices, images), model.sigma2, view)
        count = len(indices)
        shifts, log_prior = tried_shifts(item, indices, settings, limit)
        given, sums = assign(
            model.references, rings, shifts, log_prior, view, sums, mirrored=settings.mirrored, best=posed
        )
        by_class = given.mass.sum(axis=1)
        number = by_class.argmax(axis=1)
        rows = np.arange(count)
        side = given.mass[rows, :, number].argmax(axis=1)
        psi, where, detail = np.zeros(count), np.zeros((count, 2)), np.zeros(count)
        if given.code is not None:
            shift, psi = decode(given.code[rows, side, number], view.grid.angles)
            where = shifts[rows, shift]
            matched, norm = ring_matches(model.references, rings, view, number, side, psi, where)
            first = min(alike_shell(settings.box, settings.radius), limit - 1)
            noise = np.sum(norm[:, first:] * view.left[first:], axis=1)
            detail = np.sum(matched[:, first:], axis=1) / np.sqrt(np.maximum(noise, 1e-30))
        found.append(
            Sorted(
                indices,
                number.astype(np.int32),
                by_class[rows, number],
                given.evidence.astype(np.float32),
                psi.astype(np.float32),
                where.astype(np.float32),
                side.astype(np.int8),
                detail.astype(np.float32),
            )
        )
    return Added({item.part: sums}, joined(found))


def tried_shifts(
    item: ClassItem, indices: NDArray[np.int64], settings: ClassSettings, limit: int
) -> tuple[Float64, NDArray[np.float32]]:
    """Return the shifts that are tried for some images of a task, and the logarithm of their probability."""
    finest = settings.box / limit
    if item.centres is None:
        step = ROUGH_STEP if item.rough else SHIFT_STEP
        return shift_choices(settings.shift_range, finest, len(indices), step)
    centres = item.centres[np.searchsorted(item.indices, indices)].astype(np.float64)
    return near_choices(settings.shift_range, finest, centres, NEIGHBOURS)


def part_of(item: ClassItem) -> tuple[int]:
    """Return the key of a task's sums."""
    return (item.part,)


def merge_soft(earlier: SoftSums, later: SoftSums) -> SoftSums:
    """Add two sums."""
    return earlier.plus(later)


def cut_soft(sums: SoftSums, number: int, count: int) -> SoftSums:
    """Return the classes of brick ``number`` of ``count``; what is of no class goes with the first."""
    classes = len(sums.mass)
    some = slice(classes * number // count, classes * (number + 1) // count)
    whole = 1.0 if number == 0 else 0.0
    parts = (sums.even[..., some], sums.odd[..., some], sums.weight[:, some], sums.mass[some])
    return SoftSums(*parts, whole * sums.residual, whole * sums.images, whole * sums.evidence)


def join_soft(bricks: Sequence[SoftSums]) -> SoftSums:
    """Return the sums that were cut into these."""
    even, odd, weight, mass = (
        np.concatenate([getattr(brick, name) for brick in bricks], axis=-1)
        for name in ("even", "odd", "weight", "mass")
    )
    first = bricks[0]
    return SoftSums(even, odd, weight, mass, first.residual, first.images, first.evidence)


def fold_of_classes(settings: ClassSettings, limit: int, *, posed: bool) -> Fold[ClassItem, int, SoftSums, Sorted]:
    """Return the fold whose sums are those of parts."""
    add = partial(sort_group, settings=settings, limit=limit, posed=posed)
    return Fold(part_of, add, merge_soft, cut_soft, join_soft)


def noise_of_group(indices: NDArray[np.int64], dataset: Dataset, side: int | None = None) -> NDArray[np.float64]:
    """Return power spectra and their counts by optics group: the noise before anything is known.

    ``side``: pixels that the images are cut down to first; None for all of them.
    """
    total: Any = 0
    for some, images in image_batches(dataset, indices):
        if side is not None:
            images = coarse_images(images, side)
        power, count = power_spectrum(images, dataset.optics_group[some], len(dataset.particles.optics))
        total = total + np.column_stack([power, count])
    return np.asarray(total)


def seed_group(indices: NDArray[np.int64], dataset: Dataset, settings: ClassSettings, sigma2: Float64) -> SoftSums:
    """Return the sums of classes that are made of a few images each, as they are: image i goes to class i mod d."""
    view, classes = view_of(settings, settings.first_limit), settings.classes
    grid = view.grid
    parts = [
        rings_of(batch_for_classes(dataset, some, images), sigma2, view)
        for some, images in image_batches(dataset, indices)
    ]
    rings = Rings(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    count = len(rings.power)
    shape = (count, grid.k_max, -1)
    whole = harmonics(rings.real.reshape(shape), rings.imaginary.reshape(shape), grid)
    sums, owner = no_sums(grid, classes), np.random.default_rng(0).permutation(count) % classes
    for number in range(classes):
        own = owner == number
        for total, part in ((sums.even, whole.even), (sums.odd, whole.odd)):
            total[..., number] = part[..., own].sum(axis=-1, dtype=np.float64)
        sums.weight[:, number] = rings.power[own].sum(axis=0, dtype=np.float64)
        sums.mass[number] = own.sum()
    return sums
