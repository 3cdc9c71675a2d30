"""The tasks of a refinement: what runs on workers, and the values that they share.

A task reads everything from the project store: the particles, and the checkpoint that the iteration before left. It is
therefore pure, and a lost worker costs only the recomputation of its tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Poses, Prior, best_of, start_poses
from cloudem.algorithms.batch import Batch, insert_known
from cloudem.algorithms.bricks import (
    Brick,
    cut,
    join_bricks,
    merge_bricks,
    pack,
    pack_reference,
    packed_sphere_of,
    unpack_reference,
)
from cloudem.algorithms.evidence import gains
from cloudem.algorithms.expectation import IterationPlan, Model, contrast, expect
from cloudem.algorithms.noise import power_spectrum
from cloudem.algorithms.reconstruct import empty_sums, reference_volume
from cloudem.algorithms.search import MARGIN, search_grid
from cloudem.backend.arrays import Device, choose_device, on_device, to_device, to_host
from cloudem.errors import FormatError
from cloudem.execution.executor import Added, Fold, Pieces
from cloudem.io.storage.groups import read_attributes, read_group, read_rows
from cloudem.jobs.dataset import Dataset, groups_of, image_batches
from cloudem.jobs.iterative import CHECKPOINT
from cloudem.jobs.progress import RunningStage
from cloudem.kernels.slices import padded_box
from cloudem.model.poses import euler_to_matrix
from cloudem.model.symmetry import operators
from cloudem.traffic import purpose

REFERENCES = "references"
"""Group whose groups hold a half-set's reference each."""


N = TypeVar("N")


class Item(NamedTuple):
    """One task: images of one half-set."""

    half: int
    indices: NDArray[np.int64]


def tasks(
    half_set: NDArray[np.int8], size: int, most: int | None = None, order: NDArray[np.int64] | None = None
) -> list[Item]:
    """Return the tasks of one half-set and then of the other; ``most`` images of each, in the store's order or another.

    So most workers have images of one half-set, and need its reference and sums alone.
    """
    order = np.arange(len(half_set)) if order is None else order
    return [Item(h, group) for h in (1, 2) for group in groups_of(order[half_set[order] == h][:most], size)]


def spread_groups(items: Sequence[Item], least: int) -> list[Item]:
    """Return so many tasks of each half-set, from all parts of it, that they have at least that many images."""
    chosen: list[Item] = []
    for half in (1, 2):
        own = [item for item in items if item.half == half]
        number = min(len(own), -(-least // max(1, min(len(item.indices) for item in own)))) if own else 0
        chosen += [own[i * len(own) // number] for i in range(number)]
    return chosen


def counter(stage: RunningStage, items: Sequence[Item]) -> Callable[[int], None]:
    """Return what tells a stage how many images a finished task held."""
    return lambda index: stage.advance(len(items[index].indices))


@dataclass(frozen=True)
class Checkpoint:
    """The arrays of a checkpoint; the half-sets' references are groups of their own, named in its attributes.

    Attributes
    ----------
    sigma2
        (2, g, n // 2 + 1).
    shift_variance
        (2,), pixels².
    half_set, scale, settled, keep
        (N,); see :class:`cloudem.algorithms.batch.Batch`.
    view_gradient
        Of the density of each half-set's views (:func:`cloudem.algorithms.view_density.density_gradient`), (2, d, 3).
    pose_images, pose_rotations, pose_shifts, pose_weights
        Poses of all images, ordered by image and weight: (c,), (c, 3, 3), (c, 2), (c,); empty at the start.
    pose_starts
        Row of the first pose of each image, (N + 1,).
    """

    sigma2: NDArray[np.float64]
    shift_variance: NDArray[np.float64]
    half_set: NDArray[np.int8]
    scale: NDArray[np.float64]
    settled: NDArray[np.bool_]
    keep: NDArray[np.float64]
    view_gradient: NDArray[np.float16]
    pose_images: NDArray[np.int32]
    pose_rotations: NDArray[np.float64]
    pose_shifts: NDArray[np.float64]
    pose_weights: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, for the store."""
        starts = np.searchsorted(self.pose_images, np.arange(len(self.half_set) + 1)).astype(np.int64)
        return {**vars(self), "pose_starts": starts}

    def poses(self) -> Poses:
        """Return the poses of all images, not scored; ``images`` counts particles of the store."""
        return start_poses(self.pose_images, self.pose_rotations, self.pose_shifts)


def read_checkpoint(url: str) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the checkpoint and its attributes.

    Raises
    ------
    StorageError, FormatError
        Part of it is lost or changed, or another version of cloudem left it.
    """
    with purpose("poses"):
        arrays, attributes = read_group(url, CHECKPOINT)
    arrays.pop("pose_starts", None)
    if arrays.keys() != {field.name for field in fields(Checkpoint)}:
        raise FormatError(f"{url}/{CHECKPOINT} was left by another version of cloudem; --restart")
    return Checkpoint(**arrays), attributes


class Reference(NamedTuple):
    """A half-set's reference and statistics as they travel: the voxels that slices read, and little else."""

    values: NDArray[np.complex64]
    k_max: int
    sigma2: NDArray[np.float64]
    shift_variance: float
    own_share: NDArray[np.float64]
    view_gradient: NDArray[np.float16]


def read_reference(url: str, half: int, plan: IterationPlan) -> Reference:
    """Transform a half-set's reference; runs once, on one worker."""
    with purpose("reference"):
        names = (read_attributes(url, CHECKPOINT) or {})["references"]
        written = read_group(url, f"{REFERENCES}/{names[half - 1]}")[0]
        rows = read_rows(url, CHECKPOINT, ["sigma2", "shift_variance", "view_gradient"], half - 1, half)
    k_max = max(plan.k_score, plan.k_search + MARGIN)
    values = pack_reference(reference_volume(written["map"], k_max), k_max, padded_box(plan.box) / plan.box)
    shift_variance = float(rows["shift_variance"][0])
    return Reference(values, k_max, rows["sigma2"][0], shift_variance, written["own_share"], rows["view_gradient"][0])


def cut_reference(reference: Reference, number: int, count: int) -> Reference:
    """Return a piece of a reference."""
    values, gradient = reference.values, reference.view_gradient
    voxels, views = ([len(part) * n // count for n in (number, number + 1)] for part in (values, gradient))
    return reference._replace(values=values[slice(*voxels)], view_gradient=gradient[slice(*views)])


def join_reference(pieces: Sequence[Reference]) -> Reference:
    """Return the reference that was cut into these."""
    values = np.concatenate([piece.values for piece in pieces])
    return pieces[0]._replace(values=values, view_gradient=np.concatenate([piece.view_gradient for piece in pieces]))


REFERENCE_PIECES = Pieces(cut_reference, join_reference)


def model_of(reference: Reference, plan: IterationPlan, symmetry: str) -> Model:
    """Make what images are compared with; runs on each worker that has images of the half-set."""
    group, padding = operators(symmetry), padded_box(plan.box) / plan.box
    volume = unpack_reference(to_device(reference.values, choose_device()), reference.k_max, padding)
    grid = None
    if plan.k_search:
        grid = search_grid(volume, padding, plan.box, plan.k_search, plan.radius, plan.step, group)
    return Model(
        volume,
        grid,
        reference.sigma2,
        Prior(reference.shift_variance),
        group,
        reference.own_share,
        reference.view_gradient,
    )


@dataclass(frozen=True)
class Known:
    """What the last iteration left of consecutive particles, from ``first`` on: see :class:`Checkpoint`."""

    first: int
    scale: NDArray[np.float64]
    settled: NDArray[np.bool_]
    poses: Poses | None
    weights: NDArray[np.float64] | None = None
    keep: NDArray[np.float64] | None = None


def read_known(url: str, indices: NDArray[np.int64]) -> Known:
    """Read what is known of the particles from the first to the last of a group."""
    first, stop = int(indices[0]), int(indices[-1]) + 1
    with purpose("poses"):
        rows = read_rows(url, CHECKPOINT, ["scale", "settled", "keep"], first, stop)
        edges = read_rows(url, CHECKPOINT, ["pose_starts"], first, stop + 1)["pose_starts"]
        poses = weights = None
        if edges[-1] > edges[0]:
            names = ("pose_images", "pose_rotations", "pose_shifts")
            found = read_rows(url, CHECKPOINT, (*names, "pose_weights"), int(edges[0]), int(edges[-1]))
            poses, weights = start_poses(*(found[name] for name in names)), found["pose_weights"]
    return Known(first, rows["scale"], rows["settled"], poses, weights, rows["keep"])


def batch_of(
    dataset: Dataset, indices: NDArray[np.int64], images: NDArray[np.float32], known: Known, device: Device
) -> Batch:
    """Put images together with what is known of them."""
    poses, weights = None, known.weights
    if known.poses is not None:
        rows = np.flatnonzero(np.isin(known.poses.images, indices))
        poses, weights = known.poses.take(rows), None if weights is None else weights[rows]
        poses = replace(poses, images=np.searchsorted(indices, poses.images).astype(np.int32))
    here = indices - known.first
    scale = known.scale[here] * dataset.ctf_scale[indices]
    table = (dataset.terms[indices], scale, dataset.optics_group[indices], known.settled[here])
    keep = None if known.keep is None else known.keep[here]
    return Batch(to_device(images, device), *table, poses, weights, keep, dataset.aberrations)


class Placed(NamedTuple):
    """Where images are in the map: rotations (b, 3, 3) and shifts (b, 2) in pixels."""

    rotations: NDArray[np.float64]
    shifts: NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Poses of a group of images, ``images`` counting particles of the store, and their weights.

    ``matches`` is what the most probable one of each image says of it (:func:`cloudem.algorithms.junk.pose_matches`),
    ``inserted`` that pose as it was inserted, drawn in by the density of views.
    """

    poses: Poses
    weights: NDArray[np.float64]
    matches: NDArray[np.float64]
    inserted: Placed


class Aligned(NamedTuple):
    """What a group of images gives besides its sums: poses, and the residual power with its counts for the noise."""

    found: list[Found]
    noise: NDArray[np.float64]


def half_of(item: Item) -> tuple[int]:
    """Return the key of a group's sums: its half-set."""
    return (item.half,)


def align_group(
    item: Item, dataset: Dataset, model: Model, url: str, plan: IterationPlan
) -> Added[int, Brick, Aligned]:
    """Run the expectation step on a group of images; the ``add`` of the refinement's fold."""
    device: Device = "gpu" if on_device(model.volume) else "cpu"
    sums = empty_sums(plan.box, plan.k_insert, beside=model.volume)
    found: list[Found] = []
    noise: Any = 0
    known = read_known(url, item.indices)
    for indices, images in image_batches(dataset, item.indices):
        expected = expect(batch_of(dataset, indices, images, known, device), plan, model, sums)
        poses = replace(expected.poses, images=indices[expected.poses.images].astype(np.int32))
        best = best_of(poses.images)
        placed = Placed(expected.inserted.rotations[best], expected.inserted.shifts[best])
        found.append(Found(poses, expected.weights, expected.matches, placed))
        noise = noise + np.column_stack([expected.residual, expected.count])
    brick = pack(sums, packed_sphere_of(plan.box, plan.k_insert, model.group))
    # of the accumulator nothing but the line of its independent voxels leaves the device
    return Added({item.half: Brick(to_host(brick.data), to_host(brick.weight))}, Aligned(found, noise))


def fold_of(add: Callable[..., Added[int, Brick, N]]) -> Fold[Item, int, Brick, N]:
    """Return the fold whose sums are accumulators of half-sets."""
    return Fold(half_of, add, merge_bricks, cut, join_bricks)  # type: ignore[arg-type]  # bricks in the form in which they are sent


def power_of_group(item: Item, dataset: Dataset) -> NDArray[np.float64]:
    """Return power spectra and their counts: the noise before anything is known."""
    total: Any = 0
    groups, device = len(dataset.particles.optics), choose_device()
    for indices, images in image_batches(dataset, item.indices):
        power, count = power_spectrum(to_device(images, device), dataset.optics_group[indices], groups)
        total = total + np.column_stack([power, count])
    return np.asarray(total)


def contrast_of_group(item: Item, dataset: Dataset, model: Model, url: str, plan: IterationPlan) -> NDArray[np.float64]:
    """Return how well images match the reference as it is and with its sign changed (see :func:`contrast`)."""
    known, device = read_known(url, item.indices), choose_device()
    parts = (
        batch_of(dataset, indices, images, known, device) for indices, images in image_batches(dataset, item.indices)
    )
    return np.concatenate([contrast(part, plan, model) for part in parts])


class PosedItem(NamedTuple):
    """Images of one half-set, and the best pose of each: (b, 3, 3), and (b, 2) in pixels."""

    half: int
    indices: NDArray[np.int64]
    rotations: NDArray[np.float64]
    shifts: NDArray[np.float64]


def gains_of_group(
    item: PosedItem, dataset: Dataset, volume: NDArray[np.complex64], url: str, shells: tuple[int, int]
) -> NDArray[np.float64]:
    """Return how much better images match the other half-set's map from their own side, by shell (:func:`gains`)."""
    known = read_known(url, item.indices)
    with purpose("poses"):
        sigma2 = read_rows(url, CHECKPOINT, ["sigma2"], item.half - 1, item.half)["sigma2"][0]
    inverse, parts = (1 / sigma2).astype(np.float32), []
    for indices, images in image_batches(dataset, item.indices):
        if len(indices) > 1:
            here = np.searchsorted(item.indices, indices)
            batch = batch_of(dataset, indices, images, known, "cpu")
            by_image = inverse[batch.optics_group]
            pose = (item.rotations[here], item.shifts[here])
            parts.append(gains(batch, *pose, volume, by_image, shells, dataset.store.pixel_size))
    return np.concatenate(parts) if parts else np.zeros((0, shells[1] - shells[0] + 1))


def insert_group(item: Item, dataset: Dataset, k_max: int, symmetry: str) -> Added[int, Brick, None]:
    """Insert images at the poses of the table; the ``add`` of a reconstruction's fold."""
    sums = empty_sums(dataset.store.box, k_max)
    pixel_size, table = dataset.store.pixel_size, dataset.particles
    for indices, images in image_batches(dataset, item.indices):
        rotations = euler_to_matrix(*(table[name][indices] for name in ("rot", "tilt", "psi")))
        shifts = np.stack([table.get(name, 0.0)[indices] for name in ("shift_x", "shift_y")], axis=1) / pixel_size
        poses = start_poses(np.arange(len(indices)), rotations, shifts)
        scale = table.get("intensity_scale", 1.0)[indices] * dataset.ctf_scale[indices]
        settled = np.ones(len(indices), bool)
        table_rows = (dataset.terms[indices], scale, dataset.optics_group[indices], settled)
        batch = Batch(images, *table_rows, poses, aberrations=dataset.aberrations)
        insert_known(batch, pixel_size, k_max, sums)
    return Added({item.half: pack(sums, packed_sphere_of(dataset.store.box, k_max, operators(symmetry)))}, None)
