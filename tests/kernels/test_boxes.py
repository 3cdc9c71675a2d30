"""Boxes of a micrograph: what is cut, what is taken away, and that a box depends on itself alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.kernels.background import NOT_FINITE, USABLE, background
from cloudem.kernels.boxes import (
    BoxRecipe,
    beyond,
    boxed_particles,
    cut_boxes,
    replace_hot_pixels,
    shrink_boxes,
)
from cloudem.kernels.float16 import narrow
from tests.conftest import Twin

RECIPE = BoxRecipe(24, 16, 0.8, -1.0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 30))
def test_hot_pixels_are_the_same_for_both(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    image = noise(height, width, seed=seed)
    for _ in range(rng.integers(0, 12)):
        image[rng.integers(height), rng.integers(width)] = rng.choice([80.0, -80.0, np.nan, np.inf])
    one, other = image.copy(), image.copy()
    assert replace_hot_pixels.reference(one, 8.0) == replace_hot_pixels(other, 8.0)
    np.testing.assert_array_equal(one, other)


def test_single_pixels_that_stand_out_are_replaced_and_nothing_else(twin: Twin) -> None:
    image = noise(40, 50)
    image[10:20, 10:20] += 100  # a particle of ice is no hot pixel
    spoilt = image.copy()
    places = [(0, 0), (5, 30), (39, 49), (30, 0), (15, 15)]
    for at, value in zip(places, (60.0, -60.0, np.nan, np.inf, 300.0), strict=True):
        spoilt[at] = value
    assert twin(replace_hot_pixels)(spoilt, 20.0) == len(places)
    hot = np.zeros(image.shape, bool)
    hot[tuple(np.array(places).T)] = True
    np.testing.assert_array_equal(spoilt[~hot], image[~hot])
    assert np.abs(spoilt - image)[hot].max() < 6
    assert twin(replace_hot_pixels)(noise(40, 50), 20.0) == 0


@given(st.integers(0, 10**6))
def test_cut_boxes_are_the_same_for_both(seed: int) -> None:
    image = noise(40, 50, seed=seed) + np.arange(50, dtype=np.float32)
    corners = np.random.default_rng(seed).integers(-20, 45, (9, 2))
    outside = background(16, 12).astype(np.float64)
    one, other = np.empty((2, 9, 16, 16), np.float32)
    cut_boxes.reference(image, corners, outside, one)
    cut_boxes(image, corners, outside, other)
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("corner", [(3, 4), (-4, 2), (35, 30)])
def test_a_slope_is_taken_away_and_what_lies_outside_is_zero(twin: Twin, corner: tuple[int, int]) -> None:
    y, x = np.mgrid[:40, :50]
    image = (3 + 0.5 * x - 0.25 * y).astype(np.float32)
    image[20, 20] += 100  # in the middle of no box: the fit is of what is outside the circle
    out = np.empty((1, 16, 16), np.float32)
    twin(cut_boxes)(image, np.array([corner]), background(16, 12).astype(np.float64), out)
    inside = out[0][: 40 - corner[1] if corner[1] > 24 else None]
    assert np.abs(np.delete(inside.ravel(), np.argmax(inside))).max() < (12 if corner == (3, 4) else 1e-3)
    if corner == (-4, 2):
        assert not out[0, :, :4].any()


def test_hardly_any_background_gives_no_image(twin: Twin) -> None:
    out = np.empty((2, 16, 16), np.float32)
    twin(cut_boxes)(noise(40, 50), np.array([[-14, -14], [200, 0]]), background(16, 12).astype(np.float64), out)
    assert np.isnan(out).all()
    boxed = boxed_particles(noise(40, 50), np.array([[-14, -14], [5, 5]]), BoxRecipe(16, 16, 0.75, 1.0))
    assert boxed.found.tolist() == [NOT_FINITE, USABLE]


def test_smaller_images_show_the_same_waves() -> None:
    y, x = np.mgrid[:24, :24] - 12
    wave = np.cos(2 * np.pi * (3 * x - 2 * y) / 24).astype(np.float32)
    y, x = np.mgrid[:16, :16] - 8
    expected = np.cos(2 * np.pi * (3 * x - 2 * y) / 16)
    np.testing.assert_allclose(shrink_boxes(wave[None], 16)[0], expected, atol=1e-6)
    point = np.zeros((1, 24, 24), np.float32)
    point[0, 12, 12] = 1
    small = shrink_boxes(point, 16)[0]
    assert np.unravel_index(small.argmax(), small.shape) == (8, 8)
    assert small.sum() == pytest.approx((16 / 24) ** 2)


def test_images_are_scaled_by_their_background_and_turned() -> None:
    image = 500 + 30 * noise(80, 80) + 0.5 * np.arange(80, dtype=np.float32)
    image[36:44, 36:44] -= 300
    boxed = boxed_particles(image.astype(np.float32), np.array([[28, 28]]), RECIPE)
    outside = background(RECIPE.size, RECIPE.diameter * RECIPE.size)
    assert boxed.images[0][outside].mean() == pytest.approx(0, abs=1e-6)
    assert boxed.images[0][outside].std() == pytest.approx(1, abs=1e-6)
    assert boxed.images[0][6:10, 6:10].mean() > 5


def test_padded_images_are_scaled_by_what_is_in_the_micrograph() -> None:
    image = 500 + 30 * noise(80, 80)
    corners = np.array([[-8, 20], [70, 70]])
    assert beyond(corners, 24, image.shape).all()
    boxed = boxed_particles(image, corners, BoxRecipe(24, 24, 0.8, 1.0))
    assert boxed.found.tolist() == [USABLE, USABLE]
    part = boxed.images[0][:, 8:][background(24, 0.8 * 24)[:, 8:]]
    assert part.std() == pytest.approx(1, abs=1e-5)
    assert len(np.unique(boxed.images[0][:, :8])) == 1


def test_a_box_comes_out_the_same_beside_any_others() -> None:
    image = noise(300, 300)
    corners = np.random.default_rng(1).integers(-4, 280, (70, 2))
    whole = boxed_particles(image, corners, RECIPE)
    for some in (np.arange(1), np.arange(69, -1, -3), np.array([5, 5, 60])):
        part = boxed_particles(image, corners[some], RECIPE)
        assert part.images.tobytes() == whole.images[some].tobytes()
        assert part.found.tolist() == whole.found[some].tolist()
    half = np.empty((70, 256), np.float16)
    assert narrow(np.nan_to_num(whole.images.reshape(70, -1)), np.arange(70), half)
