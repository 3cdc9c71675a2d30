import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem.errors import ParameterError, StorageError
from cloudem.io import groups
from cloudem.io.groups import delete_group, has_group, list_groups, read_attributes, read_group, write_group

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


def test_everything_comes_back_as_it_was(tmp_path):
    write_group(tmp_path / "s", "iterations/003", ARRAYS, {"n": np.int64(3), "list": np.arange(2), "x": {"y": None}})
    arrays, attributes = read_group(tmp_path / "s", "iterations/003")
    assert list(arrays) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(arrays[name], values)
    assert attributes == {"n": 3, "list": [0, 1], "x": {"y": None}}
    assert {path.name for path in tmp_path.iterdir()} == {"s"}


def test_zarr_itself_walks_down_to_the_arrays(tmp_path):
    write_group(tmp_path / "s", "a/b", {"map": ARRAYS["map"]}, {"kind": "x"})
    group = zarr.open_group(tmp_path / "s", mode="r")["a"]["b"]
    assert group.attrs["kind"] == "x"
    np.testing.assert_array_equal(group["arrays-1"]["map"][...], ARRAYS["map"])


def test_listing_and_deleting(tmp_path):
    for name in ("002", "001"):
        write_group(tmp_path, f"iterations/{name}", {}, {})
    write_group(tmp_path, "", {"x": np.zeros(1)}, {"kind": "job"})
    assert list_groups(tmp_path, "iterations") == ["001", "002"]
    assert not has_group(tmp_path, "iterations")
    delete_group(tmp_path, "iterations/001")
    assert list_groups(tmp_path, "iterations") == ["002"]
    assert read_attributes(tmp_path, "") == {"kind": "job"}
    delete_group(tmp_path, "never/there")
    with pytest.raises(ParameterError):
        delete_group(tmp_path, "")
    with pytest.raises(StorageError, match="no finished result"):
        read_group(tmp_path, "iterations/001")
    assert not has_group(tmp_path / "nowhere", "")


def test_writing_the_root_leaves_groups_below_alone(tmp_path):
    write_group(tmp_path, "result", {"map": ARRAYS["map"]}, {})
    write_group(tmp_path, "", {}, {"kind": "job"})
    write_group(tmp_path, "", {}, {"kind": "job", "more": 1})
    assert read_group(tmp_path, "result")[0]["map"].shape == (3, 3, 3)
    assert read_attributes(tmp_path, "") == {"kind": "job", "more": 1}


class Killed(BaseException):
    """Stands for a kill in the middle of a write."""


@settings(max_examples=25, deadline=None, derandomize=True)
@given(step=st.integers(0, 12), rewrite=st.booleans())
def test_a_kill_at_any_step_leaves_the_old_group_or_the_new_one(tmp_path_factory, step, rewrite):
    """Stop at the n-th write or delete; whoever reads sees a whole group, and writing again works."""
    place = tmp_path_factory.mktemp("kill")
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
        for name in ("put", "_write_array", "delete_all"):
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
    assert sum(path.name.startswith("arrays-") for path in (place / "g").iterdir()) == 1


def test_metadata_that_is_not_json_is_one_clear_line(tmp_path):
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="not Zarr v3 metadata"):
        read_group(tmp_path, "")


def test_a_full_disk_is_one_clear_line(small_disk):
    with pytest.raises(StorageError, match="disk is full"):
        write_group(small_disk, "g", {"big": np.random.default_rng(0).random(10**6)}, {})
    assert not has_group(small_disk, "g")
