"""The tasks of a classification by maps: what runs on workers, and the values that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Poses, Prior, Weighted, start_poses
from cloudem.algorithms.batch import Batch, add_slices, insert_weighted
from cloudem.algorithms.bricks import Brick, cut, join_bricks, merge_bricks, pack, packed_sphere_of
from cloudem.algorithms.expectation import Model
from cloudem.algorithms.leading import (
    LinearModel,
    inside_points,
    lay_back,
    leading_coordinates,
    whitening,
)
from cloudem.algorithms.reconstruct import Sums, empty_sums, reference_volume
from cloudem.algorithms.states import (
    SeenImages,
    StateSettings,
    add_residuals,
    posterior,
    score_states,
    see,
    shifted_slices,
)
from cloudem.algorithms.wide import search_states, wide_model
from cloudem.errors import FormatError
from cloudem.execution.executor import Added, Fold
from cloudem.io.storage.groups import read_group
from cloudem.jobs.dataset import Dataset, image_batches
from cloudem.jobs.iterative import CHECKPOINT
from cloudem.kernels.shells import shell_sums
from cloudem.model.symmetry import operators
from cloudem.traffic import purpose

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

HELD = 4
"""Number of the part that trains nothing: its images are compared with what all others know."""

NOWHERE = -1
"""Part of particles that are left out."""


class StateCheckpoint(NamedTuple):
    """What the next iteration needs.

    Attributes
    ----------
    part, half_set
        Of each particle, (N,): its part, `NOWHERE` or `HELD`; 1, 2 or 0.
    rotations, shifts
        Pose of each, (N, 3, 3), and (N, 2) in pixels of the grid.
    probability
        Of each class, (N, K); of no columns before there are classes.
    evidence
        Of all classes together against one state, (N,); NaN for all but particles that were held out.
    sigma2
        Noise variance by optics group and shell, (g, n // 2 + 1).
    consensus, outline
        Map of all that trains, and where differences are looked for, (m, m, m).
    maps
        Differences that each part, and at last the images held out, are compared with: (parts + 1, K, m, m, m).
    share
        Of each class, (K,).
    """

    part: NDArray[np.int8]
    half_set: NDArray[np.int8]
    rotations: Float64
    shifts: Float64
    probability: Float64
    evidence: Float64
    sigma2: Float64
    consensus: Float32
    outline: Float32
    maps: Float32
    share: Float64


def read_state_checkpoint(url: str) -> StateCheckpoint:
    """Return the checkpoint in the store.

    Raises
    ------
    FormatError
        Another version of cloudem left it.
    """
    with purpose("poses"):
        arrays, _ = read_group(url, CHECKPOINT)
    if arrays.keys() != set(StateCheckpoint._fields):
        raise FormatError(f"{url}/{CHECKPOINT} was left by another version of cloudem; run it again with --restart")
    return StateCheckpoint(**arrays)


class StateItem(NamedTuple):
    """One task.

    Attributes
    ----------
    part
        To whose sums its images are added.
    compared
        With the differences of which part they are compared.
    indices
        Of the images.
    rotations, shifts, weights
        Pose of each, and weight in each of several sums, (b, c).
    """

    part: int
    compared: int
    indices: NDArray[np.int64]
    rotations: Float64
    shifts: Float64
    weights: Float64

    def poses(self, here: NDArray[np.int64]) -> Poses:
        """Return the poses of some of its images, numbered from 0."""
        return start_poses(np.arange(len(here)), self.rotations[here], self.shifts[here])


class StateModel(NamedTuple):
    """What images are compared with: padded half-volumes of the consensus and of each map, noise, shares, shifts.

    ``wide`` is for searching them in the map of each class; empty where they are not searched.
    """

    consensus: Complex64
    volumes: list[Complex64]
    sigma2: Float64
    share: Float64
    prior: Prior
    wide: list[Model]


def read_state_model(
    url: str, part: int, settings: StateSettings, limit: int, added: bool, shift_variance: float, wide: str = ""
) -> StateModel:
    """Return what images of a part are compared with; where ``added``, differences are on the consensus.

    ``wide`` is the point group in which they are searched, "" where they are not.
    """
    with purpose("reference"):
        checkpoint = read_state_checkpoint(url)
    maps = checkpoint.maps[part] if len(checkpoint.maps) else checkpoint.maps
    base = checkpoint.consensus if added else np.float32(0)
    volumes = [reference_volume(base + each, limit) for each in maps]
    consensus, prior = reference_volume(checkpoint.consensus, limit), Prior(shift_variance)
    group, noise = operators(wide or "C1"), checkpoint.sigma2
    models = [wide_model(base + each, noise, prior, group, settings, limit) for each in maps] if wide else []
    return StateModel(consensus, volumes, noise, checkpoint.share, prior, models)


def batch_of_states(dataset: Dataset, indices: NDArray[np.int64], images: Float32) -> Batch:
    """Put images together with what the table says of them: CTF, and how strong they are."""
    scale = dataset.ctf_scale[indices] * dataset.particles.get("intensity_scale", 1.0)[indices]
    table = (dataset.terms[indices], scale, dataset.optics_group[indices], np.ones(len(indices), bool))
    return Batch(images, *table, None, aberrations=dataset.aberrations)


def keep_of(dataset: Dataset, indices: NDArray[np.int64]) -> Float64:
    """Return how much images count, (b,)."""
    return np.asarray(dataset.particles.get("keep", 1.0)[indices], np.float64)


def seen_batches(
    item: StateItem, dataset: Dataset, sigma2: Float64, settings: StateSettings, limit: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], SeenImages]]:
    """Yield numbers of images in the store, the same in the item, and the images in Fourier space."""
    for indices, here, batch in item_batches(item, dataset):
        yield indices, here, see(batch, sigma2, settings, limit)


def item_batches(item: StateItem, dataset: Dataset) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Batch]]:
    """Yield numbers of images in the store, the same in the item, and the images."""
    for indices, images in image_batches(dataset, item.indices):
        yield indices, np.searchsorted(item.indices, indices), batch_of_states(dataset, indices, images)


def packed(sums: Sums, settings: StateSettings, limit: int, symmetry: str) -> Brick:
    """Return sums as they are kept and sent; they are used up."""
    return pack(sums, packed_sphere_of(settings.box, limit, operators(symmetry)))


def state_fold(
    add: Callable[..., Added[tuple[int, int], Brick, Any]], columns: int
) -> Fold[StateItem, tuple[int, int], Brick, Any]:
    """Return the fold whose sums are those of parts and columns of weights."""
    return Fold(Keys(columns), add, merge_bricks, cut, join_bricks)  # type: ignore[arg-type]  # bricks in the form in which they are sent


class Keys(NamedTuple):
    """Keys of an item's sums: its part, and each column of its weights."""

    columns: int

    def __call__(self, item: StateItem) -> list[tuple[int, int]]:
        """Return them."""
        return [(item.part, column) for column in range(self.columns)]


def consensus_group(
    item: StateItem, dataset: Dataset, sigma2: Float64, settings: StateSettings, limit: int, symmetry: str
) -> Added[tuple[int, int], Brick, None]:
    """Add whole images at their poses."""
    sums = empty_sums(settings.box, limit)
    for indices, here, seen in seen_batches(item, dataset, sigma2, settings, limit):
        add_slices(sums, seen.weighted(), item.poses(here), keep_of(dataset, indices), settings.box)
    return Added({(item.part, 0): packed(sums, settings, limit, symmetry)}, None)


def residual_group(
    item: StateItem, dataset: Dataset, volume: Complex64, sigma2: Float64, settings: StateSettings, limit: int
) -> Float64:
    """Return ``Σ |X - C S|²`` by optics group and shell, and images by group, (g, n // 2 + 2)."""
    groups, shells = sigma2.shape
    total = np.zeros((groups, shells + 1))
    for indices, here, seen in seen_batches(item, dataset, sigma2, settings, limit):
        left = seen.residual(shifted_slices(volume, item.poses(here), seen.disc, settings, seen.magnification)).images
        power, group = left.real**2 + left.imag**2, dataset.optics_group[indices]
        by_pixel = np.stack([power[group == g].sum(axis=0, dtype=np.float64) for g in range(groups)])
        total[:, :-1] += shell_sums(by_pixel, seen.disc.shell, shells)
        total[:, -1] += np.bincount(group, minlength=groups)
    return total


def residual_of(seen: SeenImages, poses: Poses, model: StateModel, settings: StateSettings) -> Weighted:
    """Return the weighted residuals of images against the consensus."""
    return seen.residual(shifted_slices(model.consensus, poses, seen.disc, settings, seen.magnification)).weighted()


def leading_of(
    items: Sequence[StateItem],
    dataset: Dataset,
    model: StateModel,
    outline: Float32,
    settings: StateSettings,
    symmetry: str,
    count: int,
    seed: int,
) -> Float64:
    """Return the leading coordinates of the images of some items, one after another: one task, on one worker."""
    limit, group = settings.start_limit, operators(symmetry)
    points, white, rows = inside_points(outline, limit), None, []
    for item in items:
        for _, here, seen in seen_batches(item, dataset, model.sigma2, settings, limit):
            residual = residual_of(seen, item.poses(here), model, settings)
            if white is None:
                white = whitening(residual.denominators, seen.disc.shell, limit)
            rows.append(lay_back(residual, item.poses(here), points, white, settings.box, group))
    return leading_coordinates(np.concatenate(rows), count, seed)


def difference_group(
    item: StateItem,
    dataset: Dataset,
    model: StateModel,
    settings: StateSettings,
    limit: int,
    symmetry: str,
    signed: bool,
) -> Added[tuple[int, int], Brick, None]:
    """Add residuals with the item's weights: coordinates if ``signed``, with their squares for C² / σ², or shares."""
    columns = item.weights.shape[1]
    sums = [empty_sums(settings.box, limit) for _ in range(columns)]
    for indices, here, seen in seen_batches(item, dataset, model.sigma2, settings, limit):
        poses, keep = item.poses(here), keep_of(dataset, indices)
        add_columns(sums, residual_of(seen, poses, model, settings), poses, item.weights[here], keep, settings, signed)
    return Added({(item.part, c): packed(sums[c], settings, limit, symmetry) for c in range(columns)}, None)


def add_columns(
    sums: Sequence[Sums],
    residual: Weighted,
    poses: Poses,
    weights: Float64,
    keep: Float64,
    settings: StateSettings,
    signed: bool,
) -> None:
    """Add residuals to the sums of each column of weights, in place."""
    for total, column in zip(sums, weights.T, strict=True):
        squares = column**2 if signed else column
        add_residuals(total, residual, poses, keep * column, keep * squares, settings)


def coordinate_group(
    item: StateItem, dataset: Dataset, model: StateModel, settings: StateSettings, limit: int
) -> LinearModel:
    """Return what images say of their coordinates along the differences of their part."""
    linear, quadratic = [], []
    for _, here, seen in seen_batches(item, dataset, model.sigma2, settings, limit):
        poses = item.poses(here)
        residual = residual_of(seen, poses, model, settings)
        slices = [shifted_slices(v, poses, seen.disc, settings, seen.magnification) for v in model.volumes]
        linear.append(np.stack([np.sum((residual.numerators * s.conj()).real, axis=1) for s in slices], axis=1))
        products = [[np.sum(residual.denominators * (s * t.conj()).real, axis=1) for s in slices] for t in slices]
        quadratic.append(np.array(products).transpose(2, 0, 1))
    return LinearModel(*(np.concatenate(each).astype(np.float64) for each in (linear, quadratic)))


class Shared3D(NamedTuple):
    """What becomes of the images of a task, each (b, …): probability of each class, evidence of each, and pose.

    ``one`` is the evidence of the consensus, NaN where nobody asked.
    """

    indices: NDArray[np.int64]
    probability: Float64
    evidence: Float64
    one: Float64
    rotations: Float64
    shifts: Float64


def joined_states(parts: Sequence[Shared3D]) -> Shared3D:
    """Return what became of the images of several tasks, in the order of the store."""
    order = np.argsort(np.concatenate([part.indices for part in parts]))
    return Shared3D(*(np.concatenate(each)[order] for each in zip(*parts, strict=True)))


def shared_batches(
    item: StateItem, dataset: Dataset, model: StateModel, settings: StateSettings, limit: int
) -> Iterator[tuple[Shared3D, SeenImages]]:
    """Share images out between classes, batch by batch; those that train nothing are asked about the consensus, too."""
    held, classes = item.part == HELD, len(model.volumes)
    for indices, here, batch in item_batches(item, dataset):
        seen, poses = see(batch, model.sigma2, settings, limit), item.poses(here)
        if model.wide:
            scores = search_states(batch, poses, model.wide, settings, limit)
        else:
            volumes = [*model.volumes, model.consensus] if held else model.volumes
            scores = score_states(seen, poses, volumes, model.prior, settings)
        evidence = scores.evidence[:, :classes]
        probability, _ = posterior(evidence, model.share)
        rotations, shifts = scores.of(probability.argmax(axis=1))
        one = scores.evidence[:, classes] if held and not model.wide else np.full(len(here), np.nan)
        yield Shared3D(indices, probability, evidence, one, rotations, shifts), seen


def classify_group(
    item: StateItem, dataset: Dataset, model: StateModel, settings: StateSettings, limit: int, symmetry: str
) -> Added[tuple[int, int], Brick, Shared3D]:
    """Share images out between classes, and add their residuals to the sums of their part."""
    sums, found = [empty_sums(settings.box, limit) for _ in model.volumes], []
    for mine, seen in shared_batches(item, dataset, model, settings, limit):
        poses = start_poses(np.arange(len(mine.indices)), mine.rotations, mine.shifts)
        residual, keep = residual_of(seen, poses, model, settings), keep_of(dataset, mine.indices)
        add_columns(sums, residual, poses, mine.probability, keep, settings, False)
        found.append(mine)
    bricks = {(item.part, c): packed(total, settings, limit, symmetry) for c, total in enumerate(sums)}
    return Added(bricks, joined_states(found))


def compare_group(
    item: StateItem, dataset: Dataset, model: StateModel, settings: StateSettings, limit: int
) -> Shared3D:
    """Share images out between classes, and add them to nothing."""
    return joined_states([mine for mine, _ in shared_batches(item, dataset, model, settings, limit)])


def insert_class(
    item: StateItem, dataset: Dataset, settings: StateSettings, k_max: int, symmetry: str
) -> Added[tuple[int, int], Brick, None]:
    """Insert whole images, at the resolution that they have, with the weight that they have in a class."""
    box = settings.whole_box
    sums = empty_sums(box, k_max)
    for indices, images in image_batches(dataset, item.indices):
        here = np.searchsorted(item.indices, indices)
        poses = start_poses(np.arange(len(here)), item.rotations[here], item.shifts[here] * box / settings.box)
        batch = batch_of_states(dataset, indices, images)
        weights = item.weights[here, 0] * keep_of(dataset, indices)
        insert_weighted(batch, poses, weights, settings.length / box, k_max, sums)
    return Added({(item.part, 0): pack(sums, packed_sphere_of(box, k_max, operators(symmetry)))}, None)
