"""SerialEM's mdoc files: real ones, and what is wrong with others."""

from __future__ import annotations

import math

import pytest

from cloudem.errors import FormatError, MissingInputError
from cloudem.io.formats.mdoc import movies_of, read_mdoc


def test_a_frame_set_of_one_exposure(shared_data):
    (movie,) = movies_of(read_mdoc(shared_data / "formats" / "frame_set_single.mdoc"))
    assert movie.file == "s_mmm_00993_33.0_Oct08_07.39.05.tif"
    assert (movie.frames, movie.dose_per_frame, movie.pixel_size, movie.voltage) == (12, 0.63824, 1.2827, 300)
    assert movie.stage == (-142.82, -457.442, -13.7196)
    assert (movie.tilt_angle, movie.magnification, movie.defocus) == (32.984, 33000, pytest.approx(50828.6))
    assert (movie.acquired, movie.gain) == ("2021-10-08T07:39:08", "SuperRef_s_mmm_00000_-15.0_Oct08_01.59.24.dm4")


def test_a_frame_set_of_several_exposures_is_one_movie(shared_data):
    (movie,) = movies_of(read_mdoc(shared_data / "formats" / "frame_set_multiple.mdoc"))
    assert (movie.frames, movie.dose_per_frame) == (243, 0.63882)


def test_a_tilt_series_has_a_movie_for_each_image(shared_data):
    movies = movies_of(read_mdoc(shared_data / "formats" / "tilt_series.mdoc"))
    assert movies[0].file == "TS_01_000_0.0.mrc"
    assert [movie.frames for movie in movies] == [8] * len(movies)
    assert (movies[0].voltage, movies[0].pixel_size) == (0, 0)  # none is stated; 5.4 Å are those of the binned image
    assert math.isnan(movies[0].dose_per_frame)
    assert movies[0].acquired == "2015-11-30T15:21:38"


@pytest.mark.parametrize("name", ["montage_section.mdoc", "montage_section_multiple.mdoc"])
def test_a_montage_has_pieces_and_no_movies(shared_data, name):
    mdoc = read_mdoc(shared_data / "formats" / name)
    assert movies_of(mdoc) == []
    assert len(mdoc.sections) > 1
    assert mdoc.values["Montage"] == "1"
    assert "SerialEM" in mdoc.titles[0]


def test_what_is_no_mdoc_is_said(tmp_path):
    path = tmp_path / "m.mdoc"
    with pytest.raises(MissingInputError):
        read_mdoc(path)
    path.write_text("[FrameSet = 0]\nNumSubFrames = many\n")
    with pytest.raises(FormatError, match=r"\[FrameSet = 0\]: NumSubFrames is 'many'; 1 numbers"):
        movies_of(read_mdoc(path))
    path.write_text("[FrameSet = 0]\nFrameDosesAndNumber = 1.0\n")
    with pytest.raises(FormatError, match="a dose that is no number"):
        movies_of(read_mdoc(path))
    path.write_text("no such thing\n")
    with pytest.raises(FormatError, match="line 1 is neither"):
        read_mdoc(path)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="is empty"):
        read_mdoc(path)


def test_doses_are_means_over_frames(tmp_path):
    path = tmp_path / "m.mdoc"
    path.write_text("[FrameSet = 0]\nNumSubFrames = 4\nExposureDose = 10\nFrameDosesAndNumber = 1.0 3 2.0 1\n")
    assert movies_of(read_mdoc(path))[0].dose_per_frame == 1.25
    path.write_text("[FrameSet = 0]\nNumSubFrames = 4\nExposureDose = 10\n")
    assert movies_of(read_mdoc(path))[0].dose_per_frame == 2.5
    path.write_text("[FrameSet = 0]\nNumSubFrames = 4\nExposureDose = 0\n")
    assert math.isnan(movies_of(read_mdoc(path))[0].dose_per_frame)
