"""Aberrations that a table states are applied by jobs, and those that cannot be are refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import CloudemError
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_group
from cloudem.jobs.dataset import open_dataset
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.simulate import Simulate
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.optics import OpticsGroup
from tests.jobs.conftest import BOX, PIXEL, molecule, run

ABERRATIONS = {
    "beam_tilt_x_mrad": 60.0, "beam_tilt_y_mrad": -40.0, "odd_zernike_rad": "[0,0,2000,0,0,-1500]",
    "even_zernike_rad": "[0,0,0,0,2e4,0,0,0,3e4]", "anisotropy": 0.1, "anisotropy_angle_deg": 30.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the demo's molecule without noise, aberrated by radians at these 10 Å."""
    folder = tmp_path_factory.mktemp("aberrated")
    write_volume(folder / "density.mrc", molecule(), PIXEL)
    given = {"density": str(folder / "density.mrc"), "count": 300, "noise": False, "dtype": "float32"}
    run(Simulate(out=str(folder / "simulated"), **given, **ABERRATIONS))
    return folder / "simulated" / "particles.zarr"


def curve_of(particles: Path, out: Path) -> np.ndarray:
    run(Reconstruct(particles=str(particles), diameter_A=120, group_size=100, report=False, out=str(out)))
    return fourier_shell_correlation(read_group(str(out), "result")[0]["map_unfiltered"], molecule())[1 : BOX // 2 - 1]


def without(particles: Path, out: Path, *optics: OpticsGroup) -> Path:
    """Return the same particles, all of the first of other optics groups."""
    store = open_particles(str(particles))
    images = store.read_images(np.arange(len(store)))
    table = replace(store.particles, optics=optics)
    write_particles(str(out), table, [images], box=BOX, pixel_size=PIXEL, dtype="float32")
    return out


def test_a_reconstruction_is_free_of_the_aberrations_that_the_table_states(simulated: Path, tmp_path: Path) -> None:
    assert curve_of(simulated, tmp_path / "applied").min() > 0.95
    optics = open_particles(str(simulated)).particles.optics[0]
    assert optics.beam_tilt == (60.0, -40.0)
    left_out = without(simulated, tmp_path / "without.zarr", replace(optics, extra={}))
    assert curve_of(left_out, tmp_path / "not-applied").min() < 0.3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"rlnMagMat00": "3"}, "rlnMagMat00 to 11 of optics group simulated are 3 0 0 1, which is not near"),
        ({"rlnOddZernike": "[" + "0," * 12 + "0.1]"}, "rlnOddZernike has 13 entries"),
        ({"rlnEvenZernike": "[" + "0," * 9 + "0.1]"}, "rlnEvenZernike has 10 entries"),
        ({"rlnBeamTiltX": "much"}, "rlnBeamTiltX of optics group simulated is 'much'"),
    ],
)
def test_what_cannot_be_applied_is_refused(
    simulated: Path, tmp_path: Path, extra: dict[str, str], message: str
) -> None:
    optics = replace(open_particles(str(simulated)).particles.optics[0], extra=extra)
    store = without(simulated, tmp_path / "wrong.zarr", optics)
    with pytest.raises(CloudemError, match=message):
        open_dataset(str(store))


def test_a_group_without_particles_says_nothing(simulated: Path, tmp_path: Path) -> None:
    optics = open_particles(str(simulated)).particles.optics[0]
    wrong = replace(optics, extra={"rlnMagMat00": "3"})
    dataset = open_dataset(str(without(simulated, tmp_path / "unused.zarr", optics, wrong)))
    assert dataset.aberrations.odd is not None
    assert dataset.aberrations.of(np.array([1])).tolist() == [[[1, 0], [0, 1]]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"odd_zernike_rad": "[0.1,nan]"}, r"--odd-zernike-rad: got .*, needs finite numbers"),
        ({"even_zernike_rad": "trefoil"}, r"--even-zernike-rad: got .*, needs finite numbers"),
        ({"even_zernike_rad": "[0,0,0,0,0,0,0,0,0,1]"}, "--even-zernike-rad: the first 9 coefficients"),
        ({"anisotropy": 0.5}, "--anisotropy: got 0.5"),
    ],
)
def test_simulate_refuses_aberrations_that_are_none(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(CloudemError, match=message):
        Simulate(demo=True, out=str(tmp_path / "out"), **values).preflight()
