"""Reading particle images from a real S3 server: right for any subset, and clear about damage."""

import concurrent.futures
import pickle

import google_crc32c
import numpy as np
import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem import traffic
from cloudem.errors import DamagedShardError, StorageError
from cloudem.io.images import remote as ranges
from cloudem.io.images.layout import StackLayout
from cloudem.io.images.remote import merge_rows
from cloudem.io.particle_store import open_particles
from cloudem.io.storage.location import object_store
from tests.io.test_particle_store import stack, write

COUNT, BOX = 2100, 8  # three shards


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=60).map(sorted),
    st.integers(0, 20),
    st.integers(1, 50),
)
def test_merged_ranges_cover_what_is_wanted_and_no_more_than_the_gaps(rows, gap, most):
    wanted = np.array(rows)
    found = list(merge_rows(wanted, gap, most))
    covered = np.concatenate([np.arange(*each) for each in found])
    assert np.all(np.diff(covered) > 0)
    assert set(rows) <= set(covered.tolist())
    assert all(0 < stop - first <= most for first, stop in found)
    extra = np.setdiff1d(covered, wanted)
    before, after = np.searchsorted(wanted, extra) - 1, np.searchsorted(wanted, extra)
    assert np.all(wanted[after] - wanted[before] <= gap + 1)
    separate = [first for first, _ in found if first - 1 not in covered]
    assert len(separate) == 1 + np.count_nonzero(np.diff(wanted) > gap + 1)


@pytest.fixture(scope="module", params=["float16", "float32"])
def remote(request, s3):
    """A store on the server and what it should give."""
    images = stack(COUNT, BOX)
    store = write(f"s3://{s3.bucket()}/set/p.zarr", images, request.param, step=500)
    return store, images.astype(request.param).astype(np.float32)


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0")


@pytest.fixture
def damaged(s3, no_cache):
    """A store of three shards, its objects, and their layout."""
    url = f"s3://{s3.bucket()}/p.zarr"
    write(url, stack(COUNT, BOX), step=500)
    return url, object_store(url), StackLayout.choose(COUNT, BOX, "float16")


@given(wanted=st.lists(st.integers(0, COUNT - 1), max_size=40), gap=st.sampled_from([0, 300, 2**20]))
def test_any_subset_in_any_order_with_repeats(remote, wanted, gap):
    store, images = remote
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUDEM_CACHE_GIB", "0")
        patch.setattr(ranges, "GAP_BYTES", gap)
        patch.setattr(ranges, "RANGE_BYTES", 5000)
        np.testing.assert_array_equal(store.read_images(wanted), images[np.array(wanted, dtype=int)])


def test_a_store_opened_elsewhere_reads_the_same_and_carries_no_secret(remote, s3, no_cache):
    store, images = remote
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert s3.secret_key.encode() not in pickled
    again = pickle.loads(pickled)
    wanted = [np.random.default_rng(i).integers(0, COUNT, 64) for i in range(30)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for indices, got in zip(wanted, pool.map(again.read_images, wanted), strict=True):
            np.testing.assert_array_equal(got, images[indices])


def test_bytes_are_those_of_the_images_and_of_each_index_once(s3, no_cache, monkeypatch):
    monkeypatch.setattr(ranges, "GAP_BYTES", 0)
    store = write(f"s3://{s3.bucket()}/p.zarr", stack(COUNT, BOX), step=500)
    index = StackLayout.choose(COUNT, BOX, "float16").index_bytes
    for again in (1, 0):
        before = traffic.totals()["images"].received
        open_particles(store.url).read_images([5, 5, 2000, 1030])
        assert traffic.totals()["images"].received - before == 3 * BOX * BOX * 2 + again * 2 * index


def test_chunks_in_another_order_are_read_through_zarr(damaged):
    url, objects, layout = damaged
    raw, size = bytes(obstore.get(objects, layout.key(1)).bytes()), layout.chunk_bytes
    chunks = [raw[i * size : (i + 1) * size] for i in range(layout.shard // layout.chunk)]
    entries = np.frombuffer(layout.index()[:-4], "<u8").reshape(-1, 2)[::-1].tobytes()
    crc = google_crc32c.value(entries).to_bytes(4, "little")
    obstore.put(objects, layout.key(1), b"".join(chunks[::-1]) + entries + crc)
    expected = stack(COUNT, BOX).astype(np.float16).astype(np.float32)
    wanted = [2090, 1500, 3, 1500, 1024]
    np.testing.assert_array_equal(open_particles(url).read_images(wanted), expected[wanted])
    assert open_particles(url).damaged() == []


def test_damage_is_named(damaged):
    url, objects, layout = damaged
    store = open_particles(url)
    assert store.damaged() == []
    raw = bytes(obstore.get(objects, layout.key(2)).bytes())
    cases = [
        (raw[:-10] + b"\1" + raw[-9:], "checksum"),
        (raw[:20], "has 20 bytes"),
        (b"", "is empty"),
        (None, "is missing"),
    ]
    for content, words in cases:
        objects.delete(layout.key(2))
        if content is not None:
            obstore.put(objects, layout.key(2), content)
        (found,) = store.damaged()
        assert (found.shard, found.rows[0], found.rows[-1]) == ("images/c/2/0/0", 2048, 2099)
        assert words in found.reason
        with pytest.raises(DamagedShardError, match=f"images/c/2/0/0 .*{words}.* images 2048 to 2099 of 2100"):
            open_particles(url).read_images([0, 2048])
    np.testing.assert_array_equal(open_particles(url).read_images([2047]).shape, (1, BOX, BOX))


def test_shards_that_only_zarr_can_read_are_missed_too(tmp_path):
    import zarr

    images = stack(40).astype(np.float16)
    write(tmp_path / "p.zarr", images.astype(np.float32))
    target = zarr.create_array(
        tmp_path / "p.zarr", name="images", shape=images.shape, chunks=(16, 8, 8), dtype="float16", overwrite=True
    )
    target[...] = images
    store = open_particles(tmp_path / "p.zarr")
    assert store.damaged() == []
    (tmp_path / "p.zarr" / "images" / "c" / "1" / "0" / "0").unlink()
    (lost,) = store.damaged()
    assert (lost.shard, lost.reason, lost.rows.tolist()) == ("images/c/1/0/0", "is missing", list(range(16, 32)))
    with pytest.raises(DamagedShardError, match="images 16 to 31 of 40"):
        store.read_images([0, 20])


def test_a_store_written_anew_is_never_mixed_with_the_old_one(damaged):
    url, objects, layout = damaged
    store = open_particles(url)
    store.read_images([0])
    obstore.put(objects, layout.key(0), bytes(obstore.get(objects, layout.key(1)).bytes()))
    with pytest.raises(StorageError, match="written anew"):
        store.read_images([1])


def test_a_server_that_refuses_is_no_damage(damaged, monkeypatch):
    def refused(*_, **__):
        raise obstore.exceptions.PermissionDeniedError("403 Forbidden")

    url, _, _ = damaged
    store = open_particles(url)
    monkeypatch.setattr(ranges.obstore, "get", refused)
    for call in (store.damaged, lambda: store.read_images([0])):
        with pytest.raises(StorageError, match="denies access") as caught:
            call()
        assert not isinstance(caught.value, DamagedShardError)
