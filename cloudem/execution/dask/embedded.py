"""Embedded clusters: threads of this process, worker processes on this machine, a process for each of its GPUs."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from cloudem.errors import ParameterError, WorkerLostError
from cloudem.execution.dask.configuration import IN_THIS_PROCESS
from cloudem.execution.dask.security import temporary_security
from cloudem.execution.gpus import VISIBLE, choose_gpus
from cloudem.execution.threads import CHILD_ENVIRONMENT, CORES
from cloudem.interrupts import keep_from_children

LOG = logging.getLogger("cloudem.execution")


def is_no_abandoned_wait(record: logging.LogRecord) -> bool:
    """Tell whether a message of asyncio is for people: not that one about a wait of Dask's that nobody needs any more.

    Between two messages, Dask's queues wait with a timeout. If a cluster stops on a busy machine just as that is over,
    the wait is abandoned, and asyncio says that its exception was never retrieved.
    """
    error = record.exc_info[1] if record.exc_info else None
    waited = isinstance(error, TimeoutError) and error.args == ("Timeout",)
    return not (waited and "never retrieved" in record.getMessage())


def start_cluster(
    processes: bool, workers: int | None, threads: int | None, gpus: bool, dashboard: bool
) -> tuple[Any, str]:
    """Start an embedded cluster; return it, to be entered, and one line for people that says what it is.

    Parameters
    ----------
    processes, workers, threads, gpus, dashboard
        As for `cloudem.execution.dask.executor.DaskExecutor`.
    """
    import dask
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ParameterError(f"--{name}: got {value}, needs at least 1")
    logging.getLogger("asyncio").addFilter(is_no_abandoned_wait)
    plugins = [_quiet_children()]
    common: dict[str, Any] = {
        # Without an address Dask listens on every interface, dashboard or not.
        "dashboard_address": "127.0.0.1:8787" if dashboard else "127.0.0.1:0",
        "worker_dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard": False, "plugins": plugins},
        "silence_logs": logging.CRITICAL,  # a heartbeat that meets a closing scheduler is none of the user's business
    }
    if dashboard:
        from cloudem.execution.dask.pages import DaskPages, check_bokeh
        from cloudem.execution.metrics import export_traffic

        check_bokeh()
        plugins.append(DaskPages())
        export_traffic()
    if not processes and workers is None:
        if gpus and threads is None and (found := choose_gpus("auto", LOG.info)):
            return _start_on_gpus(found, common), f"Dask, {len(found)} GPUs of this machine"
        _, threads = layout(processes=False, threads=threads)
        common |= {"processes": False, "protocol": "inproc", "n_workers": 1, "threads_per_worker": threads}
        common["memory_limit"] = MEMORY_LIMIT
        if not dashboard:
            common["worker_class"] = _without_pages(False)
        with dask.config.set(IN_THIS_PROCESS):
            return LocalCluster(**common), f"Dask, {threads} threads of this process"
    workers, threads = layout(processes=True, workers=workers, threads=threads)
    common |= _among_themselves() | {"n_workers": workers, "threads_per_worker": threads}
    common["memory_limit"] = MEMORY_LIMIT // workers
    if not dashboard:
        common["worker_class"] = _without_pages(True)
    try:
        return LocalCluster(**common), f"Dask, {workers} processes of {threads} threads"
    except RuntimeError as error:  # one was killed before it had begun
        raise WorkerLostError(
            f"the worker processes could not be started ({error}); run the same command again"
        ) from error


def _among_themselves() -> dict[str, Any]:
    """Return what makes worker processes that nobody else on this machine can use."""
    addresses = {"host": "127.0.0.1", "protocol": "tls", "security": temporary_security()}
    return {**addresses, "processes": True, "env": CHILD_ENVIRONMENT}


def _without_pages(processes: bool) -> Any:
    """Return the class of workers that have no pages.

    An address, which keeps a worker from listening on every interface, makes Dask give it pages of its own too, and to
    import Bokeh for them takes a second of each command.
    """
    from distributed import Nanny, Worker

    kind: Any = Nanny if processes else Worker

    class WithoutPages(kind):  # type: ignore[misc]  # here, since importing distributed takes long
        def __init__(self, *args: Any, dashboard: bool = False, **options: Any) -> None:
            super().__init__(*args, dashboard=False, **options)

    return WithoutPages


def _quiet_children() -> Any:
    """Return a plugin of the scheduler, by which the thread that is going to start worker processes keeps Ctrl-C."""
    from distributed.diagnostics.plugin import SchedulerPlugin

    class QuietChildren(SchedulerPlugin):  # type: ignore[misc]  # here, since importing distributed takes long
        async def start(self, scheduler: Any) -> None:
            keep_from_children()

    return QuietChildren()


def layout(*, processes: bool, workers: int | None = None, threads: int | None = None) -> tuple[int, int]:
    """Return how many workers an embedded cluster has, and threads in each; by default they use all cores.

    Cores are those that this process may use: its affinity and the limits of its control group count.
    """
    from dask.system import CPU_COUNT

    if not processes:
        return 1, threads or CPU_COUNT
    workers = workers or max(CPU_COUNT // (threads or 1), 1)
    return workers, threads or max(CPU_COUNT // workers, 1)


def _start_on_gpus(gpus: Sequence[str], common: dict[str, Any]) -> Any:
    """Start a worker process for each GPU, which sees no other and runs one task at a time."""
    from distributed import LocalCluster, Nanny
    from distributed.system import MEMORY_LIMIT

    _, cores = layout(processes=True, workers=len(gpus))
    common |= _among_themselves() | {"threads_per_worker": 1, "resources": {CORES: cores}}
    common["memory_limit"] = MEMORY_LIMIT // len(gpus)
    if importlib.util.find_spec("dask_cuda") is not None:
        from dask_cuda import LocalCUDACluster

        try:  # it binds each process to the cores beside its GPU
            return LocalCUDACluster(CUDA_VISIBLE_DEVICES=list(gpus), device_memory_limit=0, **common)
        except Exception as error:  # NVML raises classes of its own, and only where its library is installed
            LOG.debug("not with dask-cuda: %s: %s", type(error).__name__, error)

    class OnGpu(Nanny):  # type: ignore[misc]  # here, since importing distributed takes long
        def __init__(self, *args: Any, name: int, env: Mapping[str, str], **options: Any) -> None:
            super().__init__(*args, name=name, env={**env, VISIBLE: gpus[name]}, **options)

    return LocalCluster(**common, n_workers=len(gpus), worker_class=OnGpu)
