"""Stores whose shards are those of a micrograph, written in any order; and windows that are cut when they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from cloudem.errors import DamagedShardError, InconsistentDataError, ParameterError
from cloudem.io.growing_store import begin_growing_store, check_rows, growing_rows, write_copies, write_places
from cloudem.io.images.layout import StackLayout
from cloudem.io.micrographs.images import open_micrograph_image, write_micrograph_image
from cloudem.io.particle_store import RESULT_TABLE, ImageSource, ParticleStore, open_particles
from cloudem.io.storage.groups import read_attributes, write_group
from cloudem.io.storage.location import is_remote, join
from cloudem.io.storage.relative import relative
from cloudem.io.storage.tables import table_to_arrays
from cloudem.kernels.boxes import BoxRecipe, boxed_particles, replace_hot_pixels
from cloudem.model.particles import Particles
from tests.s3 import S3

RECIPE = BoxRecipe(16, 12, 0.8, -1.0)
HOT = 200.0
COUNTS = {"a": 5, "b": 1, "c": 9}


@pytest.fixture(autouse=True)
def few_images_in_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudem.io.images.layout.SHARD_IMAGES", 4)


def micrograph(name: str) -> np.ndarray:
    image = (500 + 30 * np.random.default_rng(ord(name)).normal(size=(60, 70))).astype(np.float32)
    image[30, 30] += 5000
    return image


def corners_of(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).integers(0, 44, (COUNTS[name], 2))


def begin(url: str, *, copied: bool, recipe: BoxRecipe = RECIPE) -> None:
    begin_growing_store(
        join(url, "pixels"), recipe, pixel_size=2.0, dtype="float16", copied=copied, attributes={"date": "once"}
    )


def extracted(url: str, names: str, *, copied: bool = True, done: str = "") -> ParticleStore:
    """Write what is new, and the table of all; as the job does."""
    begin(url, copied=copied)
    layout = StackLayout.growing(RECIPE.size, "float16", windows=not copied)
    store, tables = join(url, "pixels"), []
    for name in names:
        rows, corners = growing_rows(name, COUNTS[name], layout), corners_of(name)
        tables.append(rows)
        if name in done:
            continue
        place = write_micrograph_image(url, name, {"sum": micrograph(name)}, pixel_size=1.5)
        if copied:
            pixels = open_micrograph_image(place).read()
            replace_hot_pixels(pixels, HOT)
            write_copies(store, rows, boxed_particles(pixels, corners, RECIPE).images, layout)
        else:
            write_places(store, rows, place, HOT, corners, layout)
    table = Particles((), {}).with_columns(store_row=np.concatenate(tables))
    arrays, attributes = table_to_arrays(table)
    source = ImageSource(store, "once", relative(store, url))._asdict()
    write_group(url, RESULT_TABLE, arrays, {**attributes, "images": source})
    write_group(url, "", {}, {"kind": "result"})
    return open_particles(url)


@pytest.mark.parametrize("copied", [True, False])
def test_images_are_the_same_in_whatever_order_they_came(tmp_path: Path, copied: bool) -> None:
    whole = extracted(str(tmp_path / "whole"), "abc")
    extracted(str(tmp_path / "grown"), "ca", copied=copied)
    grown = extracted(str(tmp_path / "grown"), "abc", copied=copied, done="ca")
    assert len(grown) == 15
    images = whole.read_images(np.arange(15))
    assert np.isfinite(images).all()
    assert images.tobytes() == grown.read_images(np.arange(15)).tobytes()
    assert whole.particles["store_row"].tolist() == grown.particles["store_row"].tolist()
    some = [14, 3, 3, 0, 9]
    assert images[some].tobytes() == grown.read_images(some).tobytes()
    assert (grown.box, grown.pixel_size, grown.dtype, grown.damaged()) == (12, 2.0, "float16", [])


@pytest.mark.parametrize("copied", [True, False])
def test_they_are_read_from_object_storage_and_from_the_cache(
    bucket: str, s3: S3, tmp_path: Path, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = extracted(str(tmp_path / "here"), "abc").read_images(np.arange(15))
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path / "cache"))
    url = f"s3://{bucket}/growing-{copied}"
    store = extracted(url, "abc", copied=copied)
    assert is_remote(store.image_url)
    for _ in range(2):
        assert store.read_images([14, 3, 3, 0, 9]).tobytes() == here[[14, 3, 3, 0, 9]].tobytes()
    assert store.read_images(np.arange(15)).tobytes() == here.tobytes()
    monkeypatch.setattr("cloudem.io.windows.open_micrograph_image", None)  # all windows of a micrograph are there now
    assert open_particles(url).read_images(np.arange(15)).tobytes() == here.tobytes()


def test_windows_are_read_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0")
    here = extracted(str(tmp_path / "here"), "abc").read_images(np.arange(15))
    store = extracted(str(tmp_path / "reading"), "abc", copied=False)
    assert store.read_images([8, 2, 2, 14]).tobytes() == here[[8, 2, 2, 14]].tobytes()
    assert not (tmp_path / "reading" / "pixels" / "images").exists()


def test_zarr_reads_the_images_too(tmp_path: Path) -> None:
    store = extracted(str(tmp_path / "p"), "abc")
    stack = zarr.open_array(tmp_path / "p" / "pixels" / "images", mode="r")
    row = int(store.particles["store_row"][7])
    np.testing.assert_array_equal(np.asarray(stack[row], np.float32), store.read_images([7])[0])
    assert not np.asarray(stack[row + 1 if row % 4 == 3 else row // 4 * 4 + 4]).any()


def test_shards_take_no_more_than_their_images(tmp_path: Path) -> None:
    store = extracted(str(tmp_path / "p"), "abc")
    files = [each for each in (tmp_path / "p" / "pixels" / "images" / "c").rglob("*") if each.is_file()]
    assert len(files) == 2 + 1 + 3
    assert sum(each.stat().st_size for each in files) == 15 * 12 * 12 * 2 + 6 * (4 * 16 + 4)
    assert len(store) == 15


def test_what_is_lost_is_named_with_the_particles_that_it_held(tmp_path: Path) -> None:
    url = str(tmp_path / "p")
    store = extracted(url, "abc")
    lost = store._layout.key(int(store.particles["store_row"][5]) // 4)
    (tmp_path / "p" / "pixels" / lost).unlink()
    (damage,) = store.damaged()
    assert (damage.shard, damage.rows.tolist(), damage.reason) == (lost, [5], "is missing")
    with pytest.raises(DamagedShardError, match="is missing; it holds the particles of one micrograph: extract"):
        open_particles(url).read_images([5])
    table = store.particles.with_columns(store_row=[int(store.particles["store_row"][4]) + 1])
    write_group(url, RESULT_TABLE, *_with_images(url, table))
    with pytest.raises(DamagedShardError, match="has 1 images, where number 2 was asked for"):
        open_particles(url).read_images([0])


def _with_images(url: str, table: Particles) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    arrays, attributes = table_to_arrays(table)
    return arrays, {**attributes, "images": (read_attributes(url, RESULT_TABLE) or {})["images"]}


def test_a_micrograph_that_is_gone_or_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0")
    store = extracted(str(tmp_path / "p"), "abc", copied=False)
    write_micrograph_image(str(tmp_path / "p"), "b", {"sum": np.zeros((60, 70), np.float32)}, pixel_size=1.5)
    with pytest.raises(DamagedShardError, match="images/b, which holds other pixels by now"):
        store.read_images([5])
    shutil.rmtree(tmp_path / "p" / "images" / "b")
    (damage,) = store.damaged()
    assert damage.rows.tolist() == [5]
    assert "cannot be read" in damage.reason


def test_a_project_that_is_moved_keeps_its_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0")
    before = extracted(str(tmp_path / "old" / "p"), "abc", copied=False).read_images(np.arange(15))
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert open_particles(tmp_path / "new" / "p").read_images(np.arange(15)).tobytes() == before.tobytes()


def test_a_project_that_was_moved_goes_on_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0")
    whole = extracted(str(tmp_path / "whole"), "abc", copied=False).read_images(np.arange(15))
    extracted(str(tmp_path / "old" / "p"), "ab", copied=False)
    shutil.move(tmp_path / "old", tmp_path / "new")
    grown = extracted(str(tmp_path / "new" / "p"), "abc", copied=False, done="ab")
    assert grown.read_images(np.arange(15)).tobytes() == whole.tobytes()
    with pytest.raises(InconsistentDataError, match="holds other images than these"):
        begin(str(tmp_path / "new" / "p"), copied=False, recipe=RECIPE._replace(sign=-RECIPE.sign))


def test_a_store_is_begun_once_and_for_one_kind_of_images(tmp_path: Path) -> None:
    begin(str(tmp_path), copied=True)
    begin(str(tmp_path), copied=True)
    for copied, recipe in ((False, RECIPE), (True, RECIPE._replace(size=10))):
        with pytest.raises(InconsistentDataError, match="holds other images than these"):
            begin(str(tmp_path), copied=copied, recipe=recipe)
    with pytest.raises(ParameterError, match="even box"):
        begin(str(tmp_path / "odd"), copied=True, recipe=RECIPE._replace(size=11))


def test_the_numbers_of_images_tell_micrographs_apart() -> None:
    layout = StackLayout.growing(12, "float16")
    rows = np.concatenate([growing_rows(name, 9, layout) for name in "abc"])
    assert len(np.unique(rows)) == 27
    assert rows.max() < layout.count
    assert growing_rows("a", 0, layout).size == 0
    check_rows(rows, ["x"] * 27)
    with pytest.raises(InconsistentDataError, match="have the same number in the store"):
        check_rows(np.append(rows, rows[3]), ["x"] * 27 + ["y"])
