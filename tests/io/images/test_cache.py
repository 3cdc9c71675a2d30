"""The cache of images: never wrong, whatever its limit, its state and who else uses it."""

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem import traffic
from cloudem.errors import ParameterError
from cloudem.io.images import cache as cache_module
from cloudem.io.images import remote as ranges
from cloudem.io.images.cache import ImageCache, image_cache
from cloudem.io.images.layout import StackLayout
from cloudem.io.particle_store import open_particles
from tests.io.test_particle_store import stack, write

COUNT, BOX = 4200, 16  # five shards of up to 512 KiB
LAYOUT = StackLayout.choose(COUNT, BOX, "float16")
GIB = 2**30


@pytest.fixture(scope="module")
def remote(s3):
    """A store on the server and what it should give."""
    images = stack(COUNT, BOX)
    return write(f"s3://{s3.bucket()}/p.zarr", images, step=500), images.astype(np.float16).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new cache for this process, without limit and without merging of ranges."""
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ranges, "GAP_BYTES", 0)
    return tmp_path / "cache"


def forget():
    """Let this process find the cache as another would."""
    cache_module._image_cache.cache_clear()


def received(run):
    before = traffic.totals()["images"].received
    run()
    return traffic.totals()["images"].received - before


def used(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_what_was_read_is_not_fetched_again(remote, folder):
    store, images = remote
    wanted = np.random.default_rng(0).permutation(COUNT)[:300]
    store.read_images(wanted)
    assert received(lambda: store.read_images(wanted[::-1])) == 0
    more = np.append(wanted, np.setdiff1d(np.arange(COUNT), wanted)[:7])
    assert received(lambda: np.testing.assert_array_equal(store.read_images(more), images[more])) == 7 * BOX * BOX * 2
    forget()
    assert received(lambda: np.testing.assert_array_equal(store.read_images(more), images[more])) == 0


def test_images_between_two_that_are_fetched_are_kept_too(remote, folder, monkeypatch):
    store, _ = remote
    monkeypatch.setattr(ranges, "GAP_BYTES", 10 * BOX * BOX * 2)
    store.read_images([3, 9])
    assert received(lambda: store.read_images([4, 5, 8])) == 0


@given(
    calls=st.lists(st.lists(st.integers(0, COUNT - 1), max_size=30), min_size=1, max_size=6),
    limit=st.sampled_from([BOX * BOX * 2, 20_000, 10**9]),
    idle=st.sampled_from([-1.0, 1e9]),
)
def test_any_subset_with_any_limit(remote, tmp_path_factory, calls, limit, idle):
    store, images = remote
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUDEM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CLOUDEM_CACHE_GIB", repr(limit / GIB))
        patch.setattr(cache_module, "IDLE_SAME", idle)
        patch.setattr(cache_module, "_TOUCH", 0.0)
        for wanted in calls * 2:
            np.testing.assert_array_equal(store.read_images(wanted), images[np.array(wanted, dtype=int)])


def test_the_limit_holds_and_what_is_in_use_stays(remote, folder, monkeypatch):
    store, _ = remote
    limit = 2**20
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", repr(limit / GIB))
    pieces = np.array_split(np.arange(COUNT), 60)
    first = [received(lambda p=p: store.read_images(p)) for p in pieces]
    assert used(folder) <= limit
    assert used(folder) > limit // 2
    again = [received(lambda p=p: store.read_images(p)) for p in pieces]
    # Read in order, a store larger than the cache loses everything if the shard goes that was not read for longest.
    assert 0 < sum(again) < 0.7 * sum(first)
    assert used(folder) <= limit


def test_what_nobody_reads_is_evicted_the_oldest_first(remote, folder, monkeypatch):
    store, images = remote
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", repr(1.2 * 2**20 / GIB))
    monkeypatch.setattr(cache_module, "_TOUCH", 0.0)
    store.read_images(np.arange(2048))
    mapped = image_cache()._open.copy()
    old = sorted(folder.rglob("0-*"))
    for age, name in ((50, "0-*"), (40, "1-*")):
        for path in folder.rglob(name):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - cache_module.IDLE_SAME - age))
    store.read_images(np.arange(2048, 3000))
    assert old
    assert not list(folder.rglob("0-*"))
    assert list(folder.rglob("2-*"))
    assert used(folder) <= 1.2 * 2**20
    held = next(shard for (_, name), shard in mapped.items() if name.startswith("0-"))
    np.testing.assert_array_equal(held.images[:1024].astype(np.float32).reshape(-1, BOX, BOX), images[:1024])
    np.testing.assert_array_equal(store.read_images(np.arange(0, COUNT, 7)), images[::7])


def test_another_store_makes_room_sooner(remote, s3, folder, monkeypatch):
    store, _ = remote
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", repr(1.2 * 2**20 / GIB))
    store.read_images(np.arange(2048))
    for path in folder.rglob("*-*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - cache_module.IDLE_OTHER - 1))
    images = stack(1000, BOX, seed=5)
    other = write(f"s3://{s3.bucket()}/other.zarr", images)
    other.read_images(np.arange(1000))
    assert received(lambda: other.read_images(np.arange(1000))) == 0


@pytest.mark.parametrize("damage", ["pixels", "sums", "holes", "short", "long"])
def test_damaged_files_are_fetched_again(remote, folder, damage):
    store, images = remote
    store.read_images(np.arange(1024))
    (path,) = folder.rglob("0-*")
    raw = bytearray(path.read_bytes())
    sums = LAYOUT.shard * BOX * BOX * 2
    if damage == "pixels":
        raw[5] ^= 1
    elif damage == "sums":
        raw[sums:] = os.urandom(len(raw) - sums)
    elif damage == "holes":  # as after a crash of the machine that lost the images and kept the sums
        raw[: sums // 2] = bytes(sums // 2)
    elif damage == "short":
        del raw[sums // 2 :]
    else:
        raw += b"more"
    path.unlink()
    path.write_bytes(raw)
    forget()
    np.testing.assert_array_equal(store.read_images(np.arange(1024)), images[:1024])
    assert received(lambda: np.testing.assert_array_equal(store.read_images(np.arange(1024)), images[:1024])) == 0


def test_a_store_made_anew_is_not_read_from_the_cache(s3, folder):
    from cloudem.io.storage.location import delete_all, object_store

    url = f"s3://{s3.bucket()}/p.zarr"
    first = write(url, stack(20, BOX, seed=1))
    first.read_images(np.arange(20))
    delete_all(object_store(url), "")
    images = stack(21, BOX, seed=2).astype(np.float16).astype(np.float32)
    second = write(url, images)
    np.testing.assert_array_equal(second.read_images(np.arange(21)), images)


def test_a_full_disk_is_read_past(remote, small_disk, monkeypatch):
    store, images = remote
    monkeypatch.setenv("CLOUDEM_CACHE", str(small_disk))
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "1")
    for _ in range(2):
        np.testing.assert_array_equal(store.read_images(np.arange(COUNT)), images)
    assert received(lambda: store.read_images(np.arange(COUNT))) < COUNT * BOX * BOX * 2
    forget()  # which holds files of the disk that is to be unmounted


def test_a_folder_that_cannot_be_made_is_read_past(remote, tmp_path, monkeypatch):
    store, images = remote
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(store.read_images([7]), images[[7]])
    assert image_cache() is None


def test_the_limit_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path))
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0.5")
    assert image_cache().limit == GIB // 2
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0")
    assert image_cache() is None
    for wrong in ("much", "nan", "inf"):
        monkeypatch.setenv("CLOUDEM_CACHE_GIB", wrong)
        with pytest.raises(ParameterError, match="number of GiB"):
            image_cache()
    monkeypatch.delenv("CLOUDEM_CACHE_GIB")
    assert image_cache().limit > 0


def test_threads(remote, folder, monkeypatch):
    store, images = remote
    monkeypatch.setattr(cache_module, "_KEPT", 2)
    wanted = [np.random.default_rng(i).integers(0, COUNT, 200) for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for indices, got in zip(wanted, pool.map(store.read_images, wanted), strict=True):
            np.testing.assert_array_equal(got, images[indices])
    assert len(image_cache()._open) <= 2


READER = """
import sys
import numpy as np
from cloudem.io.images import cache
from cloudem.io.particle_store import open_particles
cache.IDLE_SAME, cache._TOUCH = -1.0, 0.0
store, images = open_particles(sys.argv[1]), np.load(sys.argv[2])
rng = np.random.default_rng(int(sys.argv[3]))
for _ in range(80):
    wanted = rng.integers(0, len(store), 60)
    assert np.array_equal(store.read_images(wanted), images[wanted])
"""


@pytest.mark.parametrize("limit", ["0.0005", "1"])
def test_processes_share_it(remote, folder, tmp_path, limit):
    store, images = remote
    np.save(tmp_path / "images.npy", images)
    environment = {**os.environ, "CLOUDEM_CACHE_GIB": limit}
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, store.url, str(tmp_path / "images.npy"), seed], env=environment)
        for seed in ("1", "2")
    ]
    assert [reader.wait(timeout=120) for reader in readers] == [0, 0]
    if limit == "1":
        missed = np.arange(COUNT)
        before = received(lambda: open_particles(store.url).read_images(missed))
        assert before < COUNT * BOX * BOX * 2 * 0.2


def test_half_a_file_is_no_larger_than_what_it_holds(tmp_path):
    layout = StackLayout.choose(1024, 64, "float16")
    images = stack(64, 64).astype(np.float16).reshape(64, -1)
    shards = ImageCache(tmp_path, GIB)
    shard = shards.shard("s3://b/p", 0, "v", layout)
    shards.write(shard, 512, images)
    assert used(tmp_path) <= images.nbytes + 2**14
    assert shard.holds(np.arange(1024)).nonzero()[0].tolist() == list(range(512, 576))
