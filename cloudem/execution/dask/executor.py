"""The executor that runs tasks on Dask: threads of this process, worker processes, GPUs, or a running scheduler.

Every value is the result of a pure task that Dask knows, so that what is lost with a worker is computed again from the
items, and nothing is lost or counted twice. Who works on what and in which order sums are merged is decided in
`cloudem.execution.reduction_tree` and carried out in `cloudem.execution.dask.folding`: each worker adds a run of
consecutive items and merges their sums by itself; what is left on top is cut into bricks, each of which travels to one
worker that merges it (`cloudem.execution.dask.peer_transfer`); and the bricks of one sum are joined on one worker. No
sum passes through the client or the scheduler.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from cloudem import traffic
from cloudem.errors import ParameterError
from cloudem.execution.dask import worker_tasks
from cloudem.execution.dask.broadcast import Spread
from cloudem.execution.dask.configuration import CONFIGURATION, WITHOUT_PAGES, private_scratch
from cloudem.execution.dask.connection import connect
from cloudem.execution.dask.embedded import start_cluster
from cloudem.execution.dask.folding import Folding
from cloudem.execution.dask.looking import ask_workers
from cloudem.execution.dask.security import security_for
from cloudem.execution.dask.worker_pool import IN_FLIGHT_PER_THREAD, LOOK_AROUND_S, MERGE_FIRST, WorkerPool
from cloudem.execution.doing import JobDoing
from cloudem.execution.executor import Executor, Fold, Pieces, Shared
from cloudem.execution.task_names import current_label
from cloudem.execution.threads import one_thread_per_task
from cloudem.execution.workers import WorkerSeen
from cloudem.traffic import Traffic

LOG = logging.getLogger("cloudem.execution")

T = TypeVar("T")
I = TypeVar("I")
K = TypeVar("K")
V = TypeVar("V")
N = TypeVar("N")
R = TypeVar("R")


class DaskExecutor(Executor):
    """Runs tasks on Dask.

    Without arguments the cluster is embedded: one worker in this process with as many threads as there are cores,
    nothing to be reached from other machines. On two cores importing Dask costs 0.6 s of CPU time, starting and
    stopping the cluster 0.1 s, an item of ``map`` 3 to 6 ms and one of ``accumulate`` 5 to 9 ms: cut the work into
    items of a second. Where there are GPUs and CuPy there is a worker process for each GPU instead.

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
    gpus
        Have a process for each GPU, with one task at a time, where nothing is said of processes and threads.
    dashboard
        Serve Dask's pages on a port of 127.0.0.1.
    patience_s
        How long to wait for workers where there are none, seconds.
    fixed_order
        Merge along the same tree whatever the number of workers: sums are the same to the bit. Otherwise each worker
        merges all it has before it sends anything, which sends less where runs do not end at the tree's nodes.

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
        gpus: bool = True,
        dashboard: bool = False,
        patience_s: float = 300.0,
        fixed_order: bool = True,
    ) -> None:
        import dask
        import distributed  # noqa: F401  half a second, so only now; before dask.config.set, which would undo its defaults

        self._fixed_order = fixed_order
        self._heard = traffic.Tally()
        self._here = "" if scheduler is not None else platform.node()
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # if the start fails, or is interrupted, nothing stays behind
            undo.enter_context(one_thread_per_task())
            undo.enter_context(dask.config.set(CONFIGURATION if dashboard else CONFIGURATION | WITHOUT_PAGES))
            undo.enter_context(private_scratch())
            if scheduler is not None:
                if "://" not in scheduler:
                    raise ParameterError(f"--scheduler: got {scheduler!r}, needs an address such as tls://host:8786")
                security = security_for(scheduler, certificates, insecure=insecure)
                if dashboard:
                    LOG.warning("--dashboard has no effect here: give it to `cloudem cluster scheduler`")
                client = connect(undo, scheduler, patience_s, security)
                description = f"Dask at {scheduler}"
            else:
                cluster, description = start_cluster(processes, workers, threads, gpus, dashboard)
                undo.enter_context(cluster)
                if dashboard:
                    LOG.info("Dask dashboard: %s", cluster.dashboard_link)
                client = connect(undo, cluster, patience_s)
            self._pool = WorkerPool(client, description, patience_s)
            threads_of = self._pool.threads()
            if scheduler is not None:
                self._pool.description += f", workers: {len(threads_of)}, threads: {sum(threads_of.values())}"
            self._count()
            self._resources = undo.pop_all()

    @property
    def workers(self) -> int:
        """Number of threads of all workers, now."""
        return sum(self._pool.threads().values())

    @property
    def description(self) -> str:
        """What runs the tasks."""
        return self._pool.description

    def share(self, build: Callable[..., T], *args: Any, purpose: str = "other") -> Shared[T]:
        """Build the value on one worker; others copy it from there when they first need it."""
        place = next((arg.place for arg in args if isinstance(arg, Shared) and arg.place), None)
        made = self._pool.submit(build, *args, worker=place, purpose=purpose, priority=MERGE_FIRST, wide=True)
        return Shared(made, place)

    def spread(
        self,
        build: Callable[..., V],
        *args: Any,
        local: Callable[[V], T],
        pieces: Pieces[V] | None = None,
        purpose: str = "other",
    ) -> Shared[T]:
        """Build the value on the first worker that needs it; the others get it from each other."""
        label = current_label()  # later workers ask for it later, when the job is elsewhere
        submit = partial(self._pool.submit_all, purpose=purpose, priority=MERGE_FIRST, wide=True, label=label)
        return Shared(Spread(submit, build, args, local, pieces))

    def fetch(self, shared: Shared[T]) -> T:
        """Wait for a value and copy it here."""
        handle = shared.handle
        value: T = self._pool.result(handle.at(self._pool.any_worker()) if isinstance(handle, Spread) else handle)
        return value

    def map(
        self,
        function: Callable[..., R],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Apply ``function`` to the items on the workers, in turn."""
        threads, looked, label = self._pool.threads(), time.monotonic(), current_label()
        waiting: deque[Any] = deque()
        submitted = 0
        try:
            for index in range(len(items)):
                if time.monotonic() >= looked + LOOK_AROUND_S:
                    threads, looked = self._pool.threads(), time.monotonic()
                while submitted < len(items) and len(waiting) < IN_FLIGHT_PER_THREAD * sum(threads.values()):
                    item, place = items[submitted], list(threads)[submitted % len(threads)]
                    arguments = item, *shared(item)
                    waiting.append(self._pool.submit(function, *arguments, worker=place, purpose="poses", label=label))
                    submitted += 1
                result = self._pool.result(waiting[0])
                waiting.popleft()
                if on_done is not None:
                    on_done(index)
                yield result
        finally:
            self._pool.drop(waiting)

    def accumulate(
        self,
        fold: Fold[I, K, V, N],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[dict[K, Shared[V]], list[N]]:
        """Add and merge on all workers, merge bricks where they belong, join each sum on one worker."""
        if not items:
            return {}, []
        return Folding(self._pool, fold, items, shared, self._fixed_order).run(on_done)

    def traffic(self) -> dict[str, Traffic]:
        """Return the bytes of all processes since the start; of a worker that was killed, the last seconds are lost."""
        if not self._pool.in_this_process:
            with contextlib.suppress(OSError, ValueError):  # nobody answers: no reason to stop a job
                for process, found in self._pool.client.run(worker_tasks.counted, on_error="ignore").values():
                    self._heard.hear(process, found)
        self._heard.hear(traffic.PROCESS, traffic.totals())
        return self._heard.total()

    def seen_workers(self, doing: JobDoing | None = None) -> tuple[WorkerSeen, ...]:
        """Return what the scheduler knows of its workers, those that are leaving included."""
        return ask_workers(self._pool.client, self._here, self._pool.job, doing)

    def _count(self) -> None:
        """Have workers count what they exchange and tell it, and begin at zero."""
        from cloudem.execution.dask.gpu_names import NameGpu
        from cloudem.execution.dask.peer_transfer import Exchange
        from cloudem.execution.dask.transfer_counts import TOPIC, CountTransfers

        client = self._pool.client
        client.register_plugin(Exchange())
        if not self._pool.in_this_process:
            client.register_plugin(CountTransfers())
            client.register_plugin(NameGpu())
            client.subscribe_topic(TOPIC, lambda event: self._heard.hear(*event[1]))
        self.traffic()
        self._heard.begin()

    def close(self) -> None:
        """Stop the cluster, if it is ours, and leave the scheduler, if it is not."""
        self._resources.close()
