"""Local sums, and peaks that keep a distance."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.kernels.picking import local_sums, separate_peaks
from tests.conftest import Twin


@pytest.mark.parametrize(("shape", "half"), [((9, 7), 1), ((5, 12), 3), ((4, 4), 9), ((6, 6), 0)])
def test_local_sums_are_those_of_the_square_around_each_pixel(twin: Twin, shape: tuple[int, int], half: int) -> None:
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    out = np.zeros(shape, np.float32)
    twin(local_sums)(values, half, out)
    for y in range(shape[0]):
        for x in range(shape[1]):
            square = values[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            assert out[y, x] == pytest.approx(square.sum(dtype=np.float64), abs=1e-5)


def test_kept_peaks_are_the_highest_within_the_distance_and_every_other_is_near_one(twin: Twin) -> None:
    score = np.random.default_rng(2).normal(size=(60, 50)).astype(np.float32)
    score[10:20, 10:20] = -np.inf
    score[30, 30] = score[30, 31] = 9  # two equal ones side by side: the first is kept
    distance = 5.0
    kept = twin(separate_peaks)(score, distance, 0.5)
    values = score[kept[:, 0], kept[:, 1]]
    assert (np.diff(values) <= 0).all()
    assert values.min() >= 0.5
    assert kept[0].tolist() == [30, 30]
    apart = np.hypot(*(kept[:, None] - kept[None]).transpose(2, 0, 1))
    assert (apart[~np.eye(len(kept), dtype=bool)] > distance).all()
    reference = separate_peaks.reference(score, distance, 0.5)
    np.testing.assert_array_equal(kept, reference)
    assert len(twin(separate_peaks)(score, distance, 99.0)) == 0
