"""RELION takes out of images what cloudem puts in by the same columns: every sign, and at M k."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloudem.algorithms.aberrations import even_terms
from cloudem.algorithms.mask import soft_sphere
from cloudem.io.formats.mrc import map_stack, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.star import read_star, write_star
from cloudem.jobs.export import Export
from cloudem.jobs.simulate import Simulate
from cloudem.kernels.aberrations import aberrated
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fourier_images, half_disc, sample_half_disc
from cloudem.kernels.shells import fourier_shell_correlation
from tests.jobs.conftest import run
from tests.phantom import blobs

BOX, PIXEL = 64, 2.0
DENSITY = blobs(reach=20, sigma=(0.9, 1.3)).density(BOX)
ABERRATIONS = {
    "beam_tilt_x_mrad": 4.0, "beam_tilt_y_mrad": -3.0, "odd_zernike_rad": "[0.5,0,120,0,0,-80]",
    "even_zernike_rad": "[0.1,2,0,-3,900,0,0,0,600]", "anisotropy": 0.08, "anisotropy_angle_deg": 30.0,
}  # fmt: skip
TILT, MATRIX = ("rlnBeamTiltX", "rlnBeamTiltY"), ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")

Run = Callable[..., None]


def exported(tmp_path: Path, count: int) -> dict[str, dict[str, np.ndarray]]:
    """Simulate noiseless images with aberrations, and return the tables of their STAR file."""
    write_volume(tmp_path / "density.mrc", DENSITY, PIXEL)
    out = tmp_path / "simulated"
    run(Simulate(density=str(tmp_path / "density.mrc"), count=count, noise=False, dtype="float32", defocus_min_A=5e3,
                 defocus_max_A=9e3, out=str(out), **ABERRATIONS))  # fmt: skip
    files = tmp_path / "files"
    run(Export(source=str(out / "particles.zarr"), out=str(files), stack=True))
    (files / "particles.mrcs").rename(tmp_path / "particles.mrcs")  # where RELION runs
    return read_star(files / "particles.star")


@pytest.mark.parametrize("left_out", [(), TILT, ("rlnOddZernike",), ("rlnEvenZernike",), MATRIX], ids=str)
def test_relion_makes_the_map_of_aberrated_images(left_out: tuple[str, ...], relion: Run, tmp_path: Path) -> None:
    blocks = exported(tmp_path, 300)
    blocks["optics"] = {label: column for label, column in blocks["optics"].items() if label not in left_out}
    write_star(tmp_path / "some.star", blocks)
    relion("reconstruct", "--i", "some.star", "--ctf", "--o", "map.mrc", "--skip_gridding")
    sphere = soft_sphere(BOX, 25.0, 4.0)
    curve = fourier_shell_correlation(read_volume(tmp_path / "map.mrc").data * sphere, DENSITY * sphere)
    if left_out:
        assert curve[20:26].mean() < 0.975
    else:
        assert curve[1:26].min() > 0.99
        assert curve[20:26].mean() > 0.993


def test_contrast_transfer_with_even_aberrations_and_magnification(relion: Run, tmp_path: Path) -> None:
    """RELION's projections have these in their CTF, and neither odd phases nor the magnification of the map."""
    blocks = exported(tmp_path, 10)
    write_star(tmp_path / "some.star", blocks)
    transforms, disc = [], half_disc(BOX, BOX // 2 - 1)
    for name, how in (("plain", ()), ("seen", ("--ctf",))):
        relion("project", "--i", "density.mrc", "--ang", "some.star", "--o", name, *how)
        images, _ = map_stack(tmp_path / f"{name}.mrcs")
        transforms.append(sample_half_disc(fourier_images(np.array(images, np.float32)), disc))
    plain, seen = transforms
    table = read_particles_star(tmp_path / "some.star").particles
    optics = table.optics[0]
    defocus = {name: table[name] for name in ("defocus_u", "defocus_v", "defocus_angle")}
    terms = ctf_terms(voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, **defocus)
    matrices = np.tile(optics.magnification, (10, 1, 1))
    values = ctf_values(disc.kx, disc.ky, aberrated(terms, even_terms(optics), matrices), 1 / (BOX * PIXEL))
    strong = np.abs(plain) > 1e-3 * np.abs(plain).max()
    ratio = (seen / np.where(strong, plain, 1)).real
    assert strong.mean() > 0.05
    assert np.abs(np.where(strong, values - ratio, 0)).max() < 2e-3
