"""Partial sums as they are kept and sent."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.bricks import (
    RECORD_BYTES,
    VOXEL_BYTES,
    Brick,
    Records,
    complete,
    cut,
    dense,
    is_sparse,
    join_bricks,
    merge_bricks,
    pack,
    pack_reference,
    packed_sphere_of,
    unpack,
    unpack_reference,
)
from cloudem.algorithms.reconstruct import Sums, empty_sums, reference_volume, shells_of, solve
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.slices import extract, padded_box, split_group, touched_radius
from cloudem.model.poses import random_rotations
from cloudem.model.symmetry import operators

BOX = 40


def random_sums(k_max: int, seed: int) -> Sums:
    rng = np.random.default_rng(seed)
    sums = empty_sums(BOX, k_max)
    m, padding = sums.weight.shape[2] - 2, padded_box(BOX) / BOX
    rows, half = np.arange(-m, m + 1) ** 2, np.arange(-1, m + 1) ** 2
    touched = rows[:, None, None] + rows[:, None] + half <= touched_radius(k_max, padding)
    touched &= rng.random(touched.shape) < 0.5
    sums.data[...] = np.where(touched, rng.standard_normal(touched.shape) + 1j * rng.standard_normal(touched.shape), 0)
    sums.weight[...] = np.where(touched, rng.random(touched.shape), 0)
    sums.data[:, :, 0] *= 0.5
    return sums


def copied(sums: Sums) -> Sums:
    return Sums(sums.data.copy(), sums.weight.copy())


@pytest.mark.parametrize("symmetry", ["C1", "D2", "O"])
@pytest.mark.parametrize("k_max", [14, 19])
def test_what_is_kept_gives_the_same_map(symmetry: str, k_max: int) -> None:
    group = operators(symmetry)
    sums, ball = random_sums(k_max, 1), packed_sphere_of(BOX, k_max, group)
    kept = unpack(pack(copied(sums), ball), ball)
    whole = complete(sums, group)
    within = shells_of(whole, BOX) <= k_max
    np.testing.assert_allclose(kept.data[within], whole.data[within], atol=1e-4)
    np.testing.assert_allclose(
        solve(kept, BOX, None, k_max, levelled=0), solve(whole, BOX, None, k_max, levelled=0), atol=1e-6
    )


@pytest.mark.parametrize("symmetry", ["C3", "D3", "I", "C1"])
def test_packing_commutes_with_adding(symmetry: str) -> None:
    group = operators(symmetry)
    one, other, ball = random_sums(8, 1), random_sums(8, 2), packed_sphere_of(BOX, 8, group)
    both = Sums(one.data + other.data, one.weight + other.weight)
    kept = unpack(merge_bricks(pack(one, ball), pack(other, ball)), ball)
    whole = complete(both, group)
    np.testing.assert_allclose(kept.data, whole.data, atol=1e-4 * np.abs(whole.data).max())
    np.testing.assert_allclose(kept.weight, whole.weight, atol=1e-4 * whole.weight.max())


def test_groups_are_split_without_loss() -> None:
    for symmetry in ("C1", "C3", "C6", "D2", "D3", "T", "O", "I"):
        group = operators(symmetry)
        permutations, turns = split_group(group)
        products = np.concatenate([permutations, *(permutations @ turn for turn in turns)])
        assert len(products) == len(group)
        assert np.abs(products[:, None] - group).max(axis=(2, 3)).min(axis=1).max() < 1e-9


def a_brick(voxels: int, share: float, seed: int) -> Brick:
    rng = np.random.default_rng(seed)
    touched = rng.random(voxels) < share
    data = (touched * (rng.standard_normal(voxels) + 1j * rng.standard_normal(voxels))).astype(np.complex64)
    return Brick(data, (touched * rng.random(voxels)).astype(np.float32))


@given(
    voxels=st.integers(1, 200),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_bricks_merged_and_joined_are_the_whole_merged_to_the_bit(
    voxels: int, shares: list[float], count: int, seed: int
) -> None:
    wholes = [a_brick(voxels, share, seed + i) for i, share in enumerate(shares)]
    expected = wholes[0]
    for other in wholes[1:]:
        expected = merge_bricks(expected, other)
    pieces = []
    for number in range(count):
        piece = cut(wholes[0], number, count)
        for other in wholes[1:]:
            piece = merge_bricks(piece, cut(other, number, count))
        pieces.append(piece)
    found = join_bricks(pieces)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.weight, expected.weight)


@given(voxels=st.integers(1, 500), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_smaller_of_both_forms_is_sent(voxels: int, share: float, seed: int) -> None:
    brick = a_brick(voxels, share, seed)
    sent = cut(brick, 0, 1)
    touched = int(np.count_nonzero(brick.weight))
    assert sys.getsizeof(sent) - object.__sizeof__(object()) <= min(VOXEL_BYTES * voxels, RECORD_BYTES * touched) + 64
    assert isinstance(sent, Records) == is_sparse(touched, voxels)
    np.testing.assert_array_equal(dense(sent).data, brick.data)


def test_a_reference_loses_nothing_that_slices_read() -> None:
    density = np.random.default_rng(0).standard_normal((BOX, BOX, BOX)).astype(np.float32)
    padding, disc = padded_box(BOX) / BOX, half_disc(BOX, 12)
    volume = reference_volume(density, 12)
    sent = pack_reference(volume, 12, padding)
    assert sent.nbytes < 0.6 * volume.nbytes
    rotations = random_rotations(50, np.random.default_rng(1))
    found, expected = (
        extract(v, rotations, disc.kx, disc.ky, padding) for v in (unpack_reference(sent, 12, padding), volume)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_a_sphere_of_the_half_is_kept() -> None:
    box, k_max = 256, 60
    radius = padded_box(box) / box * (k_max + 0.5)
    assert packed_sphere_of(box, k_max, operators("C1")).voxels == pytest.approx(2 / 3 * np.pi * radius**3, rel=0.01)
