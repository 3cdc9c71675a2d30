"""Whatever is lost or changed in a store, a result or a checkpoint is named, or the same values come all the same."""

import contextlib
import json
import random
import shutil

import google_crc32c
import numpy as np
import pytest

from cloudem.errors import CloudemError, FormatError, StorageError
from cloudem.io.images.layout import StackLayout
from cloudem.io.particle_store import open_particles
from cloudem.io.storage import arrays, documents, groups
from cloudem.io.storage.groups import has_group, list_groups, read_attributes, read_group, read_rows, write_group
from cloudem.io.storage.location import object_store
from cloudem.io.storage.tables import table_to_arrays

stores = pytest.importorskip("benchmarks.bars.mutated_stores", reason="the benchmarks lie beside the package")


def damages(raw, rng):
    """Yield an object's damaged bytes: None where it is deleted, cut short, and with a bit flipped here and there."""
    yield None
    yield b""
    yield raw[: len(raw) // 2]
    yield raw[:-1]
    for at in (0, rng.randrange(len(raw)), len(raw) - 1):
        yield raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


def is_pixel_changed(key, raw, damaged):
    """Return whether only pixels were changed, which have no checksums."""
    index = StackLayout.choose(stores.COUNT, stores.BOX, "float16").index_bytes
    return "/images/c/" in key and damaged is not None and len(damaged) == len(raw) and damaged[-index:] == raw[-index:]


def check(store, key, raw, damaged, read, expected):
    """Read what was damaged: the same comes, or an error in one line that names the place."""
    store.put(key, damaged) if damaged is not None else store.delete(key)
    try:
        found = read()
    except CloudemError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 400
        group = key.partition("/zarr.json")[0].partition("/arrays-")[0].partition("/c/")[0]
        if damaged is None and key.endswith("result/zarr.json"):
            group = "done holds no finished result"
        assert group in text or text == "begins anew", (key, text)
        if "/c/" in key and "/arrays-" in key:
            assert f"its array {key.partition('/arrays-')[2].split('/')[1]} " in text
    else:
        assert found == expected or is_pixel_changed(key, raw, damaged), key
    store.put(key, raw)


@pytest.mark.parametrize("name", list(stores.READERS))
def test_each_object_deleted_cut_short_and_changed(tmp_path, name):
    place, store, rng = stores.make(str(tmp_path)), object_store(tmp_path), random.Random(name)
    expected = stores.values_of(place, name)
    keys = [key for key in stores.keys_of(store) if key.startswith(name)]
    assert len(keys) > 15
    for key in keys:
        raw = bytes(store.get(key).bytes())
        unread = "/arrays-" in key and "/c/" not in key  # it is there for other readers
        for damaged in list(damages(raw, rng))[:: 5 if unread else 1]:
            check(store, key, raw, damaged, lambda: stores.values_of(place, name), expected)
    assert stores.values_of(place, name) == expected


def test_objects_on_s3_deleted_and_changed(s3):
    url, rng = f"s3://{s3.bucket()}/all", random.Random(0)
    place, store = stores.make(url), object_store(url)
    expected = {name: stores.values_of(place, name) for name in ("particles.zarr", "stopped")}
    keys = [key for key in stores.keys_of(store) if key.partition("/")[0] in expected]
    for key in rng.sample([key for key in keys if "/c/" in key or key.count("/") < 3], 16):
        raw, name = bytes(store.get(key).bytes()), key.partition("/")[0]
        for damaged in list(damages(raw, rng))[::5]:
            check(store, key, raw, damaged, lambda name=name: stores.values_of(place, name), expected[name])


def test_every_bit_of_a_document_counts():
    """Of a group's own document, where no chunk's checksum helps: each bit flipped, each length."""
    marker = documents.Marker("arrays-1", {"x": arrays.prepare("x", np.zeros(0))[1]})
    raw = documents.finished_document({"pixel_size_A": 1.25, "name": "µm", "n": [1, 2, None]}, marker)
    expected = documents.parse_document("g", raw)
    for at in range(len(raw)):
        for damaged in [raw[:at], *(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :] for bit in range(8))]:
            with contextlib.suppress(FormatError):
                assert documents.parse_document("g", damaged) == expected  # white space, for example


def test_mutations_of_metadata_end_with_the_same_values_or_one_line():
    faults, answers = stores.run(100, seed=3)
    assert not faults
    assert answers["values"] > 5 < answers["an error in one line"]


def test_chunks_of_zeros_are_stored_and_missed(url):
    write_group(url, "g", {"zeros": np.zeros(300_000), "x": np.ones(3)}, {})
    object_store(url).delete("g/arrays-1/zeros/c/2")
    with pytest.raises(StorageError, match=r"g is damaged: g/arrays-1/zeros/c/2 of its array zeros is missing"):
        read_group(url, "g")
    with pytest.raises(StorageError, match="zeros/c/2 of its array zeros is missing"):
        read_rows(url, "g", ["zeros"], 262_143, 262_145)
    assert read_rows(url, "g", ["zeros"], 0, 262_144)["zeros"].shape == (262_144,)
    assert read_rows(url, "g", ["x"], 0, 3)["x"].tolist() == [1, 1, 1]


def test_a_chunk_of_another_run_is_noticed(tmp_path):
    """As a copy that was stopped leaves it: each object is whole, but they do not belong together."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        write_group(tmp_path / name, "g", {"x": np.full(5, value)}, {})
    shutil.copy(tmp_path / "b/g/arrays-1/x/c/0", tmp_path / "a/g/arrays-1/x/c/0")
    with pytest.raises(StorageError, match="array x is not what was written"):
        read_group(tmp_path / "a", "g")


def test_a_group_that_is_written_again_while_it_is_read_comes_as_the_new_one(tmp_path, monkeypatch):
    write_group(tmp_path, "g", {"x": np.zeros(3)}, {"state": "old"})
    fetched = groups.fetch

    def slow(store, key):
        monkeypatch.setattr(groups, "fetch", fetched)
        write_group(tmp_path, "g", {"x": np.ones(3)}, {"state": "new"})
        return fetched(store, key)

    monkeypatch.setattr(groups, "fetch", slow)
    found, attributes = read_group(tmp_path, "g")
    assert (found["x"].tolist(), attributes) == ([1, 1, 1], {"state": "new"})


def resealed(path, **changes):
    """Change what a group's document says of its array x, with a checksum that matches."""
    document = json.loads(path.read_text())
    marker = document["attributes"]["cloudem_group"]
    marker["arrays"]["x"].update(changes)
    del marker["checksum"]
    marker["checksum"] = documents.checksum_of(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [24, 10**12]},
        {"shape": [10**15], "rows": 10**15},
        {"shape": [10**18], "rows": 10**18},
        {"shape": [-1]},
        {"shape": [1] * 100},
        {"shape": [2.5]},
        {"shape": "many"},
        {"rows": 0},
        {"rows": True},
        {"dtype": "O"},
        {"dtype": "complex1024"},
        {"text": True},
        {"sums": []},
        {"sums": [1, 2]},
        {"key": "../../x"},
        {"more": 1},
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_shapes_that_cannot_be_take_no_memory(tmp_path, changes, dtype):
    write_group(tmp_path, "g", {"x": np.zeros(5, dtype)}, {})
    resealed(tmp_path / "g/zarr.json", **changes)
    fault, answer = stores.fault_of(lambda: str(read_group(tmp_path, "g")), "")
    assert not fault
    assert "g" in answer
    assert "x" in answer


def test_groups_without_checksums_are_refused_with_a_word(tmp_path):
    write_group(tmp_path, "g", {"x": np.zeros(5)}, {"kind": "x"})
    path = tmp_path / "g/zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["cloudem_group"] = {"generation": "arrays-1", "arrays": {"x": "x"}}
    path.write_text(json.dumps(document))
    for read in (read_group, read_attributes, has_group):
        with pytest.raises(FormatError, match="an older version of cloudem wrote it"):
            read(tmp_path, "g")
    with pytest.raises(FormatError, match=r"g/zarr\.json holds no checksums"):
        list_groups(tmp_path, "")


def test_what_is_lost_of_a_result_is_not_left_out(tmp_path):
    place = stores.make(str(tmp_path))
    for lost in ("particles", "iterations/001", "iterations/002"):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(place.done, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy" / lost)
        with pytest.raises(StorageError, match=f"{lost} is missing"):
            stores.content_of(str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "value"), [("pixel_size_A", float("nan")), ("pixel_size_A", "1.5"), ("box", -1), ("particles", 23)]
)
def test_a_store_that_says_what_cannot_be_is_refused(tmp_path, name, value):
    place = stores.make(str(tmp_path))
    attributes = {**read_attributes(place.particles, ""), name: value}
    write_group(place.particles, "", {}, attributes)
    with pytest.raises(FormatError, match=str(value)) as caught:
        open_particles(place.particles)
    assert "zarr.json" in str(caught.value)


def test_a_table_of_another_length_is_refused(tmp_path):
    place = stores.make(str(tmp_path))
    particles = open_particles(place.particles).particles
    write_group(place.particles, "columns", *table_to_arrays(particles.take(np.arange(20))))
    with pytest.raises(FormatError, match="24 images and a table of 20 particles"):
        _ = open_particles(place.particles).particles


def test_images_whose_chunks_have_other_names_are_not_zeros(tmp_path):
    """Zarr looks for them under those names, and takes each that is not there for zeros."""
    place = stores.make(str(tmp_path))
    path = tmp_path / "particles.zarr/images/zarr.json"
    path.write_text(path.read_text().replace('"separator": "/"', '"separator": "."'))
    with pytest.raises(StorageError, match=r"images/c\.0\.0\.0 is missing"):
        open_particles(place.particles).read_images([1])


def test_checksums_are_those_of_the_objects(tmp_path):
    write_group(tmp_path, "g", {"x": np.arange(5)}, {})
    record = json.loads((tmp_path / "g/zarr.json").read_text())["attributes"]["cloudem_group"]["arrays"]["x"]
    assert record["sums"] == [google_crc32c.value((tmp_path / "g/arrays-1/x/c/0").read_bytes())]
