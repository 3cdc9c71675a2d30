"""Accumulators turned about rotations that do not permute the axes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft

from cloudem.kernels.rotated_sum import add_rotated, rotated_sum
from cloudem.kernels.slices import split_group
from cloudem.model.symmetry import operators
from tests.conftest import Twin


def accumulator(m: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    volume = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    volume[:, :, 1] = (volume[:, :, 1] + volume[::-1, ::-1, 1].conj()) / 2
    volume[:, :, 0] = volume[::-1, ::-1, 2].conj()
    return volume


@pytest.mark.parametrize("symmetry", ["C3", "I"])
def test_twin_agrees_with_the_plain_form(twin: Twin, symmetry: str) -> None:
    """1e-5 of the largest voxel; voxels beyond m - 2 and other planes are left alone."""
    m, turns = 7, split_group(operators(symmetry))[1]
    volume = accumulator(m)
    expected, found = np.ones_like(volume), np.ones_like(volume)
    add_rotated.reference(volume, turns, 2, 9, expected)
    twin(add_rotated)(volume, turns, 2, 9, found)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found[:2], 1)
    np.testing.assert_array_equal(found[9:], 1)
    axis = np.arange(-m, m + 1) ** 2
    inside = axis[2:9, None, None] + axis[:, None] + np.arange(m + 1) ** 2 <= (m - 2) ** 2
    assert (found != 1).sum() == inside.sum()


def test_a_map_of_that_symmetry_is_counted_once_for_each_rotation() -> None:
    """A Gaussian about the origin looks the same from all sides: so does its accumulator, but for the window."""
    m, turns = 12, split_group(operators("I"))[1]
    rows, half = np.arange(-m, m + 1) ** 2, np.arange(-1, m + 1) ** 2
    squared = rows[:, None, None] + rows[:, None] + half
    volume = np.exp(-squared / 40.0).astype(np.complex64)
    total = rotated_sum(volume, turns)
    inside = (squared <= (m - 2) ** 2) & (np.arange(-1, m + 1) >= 0)
    np.testing.assert_allclose(total[inside], len(turns) * volume[inside], atol=0.01 * len(turns))
    np.testing.assert_array_equal(total[~inside], 0)


def test_the_number_of_threads_changes_no_bit() -> None:
    volume, turns = accumulator(11, 2), split_group(operators("D3"))[1]
    found = []
    for workers in (1, 2, 3):
        with scipy.fft.set_workers(workers):
            found.append(rotated_sum(volume, turns))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
