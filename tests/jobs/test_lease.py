"""Two clients, one place for results: the job of one of them is done, and nothing of the other is in it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from cloudem.errors import LeaseHeldError, LeaseLostError
from cloudem.execution.executor import SerialExecutor
from cloudem.io.storage.compare_and_swap import slot
from cloudem.io.storage.lease import hold
from cloudem.io.storage.location import LEASE_FILE, contents, join, read_bytes, write_bytes
from cloudem.jobs.import_particles import ImportParticles
from cloudem.jobs.logs import keep_log
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.runner import place_of_lease
from tests.jobs.conftest import Scene, make_scene, run

LOG = logging.getLogger("cloudem.tests.lease")


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A few particles with poses."""
    return make_scene(tmp_path_factory.mktemp("posed"), count=100, columns=lambda table: table)


@pytest.fixture(params=["folder", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "out")
    return f"s3://{request.getfixturevalue('s3').bucket()}/out"


def test_a_job_is_refused_where_another_client_writes(posed, out, no_report):
    job = Reconstruct(particles=posed.particles, out=out)
    refused = pytest.raises(LeaseHeldError, match=r"is in use: process .*; wait for it to end")
    with hold(out, log=LOG, length=2), refused:
        run(job)
    assert not contents(out)
    run(job)
    assert "result" in contents(out)
    assert slot(out, LEASE_FILE).read() is None


class Interfering(SerialExecutor):
    """Takes the lease away while the images are inserted, as somebody does who saw no renewal for its length."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self._place = slot(out, LEASE_FILE)

    def accumulate(self, *arguments: Any, **options: Any) -> Any:
        done = super().accumulate(*arguments, **options)
        while True:  # until no renewal comes between
            found = self._place.read()
            assert found is not None
            if self._place.swap(found[1], b'{"holder": "another"}'):
                return done


def test_a_job_that_lost_its_lease_writes_no_result(posed, out, no_report):
    job = Reconstruct(particles=posed.particles, out=out)
    with pytest.raises(LeaseLostError, match="was taken over by"):
        run(job, lambda: Interfering(out))
    assert not set(contents(out)) & {"result", "particles"}
    found = slot(out, LEASE_FILE).read()
    assert found is not None
    assert found[0] == b'{"holder": "another"}'


def test_where_the_lease_of_new_stores_lies(tmp_path):
    local = ImportParticles(particles=str(tmp_path / "p.star"), out=str(tmp_path / "p.zarr"))
    assert place_of_lease(local) == str(tmp_path / "p.zarr.lease")
    remote = ImportParticles(particles=str(tmp_path / "p.star"), out="s3://bucket/p.zarr")
    assert place_of_lease(remote) == "s3://bucket/p.zarr"


def test_the_log_of_a_job_that_lost_its_lease_does_not_replace_the_other_ones(s3):
    url = f"s3://{s3.bucket()}/out"
    log, lost = logging.getLogger("cloudem.tests.log"), [False]

    def guard() -> None:
        if lost[0]:
            raise LeaseLostError("lost")

    log.setLevel(logging.DEBUG)
    write_bytes(join(url, "result"), b"")
    with keep_log(log, url, guard):
        log.info("mine")
        lost[0] = True
        write_bytes(join(url, "log.txt"), b"the other's\n")
        log.info("too late")
    assert read_bytes(join(url, "log.txt")) == b"the other's\n"
