import secrets

import numpy as np
import obstore
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudem import traffic
from cloudem.errors import ParameterError, StorageError
from cloudem.io.storage import groups
from cloudem.io.storage.groups import (
    delete_group,
    has_group,
    holds_arrays,
    list_groups,
    read_attributes,
    read_group,
    read_rows,
    write_group,
)
from cloudem.io.storage.location import contents, is_remote, join
from cloudem.io.storage.zarr_store import zarr_store

ARRAYS = {
    "map": np.arange(27, dtype=np.float32).reshape(3, 3, 3),
    "fsc": np.linspace(1, 0, 5),
    "half": np.array([1, 2, 1], dtype=np.int8),
    "ft": np.array([1 + 2j], dtype=np.complex64),
    "mask": np.array([True, False]),
    "names": np.array(["a", "", "wörld"], dtype=np.dtypes.StringDType()),
    "none": np.zeros((0, 4), dtype=np.float32),
    "../odd name/é": np.array([7]),
}


def test_everything_comes_back_as_it_was(url):
    write_group(url, "iterations/003", ARRAYS, {"n": np.int64(3), "list": np.arange(2), "x": {"y": None}})
    arrays, attributes = read_group(url, "iterations/003")
    assert list(arrays) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(arrays[name], values)
    assert attributes == {"n": 3, "list": [0, 1], "x": {"y": None}}
    assert contents(url) == ["iterations", "zarr.json"]
    assert contents(url.rpartition("/")[0]) == ["place"]


def test_zarr_itself_walks_down_to_the_arrays(url):
    write_group(url, "a/b", {"map": ARRAYS["map"]}, {"kind": "x"})
    group = zarr.open_group(zarr_store(url), mode="r")["a"]["b"]
    assert group.attrs["kind"] == "x"
    np.testing.assert_array_equal(group["arrays-1"]["map"][...], ARRAYS["map"])
    assert sorted(group.group_keys()) == ["arrays-1"]


def test_rows_are_read_alone(url):
    table = {"a": np.arange(600_000.0), "name": np.array(["x", "yy", "z"] * 100_000, dtype=np.dtypes.StringDType())}
    write_group(url, "t", {**table, "other": np.zeros(3)}, {})
    before = traffic.totals()["poses"]
    with traffic.purpose("poses"):
        rows = read_rows(url, "t", ["a", "name"], 200_000, 200_003)
    np.testing.assert_array_equal(rows["a"], [200_000, 200_001, 200_002])
    assert rows["name"].tolist() == ["z", "x", "yy"]
    moved = traffic.totals()["poses"].minus(before)
    # one piece of each array and some metadata, of 5.4 MB; nothing moves over the network from a folder
    assert (0 < moved.received < 1.4 * 2**20) == is_remote(url)
    assert moved.sent == 0
    assert read_rows(url, "t", ["a"], 599_999, 700_000)["a"].tolist() == [599_999]
    with pytest.raises(StorageError, match="holds no b; it holds a, name, other"):
        read_rows(url, "t", ["b"], 0, 1)


def test_what_is_written_counts_for_its_purpose(url):
    before = traffic.totals()["reference"]
    with traffic.purpose("reference"):
        write_group(url, "maps", {name: np.ones((32, 32, 32), np.float32) for name in "abc"}, {})
    sent = traffic.totals()["reference"].minus(before).sent
    assert (3 * 2**17 < sent < 3.2 * 2**17) if is_remote(url) else sent == 0


def test_listing_and_deleting(url):
    for name in ("002", "001"):
        write_group(url, f"iterations/{name}", {}, {})
    write_group(url, "", {"x": np.zeros(1)}, {"kind": "job"})
    assert list_groups(url, "iterations") == ["001", "002"]
    assert not has_group(url, "iterations")
    delete_group(url, "iterations/001")
    assert list_groups(url, "iterations") == ["002"]
    assert read_attributes(url, "") == {"kind": "job"}
    delete_group(url, "never/there")
    with pytest.raises(ParameterError):
        delete_group(url, "")
    with pytest.raises(StorageError, match="no finished result"):
        read_group(url, "iterations/001")
    assert not has_group(join(url, "nowhere"), "")
    assert list_groups(join(url, "nowhere"), "") == []


def test_arrays_of_a_group_are_looked_for_by_name(url):
    assert not holds_arrays(url, "result", "map")
    write_group(url, "result", {"map": np.zeros(3), "mask": np.ones(3)}, {})
    assert holds_arrays(url, "result", "map", "mask")
    assert not holds_arrays(url, "result", "map", "half1")
    assert not holds_arrays(join(url, "nowhere"), "result", "map")


def test_writing_the_root_leaves_groups_below_alone(url):
    write_group(url, "result", {"map": ARRAYS["map"]}, {})
    write_group(url, "", {}, {"kind": "job"})
    write_group(url, "", {}, {"kind": "job", "more": 1})
    assert read_group(url, "result")[0]["map"].shape == (3, 3, 3)
    assert read_attributes(url, "") == {"kind": "job", "more": 1}


class Killed(BaseException):
    """Stands for a kill in the middle of a write."""


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 12), rewrite=st.booleans())
def test_a_kill_at_any_step_leaves_the_old_group_or_the_new_one(url, step, rewrite):
    """Stop at the n-th write or delete; whoever reads sees a whole group, and writing again works."""
    place = join(url, secrets.token_hex(4))
    old, new = {"a": np.zeros(3), "b": np.zeros(2)}, {"a": np.ones(3), "b": np.ones(2)}
    if rewrite:
        write_group(place, "g", old, {"state": "old"})
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            if calls == step:
                raise Killed
            calls += 1
            return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "_write_chunk", "delete_all"):
            patch.setattr(groups, name, counted(getattr(groups, name)))
        try:
            write_group(place, "g", new, {"state": "new"})
        except Killed:
            pass
        else:
            assert calls <= step
    if has_group(place, "g"):
        arrays, attributes = read_group(place, "g")
        expected = old if attributes["state"] == "old" else new
        for name in expected:
            np.testing.assert_array_equal(arrays[name], expected[name])
    else:
        assert not rewrite
    write_group(place, "g", new, {"state": "new"})
    assert read_group(place, "g")[1]["state"] == "new"
    assert sum(name.startswith("arrays-") for name in contents(join(place, "g"))) == 1


def test_metadata_that_is_not_json_is_one_clear_line(tmp_path):
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="not Zarr v3 metadata"):
        read_group(tmp_path, "")


def test_a_full_disk_is_one_clear_line(small_disk):
    with pytest.raises(StorageError, match="disk is full"):
        write_group(small_disk, "g", {"big": np.random.default_rng(0).random(10**6)}, {})
    assert not has_group(small_disk, "g")


def test_a_deletion_that_was_cut_short_leaves_no_group_that_seems_whole(tmp_path, monkeypatch):
    for name in ("parts/a", "parts/b", "parts/c"):
        write_group(tmp_path, name, {"x": np.arange(5)}, {})
    delete = obstore.delete

    def killed(store, keys):
        if isinstance(keys, str):
            return delete(store, keys)
        delete(store, keys[: len(keys) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(obstore, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        delete_group(tmp_path, "parts")
    monkeypatch.setattr(obstore, "delete", delete)
    for name in list_groups(tmp_path, "parts"):
        read_group(tmp_path, f"parts/{name}")
    delete_group(tmp_path, "parts")
    assert not (tmp_path / "parts").exists()
