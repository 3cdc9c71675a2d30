"""Tables and stacks on S3: what is found, what is not to be found, and what is read of it."""

import posixpath
import secrets
from pathlib import Path

import numpy as np
import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import PermissionDeniedError

from cloudem import traffic
from cloudem.errors import FormatError, InconsistentDataError, MissingInputError, StorageError
from cloudem.io.formats import prefetch, stacks
from cloudem.io.formats.cryosparc import read_particles_cs
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.sources import SourceImages
from cloudem.io.formats.stacks import find_stacks
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles
from cloudem.io.storage.location import contents, join, object_store, read_bytes, write_bytes
from tests.io.conftest import BOX, COUNT, LABELS, OPTICS, loop, particle_rows
from tests.io.formats.test_cryosparc import rows as cs_rows
from tests.io.test_importing import write_mrc

STACK_BYTES = 1024 + 4 * COUNT * BOX**2


def upload(folder: Path, url: str) -> str:
    """Copy the files of a folder to S3; return where they are."""
    for path in folder.rglob("*"):
        if path.is_file() and ".zarr" not in str(path):
            write_bytes(join(url, str(path.relative_to(folder))), path.read_bytes())
    return url


@pytest.fixture
def remote(project, bucket):
    """The project on S3, under a prefix of two parts."""
    return upload(project, f"s3://{bucket}/{secrets.token_hex(4)}/project")


def table_of(project, picks):
    """Write a table of images ``(number, stack)`` and return its path."""
    rows = [f"{n}@{s} " + row.split(" ", 1)[1] for (n, s), row in zip(picks, particle_rows(len(picks)), strict=True)]
    path = project / "particles.star"
    path.write_text(OPTICS + "\ndata_particles\n\n" + loop(LABELS, rows))
    return path


def requests_of(monkeypatch):
    """Return a list that grows by the object and the range of every GET."""
    asked, get = [], obstore.get

    def noting(store, key, **options):
        asked.append((key, (options.get("options") or {}).get("range")))
        return get(store, key, **options)

    monkeypatch.setattr(obstore, "get", noting)
    return asked


def test_a_project_on_s3_becomes_the_same_store(project, remote, bucket, tmp_path):
    path = project / "particles.star"
    here, there = str(tmp_path / "p.zarr"), join(remote, "p.zarr")
    import_particles(read_particles_star(path), here)
    import_particles(read_particles_star(join(remote, "particles.star")), there)
    shards = contents(join(here, "images", "c")), contents(join(there, "images", "c"))
    assert shards[0] == shards[1]
    assert read_bytes(join(here, "images/c/0/0/0")) == read_bytes(join(there, "images/c/0/0/0"))
    one, two = open_particles(here).particles, open_particles(there).particles
    assert set(one.columns) == set(two.columns)
    assert all(np.array_equal(one[name], two[name]) for name in one.columns)


def test_one_request_finds_a_stack_and_one_reads_a_run(project, bucket, images, monkeypatch):
    for name in "bcd":
        write_stack(project / "Extract" / f"{name}.mrcs", [images], COUNT, 1.34)
    picks = [(n + 1, f"Extract/{name}.mrcs") for name in "abcd" for n in range(10)]
    table_of(project, picks)
    source = read_particles_star(join(upload(project, f"s3://{bucket}/{secrets.token_hex(4)}"), "particles.star"))
    asked, before = requests_of(monkeypatch), traffic.totals()["images"].received
    reader = SourceImages(source)
    headers = {key.rpartition("/")[2]: span for key, span in asked}
    assert headers == dict.fromkeys(("a.mrcs", "b.mrcs", "c.mrcs", "d.mrcs"), (0, 1024))
    assert len(asked) == 4
    np.testing.assert_array_equal(reader.read(0, 40), np.concatenate([images[:10]] * 4))
    size = 4 * BOX**2
    assert [span for _, span in asked[4:]] == [(1024, 1024 + 10 * size)] * 4
    assert traffic.totals()["images"].received - before == 4 * 1024 + 40 * size


@pytest.mark.parametrize("block", [1, 3, 1000])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999))
def test_any_rows_of_any_stacks_in_any_order(block, seed, scattered):
    """Every read gives what the files give, whatever was read before."""
    reader, expected = scattered
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch, "BLOCK_BYTES", block * 4 * BOX**2)
        patch.setattr(prefetch, "GAP_BYTES", int(rng.integers(0, 5)) * 4 * BOX**2)
        patch.setattr(prefetch, "BLOCKS", int(rng.integers(1, 4)))
        images = prefetch.PrefetchedImages(reader._stacks, reader._source.stack, reader._source.section)
        for _ in range(3):
            start, stop = sorted(rng.integers(0, len(expected) + 1, 2).tolist())
            out = np.full((stop - start, BOX, BOX), np.nan, dtype=np.float32)
            images.read(start, stop, out)
            np.testing.assert_array_equal(out, expected[start:stop])


@pytest.fixture(scope="module")
def scattered(bucket, tmp_path_factory):
    """A reader of images of three types from three stacks, some twice, in no order; and the images."""
    folder = tmp_path_factory.mktemp("scattered")
    rng = np.random.default_rng(0)
    images = rng.integers(-100, 100, (3, COUNT, BOX, BOX)).astype(np.float32)
    for name, data, kind in zip("abc", images, (("<", "f4"), (">", "i2"), ("<", "f2")), strict=True):
        write_mrc(folder / f"{name}.mrcs", data, kind, 512 if name == "b" else 0)
    which, number = rng.integers(0, 3, 70), rng.integers(0, COUNT, 70)
    table_of(folder, [(n + 1, f"{'abc'[s]}.mrcs") for s, n in zip(which, number, strict=True)])
    url = upload(folder, f"s3://{bucket}/{secrets.token_hex(4)}")
    return SourceImages(read_particles_star(join(url, "particles.star"))), images[which, number]


def test_no_more_is_fetched_than_is_held(remote, monkeypatch):
    size = 4 * BOX**2
    monkeypatch.setattr(prefetch, "BLOCK_BYTES", 4 * size)
    monkeypatch.setattr(prefetch, "BLOCKS", 3)
    reader = SourceImages(read_particles_star(join(remote, "particles.star")))
    asked = requests_of(monkeypatch)
    reader.read(0, 2)
    reader.read(2, 3)
    reader.read(3, 4)
    for block in reader._ahead._blocks.values():
        for request in block.requests:
            request.result()
    assert sorted(span for _, span in asked) == [(1024 + i * 4 * size, 1024 + (i + 1) * 4 * size) for i in range(3)]
    reader.read(5, 13)
    assert sorted(reader._ahead._blocks) == [3, 4, 5]


def test_tables_and_stacks_may_lie_apart(project, remote, images, tmp_path):
    """A table on this machine with stacks on S3, and the other way round."""
    near, far = project / "particles.star", join(remote, "particles.star")
    for table, folder in ((near, remote), (far, str(project)), (far, remote)):
        np.testing.assert_array_equal(SourceImages(read_particles_star(table), folder).read(0, COUNT), images)
    write_bytes(join(remote, "Refine3D/job001/run_data.star"), near.read_bytes())
    source = read_particles_star(join(remote, "Refine3D/job001/run_data.star"))
    assert find_stacks(source.stacks, source.path)[0].place == join(remote, "Extract/a.mrcs")
    with pytest.raises(MissingInputError, match=r"Extract/a\.mrcs, not found under s3://.*/Refine3D; give the prefix"):
        SourceImages(source, join(remote, "Refine3D"))


@pytest.mark.parametrize("name", ["a b%20#?+ä.mrcs", "x/../Extract/./a.mrcs", "Extract//a.mrcs", "..a/..b.mrcs"])
def test_unusual_names(remote, project, images, name, bucket):
    import boto3

    client = boto3.client("s3")
    key = posixpath.normpath(join(remote, name).removeprefix(f"s3://{bucket}/"))
    client.put_object(Bucket=bucket, Key=key, Body=(project / "Extract" / "a.mrcs").read_bytes())
    client.close()
    (stack,) = find_stacks([name], join(remote, "particles.star"))
    assert stack.header.shape == (COUNT, BOX, BOX)


HOSTILE = ["../outside.mrcs", "../../outside.mrcs", "Extract/../../outside.mrcs", "/outside.mrcs", "..", "/", "//x"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("depth", [0, 2])
def test_names_do_not_leave_what_the_user_named(project, bucket, name, depth, monkeypatch):
    """What lies outside is a sound stack: it must not even be asked for."""
    root = f"s3://{bucket}/{secrets.token_hex(4)}"
    inside = join(root, *("deep",) * depth, "project")
    write_bytes(join(root, "outside.mrcs"), (project / "Extract" / "a.mrcs").read_bytes())
    upload(project, inside)
    asked = requests_of(monkeypatch)
    with pytest.raises(MissingInputError) as caught:
        find_stacks([name], join(inside, "particles.star"), inside)
    assert f"which lies outside of {inside}, and nothing else is read for it" in str(caught.value)
    assert asked == []
    with pytest.raises(MissingInputError, match=f"outside of s3://{bucket}, "):
        find_stacks(["../" * 9 + "x"], join(inside, "particles.star"))


def test_no_name_leads_to_this_machine_or_to_another_bucket(remote, project):
    sound = project / "Extract" / "a.mrcs"
    for name in (str(sound), f"file://{sound}", join(remote, "Extract/a.mrcs"), "a\tb", "a\0b", ""):
        with pytest.raises(MissingInputError, match="refers to"):
            find_stacks([name], join(remote, "particles.star"))


def test_where_nobody_may_look_is_looked_past(remote, monkeypatch):
    """Who may read a project alone is refused above it, and where there is nothing."""
    first_bytes = stacks.first_bytes

    def guarded(store, key, stop):
        found = first_bytes(store, key, stop) if "project/" in key else None
        if found is None:
            raise PermissionDeniedError("403 Forbidden")
        return found

    monkeypatch.setattr(stacks, "first_bytes", guarded)
    table = join(remote, "Refine3D/run_data.star")
    assert find_stacks(["Extract/a.mrcs"], table)[0].place == join(remote, "Extract/a.mrcs")
    with pytest.raises(StorageError, match="denies access"):
        find_stacks(["Extract/b.mrcs"], table)


def test_stacks_that_are_missing_are_counted_with_few_requests(remote, monkeypatch):
    asked = requests_of(monkeypatch)
    names = ["Extract/a.mrcs", *(f"Extract/{i}.mrcs" for i in range(7))]
    with pytest.raises(MissingInputError, match=r"refers to Extract/0\.mrcs and 6 other stacks, not found under"):
        find_stacks(names, join(remote, "particles.star"), remote)
    assert len(asked) == 8
    asked.clear()
    with pytest.raises(MissingInputError, match=r"refers to Extract/0\.mrcs, not found under"):
        find_stacks(names[1:], join(remote, "particles.star"))
    assert len(asked) == 3  # the project, the prefix above it, the bucket


def damages(url, images):
    """Yield what can be wrong with a stack when the import starts, and what is said of it."""
    good = read_bytes(url)
    yield good[:-4], FormatError, f"{url} is truncated"
    yield good[:500], FormatError, "has 500 bytes, less than the 1024"
    yield b"", FormatError, "has 0 bytes"
    yield b"junk" * 1000, FormatError, "a.mrcs"
    yield good[:8] + (30).to_bytes(4, "little") + good[12:], InconsistentDataError, "image 31 of .*a.mrcs, which has 30"


def test_bad_stacks_are_one_clear_line_and_leave_nothing(remote, images):
    stack, out = join(remote, "Extract/a.mrcs"), join(remote, "p.zarr")
    for data, error, words in damages(stack, images):
        write_bytes(stack, data)
        with pytest.raises(error, match=words) as caught:
            import_particles(read_particles_star(join(remote, "particles.star")), out)
        assert "\n" not in str(caught.value)
        assert contents(out) == []


@pytest.mark.parametrize("change", ["written", "deleted"])
def test_a_stack_that_is_changed_meanwhile_is_named(remote, change):
    reader = SourceImages(read_particles_star(join(remote, "particles.star")))
    stack = join(remote, "Extract/a.mrcs")
    data = read_bytes(stack)
    assert len(data) == STACK_BYTES
    if change == "written":
        write_bytes(stack, data[:-1] + b"\1")
    else:
        object_store(remote).delete("Extract/a.mrcs")
    for _ in range(2):  # nobody gets images of it later either
        with pytest.raises(
            StorageError, match=rf"Extract/a\.mrcs was {'changed' if change == 'written' else 'deleted'}"
        ):
            reader.read(0, COUNT)
        assert reader._ahead._blocks == {}


def test_cryosparc_tables(bucket, tmp_path):
    data = cs_rows()
    (tmp_path / "J1").mkdir()
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)
    for name, stack in zip("ab", images, strict=True):
        write_stack(tmp_path / "J1" / f"{name}.mrc", [stack], 3, 1.3)
    blob = [name for name in data.dtype.names if name == "uid" or not name.startswith("ctf/")]
    for name, fields in (("p.cs", blob), ("passthrough.cs", list(data.dtype.names))):
        with (tmp_path / "J1" / name).open("wb") as file:
            np.save(file, np.array(data[fields].tolist(), dtype=[(field, data.dtype[field]) for field in fields]))
    url = upload(tmp_path, f"s3://{bucket}/{secrets.token_hex(4)}")
    source = read_particles_cs(join(url, "J1/p.cs"), [join(url, "J1/passthrough.cs")])
    same = read_particles_cs(tmp_path / "J1" / "p.cs", [tmp_path / "J1" / "passthrough.cs"])
    assert all(np.array_equal(source.particles[name], same.particles[name]) for name in same.particles.columns)
    np.testing.assert_array_equal(SourceImages(source).read(0, 6), images.swapaxes(0, 1).reshape(6, 16, 16))


@pytest.mark.parametrize("rows", [10**6, 10**17])
def test_a_cryosparc_table_that_claims_more_than_it_has(bucket, rows):
    from io import BytesIO

    file, url = BytesIO(), f"s3://{bucket}/{secrets.token_hex(4)}.cs"
    np.lib.format.write_array_header_1_0(file, {"descr": [("uid", "<u8")], "fortran_order": False, "shape": (rows,)})
    write_bytes(url, file.getvalue() + bytes(80))
    with pytest.raises(FormatError, match="is truncated") as caught:
        read_particles_cs(url)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingInputError, match="does not exist"):
        read_particles_cs(url + ".other")
