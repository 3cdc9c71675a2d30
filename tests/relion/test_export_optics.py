"""Tables that went through a store say the same to RELION as before: its maps of both are one."""

from pathlib import Path

import numpy as np
import pytest

from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.io.exporting import export
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import particles_to_blocks, read_particles_star
from cloudem.io.formats.star import read_star, write_star
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles
from tests.phantom import blobs

BOX, PIXEL, COUNT = 32, 1.5, 80
RECORDING = Recording(
    snr=None,
    beam_tilt=(1.5, -1.0),
    odd_zernike=(0, 0, 3.0, 0, 0, -2.0),
    even_zernike=(0, 0, 0, 0, 2.0, 0, 0, 0, -1.5),
    magnification=(1.02, 0.005, 0.005, 0.985),
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a STAR file of images without noise, with aberrations in the optics table."""
    density = blobs(reach=9, sigma=(0.8, 1.2)).density(BOX)
    particles = random_particles(COUNT, RECORDING, 0)
    images = Simulator(density, PIXEL, particles, RECORDING).images()
    write_stack(tmp_path / "p.mrcs", list(images), COUNT, PIXEL)
    named = particles.with_columns(image_name=[f"{i + 1:06d}@p.mrcs" for i in range(COUNT)])
    write_star(tmp_path / "p.star", particles_to_blocks(named, box=BOX, pixel_size=PIXEL))
    return tmp_path / "p.star"


def reconstructed(relion, folder: Path, star: str) -> np.ndarray:
    relion("reconstruct", "--i", star, "--o", "map.mrc", "--ctf", "--skip_gridding")
    return np.array(read_volume(folder / "map.mrc").data)


def test_relion_makes_the_same_map_of_an_exported_table(table, relion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import_particles(read_particles_star(table), tmp_path / "p.zarr", keep_greyscale=True)
    export(tmp_path / "p.zarr", tmp_path / "files")
    exported = read_star(tmp_path / "files" / "particles.star")
    exported["particles"]["rlnImageName"] = open_particles(tmp_path / "p.zarr").particles["image_name"]
    write_star(tmp_path / "again.star", exported)
    before, after = (reconstructed(relion, tmp_path, star) for star in ("p.star", "again.star"))
    np.testing.assert_array_equal(after, before)
    plain = read_star(table)
    for label in ("rlnBeamTiltX", "rlnOddZernike", "rlnEvenZernike", "rlnMagMat00"):
        assert exported["optics"][label].tolist() == plain["optics"].pop(label).tolist()
    write_star(tmp_path / "plain.star", plain)
    assert np.abs(reconstructed(relion, tmp_path, "plain.star") - before).max() > 0.02 * before.max()


def test_relion_makes_the_same_groups_of_beam_tilts_in_a_table_of_version_30(table, relion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = read_star(table)
    optics, rows = blocks["optics"], dict(blocks["particles"])
    rows.pop("rlnOpticsGroup")
    for label in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        rows[label] = np.full(COUNT, optics[label][0])
    rows["rlnMagnification"] = np.full(COUNT, "10000")
    rows["rlnDetectorPixelSize"] = np.full(COUNT, f"{PIXEL}")
    for axis in "XY":
        rows[f"rlnOrigin{axis}"] = np.array([f"{float(x) / PIXEL:.9f}" for x in rows.pop(f"rlnOrigin{axis}Angst")])
        rows[f"rlnBeamTilt{axis}"] = np.where(np.arange(COUNT) % 3 == 0, "2.5", "-1.5")
    write_star(tmp_path / "old.star", {"": rows})
    text = (tmp_path / "old.star").read_text()
    (tmp_path / "old.star").write_text(text.replace("# version 30001", ""))  # RELION would take it for a later one
    source = read_particles_star(tmp_path / "old.star")
    assert sorted(group.beam_tilt for group in source.particles.optics) == [(-1.5, -1.5), (2.5, 2.5)]
    write_star(tmp_path / "new.star", particles_to_blocks(source.particles, box=BOX, pixel_size=source.pixel_size))
    before, after = (reconstructed(relion, tmp_path, star) for star in ("old.star", "new.star"))
    assert np.abs(after - before).max() < 1e-4 * before.max()
