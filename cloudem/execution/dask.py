"""The executor that runs tasks on Dask: threads of this process, worker processes, GPUs, or a running scheduler.

Merging happens where the partial sums are: each part is merged, in the order of the items, by a task that depends on
the sum so far and on that part, so that no partial sum passes through the client, and a sum that is lost with its
worker is computed again from the items.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from cloudem.errors import ParameterError, WorkerLostError
from cloudem.execution.configuration import CONFIGURATION, IN_THIS_PROCESS, WITHOUT_PAGES
from cloudem.execution.executor import Executor, Fold, Shared
from cloudem.execution.security import refusal_of, security_for, temporary_security
from cloudem.execution.threads import CHILD_ENVIRONMENT, one_thread_per_task

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")

LOG = logging.getLogger("cloudem.execution")

IN_FLIGHT_PER_THREAD = 2
"""One task that runs and one that waits for each thread: enough to keep it busy, few enough to bound memory."""

MERGE_FIRST = 10
"""Priority of merging over adding: a part that is merged is memory that is free."""


class DaskExecutor(Executor):
    """Runs tasks on Dask.

    Without arguments the cluster is embedded: one worker in this process with as many threads as there are cores,
    nothing to be reached from other machines. On two cores importing Dask costs 0.6 s of CPU time, starting and
    stopping the cluster 0.1 s, an item of ``map`` 3 to 6 ms and one of ``accumulate`` 5 to 9 ms: cut the work into
    items of a second. Where dask-cuda is installed and finds GPUs, there is one worker process for each GPU instead.

    Parameters
    ----------
    scheduler
        Address of a running scheduler, such as ``tls://10.0.0.1:8786``; nothing is started then.
    certificates
        Folder of the scheduler's certificates; by default the one that the environment names.
    insecure
        Accept a scheduler on another machine without encryption.
    processes
        Start worker processes under a supervisor that starts them again when they die, instead of threads. They
        listen on the loopback with certificates of their own, so that nobody else on the machine can use them.
    workers, threads
        Number of worker processes, and of threads in each; by default all cores are used.
    dashboard
        Serve Dask's pages on a port of 127.0.0.1.
    patience_s
        How long to wait for workers where there are none, seconds.

    Raises
    ------
    WorkerLostError
        If the scheduler does not answer, or has no workers.
    MissingInputError, ParameterError
        If it needs certificates and there are none that are good, or it does not encrypt and should.
    """

    def __init__(
        self,
        *,
        scheduler: str | None = None,
        certificates: str | None = None,
        insecure: bool = False,
        processes: bool = False,
        workers: int | None = None,
        threads: int | None = None,
        dashboard: bool = False,
        patience_s: float = 300.0,
    ) -> None:
        import dask
        import distributed  # noqa: F401  half a second, so only now; before dask.config.set, which would undo its defaults

        self._patience_s = patience_s
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # if the start fails, or is interrupted, nothing stays behind
            undo.enter_context(one_thread_per_task())
            undo.enter_context(dask.config.set(CONFIGURATION if dashboard else CONFIGURATION | WITHOUT_PAGES))
            if scheduler is not None:
                if "://" not in scheduler:
                    raise ParameterError(f"--scheduler: got {scheduler!r}, needs an address such as tls://host:8786")
                security = security_for(scheduler, certificates, insecure=insecure)
                self._client = _connect(undo, scheduler, patience_s, security)
                self._description = f"Dask at {scheduler}"
            else:
                cluster, self._description = _start(processes, workers, threads, dashboard)
                undo.enter_context(cluster)
                self._client = _connect(undo, cluster, patience_s)
            self._wait_for_workers()
            self._resources = undo.pop_all()

    @property
    def workers(self) -> int:
        """Number of threads of all workers, now."""
        return max(sum(int(threads) for threads in self._client.nthreads().values()), 1)

    @property
    def description(self) -> str:
        """What runs the tasks."""
        return self._description

    def share(self, build: Callable[..., T], *args: Any) -> Shared[T]:
        """Build the value on one worker; others copy it from there when they first need it."""
        return Shared(self._submit(build, *args, priority=MERGE_FIRST))

    def map(
        self,
        function: Callable[..., R],
        items: Sequence[Any],
        *shared: Shared[Any],
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Apply ``function`` to the items on the workers."""
        limit = IN_FLIGHT_PER_THREAD * self.workers
        waiting: deque[Any] = deque()
        submitted = 0
        try:
            for index in range(len(items)):
                while submitted < len(items) and len(waiting) < limit:
                    waiting.append(self._submit(function, items[submitted], *shared))
                    submitted += 1
                result = self._result(waiting[0])
                waiting.popleft()
                if on_done is not None:
                    on_done(index)
                yield result
        finally:
            self._drop(waiting)

    def accumulate(
        self,
        fold: Fold[K, V, R],
        items: Sequence[Any],
        *shared: Shared[Any],
        on_done: Callable[[int], None] | None = None,
    ) -> dict[K, R]:
        """Add on all workers, merge where the sums are, finalise keys side by side."""
        limit = IN_FLIGHT_PER_THREAD * self.workers
        sums: Any = {}
        merging: deque[Any] = deque()
        submitted = 0
        finalised: dict[K, Any] = {}
        try:
            for index in range(len(items)):
                while submitted < len(items) and len(merging) < limit:
                    part = self._submit(fold.add, items[submitted], *shared)
                    sums = self._submit(_merge, fold, sums, part, priority=MERGE_FIRST)
                    del part  # the scheduler frees it once it is merged
                    merging.append(sums)
                    submitted += 1
                self._wait(merging[0])
                merging.popleft()
                if on_done is not None:
                    on_done(index)
            for key in self._result(self._submit(list, sums)):
                value = self._submit(operator.getitem, sums, key)
                finalised[key] = self._submit(fold.finalise, key, value)
                del value
            sums = None
            return {key: self._result(finalised.pop(key)) for key in list(finalised)}
        finally:
            self._drop([*merging, *finalised.values()])

    def close(self) -> None:
        """Stop the cluster, if it is ours, and leave the scheduler, if it is not."""
        self._resources.close()

    def _submit(self, function: Callable[..., Any], *args: Any, priority: int = 0) -> Any:
        arguments = [argument.handle if isinstance(argument, Shared) else argument for argument in args]
        return self._client.submit(function, *arguments, pure=False, priority=priority)

    def _result(self, future: Any) -> Any:
        self._wait(future)
        return future.result()

    def _wait(self, future: Any) -> None:
        """Wait for a task; raise its exception as it is, and say so if the cluster has no workers left."""
        from distributed import CancelledError, KilledWorker

        while not future.done():
            try:
                future.exception(timeout=5.0)  # unlike result(), this leaves the result where it is
            except TimeoutError:
                self._wait_for_workers()
            except CancelledError:
                break
        try:
            if future.status != "finished":
                future.result()
        except KilledWorker as error:
            raise WorkerLostError(
                f"workers died {CONFIGURATION['distributed.scheduler.allowed-failures']} times while they ran"
                f" {error.task}; it may need more memory than they have, try fewer threads for each worker"
            ) from error
        except CancelledError as error:
            raise WorkerLostError(f"the scheduler was lost ({error}); start it and run again to resume") from error

    def _wait_for_workers(self) -> None:
        """Return as soon as there are workers, else raise WorkerLostError when patience ends."""
        deadline = time.monotonic() + self._patience_s
        while not self._client.nthreads():
            if time.monotonic() > deadline:
                raise WorkerLostError(
                    f"{self._description} had no workers for {self._patience_s:.0f} s; start some and run again"
                )
            time.sleep(0.1)

    def _drop(self, futures: Sequence[Any]) -> None:
        """Cancel what nobody waits for any more."""
        if futures and self._client.status == "running":
            self._client.cancel(list(futures), force=True)


def _merge(fold: Fold[K, V, R], earlier: dict[K, V], later: Mapping[K, V]) -> dict[K, V]:
    return fold.merge_sums(earlier, later)


def _connect(undo: contextlib.ExitStack, where: Any, patience_s: float, security: Any = None) -> Any:
    from distributed import Client

    try:
        return undo.enter_context(Client(where, timeout=min(patience_s, 10.0), set_as_default=False, security=security))
    except (OSError, TimeoutError, ValueError) as error:
        refusal = refusal_of(error)
        if refusal:
            raise WorkerLostError(f"the scheduler at {where} is not to be used: {refusal}") from error
        raise WorkerLostError(
            f"no Dask scheduler answers at {where}; give --scheduler as tls://host:8786, start one with `cloudem"
            f" cluster scheduler`, or leave --scheduler out ({error})"
        ) from error


def _start(processes: bool, workers: int | None, threads: int | None, dashboard: bool) -> tuple[Any, str]:
    """Start an embedded cluster and say what it is."""
    import dask
    from distributed import LocalCluster

    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ParameterError(f"--{name}: got {value}, needs at least 1")
    common: dict[str, Any] = {
        # Without an address Dask listens on every interface, dashboard or not.
        "dashboard_address": "127.0.0.1:8787" if dashboard else "127.0.0.1:0",
        "worker_dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard": dashboard},
        "silence_logs": logging.ERROR,
        "memory_limit": 0,
    }
    if not processes and workers is None:
        cluster = _start_on_gpus(common)
        if cluster is not None:
            return cluster, f"Dask, {len(cluster.workers)} GPUs of this machine"
        _, threads = layout(processes=False, threads=threads)
        common |= {"processes": False, "protocol": "inproc", "n_workers": 1, "threads_per_worker": threads}
        with dask.config.set(IN_THIS_PROCESS):
            return LocalCluster(**common), f"Dask, {threads} threads of this process"
    workers, threads = layout(processes=True, workers=workers, threads=threads)
    common |= {"processes": True, "host": "127.0.0.1", "n_workers": workers, "threads_per_worker": threads}
    common |= {"protocol": "tls", "security": temporary_security()}
    return LocalCluster(**common, env=CHILD_ENVIRONMENT), f"Dask, {workers} processes of {threads} threads"


def layout(*, processes: bool, workers: int | None = None, threads: int | None = None) -> tuple[int, int]:
    """Return how many workers an embedded cluster has, and threads in each; by default they use all cores.

    Cores are those that this process may use: its affinity and the limits of its control group count.
    """
    from dask.system import CPU_COUNT

    if not processes:
        return 1, threads or CPU_COUNT
    workers = workers or max(CPU_COUNT // (threads or 1), 1)
    return workers, threads or max(CPU_COUNT // workers, 1)


def _start_on_gpus(common: dict[str, Any]) -> Any | None:
    """Start one worker for each GPU; None where dask-cuda or GPUs are missing."""
    if importlib.util.find_spec("dask_cuda") is None:
        return None
    try:
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster(**common | {"device_memory_limit": 0, "threads_per_worker": 1})
    except Exception as error:  # NVML raises classes of its own, and only where its library is installed
        LOG.debug("no GPUs: %s: %s", type(error).__name__, error)
        return None
