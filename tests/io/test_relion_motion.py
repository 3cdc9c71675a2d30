"""RELION's motion files: written and read back, and one that RELION wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import FormatError
from cloudem.io.formats.relion_motion import MotionFile, read_motion_star, write_motion_star


@pytest.mark.parametrize("local", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, local: bool) -> None:
    rng = np.random.default_rng(0)
    track = rng.normal(size=(7, 2)) * 5
    track[0], track[3] = 0, np.nan
    coefficients = rng.normal(size=(2, 6, 3)) * [1, 1e-2, 1e-4] if local else None
    given = MotionFile("frames/a b.tif", (7, 300, 400), 0.83, 1.2, 2.0, 200.0, track, coefficients)
    write_motion_star(tmp_path / "a.star", given)
    read = read_motion_star(tmp_path / "a.star")
    assert read[:6] == given[:6]
    np.testing.assert_allclose(read.track, track, atol=1e-6)
    assert (read.coefficients is None) == (not local)
    if read.coefficients is not None:
        np.testing.assert_allclose(read.coefficients, coefficients, rtol=1e-5, atol=1e-6)
    assert " -nan" not in (tmp_path / "a.star").read_text()


def test_a_file_of_relion(shared_data: Path, tmp_path: Path) -> None:
    read = read_motion_star(shared_data / "formats/relion313_motion_local.star")
    assert read.shape == (24, 2048, 2048)
    assert read.track[1].tolist() == [1.45430, -1.403333]
    assert read.coefficients is not None
    assert read.coefficients[0, 1].tolist() == [-0.915150, 0.06271, -0.001392]
    write_motion_star(tmp_path / "again.star", read)
    again = read_motion_star(tmp_path / "again.star")
    np.testing.assert_allclose(again.track, read.track, atol=1e-6)


def test_what_is_no_motion_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.star").write_text("data_micrographs\n\nloop_\n_rlnMicrographName #1\na.mrc\n")
    with pytest.raises(FormatError, match="no motion file"):
        read_motion_star(tmp_path / "a.star")
