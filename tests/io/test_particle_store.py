import concurrent.futures
import errno
import functools
import itertools
import json
import pickle
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem import traffic
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
from cloudem.io.images.layout import ShardMaps, StackLayout, parse_layout
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage import s3 as s3_module
from cloudem.io.storage.groups import write_group
from cloudem.io.storage.location import contents, is_remote, join, object_store, write_bytes
from cloudem.io.storage.zarr_store import zarr_store
from cloudem.kernels.float16 import narrow, widen
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import TEXT, Particles

OPTICS = (OpticsGroup("a", 300.0, 2.7e7, 0.1, {"rlnBeamTiltX": "0.1"}),)


def table(count):
    names = np.array([f"{i + 1}@s.mrcs" for i in range(count)], dtype=TEXT)
    return Particles(OPTICS, {"optics_group": np.zeros(count, dtype=np.int32), "image_name": names})


def stack(count, box=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, box, box), dtype=np.float32)


def write(url, images, dtype="float16", step=7):
    batches = (images[i : i + step] for i in range(0, len(images), step))
    write_particles(url, table(len(images)), batches, box=images.shape[1], pixel_size=1.5, dtype=dtype)
    return open_particles(url)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 16, 17, 1024, 2100])
def test_images_and_table_come_back(url, dtype, count):
    images = stack(count)
    store = write(url, images, dtype, step=100)
    assert (len(store), store.box, store.pixel_size, store.dtype) == (count, 8, 1.5, dtype)
    expected = images.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(store.read_images(np.arange(count)), expected)
    assert store.particles.optics == OPTICS
    assert store.particles["image_name"].tolist() == table(count)["image_name"].tolist()
    wanted = np.random.default_rng(1).integers(0, count, 50)
    np.testing.assert_array_equal(store.read_images(wanted), expected[wanted])
    assert store.read_images([]).shape == (0, 8, 8)


def test_zarr_reads_the_same(url):
    store = write(url, stack(1100))
    images = zarr.open_group(zarr_store(url), mode="r")["images"]
    np.testing.assert_array_equal(images[...].astype(np.float32), store.read_images(np.arange(1100)))


@pytest.mark.parametrize("codec", ["zstd", "unsharded", "reversed"])
def test_stores_laid_out_otherwise_are_read_through_zarr(tmp_path, codec):
    images = stack(40).astype(np.float16)
    write(tmp_path / "p.zarr", images.astype(np.float32))
    if codec == "reversed":
        path = tmp_path / "p.zarr" / "images" / "c" / "0" / "0" / "0"
        layout = StackLayout.choose(40, 8, "float16")
        raw, size = path.read_bytes(), layout.chunk_bytes
        chunks = [raw[i * size : (i + 1) * size] for i in range(layout.shard // layout.chunk)]
        entries = np.frombuffer(layout.index()[:-4], "<u8").reshape(-1, 2)[::-1].tobytes()
        import google_crc32c

        path.write_bytes(b"".join(chunks[::-1]) + entries + google_crc32c.value(entries).to_bytes(4, "little"))
    else:
        kind = {"shards": (32, 8, 8), "compressors": zarr.codecs.ZstdCodec()} if codec == "zstd" else {}
        target = zarr.create_array(
            tmp_path / "p.zarr", name="images", shape=images.shape, chunks=(16, 8, 8), dtype="float16",
            overwrite=True, **({"compressors": None} | kind),
        )  # fmt: skip
        target[...] = images
    wanted = [39, 3, 3, 17]
    np.testing.assert_array_equal(open_particles(tmp_path / "p.zarr").read_images(wanted), images[wanted])


def test_threads_and_pickle(tmp_path):
    images = stack(300)
    store = pickle.loads(pickle.dumps(write(tmp_path / "p.zarr", images, "float32")))
    wanted = [np.random.default_rng(i).integers(0, 300, 64) for i in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for indices, got in zip(wanted, pool.map(store.read_images, wanted), strict=True):
            np.testing.assert_array_equal(got, images[indices])
    assert len(pickle.dumps(store)) < 500 + len(pickle.dumps(store.attributes))


def test_a_process_without_access_is_told_when_it_reads_not_when_it_unpickles(s3, monkeypatch):
    url = f"s3://{s3.bucket()}/p.zarr"
    pickled = pickle.dumps(write(url, stack(40), "float16"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for opened in ("_opened", "_buckets"):
        monkeypatch.setattr(s3_module, opened, {})
    there = pickle.loads(pickled)
    with pytest.raises(StorageError, match=rf"no AWS credentials were found on {platform.node()}; set "):
        there.read_images([3])


def test_a_store_rewritten_at_the_same_place_is_not_read_from_the_old_map(tmp_path):
    import shutil

    write(tmp_path / "p.zarr", stack(20, seed=1)).read_images([0])
    shutil.rmtree(tmp_path / "p.zarr")
    second = stack(20, seed=2).astype(np.float16)
    np.testing.assert_array_equal(write(tmp_path / "p.zarr", second.astype(np.float32)).read_images([5]), second[[5]])


def test_maps_are_bounded(tmp_path):
    maps = ShardMaps(kept=2)
    for i in range(4):
        write(tmp_path / f"{i}", stack(5))
        assert (
            maps.open(tmp_path / f"{i}" / "images" / "c" / "0" / "0" / "0", StackLayout.choose(5, 8, "float16"))
            is not None
        )
    assert len(maps._maps) == 2


def test_shards_stay_within_their_bytes():
    for box in (64, 128, 256, 512, 1024):
        layout = StackLayout.choose(10**6, box, "float16")
        assert layout.shard % layout.chunk == 0
        assert layout.shard <= 1024
        assert layout.shard * box * box * 2 <= 64 * 2**20 or layout.shard == layout.chunk
    assert StackLayout.choose(3, 64, "float32").shard == 16


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=70))
def test_every_finite_half_is_widened_exactly(values):
    source = np.array([values], dtype=np.float16)
    out = np.empty((1, len(values)), dtype=np.float32)
    widen(source, np.array([0]), np.array([0]), out)
    np.testing.assert_array_equal(out, source.astype(np.float32))


def halves_of(values):
    out = np.empty((1, len(values)), dtype=np.float16)
    fits = narrow(values[None], np.array([0]), out)
    return out[0], fits


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_chosen_as_they_are_rounded(dtype):
    source = stack(5).reshape(5, -1)
    out = np.empty((4, source.shape[1]), dtype=dtype)
    rows = np.array([4, 0, 0, 2])
    assert narrow(source, rows, out)
    np.testing.assert_array_equal(out, source[rows].astype(dtype))
    source[0, 3] = np.inf
    assert not narrow(source, rows, out)
    assert narrow(source, np.array([1, 2, 3, 4]), out)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(-65519, 65519, width=32), min_size=1, max_size=70))
def test_rounding_to_half_is_that_of_numpy(values):
    images = np.array(values, dtype=np.float32)
    rounded, fits = halves_of(images)
    assert fits
    np.testing.assert_array_equal(rounded.view(np.uint16), images.astype(np.float16).view(np.uint16))


def test_ties_between_halves_go_to_even_and_what_does_not_fit_is_noticed():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[1:] + halves[:-1]) / 2
    for images in (halves, -halves, ties, -ties, np.nextafter(ties, 0), np.nextafter(ties, 1e9)):
        rounded, fits = halves_of(images)
        assert fits
        np.testing.assert_array_equal(rounded, images.astype(np.float16))
    for value in (65520, -1e30, np.inf, np.nan):
        assert not halves_of(np.array([1, value], dtype=np.float32))[1]


def test_what_cannot_be_stored_is_said_and_leaves_nothing(url):
    images = stack(20)
    cases = [
        (images * np.float32(1e6), {}, ParameterError, "normalise"),
        (np.where(images > 2, np.float32(np.nan), images), {"dtype": "float32"}, ParameterError, "cannot be stored"),
        (images, {"dtype": "float64"}, ParameterError, "float16 or float32"),
        (images[:, :7, :7], {}, ParameterError, "even box"),
        (images[:10], {}, InconsistentDataError, "10 images were written"),
        (images[:0], {}, InconsistentDataError, "0 images"),
    ]
    for given_images, options, error, words in cases:
        with pytest.raises(error, match=words):
            write_particles(url, table(20), [given_images], box=given_images.shape[1], pixel_size=1.0, **options)
        assert contents(url.rpartition("/")[0]) == []
    with pytest.raises(ParameterError, match="pixel size"):
        write_particles(url, table(20), [images], box=8, pixel_size=0.0)
    with pytest.raises(ParameterError, match="empty"):
        write_particles(url, table(0), [], box=8, pixel_size=1.0)


def test_an_output_that_exists_is_left_alone(url):
    write(url, stack(20))
    with pytest.raises(OutputExistsError, match="exists already"):
        write(url, stack(30))
    assert len(open_particles(url)) == 20


def test_leftovers_of_a_killed_run_do_not_matter(tmp_path):
    (tmp_path / ".p.zarr.0123456789abcdef.partial" / "images").mkdir(parents=True)
    assert len(write(tmp_path / "p.zarr", stack(20))) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["p.zarr"]


KILLED = """
import sys
import numpy as np
from cloudem.io.image_writer import image_writer
with image_writer(sys.argv[1], expected=9000, box=8, pixel_size=1.0) as writer:
    writer.append(np.zeros((3000, 8, 8), np.float32))
    print("go", flush=True)
    sys.stdin.read()
"""


def test_a_writer_killed_at_any_time_is_not_in_the_way(url):
    """Its shards are there, or on their way; nobody takes them for a store, and the next writer removes them."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"go\n"
        deadline = time.monotonic() + 20
        left = url if is_remote(url) else str(next(Path(url).parent.glob(f".{Path(url).name}.*.partial")))
        place = join(left, "images", "c")
        while not contents(place) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert contents(place)
    with pytest.raises(CloudemError, match=r"no finished cloudem store|does not exist"):
        open_particles(url)
    store = write(url, stack(20))
    assert len(store.read_images(np.arange(20))) == 20
    assert contents(join(url, "images", "c")) == ["0"]
    assert contents(url) == sorted(["arrays-1", "columns", "images", "zarr.json"])


def test_a_failing_upload_is_said_and_leaves_nothing(url, monkeypatch):
    real, puts = image_writer.put, itertools.count()

    def put(*given):
        if next(puts) == 2:
            raise OSError(errno.EIO, "the cable is out")
        real(*given)

    monkeypatch.setattr(image_writer, "put", put)
    with pytest.raises(StorageError, match="the cable is out"):
        write(url, stack(7000), step=500)
    assert contents(url.rpartition("/")[0]) == []


def test_images_on_their_way_are_counted(url):
    before = traffic.totals()["images"]
    write(url, stack(2100), step=100)
    moved = traffic.totals()["images"].minus(before)
    assert (2100 * 128 < moved.sent < 1.5 * 2100 * 128) if is_remote(url) else moved.sent == 0


def test_few_shards_are_on_their_way_at_a_time(tmp_path, monkeypatch):
    """However slow the store is: each of them takes memory."""
    real, now, most = image_writer.put, [0], [0]

    def put(*given):
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.05)
        real(*given)
        now[0] -= 1

    monkeypatch.setattr(image_writer, "put", put)
    write(tmp_path / "p.zarr", stack(12 * 1024), step=1024)
    assert most[0] == 3


def test_what_is_no_store_is_said(url):
    with pytest.raises(MissingInputError, match="cloudem import"):
        open_particles(join(url, "nowhere"))
    object_store(url, create=True)
    write_bytes(join(url, "somewhere", "else"), b"x")
    with pytest.raises(FormatError, match="no finished"):
        open_particles(join(url, "somewhere"))
    write_group(url, "", {}, {"kind": "result"})
    with pytest.raises(FormatError, match="a result of kind 'result'"):
        open_particles(url)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file.star").write_text("x")
    with pytest.raises(FormatError, match="is a file"):
        open_particles(tmp_path / "file.star")


def test_damage_is_noticed(tmp_path):
    store = write(tmp_path / "p.zarr", stack(20))
    with pytest.raises(ParameterError, match="holds 0 to 19"):
        store.read_images([20])
    shard = tmp_path / "p.zarr" / "images" / "c" / "0" / "0" / "0"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-10] + b"\1" + raw[-9:])
    with pytest.raises(StorageError, match="checksum"):
        store.read_images([0])
    shard.write_bytes(raw[:10])
    with pytest.raises(StorageError, match="10 bytes"):
        store.read_images([0])
    shard.unlink()
    with pytest.raises(StorageError, match="missing"):
        store.read_images([0])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["shape"], 3),
        (["shape"], [0, 32, 32]),
        (["shape"], ["5", 32, 32]),
        (["shape"], [5, 2**20, 2**20]),
        (["chunk_grid", "configuration", "chunk_shape"], [0, 32, 32]),
        (["chunk_grid", "configuration", "chunk_shape"], [2.5, 32, 32]),
    ],
)
def test_sizes_that_cannot_be_are_not_believed(path, value):
    document = json.loads(StackLayout.choose(100, 32, "float16").metadata({}))
    *folder, name = path
    functools.reduce(dict.__getitem__, folder, document)[name] = value
    with pytest.raises(FormatError, match="import the particles again"):
        parse_layout(document)


@pytest.mark.parametrize(("chunk", "shard"), [(0, 112), (-16, 112), (17, 112), (1, 2**40), ("16", 112)])
def test_shards_that_are_no_plain_arrays_are_left_to_zarr(chunk, shard):
    document = json.loads(StackLayout.choose(100, 32, "float16").metadata({}))
    assert parse_layout(document).direct
    document["codecs"][0]["configuration"]["chunk_shape"][0] = chunk
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = shard
    assert not parse_layout(document).direct
