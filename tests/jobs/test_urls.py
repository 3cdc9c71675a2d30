"""Jobs on ``s3://``: the same code, the same bits, and no secret in anything that they leave."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import obstore
import pytest

from cloudem.errors import OutputExistsError, ParameterError
from cloudem.io.formats.mrc import read_volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import has_group, list_groups, read_attributes
from cloudem.io.storage.location import contents, exists, join, object_store, read_bytes, write_bytes
from cloudem.jobs.artefacts import sizes_of
from cloudem.jobs.dataset import open_dataset
from cloudem.jobs.export import Export
from cloudem.jobs.import_particles import ImportParticles
from cloudem.jobs.mask import Mask
from cloudem.jobs.postprocess import Postprocess
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.report import Report
from cloudem.jobs.simulate import Simulate
from tests.jobs.conftest import BOX, PIXEL, Scene, assert_same_bits, run
from tests.jobs.refine3d.test_resume import Failing, StoppedError

SHORT = {"max_iterations": 2, "max_resolution_A": 14}


@pytest.fixture(scope="module")
def project(bucket: str) -> str:
    """An empty project URL."""
    return f"s3://{bucket}/project"


@pytest.fixture(scope="module")
def remote(scene: Scene, project: str) -> Scene:
    """The scene's particles and reference on S3."""
    store = open_particles(scene.particles)
    images = [store.read_images(np.arange(len(store)))]
    given = {"box": BOX, "pixel_size": PIXEL, "dtype": "float32", "attributes": {"date": store.attributes.get("date")}}
    write_particles(join(project, "particles.zarr"), store.particles, images, **given)
    write_bytes(join(project, "reference.mrc"), Path(scene.reference).read_bytes())
    return Scene(join(project, "particles.zarr"), join(project, "reference.mrc"), scene.density, scene.truth)


@pytest.fixture(scope="module")
def refined(remote: Scene, project: str) -> str:
    """A refinement from S3 to S3, with everything that a command leaves."""
    out = join(project, "refine")
    run(Refine3D(**remote.refinement(out, **SHORT)))
    return out


def test_a_refinement_on_s3_is_that_of_a_folder_to_the_bit(scene, refined, tmp_path, no_report):
    run(Refine3D(**scene.refinement(tmp_path / "refine", **SHORT)))
    assert_same_bits(refined, tmp_path / "refine")
    assert has_group(refined, "iterations/002")
    assert " received" not in (tmp_path / "refine" / "log.txt").read_text()
    assert "received_bytes" not in read_attributes(tmp_path / "refine", "iterations/002")["row"]


def test_a_stopped_run_goes_on_from_s3(remote, refined, project, tmp_path, monkeypatch, no_report):
    """Given the second time from another working directory: paths were made absolute."""
    monkeypatch.chdir(tmp_path)
    Path("reference.mrc").write_bytes(read_bytes(remote.reference))
    given = {**remote.refinement(join(project, "stopped"), **SHORT), "reference": "reference.mrc"}
    with pytest.raises(StoppedError):
        run(Refine3D(**given), lambda: Failing(4))
    assert list_groups(join(project, "stopped"), "iterations") == ["001"]
    monkeypatch.chdir("/")
    run(Refine3D(**{**given, "reference": f"{tmp_path}/reference.mrc"}))
    assert_same_bits(join(project, "stopped"), refined)


def test_report_and_log_lie_beside_the_result(refined):
    page = read_bytes(join(refined, "report.html")).decode()
    assert "refine3d" in page
    assert "<h2>Network</h2>" in page
    log = read_bytes(join(refined, "log.txt")).decode()
    assert "parameter symmetry = 'C1'" in log
    assert log.rstrip().endswith(refined)
    assert "refine3d finished in" in log
    assert re.search(r"iteration 2 received: .*poses \d.*; sent: ", log)
    assert re.search(r"network received: images \d.*; sent: reference \d", log)


def test_a_finished_run_is_left_alone_and_its_log_goes_on(remote, refined):
    before = read_bytes(join(refined, "log.txt"))
    run(Refine3D(**remote.refinement(refined, **SHORT)))  # the same command again
    after = read_bytes(join(refined, "log.txt"))
    assert after.startswith(before)
    assert b"already finished: s3://" in after[len(before) :]
    with pytest.raises(OutputExistsError, match="job with another --seed"):
        run(Refine3D(**remote.refinement(refined, **{**SHORT, "seed": 77})))


def test_what_is_somebody_elses_is_left_alone(remote, project):
    with pytest.raises(OutputExistsError, match="contains other files"):
        run(Refine3D(**remote.refinement(project, **SHORT)))
    assert "log.txt" in contents(project)  # it says so there, too


def test_a_run_that_fails_at_once_leaves_nothing(remote, project):
    with pytest.raises(ParameterError, match="does not fit in the images"):
        run(Refine3D(**remote.refinement(join(project, "failed"), **{**SHORT, "diameter_A": 500.0})))
    assert not exists(join(project, "failed"))


def test_the_other_jobs(refined, project, tmp_path):
    run(Mask(map=refined, out=join(project, "mask.mrc")))
    mask = read_volume(join(project, "mask.mrc")).data
    assert 0 < mask.mean() < 1
    with pytest.raises(OutputExistsError, match="already exists; choose another name"):
        run(Mask(map=refined, edge_A=20.0, out=join(project, "mask.mrc")))
    run(Mask(map=refined, out=join(project, "mask.mrc")))  # the same command again
    run(Postprocess(halves=refined, mask=join(project, "mask.mrc"), out=join(project, "post")))
    run(Postprocess(halves=refined, mask=join(project, "mask.mrc"), out=str(tmp_path / "post")))
    assert_same_bits(join(project, "post"), tmp_path / "post", ["result"])
    run(Export(source=refined, out=str(tmp_path / "files")))
    halves = {name: read_bytes(tmp_path / "files" / name) for name in ("half1.mrc", "half2.mrc")}
    for name, data in halves.items():
        write_bytes(join(project, "halves", name), data)
    run(Postprocess(halves=join(project, "halves", "half1.mrc"), out=join(project, "post2")))
    assert has_group(join(project, "post2"), "result")
    page = join(refined, "report.html")
    object_store(refined).delete("report.html")
    run(Report(out=refined))
    assert exists(page)


def test_simulate_import_and_reconstruct(project, refined, tmp_path):
    out = join(project, "simulated")
    given = {"demo": True, "box_px": 32, "pixel_size_A": 6.0, "count": 120, "snr": 0.5}
    run(Simulate(out=out, **given))
    run(Simulate(out=str(tmp_path / "simulated"), **given))
    assert contents(out) == ["density.mrc", "live.json", "log.txt", "particles.zarr", "start.mrc"]
    one, two = (open_particles(join(str(place), "particles.zarr")) for place in (out, tmp_path / "simulated"))
    np.testing.assert_array_equal(one.read_images(np.arange(120)), two.read_images(np.arange(120)))
    run(Reconstruct(particles=one.url, out=join(project, "rec"), report=False))
    run(Reconstruct(particles=two.url, out=str(tmp_path / "rec"), report=False))
    assert_same_bits(join(project, "rec"), tmp_path / "rec")
    run(Export(source=one.url, out=str(tmp_path / "stack")))
    imported = join(project, "imported.zarr")
    star = str(tmp_path / "stack" / "particles.star")
    run(ImportParticles(particles=star, out=imported))
    assert len(open_particles(imported)) == 120
    with pytest.raises(OutputExistsError, match="exists already"):
        run(ImportParticles(particles=star, dtype="float32", out=imported))
    run(ImportParticles(particles=star, out=imported))  # the same command again
    run(Export(source=one.url, out=join(project, "files")))
    assert contents(join(project, "files")) == ["export.json", "particles.mrcs", "particles.star"]
    assert read_bytes(join(project, "files", "particles.star")) == Path(star).read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        run(Export(source=refined, out=join(project, "files")))
    run(Export(source=one.url, out=join(project, "files")))  # the same command again
    job = ImportParticles(particles=join(project, "files", "particles.star"), out=join(project, "again.zarr"))
    assert "120 particles of 32 x 32 pixels in 1 stacks" in job.work(sizes_of(job)).notes
    run(job)
    there, here = open_particles(job.out), open_particles(imported)
    np.testing.assert_array_equal(there.read_images(np.arange(120)), here.read_images(np.arange(120)))
    run(ImportParticles(particles=star, project_folder=join(project, "files"), out=str(tmp_path / "here.zarr")))
    assert len(open_particles(tmp_path / "here.zarr")) == 120


def test_the_command_line_refines_on_s3_with_workers(remote, refined, project):
    """Worker processes open the same URLs with the credentials of their environment."""
    out = join(project, "workers")
    given = remote.refinement(out, **SHORT)
    line = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "cloudem", "refine3d", *line, "--workers", "2", "--threads", "1", "--no-report"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_bits(out, refined)


def test_no_secret_is_left_anywhere(s3, bucket, refined):
    """In no object of the bucket, and in nothing that is sent to workers."""
    scanned = 0
    store = object_store(f"s3://{bucket}")
    for batch in obstore.list(store):
        for entry in batch:
            assert s3.secret_key.encode() not in bytes(obstore.get(store, entry["path"]).bytes()), entry["path"]
            scanned += 1
    assert scanned > 100
    dataset = open_dataset(join(refined.rpartition("/")[0], "particles.zarr"))
    dataset.images(np.arange(3))
    sent = pickle.dumps(dataset)
    assert s3.secret_key.encode() not in sent
    assert s3.access_key.encode() not in sent
    np.testing.assert_array_equal(pickle.loads(sent).images(np.arange(3)), dataset.images(np.arange(3)))
    assert s3.secret_key not in repr(read_attributes(refined, ""))
