"""Optics groups of several pixel and box sizes: one grid in the store, and what comes out of it again."""

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.io.exporting import export
from cloudem.io.formats.grids import PixelGrid, common_grid
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import particles_to_blocks, read_particles_star
from cloudem.io.formats.star import read_star
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles
from cloudem.jobs.import_particles import ImportParticles
from tests.io.conftest import loop

GRIDS = {"a": PixelGrid(24, 2.0), "b": PixelGrid(27, 1.7), "c": PixelGrid(26, 2.0)}
COUNT = 12
POSITION = np.random.default_rng(0).uniform(-4, 4, (COUNT, 2))


def spot(grid: PixelGrid, x: float, y: float) -> np.ndarray:
    """Return a Gaussian of 4 Å, which has next to nothing beyond the Nyquist frequency of 2 Å, on a slope."""
    r = (np.arange(grid.box) - grid.box // 2) * grid.pixel_size
    return np.exp(-((r - x) ** 2 + (r[:, None] - y) ** 2) / (2 * 4.0**2))


def write(folder: Path, used: str = "abc", sizes: bool = True) -> Path:
    """Write particles in turn of some grids; images show a spot at the particle's place."""
    names = list(used)
    optics = [
        f"{name} {i + 1} 300 2.7 0.1 {GRIDS[name].pixel_size} {GRIDS[name].box} 2 0.{i + 1} [0.25,-0.125]"
        for i, name in enumerate(names)
    ]
    labels = ["rlnOpticsGroupName", "rlnOpticsGroup", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast",
              "rlnImagePixelSize", "rlnImageSize" if sizes else "rlnOther", "rlnImageDimensionality", "rlnBeamTiltX",
              "rlnOddZernike"]  # fmt: skip
    rows = []
    for i, (x, y) in enumerate(POSITION):
        name = names[i % len(names)]
        rows.append(f"{i // len(names) + 1}@{name}.mrcs {i % len(names) + 1} 1e4 9.9e3 10 {-x:.9f} {-y:.9f} 7 8")
    for k, name in enumerate(names):
        here = [spot(GRIDS[name], *POSITION[i]) for i in range(k, COUNT, len(names))]
        write_stack(folder / f"{name}.mrcs", [np.array(here, np.float32)], len(here), GRIDS[name].pixel_size)
    columns = ["rlnImageName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnOriginXAngst",
               "rlnOriginYAngst", "rlnCoordinateX", "rlnCoordinateY"]  # fmt: skip
    path = folder / "p.star"
    path.write_text(f"data_optics\n\n{loop(labels, optics)}data_particles\n\n{loop(columns, rows)}")
    return path


def test_all_groups_are_brought_to_the_coarsest_pixel_and_what_they_show_stays_in_its_place(tmp_path):
    path = write(tmp_path)
    summary = import_particles(read_particles_star(path), tmp_path / "p.zarr", dtype="float32", diameter=26.0)
    store = open_particles(tmp_path / "p.zarr")
    target = PixelGrid(22, 2.0)  # 26 px of 1.7 Å are 44.2 Å
    assert (store.box, store.pixel_size) == target
    (line,) = summary.lines()
    assert "images of 27 px of 1.7 Å and 24 px of 2 Å and 26 px of 2 Å are resampled to 22 px of 2 Å" in line
    table = store.particles
    np.testing.assert_allclose(np.stack([table["shift_x"], table["shift_y"]], axis=1), POSITION, atol=1e-8)
    np.testing.assert_array_equal(table["coordinate_x"], 7)
    exact = np.array([spot(target, *place) for place in POSITION])
    values = (
        store.read_images(np.arange(COUNT)) * table["image_std"][:, None, None] + table["image_mean"][:, None, None]
    )
    assert abs(values - exact).max() < 1e-4
    assert [group.beam_tilt for group in table.optics] == [(0.1, 0.0), (0.2, 0.0), (0.3, 0.0)]


def test_a_stack_is_exported_with_the_new_pixels_and_a_table_alone_with_the_old_ones(tmp_path):
    path = write(tmp_path)
    import_particles(read_particles_star(path), tmp_path / "p.zarr")
    export(tmp_path / "p.zarr", tmp_path / "files")
    optics = read_star(tmp_path / "files" / "particles.star")["optics"]
    assert optics["rlnImagePixelSize"].tolist() == ["2"] * 3
    assert optics["rlnImageSize"].tolist() == ["22"] * 3
    assert not any("Source" in label for label in optics)
    assert optics["rlnOddZernike"].tolist() == ["[0.25,-0.125]"] * 3
    again = read_particles_star(tmp_path / "files" / "particles.star")
    assert (again.pixel_size, again.box) == (2.0, 22)
    table = open_particles(tmp_path / "p.zarr").particles
    old = particles_to_blocks(table, box=22, pixel_size=2.0, of_source=True)["optics"]
    assert [float(size) for size in old["rlnImagePixelSize"]] == [2.0, 1.7, 2.0]
    assert old["rlnImageSize"].tolist() == ["24", "27", "26"]


def test_boxes_that_only_the_stacks_state_and_one_odd_box(tmp_path):
    import_particles(read_particles_star(write(tmp_path, "ab", sizes=False)), tmp_path / "p.zarr")
    assert open_particles(tmp_path / "p.zarr").box == 22
    summary = import_particles(read_particles_star(write(tmp_path, "b")), tmp_path / "odd.zarr", dtype="float32")
    store = open_particles(tmp_path / "odd.zarr")
    assert (store.box, store.pixel_size) == (26, 1.7)
    assert "27 px of 1.7 Å are resampled to 26 px" in summary.lines()[0]


@pytest.mark.parametrize(
    ("wanted", "box", "size"), [((None, 3.0), 14, 3.0), ((16, None), 16, 2.0), ((10, 4.0), 10, 4.0)]
)
def test_the_grid_may_be_chosen(tmp_path, wanted, box, size):
    path = write(tmp_path)
    job = ImportParticles(
        particles=str(path), out=str(tmp_path / "p.zarr"), target_box_px=wanted[0], target_pixel_size_A=wanted[1]
    )
    planned = job.size_of("particles")
    assert planned is not None
    assert (planned.box, planned.pixel_size) == (box, size)
    import_particles(job.source, job.out, target_box=wanted[0], target_pixel_size=wanted[1])
    store = open_particles(job.out)
    assert (store.box, store.pixel_size) == (box, size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_pixel_size": 1.8}, "1.8 is finer than the images of 2 Å per pixel, which hold no such detail"),
        (
            {"target_box": 24},
            "24 is odd, or larger than the smallest images, 27 px of 1.7 Å; give an even number up to 22",
        ),
        ({"target_box": 21}, "21 is odd"),
        ({"pixel_size": 1.9}, "--pixel-size-A 1.9 cannot stand for the pixel sizes of several optics groups"),
    ],
)
def test_grids_that_make_something_up_are_refused(tmp_path, options, words):
    path = write(tmp_path)
    with pytest.raises(ParameterError, match=words) as caught:
        import_particles(read_particles_star(path), tmp_path / "p.zarr", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("p.zarr*"))


def test_a_box_that_the_stack_does_not_have_is_named(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text().replace("1.7 27 2", "1.7 28 2"))
    with pytest.raises(InconsistentDataError, match=r"says the images have 28 pixels, .*b\.mrcs has 27"):
        import_particles(read_particles_star(path), tmp_path / "p.zarr")


def test_sizes_that_differ_by_rounding_are_one():
    assert common_grid([PixelGrid(128, 1.06), PixelGrid(128, 1.06003)]) == (128, 1.06003)
    assert common_grid([PixelGrid(128, 1.2), PixelGrid(144, 1.06)]) == (126, 1.2)
    assert common_grid([PixelGrid(65, 1.0)]) == (64, 1.0)
    for grids, words in (
        ([PixelGrid(64, 1.0), PixelGrid(64, -1.0)], "a pixel size is -1 Å"),
        ([PixelGrid(64, 1.0), PixelGrid(64, 200.0)], "64 px of 1 Å are smaller than a pixel of 200 Å"),
    ):
        with pytest.raises(InconsistentDataError, match=words):
            common_grid(grids)


def test_shifts_in_pixels_are_those_of_their_own_images(tmp_path):
    """Where only the stacks state a pixel size, and boxes differ."""
    path = write(tmp_path, "ac")
    text = path.read_text().replace("rlnImagePixelSize", "rlnSomething")
    path.write_text(text.replace("rlnOriginXAngst", "rlnOriginX").replace("rlnOriginYAngst", "rlnOriginY"))
    import_particles(read_particles_star(path), tmp_path / "p.zarr", dtype="float32")
    store = open_particles(tmp_path / "p.zarr")
    assert (store.box, store.pixel_size) == (24, 2.0)
    np.testing.assert_allclose(store.particles["shift_x"], 2.0 * POSITION[:, 0], atol=1e-7)
    summary = import_particles(read_particles_star(path), tmp_path / "q.zarr", dtype="float32", pixel_size=1.5)
    store = open_particles(tmp_path / "q.zarr")
    assert (store.box, store.pixel_size) == (24, 1.5)
    np.testing.assert_allclose(store.particles["shift_x"], 1.5 * POSITION[:, 0], atol=1e-7)
    assert len(set(summary.warnings)) == len(summary.warnings)
