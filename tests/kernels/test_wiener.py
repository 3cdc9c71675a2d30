"""Weights by shell, and the quotient of sums and weights."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.kernels.pruned import frequencies, rows_within
from cloudem.kernels.wiener import divide, weights_by_shell
from tests.conftest import Twin


def accumulator(m: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    data = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    return data, rng.random(shape).astype(np.float32)


def shell(kz: int, ky: int, kx: int, padding: float) -> int:
    return round(np.sqrt(kz * kz + ky * ky + kx * kx) / padding)


@pytest.mark.parametrize("count", [3, 5, 9])
def test_weights_are_summed_voxel_by_voxel(twin: Twin, count: int) -> None:
    m, padding = 6, 1.5
    weight = accumulator(m)[1]
    expected = np.zeros((2, count))
    for kz in range(-2, 4):
        for ky in range(-m, m + 1):
            for kx in range(m + 1):
                s = shell(kz, ky, kx, padding)
                if s < count:
                    expected[:, s] += weight[kz + m, ky + m, kx + 1], 1
    found = twin(weights_by_shell)(weight, padding, count, m - 2, m + 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("last", "size"), [(2, 16), (4, 16), (9, 16), (4, 10)])
def test_quotient_voxel_by_voxel(twin: Twin, last: int, size: int) -> None:
    """Within the last shell, or all of it where the last shell is the outermost one of the list; 1e-6."""
    m, padding, added = 6, 1.5, np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    data, weight = accumulator(m)
    rows, columns = rows_within(m, size)
    spectrum = np.zeros((size, rows, columns), np.complex64)
    ky = frequencies(rows)
    given = [array.copy() for array in (data, weight)]
    twin(divide)(data, weight, added, padding, last, ky, spectrum)
    np.testing.assert_array_equal(data, given[0])
    np.testing.assert_array_equal(weight, given[1])
    reach = min(m, size // 2 - 1)
    for kz in range(-size // 2, size // 2):
        for row in range(rows):
            for kx in range(columns):
                s = min(shell(kz, ky[row], kx, padding), len(added) - 1)
                expected = 0.0
                if abs(kz) <= reach and s <= last:
                    here = kz + m, ky[row] + m, kx + 1
                    expected = data[here] / (float(weight[here]) + added[s])
                assert spectrum[kz, row, kx] == pytest.approx(expected, rel=1e-5)
