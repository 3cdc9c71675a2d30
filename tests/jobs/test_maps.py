"""Maps that users give: what contradicts itself is refused, what lies elsewhere is said, and origins are kept."""

import gzip
import shutil

import mrcfile
import numpy as np
import pytest

from cloudem.errors import FormatError, InconsistentDataError, ParameterError
from cloudem.io.formats.mrc import read_header, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.storage.groups import read_attributes, read_group
from cloudem.jobs.export import Export
from cloudem.jobs.maps import Grid, check_map, check_start_map, read_map, read_mask, read_start_map
from cloudem.jobs.mask import Mask
from cloudem.jobs.postprocess import Postprocess
from cloudem.jobs.progress import SilentProgress
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.simulate import Simulate
from tests.jobs.conftest import BOX, PIXEL, make_scene, run

ORIGIN = (-40.0, 25.5, 300.0)


def ball(box=24, radius=6.0):
    z, y, x = np.indices((box,) * 3) - box // 2
    return (x**2 + y**2 + z**2 < radius**2).astype(np.float32)


def centre(path):
    """Return where a map's centre voxel lies, as a program that knows MRC2014 alone would say."""
    with mrcfile.open(path) as file:
        header, step = file.header, float(file.voxel_size.x)
        assert file.data.shape == (header.nx,) * 3
        origin = np.array([float(header.origin[axis]) for axis in "xyz"])
        return origin + step * (int(header.nx) // 2)


def warnings_of(function, *arguments, **values):
    progress = SilentProgress()
    return function(*arguments, progress, **values), progress.warnings()


def test_a_reference_smaller_than_the_particle_is_refused_until_its_pixel_size_is_stated(tmp_path):
    path = str(tmp_path / "one.mrc")
    write_volume(path, ball(), 1.0)
    with pytest.raises(InconsistentDataError, match=r"24 px at 1 Å = 24 Å, smaller .*--reference-pixel-size-A"):
        check_start_map(path, None, 100.0, 32, 5.0)
    found, said = warnings_of(read_start_map, path, 5.0, 100.0, 32, 5.0)
    assert found.pixel_size == 5.0
    assert "24 px at 5 Å" in said[0]
    with pytest.raises(InconsistentDataError, match="1 Å is what programs write that do not know"):
        check_start_map(path, None, 20.0, 24, 1.3)
    assert check_start_map(path, 1.0, 20.0, 24, 1.3).pixel_size == 1.0  # the user says so
    assert check_start_map(path, None, 20.0, 24, 1.0).box == 24


def test_a_reference_moved_to_the_particles_grid_keeps_its_centre(tmp_path):
    path = str(tmp_path / "ref.mrc")
    write_volume(path, ball(25), 4.0, ORIGIN)
    found, _ = warnings_of(read_start_map, path, None, 60.0, 32, 2.5)
    before, after = Grid(25, 4.0, read_volume(path).origin), Grid(32, 2.5, found.origin)
    assert after.centre == pytest.approx(before.centre)
    weights = found.data / found.data.sum()
    middle = [float((weights.sum(axis=tuple({0, 1, 2} - {axis})) * np.arange(32)).sum()) for axis in range(3)]
    np.testing.assert_allclose(middle, 16, atol=0.05)


@pytest.mark.parametrize("box", [2, 3, 7])
def test_boxes_of_a_few_voxels_are_refused(tmp_path, box):
    write_volume(tmp_path / "m.mrc", np.eye(box, dtype=np.float32)[None].repeat(box, 0), PIXEL)
    for job in (
        Mask(map=str(tmp_path / "m.mrc"), out=str(tmp_path / "mask.mrc")),
        Postprocess(halves=str(tmp_path / "m.mrc"), half2=str(tmp_path / "m.mrc"), out=str(tmp_path / "post")),
        Simulate(density=str(tmp_path / "m.mrc"), out=str(tmp_path / "sim")),
    ):
        with pytest.raises(InconsistentDataError, match=f"box of {box} voxels, at least 8"):
            run(job)
    with pytest.raises(InconsistentDataError, match="at least 8"):
        read_mask(str(tmp_path / "m.mrc"), 32, 5.0, SilentProgress())


@pytest.mark.parametrize("scale", [1e38, 1e15, 1e-30])
def test_densities_that_float32_cannot_square_are_refused(tmp_path, scale):
    write_volume(tmp_path / "half1.mrc", np.zeros((24,) * 3), PIXEL)  # its statistics would overflow
    raw = bytearray((tmp_path / "half1.mrc").read_bytes())
    raw[1024:] = (ball() * np.float32(scale)).tobytes()
    (tmp_path / "half1.mrc").write_bytes(raw)
    shutil.copy(tmp_path / "half1.mrc", tmp_path / "half2.mrc")
    for job in (
        Mask(map=str(tmp_path / "half1.mrc"), out=str(tmp_path / "mask.mrc")),
        Postprocess(halves=str(tmp_path / "half1.mrc"), out=str(tmp_path / "post")),
    ):
        with pytest.raises(FormatError, match="holds densities from 0 to 1e"):
            run(job)


def test_masks_of_another_grid_are_resampled_and_that_is_said(tmp_path):
    path = str(tmp_path / "mask.mrc")
    write_volume(path, ball(48, 12.0), 2.5)
    mask, said = warnings_of(read_mask, path, 32, 5.0)
    assert said == ["the mask is 48 px at 2.5 Å and the particles are 32 px at 5 Å: resampled"]
    assert np.corrcoef(mask.data.ravel(), ball(32).ravel())[0, 1] > 0.9
    assert mask.data.min() >= 0
    assert mask.data.max() <= 1
    write_volume(path, np.roll(ball(), 10, 0), 100.0)
    with pytest.raises(ParameterError, match="nothing of the mask"):
        read_mask(path, 8, 1.0, SilentProgress())


def test_a_mask_that_lies_elsewhere_is_said(tmp_path):
    path = str(tmp_path / "mask.mrc")
    write_volume(path, ball(), 5.0, ORIGIN)
    _, said = warnings_of(read_mask, path, 24, 5.0, origin=ORIGIN)
    assert not said
    mask, said = warnings_of(read_mask, path, 24, 5.0, origin=(0.0, 0.0, 0.0), whose="half-maps")
    assert "lies -40, 25.5, 300 Å away from the half-maps" in said[0]
    assert mask.origin == (0.0, 0.0, 0.0)
    write_volume(path, ball(), 5.0)  # without origin: many programs drop it
    assert not warnings_of(read_mask, path, 24, 5.0, origin=ORIGIN)[1]


@pytest.fixture
def halves(tmp_path):
    for number in (1, 2):
        noise = np.random.default_rng(number).standard_normal((24,) * 3, np.float32)
        write_volume(tmp_path / f"half{number}.mrc", ball() + 0.1 * noise, PIXEL, ORIGIN)
    return str(tmp_path / "half1.mrc")


def test_mask_postprocess_and_export_lie_on_the_map_that_came_in(halves, tmp_path, monkeypatch):
    monkeypatch.setattr("cloudem.jobs.report.write_report", lambda url: f"{url}/none")
    run(Mask(map=halves, out=str(tmp_path / "mask.mrc")))
    run(Postprocess(halves=halves, mask=str(tmp_path / "mask.mrc"), out=str(tmp_path / "post")))
    run(Export(source=str(tmp_path / "post"), out=str(tmp_path / "files")))
    expected = np.array(ORIGIN) + PIXEL * 12
    for name in ("mask.mrc", "files/map.mrc", "files/mask.mrc"):
        np.testing.assert_allclose(centre(tmp_path / name), expected, rtol=1e-6)
        assert mrcfile.validate(tmp_path / name)
    with pytest.raises(ParameterError, match=r"cannot state the map's origin.*\.mrc"):
        run(Mask(map=halves, out=str(tmp_path / "mask.map")))


def test_half_maps_of_two_places_or_pixel_sizes_are_refused(halves, tmp_path):
    second = str(tmp_path / "half2.mrc")
    for pixel, origin, words in ((PIXEL, (0, 0, 0), "has its origin at"), (5.1, ORIGIN, "at 5.1 Å")):
        write_volume(second, ball(), pixel, origin)
        with pytest.raises(InconsistentDataError, match=words):
            run(Postprocess(halves=halves, out=str(tmp_path / "post")))


@pytest.mark.parametrize(("mask_says", "resampled"), [(PIXEL, False), (6.0, False), (2.5, True)])
def test_a_stated_pixel_size_holds_for_a_mask_on_the_half_maps_grid(
    halves, tmp_path, monkeypatch, mask_says, resampled
):
    monkeypatch.setattr("cloudem.jobs.report.write_report", lambda url: f"{url}/none")
    write_volume(tmp_path / "mask.mrc", ball(), mask_says)
    job = Postprocess(halves=halves, mask=str(tmp_path / "mask.mrc"), pixel_size_A=6.0, out=str(tmp_path / "post"))
    assert any("resampled" in text for text in run(job).warnings()) == resampled
    attributes = read_group(tmp_path / "post", "result")[1]
    assert attributes["pixel_size_A"] == 6.0
    np.testing.assert_allclose(attributes["origin_A"], np.array(ORIGIN) * 6.0 / PIXEL)


def test_maps_compressed_by_gzip_are_read_by_every_job(halves, tmp_path, monkeypatch):
    monkeypatch.setattr("cloudem.jobs.report.write_report", lambda url: f"{url}/none")
    for name in ("half1.mrc", "half2.mrc"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    run(Mask(map=f"{halves}.gz", out=str(tmp_path / "mask.mrc")))
    run(Mask(map=halves, out=str(tmp_path / "plain.mrc")))
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.mrc").data, read_volume(tmp_path / "plain.mrc").data)
    run(Postprocess(halves=f"{halves}.gz", out=str(tmp_path / "post")))
    run(Postprocess(halves=halves, out=str(tmp_path / "post_plain")))
    one, two = (read_group(tmp_path / name, "result")[0]["map"] for name in ("post", "post_plain"))
    np.testing.assert_array_equal(one, two)


def test_a_refinement_lies_on_its_reference(scene, tmp_path, no_report):
    reference = tmp_path / "reference.mrc.gz"
    density = np.pad(read_volume(scene.reference).data, 4)
    write_volume(tmp_path / "plain.mrc", density, PIXEL, ORIGIN)
    reference.write_bytes(gzip.compress((tmp_path / "plain.mrc").read_bytes()))
    run(Refine3D(**scene.refinement(tmp_path / "out", reference=str(reference), max_iterations=1)))
    assert len(read_attributes(tmp_path / "out", "")["origin_A"]) == 3  # a resumed run needs the reference no more
    run(Export(source=str(tmp_path / "out"), out=str(tmp_path / "files")))
    expected = np.array(ORIGIN) + PIXEL * ((BOX + 8) // 2)
    for name in ("half1", "half2", "map", "mask"):
        np.testing.assert_allclose(centre(tmp_path / "files" / f"{name}.mrc"), expected, rtol=1e-6)


def test_jobs_refuse_bad_headers_before_they_align(scene, tmp_path):
    write_volume(tmp_path / "small.mrc", read_volume(scene.reference).data, 1.0)
    with pytest.raises(InconsistentDataError, match="smaller than the particle"):
        run(Refine3D(**scene.refinement(tmp_path / "out", reference=str(tmp_path / "small.mrc"))))


def test_a_reconstruction_lies_on_its_mask_and_a_bad_one_costs_nothing(tmp_path, no_report, monkeypatch):
    known = make_scene(tmp_path / "known", count=20, columns=lambda table: table)
    write_volume(tmp_path / "mask.mrc.map", ball(40, 12.0), PIXEL, (PIXEL, 0, -3 * PIXEL))
    values = {"particles": known.particles, "mask": str(tmp_path / "mask.mrc.map"), "out": str(tmp_path / "rec")}
    run(Reconstruct(**values))
    found = Grid(BOX, PIXEL, read_group(tmp_path / "rec", "result")[1]["origin_A"])
    np.testing.assert_allclose(found.centre, np.array([1, 0, -3]) * PIXEL + 20 * PIXEL)
    monkeypatch.setattr("cloudem.jobs.reconstruct.run.fold_of", None)  # nothing is inserted
    write_volume(tmp_path / "mask.mrc.map", 5 * ball(40, 12.0), PIXEL)
    with pytest.raises(InconsistentDataError, match="a mask from 0 to 1"):
        run(Reconstruct(**{**values, "out": str(tmp_path / "again")}))


def test_a_simulated_density_lies_on_its_model(tmp_path):
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {50 + 4 * i:8.3f}{20.0:8.3f}{-30.0 - i:8.3f}  1.00 20.00           C"
        for i in range(1, 6)
    ]
    (tmp_path / "m.pdb").write_text("\n".join([*lines, "END", ""]))
    values = {"model": str(tmp_path / "m.pdb"), "box_px": 32, "pixel_size_A": 2.0, "count": 0}
    run(Simulate(**values, out=str(tmp_path / "sim")))
    found = read_volume(tmp_path / "sim" / "density.mrc")
    for i in range(1, 6):
        x, y, z = np.rint((np.array([50 + 4 * i, 20, -30 - i]) - found.origin) / 2.0).astype(int)
        assert found.data[z, y, x] > 0.5 * found.data.max()
    np.testing.assert_allclose(Grid(32, 2.0, found.origin).centre, (62, 20, -33), atol=0.1)


def test_headers_alone_are_read_for_checks(tmp_path, monkeypatch):
    write_volume(tmp_path / "m.mrc", ball(), PIXEL)
    monkeypatch.setattr("cloudem.io.formats.mrc.map_stack", None)
    assert check_map(str(tmp_path / "m.mrc")) == (24, pytest.approx(PIXEL), (0, 0, 0))
    assert read_header(tmp_path / "m.mrc").mode == 2
    with pytest.raises(TypeError):
        read_map(str(tmp_path / "m.mrc"))
