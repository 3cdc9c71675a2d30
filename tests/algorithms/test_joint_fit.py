"""The joint fit: elimination against the whole system, and what tables say against polynomials."""

import numpy as np
import pytest

from cloudem.algorithms.aberrations import even_terms
from cloudem.algorithms.ctf_refinement import (
    CS_SPREAD,
    covariance,
    cubic_terms,
    group_step,
    judge_aberrations,
    looked_ahead,
    odd_terms_before,
    prior_precision,
    quartic_terms,
    refined_defocus,
    refined_optics,
    without,
)
from cloudem.algorithms.joint_fit import MEAN_SPREAD, Blocks, eliminate, mean_defocus, start_fitted
from cloudem.kernels.aberrations import zernike_terms
from cloudem.kernels.ctf import ctf_terms
from cloudem.model.optics import OpticsGroup

RNG = np.random.default_rng(8)
IMAGES, IMAGE, SHARED, GROUP = 7, 6, 3, 5
MICROGRAPH = np.array([0, 0, 0, 1, 1, 1, 1])
VALUES = np.array([0.004, -0.002, 0.001, 30, -20, 8, -6, 3, -2, 50, 20, -30, 10, 15], np.float64)


def blocks() -> Blocks:
    size = IMAGE + SHARED + GROUP
    roots = RNG.normal(size=(IMAGES, size, 2 * size))
    return Blocks(roots @ np.swapaxes(roots, 1, 2), RNG.normal(size=(IMAGES, size)), IMAGE, SHARED, RNG.normal(size=2))


def whole_system(given: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix and gradient over all images, then micrographs, then the group."""
    first, last = IMAGES * IMAGE, IMAGES * IMAGE + 2 * SHARED
    matrix, gradient = np.zeros((last + GROUP, last + GROUP)), np.zeros(last + GROUP)
    for image, m in enumerate(MICROGRAPH):
        place = [*range(image * IMAGE, image * IMAGE + IMAGE), *range(first + m * SHARED, first + (m + 1) * SHARED)]
        place += range(last, last + GROUP)
        matrix[np.ix_(place, place)] += given.matrix[image]
        gradient[place] += given.gradient[image]
    for m in (0, 1):
        matrix[first + m * SHARED, first + m * SHARED] += 1 / MEAN_SPREAD**2
        gradient[first + m * SHARED] -= given.mean[m] / MEAN_SPREAD**2
    return matrix, gradient


def test_elimination_solves_the_whole_system() -> None:
    given = blocks()
    done = eliminate(given, MICROGRAPH)
    matrix, gradient = whole_system(given)
    wanted = np.linalg.solve(matrix, gradient)[-GROUP:]
    free = np.ones(GROUP, bool)
    np.testing.assert_allclose(group_step(done.matrix.sum(0), done.gradient.sum(0), free)[0], wanted, rtol=1e-6)
    inverse = np.linalg.inv(matrix)[-GROUP:, -GROUP:]
    np.testing.assert_allclose(covariance(done.matrix.sum(0), free), inverse, rtol=1e-6)


def test_steps_of_images_are_those_at_fixed_aberrations() -> None:
    given = blocks()
    done = eliminate(given, MICROGRAPH)
    matrix, gradient = (part[..., :-GROUP] for part in whole_system(given))
    inverse = np.linalg.inv(matrix[:-GROUP])
    wanted = (inverse @ gradient)[: IMAGES * IMAGE].reshape(IMAGES, IMAGE)
    np.testing.assert_allclose(done.step, wanted, rtol=1e-6)
    np.testing.assert_allclose(done.variance, np.diag(inverse)[5 : IMAGES * IMAGE : IMAGE], rtol=1e-6)


def test_a_micrograph_whose_images_do_not_count_says_nothing() -> None:
    given, weight = blocks(), np.where(MICROGRAPH == 1, 0.0, 1.0)
    weighed = given._replace(matrix=given.matrix * weight[:, None, None], gradient=given.gradient * weight[:, None])
    done = eliminate(weighed, MICROGRAPH)
    np.testing.assert_array_equal(done.matrix[1], 0)
    np.testing.assert_array_equal(done.gradient[1], 0)
    np.testing.assert_array_equal(done.matrix[0], eliminate(given, MICROGRAPH).matrix[0])


def test_the_mean_defocus_is_the_most_probable_one() -> None:
    defocus, spread = RNG.normal(40, 60, IMAGES), 80.0
    found = mean_defocus(defocus, MICROGRAPH, spread)
    slope = np.bincount(MICROGRAPH, (defocus - found[MICROGRAPH]) / spread**2) - found / MEAN_SPREAD**2
    np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_without_a_parameter_the_others_are_where_they_would_be_fitted() -> None:
    root = RNG.normal(size=(14, 30))
    precision, gradient = root @ root.T, RNG.normal(size=14)
    free = np.ones(14, bool)
    values, _ = group_step(precision, gradient, free)
    dropped = np.arange(14) % 3 == 0
    wanted, _ = group_step(precision, gradient, ~dropped)
    np.testing.assert_allclose(without(values, precision, dropped, ~dropped), wanted, atol=1e-6)


def test_a_move_against_a_map_of_the_same_images_is_lengthened_by_what_they_have_in_it() -> None:
    shells = [(root @ root.T, share) for root, share in zip(RNG.normal(size=(3, 14, 30)), (0.9, 0.6, 0.4), strict=True)]
    precision, felt = sum(h for h, _ in shells), sum(f * h for h, f in shells)
    moved = np.linalg.solve(precision, felt @ VALUES)
    free = np.ones(14, bool)
    np.testing.assert_allclose(looked_ahead(moved, precision, felt, free), VALUES, rtol=1e-4)
    np.testing.assert_allclose(looked_ahead(moved, precision, precision, free), moved, rtol=1e-5)
    free[:3] = False
    np.testing.assert_array_equal(looked_ahead(moved, precision, felt, free)[:3], moved[:3])


def test_what_is_four_standard_errors_away_is_believed_and_what_is_two_is_not() -> None:
    precision = np.diag(np.full(14, 4.0))  # standard errors of 1/2
    values = np.zeros(14)
    values[3], values[5] = 2.5, 1.0
    found = judge_aberrations(values, precision, np.arange(14) != 2, 4.0)
    np.testing.assert_array_equal(np.flatnonzero(found.significant), [3, 4])
    np.testing.assert_array_equal(np.flatnonzero(found.believed), [3, 4, 9])  # k⁴ always, with the defocus
    assert np.isnan(found.values[2])
    assert found.deviations[9] == pytest.approx(0)
    assert 1.2 < found.deviations[5] < 2  # two parameters share it: less improbable than two deviations of one


def test_a_spherical_aberration_that_is_wrong_by_its_spread_is_one_standard_deviation() -> None:
    one = {"voltage": 200.0, "amplitude_contrast": 0.1, "defocus_angle": np.zeros(1)}
    defocus = np.array([1e4])
    right, wrong = (
        ctf_terms(**one, spherical_aberration=cs, defocus_u=defocus, defocus_v=defocus)[0]
        for cs in (2.7e7, 2.7e7 + CS_SPREAD)
    )
    prior = prior_precision(OpticsGroup("g", 200.0, 2.7e7, 0.1))
    np.testing.assert_allclose(np.abs(wrong - right)[4], prior[9] ** -0.5)
    assert np.count_nonzero(prior) == 1


@pytest.mark.parametrize("aberration", [2.7e7, 1e5, 0.0])
def test_the_table_says_the_polynomials_that_were_fitted(aberration: float) -> None:
    before = OpticsGroup("one", 300.0, aberration, 0.1).with_aberrations(
        beam_tilt=(0.2, -0.1), odd_zernike=(0.1, 0.2, 0.3, 0, 0, -0.4), even_zernike=(0.1, 0.2, 0.3),
        magnification=np.array([[1.01, 0.002], [0.001, 0.99]]),
    )  # fmt: skip
    after = refined_optics(before, VALUES)
    np.testing.assert_allclose(odd_terms_before(after) - odd_terms_before(before), cubic_terms(VALUES[3:7]), atol=1e-9)
    np.testing.assert_allclose(even_terms(after) - even_terms(before), quartic_terms(VALUES[7:]), atol=1e-9)
    np.testing.assert_allclose(after.magnification - before.magnification, [[0.005, -0.002], [-0.002, -0.003]])
    assert refined_optics(before, np.zeros(14)) is before


def test_a_pure_fourth_power_takes_back_what_its_zernike_term_holds() -> None:
    change = np.zeros(14)
    change[9] = 6.0
    even = refined_optics(OpticsGroup("one", 300.0, 2.7e7, 0.1), change).even_zernike
    assert even == (2, 0, 3, 0, 0, 0, 1, 0, 0)
    np.testing.assert_allclose(zernike_terms(even, odd=False), quartic_terms(change[7:]), atol=1e-12)


def test_the_astigmatism_of_a_micrograph_is_in_its_defocus() -> None:
    fitted = start_fitted(np.eye(3)[None], np.zeros((1, 2)))
    per_defocus = np.array([np.pi * 0.02])
    fitted.astigmatism[:] = 3.0, -4.0
    u, v, angle = refined_defocus(np.array([1e4]), np.array([9.8e3]), np.array([0.3]), fitted, per_defocus)
    half = 100 * np.exp(0.6j) - (3 - 4j) / per_defocus[0]
    np.testing.assert_allclose((u - v) / 2 * np.exp(2j * angle), half)
    np.testing.assert_allclose((u + v) / 2, 9900)
