import contextlib
import errno
import os
import tracemalloc

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
from cloudem.io import writing
from cloudem.io.importing import background, import_particles, normalise
from cloudem.io.mrc import write_stack
from cloudem.io.relion import read_particles_star
from cloudem.io.store import open_particles
from tests.io.conftest import BOX, COUNT, LABELS, OPTICS, loop, particle_rows


def run(path, out, **options):
    summary = import_particles(read_particles_star(path), out, **options)
    return open_particles(out), summary


def restack(project, images, box=BOX):
    write_stack(project / "Extract" / "a.mrcs", [images], len(images), 1.34)


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
    assert store.pixel_size == 1.34


def test_normalising_twice_changes_nothing_that_matters():
    images = np.random.default_rng(0).standard_normal((5, 32, 32), dtype=np.float32)
    outside = background(32, 28)
    once = normalise(images, outside).images
    np.testing.assert_allclose(normalise(once, outside).images, once, atol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scale=st.floats(1e-3, 1e4), offset=st.floats(-1e4, 1e4))
def test_normalised_images_do_not_depend_on_grey_values(scale, offset):
    images = np.random.default_rng(0).standard_normal((2, 16, 16))
    outside = background(16, 14)
    wanted = normalise(images.astype(np.float32), outside).images
    got = normalise((images * scale + offset).astype(np.float32), outside).images
    np.testing.assert_allclose(got, wanted, atol=1e-4 + 1e-6 * abs(offset) / scale)


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


def test_an_odd_box(project, images, edit_star):
    restack(project, images[:, :15, :15])
    with pytest.raises(ParameterError, match="even box"):
        run(edit_star(" 16 2 ", " 15 2 "), project / "p.zarr")


def test_pixel_sizes(project, edit_star):
    path = edit_star("1.340000", "1.500000")
    store, summary = run(path, project / "a.zarr")
    assert store.pixel_size == 1.5
    assert "the table is believed" in summary.lines()[0]
    assert run(path, project / "b.zarr", pixel_size=2.0)[0].pixel_size == 2.0
    none = edit_star("_rlnImagePixelSize", "_rlnOther")
    assert run(none, project / "c.zarr")[0].pixel_size == pytest.approx(1.34)


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

    monkeypatch.setattr(writing, "put", full)
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
        patch.setattr("cloudem.io.shards.SHARD_BYTES", 2**20)
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
