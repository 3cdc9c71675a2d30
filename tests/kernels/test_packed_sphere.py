"""The independent voxels of an accumulator."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft

from cloudem.kernels.packed_sphere import count_packed, pack_sphere, unpack_sphere
from cloudem.kernels.slices import complete_friedel, split_group
from cloudem.model.symmetry import operators


def permutations(symmetry: str) -> np.ndarray:
    return split_group(operators(symmetry))[0]


def accumulator(m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    data = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    weight = rng.random(shape).astype(np.float32)
    complete_friedel(data)
    complete_friedel(weight)
    return data, weight


def whole_of(half: np.ndarray) -> np.ndarray:
    """The full cube of a half-volume."""
    positive = half[:, :, 1:]
    return np.concatenate([positive[::-1, ::-1, :0:-1].conj(), positive], axis=2)


def turned_about(cube: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The sum of a cube over rotations that permute its axes, in double precision."""
    m = cube.shape[0] // 2
    z, y, x = np.indices(cube.shape) - m
    points = np.stack([x, y, z], axis=-1)
    total = np.zeros(cube.shape, np.result_type(cube, np.float64))
    for operator in group:
        u, v, w = np.moveaxis(points @ operator.T, -1, 0) + m
        total += cube[w, v, u]
    return total


def inside(m: int, squared_radius: int) -> np.ndarray:
    rows, half = np.arange(-m, m + 1) ** 2, np.arange(-1, m + 1) ** 2
    return rows[:, None, None] + rows[:, None] + half <= squared_radius


@pytest.mark.parametrize("symmetry", ["C1", "C2", "C3", "C4", "D2", "D4", "T", "O", "I"])
@pytest.mark.parametrize("use_twin", [True, False])
def test_folding_and_unfolding_sums_over_the_permutations(symmetry: str, use_twin: bool) -> None:
    group, m, squared_radius = permutations(symmetry), 9, 57
    functions = (count_packed, pack_sphere, unpack_sphere)
    count, fold, unfold = functions if use_twin else [f.reference for f in functions]
    data, weight = accumulator(m)
    size = count(group, m, squared_radius)
    values, weights = fold(data, weight, group, squared_radius, size)
    assert values.shape == weights.shape == (size,)
    found, norm = unfold(values, weights, group, squared_radius, m)
    expected, expected_norm = (turned_about(whole_of(part), group)[:, :, m - 1 :] for part in (data, weight))
    these = inside(m, squared_radius)
    np.testing.assert_allclose(found[these], expected[these], atol=2e-5)
    np.testing.assert_allclose(norm[these], expected_norm[these], rtol=1e-5)
    assert not found[~these].any()
    assert not norm[~these].any()


@pytest.mark.parametrize("symmetry", ["C1", "D2", "O"])
def test_twins_agree_to_rounding(symmetry: str) -> None:
    group, m, squared_radius = permutations(symmetry), 8, 60
    data, weight = accumulator(m, 3)
    count = count_packed(group, m, squared_radius)
    assert count == count_packed.reference(group, m, squared_radius)
    line = pack_sphere(data, weight, group, squared_radius, count)
    reference = pack_sphere.reference(data, weight, group, squared_radius, count)
    for ours, theirs in zip(line, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        unpack_sphere(*line, group, squared_radius, m),
        unpack_sphere.reference(*line, group, squared_radius, m),
        strict=True,
    ):
        # a voxel that is its own mate by symmetry is real but for rounding, and either of two conjugates may stay
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
@pytest.mark.parametrize("use_twin", [True, False])
def test_a_volume_without_weights(symmetry: str, use_twin: bool) -> None:
    group, m, squared_radius = permutations(symmetry), 7, 60
    functions = (count_packed, pack_sphere, unpack_sphere)
    count, fold, unfold = functions if use_twin else [f.reference for f in functions]
    data, weight = accumulator(m)
    size = count(group, m, squared_radius)
    values, none = fold(data, np.empty((0, 0, 0), np.float32), group, squared_radius, size)
    np.testing.assert_array_equal(values, fold(data, weight, group, squared_radius, size)[0])
    found, nothing = unfold(values, none, group, squared_radius, m)
    np.testing.assert_array_equal(found, unfold(values, np.ones(size, np.float32), group, squared_radius, m)[0])
    assert none.size == nothing.size == 0


@pytest.mark.parametrize("symmetry", ["C1", "D2", "T", "O"])
def test_the_number_of_threads_changes_no_bit(symmetry: str) -> None:
    group, m, squared_radius = permutations(symmetry), 17, 260
    data, weight = accumulator(m, 5)
    count = count_packed(group, m, squared_radius)
    found = []
    for workers in (1, 2, 3):
        with scipy.fft.set_workers(workers):
            line = pack_sphere(data, weight, group, squared_radius, count)
            found.append([*line, *unpack_sphere(*line, group, squared_radius, m)])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("symmetry", ["C1", "C2", "D2", "T", "O"])
def test_a_line_is_as_short_as_the_symmetry_allows(symmetry: str) -> None:
    group = permutations(symmetry)
    radius = 90
    whole = 2 / 3 * np.pi * radius**3
    assert count_packed(group, radius, radius**2) == pytest.approx(whole / len(group), rel=0.1)
