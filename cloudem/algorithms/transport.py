"""How many bytes a refinement iteration moves between workers: a model, and what other ways of merging would move.

All sizes follow from the shells in play, so that a plan can be made, and a run be judged, before anything is moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cloudem.algorithms.bricks import IDENTITY, RECORD_BYTES, VOXEL_BYTES, is_sparse, packed_sphere_of
from cloudem.algorithms.view_density import grid
from cloudem.kernels.packed_sphere import count_packed
from cloudem.kernels.slices import half_width, padded_box, touched_radius
from cloudem.model.symmetry import operators

REACH = 2.6
"""Mean distance, voxels, up to which voxels beside a slice lie under a window of one of its samples; measured."""

MAP_BYTES = 4
"""Of a voxel of a map."""

GRADIENT_BYTES = 2
"""Of a component of the density's gradient, which travels with a reference."""

PIECE_S = 1.6e-3
"""CPU-seconds of a worker to ask for a piece of a partial sum and to answer for one, besides their bytes. Measured."""


@dataclass(frozen=True)
class IterationSizes:
    """What an iteration works with.

    Attributes
    ----------
    box
        Pixels.
    k_insert, k_reference
        Highest shell that is inserted, and that slices of the reference reach.
    symmetry
        Point group.
    workers
        Number of workers; each has images of one half-set, but for a single one.
    slices
        Poses inserted in all, of both half-sets.
    nodes
        Partial sums that a worker is left with: 1 where runs of groups end at nodes of the tree, as for any power of
        two of workers (:mod:`cloudem.execution.reduction_tree`).
    """

    box: int
    k_insert: int
    k_reference: int
    symmetry: str
    workers: int
    slices: int
    nodes: float = 1.0

    @property
    def holders(self) -> int:
        """Workers that hold partial sums of one half-set."""
        return max(self.workers // 2, 1)

    @property
    def voxels(self) -> int:
        """Voxels that are kept of an accumulator (:func:`cloudem.algorithms.bricks.packed_sphere_of`)."""
        return packed_sphere_of(self.box, self.k_insert, operators(self.symmetry)).voxels

    @property
    def sum_bytes(self) -> int:
        """S: of a half-set's sum."""
        return VOXEL_BYTES * self.voxels

    @property
    def touched(self) -> float:
        """Share of the voxels that the slices of one worker touch.

        A voxel at radius r lies within a distance t of a random plane through the origin with probability t / r.
        """
        ball = packed_sphere_of(self.box, self.k_insert, operators(self.symmetry))
        per_part = self.slices / 2 / self.holders / self.nodes * len(ball.permutations)
        edges = np.linspace(0, ball.squared_radius**0.5, 2000)
        r = (edges[1:] + edges[:-1]) / 2
        missed = (1 - np.minimum(REACH / r, 1)) ** per_part
        return float(np.sum(r**2 * (1 - missed)) / np.sum(r**2))

    @property
    def part_bytes(self) -> float:
        """Of a partial sum as it is sent: dense, or records of the voxels touched."""
        touched = self.touched * self.voxels
        return RECORD_BYTES * touched if is_sparse(round(touched), self.voxels) else float(self.sum_bytes)

    @property
    def reference_bytes(self) -> int:
        """Of a half-set's reference as it is handed on."""
        padding = padded_box(self.box) / self.box
        m, squared = half_width(self.k_reference, padding), touched_radius(self.k_reference, padding)
        return 8 * count_packed(IDENTITY, m, squared) + grid().size * GRADIENT_BYTES


class Moved(NamedTuple):
    """Bytes received by all workers of an iteration, from each other.

    Attributes
    ----------
    merge
        Partial sums, cut into bricks, to the workers that merge them.
    join
        Merged bricks to the worker that solves.
    reference
        References from worker to worker.
    maps
        The second half-map and its mask, to be compared with the first.
    """

    merge: float
    join: float
    reference: float
    maps: float


def moved(it: IterationSizes) -> Moved:
    """Return what an iteration moves.

    Each of n holders of a half-set's sum merges one of n bricks of it: it receives (n - 1) / n of a partial sum, sends
    as much, and, but for the one that solves, sends its brick to be joined.
    """
    holders = it.holders
    if it.workers == 1:
        return Moved(0, 0, 0, 0)
    merge = 2 * (holders - 1) * it.nodes * it.part_bytes
    join = 2 * it.sum_bytes * (1 - 1 / holders)
    reference = 2 * (holders - 1) * it.reference_bytes
    return Moved(merge, join, float(reference), 2.0 * MAP_BYTES * it.box**3)


def merging_seconds(sum_bytes: float, part_bytes: float, bandwidth: float, merge: float, holders: int) -> float:
    """Return how long the holders of a sum take to merge it, and one of them to join the bricks.

    Parameters
    ----------
    sum_bytes, part_bytes
        Of the sum, and of all partial sums that a holder has of it.
    bandwidth
        Of each link and direction, bytes per second.
    merge
        Of adding what a holder has to other sums, seconds.
    holders
        That have parts.
    """
    foreign = (holders - 1) / holders
    return foreign * ((part_bytes + sum_bytes) / bandwidth + merge) + holders * PIECE_S


def spreading_seconds(reference_bytes: float, bandwidth: float, workers: int) -> float:
    """Return how long a reference takes from where it is made to all workers that need it.

    A piece to each, and then all pieces to all: over every link twice at most; one of two copies it.
    """
    crossing = min(workers - 1, 2 * (workers - 1) / workers)
    return crossing * reference_bytes / bandwidth + (workers * PIECE_S if workers > 2 else 0.0)


def relion_bytes(k_max: int, padding: float = 2.0) -> int:
    """Return the bytes of RELION's sum of a half-set: data and weight in double precision over the whole half-cube.

    ``3 p² (⌊p / 2⌋ + 1)`` reals with ``p = 2 (round(pad r_max) + 1) + 1`` (``BackProjector::initialiseDataAndWeight``).
    """
    p = 2 * (round(padding * k_max) + 1) + 1
    return 8 * 3 * p * p * (p // 2 + 1)


def seconds(bytes_sum: float, workers: int, bandwidth: float) -> dict[str, float]:
    """Return how long merging sums of one size takes in ways that others use, each link at a bandwidth.

    Parameters
    ----------
    bytes_sum
        Of one half-set's sum.
    workers
        That hold partial sums of it.
    bandwidth
        Of each link and direction, bytes per second.

    Returns
    -------
    ``serial chain`` (each rank adds to what came and sends it on, and the sum goes back the same way: RELION's
    ``combineAllWeightedSums``), ``ring all-reduce`` and ``gather to the root``.
    """
    once = bytes_sum / bandwidth
    return {
        "serial chain": 2 * (workers - 1) * once,
        "ring all-reduce": 2 * (workers - 1) / workers * once,
        "gather to the root": (workers - 1) * once,
    }
