"""The background of images, and images scaled by it."""

from __future__ import annotations

import numpy as np

from cloudem.kernels.background import (
    CONSTANT,
    NOT_FINITE,
    TOO_LARGE,
    USABLE,
    fingerprint,
    measure_background,
    scale_images,
)
from tests.conftest import Twin


def test_background_is_measured_outside_and_what_is_of_no_use_is_named(twin: Twin) -> None:
    images = np.random.default_rng(2).normal(3, 2, (4, 8, 8)).astype(np.float32)
    outside = np.ones((8, 8))
    outside[2:6, 2:6] = 0
    images[1, 0, 0], images[2] = np.inf, 5
    images[3][outside > 0] = 1  # only the background is constant: the whole image's deviation is taken
    mean, std, found = np.zeros(4, np.float32), np.zeros(4, np.float32), np.zeros(4, np.uint8)
    twin(measure_background)(images, outside, mean, std, found)
    assert found.tolist() == [USABLE, NOT_FINITE, CONSTANT, USABLE]
    background = images[0][outside > 0].astype(np.float64)
    np.testing.assert_allclose([mean[0], std[0]], [background.mean(), background.std()], rtol=1e-6)
    np.testing.assert_allclose([mean[3], std[3]], [1, images[3].astype(np.float64).std()], rtol=1e-6)


def test_usable_images_are_scaled_and_too_large_values_named(twin: Twin) -> None:
    images = np.random.default_rng(3).normal(3, 2, (3, 4, 4)).astype(np.float32)
    images[2, 1, 1] = 1e6
    before = images.copy()
    mean, std = np.full(3, 3, np.float32), np.full(3, 2, np.float32)
    found = np.array([USABLE, CONSTANT, USABLE], np.uint8)
    twin(scale_images)(images, mean, std, np.full(3, -1, np.float32), np.float32(100), found)
    assert found.tolist() == [USABLE, CONSTANT, TOO_LARGE]
    np.testing.assert_allclose(images[0], (3 - before[0]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(images[1], before[1])


def test_images_have_one_fingerprint_only_if_all_their_pixels_are_the_same(twin: Twin) -> None:
    images = np.random.default_rng(4).normal(size=(200, 6, 6)).astype(np.float32)
    images[7] = images[150]
    images[9] = images[151]
    images[9, 5, 5] = np.nextafter(images[9, 5, 5], np.float32(9))  # one bit of one pixel
    images[11] = images[152].T
    images[13] = -images[153]
    prints = np.zeros(200, np.uint64)
    twin(fingerprint)(images, prints)
    assert prints[7] == prints[150]
    assert len(np.unique(prints)) == 199
    assert prints.tolist() == fingerprints(images)


def fingerprints(images: np.ndarray) -> list[int]:
    """Return what the reference says."""
    out = np.zeros(len(images), np.uint64)
    fingerprint.reference(images, out)  # type: ignore[attr-defined]
    return out.tolist()
