"""The tasks of a refinement: what runs on workers, and the values that they share.

A task reads everything from the project store: the particles, and the checkpoint that the iteration before left. It is
therefore pure, and a lost worker costs only the recomputation of its tasks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Poses, Prior, start_poses
from cloudem.algorithms.expectation import (
    Batch,
    Model,
    Plan,
    contrast,
    expect,
    insert_known,
    power_spectrum,
)
from cloudem.algorithms.reconstruct import Sums, empty_sums, merge_sums, reference_volume
from cloudem.algorithms.search import MARGIN, search_grid
from cloudem.backend.arrays import Device, choose_device, on_device, to_device
from cloudem.io.groups import read_group
from cloudem.jobs.dataset import Dataset, batches
from cloudem.kernels.slices import padded_box
from cloudem.model.poses import euler_to_matrix
from cloudem.model.symmetry import operators

CHECKPOINT = "checkpoint"
"""Group that holds what the next iteration needs."""

BRICKS = 8
"""Slabs along kz into which an accumulator is cut: the units that are merged."""


class Item(NamedTuple):
    """One task: images of one half-set."""

    half: int
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Half:
    """What a half-set knows before an iteration: its model; each image's poses, scale, and whether it is settled."""

    model: Model
    poses: Poses | None
    scale: NDArray[np.float64]
    settled: NDArray[np.bool_]


@dataclass(frozen=True)
class Checkpoint:
    """The arrays of a checkpoint.

    Attributes
    ----------
    references
        (2, n, n, n) float32: filtered and masked half-maps.
    sigma2
        (2, g, n // 2 + 1).
    shift_variance
        (2,), pixels².
    half_set, scale, settled
        (N,); see :class:`cloudem.algorithms.expectation.Batch`.
    pose_images, pose_rotations, pose_shifts, pose_weights
        Poses of all images, ordered by image and weight: (c,), (c, 3, 3), (c, 2), (c,); empty at the start.
    """

    references: NDArray[np.float32]
    sigma2: NDArray[np.float64]
    shift_variance: NDArray[np.float64]
    half_set: NDArray[np.int8]
    scale: NDArray[np.float64]
    settled: NDArray[np.bool_]
    pose_images: NDArray[np.int32]
    pose_rotations: NDArray[np.float64]
    pose_shifts: NDArray[np.float64]
    pose_weights: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, for the store."""
        return dict(vars(self))

    def poses(self) -> Poses:
        """Return the poses of all images, not scored; ``images`` counts particles of the store."""
        return start_poses(self.pose_images, self.pose_rotations, self.pose_shifts)


def read_checkpoint(url: str) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the checkpoint and its attributes."""
    arrays, attributes = read_group(url, CHECKPOINT)
    return Checkpoint(**arrays), attributes


def build_half(url: str, half: int, plan: Plan, symmetry: str) -> Half:
    """Make a half-set's model from the checkpoint."""
    checkpoint, _ = read_checkpoint(url)
    group = operators(symmetry)
    volume = reference_volume(checkpoint.references[half - 1], max(plan.k_score, plan.k_search + MARGIN))
    volume = to_device(volume, choose_device())
    grid = None
    if plan.k_search:
        padding = padded_box(plan.box) / plan.box
        grid = search_grid(volume, padding, plan.box, plan.k_search, plan.radius, plan.step, group)
    prior = Prior(float(checkpoint.shift_variance[half - 1]))
    model = Model(volume, grid, checkpoint.sigma2[half - 1], prior, group)
    poses = None
    if len(checkpoint.pose_images):
        mine = checkpoint.half_set[checkpoint.pose_images] == half
        poses = checkpoint.poses().take(mine)
    return Half(model, poses, checkpoint.scale, checkpoint.settled)


def batch_of(dataset: Dataset, indices: NDArray[np.int64], half: Half) -> Batch:
    """Read a batch."""
    poses = None
    if half.poses is not None:
        start, stop = np.searchsorted(half.poses.images, [indices[0], indices[-1] + 1])
        poses = half.poses.take(np.arange(start, stop))
        poses = replace(poses, images=np.searchsorted(indices, poses.images).astype(np.int32))
    scale = half.scale[indices] * dataset.ctf_scale[indices]
    table = (dataset.terms[indices], scale, dataset.optics_group[indices], half.settled[indices])
    images = to_device(dataset.images(indices), "gpu" if on_device(half.model.volume) else "cpu")
    return Batch(images, *table, poses)


@dataclass(frozen=True)
class Found:
    """Poses of a group of images, ``images`` counting particles of the store, and their weights."""

    poses: Poses
    weights: NDArray[np.float64]


def align_group(item: Item, dataset: Dataset, first: Half, second: Half, plan: Plan) -> Mapping[Hashable, Any]:
    """Run the expectation step on a group of images; the ``add`` of the refinement's fold."""
    half = (first, second)[item.half - 1]
    device: Device = "gpu" if on_device(half.model.volume) else "cpu"
    sums = moved(empty_sums(plan.box, plan.k_insert), device)
    found: list[Found] = []
    residual: NDArray[np.float64] | None = None
    for _, indices in batches(item.indices):
        expected = expect(batch_of(dataset, indices, half), plan, half.model, sums)
        poses = replace(expected.poses, images=indices[expected.poses.images].astype(np.int32))
        found.append(Found(poses, expected.weights))
        noise = np.column_stack([expected.residual, expected.count])
        residual = noise if residual is None else residual + noise
    return {("poses", item.half): found, ("noise", item.half): residual, **cut(moved(sums, "cpu"), item.half)}


def moved(sums: Sums, device: Device) -> Sums:
    """Return an accumulator on a device."""
    return Sums(to_device(sums.data, device), to_device(sums.weight, device))


def cut(sums: Sums, half: int) -> dict[Hashable, Any]:
    """Return the bricks of an accumulator by key; none where nothing fell."""
    slabs = zip(np.array_split(sums.data, BRICKS), np.array_split(sums.weight, BRICKS), strict=True)
    return {("sums", half, i): Sums(*slab) for i, slab in enumerate(slabs) if slab[1].any()}


def assemble(sums: Mapping[Hashable, Any], half: int, box: int, k_insert: int) -> Sums:
    """Put the bricks of a half-set together."""
    whole = empty_sums(box, k_insert)
    slabs = zip(np.array_split(whole.data, BRICKS), np.array_split(whole.weight, BRICKS), strict=True)
    for i, (data, weight) in enumerate(slabs):
        brick = sums.get(("sums", half, i))
        if brick is not None:
            data[...], weight[...] = brick.data, brick.weight
    return whole


def merge(earlier: Any, later: Any) -> Any:
    """Merge two values of one key: sums are added, lists follow one another."""
    return merge_sums(earlier, later) if isinstance(earlier, Sums) else earlier + later


def keep(_key: Hashable, value: Any) -> Any:
    """Return the value: nothing is left to finalise on the worker."""
    return value


def power_of_group(item: Item, dataset: Dataset) -> Mapping[Hashable, Any]:
    """Return power spectra by half-set: the noise before anything is known."""
    total: Any = 0
    groups = len(dataset.particles.optics)
    for _, indices in batches(item.indices):
        power, count = power_spectrum(dataset.images(indices), dataset.optics_group[indices], groups)
        total = total + np.column_stack([power, count])
    return {item.half: total}


def contrast_of_group(item: Item, dataset: Dataset, first: Half, second: Half, plan: Plan) -> Mapping[Hashable, Any]:
    """Return how well images match the reference as it is and with its sign changed (see :func:`contrast`)."""
    half = (first, second)[item.half - 1]
    parts = [contrast(batch_of(dataset, indices, half), plan, half.model) for _, indices in batches(item.indices)]
    return {item.half: parts}


def insert_group(item: Item, dataset: Dataset, k_max: int) -> Mapping[Hashable, Any]:
    """Insert images at the poses of the table; the ``add`` of a reconstruction's fold."""
    sums = empty_sums(dataset.store.box, k_max)
    pixel_size, table = dataset.store.pixel_size, dataset.particles
    for _, indices in batches(item.indices):
        rotations = euler_to_matrix(*(table[name][indices] for name in ("rot", "tilt", "psi")))
        shifts = np.stack([table.get(name, 0.0)[indices] for name in ("shift_x", "shift_y")], axis=1) / pixel_size
        poses = start_poses(np.arange(len(indices)), rotations, shifts)
        scale = table.get("intensity_scale", 1.0)[indices] * dataset.ctf_scale[indices]
        settled = np.ones(len(indices), bool)
        table_rows = (dataset.terms[indices], scale, dataset.optics_group[indices], settled)
        batch = Batch(dataset.images(indices), *table_rows, poses)
        insert_known(batch, pixel_size, k_max, sums)
    return cut(sums, item.half)
