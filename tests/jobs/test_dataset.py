import threading

import numpy as np
import pytest

from cloudem.errors import DamagedShardError
from cloudem.io.storage.location import object_store
from cloudem.jobs.dataset import BATCH, Dataset, image_batches
from tests.io.test_particle_store import stack, write

COUNT = 5 * BATCH + 3


def dataset(url):
    store = write(url, stack(COUNT))
    return Dataset(store, store.particles, np.zeros((COUNT, 6)), np.ones(COUNT), np.zeros(COUNT, np.int32))


@pytest.fixture(params=["folder", "s3"])
def data(request, tmp_path):
    return dataset(
        tmp_path / "p.zarr" if request.param == "folder" else f"s3://{request.getfixturevalue('s3').bucket()}/p.zarr"
    )


def ahead():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cloudem-ahead")]


@pytest.mark.parametrize("count", [0, 1, BATCH, COUNT])
@pytest.mark.parametrize("ahead_bytes", [0, 2 * BATCH * 8 * 8 * 4, 2**30])
def test_batches_come_in_order_with_their_images(data, count, ahead_bytes, monkeypatch):
    monkeypatch.setattr("cloudem.jobs.dataset.AHEAD_BYTES", ahead_bytes)
    indices = np.random.default_rng(0).permutation(COUNT)[:count]
    expected = stack(COUNT).astype(np.float16).astype(np.float32)
    parts = list(image_batches(data, indices))
    assert [len(chosen) for chosen, _ in parts] == [min(BATCH, count - first) for first in range(0, count, BATCH)]
    if count:
        np.testing.assert_array_equal(np.concatenate([chosen for chosen, _ in parts]), indices)
        np.testing.assert_array_equal(np.concatenate([images for _, images in parts]), expected[indices])
    assert not ahead()


def test_whoever_stops_early_leaves_no_thread(data):
    parts = image_batches(data, np.arange(COUNT))
    next(parts)
    parts.close()
    assert not ahead()


def test_what_goes_wrong_is_raised(data, monkeypatch):
    monkeypatch.setenv("CLOUDEM_CACHE_GIB", "0")
    object_store(data.store.url).delete("images/c/0/0/0")
    with pytest.raises(DamagedShardError, match="is missing"):
        list(image_batches(data, np.arange(COUNT)))
    assert not ahead()
