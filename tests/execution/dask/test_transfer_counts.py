"""Counting what workers move: nothing is lost, nothing counted twice, and Prometheus hears the same."""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import distributed  # noqa: F401  its defaults come before what is set here
import numpy as np
import pytest
from dask.sizeof import sizeof
from numpy.typing import NDArray

import cloudem.execution.dask.transfer_counts  # noqa: F401  teaches Dask the size of data classes
from cloudem import traffic
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.security import make_certificates
from cloudem.execution.executor import itself
from cloudem.traffic import Traffic
from tests.execution.dask.test_cluster import Running, free_ports

SIZE = 100_000
SLACK = 1.01
"""Headers and what Dask counts of them."""


@dataclass(frozen=True)
class Table:
    """Data classes of arrays are what tasks return."""

    column: NDArray[np.uint8]


def table(_number: int) -> Table:
    return Table(np.zeros(SIZE, np.uint8))


def length(made: Table) -> int:
    return len(made.column)


def length_of(_item: int, made: Table) -> int:
    return length(made)


def roughly(size: int) -> Any:
    return pytest.approx(size * (1 + SLACK) / 2, rel=(SLACK - 1) / 2)


@pytest.fixture(scope="module")
def executor() -> Iterator[DaskExecutor]:
    """Two worker processes that remember no more than three transfers."""
    with (
        dask.config.set({"distributed.admin.low-level-log-length": 3}),
        DaskExecutor(processes=True, workers=2, threads=1) as executor,
    ):
        yield executor


def moved_by(executor: DaskExecutor, purpose: str, run: Any) -> Traffic:
    before = executor.traffic()
    run()
    after = executor.traffic()
    others = {name for name in traffic.PURPOSES if after[name] != before[name]} - {purpose, "other"}
    assert not others
    return after[purpose].minus(before[purpose])


def test_data_classes_are_as_large_as_their_arrays() -> None:
    assert sizeof(table(0)) == roughly(SIZE)
    assert sizeof([table(0), table(1)]) == roughly(2 * SIZE)


def test_what_is_fetched_is_counted_once_where_it_left_and_once_where_it_came(executor: DaskExecutor) -> None:
    moved = moved_by(executor, "poses", lambda: list(executor.map(table, range(2))))
    assert moved == (roughly(2 * SIZE), roughly(2 * SIZE))


def test_workers_forget_transfers_and_the_counters_do_not(executor: DaskExecutor) -> None:
    first, second = executor._pool.threads()

    def hand_over() -> None:
        for number in range(10):
            made = executor._pool.submit(table, number, worker=first, purpose="bricks")
            assert executor._pool.submit(length, made, worker=second).result() == SIZE

    assert moved_by(executor, "bricks", hand_over) == (roughly(10 * SIZE), roughly(10 * SIZE))
    remembered = executor._pool.client.run(lambda dask_worker: len(dask_worker.transfer_incoming_log))
    assert remembered[second] == 3


def test_a_new_executor_begins_at_zero(executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    list(executor.map(table, range(2)))
    assert any(map(any, executor.traffic().values()))
    monkeypatch.setattr("cloudem.execution.dask.executor.security_for", lambda *_, **__: executor._pool.client.security)
    with DaskExecutor(scheduler=executor._pool.client.scheduler.address) as other:
        assert set(other.traffic().values()) == {Traffic()}


def test_what_a_killed_worker_has_told_is_kept(executor: DaskExecutor) -> None:
    before = executor.traffic()
    first, second = executor._pool.threads()
    made = executor._pool.submit(table, 0, worker=first, purpose="reference")
    assert executor._pool.submit(length, made, worker=second).result() == SIZE
    heard = dict(executor._heard.by_process)

    def tell(dask_worker: Any) -> None:
        dask_worker.plugins["cloudem-traffic"]._tell(dask_worker)

    executor._pool.client.run(tell)
    deadline = time.monotonic() + 10
    while sum(found != heard[process] for process, found in executor._heard.by_process.items()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    executor._pool.client.run(os._exit, 1, on_error="ignore", workers=[first, second])
    executor._pool.threads()
    assert executor.traffic()["reference"].minus(before["reference"]) == (roughly(SIZE), roughly(SIZE))


def scraped(url: str) -> dict[str, Traffic]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = {
        (way, purpose): int(float(value))
        for way, purpose, value in re.findall(r'^cloudem_bytes_(\w+)_total\{purpose="(\w+)"\} (\S+)$', text, re.M)
    }
    return {name: Traffic(found["received", name], found["sent", name]) for name in traffic.PURPOSES}


def test_prometheus_hears_what_the_client_hears(tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs")
    port, metrics = free_ports(2)
    running = Running(tmp_path, f"tls://127.0.0.2:{port}", 0, metrics, {})
    urls = [f"http://127.0.0.{host}:{metrics}/metrics" for host in (3, 4)]
    try:
        running.start("scheduler", "scheduler", "--host", "127.0.0.2", "--port", str(port))
        for host in (3, 4):
            place = ("--host", f"127.0.0.{host}", "--threads", "1", "--metrics-port", str(metrics))
            running.start(f"worker{host}", "worker", running.address, *place)
        for host in (3, 4):
            running.wait(f"worker{host}", " is at ")
        own = traffic.totals()
        with DaskExecutor(scheduler=running.address, certificates=str(tmp_path / "certs")) as executor:
            shared = executor.spread(table, 0, local=itself, purpose="reference")
            assert list(executor.map(length_of, range(4), shared=lambda _: [shared])) == [SIZE] * 4
            workers = traffic.total_traffic(map(scraped, urls))
            assert workers["reference"] == (roughly(SIZE), roughly(SIZE))
            assert traffic.total_traffic([workers, traffic.difference(traffic.totals(), own)]) == executor.traffic()
    finally:
        for process in running.processes.values():
            process.terminate()
        for process in running.processes.values():
            process.wait(timeout=20)
