"""``cloudem extract``: from micrographs and positions to a particle store that grows with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.errors import FormatError, MissingInputError, OutputExistsError, ParameterError
from cloudem.io.formats.mrc import map_stack
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.micrographs.images import image_place, write_micrograph_image
from cloudem.io.micrographs.tables import write_micrograph_table, write_picks
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import has_group, read_group, write_group
from cloudem.jobs.base import Inputs, find_job
from cloudem.jobs.changes import make_room
from cloudem.jobs.export import Export
from cloudem.jobs.extract import Extract
from cloudem.jobs.extract_tables import Positions, particle_table
from cloudem.jobs.select import Select
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.picks import Picks
from cloudem.model.table import TEXT
from tests.jobs.conftest import assert_same_bits, needs, run

OPTICS = (OpticsGroup("o", 300.0, 2.7e7, 0.1, {"rlnOpticsGroup": "1"}),)
SHAPE, PIXEL = (130, 150), 2.0


def places_of(name: str) -> np.ndarray:
    """Return ten positions, one too close to another and one at the rim."""
    inside = np.random.default_rng(ord(name[-1])).uniform(25, 105, (8, 2)).round(2)
    return np.concatenate([inside, inside[:1] + np.array([2.0, 0.0]), [[3.0, 60.0]]])


def picked(place: Path | str, *names: str, **more: Any) -> str:
    """Write results of micrographs with dark particles, and picks."""
    url = str(place)
    if not has_group(url, ""):
        write_group(url, "", {}, {"kind": "result", "job": "pick"})
    images = []
    for name in names:
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        image = 100 + 10 * np.random.default_rng(ord(name[-1])).normal(size=SHAPE)
        for px, py in places_of(name)[:8]:
            image -= 40 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18)
        images.append(image_place(url, name))
        if not has_group(images[-1], ""):
            write_micrograph_image(url, name, {"sum": image.astype(np.float32)}, pixel_size=PIXEL)
    count = len(names)
    columns = {
        "micrograph": np.array(names, TEXT), "image": np.array(images, TEXT), "optics_group": np.zeros(count, np.int32),
        "pixel_size": np.full(count, PIXEL), "height": np.full(count, SHAPE[0], np.int32),
        "width": np.full(count, SHAPE[1], np.int32),
        "defocus_u": np.array([1e4 + ord(name[-1]) for name in names]), "defocus_v": np.full(count, 9e3),
        "defocus_angle": np.full(count, 0.5), **more,
    }  # fmt: skip

    def write(path: str, arrays: Any, said: Any) -> None:
        write_group(url, path, arrays, said)

    write_micrograph_table(write, Micrographs(OPTICS, columns))
    where = np.concatenate([places_of(name) for name in names])
    scores = np.tile(np.r_[np.full(8, 0.5), 0.9, 0.9], count)
    named = np.repeat(np.array(names, TEXT), 10)
    x, y = where.T
    table = Picks((), {"micrograph": named, "coordinate_x": x, "coordinate_y": y, "pick_score": scores})
    write_picks(write, table)
    write_group(url, "result", {}, {"names": names})
    return url


def extraction(given: str, out: Path | str, **values: Any) -> Extract:
    return Extract(**{"micrographs": given, "box_px": 32, "out": str(out), **values})


def test_particles_are_what_was_cut_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    given = picked(tmp_path / "picks", "m_b", "m_a")
    assert find_job("extract") is Extract
    run(extraction(given, tmp_path / "out", min_distance_A=5.0))
    store = open_particles(tmp_path / "out")
    table = store.particles
    assert (len(store), store.box, store.pixel_size) == (16, 32, PIXEL)
    assert table["micrograph"].tolist() == ["m_b"] * 8 + ["m_a"] * 8
    nearest = np.floor(np.concatenate([places_of("m_b")[1:9], places_of("m_a")[1:9]]) + 0.5)
    found = np.stack([table["coordinate_x"], table["coordinate_y"]], axis=1)
    assert found.tolist() == nearest.tolist()
    assert table["pick_score"].tolist() == ([0.5] * 7 + [0.9]) * 2
    assert table["defocus_u"].tolist() == [1e4 + ord("b")] * 8 + [1e4 + ord("a")] * 8
    assert set(table["defocus_angle"]) == {0.5}
    assert table.optics[0].extra["rlnMicrographPixelSize"] == "2.000000"
    images = store.read_images(np.arange(16))
    assert images[:, 14:18, 14:18].mean() > 2  # dark in the micrograph
    arrays, said = read_group(tmp_path / "out", "result")
    assert arrays["fate_positions"].tolist() == [16, 2, 2]
    assert said["notes"][0] == "2 positions left out: the box reaches beyond the micrograph"
    assert "Images from all over the store" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("on_reading", [False, True])
def test_what_came_later_is_cut_alone_and_the_result_is_that_of_all(
    tmp_path: Path, on_reading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = picked(tmp_path / "picks", "m_c", "m_a"), tmp_path / "out"
    job = extraction(given, out, scale_to_px=24, on_reading=on_reading)
    run(job)
    before = {each: each.stat().st_mtime_ns for each in (out / "pixels").rglob("*") if each.is_file()}
    chosen = tmp_path / "chosen"
    run(Select(particles=str(out), where="defocus_u > 10098", out=str(chosen)))
    images = open_particles(chosen).read_images(np.arange(9))
    picked(tmp_path / "picks", "m_b", "m_c", "m_a")
    again = extraction(given, out, scale_to_px=24, on_reading=on_reading)
    assert not again.is_finished()
    run(again)
    assert extraction(given, out, scale_to_px=24, on_reading=on_reading).is_finished()
    assert before == {each: each.stat().st_mtime_ns for each in before}
    assert open_particles(chosen).read_images(np.arange(9)).tobytes() == images.tobytes()
    run(extraction(given, tmp_path / "fresh", scale_to_px=24))
    assert_same_bits(out, tmp_path / "fresh")
    one, other = (open_particles(place) for place in (out, tmp_path / "fresh"))
    assert len(one) == 27
    assert one.read_images(np.arange(27)).tobytes() == other.read_images(np.arange(27)).tobytes()
    with pytest.raises(OutputExistsError, match="other parameters"):
        run(extraction(given, out, scale_to_px=26, on_reading=on_reading))
    make_room(again, lambda: None)
    assert not (out / "pixels").exists()


def test_a_micrograph_of_no_use_is_named_and_stops_nobody(tmp_path: Path) -> None:
    problems = np.array(["", "cannot be read", ""], TEXT)
    given = picked(tmp_path / "picks", "m_a", "m_b", "m_c", problem=problems)
    write_group(image_place(given, "m_c"), "", {}, {})
    run(extraction(given, tmp_path / "out"))
    assert set(open_particles(tmp_path / "out").particles["micrograph"].tolist()) == {"m_a"}
    arrays, said = read_group(tmp_path / "out", "result")
    assert arrays["lost_micrograph"].tolist() == ["m_b", "m_c"]
    assert said["notes"][1:] == [
        "20 positions left out: in a micrograph of no use",
        "2 micrographs are of no use; the first cannot be read",
    ]


def test_refined_particles_are_cut_again_around_their_positions(tmp_path: Path) -> None:
    given = picked(tmp_path / "picks", "m_a", "m_b")
    run(extraction(given, tmp_path / "first"))
    table = open_particles(tmp_path / "first").particles
    rng = np.random.default_rng(0)
    count, angle = len(table), rng.uniform(-3, 3, len(table))
    refined = table.with_columns(
        rot=angle, tilt=angle, psi=angle, shift_x=rng.uniform(-9, 9, count), shift_y=rng.uniform(-9, 9, count),
        half_set=np.arange(count) % 2 + 1, class_shift_x=np.zeros(count), class_shift_y=np.zeros(count),
        defocus_u=np.full(count, 2e4),
    )  # fmt: skip
    blank = [np.zeros((count, 32, 32), np.float32)]
    write_particles(tmp_path / "refined.zarr", refined.without_columns(["store_row"]), blank, box=32, pixel_size=PIXEL)
    run(extraction(given, tmp_path / "again", coordinates=str(tmp_path / "refined.zarr"), edges="pad", box_px=28))
    found = open_particles(tmp_path / "again").particles
    assert len(found) == count
    for axis in "xy":
        position, left = found[f"coordinate_{axis}"] * PIXEL, found[f"shift_{axis}"]
        np.testing.assert_allclose(position + left, table[f"coordinate_{axis}"] * PIXEL + refined[f"shift_{axis}"])
        assert np.abs(left).max() <= PIXEL / 2
        moved = found[f"coordinate_{axis}"] - table[f"coordinate_{axis}"]
        np.testing.assert_allclose(found[f"class_shift_{axis}"], -moved * PIXEL)
    for name in ("rot", "tilt", "psi", "half_set", "defocus_u"):
        assert found[name].tolist() == refined[name].tolist()
    given_ctf = extraction(given, tmp_path / "ctf", coordinates=str(tmp_path / "refined.zarr"), new_ctf=True)
    run(given_ctf)
    assert set(open_particles(tmp_path / "ctf").particles["defocus_u"]) == {1e4 + ord("a"), 1e4 + ord("b")}


def test_a_table_of_other_pixels_and_names_is_understood(tmp_path: Path) -> None:
    given = picked(tmp_path / "picks", "m.1_a", "Mics/m_b.mrc")
    places = places_of("m.1_a")[:8]
    table = Particles(OPTICS, {}).with_columns(
        micrograph=np.array(["Other/m.1_a.tif"] * 7 + ["m_x"], TEXT), optics_group=np.zeros(8),
        coordinate_x=places[:, 0] * 2, coordinate_y=places[:, 1] * 2,
    )  # fmt: skip
    write_particles(tmp_path / "p.zarr", table, [np.zeros((8, 8, 8), np.float32)], box=8, pixel_size=4.0)
    job = extraction(
        given, tmp_path / "out", coordinates=str(tmp_path / "p.zarr"), micrograph_pixel_size_A=1.0, edges="pad"
    )
    said: list[str] = []
    job.check(Inputs(), said.append)
    assert said == ["1 of 8 particles lie in micrographs that are not given; they are left out"]
    run(job)
    found = open_particles(tmp_path / "out").particles
    assert found["coordinate_x"].tolist() == np.floor(np.floor(places[:7, 0] * 2) / 2 + 0.5).tolist()
    other = picked(tmp_path / "other", "n_a")
    with pytest.raises(MissingInputError, match="lies in one of these micrographs: the first is in n_a"):
        run(extraction(given, tmp_path / "none", coordinates=other))


def test_exported_particles_are_normalised_and_read_again(tmp_path: Path) -> None:
    given = picked(tmp_path / "picks", "m_a", "m_b")
    run(extraction(given, tmp_path / "out", on_reading=True))
    run(Export(source=str(tmp_path / "out"), out=str(tmp_path / "files")))
    images, _ = map_stack(tmp_path / "files" / "particles.mrcs")
    store = open_particles(tmp_path / "out")
    np.testing.assert_array_equal(np.array(images), store.read_images(np.arange(len(store))))
    read = read_particles_star(tmp_path / "files" / "particles.star")
    assert read.pixel_size == PIXEL
    for name in ("coordinate_x", "coordinate_y", "pick_score", "defocus_u", "micrograph"):
        assert read.particles[name].tolist() == store.particles[name].tolist()
    text = (tmp_path / "files" / "particles.star").read_text()
    for label in ("rlnCoordinateX", "rlnAutopickFigureOfMerit", "rlnMicrographPixelSize", "rlnImageSize"):
        assert f"_{label} " in text


def test_what_it_will_cost_is_known(tmp_path: Path) -> None:
    given = picked(tmp_path / "picks", "m_a", "m_b")
    copied = needs(extraction(given, tmp_path / "a"))
    reading = needs(extraction(given, tmp_path / "a", on_reading=True))
    assert copied.makes[""].count == 20
    assert copied.stages[0].parallel
    assert copied.disk_bytes > 20 * 32 * 32 * 2 > reading.disk_bytes


def test_wrong_boxes_and_places_are_refused(tmp_path: Path) -> None:
    given = picked(tmp_path / "picks", "m_a")
    for values, words in (
        ({"box_px": 33}, "--box-px 33 is odd"),
        ({"scale_to_px": 64}, "is more than --box-px"),
        ({"background_diameter_A": 900.0}, "leaves no background"),
    ):
        with pytest.raises(ParameterError, match=words):
            extraction(given, tmp_path / "out", **values).preflight()
    plain = str(tmp_path / "plain")
    write_group(plain, "", {}, {"kind": "result"})
    with pytest.raises(FormatError, match="holds no micrographs"):
        extraction(plain, tmp_path / "out").preflight()
    with pytest.raises(ParameterError, match="no particle could be extracted: 10 positions left out"):
        run(extraction(given, tmp_path / "out", box_px=128))


def test_particles_of_a_tilted_specimen_have_the_defocus_of_their_place() -> None:
    columns = {
        "micrograph": np.array(["a", "b"], TEXT), "optics_group": np.zeros(2, np.int32),
        "pixel_size": np.full(2, PIXEL), "height": np.full(2, 100, np.int32), "width": np.full(2, 100, np.int32),
        "defocus_u": np.full(2, 2e4), "defocus_v": np.full(2, 1e4), "tilt_axis": np.array([0.0, np.nan]),
        "tilt_angle": np.array([np.pi / 4, 0.5]),
    }  # fmt: skip
    places = np.array([[50.0, 50.0], [50.0, 80.0], [50.0, 80.0]])
    positions = Positions(np.array([0, 0, 1]), places, np.zeros(3), Particles((), {"pick_score": np.zeros(3)}), None)
    found = {
        "each_fate": np.zeros(3, np.uint8), "each_x": np.array([50, 50, 50]), "each_y": np.array([50, 80, 80]),
        "each_row": np.arange(3),
    }  # fmt: skip
    table = particle_table(positions, Micrographs(OPTICS, columns), found, new_ctf=False)
    np.testing.assert_allclose(table["defocus_u"], [2e4, 2e4 + 30 * PIXEL, 2e4])
    np.testing.assert_allclose(table["defocus_v"], [1e4, 1e4 + 30 * PIXEL, 1e4])
