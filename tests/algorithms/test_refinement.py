"""Decisions of a refinement: it always ends, keeps its bounds, and takes nothing for signal that a mask made."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cloudem.algorithms.refinement import (
    AHEAD,
    GROWTH,
    LEAKAGE,
    MOST_SEARCHES,
    STILL,
    IterationOutcome,
    Settings,
    State,
    beyond_start,
    contrasts,
    first_state,
    intensity_scales,
    is_moving,
    iteration_plan,
    next_limit,
    next_state,
    reference_snr,
)
from cloudem.algorithms.significance import MOST_CHANCE, resolution_shell
from cloudem.conventions import FSC_THRESHOLD


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    box = 2 * draw(st.integers(10, 128))
    last = draw(st.integers(4, box // 2 - 1))
    return Settings(
        box=box,
        pixel_size=draw(st.floats(0.5, 8)),
        radius=draw(st.floats(2.0, box / 2)),
        first_limit=draw(st.integers(4, last)),
        search_step=float(np.radians(draw(st.floats(1, 30)))),
        shift_range=draw(st.floats(0.5, 10)),
        candidates=draw(st.integers(1, 20)),
        poses=draw(st.integers(1, 8)),
        last_limit=last,
        most_iterations=draw(st.integers(1, 30)),
    )


def curve(box: int, shell: float) -> np.ndarray:
    """Return an FSC that falls through 0.143 at a shell."""
    distance = np.arange(box // 2 + 1) - shell
    return np.clip(FSC_THRESHOLD - 0.3 * distance, 0.0, 1.0)


def outcome(box: int, shell: float, moving: float, jumped: float, voxels: float = 1e4) -> IterationOutcome:
    """Return what an iteration shows whose FSC ends at a shell, with so many independent voxels in each."""
    return IterationOutcome(curve(box, shell), np.full(box // 2 + 1, voxels), 10.0, moving, jumped)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Settings, list[IterationOutcome]]:
    """Return settings and what each of as many iterations as there may be shows."""
    fixed = draw(settings())
    shells = st.floats(0, fixed.box / 2)
    share = st.floats(0, 1)
    seen = draw(
        st.lists(st.tuples(shells, share, share), min_size=fixed.most_iterations, max_size=fixed.most_iterations)
    )
    return fixed, [outcome(fixed.box, shell, moving, jumped) for shell, moving, jumped in seen]


def play(fixed: Settings, seen: list[IterationOutcome]) -> list[State]:
    """Return the state before every iteration that runs, and the one after the last."""
    states = [first_state(fixed)]
    for observed in seen:
        if states[-1].finished:
            break
        states.append(next_state(states[-1], fixed, observed))
    return states


@given(histories())
def test_what_never_searches_fans_out_once(history: tuple[Settings, list[IterationOutcome]]) -> None:
    fixed, _ = history
    for number in (1, 2, 3):
        plan = iteration_plan(State(iteration=number, limit=fixed.first_limit, search=False), fixed)
        assert plan.fan == (plan.step if number == 2 else 0)
        assert not iteration_plan(State(number, fixed.first_limit, searches=1, search=False), fixed).fan


@given(histories())
def test_whatever_it_sees_it_ends_and_keeps_its_bounds(history: tuple[Settings, list[IterationOutcome]]) -> None:
    fixed, seen = history
    *states, end = play(fixed, seen)
    assert end.finished
    assert 1 <= len(states) <= fixed.most_iterations
    assert [state.iteration for state in states] == list(range(1, len(states) + 1))
    assert sum(state.search for state in states) <= MOST_SEARCHES
    for earlier, state in zip([None, *states], states, strict=False):
        plan = iteration_plan(state, fixed)
        assert fixed.first_limit <= plan.k_score == state.limit <= fixed.last_limit
        assert plan.k_score <= plan.k_insert <= fixed.box // 2 - 1
        assert bool(plan.k_search) == state.search
        assert not plan.fan
        assert fixed.search_step <= plan.step <= 2 * fixed.search_step or plan.step == pytest.approx(fixed.search_step)
        if state.search:
            assert 4 <= plan.k_search <= max(4, state.limit)
            assert plan.shift_radius >= plan.shift_step or plan.first
        assert plan.first == (state.iteration == 1)
        if earlier is not None:
            assert state.limit <= max(GROWTH * earlier.limit, fixed.first_limit)
            assert state.best >= earlier.best
            assert not (state.search and not earlier.search)  # once it stops searching it does not begin again


@given(histories())
def test_the_last_iteration_inserts_all_shells(history: tuple[Settings, list[IterationOutcome]]) -> None:
    fixed, seen = history
    *states, end = play(fixed, seen)
    assert iteration_plan(states[-1], fixed).k_insert == fixed.box // 2 - 1
    assert not any(state.finished for state in states)
    assert all(not state.final for state in states[:-1])
    if not end.converged:
        assert len(states) == fixed.most_iterations


@given(settings(), st.data())
def test_the_leakage_of_a_mask_never_raises_the_limit(fixed: Settings, data: st.DataObject) -> None:
    """Whatever lies less than three shells beyond the limit may be the mask's; only near the very end it is let in."""
    limit = data.draw(st.integers(fixed.first_limit, fixed.last_limit))
    shell = data.draw(st.floats(0, limit + LEAKAGE - 0.51))
    after = next_limit(shell, limit, fixed)
    assert fixed.first_limit <= after <= fixed.last_limit
    if limit < fixed.last_limit - LEAKAGE:
        assert after <= limit
    else:
        assert after <= fixed.last_limit <= limit + LEAKAGE


@given(settings(), st.data())
def test_the_limit_follows_real_signal(fixed: Settings, data: st.DataObject) -> None:
    limit = data.draw(st.integers(fixed.first_limit, fixed.last_limit))
    shell = data.draw(st.floats(limit + LEAKAGE, limit + 100))
    assert next_limit(shell, limit, fixed) == min(round(shell) + AHEAD, 2 * limit, fixed.last_limit)
    lower, higher = (next_limit(s, limit, fixed) for s in (shell / 2, shell))
    assert lower <= higher


@given(settings())
def test_noise_that_correlates_up_to_the_mask_keeps_the_limit_for_ever(fixed: Settings) -> None:
    assume(fixed.first_limit < fixed.last_limit - LEAKAGE)
    state = first_state(fixed)
    while not state.finished:
        assert state.limit == fixed.first_limit
        state = next_state(state, fixed, outcome(fixed.box, state.limit + 2.4, 1.0, 1.0))


@given(settings(), st.floats(0, 40))
def test_chance_in_few_voxels_keeps_the_limit_for_ever(fixed: Settings, beyond: float) -> None:
    """An FSC of 0.5 up to anywhere, of fewer independent voxels than could show it."""
    assume(fixed.first_limit < fixed.last_limit - LEAKAGE)
    fsc = np.where(np.arange(fixed.box // 2 + 1) <= fixed.first_limit + beyond, 0.5, 0.0)
    few = np.full(len(fsc), (2 * MOST_CHANCE) ** 2 / (len(fsc) + 1))
    state = first_state(fixed)
    while not state.finished:
        assert state.limit == fixed.first_limit
        state = next_state(state, fixed, IterationOutcome(fsc, few, 10.0, 1.0, 1.0))
    assert not beyond_start(state, fixed)


def test_it_converges_when_poses_rest_and_nothing_becomes_better() -> None:
    fixed = Settings(64, 2.0, 20.0, 6, 0.13, 3.0, 10, 4, 31, 25)
    *states, end = play(fixed, [outcome(64, 20, 0.05, 0.0)] * 25)
    assert end.converged
    assert len(states) < 8
    *states, end = play(fixed, [outcome(64, 20, 1.0, 0.0)] * 25)  # poses that never rest
    assert end.converged
    assert len(states) < 12
    *states, end = play(fixed, [outcome(64, 3 + i, 1.0, 1.0) for i in range(8)] * 4)
    assert len(states) > 6


def test_a_state_survives_its_record() -> None:
    state = State(iteration=3, limit=12, searches=2, search=False, best=10.5, stalled=1)
    assert State(**state.record()) == state
    assert state.record() == asdict(state)


@pytest.mark.parametrize(
    ("fsc", "shell"),
    [
        ([1, 1, 1, 1], 3.0),
        ([1, 0.0, 1, 1], 1 - FSC_THRESHOLD),
        ([1, 1, 0.5 + FSC_THRESHOLD, FSC_THRESHOLD - 0.5, 0], 2.5),
        ([0, 0, 0, 0], 0.0),
        ([-1, -0.8, 0.5, 0.5], 0.0),
        ([1, 1, np.nan, 1], 2 - FSC_THRESHOLD),
    ],
)
def test_resolution_is_where_the_curve_first_falls(fsc: list[float], shell: float) -> None:
    assert resolution_shell(np.array(fsc, float)) == pytest.approx(shell)


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(float("nan"))), min_size=4, max_size=60), st.integers(4, 60))
def test_the_filter_is_finite_and_empty_beyond_resolution_and_limit(values: list[float], limit: int) -> None:
    fsc = np.array(values)
    snr = reference_snr(fsc, limit)
    end = resolution_shell(fsc)
    shell = np.arange(len(fsc))
    assert np.isfinite(snr).all()
    assert np.all(snr >= 0)
    assert np.all(snr[shell > end + AHEAD + 1] == 0)
    assert np.all(snr[shell > limit] == 0)
    assert np.all(snr[shell > end] <= 0.1)
    inside = fsc[(shell >= 1) & (shell < int(end)) & (shell <= limit)].clip(0, 0.9999)
    np.testing.assert_allclose(snr[1 : 1 + len(inside)], inside / (1 - inside))


@given(st.integers(1, 6), st.floats(0.2, 5), st.integers(0, 100))
def test_intensity_scales_are_relative_and_bounded(groups: int, factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, 50)
    norm = rng.uniform(100, 200, 50)
    numerator = norm * rng.uniform(0.8, 1.2, groups)[group]
    scales = intensity_scales(numerator, norm, group)
    assert np.all((scales >= 0.3) & (scales <= 3.0))
    for number in range(groups):
        assert len(set(scales[group == number])) <= 1  # one factor for all images of a micrograph
    np.testing.assert_allclose(
        intensity_scales(factor * numerator, norm, group), scales
    )  # the map's scale does not matter
    np.testing.assert_allclose(intensity_scales(norm, norm, group), 1.0)


def test_intensity_scales_find_a_micrograph_that_is_twice_as_strong() -> None:
    group = np.repeat([0, 1, 2], 40)
    norm = np.full(120, 1e4)
    scales = intensity_scales(norm * np.array([1.0, 1.0, 2.0])[group], norm, group)
    assert scales[-1] / scales[0] == pytest.approx(2, rel=0.01)
    few = intensity_scales(np.array([2.0, 1.0]), np.array([1.0, 1.0]), np.array([0, 1]))
    np.testing.assert_allclose(few, 1, atol=0.02)  # two weak images say nothing


def test_intensity_scales_survive_images_that_match_nothing() -> None:
    scales = intensity_scales(np.array([-5.0, -3.0, 0.0]), np.zeros(3), np.array([0, 4, 4]))
    assert np.isfinite(scales).all()
    assert scales.shape == (3,)


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.4])
def test_contrasts_are_nearer_to_the_truth_than_least_squares_and_than_none(spread: float) -> None:
    rng = np.random.default_rng(8)
    level, norm = rng.choice([0.9, 1.1], 2000), rng.uniform(20, 80, 2000)
    true = np.clip(level + spread * rng.standard_normal(2000), 0.35, 2.9)
    numerator = norm * true + np.sqrt(norm) * rng.standard_normal(2000)
    found = contrasts(numerator, norm, level, np.ones(2000))
    error, fitted, none = (np.mean((one - true) ** 2) for one in (found, numerator / norm, level))
    # of a sum of two variances, a Gaussian prior leaves the share that is not noise
    noise = np.mean(1 / norm)
    assert error < min(fitted, none + 1e-3)
    assert error < 1.1 * noise * spread**2 / (noise + spread**2) + 1e-3


@given(st.integers(0, 1000))
def test_contrasts_are_bounded_whatever_images_match(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numerator, norm = 1e3 * rng.standard_normal(30), 1e3 * rng.random(30)
    found = contrasts(numerator, norm, np.ones(30), rng.random(30))
    assert np.all((found >= 0.3) & (found <= 3.0))
    np.testing.assert_array_equal(contrasts(np.zeros(9), np.zeros(9), np.ones(9), np.ones(9)), 1.0)


def test_a_pose_moves_by_its_own_standard_error() -> None:
    precision = np.tile(np.diag([100.0, 100.0, 100.0, 25.0, 25.0]), (3, 1, 1))
    error_angle, error_shift = np.sqrt(3 / 100), np.sqrt(2 / 25)
    angle = STILL * error_angle * np.array([0.9, 1.1, 0.0])
    shift = STILL * error_shift * np.array([0.9, 0.0, 1.1])
    np.testing.assert_array_equal(is_moving(angle, shift, precision), [False, True, True])
    assert np.isfinite(is_moving(angle, shift, np.zeros((3, 5, 5)))).all()
