"""Correlations of a map with itself turned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudem.kernels.turned_points import turned_correlations
from tests.conftest import Twin


def test_a_map_without_a_turn_agrees_with_itself_and_its_negative_does_not(twin: Twin) -> None:
    m, rng = 16, np.random.default_rng(0)
    fine = rng.standard_normal((m,) * 3).astype(np.float32)
    points = rng.integers(-3, 4, (60, 3)).astype(np.float32)
    place = (2 * points + m // 2).astype(int)
    own = fine[place[:, 2], place[:, 1], place[:, 0]]
    still, quarter = np.eye(3), Rotation.from_euler("z", 90, degrees=True).as_matrix()
    found = twin(turned_correlations)(fine, points, own, np.stack([still, quarter]), np.zeros(3))
    moved = points @ quarter.T
    at = np.rint(2 * moved + m // 2).astype(int)
    expected = np.corrcoef(own, fine[at[:, 2], at[:, 1], at[:, 0]])[0, 1]
    assert found == pytest.approx([1.0, expected], abs=1e-6)
    assert twin(turned_correlations)(-fine, points, own, still[None], np.zeros(3)) == pytest.approx([-1.0], abs=1e-6)


def test_all_twins_read_the_same_between_voxels_and_nothing_outside(twin: Twin) -> None:
    m, rng = 12, np.random.default_rng(1)
    fine = rng.standard_normal((m,) * 3).astype(np.float32)
    points = rng.uniform(-4, 4, (200, 3)).astype(np.float32)  # some are turned out of the map
    own = rng.standard_normal(200).astype(np.float32)
    rotations, about = Rotation.random(5, random_state=2).as_matrix(), np.array([0.4, -0.3, 0.2])
    expected = turned_correlations.reference(fine, points, own, rotations, about)
    np.testing.assert_allclose(twin(turned_correlations)(fine, points, own, rotations, about), expected, atol=1e-8)
    assert np.ptp(expected) > 0.02
    nothing = turned_correlations.reference(0 * fine, points, own, rotations, about)
    np.testing.assert_array_equal(twin(turned_correlations)(0 * fine, points, own, rotations, about), nothing)
