"""Tables, stacks and maps wherever fsspec reaches: the same bits, nothing half-written, no secret shown."""

import gzip
import secrets
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import (
    CloudemError,
    DamagedShardError,
    MissingInputError,
    OutputExistsError,
    ParameterError,
    StorageError,
)
from cloudem.io.exporting import export, read_record
from cloudem.io.formats.mrc import HEADER_BYTES, map_stack, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.sources import SourceImages
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles
from cloudem.io.storage.files import new_file
from cloudem.io.storage.location import (
    UNFINISHED,
    absolute,
    contents,
    exists,
    join,
    read_bytes,
    version_of,
    write_bytes,
)
from cloudem.io.storage.outputs import withdraw
from cloudem.jobs.export import Export
from cloudem.jobs.import_particles import ImportParticles
from cloudem.jobs.mask import Mask
from cloudem.jobs.refine3d.job import Refine3D
from tests.io.conftest import BOX, COUNT
from tests.io.formats.test_stacks import upload
from tests.jobs.conftest import run

fsspec = pytest.importorskip("fsspec")


class _Ranges(SimpleHTTPRequestHandler):
    """A folder on the web, whose server knows ranges."""

    ranges = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if not (asked and self.ranges and path.is_file()):
            return super().do_GET()
        first, last = asked.removeprefix("bytes=").split("-")
        data, start, stop = path.read_bytes(), int(first), int(last) + 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data[start:stop])))
        self.end_headers()
        self.wfile.write(data[start:stop])
        return None


class _NoRanges(_Ranges):
    ranges = False


@pytest.fixture
def web(project: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The project on the web."""
    pytest.importorskip("aiohttp")
    handler = partial(getattr(request, "param", _Ranges), directory=str(project))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def memory() -> str:
    """A place that does not exist yet."""
    return f"memory://{secrets.token_hex(6)}/place"


@pytest.fixture
def s3fs(request: pytest.FixtureRequest) -> str:
    """A place on S3, by way of s3fs."""
    pytest.importorskip("s3fs")
    return f"s3fs://{request.getfixturevalue('bucket')}/{secrets.token_hex(6)}"


@pytest.fixture
def sftp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place on a server for SFTP."""
    pytest.importorskip("paramiko")
    from tests.io import sftp_server

    with sftp_server.serve(tmp_path_factory.mktemp("sftp")) as port:
        known = {"port": port, "username": sftp_server.USER, "password": sftp_server.PASSWORD}
        monkeypatch.setitem(fsspec.config.conf, "sftp", {**known, "look_for_keys": False, "allow_agent": False})
        yield f"sftp://127.0.0.1/{secrets.token_hex(6)}"


@pytest.fixture(params=["memory", "s3fs", "sftp"])
def elsewhere(request: pytest.FixtureRequest) -> str:
    """A place that can be written to."""
    return str(request.getfixturevalue(request.param))


def give_up(url: str) -> None:
    with new_file(url) as file:
        file.write(b"new")
        raise KeyError


def same_store(table: str, project: Path) -> None:
    here, there = str(project / "here.zarr"), str(project / "there.zarr")
    import_particles(read_particles_star(project / "particles.star"), here)
    import_particles(read_particles_star(table), there)
    assert read_bytes(join(here, "images/c/0/0/0")) == read_bytes(join(there, "images/c/0/0/0"))
    assert len(open_particles(there)) == COUNT


def test_a_project_elsewhere_becomes_the_same_store(project, elsewhere):
    same_store(join(upload(project, elsewhere), "particles.star"), project)


def test_a_project_on_the_web_becomes_the_same_store(project, web):
    same_store(f"{web}/particles.star", project)


@pytest.mark.parametrize("web", [_NoRanges], indirect=True)
def test_of_a_server_without_ranges_headers_and_maps_are_read_and_stacks_are_refused(project, web):
    stack, _ = map_stack(f"{web}/Extract/a.mrcs")
    np.testing.assert_array_equal(stack, map_stack(project / "Extract" / "a.mrcs")[0])
    images = SourceImages(read_particles_star(f"{web}/particles.star"))
    with pytest.raises(StorageError, match=r"a\.mrcs: its server sends whole files"):
        images.read(3, 5)


def test_maps_are_the_same_wherever_they_lie(project, elsewhere, web):
    volume = np.random.default_rng(3).standard_normal((BOX, BOX, BOX), dtype=np.float32)
    write_volume(project / "map.mrc", volume, 1.5)
    write_volume(join(elsewhere, "map.mrc"), volume, 1.5)
    (project / "map.mrc.gz").write_bytes(gzip.compress((project / "map.mrc").read_bytes()))
    write_bytes(join(elsewhere, "map.mrc.gz"), (project / "map.mrc.gz").read_bytes())
    assert read_bytes(join(elsewhere, "map.mrc")) == (project / "map.mrc").read_bytes()
    for base in (elsewhere, web):
        for name in ("map.mrc", "map.mrc.gz"):
            found = read_volume(f"{base}/{name}")
            np.testing.assert_array_equal(found.data, volume)
            assert found.pixel_size == pytest.approx(1.5)


def test_a_stack_that_changes_while_it_is_read_is_said(project, memory):
    url = upload(project, memory)
    images = SourceImages(read_particles_star(join(url, "particles.star")))
    write_bytes(join(url, "Extract/a.mrcs"), b"x" + (project / "Extract" / "a.mrcs").read_bytes()[1:])
    with pytest.raises(StorageError, match="was changed while it was read"):
        images.read(0, 2)


def test_no_name_of_a_table_leaves_its_place(project, memory):
    table = (project / "particles.star").read_text()
    for name in ("/etc/passwd", "../../../../etc/passwd", "https://example.org/a.mrcs"):
        write_bytes(join(memory, "t.star"), table.replace("Extract/a.mrcs", name).encode())
        with pytest.raises(MissingInputError):
            SourceImages(read_particles_star(join(memory, "t.star")))


def test_what_is_exported_elsewhere_is_that_of_a_folder(project, elsewhere):
    import_particles(read_particles_star(project / "particles.star"), str(project / "p.zarr"))
    run(Export(source=str(project / "p.zarr"), out=str(project / "files")))
    job = Export(source=str(project / "p.zarr"), out=elsewhere)
    run(job)
    assert contents(elsewhere) == contents(project / "files")
    assert job.is_finished()
    for name in ("particles.star", "particles.mrcs"):
        start = HEADER_BYTES if name == "particles.mrcs" else 0  # written as a stream, it is without statistics
        assert read_bytes(join(elsewhere, name))[start:] == (project / "files" / name).read_bytes()[start:]
    import_particles(read_particles_star(join(elsewhere, "particles.star")), str(project / "again.zarr"))
    assert len(open_particles(str(project / "again.zarr"))) == COUNT
    with pytest.raises(OutputExistsError, match="exists already"):
        export(str(project / "p.zarr"), elsewhere)
    withdraw(elsewhere)
    assert read_record(elsewhere) is None
    export(str(project / "p.zarr"), elsewhere)
    assert UNFINISHED not in contents(elsewhere)


def test_an_export_that_fails_leaves_nothing_and_one_that_is_killed_says_so(project, elsewhere):
    import_particles(read_particles_star(project / "particles.star"), str(project / "p.zarr"))
    shard = project / "p.zarr" / "images" / "c" / "0" / "0" / "0"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(DamagedShardError):
        export(str(project / "p.zarr"), elsewhere, record={"job": "export"})
    assert contents(elsewhere) == []
    shard.write_bytes(data)
    write_bytes(join(elsewhere, UNFINISHED), b"{}")  # what a kill leaves
    write_bytes(join(elsewhere, "export.json"), b"{}")
    assert read_record(elsewhere) is None
    export(str(project / "p.zarr"), elsewhere)
    assert contents(elsewhere) == ["particles.mrcs", "particles.star"]


def test_a_file_that_is_given_up_leaves_what_was_there(elsewhere):
    for before in (None, b"old"):
        if before is not None:
            write_bytes(join(elsewhere, "a"), before)
        with pytest.raises(KeyError):
            give_up(join(elsewhere, "a"))
        assert read_bytes(join(elsewhere, "a")) == before


def test_a_mask_goes_anywhere_and_is_known_again(project, elsewhere):
    ball = np.zeros((BOX, BOX, BOX), np.float32)
    ball[5:11, 5:11, 5:11] = 1
    write_volume(join(elsewhere, "map.mrc"), ball, 4.0)
    given = {"map": join(elsewhere, "map.mrc"), "out": join(elsewhere, "mask.mrc"), "threshold": 0.5}
    run(Mask(**given))
    assert read_volume(join(elsewhere, "mask.mrc")).data.max() == 1
    assert Mask(**given).is_finished()
    assert version_of(given["map"])
    write_volume(given["map"], np.pad(ball, 2), 4.0)  # larger: times over SFTP are in whole seconds
    assert not Mask(**given).is_finished()


@pytest.mark.parametrize(
    "url",
    [
        "https://someone:hunter2@example.org/a.star",
        "https://hunter2@example.org/a.star",
        "https://example.org/a.star?X-Amz-Signature=hunter2",
        "gs://hunter2@bucket/a.star",
        "sftp://someone:hunter2@host/a.star",
        "abfs://box@account.dfs.core.windows.net/a.star?sig=hunter2",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(url):
    for use in (absolute, lambda each: ImportParticles(particles=each, out="p.zarr")):
        with pytest.raises(CloudemError) as caught:
            use(url)
        assert "hunter2" not in str(caught.value)
        assert "configuration" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_of_users_and_containers_are_no_secrets():
    assert absolute("SFTP://me@host//a//b/") == "sftp://me@host/a/b"
    assert absolute("abfs://box@account.dfs.core.windows.net/a") == "abfs://box@account.dfs.core.windows.net/a"


@pytest.mark.parametrize(
    "url", ["gs:///a", "gs://b/../a", "simplecache::memory://a/b", "gs://b/x::memory://a", "s3a://b/x", "ftp://h/a"]
)
def test_what_names_no_place_is_refused(url):
    with pytest.raises(ParameterError):
        absolute(url)


def test_an_unknown_scheme_is_told_which_are_known():
    with pytest.raises(ParameterError, match=r"gopher:// locations are not known; .*s3://.*gs://.*sftp://") as caught:
        absolute("gopher://a:hunter2@b/c?d=hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match=r"install gcsfs to access Google Storage .*pip install 'cloudem\[fsspec\]'"):
        exists("gs://bucket/a")


def test_a_server_that_is_not_there_is_no_missing_file(web):
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1/a\.star: ") as caught:
        read_particles_star("http://127.0.0.1:1/a.star")
    assert not isinstance(caught.value, MissingInputError)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingInputError, match="does not exist"):
        read_particles_star(f"{web}/nowhere.star")
    assert not exists(f"{web}/nowhere.star")


def test_stores_and_results_lie_in_folders_or_on_s3_and_the_web_is_read_only(project, memory, web):
    table = str(project / "particles.star")
    refused = r"particle stores and results are folders or s3://bucket/prefix"
    with pytest.raises(ParameterError, match=refused):
        run(ImportParticles(particles=table, out=memory))
    with pytest.raises(ParameterError, match=refused):
        open_particles(memory)
    with pytest.raises(ParameterError, match=refused):
        Export(source=memory, out=str(project / "files")).preflight()
    given = {"particles": memory, "reference": f"{web}/r.mrc", "symmetry": "C1", "diameter_A": 15}
    with pytest.raises(ParameterError, match=refused):
        Refine3D(**given, out=str(project / "refine")).preflight()
    import_particles(read_particles_star(table), str(project / "p.zarr"))
    with pytest.raises(ParameterError, match=refused):
        Refine3D(**{**given, "particles": str(project / "p.zarr")}, out=memory).preflight()
    with pytest.raises(ParameterError, match="can only be read"):
        Export(source=str(project / "p.zarr"), out=f"{web}/files").preflight()
    assert contents(memory) == []
