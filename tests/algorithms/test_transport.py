"""The model of the bytes, against what bricks really weigh and against counting by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cloudem.algorithms.bricks import cut, pack, pack_reference, packed_sphere_of
from cloudem.algorithms.reconstruct import empty_sums
from cloudem.algorithms.transport import IterationSizes, moved, relion_bytes, seconds
from cloudem.algorithms.view_density import density_gradient
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.slices import half_width, insert, padded_box
from cloudem.model.poses import random_rotations
from cloudem.model.symmetry import operators


@pytest.mark.parametrize(("symmetry", "slices"), [("C1", 5), ("C1", 20), ("C1", 200), ("D2", 5), ("O", 20)])
def test_partial_sums_weigh_what_is_said(symmetry: str, slices: int) -> None:
    box, k_max = 96, 30
    sums, disc = empty_sums(box, k_max), half_disc(box, k_max)
    rotations = random_rotations(slices, np.random.default_rng(0))
    many = (slices, len(disc.kx))
    insert(
        sums.data, sums.weight, np.arange(slices, dtype=np.int32), rotations, np.zeros((slices, 2)), np.ones(slices),
        np.ones(many, np.complex64), np.ones(many, np.float32), disc.kx, disc.ky, padded_box(box) / box, box,
    )  # fmt: skip
    brick = cut(pack(sums, packed_sphere_of(box, k_max, operators(symmetry))), 0, 1)
    it = IterationSizes(box, k_max, k_max, symmetry, workers=2, slices=2 * slices)
    assert sys.getsizeof(brick) == pytest.approx(it.part_bytes, rel=0.05)


def test_a_reference_weighs_what_is_said() -> None:
    box, k_max = 64, 20
    padding = padded_box(box) / box
    m = half_width(k_max, padding)
    volume = np.zeros((2 * m + 1, 2 * m + 1, m + 2), np.complex64)
    gradient = density_gradient(np.zeros((0, 3)), np.eye(3)[None])
    weight = pack_reference(volume, k_max, padding).nbytes + gradient.nbytes
    assert weight == IterationSizes(box, 25, k_max, "C1", 4, 100).reference_bytes


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 64, 1024])
def test_a_worker_receives_less_than_one_sum_for_each_half(workers: int) -> None:
    it = IterationSizes(256, 80, 60, "C1", workers, slices=10**6)
    merge = moved(it).merge / workers
    assert merge <= it.sum_bytes * (it.holders - 1) / it.holders * (1 + 1e-9)
    assert it.sum_bytes == pytest.approx(12 * 2 / 3 * np.pi * (padded_box(256) / 256 * 80.5) ** 3, rel=0.01)
    # both halves' sums in double precision over the half-cube, up the chain and down again
    assert 2 * relion_bytes(80) / it.sum_bytes > 7


def test_ways_of_others() -> None:
    assert relion_bytes(255) == 8 * 3 * 1023**2 * 512
    ways = seconds(1e9, 8, 1e9)
    assert ways == pytest.approx({"serial chain": 14, "ring all-reduce": 1.75, "gather to the root": 7})
