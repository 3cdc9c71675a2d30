"""Patches between their pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from cloudem.kernels.spline_patches import patch_values
from tests.conftest import Twin


def test_values_are_those_of_cubic_splines_and_slopes_those_of_values(twin: Twin) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 11, 11))
    coefficients = np.stack([spline_filter(image) for image in images]).astype(np.float32)
    places = rng.uniform(1.01, 8.99, (40, 2))
    found = twin(patch_values)(coefficients, places)
    expected = [
        map_coordinates(image, place[::-1, None], order=3)[0] for image, place in zip(images, places, strict=True)
    ]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    for axis in (0, 1):
        step = np.zeros(2)
        step[axis] = 1e-4
        up, down = (twin(patch_values)(coefficients, places + sign * step)[:, 0] for sign in (1, -1))
        np.testing.assert_allclose(found[:, 1 + axis], (up - down) / 2e-4, atol=1e-5)


def test_beyond_the_rim_a_patch_goes_on_without_a_slope(twin: Twin) -> None:
    coefficients = np.random.default_rng(1).normal(size=(2, 7, 7)).astype(np.float32)
    far, rim = np.array([[-3.0, 2.5], [9.0, 2.5]]), np.array([[1.0, 2.5], [5.0, 2.5]])
    found = twin(patch_values)(coefficients, far)
    np.testing.assert_allclose(found[:, 0], twin(patch_values)(coefficients, rim)[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], 0)
    assert np.all(found[:, 2] != 0)
