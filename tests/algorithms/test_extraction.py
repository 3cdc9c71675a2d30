"""Which boxes are cut, and what is left of a position that lies between pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.extraction import (
    BEYOND,
    DUPLICATE,
    NO_NUMBER,
    TAKEN,
    choose_boxes,
    nearest_pixels,
    refined_coordinates,
    tilted_defocus,
)


def test_boxes_are_cut_around_the_nearest_pixel() -> None:
    places = np.array([[10.4, 12.5], [10.6, 12.49], [np.nan, 3.0]])
    chosen = choose_boxes(places, np.zeros(3), 8, (40, 30), padded=False)
    assert chosen.centres[:2].tolist() == [[10, 13], [11, 12]]
    assert chosen.corners[:2].tolist() == [[6, 9], [7, 8]]
    assert chosen.fate.tolist() == [TAKEN, TAKEN, NO_NUMBER]


def test_boxes_that_reach_beyond_are_left_out_unless_they_are_padded() -> None:
    places = np.array([[4, 4], [3, 4], [26, 36], [27, 36], [26, 37], [-1, 5], [29, 39], [30, 5]], float)
    left = choose_boxes(places, np.zeros(8), 8, (40, 30), padded=False)
    assert left.fate.tolist() == [TAKEN, BEYOND, TAKEN, BEYOND, BEYOND, BEYOND, BEYOND, BEYOND]
    padded = choose_boxes(places, np.zeros(8), 8, (40, 30), padded=True)
    assert padded.fate.tolist() == [TAKEN, TAKEN, TAKEN, TAKEN, TAKEN, BEYOND, TAKEN, BEYOND]


def test_of_two_that_are_close_the_better_one_stays() -> None:
    places = np.array([[10, 10], [13, 10], [20, 20], [2, 10]], float)
    chosen = choose_boxes(places, np.array([0.1, 0.9, 0.5, 1.0]), 8, (40, 30), padded=False, distance=5.0)
    assert chosen.fate.tolist() == [DUPLICATE, TAKEN, TAKEN, BEYOND]  # one that is not cut takes no other's place


@given(st.floats(0, 400), st.floats(-30, 30), st.floats(0.5, 4))
def test_what_moves_an_image_is_taken_off_its_shift(coordinate: float, shift: float, pixel_size: float) -> None:
    place = refined_coordinates(np.array([[coordinate, 7.0]]), np.array([[shift, 0.0]]), pixel_size)
    centre = nearest_pixels(place)
    left = (place - centre) * pixel_size
    assert np.abs(left).max() <= pixel_size / 2 + 1e-9
    assert np.floor(coordinate) * pixel_size + shift == pytest.approx((centre * pixel_size + left)[0, 0])


def test_defocus_grows_across_the_axis_of_a_tilt() -> None:
    places = np.array([[50, 50], [60, 50], [50, 60]])
    np.testing.assert_allclose(tilted_defocus(places, (100, 100), 2.0, 0.0, np.pi / 4), [0, 0, 20], atol=1e-9)
    np.testing.assert_allclose(tilted_defocus(places, (100, 100), 2.0, np.pi / 2, np.pi / 4), [0, -20, 0], atol=1e-9)
