"""The jobs mask, postprocess and simulate, run as the command line runs them."""

import numpy as np
import pytest
from scipy import ndimage

from cloudem.algorithms.resolution import shell_amplitudes
from cloudem.errors import InconsistentDataError, MissingInputError, OutputExistsError, ParameterError
from cloudem.execution.executor import SerialExecutor
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import open_particles
from cloudem.io.storage.groups import read_attributes, read_group, write_group
from cloudem.io.storage.tables import table_from_arrays
from cloudem.jobs.mask import Mask
from cloudem.jobs.postprocess import Postprocess
from cloudem.jobs.runner import run_job
from cloudem.jobs.simulate import Simulate
from cloudem.model.particles import Particles
from tests.jobs.conftest import needs

BOX, PIXEL = 32, 4.0
SMALL = {"demo": True, "box_px": 48, "pixel_size_A": 5.0, "count": 30, "dtype": "float32"}


def run(job):
    return run_job(job, lambda _: SerialExecutor())


@pytest.fixture(scope="module")
def molecule():
    z, y, x = np.indices((BOX,) * 3) - BOX // 2
    solid = (x**2 + (y - 3) ** 2 + z**2 < 36) | ((x - 4) ** 2 + (y + 4) ** 2 + (z - 2) ** 2 < 20)
    texture = np.random.default_rng(1).uniform(0.5, 1.5, solid.shape)
    return (solid * texture).astype(np.float32)


@pytest.fixture
def halves(molecule, tmp_path):
    for number in (1, 2):
        noise = np.random.default_rng(number).standard_normal(molecule.shape, np.float32)
        write_volume(tmp_path / f"run_half{number}_unfil.mrc", molecule + 0.3 * noise, PIXEL)
    return tmp_path / "run_half1_unfil.mrc"


def as_result(halves, url, **attributes):
    arrays = {f"half{i}": read_volume(str(halves).replace("half1", f"half{i}")).data for i in (1, 2)}
    write_group(url, "", {}, {"kind": "result", "job": "refine3d"})
    write_group(url, "result", arrays, {"pixel_size_A": PIXEL, **attributes})


def test_postprocess_of_mrc_files_and_of_a_result_are_the_same(halves, tmp_path):
    as_result(halves, tmp_path / "refine")
    run(Mask(map=str(tmp_path / "refine"), out=str(tmp_path / "mask.mrc")))
    results = []
    for number, source in enumerate((halves, tmp_path / "refine")):
        out = tmp_path / f"post{number}"
        run(Postprocess(halves=str(source), mask=str(tmp_path / "mask.mrc"), out=str(out)))
        results.append(read_group(out, "result"))
        assert (out / "report.html").stat().st_size > 10_000
        assert "resolution" in (out / "log.txt").read_text()
        assert read_attributes(out, "")["job"] == "postprocess"
    (arrays, attributes), (others, _) = results
    curves = {"fsc_unmasked", "fsc_masked", "fsc_phase_randomised", "fsc_corrected"}
    directional = {"directions", "directional_fsc", "directional_resolution_A"}
    assert set(arrays) == {"map", "mask", *curves, *directional}
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, others[name])
    assert arrays["map"].shape == (BOX,) * 3
    assert arrays["fsc_corrected"].shape == (BOX // 2 + 1,)
    assert attributes["pixel_size_A"] == PIXEL
    assert 2 * PIXEL <= attributes["resolution_A"] < 40
    assert "b_factor_A2" in attributes


def test_postprocess_estimates_a_mask_and_takes_a_b_factor(halves, tmp_path):
    run(Postprocess(halves=str(halves), b_factor_A2=-50.0, out=str(tmp_path / "post")))
    arrays, attributes = read_group(tmp_path / "post", "result")
    assert attributes["b_factor_A2"] == -50.0
    run(Postprocess(halves=str(halves), b_factor_A2=0.0, out=str(tmp_path / "plain")))
    plain, _ = read_group(tmp_path / "plain", "result")
    assert shell_amplitudes(arrays["map"])[10] > 1.05 * shell_amplitudes(plain["map"])[10] > 0
    assert 0.02 < arrays["mask"].mean() < 0.5


def test_postprocess_says_when_it_sharpens_less_than_the_fit(molecule, tmp_path):
    for number in (1, 2):
        noise = np.random.default_rng(number).standard_normal(molecule.shape, np.float32)
        blurred = ndimage.gaussian_filter(molecule, 1.2) + 0.001 * noise
        write_volume(tmp_path / f"half{number}.mrc", blurred, PIXEL)
    run(Postprocess(halves=str(tmp_path / "half1.mrc"), out=str(tmp_path / "post")))
    _, attributes = read_group(tmp_path / "post", "result")
    assert attributes["resolution_A"] > 6
    assert 2 * attributes["b_factor_fitted_A2"] < attributes["b_factor_A2"] < 0
    said = f"sharpened with only {attributes['b_factor_A2']:.0f} Å²"
    assert said in (tmp_path / "post/log.txt").read_text()


def test_postprocess_names_what_is_wrong(halves, tmp_path, molecule):
    out = str(tmp_path / "post")
    with pytest.raises(MissingInputError, match="does not exist"):
        run(Postprocess(halves=str(tmp_path / "absent"), out=out))
    plain = tmp_path / "map.mrc"
    write_volume(plain, molecule, PIXEL)
    with pytest.raises(MissingInputError, match="--half2"):
        run(Postprocess(halves=str(plain), out=out))
    write_volume(tmp_path / "other.mrc", molecule[:24, :24, :24], PIXEL)
    with pytest.raises(InconsistentDataError, match=r"box of 32 .* 24"):
        run(Postprocess(halves=str(halves), half2=str(tmp_path / "other.mrc"), out=out))
    with pytest.raises(InconsistentDataError, match="a mask from 0 to 1; make one with cloudem mask"):
        run(Postprocess(halves=str(halves), mask=str(halves), out=out))
    write_group(tmp_path / "empty", "result", {"map": molecule}, {"pixel_size_A": PIXEL})
    with pytest.raises(MissingInputError, match="contains no half-maps"):
        run(Postprocess(halves=str(tmp_path / "empty"), out=out))
    assert not (tmp_path / "post").exists()


def test_postprocess_does_not_overwrite_the_refinement(halves, tmp_path):
    as_result(halves, tmp_path / "refine")
    with pytest.raises(OutputExistsError, match="contains the results of refine3d"):
        run(Postprocess(halves=str(tmp_path / "refine"), out=str(tmp_path / "refine")))
    assert "half1" in read_group(tmp_path / "refine", "result")[0]


def test_mask_makes_the_folder_of_its_file(halves, tmp_path):
    run(Mask(map=str(halves), out=str(tmp_path / "new/mask.mrc")))
    assert (tmp_path / "new/mask.mrc").exists()


def test_mask_of_a_store_says_what_it_holds(tmp_path):
    run(Simulate(**SMALL, out=str(tmp_path)))
    with pytest.raises(MissingInputError, match=r"particles\.zarr holds no map; give an MRC file"):
        run(Mask(map=str(tmp_path / "particles.zarr"), out=str(tmp_path / "mask.mrc")))


def test_simulate_does_not_write_among_the_results_of_another_job(halves, tmp_path):
    as_result(halves, tmp_path / "refine")
    with pytest.raises(OutputExistsError, match="contains the results of refine3d"):
        run(Simulate(**SMALL, out=str(tmp_path / "refine")))
    assert not (tmp_path / "refine/particles.zarr").exists()


def test_mask_of_a_file(halves, molecule, tmp_path):
    out = tmp_path / "mask.mrc"
    run(Mask(map=str(halves), out=str(out), extend_A=4.0, edge_A=8.0))
    mask = read_volume(out)
    assert mask.pixel_size == pytest.approx(PIXEL)
    assert mask.data[molecule > 0].mean() > 0.99
    with pytest.raises(ParameterError, match=r"ends in \.mrc"):
        run(Mask(map=str(halves), out=str(tmp_path / "folder")))


def test_demo_particles_and_their_truth(tmp_path):
    run(Simulate(**SMALL, out=str(tmp_path / "open")))
    run(Simulate(**SMALL, blind=True, out=str(tmp_path / "blind")))
    density, start = (read_volume(tmp_path / "open" / name) for name in ("density.mrc", "start.mrc"))
    assert density.pixel_size == pytest.approx(5.0)
    assert start.data.std() < density.data.std()
    known, blind = (open_particles(tmp_path / name / "particles.zarr") for name in ("open", "blind"))
    assert (known.box, len(known.particles)) == (48, 30)
    assert not {"rot", "tilt", "psi", "shift_x", "shift_y", "half_set"} & blind.particles.columns.keys()
    truth = table_from_arrays(Particles, *read_group(tmp_path / "blind/particles.zarr", "truth"))
    for name in ("rot", "tilt", "psi", "shift_x", "shift_y", "half_set"):
        np.testing.assert_array_equal(truth[name], known.particles[name])
    images = known.read_images(np.arange(30))
    np.testing.assert_array_equal(images, blind.read_images(np.arange(30)))
    assert images.var() == pytest.approx(1.05, rel=0.02)


def test_particles_of_a_density(molecule, tmp_path):
    write_volume(tmp_path / "map.mrc", molecule, PIXEL)
    out = tmp_path / "particles"
    run(Simulate(density=str(tmp_path / "map.mrc"), count=3, noise=False, out=str(out)))
    store = open_particles(out / "particles.zarr")
    assert (store.box, store.pixel_size) == (BOX, PIXEL)
    with pytest.raises(OutputExistsError, match=r"particles\.zarr already exists"):
        run(Simulate(density=str(tmp_path / "map.mrc"), count=3, out=str(out)))


def test_count_zero_makes_densities_only(tmp_path):
    run(Simulate(**{**SMALL, "count": 0}, out=str(tmp_path / "d")))
    names = ["density.mrc", "live.json", "log.txt", "start.mrc"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir() if path.is_file()) == names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of --model, --density and --demo; got none"),
        ({"demo": True, "density": "a.mrc"}, "got --density and --demo"),
        ({"model": "a.cif"}, "needs --box-px and --pixel-size-A"),
        ({"density": "a.mrc", "box_px": 32}, "leave out --box-px"),
        ({"demo": True, "defocus_min_A": 3e4}, "is above --defocus-max-A"),
        ({"demo": True, "snr": -1}, "--snr"),
    ],
)
def test_simulate_refuses_what_contradicts_itself(values, message, tmp_path):
    with pytest.raises(ParameterError, match=message):
        Simulate(**values, out=str(tmp_path / "x"))


def test_projections_of_jobs_know_their_sizes(halves, tmp_path):
    assert needs(Simulate(**SMALL, out="x")).disk_bytes > 30 * 48 * 48 * 4
    assert needs(Postprocess(halves=str(halves), out="x")).base_bytes >= 60 * BOX**3
    assert needs(Mask(map=str(halves), out="x")).disk_bytes == 4 * BOX**3
