"""A cluster over several machines: the same results as serial, the bytes on the links, and machines that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.execution.executor import Added, Executor, Fold, SerialExecutor
from tests.network.cluster import PORT, Cluster
from tests.network.namespaces import Hosts

Floats = NDArray[np.float32]

SHARED = 1_000_000
"""Numbers of 8 bytes in the array that is shared."""


def build(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).standard_normal(count)


def part(item: int, shared: NDArray[np.float64]) -> Floats:
    time.sleep(0.05)  # long enough that both workers take part
    return (np.sin(shared[item::1000]) * 1e3**item).astype(np.float32)


def keys(item: int) -> list[int]:
    return [item % 3]


def add(item: int, shared: NDArray[np.float64]) -> Added[int, Floats, int]:
    return Added({item % 3: part(item, shared)}, item)


def merge(earlier: Floats, later: Floats) -> Floats:
    return earlier + later


def cut(value: Floats, number: int, count: int) -> Floats:
    return np.array_split(value, count)[number]


SUMS: Fold[int, int, Floats, int] = Fold(keys, add, merge, cut, np.concatenate)


def work(executor: Executor) -> list[bytes]:
    """Return what map and accumulate give, to the bit; sums whose order matters."""
    values = executor.share(build, SHARED)
    mapped = list(executor.map(part, range(12), shared=lambda _: [values]))
    sums, notes = executor.accumulate(SUMS, range(12), shared=lambda _: [values])
    assert notes == list(range(12))
    return [value.tobytes() for value in (*mapped, *(executor.fetch(value) for value in sums.values()))]


@pytest.fixture(scope="module")
def steady(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for tests that leave it as it is."""
    with (
        Hosts("head", "w1", "w2", "w3") as hosts,
        Cluster(hosts, tmp_path_factory.mktemp("steady")) as cluster,
    ):
        yield cluster


def serial() -> list[bytes]:
    with SerialExecutor() as executor:
        return work(executor)


def test_results_are_serial_to_the_bit_and_the_links_show_the_bytes(steady: Cluster) -> None:
    hosts = steady.hosts
    with hosts.inside("head"), steady.executor() as executor:
        assert executor.workers == 2
        before = {node: hosts.bytes(node) for node in ("head", "w1", "w2")}
        assert work(executor) == serial()
    received = {node: hosts.bytes(node).received - before[node].received for node in before}
    copied = max(received["w1"], received["w2"])  # by the worker that did not build it
    assert 8 * SHARED < copied < 1.1 * 8 * SHARED
    assert min(received["w1"], received["w2"]) < 0.1 * 8 * SHARED
    assert received["head"] < 0.1 * 8 * SHARED


def test_nothing_listens_that_was_not_asked_for(steady: Cluster) -> None:
    hosts = steady.hosts
    assert hosts.listening("head") == {(hosts.address("head"), PORT)}
    for node in ("w1", "w2"):  # a worker and its supervisor
        assert [host for host, _ in hosts.listening(node)] == [hosts.address(node)] * 2
    assert hosts.listening("w3") == set()


def test_a_job_runs_on_the_cluster(steady: Cluster, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.counting_job", "count", "1", "2", "3", "--out", str(tmp_path / "out")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": Path(__file__).parents[2]}
    given = {**os.environ, "CLOUDEM_CERTIFICATES": str(steady.certificates)}
    said = steady.hosts.run("w3", [*argv, "--scheduler", steady.address], env=given, **options).communicate()[0]
    assert f"Dask at {steady.address}" in said
    refused = steady.hosts.run("w3", [*argv, "--scheduler", steady.address], **options).communicate()[0]
    assert "needs certificates" in refused
    assert refused.count("\n") == 1


def test_a_scheduler_that_is_started_again_finds_its_workers_and_takes_them_along_when_it_stops(
    cluster: Cluster,
) -> None:
    cluster.processes["head"].send_signal(signal.SIGKILL)
    cluster.processes["head"].wait()
    for node in ("w1", "w2"):
        cluster.wait(node, lambda text: "worker lost" in text)
    cluster.start_scheduler()
    for node in ("w1", "w2"):
        cluster.wait(node, lambda text: text.count(" is at ") == 2)
    with cluster.hosts.inside("head"), cluster.executor() as executor:
        assert list(executor.map(abs, range(-3, 0))) == [3, 2, 1]
    cluster.processes["head"].terminate()
    assert {node: process.wait(timeout=20) for node, process in cluster.processes.items()} == {
        "head": 0,
        "w1": 0,
        "w2": 0,
    }
    assert cluster.log("head").endswith("scheduler stopped\n")
    assert cluster.log("w1").endswith(f"worker stopped by {cluster.address}\n")


def slow(item: int) -> int:
    time.sleep(0.5)
    return item * item


def test_a_worker_that_hangs_is_replaced_and_a_machine_that_vanishes_is_done_without(
    hosts: Hosts, tmp_path: Path
) -> None:
    with Cluster(hosts, tmp_path, workers=("w1", "w2", "w3")) as cluster:
        hung = cluster.worker_pid("w1")
        with hosts.inside("head"), cluster.executor() as executor:
            results = executor.map(slow, range(10))
            assert next(results) == 0
            os.kill(hung, signal.SIGSTOP)
            hosts.cut("w2")
            start = time.monotonic()
            assert list(results) == [item * item for item in range(1, 10)]
            cluster.wait("head", lambda text: text.count(" joined") == 4)
            assert time.monotonic() - start < 60
        assert not Path(f"/proc/{hung}").exists()
        hosts.mend("w2")
        cluster.wait("w2", lambda text: text.count(" is at ") == 2)
