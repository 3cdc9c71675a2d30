"""Gain references are turned and flipped as stated, and defects take what is around them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.gain import correct_frames, correction_of, orient_gain
from cloudem.errors import InconsistentDataError, ParameterError

GAIN = np.arange(1, 7, dtype=np.float32).reshape(2, 3)


def test_gains_are_turned_clockwise_and_then_flipped():
    assert orient_gain(GAIN, 0, 0).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert orient_gain(GAIN, 1, 0).tolist() == [[4, 1], [5, 2], [6, 3]]
    assert orient_gain(GAIN, 0, 1).tolist() == [[4, 5, 6], [1, 2, 3]]
    assert orient_gain(GAIN, 0, 2).tolist() == [[3, 2, 1], [6, 5, 4]]
    assert orient_gain(GAIN, 1, 1).tolist() == [[6, 3], [5, 2], [4, 1]]
    for turns in range(4):  # two flips of the same kind change nothing, four turns neither
        twice = orient_gain(orient_gain(GAIN, turns, 1), 0, 1)
        assert orient_gain(twice, (4 - turns) % 4, 0).tolist() == GAIN.tolist()
    for wrong in ((4, 0), (-1, 0), (0, 3)):
        with pytest.raises(ParameterError, match="turned 0 to 3 times"):
            orient_gain(GAIN, *wrong)


def test_frames_are_multiplied_or_divided():
    frames = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(correct_frames(frames, correction_of((2, 3), GAIN)), frames * GAIN)
    divided = correct_frames(frames, correction_of((2, 3), GAIN, divides=True))
    np.testing.assert_allclose(divided, frames / GAIN, rtol=1e-6)
    plain = correct_frames(frames, correction_of((2, 3)))
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, frames)


def test_a_gain_of_the_detector_is_repeated_for_parts_of_its_pixels():
    frames = np.ones((1, 4, 6), np.uint16)
    corrected = correct_frames(frames, correction_of((4, 6), GAIN, upsampling=2))
    np.testing.assert_array_equal(corrected[0], np.kron(GAIN, np.ones((2, 2))))


@pytest.mark.parametrize("divides", [False, True])
def test_a_pixel_of_gain_0_is_a_defect(divides):
    gain = np.ones((9, 9), np.float32)
    gain[4, 4] = 0
    frames = np.random.default_rng(0).poisson(5, (3, 9, 9)).astype(np.uint8)
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    corrected = correct_frames(frames, correction_of((9, 9), gain, divides=divides))
    np.testing.assert_allclose(corrected[:, 4, 4], frames[:, 3:6, 3:6][:, around].mean(axis=1), rtol=1e-6)
    corrected[:, 4, 4] = frames[:, 4, 4]
    np.testing.assert_array_equal(corrected, frames)


@given(seed=st.integers(0, 999), share=st.floats(0.01, 0.9))
def test_defects_are_filled_from_good_pixels_alone(seed, share):
    rng = np.random.default_rng(seed)
    bad = rng.random((13, 17)) < share
    bad[6, 6] = False
    frames = np.where(bad, 255, rng.integers(3, 9, (2, 13, 17))).astype(np.uint8)
    corrected = correct_frames(frames, correction_of((13, 17), defects=bad))
    np.testing.assert_array_equal(corrected[:, ~bad], frames[:, ~bad])
    assert corrected.min() >= 3
    assert corrected.max() <= 8


def test_a_large_hole_takes_the_mean_of_the_frame():
    bad = np.zeros((40, 40), bool)
    bad[2:38, 2:38] = True
    frames = np.random.default_rng(0).poisson(5, (2, 40, 40)).astype(np.float32)
    corrected = correct_frames(frames, correction_of((40, 40), defects=bad))
    np.testing.assert_allclose(corrected[:, 20, 20], frames[:, ~bad].mean(axis=1), rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InconsistentDataError, match="gain reference has 3 x 2 pixels and the frames 2 x 3"):
        correction_of((3, 2), GAIN)
    with pytest.raises(InconsistentDataError, match="gain reference has 3 x 2 pixels and the frames 6 x 4"):
        correction_of((4, 6), GAIN)
    with pytest.raises(InconsistentDataError, match="defect map has 3 x 2"):
        correction_of((3, 2), defects=GAIN > 0)
    for values in (-GAIN, GAIN * 1e6, GAIN * np.nan):
        with pytest.raises(ParameterError, match="is it the right file"):
            correction_of((2, 3), values)
    with pytest.raises(ParameterError, match="every pixel is a defect"):
        correction_of((2, 3), GAIN * 0)
