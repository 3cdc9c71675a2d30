"""Frames that are asked for several times are kept in as few bytes as they need, up to a limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import FormatError
from cloudem.io.movies.held import HeldFrames
from cloudem.io.movies.opening import open_movie
from tests.io.movies_files import write_mrc


@pytest.mark.parametrize("most", [0, 10 * 15 * 3, 10**9])
def test_frames_are_those_of_the_file(tmp_path: Path, most: int) -> None:
    frames = np.random.default_rng(0).integers(0, 200, (7, 10, 15)).astype("i2")
    frames[5, 0, 0] = 3000
    held = HeldFrames(open_movie(write_mrc(tmp_path / "a.mrc", frames, 1)), most)
    assert held.whole_frames() == list(range(7))
    for number in (3, 0, 5, 3):
        np.testing.assert_array_equal(held(number), frames[number])
    assert held(0).dtype == np.uint8
    assert held(5).dtype == np.int16


def test_frames_that_are_read_in_turn_are_the_same_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 200, (7, 10, 15)).astype("i2")
    movie = open_movie(write_mrc(tmp_path / "a.mrc", frames, 1))
    used = np.array([0, 2, 3, 6])
    for number, frame in zip(used, HeldFrames(movie).in_turn(used), strict=True):
        np.testing.assert_array_equal(frame, frames[number])
        assert frame.dtype == np.uint8
    movie.damaged = {3: "cannot be decoded"}
    with pytest.raises(FormatError, match="frame 4 cannot be decoded"):
        list(HeldFrames(movie).in_turn(used))
