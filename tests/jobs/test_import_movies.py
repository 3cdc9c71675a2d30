"""Movies are imported by pattern, folder and table; what is wrong with one is said, and nothing is copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cloudem.algorithms.gain import correct_frames
from cloudem.cli import main
from cloudem.errors import CloudemError, MissingInputError, ParameterError, StoppedError
from cloudem.io.movies import checking
from cloudem.io.movies.opening import open_movie
from cloudem.io.movies.store import read_movies
from cloudem.io.storage.groups import has_group, read_group
from cloudem.io.storage.location import object_store, put
from cloudem.jobs.import_movies import ImportMovies
from cloudem.jobs.movie_table import movie_correction
from tests.io.movies_files import eer_movie, write_mrc
from tests.jobs.conftest import run

FRAMES, SHAPE = 6, (20, 30)
SCOPE = {"voltage_kV": 300.0, "cs_mm": 2.7}


def movie(path: Path, frames: int = FRAMES, shape: tuple[int, int] = SHAPE) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    return write_mrc(path, np.random.default_rng(0).poisson(3, (frames, *shape)).astype("i2"), 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(24):
        movie(tmp_path / f"frames/m{number:02d}.mrc")
    (tmp_path / "frames/readme.txt").write_text("not a movie")
    return tmp_path / "frames"


def imported(tmp_path: Path, movies: object, name: str = "out", **options: object):
    run(ImportMovies(movies=str(movies), out=str(tmp_path / name), **{**SCOPE, **options}))
    return read_movies(tmp_path / name)


def left_out(place: Path) -> dict[str, str]:
    arrays, _ = read_group(place, "result")
    if "left_out_movie" not in arrays:
        return {}
    names = (Path(each).name for each in arrays["left_out_movie"].tolist())
    return dict(zip(names, arrays["left_out_reason"].tolist(), strict=True))


def test_a_folder_with_movies_that_are_cut_short_of_frames_or_of_another_size(folder, tmp_path):
    path = folder / "m03.mrc"
    path.write_bytes(path.read_bytes()[:-500])
    (folder / "m06.mrc.mdoc").write_text("[FrameSet = 0]\nNumSubFrames = 8\nVoltage = 300\n")
    movie(folder / "m04.mrc", frames=4)
    movie(folder / "m05.mrc", shape=(20, 20))
    (folder / "m07.mrc").write_bytes(b"")
    write_mrc(tmp_path / "gain.mrc", np.ones((1, *SHAPE), "f4"), 2)
    table = imported(tmp_path, folder, gain=str(tmp_path / "gain.mrc"), voltage_kV=300.0)
    found = left_out(tmp_path / "out")
    assert sorted(found) == ["m03.mrc", "m05.mrc", "m06.mrc", "m07.mrc"]
    assert "it holds 5 whole frames of the 6" in found["m03.mrc"]
    assert found["m05.mrc"] == "has 20 x 20 pixels, and the gain reference 30 x 20"
    assert found["m06.mrc"] == "misses frames: it holds 6 of 8"
    assert "has 0 bytes" in found["m07.mrc"]
    assert (len(table), table["movie"].tolist()[0]) == (20, str(folder / "m00.mrc"))
    assert table["frames"].tolist() == [6, 6, 6, 4] + [6] * 16
    assert set(table["pixel_size"].tolist()) == {1.5}
    assert table["micrograph"].tolist()[:2] == ["m00", "m01"]
    kinds, attributes = read_group(tmp_path / "out", "result")
    assert kinds["kind_movies"].tolist() == [19, 1]
    assert (attributes["movie_count"], attributes["left_out_count"]) == (20, 4)
    assert "misses frames" in (tmp_path / "out/report.html").read_text()
    assert not has_group(tmp_path / "out", "listed")
    assert not has_group(tmp_path / "out", "parts")


def test_a_movie_that_is_being_written_is_said(folder, tmp_path, monkeypatch):
    opened = checking.open_movie

    def grows(url):
        found = opened(url)
        if url.endswith("m02.mrc"):
            with Path(url).open("ab") as file:
                file.write(b"more")
        return found

    monkeypatch.setattr(checking, "open_movie", grows)
    imported(tmp_path, folder)
    assert left_out(tmp_path / "out") == {"m02.mrc": "is still being written: it changed while it was looked at"}


def test_it_goes_on_after_a_stop_and_takes_up_what_came_later(folder, tmp_path, monkeypatch):
    checked, looked = [], checking.check_header

    def stops(url, *rest):
        checked.append(url)
        if len(checked) == 20:
            raise StoppedError("stopped")
        return looked(url, *rest)

    job = ImportMovies(movies=str(folder), out=str(tmp_path / "out"), **SCOPE)
    monkeypatch.setattr(checking, "check_header", stops)
    with pytest.raises(StoppedError):
        run(job)
    monkeypatch.setattr(checking, "check_header", looked)
    movie(folder / "m99.mrc")
    job = ImportMovies(movies=str(folder), out=str(tmp_path / "out"), **SCOPE)
    run(job)
    assert len(read_movies(tmp_path / "out")) == 25
    assert job.is_finished()


def test_what_came_later_or_was_completed_is_imported_by_the_same_command(folder, tmp_path, monkeypatch):
    whole = (folder / "m03.mrc").read_bytes()
    (folder / "m03.mrc").write_bytes(whole[:-500])
    first = imported(tmp_path, folder)
    assert len(first) == 23
    looked, checked = checking.check_header, []
    monkeypatch.setattr(
        checking, "check_header", lambda url, *rest: checked.append(Path(url).name) or looked(url, *rest)
    )
    (folder / "m03.mrc").write_bytes(whole)
    movie(folder / "deep/m00.mrc")
    movie(folder / "m050.mrc")
    second = imported(tmp_path, folder)
    assert second["micrograph"].tolist() == [
        *(f"m{number:02d}" for number in range(6)),
        "m050",
        *first["micrograph"].tolist()[5:],
    ]
    assert set(checked[3:]) - {"m00.mrc"} == {"m03.mrc", "m050.mrc"}, "behind the preflight, others are not read again"
    assert left_out(tmp_path / "out") == {}
    with pytest.raises(CloudemError, match="other parameters"):
        imported(tmp_path, folder, pre_exposure_e_per_A2=1.0)


def test_patterns_here_and_on_s3(folder, tmp_path, bucket):
    for name in ("a/m1.mrc", "a/m2.mrc", "b/m1.mrc", "b/x.txt"):
        put(object_store(f"s3://{bucket}"), f"grid/{name}", (folder / "m00.mrc").read_bytes())
    assert len(imported(tmp_path, folder / "m0[0-3]*.mrc", "here")) == 4
    table = imported(tmp_path, f"s3://{bucket}/grid/*/m1.mrc", "there")
    assert table["movie"].tolist() == [f"s3://{bucket}/grid/a/m1.mrc", f"s3://{bucket}/grid/b/m1.mrc"]
    assert table["micrograph"].tolist() == ["a/m1", "b/m1"]
    assert len(imported(tmp_path, f"s3://{bucket}/grid/**/*.mrc", "deep")) == 3
    assert len(imported(tmp_path, f"s3://{bucket}/grid/a", "folder")) == 2
    assert open_movie(table["movie"].tolist()[0]).read().shape == (FRAMES, *SHAPE)
    with pytest.raises(MissingInputError, match="matches no file"):
        imported(tmp_path, f"s3://{bucket}/grid/*.tif", "none")


STAR = """
data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
grid1 1 0.83 200 1.4 0.07

data_movies

loop_
_rlnMicrographMovieName #1
_rlnOpticsGroup #2
frames/m01.mrc 1
frames/m00.mrc 1
frames/gone.mrc 1
"""


def test_the_star_file_of_relion_3_1_and_of_3_0(folder, tmp_path):
    (tmp_path / "Import").mkdir()
    path = tmp_path / "Import/movies.star"
    path.write_text(STAR)
    options = {"voltage_kV": None, "cs_mm": None}
    table = imported(tmp_path, path, **options)
    assert [Path(each).name for each in table["movie"].tolist()] == ["m01.mrc", "m00.mrc"]
    (optics,) = table.optics
    assert (optics.name, optics.voltage, optics.spherical_aberration) == ("grid1", 200, pytest.approx(1.4e7))
    assert (optics.amplitude_contrast, table["pixel_size"].tolist()) == (0.07, [0.83, 0.83])
    assert left_out(tmp_path / "out") == {"gone.mrc": "is not there"}
    path.write_text("data_\n\nloop_\n_rlnMicrographMovieName #1\nframes/m01.mrc\n")
    assert imported(tmp_path, path, "old", pixel_size_A=1.1)["pixel_size"].tolist() == [1.1]
    path.write_text(STAR.replace("frames/m0", "nowhere/m0"))
    with pytest.raises(MissingInputError, match="give the folder that the names start from with --project-folder"):
        imported(tmp_path, path, "none", **options)


def test_relions_own_tables_of_micrographs(shared_data, tmp_path):
    table = tmp_path / "corrected.star"
    table.write_bytes((shared_data / "formats/relion313_corrected_micrographs.star").read_bytes())
    movie(tmp_path / "r2kb3/m2kb.mrc", frames=1)
    found = imported(tmp_path, table, voltage_kV=None, cs_mm=None)
    assert (found["micrograph"].tolist(), found["frames"].tolist()) == (["r2kb3/m2kb.mrc"], [1])


def test_an_exposure_file_of_cryosparc(folder, tmp_path, shared_data):
    fields = [
        ("uid", "<u8"), ("movie_blob/path", "S40"), ("movie_blob/shape", "<u4", (3,)), ("movie_blob/psize_A", "<f4"),
        ("mscope_params/accel_kv", "<f4"), ("mscope_params/cs_mm", "<f4"), ("mscope_params/exp_group_id", "<u4"),
        ("mscope_params/total_dose_e_per_A2", "<f4"), ("gain_ref_blob/path", "S40"),
        ("gain_ref_blob/flip_y", "<u4"),
    ]  # fmt: skip
    rows = np.zeros(2, fields)
    rows["movie_blob/path"] = [b"frames/m00.mrc", b">frames/m01.mrc"]
    rows["movie_blob/shape"] = [[6, 20, 30], [7, 20, 30]]
    rows["movie_blob/psize_A"] = 0.66
    rows["mscope_params/accel_kv"], rows["mscope_params/cs_mm"] = 300, 2.7
    rows["mscope_params/total_dose_e_per_A2"] = 42
    with (tmp_path / "exposures.cs").open("wb") as file:
        np.save(file, rows)
    options = {"voltage_kV": None, "cs_mm": None}
    table = imported(tmp_path, tmp_path / "exposures.cs", **options)
    assert left_out(tmp_path / "out") == {"m01.mrc": "misses frames: it holds 6 of 7"}
    assert (table["dose_per_frame"].tolist(), table["pixel_size"].tolist()) == ([7.0], [0.66])
    assert (table.optics[0].voltage, table["gain"].tolist()) == (300, [""])
    rows["gain_ref_blob/path"], rows["gain_ref_blob/flip_y"] = b"gain.mrc", 1
    with (tmp_path / "exposures.cs").open("wb") as file:
        np.save(file, rows)
    write_mrc(tmp_path / "gain.mrc", np.ones((1, *SHAPE), "f4"), 2)
    table = imported(tmp_path, tmp_path / "exposures.cs", "gained", **options)
    assert table["gain"].tolist() == [str(tmp_path / "gain.mrc")]
    _, attributes = read_group(tmp_path / "gained", "result")
    assert any("flip_y: the gain reference is not turned" in line for line in attributes["warnings"])
    write_mrc(tmp_path / "gain.mrc", np.ones((1, 5, 5), "f4"), 2)
    with pytest.raises(ParameterError, match="and the gain reference 5 x 5"):
        imported(tmp_path, tmp_path / "exposures.cs", "refused", **options)
    with pytest.raises(CloudemError, match="no movie_blob/path"):
        imported(tmp_path, shared_data / "formats/4k_dataset.cs", "none")


def test_mdoc_files_beside_movies_and_of_a_series(folder, tmp_path):
    text = "T = SerialEM\nVoltage = 200\n\n[FrameSet = 0]\nPixelSpacing = 0.9\nNumSubFrames = 6\n"
    text += "FrameDosesAndNumber = 1.5 6\n"
    for path in sorted(folder.glob("*.mrc")):
        path.with_suffix(".mdoc").write_text(
            f"{text}StagePosition = 1 2\nTiltAngle = 30\nDateTime = 01-Feb-24  10:11:12\n"
        )
    table = imported(tmp_path, folder, voltage_kV=None)
    assert (table.optics[0].voltage, set(table["dose_per_frame"].tolist())) == (200, {1.5})
    assert (table["pixel_size"][0], table["stage_x"][0], table["acquired"].tolist()[0]) == (
        0.9,
        1,
        "2024-02-01T10:11:12",
    )
    assert table["stage_tilt"][0] == pytest.approx(np.pi / 6)
    series = tmp_path / "frames/ts.mdoc"
    series.write_text("Voltage = 300\n[ZValue = 0]\nSubFramePath = X:\\a\\m01.mrc\nNumSubFrames = 6\n")
    assert imported(tmp_path, series, "series")["micrograph"].tolist() == ["m01"]


def test_eer_in_groups_of_a_dose_with_a_gain_that_divides(tmp_path):
    (tmp_path / "frames").mkdir()
    made = eer_movie(tmp_path / "frames/a.eer", 7, (32, 48))
    gain = np.full((1, 48, 32), 2.0, "f4")
    gain[0, 0, 0] = 0
    write_mrc(tmp_path / "gain.mrc", gain, 2)
    options = {"pixel_size_A": 0.7, "dose_per_frame_e_per_A2": 0.04, "eer_frame_dose_e_per_A2": 0.12}
    table = imported(tmp_path, tmp_path / "frames", gain=str(tmp_path / "gain.mrc"), gain_rotation=1, **options)
    assert (table["format"].tolist(), table["group"].tolist(), table["frames"].tolist()) == (["EER"], [3], [7])
    found = open_movie(table["movie"].tolist()[0], group=3, upsampling=2)
    corrected = correct_frames(found.read(), movie_correction(table, 0, upsampling=2))
    bad = np.zeros((64, 96), bool)
    bad[:2, -2:] = True  # the first pixel after a turn clockwise
    np.testing.assert_allclose(corrected[:, ~bad], found.read()[:, ~bad] / 2)
    assert found.read().sum() == sum(len(each[0]) for each in made[:6])
    eer_movie(tmp_path / "frames/b.eer", 2, (32, 48))
    assert len(imported(tmp_path, tmp_path / "frames", "short", eer_group=3, pixel_size_A=0.7)) == 1
    assert left_out(tmp_path / "short") == {"b.eer": "has 2 raw frames, fewer than one group of 3"}
    _, attributes = read_group(tmp_path / "short", "result")
    assert any("up to 1 (14.3 % of all raw frames)" in line for line in attributes["warnings"])
    with pytest.raises(ParameterError, match="needs the dose of a raw frame"):
        imported(tmp_path, tmp_path / "frames", "none", pixel_size_A=0.7, eer_frame_dose_e_per_A2=1.0)


def wrong(folder: Path) -> list[tuple[dict, str]]:
    write_mrc(folder.parent / "gain.mrc", np.ones((1, 30, 20), "f4"), 2)
    (folder.parent / "defects.txt").write_text("29 0 2 1\n")
    (folder / "empty").mkdir(exist_ok=True)
    return [
        ({"voltage_kV": None}, "nothing says the voltage of .*; give --voltage-kV"),
        ({"cs_mm": None}, "nothing says the spherical aberration"),
        ({"pixel_size_A": 40.0}, "0.1 to 20 are plausible"),
        ({"voltage_kV": 300_000.0}, "a voltage of 300000 kV came, 30 to 3000 are plausible"),
        ({"gain": str(folder.parent / "gain.mrc")}, "has 30 x 20 pixels, and the gain reference 20 x 30; turn it"),
        ({"defects": str(folder.parent / "defects.txt")}, "is not within 30 x 20"),
        ({"eer_group": 2, "eer_frame_dose_e_per_A2": 1.0}, "say the same"),
        ({"gain": str(folder.parent / "none.mrc")}, "does not exist"),
        ({"movies": str(folder / "none")}, "does not exist"),
        ({"movies": str(folder / "empty")}, "holds no movies"),
        ({"movies": str(folder.parent / "*.eer")}, "matches no file"),
    ]


def test_what_is_wrong_is_said_before_anything_is_written(folder, tmp_path):
    for options, said in wrong(folder):
        values = {"movies": str(folder), "out": str(tmp_path / "new"), **SCOPE, **options}
        with pytest.raises(CloudemError, match=said):
            run(ImportMovies(**values))
        assert not (tmp_path / "new").exists()


def test_if_none_can_be_used_the_first_says_why(folder, tmp_path):
    for path in folder.glob("*.mrc"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MissingInputError, match=r"none of 24 movies can be used; the first, .*m00.mrc, is trunc"):
        imported(tmp_path, folder)


def test_on_the_command_line_with_dashes(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = [
        "import-movies",
        "frames/*.mrc",
        "--voltage-kV",
        "300",
        "--cs-mm",
        "2.7",
        "--out",
        "movies",
        "--executor",
        "serial",
    ]
    for more, said in (["--dry-run"], "headers: 24 movies"), ([], "24 of 24 movies imported"), ([], "already finished"):
        with pytest.raises(SystemExit) as end:
            main([*line, *more])
        assert not end.value.code
        assert said in capsys.readouterr().out
    shutil.rmtree("frames")
    assert len(read_movies("movies")) == 24


def test_markers_ages_and_movies_that_are_gone(folder, tmp_path):
    for path in sorted(folder.glob("*.mrc"))[:3]:
        Path(f"{path}.done").touch()
    assert len(imported(tmp_path, folder, "marked", marker=".done")) == 3
    assert set(left_out(tmp_path / "marked").values()) == {
        f"waits for its marker m{n:02d}.mrc.done" for n in range(3, 24)
    }
    os.utime(folder / "m05.mrc", (1e9, 1e9))
    assert imported(tmp_path, folder, "old", least_age_s=60.0)["micrograph"].tolist() == ["m05"]
    (folder / "m05.mrc").unlink()
    for number in (4, 6):
        os.utime(folder / f"m{number:02d}.mrc", (1e9, 1e9))
    os.utime(folder / "m07.mrc", (2e10, 2e10))
    assert imported(tmp_path, folder, "old", least_age_s=60.0)["micrograph"].tolist() == ["m04", "m05", "m06"]
    assert "set the clocks right" in left_out(tmp_path / "old")["m07.mrc"]
