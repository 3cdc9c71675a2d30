"""What a classification decides, and that splitting a class or changing the rings loses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.classes import (
    BATCHES,
    MOST_PASSES,
    ClassSettings,
    ClassState,
    class_limit,
    class_references,
    first_class_state,
    next_class_state,
    on_rings,
    pairs_to_split,
    ring_correlation,
    split_classes,
)
from cloudem.algorithms.marginal import SoftSums, polar_view
from cloudem.kernels.polar import PolarGrid, polar_grid

SETTINGS = ClassSettings(
    box=32, pixel_size=5.0, radius=12.0, classes=4, first_limit=4, last_limit=10, shift_range=2.0, batch=60, subset=200,
    mirrored=True, most_iterations=25,
)  # fmt: skip
GRID = polar_grid(6, 12.0, 32)


def random_sums(grid: PolarGrid, classes: int, seed: int) -> SoftSums:
    rng = np.random.default_rng(seed)
    even, odd = (rng.standard_normal((len(q), 2, grid.k_max, classes)) for q in (grid.even, grid.odd))
    weight, mass = rng.uniform(1, 2, (grid.k_max, classes)), rng.uniform(1, 9, classes)
    return SoftSums(even, odd, weight, mass, rng.uniform(1, 2, grid.k_max), 9.0, 3.0)


def course(moved: float, settings: ClassSettings = SETTINGS) -> list[ClassState]:
    states = [first_class_state(settings)]
    while not states[-1].finished:
        states.append(next_class_state(states[-1], settings, moved))
    return states


def test_batches_come_first_then_passes_and_all_images_last() -> None:
    phases = [state.phase for state in course(0.01)]
    assert phases == ["batch"] * BATCHES + ["pass"] * 3 + ["last"] * 2
    restless = [state.phase for state in course(0.5)]
    assert restless.count("pass") == MOST_PASSES
    assert [state.phase for state in course(0.5, SETTINGS.__class__(**{**vars(SETTINGS), "most_iterations": 4}))] == [
        "batch", "batch", "batch", "last", "last"
    ]  # fmt: skip
    assert course(0.01)[-1].converged


def test_the_limit_rises_from_the_first_to_the_last() -> None:
    limits = [class_limit(state, SETTINGS) for state in course(0.01)]
    assert limits[0] == SETTINGS.first_limit
    assert limits == sorted(limits)
    assert set(limits[BATCHES - 3 :]) == {SETTINGS.last_limit}


def test_a_weak_class_takes_half_of_a_strong_one() -> None:
    assert pairs_to_split(np.array([10.0, 11.0, 9.0, 10.0])) == []
    assert pairs_to_split(np.array([30.0, 1.0, 5.0, 4.0])) == [(1, 0), (3, 0)]
    sums = random_sums(GRID, 4, 0)
    after = split_classes(sums, [(1, 0)])
    for name in ("even", "odd", "weight", "mass"):
        before_it, after_it = getattr(sums, name), getattr(after, name)
        np.testing.assert_allclose(after_it.sum(axis=-1), before_it.sum(axis=-1))
        np.testing.assert_array_equal(after_it[..., 2:], before_it[..., 2:])
    np.testing.assert_allclose(after.weight[:, 0], sums.weight[:, 0] / 2)


@pytest.mark.parametrize("rings", [4, 9])
def test_other_rings_keep_what_they_share(rings: int) -> None:
    sums, other = random_sums(GRID, 3, 1), polar_grid(rings, 12.0, 32)
    found = on_rings(sums, other)
    shared = min(rings, GRID.k_max)
    np.testing.assert_array_equal(found.weight[:shared], sums.weight[:shared])
    count = min(len(found.even), len(sums.even))
    np.testing.assert_array_equal(found.even[:count, :, :shared], sums.even[:count, :, :shared])
    assert found.weight.shape == (rings, 3)
    assert np.all(found.weight[shared:] == 0)


def test_averages_are_drawn_to_nothing_where_there_is_only_noise() -> None:
    """Sums of noise have the power of their weight: what is left of the averages is little."""
    view = polar_view(32, 5.0, 12.0, GRID.k_max)
    sums = random_sums(GRID, 200, 2)
    harmonics_in_all = 2 * (len(GRID.even) + len(GRID.odd)) - 1
    scale = np.sqrt(view.left[:, None] * sums.weight / harmonics_in_all)
    noise = SoftSums(sums.even * scale, sums.odd * scale, sums.weight, sums.mass, sums.residual, 9.0, 3.0)
    slices = class_references(noise, view).slices
    assert np.mean(slices.even**2) < 0.01 * np.mean((noise.even / noise.weight) ** 2)


def test_ring_correlation_is_one_with_itself_and_none_with_another() -> None:
    one, other = random_sums(GRID, 30, 3), random_sums(GRID, 30, 4)
    np.testing.assert_allclose(ring_correlation(one, one, GRID), 1)
    assert abs(float(np.mean(ring_correlation(one, other, GRID)))) < 0.05
