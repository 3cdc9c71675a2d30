"""Noise knows nothing beyond the shells that decided its poses, whatever it was aligned to; images of something do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.align import best_of
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.evidence import gains, known_up_to, luck
from cloudem.algorithms.expectation import expect, inverse_noise
from cloudem.algorithms.reconstruct import empty_sums
from cloudem.algorithms.search import search_grid
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import fourier_images, half_disc, sample_half_disc
from cloudem.kernels.slices import padded_box
from cloudem.model.poses import random_rotations
from tests.algorithms.test_expectation import (
    BOX,
    K_SCORE,
    ONE,
    PHANTOM,
    PIXEL,
    PLAN,
    RADIUS,
    REFERENCE,
    STEP,
    model_of,
    simulate,
)

LIMIT = 6
SHELLS = (LIMIT + 1, LIMIT + 4)
COARSE = replace(PLAN, k_score=LIMIT, k_search=LIMIT)


def asked(batch: Batch, rotations: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    inverse = inverse_noise(batch, model_of())
    by_shell = gains(batch, rotations, shifts, REFERENCE, inverse, SHELLS, PIXEL)
    assert by_shell.shape == (len(batch.images), SHELLS[1] - SHELLS[0] + 1)
    return by_shell


def noise(count: int, seed: int) -> Batch:
    batch, _, _ = simulate(count, seed)
    images = np.random.default_rng(seed).standard_normal(batch.images.shape).astype(np.float32)
    return replace(batch, images=images * (1 + batch.optics_group[:, None, None]).astype(np.float32))


def test_it_is_the_sum_of_products_that_it_says() -> None:
    batch, rotations, shifts = simulate(5, 4)
    disc = half_disc(BOX, SHELLS[1])
    values = ctf_values(disc.kx, disc.ky, batch.terms, 1 / (BOX * PIXEL)).astype(float)
    images = sample_half_disc(fourier_images(batch.images.astype(float)), disc)
    phase = np.exp(2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    slices = PHANTOM.slices(rotations, disc.kx, disc.ky, BOX)
    product = values * images * phase * (slices - slices[[2, 3, 4, 0, 1]]).conj() / model_of().sigma2[
        batch.optics_group][:, disc.shell]  # fmt: skip
    expected = np.stack(
        [product.real[:, disc.shell == shell].sum(axis=1) for shell in range(SHELLS[0], SHELLS[1] + 1)], axis=1
    )
    # the reference's window is exact to 0.2 %, and cut off at the box
    np.testing.assert_allclose(asked(batch, rotations, shifts), expected, atol=0.03 * np.abs(expected).max())


def test_noise_that_was_aligned_to_the_map_knows_nothing_more_of_it() -> None:
    grid = search_grid(REFERENCE, padded_box(BOX) / BOX, BOX, LIMIT, RADIUS, STEP, ONE)
    model = replace(model_of(), grid=grid)
    found = []
    for seed in range(6):
        batch = noise(60, 100 + seed)
        poses = expect(batch, COARSE, model, empty_sums(BOX, K_SCORE)).poses
        best = poses.take(best_of(poses.images))
        found.append(luck(asked(batch, best.rotations, best.shifts)))
    assert abs(np.mean(found)) < 1.3  # three standard deviations of a mean of six
    assert np.max(np.abs(found)) < 3.5


def test_images_know_their_own_side_and_no_other() -> None:
    batch, rotations, shifts = simulate(80, 7)
    assert luck(asked(batch, rotations, shifts)) > 5
    wrong = random_rotations(80, np.random.default_rng(5))
    assert abs(luck(asked(batch, wrong, shifts))) < 3.5


@pytest.mark.parametrize(("gain", "expected"), [([], 0.0), ([0.0, 0.0], 0.0), ([2.0] * 9, 3.0), ([1.0, -1.0], 0.0)])
def test_luck_counts_standard_deviations(gain: list[float], expected: float) -> None:
    assert luck(np.array(gain)) == pytest.approx(expected)


def test_what_images_know_ends_with_the_last_shells_that_are_known_together() -> None:
    nobody = np.full(12, np.nan)
    assert known_up_to(nobody, 3.5) == -1
    by_shell = nobody.copy()
    by_shell[3:] = [20, 20, 9, 2, 2, 2, 2, 0, 0]
    assert known_up_to(by_shell, 3.5) == 9  # four shells of two deviations have four together
    assert known_up_to(by_shell, 5) == 8
    by_shell[10:] = 0, 2.9  # one lucky shell is none
    assert known_up_to(by_shell, 3.5) == 9
    by_shell[:] = np.random.default_rng(1).standard_normal(12)
    assert known_up_to(by_shell, 3.5) == -1
