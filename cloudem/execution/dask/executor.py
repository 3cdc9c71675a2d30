"""The executor that runs tasks on Dask: threads of this process, worker processes, GPUs, or a running scheduler.

Every value is the result of a pure task that Dask knows, so that what is lost with a worker is computed again from the
items, and nothing is lost or counted twice. Who works on what and in which order sums are merged is decided in
`cloudem.execution.reduction_tree`: each worker adds a run of consecutive items and merges their sums by itself; what is
left on top is cut into bricks, each of which travels to one worker that merges it
(`cloudem.execution.dask.peer_transfer`); and the bricks of one sum are joined on one worker. No sum passes through the
client or the scheduler.
"""

from __future__ import annotations

import asyncio
import bisect
import concurrent.futures
import contextlib
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from cloudem import traffic
from cloudem.errors import ParameterError, WorkerLostError
from cloudem.execution.dask import worker_tasks
from cloudem.execution.dask.broadcast import Spread
from cloudem.execution.dask.configuration import CONFIGURATION, WITHOUT_PAGES, private_scratch
from cloudem.execution.dask.connection import connect, scheduler_lost, wake
from cloudem.execution.dask.embedded import start_cluster
from cloudem.execution.dask.security import security_for
from cloudem.execution.executor import Executor, Fold, Pieces, Shared, itself
from cloudem.execution.reduction_tree import Forest, Roster, Subtree, together_for
from cloudem.execution.threads import one_thread_per_task
from cloudem.traffic import Traffic

T = TypeVar("T")
I = TypeVar("I")
K = TypeVar("K")
V = TypeVar("V")
N = TypeVar("N")
R = TypeVar("R")

LOG = logging.getLogger("cloudem.execution")

IN_FLIGHT_PER_THREAD = 2
"""One task that runs and one that waits for each thread: enough to keep it busy, few enough to bound memory."""

LOOK_AROUND_S = 1.0
"""How often to look for workers that have come or gone, seconds."""

SILENCE_S = 3.0
"""How long to wait for workers before saying so, seconds."""

MERGE_FIRST = 10
"""Priority of merging over adding: a part that is merged is memory that is free."""


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

        self._patience_s = patience_s
        self._fixed_order = fixed_order
        self._heard = traffic.Tally()
        self._seen: set[str] = set()
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # if the start fails, or is interrupted, nothing stays behind
            undo.enter_context(one_thread_per_task())
            undo.enter_context(dask.config.set(CONFIGURATION if dashboard else CONFIGURATION | WITHOUT_PAGES))
            undo.enter_context(private_scratch())
            if scheduler is not None:
                if "://" not in scheduler:
                    raise ParameterError(f"--scheduler: got {scheduler!r}, needs an address such as tls://host:8786")
                security = security_for(scheduler, certificates, insecure=insecure)
                self._client = connect(undo, scheduler, patience_s, security)
                self._description = f"Dask at {scheduler}"
            else:
                cluster, self._description = start_cluster(processes, workers, threads, gpus, dashboard)
                undo.enter_context(cluster)
                self._client = connect(undo, cluster, patience_s)
            threads_of = self._threads()
            if scheduler is not None:
                self._description += f", {len(threads_of)} workers, {sum(threads_of.values())} threads"
            self._count()
            self._resources = undo.pop_all()

    @property
    def workers(self) -> int:
        """Number of threads of all workers, now."""
        return sum(self._threads().values())

    @property
    def description(self) -> str:
        """What runs the tasks."""
        return self._description

    def share(self, build: Callable[..., T], *args: Any, purpose: str = "other") -> Shared[T]:
        """Build the value on one worker; others copy it from there when they first need it."""
        place = next((arg.place for arg in args if isinstance(arg, Shared) and arg.place), None)
        made = self._submit(build, *args, worker=place, purpose=purpose, priority=MERGE_FIRST, wide=True)
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
        submit = partial(self._submit_all, purpose=purpose, priority=MERGE_FIRST, wide=True)
        return Shared(Spread(submit, build, args, local, pieces))

    def fetch(self, shared: Shared[T]) -> T:
        """Wait for a value and copy it here."""
        handle = shared.handle
        value: T = self._result(handle.at(self._any_worker()) if isinstance(handle, Spread) else handle)
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
        threads, looked = self._threads(), time.monotonic()
        waiting: deque[Any] = deque()
        submitted = 0
        try:
            for index in range(len(items)):
                if time.monotonic() >= looked + LOOK_AROUND_S:
                    threads, looked = self._threads(), time.monotonic()
                while submitted < len(items) and len(waiting) < IN_FLIGHT_PER_THREAD * sum(threads.values()):
                    item, place = items[submitted], list(threads)[submitted % len(threads)]
                    waiting.append(self._submit(function, item, *shared(item), worker=place, purpose="poses"))
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
        fold: Fold[I, K, V, N],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[dict[K, Shared[V]], list[N]]:
        """Add and merge on all workers, merge bricks where they belong, join each sum on one worker."""
        if not items:
            return {}, []
        held, notes = self._add(fold, items, shared, on_done)
        if not self._fixed_order:
            held = self._merge_by_worker(fold, held)
        starts = [part.start for part in held]
        holders: dict[K, dict[int, _Held]] = {}  # in the order in which keys first come
        for index, item in enumerate(items):
            number = bisect.bisect_right(starts, index) - 1
            for key in fold.keys(item):
                holders.setdefault(key, {})[number] = held[number]
        sums = {key: self._reduce(fold, key, list(parts.values())) for key, parts in holders.items()}
        for whole in sums.values():  # partial sums are needed until then: if some are lost, they are made again
            self._wait(whole.handle)
        return sums, notes

    def _add(
        self,
        fold: Fold[I, K, V, N],
        items: Sequence[I],
        shared: Callable[[I], Sequence[Shared[Any]]],
        on_done: Callable[[int], None] | None,
    ) -> tuple[list[_Held], list[N]]:
        """Add all items; return what each worker could merge by itself, in the order of the items."""
        from distributed import as_completed

        threads = self._threads()
        roster = Roster(len(items), threads)
        forest: Forest[_Held] = Forest(
            len(items), partial(self._merge_held, fold), lambda earlier, later: earlier.worker == later.worker
        )
        running: dict[Any, tuple[Subtree, str]] = {}
        load: Counter[str] = Counter()
        notes: dict[int, N] = {}
        completed = as_completed(loop=self._client.loop)
        looked = time.monotonic()
        together = 1
        try:
            while roster or running:
                taken: list[tuple[Subtree, str]] = []
                # each gets one to run before any gets one to wait: with few items, nobody takes those of others
                for worker, most in ((w, n * threads[w]) for n in range(1, IN_FLIGHT_PER_THREAD + 1) for w in threads):
                    while load[worker] < most and (node := roster.take(worker, together)) is not None:
                        taken.append((node, worker))
                        load[worker] += 1
                for (node, worker), added, note in self._submit_adding(fold, items, shared, taken):
                    forest.add(node, _Held(node.start, node, added, worker))
                    running[note] = node, worker
                    completed.add(note)
                    del added  # it is freed once it is merged
                while not completed.has_ready() and time.monotonic() < looked + LOOK_AROUND_S:
                    time.sleep(0.01)
                if time.monotonic() >= looked + LOOK_AROUND_S:  # workers come and go
                    threads, looked = self._threads(), time.monotonic()
                for note in completed.next_batch(block=False):
                    node, worker = running[note]
                    found, seconds = self._result(note)
                    del running[note]
                    load[worker] -= 1
                    together = 1 if self._in_this_process else together_for(seconds / len(found))
                    for index, one in enumerate(found, start=node.start):
                        notes[index] = one
                        if on_done is not None:
                            on_done(index)
            return list(forest.nodes().values()), [notes[index] for index in range(len(items))]
        finally:
            self._drop(list(running))

    def _submit_adding(
        self,
        fold: Fold[I, K, V, N],
        items: Sequence[I],
        shared: Callable[[I], Sequence[Shared[Any]]],
        taken: Sequence[tuple[Subtree, str]],
    ) -> Iterator[tuple[tuple[Subtree, str], Any, Any]]:
        """Have workers add the items of nodes; return with each the future of the sums and that of the notes."""
        batches = [items[node.start : node.stop] for node, _ in taken]
        values = [[shared(item) for item in batch] for batch in batches]
        places = [worker for _, worker in taken]
        needed: dict[Spread, list[str]] = {}
        for worker, mine in zip(places, values, strict=True):
            for handle in {value.handle for some in mine for value in some}:
                if isinstance(handle, Spread):
                    needed.setdefault(handle, []).append(worker)
        for spread, workers in needed.items():  # on all workers at once
            spread.prepare(workers)
        rows = [
            (fold, batch, [[self._handle(value, worker) for value in some] for some in mine])
            for batch, worker, mine in zip(batches, places, values, strict=True)
        ]
        added = self._submit_all(worker_tasks.add, rows, places, purpose="bricks")
        of = [(one,) for one in added]
        noted = self._submit_all(worker_tasks.note, of, places, purpose="poses", priority=MERGE_FIRST)
        return zip(taken, added, noted, strict=True)

    def _merge_held(self, fold: Fold[I, K, V, N], earlier: _Held, later: _Held) -> _Held:
        """Merge two partial sums where the earlier one is."""
        arguments, worker = (fold, earlier.future, later.future), earlier.worker
        merged = self._submit(worker_tasks.merge, *arguments, worker=worker, purpose="bricks", priority=MERGE_FIRST)
        return _Held(earlier.start, earlier.node.parent, merged, worker)

    def _merge_by_worker(self, fold: Fold[I, K, V, N], held: Sequence[_Held]) -> list[_Held]:
        """Merge what one worker holds of a run, in any order of addition: fewer bytes, other last bits."""
        merged: list[_Held] = []
        for part in held:
            if merged and merged[-1].worker == part.worker:
                merged[-1] = self._merge_held(fold, merged[-1], part)
            else:
                merged.append(part)
        return merged

    def _reduce(self, fold: Fold[I, K, V, N], key: K, parts: Sequence[_Held]) -> Shared[V]:
        """Have each worker that holds a part merge one brick of all, and join the bricks on the first of them."""
        from cloudem.execution.dask.peer_transfer import HeldPart, Holdings, collect

        submit = partial(self._submit, purpose="bricks")
        if len(parts) == 1:
            place = parts[0].worker
            return Shared(submit(worker_tasks.sum_of, key, parts[0].future, worker=place), place)
        for part in parts:
            self._wait(part.future)
        with scheduler_lost():
            holders = self._client.who_has([part.future for part in parts])
        held = []
        for number, part in enumerate(parts):
            node = part.node if self._fixed_order else Subtree(0, number)  # without a fixed order any tree will do
            held.append(HeldPart(node, part.future.key, next(iter(holders.get(part.future.key, ())), part.worker)))
        places = list(dict.fromkeys(part.worker for part in held))
        holdings = submit(itself, Holdings(held), worker=places[0])
        count = len(places)
        rows = [(fold, key, number, count, holdings) for number in range(count)]
        bricks = self._submit_all(collect, rows, places, purpose="bricks")
        # whoever loses the sum, or a brick, needs the parts once more
        joined = submit(worker_tasks.join, fold, bricks, worker=places[0])
        return Shared(joined, places[0], [part.future for part in parts])

    def traffic(self) -> dict[str, Traffic]:
        """Return the bytes of all processes since the start; of a worker that was killed, the last seconds are lost."""
        if not self._in_this_process:
            with contextlib.suppress(OSError, ValueError):  # nobody answers: no reason to stop a job
                for process, found in self._client.run(worker_tasks.counted, on_error="ignore").values():
                    self._heard.hear(process, found)
        self._heard.hear(traffic.PROCESS, traffic.totals())
        return self._heard.total()

    def _count(self) -> None:
        """Have workers count what they exchange and tell it, and begin at zero."""
        from cloudem.execution.dask.peer_transfer import Exchange
        from cloudem.execution.dask.transfer_counts import TOPIC, CountTransfers

        self._client.register_plugin(Exchange())
        if not self._in_this_process:
            self._client.register_plugin(CountTransfers())
            self._client.subscribe_topic(TOPIC, lambda event: self._heard.hear(*event[1]))
        self.traffic()
        self._heard.begin()

    @property
    def _in_this_process(self) -> bool:
        return str(self._client.scheduler.address).startswith("inproc://")

    def close(self) -> None:
        """Stop the cluster, if it is ours, and leave the scheduler, if it is not."""
        self._resources.close()

    def _submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        worker: str | None = None,
        purpose: str = "other",
        priority: int = 0,
        wide: bool = False,
    ) -> Any:
        """Have a task run, best on one worker; a wide one uses all threads that are free there."""
        arguments = [self._handle(argument, worker) for argument in args]
        where: dict[str, Any] = {} if worker is None else {"workers": [worker], "allow_other_workers": True}
        key = _new_key(function, purpose)
        if wide:
            function, arguments = worker_tasks.with_free_threads, [function, *arguments]
        return self._client.submit(function, *arguments, key=key, pure=False, priority=priority, **where)

    def _submit_all(
        self,
        function: Callable[..., Any],
        rows: Sequence[Sequence[Any]],
        places: Sequence[str],
        purpose: str = "other",
        priority: int = 0,
        wide: bool = False,
    ) -> list[Any]:
        """Submit a function with many rows of arguments, each for one worker: a third of the scheduler's time each."""
        import dask

        if not rows:
            return []
        columns = zip(
            *([self._handle(a, place) for a in row] for row, place in zip(rows, places, strict=True)), strict=True
        )
        where = {_new_key(function, purpose): [place] for place in places}
        if wide:
            function = partial(worker_tasks.with_free_threads, function)
        with dask.annotate(workers=where.__getitem__, allow_other_workers=True):
            return list(self._client.map(function, *columns, key=list(where), pure=False, priority=priority))

    def _handle(self, argument: Any, worker: str | None) -> Any:
        if not isinstance(argument, Shared):
            return argument
        handle = argument.handle
        return handle.at(worker or self._any_worker()) if isinstance(handle, Spread) else handle

    def _threads(self) -> dict[str, int]:
        """Return the workers that take tasks now and their threads, in the same order each time.

        Where there are none, wait for some; raise WorkerLostError when patience ends.
        """
        began, said = time.monotonic(), False
        with scheduler_lost():
            while not (found := self._client.sync(self._client.scheduler.ncores_running)):  # but those that are leaving
                waited = time.monotonic() - began
                if waited > SILENCE_S and not said:
                    LOG.info("%s has no workers; waiting up to %.0f s for some", self._description, self._patience_s)
                    said = True
                if waited > self._patience_s:
                    raise WorkerLostError(
                        f"{self._description} had no workers for {self._patience_s:.0f} s; start some and run again"
                    )
                time.sleep(0.1)
        threads = {worker: int(number) for worker, number in sorted(found.items())}
        self._say_who_changed(threads)
        return threads

    def _say_who_changed(self, threads: Mapping[str, int]) -> None:
        """Say which workers were lost or have come since the last look, and which are left."""
        lost, come = self._seen - threads.keys(), threads.keys() - self._seen
        if self._seen and (lost or come):
            changes = [f"{what} {', '.join(sorted(who))}" for what, who in (("lost", lost), ("new", come)) if who]
            LOG.info("workers: %s; now %d with %d threads", ", ".join(changes), len(threads), sum(threads.values()))
        if self._seen and come and not self._in_this_process:
            with contextlib.suppress(OSError, ValueError):  # nobody answers, which is noticed elsewhere
                self._client.run_on_scheduler(wake)
        self._seen = set(threads)

    def _any_worker(self) -> str:
        return next(iter(self._threads()))

    def _result(self, future: Any) -> Any:
        """Return what a task gives; wait and raise as `_wait` does, also if its worker is lost while it is fetched."""
        self._wait(future)
        gathering = self._client.gather(future, asynchronous=True)
        coming = asyncio.run_coroutine_threadsafe(gathering, self._client.loop.asyncio_loop)
        try:
            while not concurrent.futures.wait([coming], LOOK_AROUND_S).done:
                self._threads()
        finally:
            coming.cancel()
        if future.status == "error":  # it was lost, and failed when it was made again
            self._wait(future)
        with scheduler_lost():
            result = coming.result()
        if not self._in_this_process:
            from cloudem.execution.dask.transfer_counts import count_received

            count_received(future.key, result)
        return result

    def _wait(self, future: Any) -> None:
        """Wait for a task; raise its exception as it is, and say so if the cluster has no workers left."""
        from distributed import CancelledError, KilledWorker

        while not future.done():
            try:
                future.exception(timeout=LOOK_AROUND_S)  # unlike result(), this leaves the result where it is
            except TimeoutError:
                self._threads()
            except CancelledError:
                break
        if future.status == "cancelled":
            with scheduler_lost():
                future.result()
        try:
            if future.status == "error":
                future.result()
        except RuntimeError as error:
            if "deserialization of the task graph" not in str(error):
                raise
            raise WorkerLostError(
                f"the scheduler of {self._description} could not read a task: it may run another version; start"
                " scheduler and workers again with this one"
            ) from error
        except KilledWorker as error:
            raise WorkerLostError(
                f"workers died {CONFIGURATION['distributed.scheduler.allowed-failures']} times while they ran"
                f" {error.task}; it may need more memory than they have, try fewer threads for each worker"
            ) from error

    def _drop(self, futures: Sequence[Any]) -> None:
        """Cancel what nobody waits for any more."""
        if futures and self._client.status == "running":
            with contextlib.suppress(OSError):  # there is no scheduler any more
                self._client.cancel(list(futures), force=True)


class _Held(NamedTuple):
    """A partial sum and the worker that should hold it."""

    start: int
    node: Subtree
    future: Any
    worker: str


def _new_key(function: Callable[..., Any], purpose: str) -> str:
    """Return a name for a task, which tells what the bytes of its result are for."""
    return f"{purpose}_{getattr(function, '__name__', 'task').strip('_')}-{uuid.uuid4().hex}"
