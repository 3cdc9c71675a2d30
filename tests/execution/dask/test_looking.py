"""What a job learns of its workers: names, memory, GPUs, and nothing that keeps it waiting."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudem.execution.dask import looking
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.looking import ask_workers, worker_seen
from cloudem.execution.executor import SerialExecutor
from cloudem.execution.workers import MOST_WORKERS, ClusterSeen, GpuSeen, WorkerSeen, cluster_of

ROOT = Path(__file__).parents[3]

IDENTITY: dict[str, Any] = {
    "type": "Worker",
    "id": "node1 GPU 0",
    "name": "node1 GPU 0",
    "host": "10.0.0.7",
    "nthreads": 1,
    "memory_limit": 64 << 30,
    "last_seen": 1000.0,
    "status": "running",
    "nanny": "tls://10.0.0.7:4000",
    "resources": {"cores": 8},
    "services": {},
    "metrics": {
        "task_counts": {"executing": 1, "ready": 1, "memory": 7},
        "cpu": 187.34,
        "memory": 5 << 30,
        "time": 999.0,
        "gpu_name": "NVIDIA A10G",
        "gpu-memory-total": 24 << 30,
        "gpu_memory_used": 6 << 30,
        "gpu_utilization": 83,
        "gpu": {"utilization": 83, "memory-used": 6 << 30},
    },
}
"""As of a worker of Dask 2026.8 on a GPU; the last test has Dask itself make such a one."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers: the machine may be busy with other things."""
    monkeypatch.setattr(looking, "PATIENCE_S", 30.0)


def test_a_worker_is_seen_with_its_gpu() -> None:
    found = worker_seen(IDENTITY, 1002.5)
    gpu = GpuSeen(name="NVIDIA A10G", memory_bytes=6 << 30, limit_bytes=24 << 30, busy_percent=83)
    assert found == WorkerSeen(
        name="node1 GPU 0", host="10.0.0.7", threads=1, running=1, memory_bytes=5 << 30, limit_bytes=64 << 30,
        cpu_percent=187.3, silent_s=2.5, gpu=gpu,
    )  # fmt: skip


def test_what_a_worker_found_when_it_started_does_as_well() -> None:
    metrics = {"gpu": {"utilization": 3}}
    found = worker_seen({**IDENTITY, "metrics": metrics, "gpu": {"name": "Tesla T4", "memory-total": 1 << 30}}, 1000.0)
    assert found.gpu == GpuSeen(name="Tesla T4", limit_bytes=1 << 30)


@pytest.mark.parametrize("metrics", [
    {}, None, {"task_counts": None, "cpu": float("nan"), "memory": "much"}, {"cpu": -1, "memory": 1e300},
    {"gpu_name": None, "gpu_utilization": None, "gpu_memory_used": float("inf")},
])  # fmt: skip
def test_what_a_worker_does_not_measure_is_left_out(metrics: Any) -> None:
    found = worker_seen({"name": 3, "nthreads": 2, "metrics": metrics}, 1000.0)
    assert found == WorkerSeen(name="worker 3", threads=2)


def test_names_are_one_line_however_long() -> None:
    found = worker_seen({**IDENTITY, "name": "a\x1b[31m\n" * 500, "host": "h" * 5000}, 1000.0)
    assert found.name.isprintable()
    assert len(found.host) <= 400


def test_of_a_large_cluster_the_first_are_kept() -> None:
    kept = cluster_of("Dask", tuple(WorkerSeen(name=f"worker {n}") for n in range(MOST_WORKERS + 7)))
    assert (len(kept.workers), kept.more) == (MOST_WORKERS, 7)
    assert len(kept.model_dump_json()) < 1 << 18
    assert ClusterSeen.model_validate_json(kept.model_dump_json()) == kept


def test_one_process_is_its_own_worker() -> None:
    with SerialExecutor() as executor:
        (found,) = executor.seen_workers()
    assert (found.name, found.threads, found.running) == ("this process", 1, 1)
    assert 1 << 20 < found.memory_bytes < (found.limit_bytes or 0)


def hold(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@contextlib.contextmanager
def tasks_of(executor: DaskExecutor, seconds: float) -> Iterator[None]:
    """Keep all threads busy while the block runs."""
    over = threading.Event()

    def work() -> None:
        for _ in executor.map(hold, [seconds] * 1000):
            if over.is_set():
                return

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


def test_two_workers_are_seen_while_they_work() -> None:
    with DaskExecutor(processes=True, workers=2, threads=1) as executor, tasks_of(executor, 0.3):
        deadline = time.monotonic() + 30
        found = executor.seen_workers()
        while sum(worker.running for worker in found) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
            found = executor.seen_workers()
    assert [worker.name for worker in found] == ["worker 0", "worker 1"]
    assert len({worker.host for worker in found}) == 1
    assert "127.0.0.1" not in {worker.host for worker in found}
    for worker in found:
        assert worker.threads == 1
        assert 1 << 20 < worker.memory_bytes < (worker.limit_bytes or 0)
        assert worker.silent_s < 15
        assert worker.gpu is None


def test_threads_of_this_process_are_one_worker() -> None:
    with DaskExecutor(threads=2) as executor:
        (found,) = executor.seen_workers()
    assert (found.name, found.threads) == ("worker 0", 2)


def test_nobody_waits_for_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "PATIENCE_S", 0.2)
    with DaskExecutor(threads=1) as executor:
        client = executor._pool.client
        client.loop.add_callback(time.sleep, 1.0)  # the scheduler lives in this loop
        with pytest.raises(TimeoutError):
            ask_workers(client)
        assert executor.fetch(executor.share(hold, 0.0)) == 0.0
        monkeypatch.setattr(looking, "PATIENCE_S", 30.0)
        assert len(ask_workers(client)) == 1


def test_a_client_that_is_closed_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "PATIENCE_S", 0.5)
    executor = DaskExecutor(threads=1)
    client = executor._pool.client
    executor.close()
    with pytest.raises((OSError, RuntimeError, AttributeError, concurrent.futures.CancelledError)):
        ask_workers(client)


PYNVML = """
class NVMLError(Exception): ...
class NVMLError_LibraryNotFound(NVMLError): ...
class NVMLError_DriverNotLoaded(NVMLError): ...
class NVMLError_Unknown(NVMLError): ...
class NVMLError_NotSupported(NVMLError): ...
class Memory: total, used = 24 << 30, 5 << 30
class Rates: gpu = 83
def nvmlInit(): ...
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUtilizationRates(handle): return Rates
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetName(handle): return "NVIDIA Made Up"
"""
"""Stands for the driver's library: what Dask calls of it to measure a GPU."""

SAY = """
from cloudem.execution.dask import looking
from cloudem.execution.dask.executor import DaskExecutor
if __name__ == "__main__":
    looking.PATIENCE_S = 30.0
    with DaskExecutor(processes=True, workers=1, threads=1) as executor:
        while not (seen := executor.seen_workers()[0]).gpu or not seen.gpu.name:
            pass
        print(seen.model_dump_json())
"""


def test_a_worker_whose_driver_answers_says_what_gpu_it_has(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text(PYNVML)
    (tmp_path / "say.py").write_text(SAY)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, str(tmp_path / "say.py")]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["gpu"] == {
        "name": "NVIDIA Made Up", "memory_bytes": 5 << 30, "limit_bytes": 24 << 30, "busy_percent": 83.0,
    }  # fmt: skip
