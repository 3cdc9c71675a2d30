"""The result of a job that holds particles is a particle store for the next job, with the images of another."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError
from cloudem.io.particle_store import RESULT_TABLE, ImageSource, open_particles, write_particles
from cloudem.io.storage.groups import read_attributes, write_group
from cloudem.io.storage.relative import relative, resolved
from cloudem.io.storage.tables import table_to_arrays
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles

BOX, COUNT = 8, 40
KEPT = np.array([3, 4, 11, 39])


def make_store(url: Path, date: str) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((COUNT, BOX, BOX)).astype(np.float32)
    table = Particles((OpticsGroup("o", 300.0, 2.7e7, 0.1, {}),), {}).with_columns(rot=np.arange(COUNT))
    kept = {"box": BOX, "pixel_size": 2.0, "dtype": "float32", "attributes": {"date": date}}
    write_particles(url, table, [images], **kept)
    return images


def make_result(url: Path, particles: Path, rows: np.ndarray = KEPT) -> None:
    """Write what a job leaves that used some of the particles of a store, or of a result."""
    store = open_particles(str(particles))
    table = store.particles.take(rows)
    there = store.particles["store_row"] if "store_row" in store.particles else np.arange(COUNT)
    arrays, attributes = table_to_arrays(table.with_columns(store_row=there[rows]))
    write_group(url, RESULT_TABLE, arrays, {**attributes, "images": ImageSource.of(store, str(url))._asdict()})
    write_group(url, "", {}, {"kind": "result", "job": "refine3d", "parameters": {"particles": str(particles)}})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    make_store(tmp_path / "project" / "p.zarr", "today")
    make_result(tmp_path / "project" / "refine", tmp_path / "project" / "p.zarr")
    return tmp_path / "project"


def test_rows_of_a_result_have_their_images(project: Path) -> None:
    images = open_particles(project / "p.zarr").read_images(KEPT)
    store = open_particles(project / "refine")
    assert len(store) == len(KEPT)
    assert (store.box, store.pixel_size) == (BOX, 2.0)
    np.testing.assert_array_equal(store.read_images([2, 0, 2]), images[[2, 0, 2]])
    np.testing.assert_array_equal(store.particles["rot"], KEPT)
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read_images([3]), images[[3]])


def test_a_result_of_a_result_still_has_the_images_of_the_store(project: Path) -> None:
    make_result(project / "again", project / "refine", np.array([1, 3]))
    store = open_particles(project / "again")
    assert store.image_url == str(project / "p.zarr")
    np.testing.assert_array_equal(store.read_images([0, 1]), open_particles(project / "p.zarr").read_images([4, 39]))


def test_a_lost_shard_loses_the_rows_that_it_held(project: Path) -> None:
    (shard,) = (path for path in (project / "p.zarr" / "images" / "c").rglob("*") if path.is_file())
    shard.unlink()
    (lost,) = open_particles(project / "refine").damaged()
    np.testing.assert_array_equal(lost.rows, np.arange(len(KEPT)))


def test_a_project_may_be_moved_as_a_whole(project: Path) -> None:
    images = open_particles(project / "p.zarr").read_images(KEPT)
    moved = project.rename(project.with_name("moved"))
    np.testing.assert_array_equal(open_particles(moved / "refine").read_images(np.arange(4)), images)


def test_images_that_are_gone_or_others_by_now_are_named(project: Path) -> None:
    shutil.rmtree(project / "p.zarr")
    with pytest.raises(MissingInputError, match=r"p.zarr does not exist, which holds the images of .*refine"):
        open_particles(project / "refine")
    make_store(project / "p.zarr", "tomorrow")
    with pytest.raises(InconsistentDataError, match="made anew since"):
        open_particles(project / "refine")


def test_a_result_without_particles_is_none(project: Path) -> None:
    write_group(project / "post", "", {}, {"kind": "result", "job": "postprocess"})
    with pytest.raises(FormatError, match="result"):
        open_particles(project / "post")
    write_group(project / "odd", RESULT_TABLE, {"rot": np.zeros(3)}, {"images": {"place": "x"}})
    write_group(project / "odd", "", {}, {"kind": "result"})
    with pytest.raises(FormatError, match="does not say where"):
        open_particles(project / "odd")


def test_rows_beyond_the_store_are_refused(project: Path) -> None:
    store = open_particles(project / "refine")
    arrays, attributes = table_to_arrays(store.particles.with_columns(store_row=KEPT + 2))
    write_group(project / "refine", RESULT_TABLE, arrays, {**attributes, **images_of(project / "refine")})
    with pytest.raises(FormatError, match="refers to images"):
        open_particles(project / "refine").read_images([3])


def images_of(url: Path) -> dict[str, object]:
    return {"images": (read_attributes(url, RESULT_TABLE) or {})["images"]}


@pytest.mark.parametrize(
    ("place", "origin", "seen"),
    [
        ("/data/p.zarr", "/data/runs/refine", "../../p.zarr"),
        ("s3://bucket/x/p.zarr", "s3://bucket/x/refine", "../p.zarr"),
        ("s3://one/p.zarr", "s3://two/refine", ""),
        ("/data/p.zarr", "/scratch/refine", ""),
    ],
)
def test_places_as_seen_from_another(place: str, origin: str, seen: str) -> None:
    assert relative(place, origin) == seen
    if seen:
        assert resolved(f"{origin}/{seen}") == place
