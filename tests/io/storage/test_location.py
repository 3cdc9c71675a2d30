"""URLs: what they mean, and that objects on S3 keep the promises that files keep."""

import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloudem import traffic
from cloudem.errors import OutputExistsError, ParameterError, StorageError
from cloudem.io.formats.mrc import read_header, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.storage import location
from cloudem.io.storage import s3 as s3_module
from cloudem.io.storage.location import (
    UNFINISHED,
    absolute,
    contents,
    exists,
    folder_of,
    get,
    get_ranges,
    get_with_etag,
    is_remote,
    join,
    object_store,
    put,
    put_if_absent,
    put_if_match,
    read_bytes,
    read_end,
    read_start,
    size_of,
    write_bytes,
)
from cloudem.io.storage.outputs import new_prefix
from cloudem.io.storage.zarr_store import zarr_store


@pytest.fixture
def afresh(monkeypatch):
    """Nothing is remembered of earlier connections."""
    monkeypatch.setattr(s3_module, "_opened", {})
    monkeypatch.setattr(s3_module, "_buckets", {})


def test_what_urls_mean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b") == f"{tmp_path}/a/b"
    assert absolute("file:///a%20b/c") == "/a b/c"
    assert absolute("s3://bucket//a/b/") == "s3://bucket/a/b"
    assert absolute("s3://bucket") == "s3://bucket"
    assert join("s3://bucket/", "a", "", "b") == "s3://bucket/a/b"
    assert join("/", "a") == "/a"
    assert (is_remote("s3://bucket"), is_remote("file:///a"), is_remote(tmp_path)) == (True, False, False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gopher://b/x", "gopher:// locations are not known; give a folder or s3://bucket/prefix"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://a b/x", "names no bucket"),
        ("s3://bucket/a/../b", r"a prefix has no \. or \.\."),
        ("s3://key:hidden@bucket/x", "holds no keys"),
        ("", "an empty path"),
    ],
)
def test_what_no_url_is(given, message):
    with pytest.raises(ParameterError, match=message) as caught:
        absolute(given)
    assert "hidden" not in str(caught.value)


def test_a_folder_is_asked_for_where_there_must_be_one():
    with pytest.raises(ParameterError, match="a folder or file of this machine is needed here"):
        folder_of("s3://bucket/x")


def test_objects(url):
    store = object_store(url, create=True)
    assert (get(store, "a/b"), size_of(store, "a/b"), exists(join(url, "a"))) == (None, None, False)
    put(store, "a/b", b"0123456789")
    assert (get(store, "a/b"), size_of(store, "a/b")) == (b"0123456789", 10)
    assert [bytes(each) for each in get_ranges(store, "a/b", [7, 0], [3, 2])] == [b"789", b"01"]
    assert contents(url) == ["a"]
    assert contents(join(url, "a")) == ["b"]
    assert contents(join(url, "a/b")) == []
    assert exists(url)
    assert exists(join(url, "a/b"))
    assert not exists(join(url, "ax"))
    assert read_bytes(join(url, "a/b")) == b"0123456789"
    assert read_start(join(url, "a/b"), 3) == (b"012", 10)
    assert read_start(join(url, "a/c"), 3) is None
    assert read_bytes(join(url, "a")) is None
    write_bytes(join(url, "empty"), b"")
    assert read_start(join(url, "empty"), 5) == (b"", 0)
    assert read_end(join(url, "a/b"), 3) == (b"789", 10)
    assert read_end(join(url, "a/b"), 30) == (b"0123456789", 10)
    assert read_end(join(url, "a/c"), 3) is None
    assert read_end(join(url, "empty"), 3) == (b"", 0)


def test_conditions(url):
    store = object_store(url, create=True)
    first = put_if_absent(store, "x", b"one")
    assert first
    assert put_if_absent(store, "x", b"two") is None
    assert get_with_etag(store, "x") == (b"one", get_with_etag(store, "x")[1])
    if not is_remote(url):
        return
    second = put_if_match(store, "x", b"three", get_with_etag(store, "x")[1])
    assert second
    assert put_if_match(store, "x", b"four", first) is None
    assert get(store, "x") == b"three"
    assert put_if_match(store, "x", b"five", second)
    assert put_if_match(store, "never/there", b"six", second) is None


def test_races_have_one_winner(url):
    store = object_store(url, create=True)
    for turn in range(5):
        key = f"race{turn}"
        won = race(lambda n, key=key: put_if_absent(store, key, b"first %d" % n))
        data, etag = get_with_etag(store, key)
        assert won == [int(data.split()[1])]
        if not is_remote(url):
            continue
        won = race(lambda n, key=key, etag=etag: put_if_match(store, key, b"second %d" % n, etag))
        assert won == [int(get(store, key).split()[1])]


def race(attempt):
    """Return the numbers of those, of eight at the same time, that were told that they had written."""
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        etags = list(pool.map(lambda n: (start.wait(), attempt(n))[1], range(8)))
    return [n for n, etag in enumerate(etags) if etag is not None]


def test_bytes_on_the_network_are_counted(url):
    before = traffic.totals()
    with traffic.purpose("bricks"):
        store = object_store(url, create=True)
        put(store, "x", bytes(1000))
        get(store, "x")
        get_ranges(store, "x", [0, 500], [10, 20])
    moved = traffic.totals()["bricks"].minus(before["bricks"])
    assert moved == ((1030, 1000) if is_remote(url) else (0, 0))
    assert traffic.totals()["images"] == before["images"]


def test_a_large_object_goes_up_in_parts(bucket, monkeypatch):
    monkeypatch.setattr(location, "_IN_PARTS", 2**20)
    data = np.random.default_rng(0).bytes(17 * 2**20 + 1)
    store = object_store(f"s3://{bucket}/parts")
    put(store, "large", data)
    assert get(store, "large") == data


def test_maps_lie_on_s3_too(url):
    map_url = join(url, "map.mrc")
    object_store(url, create=True)
    data = np.random.default_rng(0).standard_normal((6, 6, 6)).astype(np.float32)
    write_volume(map_url, data, 1.5)
    assert read_header(map_url).shape == (6, 6, 6)
    volume = read_volume(map_url)
    np.testing.assert_array_equal(volume.data, data)
    assert volume.pixel_size == 1.5
    with pytest.raises(FileNotFoundError, match="does not exist; check the path"):
        read_volume(join(url, "other.mrc"))


def test_something_new_is_there_as_a_whole_or_not_at_all(url):
    def fails():
        with new_prefix(url) as place:
            put(object_store(place), "a/b", b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not exists(url)
    with new_prefix(url) as place:
        put(object_store(place), "zarr.json", b"{}")
    assert contents(url) == ["zarr.json"]
    with pytest.raises(OutputExistsError, match="exists already"), new_prefix(url):
        pass


def test_what_a_killed_writer_left_is_removed_first(bucket):
    url = f"s3://{bucket}/killed"
    for key in (UNFINISHED, "images/c/0", "columns/zarr.json", "zarr.json"):
        put(object_store(url), key, b"{}")
    with new_prefix(url) as place:
        assert contents(place) == [UNFINISHED]
        put(object_store(place), "zarr.json", b"{}")
    assert contents(url) == ["zarr.json"]


def test_what_is_somebody_elses_is_left_alone(url):
    put(object_store(url, create=True), "theirs/zarr.json", b"{}")
    with pytest.raises(OutputExistsError, match="exists already"), new_prefix(url):
        pass
    assert contents(url) == ["theirs"]


def test_a_store_is_not_pickled_with_its_keys(bucket, s3):
    with pytest.raises(TypeError, match="pass its URL"):
        pickle.dumps(zarr_store(f"s3://{bucket}/x"))
    assert s3.secret_key not in repr(object_store(f"s3://{bucket}/x"))


def refusal(url: str, secret: str = "") -> str:
    """Return the one line that opening a URL ends with."""
    with pytest.raises(StorageError) as caught:
        object_store(url)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 250
    assert not secret or secret not in line
    return line


def test_a_wrong_secret(bucket, s3, afresh, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-one")
    assert "refuses the secret key" in refusal(f"s3://{bucket}/x", "not-the-right-one")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "does not know the access key" in refusal(f"s3://{bucket}/x", "not-the-right-one")


def test_no_bucket(s3, afresh):
    assert f"there is no such bucket at {s3.endpoint}" in refusal("s3://no-such-bucket/x", s3.secret_key)


def test_no_credentials(s3, afresh, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no AWS credentials were found" in refusal("s3://bucket/x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in refusal("s3://bucket/x")


def test_no_server(s3, afresh, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        for port in (1, silent.getsockname()[1]):
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
            began = time.monotonic()
            assert f"http://127.0.0.1:{port} cannot be reached" in refusal("s3://bucket/x")
            assert time.monotonic() - began < 10
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    assert "nonsense" in refusal("s3://bucket/x")


def test_no_boto3(s3, afresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert "pip install 'cloudem[aws]'" in refusal("s3://bucket/x")


def test_a_bucket_that_goes_away_is_not_taken_for_an_empty_one(s3, afresh):
    import boto3

    bucket = s3.bucket()
    store = object_store(f"s3://{bucket}/x")
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    client.delete_bucket(Bucket=bucket)
    client.get_waiter("bucket_not_exists").wait(
        Bucket=bucket, WaiterConfig={"Delay": 1}
    )  # a busy server takes a moment
    client.close()
    with pytest.raises(StorageError, match="there is no such bucket"), location.storage_errors(f"s3://{bucket}/x"):
        get(store, "zarr.json")


def test_the_endpoint_of_a_profile_is_used(s3, tmp_path):
    """In a process of its own: what is in the environment wins, so that must be empty."""
    (tmp_path / "config").write_text(f"[profile there]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n")
    (tmp_path / "keys").write_text(
        f"[there]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    places = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys")}
    code = (
        "import sys; from cloudem.io.storage.location import *; "
        "write_bytes(sys.argv[1], b'here'); print(exists(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"s3://{s3.bucket()}/x/y"],
        env={**plain, **places, "AWS_PROFILE": "there"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    "said", ["error sending request for url (http://key:secret@host:9000/b)", "no: s3://k:secret@b"]
)
def test_what_is_wrong_shows_no_keys(said):
    assert "secret" not in s3_module.what_is_wrong(OSError(said))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3:/bucket/x.zarr", "two slashes; give s3://bucket/x.zarr, or ./s3:/bucket/x.zarr"),
        ("S3:/bucket/x", "two slashes; give s3://bucket/x"),
        ("s3:bucket/x", "two slashes; give s3://bucket/x"),
        ("gs:/bucket/x", "two slashes"),
        ("S3://bucket/x", "write s3:// in small letters"),
        ("gopher://bucket/x", "gopher:// locations are not known"),
        ("file://server/x", "names no folder of this machine; give file:///folder"),
        ("file://", "names no folder of this machine"),
        ("~nobody-has-this-name/x", "there is no such user; give ./~nobody-has-this-name/x"),
    ],
)
def test_what_looks_like_a_url_or_a_home_is_no_new_folder(text, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        absolute(text)


def test_a_home_is_expanded_and_odd_names_can_be_given(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/of-mine")
    assert absolute("~/x") == "/home/of-mine/x"
    assert absolute("file:///data/a%20b") == absolute("file://localhost/data/a%20b") == "/data/a b"
    monkeypatch.chdir(tmp_path)
    for name in ("./s3:/x", "./~x", "a:b", "x/s3:/y", "c:"):
        assert absolute(name) == str(tmp_path / name)
