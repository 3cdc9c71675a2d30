"""Stores of images that are not square: the same reader and writer as of particles."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr

from cloudem.errors import (
    DamagedShardError,
    FormatError,
    InconsistentDataError,
    MissingInputError,
    OutputExistsError,
    ParameterError,
)
from cloudem.io.image_store import ImageStore
from cloudem.io.images import layout as layout_module
from cloudem.io.images.cache import FOLDER, image_cache
from cloudem.io.micrograph_store import open_micrographs, write_micrographs
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_attributes, write_group
from cloudem.io.storage.location import contents, object_store
from cloudem.io.storage.tables import table_to_arrays
from cloudem.io.storage.zarr_store import zarr_store
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.table import TEXT

SHAPE = (10, 14)
OPTICS = (OpticsGroup("a", 300.0, 2.7e7, 0.1),)


def table(count):
    names = np.array([f"m{i}.mrc" for i in range(count)], dtype=TEXT)
    return Micrographs(OPTICS, {"micrograph": names, "dose": np.linspace(40, 60, count)})


def stack(count, shape=SHAPE):
    return np.random.default_rng(count).standard_normal((count, *shape), dtype=np.float32)


def write(url, images, dtype="float16"):
    batches = (images[i : i + 7] for i in range(0, len(images), 7))
    write_micrographs(url, table(len(images)), batches, shape=images.shape[1:], pixel_size=0.83, dtype=dtype)
    return open_micrographs(url)


@pytest.fixture
def small_shards(monkeypatch):
    """Two micrographs in a shard, as of those of 16 MPixel."""
    monkeypatch.setattr(layout_module, "SHARD_BYTES", 2 * 2 * SHAPE[0] * SHAPE[1] + 10)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 40])
def test_images_and_table_come_back(url, dtype, count):
    images = stack(count)
    store = write(url, images, dtype)
    assert (len(store), store.shape, store.pixel_size, store.dtype) == (count, SHAPE, 0.83, dtype)
    assert store.micrographs["micrograph"].tolist() == table(count)["micrograph"].tolist()
    expected = images.astype(dtype).astype(np.float32)
    wanted = np.random.default_rng(1).integers(0, count, 30)
    np.testing.assert_array_equal(store.read_images(wanted), expected[wanted])
    assert store.read_images([]).shape == (0, *SHAPE)
    by_zarr = zarr.open_group(zarr_store(url), mode="r")["images"]
    np.testing.assert_array_equal(by_zarr[...].astype(np.float32), expected)
    assert by_zarr.metadata.dimension_names == ("micrograph", "y", "x")
    again = pickle.loads(pickle.dumps(store))
    assert "micrographs" not in vars(again)
    np.testing.assert_array_equal(again.read_images([0]), expected[:1])
    assert again.columns(["dose"])["dose"].tolist() == table(count)["dose"].tolist()


@pytest.mark.usefixtures("small_shards")
def test_shards_of_a_few_images_and_a_cache_between(url, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    images = stack(7)
    store = write(url, images)
    assert (store._layout.chunk, store._layout.shard, store._layout.shards) == (2, 2, 4)
    expected = images.astype(np.float16).astype(np.float32)
    for wanted in ([6, 0, 3], [3, 3, 6, 5], list(range(7))):
        np.testing.assert_array_equal(store.read_images(wanted), expected[wanted])
    if store.remote:
        cache = image_cache()
        assert cache is not None
        shard = cache.shard(url, 1, store._shards._known[1].etag, store._layout)
        assert shard.images.shape == (2, SHAPE[0] * SHAPE[1])
        assert shard.holds(np.array([0, 1])).all()


@pytest.mark.usefixtures("small_shards")
def test_damage_is_named(url):
    store = write(url, stack(7))
    place = object_store(url)
    place.delete("images/c/1/0/0")
    (found,) = open_micrographs(url).damaged()
    assert (found.shard, found.rows.tolist()) == ("images/c/1/0/0", [2, 3])
    with pytest.raises(DamagedShardError, match=r"images/c/1/0/0 is missing.* images 2 to 3 of 7: import the microgr"):
        open_micrographs(url).read_images([0, 3])
    assert store.read_images([0, 1, 4, 5, 6]).shape == (5, *SHAPE)


def test_compressed_ones_are_read_through_zarr(tmp_path):
    images = stack(5).astype(np.float16)
    write(tmp_path / "m.zarr", images.astype(np.float32))
    target = zarr.create_array(
        tmp_path / "m.zarr", name="images", shape=images.shape, chunks=(1, 5, 7), dtype="float16", overwrite=True
    )
    target[...] = images
    np.testing.assert_array_equal(open_micrographs(tmp_path / "m.zarr").read_images([4, 1]), images[[4, 1]])


@pytest.mark.parametrize(("name", "value"), [("height", 14), ("width", 10), ("micrographs", 6), ("pixel_size_A", 0)])
def test_a_store_that_contradicts_itself_is_refused(tmp_path, name, value):
    write(tmp_path / "m.zarr", stack(5))
    write_group(tmp_path / "m.zarr", "", {}, {**read_attributes(tmp_path / "m.zarr", ""), name: value})
    with pytest.raises(FormatError, match=r"import again|import the"):
        open_micrographs(tmp_path / "m.zarr")


def test_kinds_are_not_taken_for_each_other(tmp_path):
    write(tmp_path / "m.zarr", stack(3))
    with pytest.raises(FormatError, match="where a particle store is needed"):
        open_particles(tmp_path / "m.zarr")
    particles = Particles(OPTICS, {"optics_group": np.zeros(3, dtype=np.int32)})
    write_particles(tmp_path / "p.zarr", particles, [stack(3, (8, 8))], box=8, pixel_size=1.0)
    with pytest.raises(FormatError, match="is a store of kind 'particles', where a micrograph store is needed"):
        open_micrographs(tmp_path / "p.zarr")
    with pytest.raises(MissingInputError):
        open_micrographs(tmp_path / "none.zarr")


def test_particles_have_to_be_square(tmp_path):
    particles = Particles(OPTICS, {"optics_group": np.zeros(3, dtype=np.int32)})
    write_particles(tmp_path / "p.zarr", particles, [stack(3, (8, 8))], box=8, pixel_size=1.0)
    path = tmp_path / "p.zarr" / "images" / "zarr.json"
    document = json.loads(path.read_text())
    document["shape"][2] = 12
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"8 x 12 pixels \(y, x\) were found where square ones are needed"):
        open_particles(tmp_path / "p.zarr")


def test_what_cannot_be_stored_is_refused_and_nothing_is_left(tmp_path: Path):
    url = tmp_path / "m.zarr"
    keywords = {"shape": SHAPE, "pixel_size": 1.0}
    with pytest.raises(InconsistentDataError, match=r"\(14, 10\) were given to a store of images of shape \(10, 14\)"):
        write_micrographs(url, table(3), [stack(3, (14, 10))], **keywords)
    with pytest.raises(InconsistentDataError, match="2 images were written, but the table has 3 micrographs"):
        write_micrographs(url, table(3), [stack(2)], **keywords)
    with pytest.raises(ParameterError, match="store float32"):
        write_micrographs(url, table(1), [np.full((1, *SHAPE), 1e5, np.float32)], **keywords)
    with pytest.raises(ParameterError, match="0 x 14 pixels"):
        write_micrographs(url, table(1), [], shape=(0, 14), pixel_size=1.0)
    with pytest.raises(ParameterError, match="no micrographs were selected"):
        write_micrographs(url, table(0), [], **keywords)
    assert contents(str(tmp_path)) == []
    write(url, stack(2))
    with pytest.raises(OutputExistsError):
        write(url, stack(2))


def test_a_lost_row_of_the_table_is_said(tmp_path):
    store: ImageStore[Micrographs] = write(tmp_path / "m.zarr", stack(5))
    write_group(store.url, "columns", *table_to_arrays(table(4)))
    with pytest.raises(FormatError, match="holds 5 images and a table of 4 micrographs; import again"):
        _ = open_micrographs(store.url).micrographs


def test_some_columns_are_read_alone_of_either_kind(tmp_path):
    store = write(tmp_path / "m.zarr", stack(5))
    some = store.columns(["dose", "frames"])
    assert list(some.columns) == ["dose"]
    assert some.optics == OPTICS
    names = np.array([f"{i}@s" for i in range(3)], dtype=TEXT)
    particles = Particles(OPTICS, {"optics_group": np.zeros(3, dtype=np.int32), "image_name": names})
    write_particles(tmp_path / "p.zarr", particles, [stack(3, (8, 8))], box=8, pixel_size=1.0)
    assert open_particles(tmp_path / "p.zarr").columns(["image_name"])["image_name"].tolist() == names.tolist()
    arrays, attributes = table_to_arrays(table(5))
    write_group(store.url, "columns", arrays, {**attributes, "columns": ["dose"]})
    with pytest.raises(FormatError, match="stored micrograph table lacks columns; import again"):
        store.columns(["dose"])
