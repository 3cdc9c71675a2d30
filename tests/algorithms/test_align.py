import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.align import (
    Anchors,
    Poses,
    Prior,
    Weighted,
    by_direction,
    compete,
    evaluate,
    evidence,
    frequency_limits,
    refine_poses,
    start_poses,
)
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.poses import angle_between, random_rotations, rotate
from cloudem.model.symmetry import operators
from tests.phantom import blobs

BOX = 32
PADDING = padded_box(BOX) / BOX
K_MAX = 12
DISC = half_disc(BOX, K_MAX)
PHANTOM = blobs(reach=9, sigma=(1.0, 1.5))
VOLUME = reference_volume(PHANTOM.density(BOX), BOX // 2 - 1)
FLAT = Prior(np.inf)
ONE = operators("C1")
seeds = st.integers(0, 2**32 - 1)


def observe(rotations: np.ndarray, shifts: np.ndarray, noise: float, seed: int) -> Weighted:
    """Return images of the interpolated reference without a CTF; noise relative to the signal's root mean square."""
    rng = np.random.default_rng(seed)
    signal = extract(VOLUME, rotations, DISC.kx, DISC.ky, PADDING).astype(complex)
    signal *= np.exp(-2j * np.pi / BOX * (shifts[:, :1] * DISC.kx + shifts[:, 1:] * DISC.ky))
    sigma2 = noise**2 * np.mean(np.abs(signal) ** 2) / 2
    signal += np.sqrt(sigma2) * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))
    return Weighted((signal / sigma2).astype(np.complex64), np.full(signal.shape, 1 / sigma2, np.float32), DISC)


def turn_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the small ω with ``b = rotate(a, ω)``, (c, 3)."""
    turn = b @ a.swapaxes(1, 2)  # exp([ω]×)^T
    parts = [turn[:, i, j] - turn[:, j, i] for i, j in ((1, 2), (2, 0), (0, 1))]
    return np.stack(parts, axis=1) / 2


def refine(data: Weighted, start: Poses, prior: Prior = FLAT, steps: int = 15) -> Poses:
    return refine_poses(VOLUME, PADDING, BOX, data, start, prior, steps=steps, longest_turn=0.1)


def test_refinement_converges_to_the_planted_poses() -> None:
    rng = np.random.default_rng(0)
    count = 30
    true, t = random_rotations(count, rng), rng.normal(0, 2, (count, 2))
    away = rng.standard_normal((count, 3))
    away *= np.radians(4) / np.linalg.norm(away, axis=1)[:, None]
    start = start_poses(np.arange(count), rotate(true, away), t + rng.normal(0, 0.7, (count, 2)))
    data = observe(true, t, 0.1, 1)
    found = refine(data, start)
    assert np.degrees(angle_between(found.rotations, true)).max() < 1
    error = np.concatenate([turn_between(true, found.rotations), found.shifts - t], axis=1)
    chi2 = np.einsum("ca,cab,cb->c", error, found.precision, error)
    assert chi2.max() < 25  # of five degrees of freedom: one of 7,000 lies beyond
    np.testing.assert_array_equal(found.images, start.images)
    here, _ = evaluate(VOLUME, PADDING, BOX, data, found, FLAT)
    np.testing.assert_allclose(here.score, found.score, rtol=1e-5)
    begun, _ = evaluate(VOLUME, PADDING, BOX, data, start, FLAT)
    assert np.all(found.score >= begun.score)


def test_inverse_precision_is_the_scatter_over_noise() -> None:
    """One pose, many realisations of the noise: the whitened errors have unit variance."""
    rng = np.random.default_rng(2)
    count = 600
    true = np.repeat(random_rotations(1, rng), count, axis=0)
    t = np.repeat(rng.normal(0, 2, (1, 2)), count, axis=0)
    found = refine(observe(true, t, 0.5, 3), start_poses(np.arange(count), true, t))
    error = np.concatenate([turn_between(true, found.rotations), found.shifts - t], axis=1)
    covariance = np.cov(error.T)
    predicted = np.linalg.inv(found.precision).mean(axis=0)
    whiten = np.linalg.inv(np.linalg.cholesky(predicted))
    eigenvalues = np.linalg.eigvalsh(whiten @ covariance @ whiten.T)
    # of a sample covariance of 600 in 5 dimensions they lie within (1 ± sqrt(5 / 600))², 0.83 to 1.19
    assert 0.78 < eigenvalues.min() < eigenvalues.max() < 1.25
    assert np.all(np.abs(error.mean(axis=0)) < 4 * np.sqrt(np.diag(predicted) / count))


def test_prior_pulls_shifts_to_the_centre() -> None:
    rng = np.random.default_rng(4)
    true, t = random_rotations(1, rng), np.array([[1.5, -1.0]])
    data = observe(true, t, 0.3, 5)
    free = refine(data, start_poses(np.arange(1), true, t))
    variance = 1 / free.precision[0, 3, 3]
    held = refine(data, start_poses(np.arange(1), true, t), Prior(variance))
    assert np.linalg.norm(held.shifts) < 0.8 * np.linalg.norm(free.shifts)
    here, slope = evaluate(VOLUME, PADDING, BOX, data, held, Prior(variance))
    np.testing.assert_allclose(held.score, here.score, atol=0.3)  # the last step is taken without looking
    assert np.abs(slope / np.sqrt(np.einsum("caa->ca", here.precision))).max() < 0.3


def test_gradient_of_the_prior_is_that_of_its_logarithm() -> None:
    rng = np.random.default_rng(6)
    rotations, shifts = random_rotations(3, rng), rng.normal(0, 2, (3, 2))
    data, start = observe(rotations, shifts, 1.0, 7), start_poses(np.arange(3), rotations, shifts)
    plain, slope = evaluate(VOLUME, PADDING, BOX, data, start, FLAT)
    held, held_slope = evaluate(VOLUME, PADDING, BOX, data, start, Prior(2.0))
    np.testing.assert_allclose(held.score - plain.score, -np.sum(shifts**2, axis=1) / 4, rtol=1e-6)
    np.testing.assert_allclose((held_slope - slope)[:, 3:], -shifts / 2, rtol=1e-6)
    np.testing.assert_allclose((held.precision - plain.precision)[:, [3, 4], [3, 4]], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(held_slope[:, :3], slope[:, :3])


def test_refining_is_independent_of_order_and_company() -> None:
    rng = np.random.default_rng(8)
    true, t = random_rotations(6, rng), rng.normal(0, 1, (6, 2))
    data = observe(true, t, 0.5, 9)
    start = start_poses(np.arange(6), rotate(true, rng.normal(0, 0.03, (6, 3))), t)
    together = refine(data, start)
    order = np.array([3, 1, 5, 0, 4, 2])
    shuffled = refine(data, start.take(order))
    np.testing.assert_array_equal(shuffled.rotations, together.rotations[order])
    alone = refine(data, start.take(np.array([4])))
    np.testing.assert_array_equal(alone.shifts[0], together.shifts[4])


def test_pixels_within_a_limit() -> None:
    data = observe(random_rotations(2, np.random.default_rng(10)), np.zeros((2, 2)), 1.0, 11)
    assert data.within(K_MAX) is data
    low = data.within(5)
    kept = DISC.shell <= 5
    np.testing.assert_array_equal(low.disc.kx, DISC.kx[kept])
    np.testing.assert_array_equal(low.numerators, data.numerators[:, kept])
    assert (low.numerators.dtype, low.denominators.dtype) == (np.complex64, np.float32)


def competing(images: list[int], rotations: np.ndarray, score: list[float]) -> Poses:
    count = len(images)
    precision = np.broadcast_to(np.eye(5), (count, 5, 5)).copy()
    start = start_poses(np.array(images), rotations, np.zeros((count, 2)))
    return Poses(start.images, start.rotations, start.shifts, np.array(score), precision, start.norm, start.norm)


@given(seed=seeds)
def test_weights_sum_to_one_and_are_ordered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = np.sort(np.r_[np.arange(4), rng.integers(0, 4, 20)])
    poses = competing(images.tolist(), random_rotations(24, rng), rng.normal(0, 3, 24).tolist())
    shuffled = poses.take(rng.permutation(24))
    kept, weights = compete(shuffled, apart=0.01, keep=3, least=1e-3, group=ONE)
    np.testing.assert_allclose(np.bincount(kept.images, weights), 1)
    assert np.bincount(kept.images).max() <= 3
    assert np.all(np.diff(kept.images) >= 0)
    same = np.diff(kept.images) == 0
    assert np.all(np.diff(weights)[same] <= 0)
    for i in range(4):
        assert kept.score[kept.images == i].max() == poses.score[poses.images == i].max()
        mine = kept.images == i
        np.testing.assert_allclose(weights[mine] / weights[mine][0], np.exp(kept.score[mine] - kept.score[mine][0]))


def test_the_same_maximum_counts_once() -> None:
    base = random_rotations(1, np.random.default_rng(12))[0]
    other = rotate(base, np.array([0.5, 0, 0]))
    near = rotate(base, np.array([0, 0.005, 0]))
    poses = competing([0, 0, 0, 1], np.array([base, near, other, base]), [2.0, 1.9, 1.0, 0.0])
    kept, weights = compete(poses, apart=0.01, keep=9, least=1e-6, group=ONE)
    np.testing.assert_array_equal(kept.score, [2.0, 1.0, 0.0])
    np.testing.assert_allclose(weights, [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 1])


@pytest.mark.parametrize("name", ["C3", "D2", "O"])
def test_symmetric_duplicates_merge(name: str) -> None:
    group = operators(name)
    base = random_rotations(1, np.random.default_rng(13))[0]
    poses = competing([0] * len(group), base @ group, np.linspace(1, 0, len(group)).tolist())
    _, weights = compete(poses, apart=0.01, keep=99, least=1e-9, group=group)
    assert len(weights) == 1
    assert weights[0] == 1
    assert len(compete(poses, apart=0.01, keep=99, least=1e-9, group=ONE)[1]) == len(group)


def test_improbable_poses_are_dropped() -> None:
    poses = competing([0, 0], random_rotations(2, np.random.default_rng(14)), [10.0, 0.0])
    assert len(compete(poses, apart=0.01, keep=9, least=1e-3, group=ONE)[1]) == 1
    assert len(compete(poses, apart=0.01, keep=9, least=1e-6, group=ONE)[1]) == 2


def test_evidence_prefers_the_broader_of_two_maxima() -> None:
    poses = competing([0, 0], random_rotations(2, np.random.default_rng(15)), [0.0, 0.0])
    poses.precision[1] *= 4.0
    # a Gaussian of five dimensions, half as wide in each
    np.testing.assert_allclose(np.diff(evidence(poses)), -5 * np.log(2), rtol=1e-5)


@given(first=st.integers(1, 60), last=st.integers(1, 200))
def test_limits_rise_to_the_last(first: int, last: int) -> None:
    found = frequency_limits(first, last)
    assert found[-1] == last
    assert list(found) == sorted(found)
    steps = np.array([first, *found])
    if last > first:
        assert np.all(steps[1:] <= 1.5 * steps[:-1] + 2)


def test_neighbours_in_direction_follow_one_another() -> None:
    rotations = random_rotations(500, np.random.default_rng(16))
    order = by_direction(rotations)
    assert sorted(order) == list(range(500))

    def step(some: np.ndarray) -> float:
        view = some[:, 2]
        return float(np.mean(np.arccos(np.clip(np.abs(np.sum(view[1:] * view[:-1], axis=1)), 0, 1))))

    assert step(rotations[order]) < 0.3 * step(rotations)


def test_a_prior_about_poses_has_the_gradient_of_its_logarithm() -> None:
    """By finite differences, also far from the anchor, where the rotation vector is no longer small."""
    rng, images = np.random.default_rng(5), np.array([1, 0, 1])
    anchors = Anchors(random_rotations(2, rng), rng.normal(0, 2, (2, 2)))
    prior = Prior(1.5**2, 0.3**2, anchors)
    turned = rotate(anchors.rotations[images], rng.normal(0, 0.8, (3, 3)))
    here = start_poses(images, turned, anchors.shifts[images] + rng.normal(0, 2, (3, 2)))
    gradient, step = -prior.offsets(here) * prior.sharpness, 1e-5
    for axis in range(5):
        move = np.eye(5)[axis] * step
        there, back = (
            start_poses(images, rotate(here.rotations, np.tile(sign * move[:3], (3, 1))), here.shifts + sign * move[3:])
            for sign in (1, -1)
        )
        slope = (prior.log_of(there) - prior.log_of(back)) / (2 * step)
        np.testing.assert_allclose(gradient[:, axis], slope, rtol=1e-5, atol=1e-6)
    exact = start_poses(np.arange(2), anchors.rotations, anchors.shifts)
    np.testing.assert_allclose(prior.log_of(exact), 0, atol=1e-20)


def test_a_prior_holds_poses_that_images_do_not() -> None:
    """Without signal a pose goes back to its anchor; with much of it, the anchor hardly counts."""
    rng = np.random.default_rng(2)
    true = random_rotations(8, rng)
    off = rotate(true, rng.normal(0, 0.05, (8, 3)))
    anchors, none = Anchors(off, np.zeros((8, 2))), np.zeros((8, 2))
    prior = Prior(0.5**2, 0.01**2, anchors)
    for noise, at in ((50.0, off), (0.05, true)):
        found = refine(observe(true, none, noise, 3), start_poses(np.arange(8), off, none), prior)
        assert angle_between(found.rotations, at).max() < 0.02
    assert angle_between(off, true).mean() > 0.05
