"""Chance passes for signal hardly ever, whatever the group and the mask; signal passes where it has voxels enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import masked_fsc
from cloudem.algorithms.significance import (
    MOST_CHANCE,
    WINDOW_SHELLS,
    deviations,
    independent_voxels,
    mask_fraction,
    resolution_shell,
    significant_shell,
)
from cloudem.model.symmetry import operators

BOX = 24


def symmetric(volume: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the mean over a group whose operators permute the axes, and turn them round."""
    index = np.stack(np.meshgrid(*[np.arange(BOX) - BOX // 2] * 3, indexing="ij"), axis=-1)[..., ::-1]  # x, y, z
    places = [(index @ np.rint(operator).astype(int).T + BOX // 2) % BOX for operator in group]
    return np.mean([volume[place[..., 2], place[..., 1], place[..., 0]] for place in places], axis=0, dtype=np.float32)


@pytest.mark.parametrize("group", ["C1", "D2", "O"])
def test_noise_is_no_more_correlated_than_is_reckoned(group: str) -> None:
    rng, own = np.random.default_rng(11), operators(group)
    mask = soft_sphere(BOX, 9.0, 3.0)
    voxels = independent_voxels(BOX, mask_fraction(mask), len(own))
    found, shown = [], []
    for seed in range(60):
        halves = [symmetric(rng.standard_normal((BOX,) * 3, dtype=np.float32), own) for _ in range(2)]
        curves = masked_fsc(*halves, mask, seed)
        assert curves.fraction == pytest.approx(mask_fraction(mask))
        found += [deviations(curves.corrected, voxels, first, first + 2) for first in (4, 7)]
        shown.append(significant_shell(curves.corrected, voxels))
    assert np.mean(np.square(found)) < 1  # it counts voxels rather too low
    assert max(found) < MOST_CHANCE
    assert max(shown) < 4


def test_a_mask_of_one_value_leaves_the_share_that_it_covers() -> None:
    mask = np.zeros((8, 8, 8))
    mask[2:6, 2:6, 2:6] = 0.5
    assert mask_fraction(mask) == pytest.approx(1 / 8)
    assert mask_fraction(np.zeros((4, 4, 4))) == 0


@given(st.integers(4, 60), st.integers(1, 60), st.integers(1, 60))
def test_what_has_voxels_enough_is_believed_to_the_last_shell(half: int, order: int, shell: int) -> None:
    fsc = np.where(np.arange(half + 1) <= shell, 0.9, 0.0)
    voxels = independent_voxels(2 * half, 1.0, order)
    assert significant_shell(fsc, 1e3 * voxels) == pytest.approx(resolution_shell(fsc))
    assert significant_shell(fsc, 0 * voxels) == 0
    found = significant_shell(fsc, voxels)
    assert 0 <= found <= resolution_shell(fsc)
    if found:
        assert deviations(fsc, voxels, int(found) - WINDOW_SHELLS + 1, int(found)) > MOST_CHANCE


def test_curves_of_no_number_are_no_correlation() -> None:
    fsc = np.array([1, np.nan, np.inf, -np.inf, 0.5])
    assert deviations(fsc, np.full(5, 4.0), 1, 4) == pytest.approx(4 * 0.5 / 16**0.5)
    assert deviations(fsc, np.zeros(5), 1, 4) == 0
    assert deviations(fsc, np.full(5, 4.0), 4, 3) == 0
