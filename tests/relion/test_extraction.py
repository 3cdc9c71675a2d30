"""RELION as the outside oracle of extraction: the same boxes, and what is exported is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloudem.io.formats.mrc import map_stack
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.star import read_star, write_star
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.io.particle_store import open_particles
from cloudem.jobs.export import Export
from cloudem.jobs.extract import Extract
from cloudem.model.table import TEXT
from tests.jobs.conftest import run
from tests.jobs.test_extract import picked, places_of

Run = Callable[..., None]


def text(*values: object) -> np.ndarray:
    return np.array([str(value) for value in values], TEXT)


# RELION subtracts the plane after scaling, cloudem before: in so small a box that shows.
@pytest.mark.parametrize(("size", "alike"), [(32, 0.999), (20, 0.997)])
def test_images_are_those_of_relion(relion: Run, tmp_path: Path, size: int, alike: float) -> None:

    given = picked(tmp_path / "picks", "m_a")
    image = open_micrograph_image(tmp_path / "picks" / "images" / "m_a").read()
    write_stack(tmp_path / "m_a.mrc", [image[None]], 1, 2.0)
    centres = np.floor(places_of("m_a")[:8] + 0.5)  # whole numbers: RELION cuts off what is behind the point
    write_star(tmp_path / "m_a_pick.star", {"": {f"rlnCoordinate{axis}": text(*centres[:, at]) for at, axis in
                                                 enumerate("XY")}})  # fmt: skip
    optics = {
        "rlnOpticsGroupName": text("o"), "rlnOpticsGroup": text(1), "rlnMicrographOriginalPixelSize": text(2.0),
        "rlnMicrographPixelSize": text(2.0), "rlnVoltage": text(300), "rlnSphericalAberration": text(2.7),
        "rlnAmplitudeContrast": text(0.1),
    }  # fmt: skip
    micrographs = {"rlnMicrographName": text("m_a.mrc"), "rlnOpticsGroup": text(1)}
    write_star(tmp_path / "mics.star", {"optics": optics, "micrographs": micrographs})
    scale = ["--scale", str(size)] if size != 32 else []
    relion(
        "preprocess", "--i", "mics.star", "--coord_suffix", "_pick.star", "--coord_dir", "./", "--part_dir", "Out/",
        "--part_star", "Out/particles.star", "--extract", "--extract_size", "32", "--norm", "--bg_radius",
        str(int(0.45 * size)), "--invert_contrast", *scale,
    )  # fmt: skip
    theirs, _ = map_stack(tmp_path / "Out" / "m_a.mrcs")
    run(Extract(micrographs=given, box_px=32, scale_to_px=size, out=str(tmp_path / "out"), hot_sigma=0))
    store = open_particles(tmp_path / "out")
    ours = {
        (x, y): number
        for number, (x, y) in enumerate(
            zip(store.particles["coordinate_x"], store.particles["coordinate_y"], strict=True)
        )
    }
    images = store.read_images(np.arange(len(store)))
    for centre, image_there in zip(centres.tolist(), np.asarray(theirs), strict=True):
        assert np.corrcoef(images[ours[tuple(centre)]].ravel(), image_there.ravel())[0, 1] > alike


def test_relion_reads_what_is_exported(relion: Run, tmp_path: Path) -> None:
    run(Extract(micrographs=picked(tmp_path / "picks", "m_a", "m_b"), box_px=32, out=str(tmp_path / "out")))
    run(Export(source=str(tmp_path / "out"), out=str(tmp_path / "files")))
    for file in (tmp_path / "files").iterdir():
        file.rename(tmp_path / file.name)
    relion("stack_create", "--i", "particles.star", "--o", "again")
    again, _ = map_stack(tmp_path / "again.mrcs")
    store = open_particles(tmp_path / "out")
    np.testing.assert_allclose(np.asarray(again), store.read_images(np.arange(len(store))), atol=1e-6)
    table = read_star(tmp_path / "again.star")["particles"]
    assert [float(value) for value in table["rlnCoordinateX"].tolist()] == store.particles["coordinate_x"].tolist()
