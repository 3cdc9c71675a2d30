"""Subtraction on reading: what is left of the subtracted part, and that every job and export see the same images."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.algorithms.aberrations import aberrations_of
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.cloud.planning.work import Size
from cloudem.errors import InconsistentDataError, MissingInputError, ParameterError, StorageError
from cloudem.io.formats.mrc import map_stack
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.formats.star import read_star
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_attributes, read_group, write_group
from cloudem.jobs.dataset import open_dataset, open_for_tasks
from cloudem.jobs.expand_symmetry import ExpandSymmetry
from cloudem.jobs.export import Export
from cloudem.jobs.opened import open_result
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.select import Select
from cloudem.jobs.subtract import Subtract
from cloudem.kernels.fourier import fourier_images, real_images
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import TEXT, Particles
from tests.jobs.conftest import BOX, DIAMETER, PIXEL, molecule, run

COUNT = 240
SIMULATED = OpticsGroup("simulated", 300.0, 2.7e7, 0.1)
TILTED = OpticsGroup("tilted", 300.0, 2.7e7, 0.1, {"rlnBeamTiltX": "40.0", "rlnBeamTiltY": "-20.0"})


@dataclass(frozen=True)
class Halved:
    """A molecule of two halves, reconstructed from images without noise; one half of it is subtracted."""

    folder: Path
    less: str
    mask: str
    kept: NDArray[np.float32]
    gone: NDArray[np.float32]


def simulated(density: NDArray[np.float32], table: Particles) -> NDArray[np.float32]:
    """Return images without noise, with the odd phases of their optics groups."""
    plain = Particles((SIMULATED, SIMULATED), table.columns)
    transforms = fourier_images(np.concatenate(list(Simulator(density, PIXEL, plain, Recording(snr=None)).images())))
    turned = aberrations_of(table.optics).freed(transforms.conj(), table["optics_group"], BOX * PIXEL).conj()
    assert np.abs(turned - transforms)[1].max() > 0.1 * np.abs(transforms)[1].max()
    return np.asarray(50 * real_images(turned), np.float32)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Halved:
    folder = tmp_path_factory.mktemp("halved")
    density = molecule()
    mask = np.roll(soft_sphere(BOX, 9, 4.0), 8, axis=0)  # what lies above
    truth = random_particles(COUNT, Recording(per_micrograph=20), 4)
    truth = Particles((SIMULATED, TILTED), truth.columns).with_columns(
        optics_group=np.arange(COUNT) % 2, image_name=np.array([f"{i + 1}@old.mrcs" for i in range(COUNT)], TEXT)
    )
    kept, gone = (simulated(part, truth) for part in (density * mask, density * (1 - mask)))
    write_particles(folder / "particles", truth, [kept + gone], box=BOX, pixel_size=PIXEL, dtype="float32")
    write_volume(folder / "mask.mrc", mask, PIXEL)
    run(Reconstruct(particles=str(folder / "particles"), diameter_A=DIAMETER, out=str(folder / "whole"), report=False))
    less = str(folder / "less")
    run(Subtract(particles=str(folder / "whole"), mask=str(folder / "mask.mrc"), out=less))
    return Halved(folder, less, str(folder / "mask.mrc"), kept, gone)


def test_little_is_left_of_what_is_subtracted(halved: Halved) -> None:
    """Also of a group with beam tilt, whose phases the projection has as well."""
    images = open_dataset(halved.less).images(np.arange(COUNT))
    for group in (0, 1):
        left = (images - halved.kept)[group::2]
        assert np.mean(left**2) < 0.02 * np.mean(halved.gone[group::2] ** 2), group
    assert not (Path(halved.less) / "images").exists()
    assert 0.2 < open_result(halved.less).attributes["subtracted_share"] < 0.8
    assert "Factor on what is subtracted" in (Path(halved.less) / "report.html").read_text()


def test_factors_owe_nothing_to_images_of_the_other_half_set(halved: Halved, tmp_path: Path) -> None:
    whole = str(halved.folder / "whole")
    table = open_particles(whole).particles
    images = open_dataset(whole).images(np.arange(COUNT))
    noise = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    images[table["half_set"] == 2] += 3 * images.std() * noise[table["half_set"] == 2]
    write_particles(tmp_path / "noisy", table, [images], box=BOX, pixel_size=PIXEL, dtype="float32")
    less = str(tmp_path / "less")
    run(Subtract(particles=str(tmp_path / "noisy"), halves=whole, mask=halved.mask, out=less))
    before, after = (open_particles(url).particles["subtract_scale"] for url in (halved.less, less))
    np.testing.assert_array_equal(before[table["half_set"] == 1], after[table["half_set"] == 1])
    assert not np.array_equal(before, after)


def test_half_maps_of_noise_are_refused(halved: Halved, tmp_path: Path) -> None:
    table = open_particles(halved.folder / "particles").particles
    noise = np.random.default_rng(0).standard_normal((COUNT, BOX, BOX)).astype(np.float32)
    write_particles(tmp_path / "noise", table, [noise], box=BOX, pixel_size=PIXEL, dtype="float32")
    run(Reconstruct(particles=str(tmp_path / "noise"), diameter_A=DIAMETER, out=str(tmp_path / "whole"), report=False))
    with pytest.raises(ParameterError, match="agree to 160 Å only"):
        run(Subtract(particles=str(tmp_path / "whole"), mask=halved.mask, out=str(tmp_path / "less")))


def test_tables_made_of_it_are_subtracted_as_it_is(halved: Halved, tmp_path: Path) -> None:
    """Whatever becomes of poses and rows: the pose in which it was subtracted stays."""
    some, mates = str(tmp_path / "some"), str(tmp_path / "mates")
    run(Select(particles=halved.less, where="defocus_u < 18000", out=some, report=False))
    run(ExpandSymmetry(particles=some, symmetry="C2", out=mates))
    rows = open_particles(some).particles["store_row"]
    whole = open_dataset(halved.less).images(rows)
    count = len(rows)
    np.testing.assert_array_equal(open_for_tasks(some).images(np.arange(count)), whole)
    np.testing.assert_array_equal(open_for_tasks(mates).images(np.arange(count) + count), whole)
    assert 0 < count < COUNT


def test_export_writes_the_pixels(halved: Halved, tmp_path: Path) -> None:
    said = run(Export(source=halved.less, out=str(tmp_path / "files"))).warnings()
    assert any("images are written, too" in text for text in said)
    written = map_stack(tmp_path / "files/particles.mrcs")[0]
    np.testing.assert_allclose(written, open_dataset(halved.less).images(np.arange(COUNT)), rtol=1e-6, atol=1e-6)
    table = read_star(tmp_path / "files/particles.star")["particles"]
    assert table["rlnImageOriginalName"][4] == "5@old.mrcs"
    assert table["rlnImageName"][4] == "000005@particles.mrcs"


def test_nobody_reads_them_whole_by_mistake(halved: Halved) -> None:
    with pytest.raises(ParameterError, match="is subtracted when they are read"):
        open_particles(halved.less).read_images([0])
    assert "cannot be shown" not in open_particles(halved.less)._repr_html_()  # type: ignore[operator]


@pytest.fixture
def moved(halved: Halved, tmp_path: Path) -> Path:
    folder = tmp_path / "moved"
    shutil.copytree(halved.folder, folder)
    return folder


def test_the_folder_can_be_moved(halved: Halved, moved: Path) -> None:
    attributes = read_attributes(halved.less, "particles") or {}
    assert attributes["subtracted"]["beside"] == ""  # it lies in the very result
    run(Select(particles=str(moved / "less"), where="defocus_u > 0", out=str(moved / "all"), report=False))
    shutil.move(moved, moved.with_name("again"))
    source = open_particles(str(moved.with_name("again") / "all")).model
    assert source is not None
    assert source.url == str(moved.with_name("again") / "less")


def test_damage_and_changes_are_noticed(moved: Path) -> None:
    less, some = str(moved / "less"), str(moved / "some")
    run(Select(particles=less, where="defocus_u > 0", out=some, report=False))
    arrays, said = read_group(less, "model")
    file = next((moved / "less/model").rglob("0/0/0"))
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    with pytest.raises(StorageError, match="model"):
        open_dataset(some).images(np.arange(2))
    write_group(less, "model", arrays, {**said, "fingerprint": "another"})
    with pytest.raises(InconsistentDataError, match="has been made anew since"):
        open_particles(some)
    shutil.rmtree(moved / "less")
    with pytest.raises(MissingInputError, match="says what is subtracted"):
        open_particles(some)


def test_planned_export_writes_images_of_which_something_will_be_subtracted(tmp_path: Path) -> None:
    job = Export(source=str(tmp_path / "coming"), out=str(tmp_path / "out"))
    for subtracted, images in ((True, 100), (False, 0)):
        stages = job.work({"source": Size(100, (64, 64), 1.0, subtracted=subtracted)}).stages
        assert [stage.items for stage in stages if stage.name == "images"] == [images]


def test_what_cannot_be_subtracted_is_refused(halved: Halved, tmp_path: Path) -> None:
    out, whole = str(tmp_path / "out"), str(halved.folder / "whole")
    with pytest.raises(ParameterError, match="subtracted already"):
        Subtract(particles=halved.less, halves=whole, mask=halved.mask, out=out).preflight()
    with pytest.raises(MissingInputError, match=r"contains no half-maps; name the results .* with --halves"):
        Subtract(particles=halved.less, mask=halved.mask, out=out).preflight()
    other = tmp_path / "other"
    run(Reconstruct(particles=whole, new_halves=True, seed=5, diameter_A=DIAMETER, out=str(other), report=False))
    with pytest.raises(ParameterError, match="in another half-set"):
        Subtract(particles=whole, halves=str(other), mask=halved.mask, out=out).preflight()
    write_volume(tmp_path / "ones.mrc", np.ones((BOX,) * 3, np.float32), PIXEL)
    with pytest.raises(ParameterError, match="nothing is left to subtract"):
        run(Subtract(particles=whole, mask=str(tmp_path / "ones.mrc"), out=out))


def test_a_mask_of_hardly_anything_is_told_of(halved: Halved, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    speck = np.zeros((BOX,) * 3, np.float32)
    speck[BOX // 2, BOX // 2, BOX // 2] = 1
    write_volume(tmp_path / "speck.mrc", speck, PIXEL)
    with caplog.at_level(logging.WARNING):
        run(
            Subtract(
                particles=str(halved.folder / "whole"), mask=str(tmp_path / "speck.mrc"), out=str(tmp_path / "out")
            )
        )
    assert "almost all of the molecule: the mask is that of what stays" in caplog.text
