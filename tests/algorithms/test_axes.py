"""A map turned away from its axes is turned back; one on its axes, or without any, is left as it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudem.algorithms.axes import AGREES, SURE, find_axes, turned
from cloudem.model.symmetry import operators

BOX, RADIUS = 32, 12.0


def blobs(symmetry: str, seed: int = 3) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(BOX) - BOX // 2] * 3, indexing="ij"), axis=-1)[..., ::-1].astype(float)
    centres = np.random.default_rng(seed).uniform(-8, 8, (5, 3))
    places = (centres @ operators(symmetry).transpose(0, 2, 1)).reshape(-1, 3)
    return sum(np.exp(-np.sum((grid - place) ** 2, axis=-1) / 8) for place in places)


@pytest.mark.parametrize("symmetry", ["C2", "D3", "O"])
def test_turned_axes_are_found(symmetry: str) -> None:
    group, volume = operators(symmetry), blobs(symmetry)
    assert np.array_equal(find_axes(volume, group, RADIUS).turn, np.eye(3))
    tip = Rotation.from_euler("xz", [14, 11], degrees=True).as_matrix()
    axes = find_axes(turned(volume, tip), group, RADIUS)
    assert axes.before < SURE
    assert axes.after > 0.98
    again = find_axes(turned(turned(volume, tip), axes.turn), group, RADIUS)
    assert again.before == pytest.approx(axes.after, abs=0.02)
    np.testing.assert_allclose(axes.turn @ axes.turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(axes.turn) > 0  # the hand stays
    if symmetry == "C2":  # about its axis it may lie anyhow: it is turned no further than needed
        assert np.degrees(np.arccos((np.trace(axes.turn) - 1) / 2)) == pytest.approx(14, abs=2)


def test_a_map_without_the_symmetry_stays_as_it_is() -> None:
    axes = find_axes(blobs("C1"), operators("D2"), RADIUS)
    assert axes.before == axes.after < AGREES
    np.testing.assert_array_equal(axes.turn, np.eye(3))


def test_a_turn_takes_points_where_it_says() -> None:
    volume = np.zeros((BOX,) * 3)
    volume[BOX // 2, BOX // 2, BOX // 2 + 6] = 1  # on the x axis
    there = turned(volume, Rotation.from_euler("z", 90, degrees=True).as_matrix())
    assert np.unravel_index(there.argmax(), there.shape) == (BOX // 2, BOX // 2 + 6, BOX // 2)
