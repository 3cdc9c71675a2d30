"""Shards that are lost: named at the start, or skipped as if their particles had never been there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.errors import DamagedShardError, ParameterError
from cloudem.io.exporting import export
from cloudem.io.images import layout
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_attributes, read_group
from cloudem.io.storage.location import object_store, put
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from tests.jobs.conftest import BOX, PIXEL, Scene, arrays_of, make_scene, run
from tests.jobs.refine3d.test_resume import Failing, StoppedError

SHARD = 48
LOST = np.arange(SHARD, 2 * SHARD)
KEPT = np.setdiff1d(np.arange(160), LOST)
SHORT = {"max_iterations": 2, "max_resolution_A": 14}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Particles with poses and half-sets in four shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_IMAGES", SHARD)
        return make_scene(tmp_path_factory.mktemp("whole"), columns=lambda table: table)


@pytest.fixture(scope="module")
def fewer(whole: Scene, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store without the particles that the others lose."""
    store, url = open_particles(whole.particles), str(tmp_path_factory.mktemp("fewer") / "particles.zarr")
    images = [store.read_images(KEPT)]
    write_particles(url, store.particles.take(KEPT), images, box=BOX, pixel_size=PIXEL, dtype="float32")
    return url


def copied(whole: Scene, url: str) -> str:
    """Copy the particles to a folder or to S3."""
    store = object_store(url, create=True)
    for path in Path(whole.particles).rglob("*"):
        if path.is_file():
            put(store, str(path.relative_to(whole.particles)), path.read_bytes())
    return url


@pytest.fixture(params=["missing, folder", "damaged, folder", "missing, s3", "damaged, s3"])
def lossy(request: pytest.FixtureRequest, whole: Scene, tmp_path: Path) -> Scene:
    """The same with its second shard lost."""
    how, _, where = request.param.partition(", ")
    url = str(tmp_path / "p.zarr") if where == "folder" else f"s3://{request.getfixturevalue('s3').bucket()}/p.zarr"
    return lose(replace(whole, particles=copied(whole, url)), how)


@pytest.fixture
def local(whole: Scene, tmp_path: Path) -> Scene:
    """A copy that a test may damage."""
    return replace(whole, particles=copied(whole, str(tmp_path / "p.zarr")))


def lose(scene: Scene, how: str = "missing", shard: int = 1) -> Scene:
    store, key = object_store(scene.particles), f"images/c/{shard}/0/0"
    if how == "missing":
        store.delete(key)
    else:
        put(store, key, b"0" * 5000)
    return scene


def refinement(scene: Scene, out: Path, **values: Any) -> Refine3D:
    return Refine3D(**scene.refinement(out, **SHORT, **values))


@pytest.mark.parametrize("name", ["refine3d", "reconstruct"])
def test_a_job_stops_at_its_start_and_names_shard_particles_and_option(name, lossy, tmp_path):
    out = tmp_path / "out"
    job = refinement(lossy, out) if name == "refine3d" else Reconstruct(particles=lossy.particles, out=str(out))
    with pytest.raises(DamagedShardError) as raised:
        run(job)
    said = str(raised.value)
    assert said.startswith(f"{lossy.particles}: images/c/1/0/0 is ")
    assert "(particles 49 to 96); import the particles again, or use --skip-damaged to leave out 48 of 160" in said
    assert not out.exists()


def assert_same_but_for_rows(out: Path, other: Path) -> None:
    first, second = arrays_of(out), arrays_of(other)
    np.testing.assert_array_equal(first.pop("particles/store_row"), KEPT)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def test_a_reconstruction_is_what_it_would_be_without_them(lossy, fewer, tmp_path, no_report):
    job = Reconstruct(particles=lossy.particles, out=str(tmp_path / "out"), skip_damaged=True)
    progress = run(job)
    run(Reconstruct(particles=fewer, out=str(tmp_path / "fewer")))
    assert_same_but_for_rows(tmp_path / "out", tmp_path / "fewer")
    (warning,) = [line for line in progress.warnings() if "skipped" in line]
    assert warning.startswith("48 of 160 particles are skipped, because their shards are lost: images/c/1/0/0 is ")
    result = read_attributes(job.out, "result")
    assert warning in result["warnings"]
    assert result["particle_count"] == len(KEPT)
    assert warning in (tmp_path / "out/log.txt").read_text()


def test_a_refinement_is_what_it_would_be_without_them(local, fewer, tmp_path, no_report):
    lose(local)
    progress = run(refinement(local, tmp_path / "out", skip_damaged=True))
    without = run(refinement(replace(local, particles=fewer), tmp_path / "fewer"))
    assert_same_but_for_rows(tmp_path / "out", tmp_path / "fewer")
    for row, other in zip(progress.iterations(), without.iterations(), strict=True):
        assert row["moving"] == other["moving"]
    assert any("48 of 160 particles are skipped" in line for line in progress.warnings())


def test_a_refinement_goes_on_without_what_was_lost_meanwhile(local, tmp_path, no_report):
    job = refinement(local, tmp_path / "out")
    with pytest.raises(StoppedError):
        run(job, lambda: Failing(4))
    sound = (Path(local.particles) / "images/c/1/0/0").read_bytes()
    lose(local)
    with pytest.raises(DamagedShardError, match="--skip-damaged"):
        run(job)
    with pytest.raises(StoppedError):
        run(job.model_copy(update={"skip_damaged": True}), lambda: Failing(1))
    put(
        object_store(local.particles), "images/c/1/0/0", sound
    )  # found again, but half-sets are not changed back in the middle
    progress = run(job)
    assert any(line.startswith("48 of 160 particles are skipped, as") for line in progress.warnings())
    assert [row["iteration"] for row in progress.iterations()] == [1, 2]
    arrays, attributes = read_group(job.out, "particles")
    np.testing.assert_array_equal(arrays["store_row"], KEPT)
    assert set(np.unique(arrays["half_set"])) == {1, 2}
    assert "store_row" in attributes["columns"]


def test_half_sets_drawn_at_random_stay_as_they_are(local, tmp_path, no_report):
    """Whoever repeats a job without a lost shard has the same particles in each half as before."""
    store = open_particles(local.particles)
    blind = str(tmp_path / "blind.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_IMAGES", SHARD)
        images, table = store.read_images(np.arange(160)), store.particles.without_columns(["half_set"])
        write_particles(blind, table, [images], box=BOX, pixel_size=PIXEL, dtype="float32")
    run(Reconstruct(particles=blind, out=str(tmp_path / "before")))
    before = read_group(tmp_path / "before", "particles")[0]["half_set"]
    lose(replace(local, particles=blind))
    run(Reconstruct(particles=blind, out=str(tmp_path / "after"), skip_damaged=True))
    np.testing.assert_array_equal(read_group(tmp_path / "after", "particles")[0]["half_set"], before[KEPT])


def test_the_images_of_a_result_are_those_of_its_rows(local, fewer, tmp_path, no_report):
    lose(local)
    run(Reconstruct(particles=local.particles, out=str(tmp_path / "out"), skip_damaged=True))
    export(tmp_path / "out", tmp_path / "files", stack=True)
    run(Reconstruct(particles=fewer, out=str(tmp_path / "fewer")))
    export(tmp_path / "fewer", tmp_path / "expected", stack=True)
    for name in ("particles.mrcs", "particles.star"):
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_nothing_is_left_to_do_without_any_shard(local, tmp_path):
    for shard in range(4):
        lose(local, shard=shard)
    with pytest.raises(DamagedShardError, match=r"no shard can be read: .*images/c/2.*; and 1 more; import"):
        run(Reconstruct(particles=local.particles, out=str(tmp_path / "out"), skip_damaged=True))


def test_a_half_set_that_is_lost_as_a_whole_is_said(whole, tmp_path):
    store, url = open_particles(whole.particles), str(tmp_path / "sorted.zarr")
    table = store.particles.with_columns(half_set=np.where(np.arange(160) < SHARD, 1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_IMAGES", SHARD)
        write_particles(url, table, [store.read_images(np.arange(160))], box=BOX, pixel_size=PIXEL, dtype="float32")
    lose(replace(whole, particles=url), shard=0)
    with pytest.raises(ParameterError, match="half-set 1 is empty among 112 particles"):
        run(Reconstruct(particles=url, out=str(tmp_path / "out"), skip_damaged=True))
