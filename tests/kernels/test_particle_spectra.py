"""Windows in Fourier space: twins agree, a displaced image is brought back, and parts add up to the whole."""

from __future__ import annotations

import numpy as np

from cloudem.kernels.fourier import fourier_images, half_disc, sample_half_disc
from cloudem.kernels.particle_spectra import add_spectra, compare_spectra
from tests.conftest import Twin

SIDE, SHELLS = 24, 9
DISC = half_disc(SIDE, SHELLS)


def windows(count: int, seed: int) -> np.ndarray:
    return fourier_images(np.random.default_rng(seed).normal(size=(count, SIDE, SIDE)).astype(np.float32))


def test_products_and_powers_are_those_of_the_definition(twin: Twin) -> None:
    transforms, rng = windows(5, 0), np.random.default_rng(1)
    views = sample_half_disc(windows(5, 2), DISC)
    shifts, groups = rng.uniform(-0.4, 0.4, (5, 2)), np.array([0, 1, 1, 0, 1])
    products, powers = np.zeros_like(views), np.ones((2, SHELLS + 1))
    twin(compare_spectra)(transforms, views, shifts, groups, *DISC, products, powers)
    values = sample_half_disc(transforms, DISC)
    phase = np.exp(2j * np.pi * (np.outer(shifts[:, 0], DISC.kx) + np.outer(shifts[:, 1], DISC.ky)))
    np.testing.assert_allclose(products, values * views.conj() * phase, atol=1e-4 * abs(products).max())
    of_one = np.bincount(DISC.shell, (abs(values[groups == 1]) ** 2).sum(axis=0), SHELLS + 1)
    np.testing.assert_allclose(powers[1] - 1, of_one, rtol=1e-5)


def test_a_displaced_window_is_brought_back_and_weighted(twin: Twin) -> None:
    image = np.zeros((2, SIDE, SIDE), np.float32)
    image[:, SIDE // 2 + 3, SIDE // 2 - 5] = 1
    middle = np.zeros((2, SIDE, SIDE), np.float32)
    middle[:, SIDE // 2, SIDE // 2] = 1
    weights = np.stack([np.full(len(DISC.kx), 2.0), 0.5 * DISC.shell]).astype(np.float32)
    sums = np.zeros((2, len(DISC.kx)), np.complex64)
    shifts = np.tile(np.array([-5, 3]) / SIDE, (2, 1))
    twin(add_spectra)(fourier_images(image), shifts, weights, np.array([0, 1]), DISC.kx, DISC.ky, sums)
    np.testing.assert_allclose(sums, weights * sample_half_disc(fourier_images(middle), DISC), atol=2e-5)
