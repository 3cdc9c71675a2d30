"""Movies become micrographs, each by itself; what is wrong with one is said and stops no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudem.cli import main
from cloudem.io.formats.relion_motion import read_motion_star
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.storage.groups import read_group
from cloudem.jobs.correct_motion.job import CorrectMotion
from cloudem.jobs.import_movies import ImportMovies
from cloudem.testing.movies import simulated_movie, simulated_track
from tests.io.movies_files import eer_movie, write_mrc
from tests.jobs.conftest import run

SCOPE = {"voltage_kV": 300.0, "cs_mm": 2.7, "pixel_size_A": 1.0}
TRACK = simulated_track(8, 5.0, 1)
MOVIE = simulated_movie(256, 8, 1, track=TRACK)


def write_movie(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write_mrc(path, MOVIE.frames.astype("i2"), 1)


def imported(folder: Path, out: Path, **options: object) -> str:
    run(ImportMovies(movies=str(folder), out=str(out), **{**SCOPE, "dose_per_frame_e_per_A2": 1.0, **options}))
    return str(out)


def test_from_movies_to_micrographs_and_on_when_more_come(tmp_path: Path) -> None:
    folder, out = tmp_path / "frames", tmp_path / "motion"
    for name in ("a", "b", "c"):
        write_movie(folder / f"{name}.mrc")
    movies = imported(folder, tmp_path / "movies")
    whole = (folder / "b.mrc").read_bytes()
    (folder / "b.mrc").write_bytes(whole[:-3000])
    (folder / "c.mrc").unlink()
    job = CorrectMotion(movies=movies, out=str(out), motion_files=str(tmp_path / "stars"))
    run(job)
    table = read_micrograph_table(out)
    assert table["micrograph"].tolist() == ["a", "b", "c"]
    assert [bool(problem) for problem in table["problem"].tolist()] == [False, True, True]
    assert "changed since it was imported" in table["problem"][1]
    assert "does not exist" in table["problem"][2]
    assert table["dose"][0] == 8
    assert table["motion_total"][0] == pytest.approx(np.hypot(*np.diff(TRACK, axis=0).T).sum(), rel=0.1)
    assert table["motion_early"][0] + table["motion_late"][0] == pytest.approx(table["motion_total"][0])
    assert table["bits"][0] > 1000
    image = open_micrograph_image(table["image"][0])
    assert image.shape == (256, 256) == (table["height"][0], table["width"][0])
    assert image.kinds == ("sum", "unweighted", "even", "odd")
    assert image.pixel_size == 1
    total = image.read("unweighted")
    assert total.mean() == pytest.approx(MOVIE.frames.mean() * 8, rel=0.02)
    moved = read_motion_star(tmp_path / "stars/a.star")
    wrong = moved.track - TRACK
    assert np.sqrt(((wrong - wrong.mean(axis=0)) ** 2).mean()) < 0.15
    arrays, said = read_group(out, "result")
    assert (said["micrograph_count"], said["left_out_count"]) == (3, 2)
    np.testing.assert_allclose(np.column_stack([arrays["each_x"], arrays["each_y"]]), moved.track, atol=1e-5)
    page = (out / "report.html").read_text()
    for words in ("Tracks", "Information", "Left out", "changed since"):
        assert words in page
    (folder / "b.mrc").write_bytes(whole)
    write_movie(folder / "c.mrc")
    write_movie(folder / "d.mrc")
    imported(folder, tmp_path / "movies2")
    run(CorrectMotion(movies=imported(folder, tmp_path / "movies2"), out=str(tmp_path / "motion2")))
    assert set(read_micrograph_table(tmp_path / "motion2")["problem"].tolist()) == {""}


def test_gain_bin_and_no_weights(tmp_path: Path) -> None:
    """With a gain of 2 everywhere, but for a defect, sums have twice the counts and no hole."""
    write_movie(tmp_path / "frames/a.mrc")
    gain = np.full((256, 256), 2, np.float32)
    gain[100, 100] = 0
    write_mrc(tmp_path / "gain.mrc", gain[None], 2)
    movies = imported(tmp_path / "frames", tmp_path / "movies", gain=str(tmp_path / "gain.mrc"))
    run(CorrectMotion(movies=movies, out=str(tmp_path / "motion"), weights="none", bin=2.0, local=False))
    table = read_micrograph_table(tmp_path / "motion")
    assert (table["height"][0], table["width"][0], table["pixel_size"][0]) == (128, 128, 2)
    assert table["local_reason"][0] == "it was not asked for"
    image = open_micrograph_image(table["image"][0])
    assert image.kinds == ("sum", "even", "odd")
    assert image.read().mean() == pytest.approx(2 * 4 * 8 * MOVIE.frames.mean(), rel=0.02)


def test_eer_in_groups_with_upsampling(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    eer_movie(tmp_path / "frames/a.eer", frames=12, shape=(64, 64))
    movies = imported(tmp_path / "frames", tmp_path / "movies", eer_group=3)
    run(CorrectMotion(movies=movies, out=str(tmp_path / "motion"), eer_upsampling=2))
    table = read_micrograph_table(tmp_path / "motion")
    assert (table["frames"][0], table["height"][0], table["pixel_size"][0], table["dose"][0]) == (4, 128, 0.5, 12)


def test_the_command_line_says_what_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_movie(tmp_path / "frames/a.mrc")
    movies = imported(tmp_path / "frames", tmp_path / "movies")
    with pytest.raises(SystemExit, match="0"):
        main(["correct-motion", movies, "--out", str(tmp_path / "motion"), "--dry-run"])
    assert "1 movies of 8 frames of 256 x 256 pixels" in capsys.readouterr().out
