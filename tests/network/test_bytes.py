"""The bytes on the links of four machines, against the model and against what the executor says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloudem.algorithms.transport import IterationSizes, moved
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.io.storage.groups import read_group
from cloudem.jobs.reconstruct.job import Reconstruct
from tests.jobs.conftest import run
from tests.network.cluster import ROOT, Cluster
from tests.network.namespaces import Hosts

WORKERS = ("w1", "w2", "w3", "w4")
COUNT, BOX = 800, 96


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the demo molecule with their true poses."""
    out = tmp_path_factory.mktemp("demo")
    command = ("simulate", "--demo", "--count", str(COUNT), "--out", str(out))
    subprocess.run([sys.executable, "-m", "cloudem", *command], check=True, capture_output=True, cwd=ROOT)
    return out / "particles.zarr"


@pytest.fixture(scope="module")
def four(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of four workers of one thread, each on a machine of its own."""
    with Hosts("head", *WORKERS) as hosts, Cluster(hosts, tmp_path_factory.mktemp("four"), workers=WORKERS) as cluster:
        yield cluster


def reconstruct(cluster: Cluster, particles: Path, out: Path) -> tuple[float, float]:
    """Reconstruct on the cluster; return the bytes that all workers' links received, and the bricks among them."""
    before = {node: cluster.hosts.bytes(node) for node in WORKERS}
    job = Reconstruct(particles=str(particles), out=str(out), group_size=100, report=False)
    counted = {}

    class Counting(DaskExecutor):
        def close(self) -> None:
            counted.update(self.traffic())
            super().close()

    with cluster.hosts.inside("head"):
        run(job, lambda: Counting(scheduler=cluster.address, certificates=str(cluster.certificates)))
    received = sum(cluster.hosts.bytes(node).received - before[node].received for node in WORKERS)
    return received, counted["bricks"].received


def test_links_carry_what_the_model_says(four: Cluster, particles: Path, tmp_path: Path) -> None:
    reconstruct(four, particles, tmp_path / "warm")
    received, bricks = reconstruct(four, particles, tmp_path / "out")
    it = IterationSizes(BOX, BOX // 2 - 1, 0, "C1", workers=4, slices=COUNT)
    expected = moved(it)
    # the map of all particles is solved where one half-set's sum is, and needs the other's
    assert bricks == pytest.approx(expected.merge + expected.join + it.sum_bytes, rel=0.05)
    assert received == pytest.approx(bricks, rel=0.05)
    serial = tmp_path / "serial"
    run(Reconstruct(particles=str(particles), out=str(serial), group_size=100, report=False))
    one, other = (read_group(url, "result")[0] for url in (serial, tmp_path / "out"))
    for name in ("half1", "half2", "map_unfiltered"):
        np.testing.assert_array_equal(one[name], other[name])
