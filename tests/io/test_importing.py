import contextlib
import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem.errors import (
    CloudemError,
    FormatError,
    InconsistentDataError,
    MissingInputError,
    OutputExistsError,
    ParameterError,
    StorageError,
)
from cloudem.io import image_writer
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.sources import SourceImages
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles
from cloudem.kernels.background import (
    CONSTANT,
    NOT_FINITE,
    TOO_LARGE,
    USABLE,
    background,
    measure_background,
    scale_images,
)
from tests.io.conftest import BOX, COUNT, LABELS, OPTICS, loop, particle_rows


def run(path, out, **options):
    summary = import_particles(read_particles_star(path), out, **options)
    return open_particles(out), summary


def restack(project, images, box=BOX):
    write_stack(project / "Extract" / "a.mrcs", [images], len(images), 1.34)


def normalise(images, outside, sign=1.0, limit=np.inf):
    """Return the images scaled, what was taken out of them, and what was found."""
    out, found = np.array(images, dtype=np.float32), np.empty(len(images), dtype=np.uint8)
    mean, std = np.empty((2, len(images)), dtype=np.float32)
    measure_background(out, outside.astype(np.float64), mean, std, found)
    scale_images(out, mean, std, np.full(len(images), sign, dtype=np.float32), np.float32(limit), found)
    return out, mean, std, found


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_background_is_normalised_and_the_source_can_be_had_back(project, images, dtype, url):
    store, summary = run(project / "particles.star", url, dtype=dtype, diameter=12.0)
    got = store.read_images(np.arange(COUNT))
    outside = background(BOX, 12.0 / 1.34)
    assert abs(got[:, outside].mean(axis=1)).max() < 1e-3
    assert abs(got[:, outside].std(axis=1) - 1).max() < 1e-3
    back = got * store.particles["image_std"][:, None, None] + store.particles["image_mean"][:, None, None]
    rounding = 2**-11 if dtype == "float16" else 2**-22
    assert (abs(back - images) <= rounding * abs(got * 3.5) + 2e-5).all()
    assert summary.imported == COUNT
    assert summary.lines() == []
    assert store.attributes["warnings"] == summary.lines()
    assert store.pixel_size == 1.34


def test_normalising_twice_changes_nothing_that_matters():
    images = np.random.default_rng(0).standard_normal((5, 32, 32), dtype=np.float32)
    outside = background(32, 28)
    once, *_ = normalise(images, outside)
    np.testing.assert_allclose(normalise(once, outside)[0], once, atol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(factor=st.floats(1e-3, 1e4), offset=st.floats(-1e4, 1e4))
def test_normalised_images_do_not_depend_on_grey_values(factor, offset):
    images = np.random.default_rng(0).standard_normal((2, 16, 16))
    outside = background(16, 14)
    wanted, *_ = normalise(images, outside)
    got, *_ = normalise(images * factor + offset, outside)
    np.testing.assert_allclose(got, wanted, atol=1e-4 + 1e-6 * abs(offset) / factor)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99), factor=st.floats(1e-30, 1e20), offset=st.floats(-100, 100), sign=st.sampled_from([-1, 1])
)
def test_scaling_is_that_of_the_background_to_the_bit(seed, factor, offset, sign):
    images = ((np.random.default_rng(seed).standard_normal((3, 16, 16)) + offset) * factor).astype(np.float32)
    outside = background(16, 14)
    got, mean, std, found = normalise(images, outside, sign)
    pixels = images[:, outside].astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(got, (images - mean[:, None, None]) / std[:, None, None] * np.float32(sign))
    assert (found == USABLE).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    value=st.sampled_from([0.0, -0.0, 1e-45, 7.0, -3e38]),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    places=st.lists(st.integers(0, 255), min_size=1, max_size=3, unique=True),
)
def test_what_is_of_no_use_is_found_wherever_it_is(value, bad, places):
    images = np.full((4, 256), value, dtype=np.float32)
    images[1, places] = bad
    images[2, places] = np.nextafter(np.float32(value), np.float32(1))
    images[3] = np.random.default_rng(0).standard_normal(256)
    images[3, places[0]] = 66000
    images = images.reshape(4, 16, 16)
    outside = np.ones((16, 16), dtype=bool)
    mean, std = np.empty((2, 4), dtype=np.float32)
    found = np.empty(4, dtype=np.uint8)
    measure_background(images, outside.astype(np.float64), mean, std, found)
    assert found.tolist() == [CONSTANT, NOT_FINITE, USABLE, USABLE]
    mean[:], std[:] = 0, 1
    kept = images.copy()
    scale_images(kept, mean, std, np.ones(4, dtype=np.float32), np.float32(65504), found)
    assert found.tolist() == [CONSTANT, NOT_FINITE, TOO_LARGE if abs(value) > 1e38 else USABLE, TOO_LARGE]
    np.testing.assert_array_equal(kept, images)


def test_grey_values_are_kept_when_asked_for(project, images):
    store, _ = run(project / "particles.star", project / "p.zarr", keep_greyscale=True)
    assert store.dtype == "float32"
    np.testing.assert_array_equal(store.read_images(np.arange(COUNT)), images)


def test_contrast_is_turned_and_comes_back(project, images):
    plain, _ = run(project / "particles.star", project / "a.zarr", dtype="float32")
    turned, _ = run(project / "particles.star", project / "b.zarr", dtype="float32", invert_contrast=True)
    got = turned.read_images([3])[0]
    np.testing.assert_array_equal(got, -plain.read_images([3])[0])
    np.testing.assert_allclose(
        got * turned.particles["image_std"][3] + turned.particles["image_mean"][3], images[3], rtol=1e-5
    )


def test_images_that_cannot_be_used_are_counted_named_and_left_out(project, images):
    bad = images.copy()
    bad[2, 5, 5], bad[7, 0, 0], bad[9] = np.nan, np.inf, 4.0
    bad[11, 8, 8] = 1e6
    restack(project, bad)
    store, summary = run(project / "particles.star", project / "p.zarr")
    assert len(store) == COUNT - 4
    assert summary.left_out == {
        "NaN or infinite": ["000003@Extract/a.mrcs", "000008@Extract/a.mrcs"],
        "constant": ["000010@Extract/a.mrcs"],
        "values beyond half precision": ["000012@Extract/a.mrcs"],
    }
    assert "left out 2 images (NaN or infinite): 000003@Extract/a.mrcs" in summary.lines()[0]
    assert store.attributes["left_out"]["constant"] == {"count": 1, "images": ["000010@Extract/a.mrcs"]}
    assert "000003@Extract/a.mrcs" not in store.particles["image_name"].tolist()
    defocus = read_particles_star(project / "particles.star").particles["defocus_u"]
    assert store.particles["defocus_u"].tolist() == np.delete(defocus, [2, 7, 9, 11]).tolist()


def test_noise_free_images_on_an_empty_background(project, images):
    empty = np.zeros_like(images)
    empty[:, 6:10, 6:10] = images[:, 6:10, 6:10]
    restack(project, empty)
    store, summary = run(project / "particles.star", project / "p.zarr")
    assert summary.imported == COUNT
    assert np.isfinite(store.read_images([0])).all()
    assert store.read_images([0]).std() == pytest.approx(1, rel=1e-3)


def test_only_bad_images(project, images):
    restack(project, np.ones_like(images))
    with pytest.raises(FormatError, match="no image can be used \\(40 constant\\)"):
        run(project / "particles.star", project / "p.zarr")
    assert not list(project.glob("p.zarr*"))


def test_stacks_are_found_from_the_working_directory_then_beside_the_table(project, images, monkeypatch, tmp_path):
    job = project / "Refine3D" / "job001"
    job.mkdir(parents=True)
    table = job / "run_data.star"
    (project / "particles.star").rename(table)
    assert len(run(table, tmp_path / "a.zarr")[0]) == COUNT
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "Extract").mkdir(parents=True)
    write_stack(elsewhere / "Extract" / "a.mrcs", [images[::-1]], COUNT, 1.34)
    monkeypatch.chdir(elsewhere)
    here, _ = run(table, tmp_path / "b.zarr", keep_greyscale=True)
    np.testing.assert_array_equal(here.read_images([0])[0], images[-1])
    given, _ = run(table, tmp_path / "c.zarr", keep_greyscale=True, project_folder=project)
    np.testing.assert_array_equal(given.read_images([0])[0], images[0])


def test_rows_in_any_order_over_several_stacks(project, images):
    write_stack(project / "Extract" / "b.mrcs", [images[:7] + 100], 7, 1.34)
    rows = particle_rows(10)
    picks = [(5, "a"), (6, "a"), (2, "b"), (1, "a"), (7, "b"), (40, "a"), (5, "a"), (1, "b"), (2, "b"), (4, "b")]
    rows = [f"{n}@Extract/{s}.mrcs " + row.split(" ", 1)[1] for (n, s), row in zip(picks, rows, strict=True)]
    (project / "particles.star").write_text(OPTICS + "\ndata_particles\n\n" + loop(LABELS, rows))
    store, _ = run(project / "particles.star", project / "p.zarr", keep_greyscale=True)
    expected = np.stack([images[n - 1] + (100 if s == "b" else 0) for n, s in picks])
    np.testing.assert_array_equal(store.read_images(np.arange(10)), expected)


def test_bad_stacks_are_one_clear_line_and_leave_nothing(project, images):
    path, stack = project / "particles.star", project / "Extract" / "a.mrcs"
    good = stack.read_bytes()

    def other_box():
        write_stack(project / "Extract" / "b.mrcs", [np.zeros((40, 18, 18))], 40, 1.34)
        path.write_text(path.read_text().replace("000003@Extract/a", "000003@Extract/b"))

    cases = [
        (lambda: stack.write_bytes(good[:-4]), FormatError, "truncated"),
        (lambda: write_stack(stack, [images[:30]], 30, 1.34), InconsistentDataError, "image 31 of .* which has 30"),
        (lambda: write_stack(stack, [images[:, :, :14]], COUNT, 1.34), InconsistentDataError, "14 x 16"),
        (lambda: write_stack(stack, [images[:, :14, :14]], COUNT, 1.34), InconsistentDataError, "16 pixels, .* has 14"),
        (stack.unlink, MissingInputError, "Extract/a.mrcs, not found"),
        (other_box, InconsistentDataError, "mixed box sizes"),
    ]
    for damage, error, words in cases:
        stack.write_bytes(good)
        damage()
        with pytest.raises(error, match=words) as caught:
            run(path, project / "p.zarr")
        assert "\n" not in str(caught.value)
        assert not list(project.glob("p.zarr*"))


def test_pixel_sizes(project, edit_star):
    path = edit_star("1.340000", "1.500000")
    store, summary = run(path, project / "a.zarr")
    assert store.pixel_size == 1.5
    assert "the table is believed" in summary.lines()[0]
    assert run(path, project / "b.zarr", pixel_size=2.0)[0].pixel_size == 2.0
    again, summary = run(path, project / "same.zarr", pixel_size=1.5)
    assert again.particles["shift_x"].tolist() == store.particles["shift_x"].tolist()
    assert not any("replaced" in line for line in summary.lines())
    none = edit_star("_rlnImagePixelSize", "_rlnOther")
    assert run(none, project / "c.zarr")[0].pixel_size == pytest.approx(1.34)


def test_shifts_keep_their_pixels_at_another_pixel_size(project):
    path = project / "particles.star"
    before, (store, summary) = read_particles_star(path).particles, run(path, project / "p.zarr", pixel_size=1.474)
    for name in ("shift_x", "shift_y"):
        np.testing.assert_allclose(store.particles[name] / 1.474, before[name] / 1.34, rtol=1e-12)
    assert store.particles["defocus_u"].tolist() == before["defocus_u"].tolist()
    (line,) = (line for line in summary.lines() if "replaced" in line)
    assert "1.34 Å per pixel are replaced by 1.474; shifts keep their number of pixels; defocus was fitted" in line
    assert "1.21 times" in line


@pytest.mark.parametrize("given", [None, 2.0])
def test_shifts_in_pixels_of_a_table_without_a_pixel_size(project, given):
    """It is known from the option, or from the stacks."""
    labels = ["rlnImageName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDefocusU",
              "rlnOriginX", "rlnOriginY"]  # fmt: skip
    path = project / "old.star"
    path.write_text("data_\n" + loop(labels, [f"{i + 1}@Extract/a.mrcs 300 2.7 0.1 10000 2 -1.5" for i in range(5)]))
    store, summary = run(path, project / "p.zarr", pixel_size=given)
    size = given or 1.34
    np.testing.assert_allclose(store.particles["shift_x"], np.full(5, -2 * size), rtol=1e-6)
    np.testing.assert_allclose(store.particles["shift_y"], np.full(5, 1.5 * size), rtol=1e-6)
    assert summary.lines() == []


def test_a_table_with_impossible_values_is_refused_before_an_image_is_read(project, edit_star):
    with pytest.raises(InconsistentDataError, match=r"gridB of .*particles\.star has a voltage of 200000 kV"):
        run(edit_star("200.000000", "200000.0"), project / "p.zarr")
    assert not list(project.glob("p.zarr*"))


def test_a_circle_that_leaves_no_background(project):
    with pytest.raises(ParameterError, match="smaller --diameter-A"):
        run(project / "particles.star", project / "p.zarr", diameter=100.0)


def test_an_output_that_exists(project):
    run(project / "particles.star", project / "p.zarr")
    with pytest.raises(OutputExistsError):
        run(project / "particles.star", project / "p.zarr")


def test_a_full_disk_leaves_nothing(project, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image_writer, "put", full)
    with pytest.raises(StorageError, match="disk is full"):
        run(project / "particles.star", project / "p.zarr")
    assert not list(project.glob("p.zarr*"))


def test_a_disk_that_is_really_full_leaves_nothing(project, small_disk):
    write_stack(project / "Extract" / "a.mrcs", [np.random.default_rng(0).random((COUNT, 256, 256))], COUNT, 1.34)
    path = project / "particles.star"
    path.write_text(path.read_text().replace(" 16 2 ", " 256 2 "))
    with pytest.raises(StorageError, match="disk is full"):
        run(path, small_disk / "p.zarr")
    assert list(small_disk.iterdir()) == []


def test_an_interrupted_import_leaves_nothing(project):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(project / "particles.star", project / "p.zarr", on_progress=interrupt)
    assert not list(project.glob("p.zarr*"))


def test_progress_adds_up(project):
    done = []
    run(project / "particles.star", project / "p.zarr", on_progress=done.append)
    assert sum(done) == COUNT


def test_memory_does_not_grow_with_the_stack(project):
    """4,096 images of 64 pixels are 64 MiB; with small batches and shards a tenth of that must do."""
    box, count = 64, 4096
    rng = np.random.default_rng(0)
    batches = (rng.standard_normal((256, box, box), dtype=np.float32) for _ in range(count // 256))
    write_stack(project / "Extract" / "big.mrcs", batches, count, 1.34)
    rows = [f"{i + 1}@Extract/big.mrcs 1e4" for i in range(count)]
    (project / "big.star").write_text("data_\n" + loop(["rlnImageName", "rlnDefocusU"], rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloudem.io.importing._BATCH_BYTES", 2**20)
        patch.setattr("cloudem.io.images.layout.SHARD_BYTES", 2**20)
        source = read_particles_star(project / "big.star", allow_no_ctf=True)
        tracemalloc.start()
        try:
            import_particles(source, project / "big.zarr")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 * 2**20
    assert len(open_particles(project / "big.zarr")) == count


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cut=st.integers(0, 5000), junk=st.binary(max_size=6))
def test_no_damage_to_the_table_ends_in_anything_but_a_clear_line(tmp_path_factory, cut, junk):
    path = tmp_path_factory.mktemp("junk") / "x.star"
    text = (OPTICS + "\ndata_particles\n\n" + loop(LABELS, particle_rows(20))).encode()
    path.write_bytes(text[:cut] + junk + text[cut + len(junk) + 3 :])
    with contextlib.suppress(CloudemError):
        assert len(read_particles_star(path).particles) <= 20


def write_mrc(path, images, dtype, extended):
    """Write a stack of any mode and byte order, with an extended header."""
    write_stack(path, [images[:1]], 1, 1.34)
    order, kind = dtype
    words = np.frombuffer(path.read_bytes()[:1024], "<i4").copy()
    words[2:4], words[23] = (len(images), {"i1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12}[kind]), extended
    header = bytearray(words.astype(order + "i4").tobytes())
    header[208:216] = b"MAP \x44\x44\0\0" if order == "<" else b"MAP \x11\x11\0\0"
    path.write_bytes(bytes(header) + bytes(extended) + images.astype(order + kind).tobytes())


@pytest.mark.parametrize("extended", [0, 1, 512])
@pytest.mark.parametrize("kind", ["i1", "i2", "f4", "u2", "f2"])
@pytest.mark.parametrize("order", "<>")
def test_images_of_any_mode_are_read_in_any_order(project, order, kind, extended, monkeypatch):
    monkeypatch.setattr("cloudem.io.formats.sources._FILES_KEPT", 2)
    stacks = np.random.default_rng(0).integers(0, 100, (3, 9, BOX, BOX))
    for number, images in enumerate(stacks):
        write_mrc(project / "Extract" / f"{number}.mrcs", images, (order, kind), extended)
    picks = [(0, 3), (0, 4), (0, 5), (0, 2), (1, 2), (1, 3), (2, 4), (0, 8), (0, 0), (2, 0), (2, 0), (1, 8)]
    rows = [
        f"{n + 1}@Extract/{s}.mrcs " + row.split(" ", 1)[1]
        for (s, n), row in zip(picks, particle_rows(12), strict=True)
    ]
    (project / "particles.star").write_text(OPTICS + "\ndata_particles\n\n" + loop(LABELS, rows))
    images = SourceImages(read_particles_star(project / "particles.star"))
    expected = np.stack([stacks[pick] for pick in picks]).astype(np.float32)
    np.testing.assert_array_equal(images.read(0, 12), expected)
    memory = np.full((8, BOX, BOX), np.nan, dtype=np.float32)
    for start, stop in ((1, 9), (7, 12)):
        got = images.read(start, stop, memory)
        assert np.shares_memory(got, memory)
        np.testing.assert_array_equal(got, expected[start:stop])


def test_a_stack_that_changes_while_it_is_read(project):
    table, stack = read_particles_star(project / "particles.star"), project / "Extract" / "a.mrcs"
    images, others = SourceImages(table), SourceImages(table)
    os.truncate(stack, stack.stat().st_size - 4)
    assert np.isfinite(images.read(0, COUNT - 1)).all()
    with pytest.raises(FormatError, match="has become shorter while it was read"):
        images.read(COUNT - 1, COUNT)
    stack.unlink()
    with pytest.raises(StorageError, match=r"a\.mrcs: .*No such file"):
        others.read(0, 1)


def test_stacks_are_closed_with_their_reader(project):
    stack = os.path.realpath(project / "Extract" / "a.mrcs")

    def opened():
        return [place for place in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if place == stack]

    images = SourceImages(read_particles_star(project / "particles.star"))
    images.read(0, 3)
    assert len(opened()) == 1
    del images
    assert opened() == []
