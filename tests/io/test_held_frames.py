"""Frames that are asked for several times are kept in as few bytes as they need, up to a limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
