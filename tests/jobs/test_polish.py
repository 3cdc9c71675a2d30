"""``cloudem polish``: from movies, their motion and refined particles to images that were summed along tracks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.cli import main
from cloudem.errors import (
    FormatError,
    InconsistentDataError,
    MissingColumnError,
    MissingInputError,
    OutputExistsError,
    ParameterError,
    StoppedError,
)
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.io.movies.store import MOVIE_TABLE, read_movies
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import has_group, list_groups, read_group, write_group
from cloudem.io.storage.tables import table_to_arrays
from cloudem.jobs.base import Inputs
from cloudem.jobs.correct_motion.job import CorrectMotion
from cloudem.jobs.extract import Extract
from cloudem.jobs.import_movies import ImportMovies
from cloudem.jobs.mapping import PARTS
from cloudem.jobs.polish.job import Polish
from cloudem.jobs.polish.run import exposures_of
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.poses import matrix_to_euler
from cloudem.testing.particle_movies import ParticleScene, simulated_particle_movie
from tests.io.movies_files import write_mrc
from tests.jobs.conftest import assert_same_bits, needs, quiet_context, run

BOX, PIXEL, FRAMES, COUNT = 32, 4.0, 6, 14
SCENE = ParticleScene(
    size=256, frames=FRAMES, pixel_size=PIXEL, dose=2.0, count=COUNT, apart=170.0, contrast=4.0, drift=3.0, local=0.5,
    velocity=1.5, together=300.0,
)  # fmt: skip


@dataclass(frozen=True)
class Project:
    """Results of what comes before, and the true motion of the particles, Å, ``(n, frames, 2)``."""

    folder: Path
    moved: np.ndarray

    def job(self, out: Path, **values: Any) -> Polish:
        given = {"particles": str(self.folder / "rec"), "motion": str(self.folder / "motion"), "out": str(out)}
        return Polish(**{**given, "velocity_A_per_dose": 1.5, "together_A": 300.0, **values})


def known(movies: list[Any]) -> Particles:
    rot, tilt, psi = matrix_to_euler(np.concatenate([movie.rotations for movie in movies]))
    places = np.concatenate([movie.places for movie in movies]).astype(float)
    defocus = np.concatenate([movie.defocus for movie in movies])
    shifts = np.concatenate([movie.moved for movie in movies])
    shifts = shifts.mean(axis=1) - np.repeat([movie.moved.mean(axis=(0, 1)) for movie in movies], COUNT, axis=0)
    optics = OpticsGroup("o", 300.0, 2.7e7, 0.1, {"rlnMicrographPixelSize": f"{PIXEL}"})
    return Particles((optics,), {}).with_columns(
        optics_group=np.zeros(len(rot), np.int32), micrograph=np.repeat(["a", "b"], COUNT), coordinate_x=places[:, 0],
        coordinate_y=places[:, 1], defocus_u=defocus, defocus_v=defocus, defocus_angle=np.zeros(len(rot)), rot=rot,
        tilt=tilt, psi=psi, shift_x=shifts[:, 0], shift_y=shifts[:, 1], half_set=1 + np.arange(len(rot)) % 2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("polish")
    density = density_of_atoms(demo_molecule(100.0, seed=3), BOX, PIXEL)
    movies = [simulated_particle_movie(density, SCENE, seed) for seed in (3, 4)]
    (folder / "frames").mkdir()
    for name, movie in zip("ab", movies, strict=True):
        write_mrc(folder / "frames" / f"{name}.mrc", movie.frames.astype("i2"), 1)
    scope = {"voltage_kV": 300.0, "cs_mm": 2.7, "pixel_size_A": PIXEL, "dose_per_frame_e_per_A2": 2.0}
    run(ImportMovies(movies=str(folder / "frames"), out=str(folder / "movies"), **scope))
    run(CorrectMotion(movies=str(folder / "movies"), out=str(folder / "motion"), local=False))
    table = known(movies)
    blank = np.random.default_rng(0).normal(size=(len(table), 16, 16)).astype(np.float32)
    write_particles(folder / "known", table, [blank], box=16, pixel_size=PIXEL)
    cut = {"micrographs": str(folder / "motion"), "coordinates": str(folder / "known"), "box_px": BOX, "edges": "pad"}
    run(Extract(**cut, out=str(folder / "particles")))
    run(Reconstruct(particles=str(folder / "particles"), out=str(folder / "rec"), group_size=50))
    return Project(folder, np.concatenate([movie.moved for movie in movies]))


@pytest.fixture(scope="module")
def polished(project: Project) -> Path:
    out = project.folder / "polished"
    run(project.job(out))
    return out


def track_error(found: np.ndarray, truth: np.ndarray) -> float:
    wrong = found - truth
    return float(np.sqrt(((wrong - wrong.mean(axis=1, keepdims=True)) ** 2).mean()))


def test_tracks_are_found_and_the_table_goes_on(project: Project, polished: Path) -> None:
    arrays, said = read_group(polished, "result")
    whole = read_group(project.folder / "motion", "result")[0]
    before = np.stack([whole["each_x"], whole["each_y"]], axis=-1).reshape(2, FRAMES, 2).repeat(COUNT, axis=0)
    found = np.stack([arrays["track_x"], arrays["track_y"]], axis=-1)
    assert track_error(found, project.moved) < 0.6 * track_error(before, project.moved)
    one, other = open_particles(project.folder / "rec"), open_particles(polished)
    assert (len(other), other.box, other.pixel_size) == (2 * COUNT, BOX, PIXEL)
    for name in ("rot", "shift_x", "defocus_u", "half_set", "coordinate_x", "micrograph"):
        np.testing.assert_array_equal(one.particles[name], other.particles[name])
    old, new = (store.read_images(np.arange(2 * COUNT)).reshape(2 * COUNT, -1) for store in (one, other))
    alike = [np.corrcoef(pair)[0, 1] for pair in zip(old, new, strict=True)]
    assert 0.3 < np.median(alike) < 0.999
    assert said["particle_count"] == 2 * COUNT
    assert arrays["frame_weights"].shape == (2, FRAMES, BOX // 2 + 1)
    assert arrays["signal_along"][3:].sum() > 1.05 * arrays["signal_before"][3:].sum() > 0
    page = (polished / "report.html").read_text()
    for words in ("Tracks", "undo a blur", "Weights of frames", "Motion of particles", "Particles"):
        assert words in page
    assert not list_groups(polished, PARTS)


def test_polished_maps_are_nearer_to_the_molecule(project: Project, polished: Path, tmp_path: Path) -> None:
    run(Reconstruct(particles=str(polished), out=str(tmp_path / "rec"), group_size=50))
    truth = density_of_atoms(demo_molecule(100.0, seed=3), BOX, PIXEL)
    agreement = []
    for place in (project.folder / "rec", tmp_path / "rec"):
        found = read_group(place, "result")[0]["map_unfiltered"]
        agreement.append(np.corrcoef(found.ravel(), truth.ravel())[0, 1])
    assert agreement[1] > agreement[0] + 0.01


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(project: Project, polished: Path, tmp_path: Path) -> None:
    """Stopped after all tracks and one movie's images, it goes on with two workers."""
    out, asked = tmp_path / "out", iter((False, True))
    with pytest.raises(StoppedError):
        project.job(out).run(replace(quiet_context(out), asked_to_stop=lambda: next(asked)))
    assert len(list_groups(out, PARTS)) == 3
    assert not has_group(out, "result")
    run(project.job(out), lambda: DaskExecutor(threads=2))
    assert_same_bits(out, polished)
    np.testing.assert_array_equal(*(open_particles(place).read_images(np.arange(5)) for place in (out, polished)))
    with pytest.raises(OutputExistsError, match="other parameters"):
        run(project.job(out, seed=1))


def test_windows_of_another_size_and_a_movie_that_is_lost(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    shutil.copytree(project.folder / "frames", folder)
    movies = read_movies(project.folder / "movies")
    moved = movies.with_columns(movie=[str(folder / f"{name}.mrc") for name in "ab"]).without_columns(["file_version"])
    write_group(tmp_path / "movies", "", {}, {"kind": "result", "job": "import_movies"})
    write_group(tmp_path / "movies", MOVIE_TABLE, *table_to_arrays(moved))
    (folder / "b.mrc").unlink()
    job = project.job(tmp_path / "out", movies=str(tmp_path / "movies"), box_px=40, scale_to_px=20)
    assert needs(job).makes[""].box == 20
    run(job)
    store = open_particles(tmp_path / "out")
    assert (len(store), store.box, store.pixel_size) == (COUNT, 20, 8.0)
    images = store.read_images(np.arange(COUNT))
    assert np.isfinite(images).all()
    arrays = read_group(tmp_path / "out", "result")[0]
    assert arrays["left_out_micrograph"].tolist() == ["b"]
    assert "does not exist" in arrays["left_out_reason"][0]


def test_movies_of_other_doses_have_weights_of_their_own(project: Project, tmp_path: Path) -> None:
    """Those that differ by rounding have not, and the exposure of the most particles is the first."""
    one, two = project.job(tmp_path / "out").given.entries()
    rounded = one._replace(movie=one.movie.with_columns(dose_per_frame=np.array([2.05])))
    other = two._replace(movie=two.movie.with_columns(dose_per_frame=np.array([1.0])), places=two.places[:-1])
    good, bad = {"problem": np.array([""])}, {"problem": np.array(["is lost"])}
    assert exposures_of([one, rounded], [good, good]).tolist() == [0, 0]
    assert exposures_of([other, one, two, rounded], [good, bad, good, good]).tolist() == [1, -1, 0, 0]
    before = two._replace(movie=two.movie.with_columns(pre_exposure=np.array([10.0])))
    unknown = two._replace(movie=two.movie.without_columns(["dose_per_frame"]))
    assert exposures_of([one, before, unknown, unknown], [good] * 4).tolist() == [1, 2, 0, 0]
    with pytest.raises(InconsistentDataError, match="no movie can be used; the first: is lost"):
        exposures_of([one], [bad])


def test_a_movie_of_coarser_pixels_than_the_images_is_refused_before_anything_is_written(
    project: Project, tmp_path: Path
) -> None:
    movies = read_movies(project.folder / "movies").with_columns(pixel_size=np.array([PIXEL, 1.25 * PIXEL]))
    write_group(tmp_path / "movies", "", {}, {"kind": "result", "job": "import_movies"})
    write_group(tmp_path / "movies", MOVIE_TABLE, *table_to_arrays(movies))
    job = project.job(tmp_path / "out", movies=str(tmp_path / "movies"), box_px=40)
    with pytest.raises(InconsistentDataError, match=r"pixels of 5 Å of b are 32 there; give --scale-to-px 32"):
        job.check(Inputs(), print)
    assert not (tmp_path / "out").exists()
    job = project.job(tmp_path / "out", movies=str(tmp_path / "movies"), box_px=40, scale_to_px=32)
    job.check(Inputs(), print)


def test_what_cannot_be_polished_is_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="give those of correct-motion"):
        project.job(tmp_path / "out", motion=str(project.folder / "rec")).check(Inputs(), print)
    with pytest.raises(MissingInputError, match="half-maps"):
        project.job(tmp_path / "out", particles=str(project.folder / "particles")).check(Inputs(), print)
    with pytest.raises(ParameterError, match="--box-px 33 is odd"):
        project.job(tmp_path / "out", box_px=33).check(Inputs(), print)
    with pytest.raises(InconsistentDataError, match=r"no movie can be used.*the other --contrast"):
        run(project.job(tmp_path / "out", contrast="bright"))
    bare = Particles(
        *(getattr(open_particles(project.folder / "particles").particles, name) for name in ("optics", "columns"))
    )
    bare = bare.without_columns(["half_set", "store_row"])
    write_particles(tmp_path / "bare", bare, [np.ones((2 * COUNT, 16, 16), np.float32)], box=16, pixel_size=PIXEL)
    with pytest.raises(MissingColumnError, match="half-sets"):
        project.job(tmp_path / "out", particles=str(tmp_path / "bare"), halves=str(project.folder / "rec")).check(
            Inputs(), print
        )


def test_the_command_line_says_what_is_planned(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(project.folder / "rec"), "--motion", str(project.folder / "motion")]
    with pytest.raises(SystemExit, match="0"):
        main(["polish", *places, "--out", str(tmp_path / "out"), "--dry-run"])
    assert "28 particles in 2 movies of 6 frames, which are read twice" in capsys.readouterr().out
