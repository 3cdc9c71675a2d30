from itertools import pairwise
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cloudem import traffic
from cloudem.errors import FormatError, MissingInputError, StorageError
from cloudem.io.formats.mrc import map_stack
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.star import read_star, write_star
from cloudem.io.storage import files
from cloudem.io.storage.files import new_file, open_table
from cloudem.io.storage.location import contents, join, read_bytes, write_bytes
from cloudem.model.particles import TEXT
from tests.s3 import S3

MIB = 2**20


@pytest.fixture
def place(url):
    """A folder that is there, or a prefix."""
    if not url.startswith("s3://"):
        Path(url).mkdir(parents=True)
    return url


def uploads(s3: S3, url: str) -> list[str]:
    """Return the keys of which parts were sent and no object made."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    try:
        return [each["Key"] for each in client.list_multipart_uploads(Bucket=url.split("/")[2]).get("Uploads", [])]
    finally:
        client.close()


def write_then(url: str, size: int, error: type[BaseException]) -> None:
    """Write zeros in pieces, then raise."""
    with new_file(url) as file:
        for start in range(0, size, MIB):
            file.write(bytes(min(MIB, size - start)))
        raise error


@pytest.mark.parametrize("size", [0, 10, 5 * MIB, 5 * MIB + 1, 17 * MIB])
def test_what_is_written_comes_back(place, size, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 5 * MIB)
    data = np.random.default_rng(0).bytes(size)
    cuts = sorted({0, size, size // 7, size // 2})
    sent = traffic.totals()["other"].sent
    with new_file(join(place, "a"), size) as file:
        for start, stop in pairwise(cuts):
            assert file.write(memoryview(data)[start:stop]) == stop - start
        assert all(name.endswith(".partial") for name in contents(place))
    assert contents(place) == ["a"]
    assert read_bytes(join(place, "a")) == data
    assert traffic.totals()["other"].sent - sent == (size if place.startswith("s3://") else 0)


@pytest.mark.parametrize("size", [10, 12 * MIB])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_file_that_is_given_up_leaves_what_was_there(place, size, kind, s3, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 5 * MIB)
    write_bytes(join(place, "a"), b"before")
    with pytest.raises(kind):
        write_then(join(place, "a"), size, kind)
    assert contents(place) == ["a"]
    assert read_bytes(join(place, "a")) == b"before"
    if place.startswith("s3://"):
        assert uploads(s3, place) == []


def test_an_object_that_cannot_be_sent_ends_the_writing(bucket, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 5 * MIB)

    def refuse(*_, **__):
        raise OSError("the server is full")

    monkeypatch.setattr(files.obstore, "put", refuse)
    with pytest.raises(StorageError, match="the server is full"):
        write_then(f"s3://{bucket}/refused/a", 50 * MIB, KeyboardInterrupt)


def test_no_more_parts_than_s3_takes(bucket, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 1)
    monkeypatch.setattr(files, "_PARTS", 2)
    data = np.random.default_rng(0).bytes(11 * MIB)
    with new_file(f"s3://{bucket}/parts/a", len(data)) as file:
        file.write(data)
    assert read_bytes(f"s3://{bucket}/parts/a") == data


def test_tables_are_the_same_from_anywhere(place, monkeypatch):
    table = {"a": np.array(["1", "Grünes", "x y"], dtype=TEXT)}
    write_star(join(place, "x.star"), {"particles": table})
    assert read_star(join(place, "x.star"))["particles"]["a"].tolist() == table["a"].tolist()
    with pytest.raises(MissingInputError, match="does not exist"):
        read_star(join(place, "none.star"))
    write_bytes(join(place, "x.mrcs"), bytes(100))
    with pytest.raises(FormatError, match=r"x\.mrcs is not text"):
        read_star(join(place, "x.mrcs"))
    monkeypatch.setattr(files, "TABLE_BYTES", 99)
    if place.startswith("s3://"):
        with pytest.raises(FormatError, match=r"x\.mrcs has 100 B, more than any table"):
            read_star(join(place, "x.mrcs"))
    with open_table(join(place, "x.star")) as file:
        assert file.read(6) == b"\n# ver"


def test_a_stack_on_s3_is_that_of_a_folder_but_for_its_statistics(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 5 * MIB)
    images = np.random.default_rng(0).standard_normal((100, 160, 160), dtype=np.float32)
    places = (str(tmp_path / "s.mrcs"), f"s3://{bucket}/stack/s.mrcs")
    for place in places:
        write_stack(place, (images[i : i + 33] for i in range(0, 100, 33)), 100, 1.34)
    local, remote = (np.frombuffer(read_bytes(place), "<i4") for place in places)
    differ = np.flatnonzero(local != remote)
    assert differ.tolist() == [19, 20, 21, 54]  # words of the header
    low, high, mean, deviation = remote.view("<f4")[differ]
    assert high < low
    assert mean < high
    assert deviation < 0
    np.testing.assert_array_equal(map_stack(places[1])[0], images)
    (tmp_path / "copy.mrcs").write_bytes(read_bytes(places[1]))
    assert mrcfile.validate(tmp_path / "copy.mrcs")
