"""RELION's CTF is found as RELION means it, and RELION extracts particles by the table of micrographs."""

from __future__ import annotations

from dataclasses import replace

import mrcfile
import numpy as np
import pytest

from cloudem.algorithms.ctf_estimate import CtfSettings, estimate_ctf
from cloudem.algorithms.ctf_fit import CtfSearch
from cloudem.algorithms.thon_background import Microscope
from cloudem.io.formats.star import read_star
from cloudem.jobs.estimate_ctf import EstimateCtf
from cloudem.jobs.export import Export
from cloudem.jobs.import_micrographs import ImportMicrographs
from cloudem.testing.micrographs import SimulatedScene, simulate_micrograph
from tests.io.movies_files import write_mrc
from tests.jobs.conftest import run

COORDINATES = "data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n200 150\n300 310\n"

TABLE = """
data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
og1 1 1.5 300 2.7 0.1

data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
m0.mrc 1
m1.mrc 1
"""


@pytest.mark.parametrize(
    ("u", "v", "angle", "shift", "cs"),
    [(18000, 16500, 30, 0, 2.7), (12000, 11000, -70, 0, 0.01), (9000, 8200, 60, 90, 2.7)],
)
def test_the_ctf_of_relion_is_found(tmp_path, relion, u, v, angle, shift, cs):
    relion(
        "ctf_toolbox", "--simulate", "ctf.mrc", "--angpix", "1.2", "--box", "1536", "--kV", "300", "--Q0", "0.1",
        "--Cs", str(cs), "--defU", str(u), "--defV", str(v), "--defAng", str(angle), "--phase_shift", str(shift),
    )  # fmt: skip
    ctf = np.fft.ifftshift(mrcfile.read(tmp_path / "ctf.mrc"))
    rng = np.random.default_rng(u)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(1536, 1.2), np.fft.fftfreq(1536, 1.2)))
    signal = np.fft.ifft2(np.fft.fft2(rng.standard_normal(ctf.shape)) * ctf * np.exp(-25 * k**2)).real
    search = CtfSearch(phase_shift=(0.0, np.pi) if shift else (0.0, 0.0))
    image = (signal + rng.standard_normal(ctf.shape)).astype(np.float32)
    fit = estimate_ctf(image, 1.2, Microscope(300.0, cs * 1e7, 0.1), CtfSettings(search)).fit
    assert fit.defocus_u == pytest.approx(u, abs=80)
    assert fit.defocus_v == pytest.approx(v, abs=80)
    assert abs((np.rad2deg(fit.defocus_angle) - angle + 90) % 180 - 90) < 4
    assert np.rad2deg(fit.phase_shift) == pytest.approx(shift, abs=6)


def test_relion_extracts_by_the_table_of_micrographs(tmp_path, relion):
    scene = SimulatedScene(shape=(512, 512), pixel_size=1.5, ice=2.0, defocus_u=16000.0, defocus_v=15000.0)
    for number in range(2):
        image = simulate_micrograph(replace(scene, defocus_angle=0.5 * number), number)
        write_mrc(tmp_path / f"m{number}.mrc", image[None], 2)
        (tmp_path / f"m{number}_pick.star").write_text(COORDINATES)
    given = tmp_path / "given.star"
    given.write_text(TABLE)
    run(ImportMicrographs(micrographs=str(given), out=str(tmp_path / "mics")))
    run(EstimateCtf(micrographs=str(tmp_path / "mics"), out=str(tmp_path / "ctf")))
    run(Export(source=str(tmp_path / "ctf"), out=str(tmp_path / "files")))
    relion(
        "preprocess", "--i", "files/micrographs_ctf.star", "--coord_suffix", "_pick.star", "--coord_dir", "./",
        "--extract", "--extract_size", "64", "--part_dir", "Extract/", "--part_star", "particles.star",
    )  # fmt: skip
    (particles,) = (t for t in read_star(tmp_path / "particles.star").values() if "rlnImageName" in t)
    (table,) = (t for t in read_star(tmp_path / "files/micrographs_ctf.star").values() if "rlnDefocusU" in t)
    assert len(particles["rlnImageName"]) == 4
    expected = np.repeat(table["rlnDefocusU"].astype(np.float64), 2)
    np.testing.assert_allclose(particles["rlnDefocusU"].astype(np.float64), expected, atol=0.01)
