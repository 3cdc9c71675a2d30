"""Duplicates and neighbours: what a brute-force search finds, whatever the order of the particles."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.neighbours import duplicates_within, neighbours_within


def crowd(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 300, (200, 2)), rng.integers(0, 3, 200), rng.permutation(200).astype(float)


def near(places: np.ndarray, micrograph: np.ndarray, distance: float) -> np.ndarray:
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    return (apart < distance) & (micrograph[:, None] == micrograph) & ~np.eye(len(places), dtype=bool)


@pytest.mark.parametrize("seed", range(3))
def test_none_that_stays_is_near_another_and_none_goes_without_a_better_one(seed: int) -> None:
    places, micrograph, quality = crowd(seed)
    found = duplicates_within(places, micrograph, quality, 20)
    pairs = near(places, micrograph, 20)
    assert 0 < found.sum() < 150
    assert not pairs[np.ix_(~found, ~found)].any()
    for row in np.flatnonzero(found):
        assert (pairs[row] & ~found & (quality > quality[row])).any()


def test_the_order_of_rows_does_not_matter() -> None:
    places, micrograph, quality = crowd(5)
    order = np.random.default_rng(1).permutation(len(places))
    found = duplicates_within(places, micrograph, quality, 25)
    np.testing.assert_array_equal(duplicates_within(places[order], micrograph[order], quality[order], 25), found[order])
    lonely = neighbours_within(places, micrograph, 15)
    np.testing.assert_array_equal(lonely, near(places, micrograph, 15).any(axis=1))


def test_of_equals_the_first_stays_and_the_unknown_is_worst() -> None:
    places, same = np.array([[0.0, 0], [1, 0], [2, 0], [90, 0]]), np.zeros(4, int)
    np.testing.assert_array_equal(duplicates_within(places, same, np.zeros(4), 5), [False, True, True, False])
    unknown = np.array([np.nan, 0.0, np.nan, np.nan])
    np.testing.assert_array_equal(duplicates_within(places, same, unknown, 5), [True, False, True, False])
    np.testing.assert_array_equal(neighbours_within(places, np.arange(4), 5), np.zeros(4, bool))
    assert len(neighbours_within(np.zeros((0, 2)), np.zeros(0, int), 5)) == 0
