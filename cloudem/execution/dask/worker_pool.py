"""The workers of a scheduler as the executor uses them: who takes tasks now; submitting, waiting, and giving up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cloudem.errors import WorkerLostError
from cloudem.execution.dask import worker_tasks
from cloudem.execution.dask.broadcast import Spread
from cloudem.execution.dask.configuration import CONFIGURATION
from cloudem.execution.dask.connection import scheduler_lost, wake
from cloudem.execution.dask.transfer_counts import TaskKey, count_received
from cloudem.execution.executor import Shared
from cloudem.execution.task_names import TaskLabel, current_label

LOG = logging.getLogger("cloudem.execution")

IN_FLIGHT_PER_THREAD = 2
"""One task that runs and one that waits for each thread: enough to keep it busy, few enough to bound memory."""

LOOK_AROUND_S = 1.0
"""How often to look for workers that have come or gone, seconds."""

SILENCE_S = 3.0
"""How long to wait for workers before saying so, seconds."""

MERGE_FIRST = 10
"""Priority of merging over adding: a part that is merged is memory that is free."""


class WorkerPool:
    """Workers that run tasks, and come and go.

    Parameters
    ----------
    client
        Of their scheduler.
    description
        What they are, for messages.
    patience_s
        How long to wait for workers where there are none, seconds.
    """

    def __init__(self, client: Any, description: str, patience_s: float) -> None:
        self.client = client
        self.description = description
        self._patience_s = patience_s
        self._seen: set[str] = set()
        self.job = job = current_label().job
        self._span = {"span": {"name": (job,), "ids": (str(uuid.uuid4()),)}} if job else {}  # as distributed.span does

    @property
    def in_this_process(self) -> bool:
        """Whether they are threads of this process."""
        return str(self.client.scheduler.address).startswith("inproc://")

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        worker: str | None = None,
        purpose: str = "other",
        priority: int = 0,
        wide: bool = False,
        label: TaskLabel | None = None,
    ) -> Any:
        """Have a task run, best on one worker; a wide one uses all threads that are free there.

        It is called by the label, by default by where the job is now.
        """
        import dask

        arguments = [self.handle(argument, worker) for argument in args]
        where: dict[str, Any] = {} if worker is None else {"workers": [worker], "allow_other_workers": True}
        key = _new_key(function, purpose, label)
        if wide:
            function, arguments = worker_tasks.with_free_threads, [function, *arguments]
        with dask.annotate(**self._span):
            return self.client.submit(function, *arguments, key=key, pure=False, priority=priority, **where)

    def submit_all(
        self,
        function: Callable[..., Any],
        rows: Sequence[Sequence[Any]],
        places: Sequence[str],
        purpose: str = "other",
        priority: int = 0,
        wide: bool = False,
        label: TaskLabel | None = None,
    ) -> list[Any]:
        """Submit a function with many rows of arguments, each for one worker: a third of the scheduler's time each."""
        import dask

        if not rows:
            return []
        columns = zip(
            *([self.handle(a, place) for a in row] for row, place in zip(rows, places, strict=True)), strict=True
        )
        where = {_new_key(function, purpose, label): [place] for place in places}
        if wide:
            function = partial(worker_tasks.with_free_threads, function)
        with dask.annotate(workers=where.__getitem__, allow_other_workers=True, **self._span):
            return list(self.client.map(function, *columns, key=list(where), pure=False, priority=priority))

    def handle(self, argument: Any, worker: str | None) -> Any:
        """Return what a task on that worker is given for an argument: of what is shared, its future."""
        if not isinstance(argument, Shared):
            return argument
        handle = argument.handle
        return handle.at(worker or self.any_worker()) if isinstance(handle, Spread) else handle

    def threads(self) -> dict[str, int]:
        """Return the workers that take tasks now and their threads, in the same order each time.

        Where there are none, wait for some; raise WorkerLostError when patience ends.
        """
        began, said = time.monotonic(), False
        with scheduler_lost():
            while not (found := self.client.sync(self.client.scheduler.ncores_running)):  # but those that are leaving
                waited = time.monotonic() - began
                if waited > SILENCE_S and not said:
                    LOG.info("%s has no workers; waiting up to %.0f s for some", self.description, self._patience_s)
                    said = True
                if waited > self._patience_s:
                    raise WorkerLostError(
                        f"{self.description} had no workers for {self._patience_s:.0f} s; start some and run again"
                    )
                time.sleep(0.1)
        threads = {worker: int(number) for worker, number in sorted(found.items())}
        self._say_who_changed(threads)
        return threads

    def any_worker(self) -> str:
        """Return a worker that takes tasks now."""
        return next(iter(self.threads()))

    def result(self, future: Any) -> Any:
        """Return what a task gives; wait and raise as `wait` does, also if its worker is lost while it is fetched."""
        self.wait(future)
        gathering = self.client.gather(future, asynchronous=True)
        coming = asyncio.run_coroutine_threadsafe(gathering, self.client.loop.asyncio_loop)
        try:
            while not concurrent.futures.wait([coming], LOOK_AROUND_S).done:
                self.threads()
        finally:
            coming.cancel()
        if future.status == "error":  # it was lost, and failed when it was made again
            self.wait(future)
        with scheduler_lost():
            result = coming.result()
        if not self.in_this_process:
            count_received(future.key, result)
        return result

    def wait(self, future: Any) -> None:
        """Wait for a task; raise its exception as it is, and say so if the cluster has no workers left."""
        from distributed import CancelledError, KilledWorker

        while not future.done():
            try:
                future.exception(timeout=LOOK_AROUND_S)  # unlike result(), this leaves the result where it is
            except TimeoutError:
                self.threads()
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
                f"the scheduler of {self.description} could not read a task: it may run another version; start"
                " scheduler and workers again with this one"
            ) from error
        except KilledWorker as error:
            raise WorkerLostError(
                f"workers died {CONFIGURATION['distributed.scheduler.allowed-failures']} times while they ran"
                f" {_in_words(error.task)}; it may need more memory than they have, try fewer threads for each worker"
            ) from error

    def drop(self, futures: Sequence[Any]) -> None:
        """Cancel what nobody waits for any more."""
        if futures and self.client.status == "running":
            with contextlib.suppress(OSError):  # there is no scheduler any more
                self.client.cancel(list(futures), force=True)

    def _say_who_changed(self, threads: Mapping[str, int]) -> None:
        """Say which workers were lost or have come since the last look, and which are left."""
        lost, come = self._seen - threads.keys(), threads.keys() - self._seen
        if self._seen and (lost or come):
            changes = [f"{what} {', '.join(sorted(who))}" for what, who in (("lost", lost), ("new", come)) if who]
            LOG.info("workers: %s; now %d with %d threads", ", ".join(changes), len(threads), sum(threads.values()))
        if self._seen and come and not self.in_this_process:
            with contextlib.suppress(OSError, ValueError):  # nobody answers, which is noticed elsewhere
                self.client.run_on_scheduler(wake)
        self._seen = set(threads)


def _new_key(function: Callable[..., Any], purpose: str, label: TaskLabel | None) -> TaskKey:
    """Return the key of a task: where the job is, what the bytes of its result are for and what makes it, a number.

    Of such a tuple Dask takes the first for the group, and what stands there before a hyphen for the kind of task.
    """
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", "task").strip("_")
    return (label or current_label()).group(name), f"{purpose}_{name}", uuid.uuid4().hex


def _in_words(key: object) -> str:
    """Return a key as people read it: ``align-it007 (bricks_add)``."""
    return f"{key[0]} ({key[1]})" if isinstance(key, tuple) else str(key)
