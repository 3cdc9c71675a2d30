"""Gain references and defect lists as detectors' programs write them."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError
from cloudem.io.movies.references import read_defects, read_gain
from tests.io.movies_files import write_mrc

SHAPE = (6, 8)


def test_gains_of_mrc_tiff_and_falcon(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(0).uniform(0.5, 1.5, (1, *SHAPE)).astype("f4")
    write_mrc(tmp_path / "g.mrc", image, 2)
    found = read_gain(tmp_path / "g.mrc")
    np.testing.assert_array_equal(found.image, image[0])
    assert not found.multiplies_eer
    tifffile.imwrite(tmp_path / "g.tif", image[0], photometric="minisblack", metadata=None)
    tifffile.imwrite(tmp_path / "x.gain", image[0], photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_gain(tmp_path / "g.tif").image, image[0][::-1])
    falcon = read_gain(tmp_path / "x.gain")
    np.testing.assert_array_equal(falcon.image, image[0])
    assert falcon.multiplies_eer


def test_gains_that_are_none(tmp_path):
    with pytest.raises(FormatError, match="convert it with IMOD's dm2mrc"):
        read_gain(tmp_path / "g.dm4")
    with pytest.raises(MissingInputError):
        read_gain(tmp_path / "g.mrc")
    write_mrc(tmp_path / "g.mrc", np.ones((3, *SHAPE), "f4"), 2)
    with pytest.raises(FormatError, match="holds 3 frames"):
        read_gain(tmp_path / "g.mrc")


def marked(*places):
    bad = np.zeros(SHAPE, bool)
    for rows, columns in places:
        bad[rows, columns] = True
    return bad.tolist()


def test_lines_of_x_y_width_and_height(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("# x y w h\n1 2 3 1\n\n7 0 1 6\n")
    assert read_defects(path, SHAPE).tolist() == marked((slice(2, 3), slice(1, 4)), (slice(0, 6), 7))
    path.write_text("7 0 2 6\n")
    with pytest.raises(FormatError, match="line 1: a defect from 7, 0 to 8, 5 is not within 8 x 6"):
        read_defects(path, SHAPE)
    for wrong in ("1 2 3\n", "a b c d\n", "1 2 0 4\n", "-1 0 1 1\n"):
        path.write_text(wrong)
        with pytest.raises(FormatError, match="line 1"):
            read_defects(path, SHAPE)


def test_the_list_of_serialem_counts_from_the_top(tmp_path):
    path = tmp_path / "defects.txt"
    path.write_text(
        "CameraSizeX 8\nCameraSizeY 6\nRotationAndFlip 0\nUsableArea 1 0 5 7\nBadColumns 2\nBadRows 4\n"
        "BadPixels 0 1 7 5\nPartialBadColumn 5 2 1 2\nPartialBadRow 2 1 3 4\n"
    )
    top = np.zeros(SHAPE, bool)
    top[0] = top[:, 2] = top[4] = top[1, 0] = top[5, 7] = True
    top[1:3, 5:7] = top[2, 3:5] = True
    assert read_defects(path, SHAPE).tolist() == top[::-1].tolist()
    twice = read_defects(path, (12, 16))  # super-resolution frames of that camera
    assert twice.tolist() == np.kron(top[::-1], np.ones((2, 2))).astype(bool).tolist()
    with pytest.raises(InconsistentDataError, match="for a camera of 8 x 6 pixels, the frames have 8 x 7"):
        read_defects(path, (7, 8))


def test_an_image_of_defects(tmp_path):
    image = np.zeros((1, *SHAPE), "i1")
    image[0, 2, 3] = 1
    write_mrc(tmp_path / "d.mrc", image, 0)
    assert read_defects(tmp_path / "d.mrc", SHAPE).tolist() == marked((2, 3))
    with pytest.raises(InconsistentDataError, match="has 8 x 6 pixels and the frames 6 x 8"):
        read_defects(tmp_path / "d.mrc", (8, 6))
