"""How the Dask executor starts, and how it says that it cannot."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from typing import Any

import psutil
import pytest
from distributed import LocalCluster

from cloudem.errors import ParameterError, WorkerLostError
from cloudem.execution.dask import DaskExecutor


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


def test_a_scheduler_without_workers_is_said_when_patience_ends() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, protocol="inproc", dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(WorkerLostError, match=r"had no workers for 0 s; start some"),
    ):
        DaskExecutor(scheduler=cluster.scheduler_address, patience_s=0.2)


@pytest.mark.parametrize("argument", ["workers", "threads"])
def test_no_workers_or_threads_is_refused(argument: str) -> None:
    with pytest.raises(ParameterError, match=f"--{argument}: got 0, needs at least 1"):
        DaskExecutor(**{argument: 0})


def offer_dask_cuda(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    module = types.ModuleType("dask_cuda")
    module.LocalCUDACluster = start  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("dask_cuda", None)
    monkeypatch.setitem(sys.modules, "dask_cuda", module)


def test_gpus_are_taken_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def cluster_of_two(**arguments: Any) -> LocalCluster:
        arguments.pop("device_memory_limit")
        return LocalCluster(**arguments, n_workers=2, processes=False, protocol="inproc")

    offer_dask_cuda(monkeypatch, cluster_of_two)
    with DaskExecutor() as executor:
        assert executor.description == "Dask, 2 GPUs of this machine"
        assert executor.workers == 2


def test_without_gpus_it_falls_back_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(**arguments: Any) -> LocalCluster:
        raise RuntimeError("NVML library not found")

    offer_dask_cuda(monkeypatch, no_driver)
    with DaskExecutor(threads=1) as executor:
        assert executor.description == "Dask, 1 threads of this process"


def test_real_gpus_run_tasks() -> None:
    pytest.importorskip("dask_cuda", reason="dask-cuda is not installed: LocalCUDACluster is not tried here")
    with DaskExecutor() as executor:
        if "GPU" not in executor.description:
            pytest.skip("no GPU is found on this machine: LocalCUDACluster is not tried here")
        assert list(executor.map(abs, [-1, 2])) == [1, 2]


def test_the_serial_executor_does_not_import_dask() -> None:
    code = (
        "from cloudem.execution.executor import *; import sys; SerialExecutor(); sys.exit('distributed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_cluster_after_another_in_a_fresh_process() -> None:
    code = (
        "from cloudem.execution.dask import DaskExecutor\n"
        "for turn in range(2):\n"
        "    with DaskExecutor(threads=1) as executor: assert list(executor.map(abs, [-1])) == [1]\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
