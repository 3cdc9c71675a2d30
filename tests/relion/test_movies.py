"""Movies are read, turned and added up as RELION does it: frames, gain references, electron events."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest

from cloudem.algorithms.gain import correct_frames, correction_of, orient_gain
from cloudem.io.movies.opening import open_movie
from cloudem.io.movies.references import read_gain
from tests.io.movies_files import eer_movie, write_mrc

STAR = """
data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
og1 1 1.0 300 2.7 0.1

data_movies

loop_
_rlnMicrographMovieName #1
_rlnOpticsGroup #2
{} 1
"""


@pytest.mark.parametrize(("name", "turns", "flip"), [("m.mrcs", 1, 2), ("m.tif", 3, 1), ("m.tif", 2, 0)])
def test_gains_lie_on_frames_as_relion_lays_them(tmp_path, relion, name, turns, flip):
    """A still movie, so that RELION's sum is that of the corrected frames."""
    rng = np.random.default_rng(0)
    frames = np.stack([rng.integers(5, 60, (64, 96)).astype(np.uint8)] * 3)
    if name.endswith(".tif"):
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / name, frames, photometric="minisblack", metadata=None, compression="lzw")
    else:
        write_mrc(tmp_path / name, frames.astype("i2"), 1)
    shape = (96, 64) if turns % 2 else (64, 96)
    write_mrc(tmp_path / "gain.mrc", rng.uniform(0.5, 1.5, (1, *shape)).astype("f4"), 2)
    (tmp_path / "m.star").write_text(STAR.format(name))
    relion(
        "run_motioncorr", "--i", "m.star", "--o", "out", "--use_own", "--gainref", "gain.mrc", "--gain_rot", str(turns),
        "--gain_flip", str(flip), "--patch_x", "1", "--patch_y", "1", "--skip_defect",
    )  # fmt: skip
    movie = open_movie(tmp_path / name)
    gain = orient_gain(read_gain(tmp_path / "gain.mrc").image, turns, flip)
    ours = correct_frames(movie.read(), correction_of(movie.shape, gain)).sum(axis=0)
    np.testing.assert_allclose(mrcfile.read(tmp_path / "out/m.mrc"), ours, rtol=1e-5)


@pytest.mark.parametrize("compression", [65000, 65001])
def test_electron_events_are_those_of_relion(tmp_path, relion, compression):
    """At 0.002 electrons a pixel, runs are longer than 255. RELION reads the detector's 4096 x 4096 pixels alone."""
    pytest.importorskip("tifffile")
    made = eer_movie(tmp_path / "m.eer", 2, (4096, 4096), compression, share=0.002)
    relion(
        "convert_to_tiff", "--i", "m.eer", "--o", "out", "--eer_grouping", "2", "--eer_upsampling", "1", "--eer_short"
    )
    theirs = open_movie(tmp_path / "out/m.tif").read()
    ours = open_movie(tmp_path / "m.eer", group=2).read()
    np.testing.assert_array_equal(ours, theirs)
    assert ours.sum() == sum(len(each[0]) for each in made)
