"""How the Dask executor starts, and how it says that it cannot."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import logging
import operator
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psutil
import pytest
from distributed import LocalCluster
from scipy import fft

from cloudem.backend.arrays import choose_device, why_no_gpu
from cloudem.errors import ParameterError, WorkerLostError
from cloudem.execution.dask.embedded import is_no_abandoned_wait
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.executor import Added, Fold, itself


def test_without_arguments_it_is_threads_of_this_process() -> None:
    with DaskExecutor(threads=2) as executor:
        assert executor.description == "Dask, 2 threads of this process"
        assert executor.workers == 2


def listening() -> set[str]:
    return {c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}


def test_nothing_can_be_reached_from_other_machines() -> None:
    assert listening() <= {"127.0.0.1"}
    with DaskExecutor(threads=1):
        assert listening() <= {"127.0.0.1"}


def test_closing_twice_is_harmless() -> None:
    executor = DaskExecutor(threads=1)
    executor.close()
    executor.close()


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    with pytest.raises(WorkerLostError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        DaskExecutor(scheduler="tcp://127.0.0.1:1", patience_s=1)


def test_a_scheduler_without_workers_is_said_at_once_and_when_patience_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cloudem.execution.dask.worker_pool.SILENCE_S", 0.05)
    with (
        caplog.at_level("INFO", logger="cloudem.execution"),
        LocalCluster(n_workers=0, processes=False, protocol="inproc", dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(WorkerLostError, match=r"had no workers for 0 s; start some"),
    ):
        DaskExecutor(scheduler=cluster.scheduler_address, patience_s=0.2)
    assert caplog.text.count("has no workers; waiting up to 0 s for some") == 1


@pytest.mark.parametrize("argument", ["workers", "threads"])
def test_no_workers_or_threads_is_refused(argument: str) -> None:
    with pytest.raises(ParameterError, match=f"--{argument}: got 0, needs at least 1"):
        DaskExecutor(**{argument: 0})


def visible(item: int) -> tuple[int, str]:
    time.sleep(0.3)  # so that nobody does it all
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as the environment says, and CuPy, as far as anybody looks."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-8932f937")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "cupy" or find(name, *rest))


def add_threads(item: int) -> Added[str, int, int]:
    return Added({"sum": 1}, fft.get_workers())


@pytest.mark.usefixtures("two_gpus")
def test_each_gpu_has_a_process_with_its_share_of_the_cores_that_nobody_else_can_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dask.system.CPU_COUNT", 7)
    fold: Fold[int, str, int, int] = Fold(keys, add_threads, operator.add, first_takes_all, sum)
    with DaskExecutor() as executor:
        assert executor.description == "Dask, 2 GPUs of this machine"
        assert executor.workers == 2
        assert executor._pool.client.scheduler.address.startswith("tls://127.0.0.1:")
        found = set(executor.map(visible, range(6)))
        assert executor.fetch(executor.share(fft.get_workers)) == 3
        assert executor.accumulate(fold, range(4))[1] == [3] * 4
    assert sorted(gpu for _, gpu in found) == ["1", "GPU-8932f937"]
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3
    with DaskExecutor(threads=3) as executor:
        assert executor.accumulate(fold, range(4))[1] == [1] * 4


def offer_dask_cuda(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    module = types.ModuleType("dask_cuda")
    module.LocalCUDACluster = start  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("dask_cuda", None)
    monkeypatch.setitem(sys.modules, "dask_cuda", module)


@pytest.mark.usefixtures("two_gpus")
def test_dask_cuda_starts_the_processes_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def cluster_of_two(**arguments: Any) -> LocalCluster:
        asked.update(arguments)
        own = {name: arguments.pop(name) for name in ("CUDA_VISIBLE_DEVICES", "device_memory_limit")}
        return LocalCluster(**arguments, n_workers=len(own["CUDA_VISIBLE_DEVICES"]))

    offer_dask_cuda(monkeypatch, cluster_of_two)
    with DaskExecutor() as executor:
        assert executor.description == "Dask, 2 GPUs of this machine"
        assert executor._pool.client.scheduler.address.startswith("tls://127.0.0.1:")
    assert asked["CUDA_VISIBLE_DEVICES"] == ["1", "GPU-8932f937"]


@pytest.mark.usefixtures("two_gpus")
def test_where_dask_cuda_fails_they_are_started_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(**arguments: Any) -> LocalCluster:
        raise RuntimeError("NVML library not found")

    offer_dask_cuda(monkeypatch, no_library)
    with DaskExecutor() as executor:
        assert {gpu for _, gpu in executor.map(visible, range(6))} == {"1", "GPU-8932f937"}


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("arguments", [{"gpus": False}, {"threads": 1}, {"workers": 1, "threads": 1}])
def test_gpus_are_left_alone_where_something_else_is_asked_for(arguments: dict[str, Any]) -> None:
    with DaskExecutor(**arguments) as executor:
        assert "GPU" not in executor.description


def test_without_gpus_it_falls_back_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with DaskExecutor() as executor:
        assert executor.description.endswith(" threads of this process")


def device_of(item: int) -> str:
    return choose_device()


def test_real_gpus_run_tasks() -> None:
    if reason := why_no_gpu():
        pytest.skip(f"{reason}: no task is tried on one here")
    with DaskExecutor() as executor:
        assert "GPU" in executor.description
        assert set(executor.map(device_of, range(4))) == {"gpu"}


def test_the_serial_executor_does_not_import_dask() -> None:
    code = (
        "from cloudem.execution.executor import *; import sys; SerialExecutor(); sys.exit('distributed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_cluster_after_another_in_a_fresh_process() -> None:
    code = (
        "from cloudem.execution.dask.executor import DaskExecutor\n"
        "for turn in range(2):\n"
        "    with DaskExecutor(threads=1) as executor: assert list(executor.map(abs, [-1])) == [1]\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_only_waits_that_were_abandoned_are_not_spoken_of() -> None:
    def said(error: Exception, message: str) -> bool:
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (), (type(error), error, None))
        return is_no_abandoned_wait(record)

    lost = "Future exception was never retrieved"
    assert not said(TimeoutError("Timeout"), lost)
    assert said(TimeoutError("Timeout"), "something else")
    assert said(TimeoutError("another"), lost)
    assert said(ValueError("Timeout"), lost)


@contextlib.contextmanager
def one_worker(patience_s: float) -> Iterator[tuple[LocalCluster, DaskExecutor]]:
    """An executor whose only worker a test may take away."""
    where = {"protocol": "tcp", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **where) as cluster,
        DaskExecutor(scheduler=cluster.scheduler_address, patience_s=patience_s) as executor,
    ):
        yield cluster, executor


def lose(cluster: LocalCluster) -> None:
    for worker in cluster.workers.values():
        cluster.sync(worker.close)


def one(item: int) -> Added[str, int, int]:
    return Added({"sum": item}, item)


def keys(item: int) -> list[str]:
    return ["sum"]


def first_takes_all(value: int, number: int, count: int) -> int:
    return value if number == 0 else 0


SUM: Fold[int, str, int, int] = Fold(keys, one, operator.add, first_takes_all, sum)


WORK: dict[str, Callable[[DaskExecutor], object]] = {
    "map": lambda executor: list(executor.map(abs, range(-8, 0))),
    "accumulate": lambda executor: executor.accumulate(SUM, range(8))[1],
    "share": lambda executor: executor.fetch(executor.share(abs, -1)),
}


@pytest.mark.parametrize("verb", WORK)
def test_a_cluster_that_lost_its_workers_before_the_work_began_is_named(verb: str) -> None:
    with one_worker(patience_s=0.5) as (cluster, executor):
        lose(cluster)
        with pytest.raises(WorkerLostError, match=r"had no workers for 0 s; start some"):
            WORK[verb](executor)


@pytest.mark.parametrize(
    ("verb", "result"), [("map", list(range(8, 0, -1))), ("accumulate", list(range(8))), ("share", 1)]
)
def test_work_goes_on_with_workers_that_come_after_all_were_lost(verb: str, result: object) -> None:
    with one_worker(patience_s=30) as (cluster, executor):
        lose(cluster)
        cluster.scale(2)
        assert WORK[verb](executor) == result


def slowly(item: int) -> int:
    time.sleep(0.3)
    return item


def one_slowly(item: int) -> Added[str, int, int]:
    return Added({"sum": slowly(item)}, item)


SLOW_WORK: dict[str, Callable[[DaskExecutor], object]] = {
    "map": lambda executor: list(executor.map(slowly, range(8))),
    "accumulate": lambda executor: executor.accumulate(replace(SUM, add=one_slowly), range(8))[1],
}


@pytest.mark.parametrize("verb", SLOW_WORK)
def test_work_that_waits_for_workers_that_are_all_gone_is_done_by_others(verb: str) -> None:
    with one_worker(patience_s=30) as (cluster, executor), ThreadPoolExecutor(1) as pool:
        work = pool.submit(SLOW_WORK[verb], executor)
        time.sleep(1.0)
        lose(cluster)
        time.sleep(1.5)  # a look at workers falls into the time without any
        cluster.scale(2)
        assert work.result(timeout=30) == list(range(8))


def test_workers_that_are_lost_or_come_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with one_worker(patience_s=30) as (cluster, executor), caplog.at_level("INFO", logger="cloudem.execution"):
        (first,) = executor._pool.threads()
        lose(cluster)
        cluster.scale(2)
        executor.workers  # noqa: B018  a look
        said = [record.getMessage() for record in caplog.records if record.name == "cloudem.execution"]
        assert said[0].startswith(f"workers: lost {first}, new tcp://127.0.0.1:")
        assert said[0].endswith(("; now 1 with 1 threads", "; now 2 with 2 threads"))


def test_a_result_whose_worker_is_lost_before_it_is_fetched_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with one_worker(patience_s=0.5) as (cluster, executor):
        value = executor.share(abs, -1)
        executor._pool.wait(value.handle)
        lose(cluster)
        monkeypatch.setattr(executor._pool, "wait", lambda future: None)  # as if it were lost right after that
        with pytest.raises(WorkerLostError, match="had no workers"):
            executor.fetch(value)


def threads_of_transforms(_value: int) -> int:
    from scipy import fft

    return int(fft.get_workers())


def test_what_others_wait_for_uses_the_threads_that_are_free() -> None:
    with DaskExecutor(threads=3) as executor:
        assert executor.fetch(executor.share(threads_of_transforms, 0)) == 3
        assert executor.fetch(executor.spread(threads_of_transforms, 0, local=itself)) == 3
        assert list(executor.map(threads_of_transforms, range(2))) == [1, 1]


@pytest.mark.parametrize("how", [{}, {"workers": 1, "threads": 1}], ids=["threads", "processes"])
def test_nothing_is_kept_where_others_may_write(how, tmp_path, monkeypatch):
    """Dask's folder for all users of a machine is neither used nor made; somebody may have put links there."""
    shared, precious = tmp_path / "dask-scratch-space", tmp_path / "precious"
    shared.mkdir()
    precious.write_text("kept")
    for name in ("global.lock", "purge.lock"):
        (shared / name).symlink_to(precious)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with DaskExecutor(gpus=False, **how) as executor:
        (own,) = tmp_path.glob("cloudem-dask-*")
        assert own.stat().st_mode & 0o777 == 0o700
        folders = executor._pool.client.run(lambda dask_worker: dask_worker.local_directory)
        assert all(str(own) in folder for folder in folders.values())
    assert precious.read_text() == "kept"
    assert {path.name for path in shared.iterdir()} == {"global.lock", "purge.lock"}
    assert not list(tmp_path.glob("cloudem-dask-*"))
