"""States: laws of probabilities, of steps beyond expectation maximisation, of what images say of a difference."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.algorithms.align import Prior, start_poses
from cloudem.algorithms.batch import Batch, add_slices
from cloudem.algorithms.bricks import complete
from cloudem.algorithms.reconstruct import empty_sums, reference_volume
from cloudem.algorithms.states import (
    FURTHEST,
    SeenImages,
    StateSettings,
    best_shares,
    centred,
    further,
    gain_of,
    grid_box,
    halves_agreement,
    overstep,
    posterior,
    score_states,
    see,
    shifted_slices,
    solve_difference,
    weighted_difference,
)
from cloudem.algorithms.wide import search_states, wide_model
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fill_half_disc, half_disc, real_images
from cloudem.model.poses import angle_between, random_rotations, rotate
from tests.phantom import blobs

WHOLE, BOX, LIMIT, LENGTH = 64, 48, 16, 160.0
ONE = np.eye(3)[None]
SETTINGS = StateSettings(WHOLE, BOX, LENGTH, 16.0, LIMIT, 8, 2, 60)


def density() -> NDArray[np.float32]:
    """Return blobs inside the particle's sphere."""
    return blobs(reach=9.0).density(BOX)


def test_probabilities() -> None:
    rng = np.random.default_rng(0)
    scores, share = rng.normal(0, 3, (50, 3)), np.array([0.5, 0.3, 0.2])
    probability, evidence = posterior(scores, share)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(evidence), np.exp(scores) @ share)
    same, alike = posterior(np.repeat(scores[:, :1], 3, axis=1), share)  # classes that do not differ
    np.testing.assert_allclose(same, np.tile(share, (50, 1)))
    np.testing.assert_allclose(alike, scores[:, 0])


def test_shares_are_those_of_most_evidence() -> None:
    rng = np.random.default_rng(1)
    state = rng.random(20_000) < 0.1
    apart = 1.5  # d': images are told apart poorly
    value = rng.standard_normal(len(state)) + apart * state
    scores = np.stack([np.zeros(len(state)), apart * value - apart**2 / 2], axis=1)
    np.testing.assert_allclose(best_shares(scores, np.array([0.5, 0.5])), [0.9, 0.1], atol=0.01)


def test_a_step_goes_further_where_classes_are_told_apart_poorly() -> None:
    sure = np.eye(3)[np.arange(60) % 3]
    np.testing.assert_allclose(overstep(sure), np.eye(3), atol=1e-12)
    unsure = np.full((60, 3), 1 / 3)
    np.testing.assert_allclose(np.linalg.eigvalsh(overstep(unsure)), [1, FURTHEST, FURTHEST], atol=1e-9)
    # images of two states in classes that are each a mixture: a step from nowhere finds the states themselves
    rng = np.random.default_rng(2)
    right = rng.uniform(0.3, 1.0, 20_000)
    state = (rng.random(20_000) > right).astype(int)
    probability = np.stack([right, 1 - right], axis=1)
    truth = np.array([1.0, -2.0])
    step = probability.T @ truth[state] / probability.sum(axis=0)
    found = further(
        step.reshape(2, 1, 1, 1).astype(np.float32), np.zeros((2, 1, 1, 1), np.float32), overstep(probability)
    )
    np.testing.assert_allclose(found.ravel(), truth, atol=0.1)
    assert abs(step[0] - step[1]) < 1.5  # of 3


def test_states_have_no_common_difference() -> None:
    share = np.array([0.7, 0.3])
    differences = np.random.default_rng(3).standard_normal((2, 4, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(np.tensordot(share, centred(differences, share), 1), 0, atol=1e-6)
    np.testing.assert_array_equal(centred(differences, None), differences)


def test_halves_that_do_not_agree_leave_no_difference() -> None:
    rng, everywhere = np.random.default_rng(4), np.ones((BOX,) * 3, np.float32)
    first, second = rng.standard_normal((2, BOX, BOX, BOX)).astype(np.float32)
    known = halves_agreement(first, second, everywhere, LIMIT, SETTINGS)
    left = weighted_difference(first + second, known, everywhere, 2, LIMIT)
    assert np.linalg.norm(left) < 0.03 * np.linalg.norm(first + second)
    signal = density()
    signal *= np.float32(5 / signal.std())
    known = halves_agreement(signal + first, signal + second, everywhere, LIMIT, SETTINGS)
    found = weighted_difference(signal + (first + second) / 2, known, everywhere, 2, LIMIT)
    assert np.corrcoef(found.ravel(), signal.ravel())[0, 1] > 0.9


def test_gain() -> None:
    gain = gain_of(np.array([1.0, 2.0, 3.0]))
    assert (gain.mean, gain.images) == (2.0, 3)
    assert gain.error == pytest.approx(1 / 3**0.5)
    assert gain_of(np.zeros(0)).deviations == 0


def test_the_grid_holds_the_limit() -> None:
    assert grid_box(256, 20) == 48
    assert grid_box(256, 40) >= 88
    assert grid_box(96, 46) == 96


def images_of(
    volume: NDArray[np.float32], rotations: NDArray[np.float64], shifts: NDArray[np.float64], noise: float
) -> NDArray[np.float32]:
    """Return images (b, n, n) of a map on the coarse grid, without CTF, at poses in its voxels."""
    disc = half_disc(WHOLE, LIMIT)
    poses = start_poses(np.arange(len(rotations)), rotations, shifts)
    slices = shifted_slices(reference_volume(volume, LIMIT), poses, disc, SETTINGS)
    images = real_images(fill_half_disc(slices, disc, WHOLE))
    return np.asarray(images + noise * np.random.default_rng(5).standard_normal(images.shape), np.float32)


def batch_of(images: NDArray[np.float32]) -> Batch:
    """Return images with a CTF that is amplitude contrast alone: 1 or -1 everywhere."""
    count = len(images)
    nothing = np.zeros(count)
    terms = ctf_terms(
        voltage=nothing + 300.0,
        spherical_aberration=nothing,
        amplitude_contrast=nothing + 1.0,
        defocus_u=nothing,
        defocus_v=nothing,
        defocus_angle=nothing,
        phase_shift=nothing,
        b_factor=nothing,
    )
    disc = half_disc(WHOLE, 2)
    sign = np.sign(ctf_values(disc.kx, disc.ky, terms[:1], 1 / LENGTH)[0, 0])
    return Batch(images, terms, np.full(count, sign), np.zeros(count, np.int32), np.ones(count, bool), None)


def seen_of(images: NDArray[np.float32], sigma2: float) -> SeenImages:
    return see(batch_of(images), np.full((1, WHOLE // 2 + 1), sigma2), SETTINGS, LIMIT)


def test_residuals_make_the_difference() -> None:
    rng = np.random.default_rng(6)
    consensus = density()
    difference = np.roll(consensus, 3, axis=0) - consensus
    rotations, shifts = random_rotations(600, rng), rng.normal(0, 1.5, (600, 2))
    seen = seen_of(images_of(consensus + difference, rotations, shifts, 0.0), 1.0)
    np.testing.assert_allclose(seen.ctf, 1, atol=1e-3)
    poses = start_poses(np.arange(600), rotations, shifts)
    residual = seen.residual(shifted_slices(reference_volume(consensus, LIMIT), poses, seen.disc, SETTINGS))
    sums = empty_sums(BOX, LIMIT)
    add_slices(sums, residual.weighted(), poses, np.ones(600), BOX)
    found = solve_difference(complete(sums, ONE), SETTINGS, LIMIT)
    assert np.corrcoef(found.ravel(), difference.ravel())[0, 1] > 0.97


def test_a_step_finds_the_pose_and_the_state() -> None:
    rng = np.random.default_rng(7)
    first = density()
    second = first.copy()
    second[:, :, : BOX // 2 - 4] *= 0.3
    rotations, shifts = random_rotations(60, rng), rng.normal(0, 1.0, (60, 2))
    noise = 0.3 * float(images_of(first, rotations[:1], shifts[:1], 0.0).std())
    seen = seen_of(images_of(second, rotations, shifts, noise), noise**2 * WHOLE**2 / 2)
    off = rotate(rotations, rng.normal(0, 0.02, (60, 3)))
    volumes = [reference_volume(each, LIMIT) for each in (first, second)]
    poses = start_poses(np.arange(60), off, shifts + rng.normal(0, 0.1, (60, 2)))
    scores = score_states(seen, poses, volumes, Prior(np.inf), SETTINGS)
    assert np.all(scores.evidence.argmax(axis=1) == 1)
    turned, moved = scores.of(np.ones(60, np.int64))
    before = np.linalg.norm(off - rotations, axis=(1, 2))
    assert np.median(np.linalg.norm(turned - rotations, axis=(1, 2))) < 0.5 * np.median(before)
    assert np.median(np.linalg.norm(moved - shifts, axis=1)) < 0.1


def test_a_search_finds_poses_that_are_far_off() -> None:
    rng = np.random.default_rng(8)
    first = density()
    second = first.copy()
    second[:, :, : BOX // 2 - 4] *= 0.3
    rotations, shifts = random_rotations(12, rng), rng.normal(0, 0.5, (12, 2))
    noise = 0.3 * float(images_of(first, rotations[:1], shifts[:1], 0.0).std())
    batch = batch_of(images_of(second, rotations, shifts, noise))
    off = start_poses(np.arange(12), rotate(rotations, rng.normal(0, 0.6, (12, 3))), shifts)
    sigma2 = np.full((1, WHOLE // 2 + 1), noise**2 * WHOLE**2 / 2)
    models = [wide_model(each, sigma2, Prior(4.0), ONE, SETTINGS, LIMIT) for each in (first, second)]
    scores = search_states(batch, off, models, SETTINGS, LIMIT)
    turned, moved = scores.of(np.ones(12, np.int64))
    assert np.mean(scores.evidence.argmax(axis=1) == 1) > 0.9
    assert np.median(angle_between(turned, rotations)) < 0.05
    assert np.median(np.linalg.norm(moved - shifts, axis=1)) < 0.3
