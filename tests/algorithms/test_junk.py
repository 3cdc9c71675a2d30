"""The evidence of images against noise is what it says; another molecule is seen, and what is none is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from cloudem.algorithms.align import Poses, Prior, best_of, start_poses
from cloudem.algorithms.expectation import expect
from cloudem.algorithms.junk import CONTRAST, alike_shell, judge, noise_evidence, two_lines
from cloudem.algorithms.reconstruct import empty_sums
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import half_disc
from tests.algorithms.test_evidence import noise
from tests.algorithms.test_expectation import BOX, K_SCORE, PHANTOM, PIXEL, PLAN, RADIUS, model_of, simulate


def one_pose(numerator: float, norm: float, precision: np.ndarray, shift: tuple[float, float] = (0.3, -0.2)) -> Poses:
    found = start_poses(np.zeros(1, np.int32), np.eye(3)[None], np.array([shift]))
    values = {"numerator": np.array([numerator]), "norm": np.array([norm]), "precision": precision[None]}
    return replace(found, score=np.array([numerator - norm / 2]), **values)


@pytest.mark.parametrize(("numerator", "norm"), [(60.0, 55.0), (20.0, 50.0), (-8.0, 30.0), (0.5, 0.2)])
def test_evidence_is_the_integral_over_amplitude_pose_and_prior(numerator: float, norm: float) -> None:
    random = np.random.default_rng(1)
    factor = random.normal(size=(5, 5)) + 8 * np.eye(5)
    precision, prior, order = factor @ factor.T, Prior(2.5), 4
    pose = one_pose(numerator, norm, precision)

    def integrand(a: float) -> float:
        weight = np.exp(-((a - 1) ** 2) / (2 * CONTRAST**2)) / np.sqrt(2 * np.pi * CONTRAST**2)
        return float(weight * np.exp(a * numerator - a**2 * norm / 2 - 40))

    amplitude = np.log(quad(integrand, -6, 8, points=[numerator / norm], limit=400)[0]) + 40
    gaussian = np.log(np.sqrt((2 * np.pi) ** 5 / np.linalg.det(precision)))  # the volume of the peak
    density = np.log(order / (8 * np.pi**2)) - np.log(2 * np.pi * 2.5) - (0.3**2 + 0.2**2) / 5  # of the prior there
    assert noise_evidence(pose, prior, order)[0] == pytest.approx(amplitude + gaussian + density, abs=1e-3)


def test_matches_are_the_sums_of_products_that_they_say() -> None:
    batch, rotations, shifts = simulate(6, 4)
    known = start_poses(np.arange(6), rotations, shifts)
    plan = replace(PLAN, k_search=0)
    found = expect(replace(batch, poses=known), plan, model_of(), empty_sums(BOX, K_SCORE))
    best = found.poses.take(best_of(found.poses.images))
    disc, edge = half_disc(BOX, K_SCORE), alike_shell(BOX, RADIUS)
    phase = np.exp(-2j * np.pi / BOX * (best.shifts[:, :1] * disc.kx + best.shifts[:, 1:] * disc.ky))
    slices = PHANTOM.slices(best.rotations, disc.kx, disc.ky, BOX) * phase
    slices *= ctf_values(disc.kx, disc.ky, batch.terms, 1 / (BOX * PIXEL))
    inverse = 1 / model_of().sigma2[batch.optics_group][:, disc.shell]
    power = inverse * np.abs(slices) ** 2
    for column, shells in ((1, disc.shell <= edge), (2, disc.shell > edge)):
        # of the images no more is said than what each match is for the slice itself: N differs from D by noise of sd √D
        expected = np.sqrt(power[:, shells].sum(axis=1))
        assert np.abs(found.matches[:, column] - expected).max() < 4
    total = found.matches[:, 1] * np.sqrt(power[:, disc.shell <= edge].sum(axis=1))
    total += found.matches[:, 2] * np.sqrt(power[:, disc.shell > edge].sum(axis=1))
    np.testing.assert_allclose(total, best.numerator, rtol=0.05, atol=1.0)


def test_no_shell_beyond_is_not_a_match() -> None:
    batch, rotations, shifts = simulate(4, 4)
    plan = replace(PLAN, k_score=alike_shell(BOX, RADIUS), k_search=0)
    known = replace(batch, poses=start_poses(np.arange(4), rotations, shifts))
    matches = expect(known, plan, model_of(), empty_sums(BOX, K_SCORE)).matches
    assert np.isnan(matches[:, 2]).all()
    assert np.isfinite(matches[:, 0]).all()
    assert not judge(matches).other_evidence.any()


def test_images_are_no_noise_and_noise_is() -> None:
    model = model_of()
    batch, _, _ = simulate(60, 11)
    images = expect(batch, PLAN, model, empty_sums(BOX, K_SCORE)).matches[:, 0]
    nothing = np.concatenate([
        expect(noise(60, seed), PLAN, model, empty_sums(BOX, K_SCORE)).matches[:, 0] for seed in (3, 4)
    ])  # fmt: skip
    clean = batch.optics_group == 0
    assert np.median(images[clean]) > 10
    # the mean Bayes factor of noise is 1 by construction, so that one in exp(x) of them has more than x
    assert np.mean(nothing > 0) < 0.05
    assert nothing.max() < 5
    kept = judge(np.column_stack([np.r_[images, nothing], np.full((180, 2), np.nan)])).keep
    assert kept[:60][clean].min() > 0.9
    assert np.mean(kept[60:] < 0.5) > 0.95


def test_weights_of_images_are_those_of_their_sums() -> None:
    batch, _, _ = simulate(8, 5)
    model, keep = model_of(), np.array([1.0, 0, 0.5, 1, 0, 0, 0.25, 1])
    weighted, expected = empty_sums(BOX, K_SCORE), empty_sums(BOX, K_SCORE)
    found = expect(replace(batch, keep=keep), PLAN, model, weighted)
    np.testing.assert_allclose(np.bincount(found.poses.images, found.weights), 1)  # of poses it says nothing
    for i in range(8):
        single = empty_sums(BOX, K_SCORE)
        expect(batch.rows(np.array([i])), PLAN, model, single)
        expected.data += np.float32(keep[i]) * single.data
        expected.weight += np.float32(keep[i]) * single.weight
    np.testing.assert_allclose(weighted.data, expected.data, atol=2e-3 * np.abs(expected.data).max())
    np.testing.assert_allclose(weighted.weight, expected.weight, atol=2e-3 * expected.weight.max())


def population(seed: int, others: int, contrast: float, count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return matches of images whose contrasts vary (log-normal), the last of another molecule, and which those are.

    An image's match is its contrast times 8, of another molecule the same at low frequencies and 0.4 of it beyond.
    """
    random = np.random.default_rng(seed)
    other = np.arange(count) >= count - others
    amplitude = 8 * np.exp(contrast * random.normal(size=count))
    low = amplitude + random.normal(size=count)
    high = amplitude * np.where(other, 0.4, 1.0) + random.normal(size=count)
    return np.column_stack([np.full(count, 30.0), low, high]), other


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("contrast", [0.0, 0.3])
@pytest.mark.parametrize("others", [100, 300, 450])
def test_another_molecule_is_told_from_weak_contrast(seed: int, contrast: float, others: int) -> None:
    matches, other = population(seed, others, contrast)
    judgement = judge(matches)
    flagged = judgement.keep < 0.5
    assert np.mean(flagged[other]) > (0.9 if contrast == 0 else 0.75)
    assert np.mean(flagged[~other]) < 0.07
    # the probabilities are calibrated
    assert (1 - judgement.keep).sum() == pytest.approx(others, rel=0.35 if others == 100 else 0.08)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("contrast", [0.0, 0.15, 0.3, 0.5])
def test_where_there_is_no_other_molecule_none_is_seen(seed: int, contrast: float) -> None:
    judgement = judge(population(seed, 0, contrast)[0])
    assert np.mean(judgement.keep < 0.5) < 0.01
    assert judgement.keep.mean() > 0.99


def test_the_order_of_images_means_nothing() -> None:
    matches, _ = population(2, 250, 0.2)
    order = np.random.default_rng(0).permutation(len(matches))
    np.testing.assert_allclose(judge(matches[order]).keep, judge(matches).keep[order], atol=2e-3)


def test_few_images_are_not_divided() -> None:
    matches, _ = population(2, 6, 0.0, count=15)
    assert two_lines(matches[:, 1], matches[:, 2], np.ones(15)) is None


def test_a_few_outliers_are_no_molecule() -> None:
    matches, _ = population(3, 0, 0.1)
    matches[:4, 2] = -20.0
    assert not judge(matches).other_evidence.any()


def test_evidence_is_the_logarithm_of_the_ratio_of_densities() -> None:
    matches, _ = population(5, 300, 0.1)
    lines = two_lines(matches[:, 1], matches[:, 2], np.ones(len(matches)))
    assert lines is not None
    assert lines.share[1] == pytest.approx(0.3, abs=0.03)
    expected = [
        -np.square(matches[:, 2] - lines.level[i] - lines.slope[i] * (matches[:, 1] - lines.centre))
        / (2 * lines.variance[i]) - np.log(lines.variance[i]) / 2 for i in (0, 1)
    ]  # fmt: skip
    np.testing.assert_allclose(judge(matches).other_evidence, expected[0] - expected[1], atol=1e-3)


def test_images_without_noise_match_their_own_slices_as_these_match_themselves() -> None:
    batch, rotations, shifts = simulate(5, 6, noise=0.0)
    known = replace(batch, poses=start_poses(np.arange(5), rotations, shifts))
    found = expect(known, replace(PLAN, k_search=0), model_of(), empty_sums(BOX, K_SCORE))
    best = found.poses.take(best_of(found.poses.images))
    np.testing.assert_allclose(best.numerator / best.norm, 1, atol=0.05)
    np.testing.assert_allclose(np.sum(found.matches[:, 1:] ** 2, axis=1), best.norm, rtol=0.1)
