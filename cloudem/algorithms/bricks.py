"""Partial sums in the form in which they are kept, merged and sent: independent voxels only, cut into bricks.

Of an accumulator only the sphere of the shells inserted is kept, of that one half by Friedel's law, and of that one
voxel of each orbit of the symmetry's axis permutations: 4.5 times less than the half-cube for C1, over a hundred times
less for O. A brick is a consecutive piece of that line of voxels, and is sent either dense or as records of the voxels
touched, whichever is smaller.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.reconstruct import LEVEL_MARGIN, LEVELLED, Sums
from cloudem.kernels.packed_sphere import count_packed, pack_sphere, unpack_sphere
from cloudem.kernels.rotated_sum import rotated_sum
from cloudem.kernels.slices import complete_friedel, half_width, padded_box, split_group, touched_radius

VOXEL_BYTES = 12
"""Of a voxel: data as complex64, weight as float32."""

RECORD_BYTES = 16
"""Of a voxel with its number in the brick, uint32."""


IDENTITY = np.eye(3, dtype=np.int64)[None]


@dataclass(frozen=True, eq=False)
class PackedSphere:
    """Which voxels of an accumulator are kept.

    Attributes
    ----------
    m
        Of the half-volume (see :mod:`cloudem.kernels.slices`).
    squared_radius
        Of the sphere, voxels².
    permutations
        Operators of the point group that permute the axes, (p, 3, 3) int64.
    turns
        One operator of each of their other right cosets, (t, 3, 3).
    """

    m: int
    squared_radius: int
    permutations: NDArray[np.int64]
    turns: NDArray[np.float64]

    @property
    def voxels(self) -> int:
        """How many are kept."""
        return _count(self.permutations.tobytes(), self.m, self.squared_radius)


def packed_sphere_of(box: int, k_max: int, group: NDArray[np.float64]) -> PackedSphere:
    """Return the voxels that shells up to ``k_max`` need.

    Those of the shells themselves; where an accumulator is interpolated (symmetries that do not permute the axes), or
    its last shells are corrected for uneven weights, all under their windows.
    """
    padding = padded_box(box) / box
    m = half_width(k_max, padding)
    permutations, turns = split_group(group)
    exact = not len(turns) and k_max > LEVELLED + LEVEL_MARGIN
    squared = int((padding * (k_max + 0.5)) ** 2) if exact else touched_radius(k_max, padding)
    return PackedSphere(m, squared, permutations, turns)


@functools.lru_cache(maxsize=64)
def _count(permutations: bytes, m: int, squared_radius: int) -> int:
    return count_packed(np.frombuffer(permutations, np.int64).reshape(-1, 3, 3), m, squared_radius)


@dataclass(frozen=True, eq=False)
class Brick:
    """Voxels in a row, dense: Σ γ C X / σ² and Σ γ C² / σ²."""

    data: NDArray[np.complex64]
    weight: NDArray[np.float32]

    def __sizeof__(self) -> int:
        """Return the bytes of the arrays, by which executors judge what is worth moving."""
        return self.data.nbytes + self.weight.nbytes


@dataclass(frozen=True, eq=False)
class Records:
    """A brick of which few voxels were touched, as their numbers and values."""

    voxels: int
    places: NDArray[np.uint32]
    data: NDArray[np.complex64]
    weight: NDArray[np.float32]

    def __sizeof__(self) -> int:
        """Return the bytes of the arrays."""
        return self.places.nbytes + self.data.nbytes + self.weight.nbytes


def pack(sums: Sums, ball: PackedSphere) -> Brick:
    """Return what is kept of an accumulator, as one brick where the accumulator lives, which is used up.

    Summed over the permutations: that commutes with adding accumulators, and makes them as many times smaller.
    """
    complete_friedel(sums.data)
    complete_friedel(sums.weight)
    return Brick(*pack_sphere(sums.data, sums.weight, ball.permutations, ball.squared_radius, ball.voxels))


def unpack(brick: Brick, ball: PackedSphere) -> Sums:
    """Return the accumulator with all Friedel and symmetry mates, ready to be solved."""
    whole = Sums(*unpack_sphere(brick.data, brick.weight, ball.permutations, ball.squared_radius, ball.m))
    if len(ball.turns):
        turned = rotated_sum(whole.data, ball.turns), rotated_sum(whole.weight.astype(np.complex64), ball.turns)
        whole.data += turned[0]
        whole.weight += np.maximum(turned[1].real, 0)
    return whole


def pack_reference(volume: NDArray[np.complex64], k_max: int, padding: float) -> NDArray[np.complex64]:
    """Return the voxels of a reference's half-volume that slices up to shell ``k_max`` read."""
    m, squared = half_width(k_max, padding), touched_radius(k_max, padding)
    return pack_sphere(
        volume, np.empty((0, 0, 0), np.float32), IDENTITY, squared, _count(IDENTITY.tobytes(), m, squared)
    )[0]


def unpack_reference(values: NDArray[np.complex64], k_max: int, padding: float) -> NDArray[np.complex64]:
    """Return the half-volume that :func:`pack_reference` took apart, where its values are."""
    m, squared = half_width(k_max, padding), touched_radius(k_max, padding)
    return unpack_sphere(values, np.empty(0, np.float32), IDENTITY, squared, m)[0]


def complete(sums: Sums, group: NDArray[np.float64]) -> Sums:
    """Return a whole accumulator with all mates, where nothing is sent; the one given is used up."""
    m = sums.data.shape[2] - 2
    ball = PackedSphere(m, 3 * m * m, *split_group(group))
    return unpack(pack(sums, ball), ball)


def is_sparse(touched: int, voxels: int) -> bool:
    """Say whether records of the voxels touched are smaller than all voxels: if fewer than three quarters are."""
    return RECORD_BYTES * touched < VOXEL_BYTES * voxels


def cut(brick: Brick, number: int, count: int) -> Brick | Records:
    """Return brick ``number`` of ``count`` of a larger one, as it is sent."""
    edges = [len(brick.data) * n // count for n in (number, number + 1)]
    data, weight = brick.data[slice(*edges)], brick.weight[slice(*edges)]
    touched = (weight != 0) | (data != 0)
    if not is_sparse(int(np.count_nonzero(touched)), len(data)):
        return Brick(data, weight)
    places = np.flatnonzero(touched).astype(np.uint32)
    return Records(len(data), places, data[places], weight[places])


def dense(brick: Brick | Records) -> Brick:
    """Return a brick with all its voxels."""
    if isinstance(brick, Brick):
        return brick
    data, weight = np.zeros(brick.voxels, np.complex64), np.zeros(brick.voxels, np.float32)
    data[brick.places], weight[brick.places] = brick.data, brick.weight
    return Brick(data, weight)


def merge_bricks(earlier: Brick | Records, later: Brick | Records) -> Brick:
    """Return the sum of two bricks of the same voxels."""
    one, other = dense(earlier), dense(later)
    return Brick(one.data + other.data, one.weight + other.weight)


def join_bricks(bricks: Sequence[Brick | Records]) -> Brick:
    """Return the brick that consecutive ones make."""
    whole = [dense(brick) for brick in bricks]
    return Brick(np.concatenate([b.data for b in whole]), np.concatenate([b.weight for b in whole]))
