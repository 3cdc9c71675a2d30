"""What a task costs the scheduler and the client in CPU time: a real scheduler process, many workers, trivial tasks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from bars.measure import HERE
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.security import make_certificates, security_for
from cloudem.execution.executor import Added, Fold, Shared, itself

PORT = 18786
VOXELS = 3200

Sum = NDArray[np.float32]


def half_of(item: tuple[int, int]) -> tuple[int]:
    return (item[0],)


def add(item: tuple[int, int], dataset: int, model: int) -> Added[int, Sum, int]:
    return Added({item[0]: np.full(VOXELS, dataset + model, np.float32)}, item[1])


def merge(earlier: Sum, later: Sum) -> Sum:
    return earlier + later


def join(bricks: Sequence[Sum]) -> Sum:
    return np.concatenate(bricks)


def cut(value: Sum, number: int, count: int) -> Sum:
    return np.array_split(value, count)[number]


TRIVIAL: Fold[tuple[int, int], int, Sum, int] = Fold(half_of, add, merge, cut, join)
"""Sums of a few kilobytes, in tasks of the form in which refinements submit theirs."""


class Spent(NamedTuple):
    """CPU-seconds of the scheduler and of the client, and wall seconds."""

    scheduler: float
    client: float
    wall: float


class Office:
    """A scheduler in a process of its own, workers of one thread each in another, and an executor that counts."""

    def __init__(self, scheduler: psutil.Process, executor: DaskExecutor) -> None:
        self._scheduler = scheduler
        self.executor = executor
        self.submitted: Counter[str] = Counter()
        self._idle = Spent(0.0, 0.0, 1.0)
        pool = executor._pool
        submit, submit_all = pool.submit, pool.submit_all

        def one(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
            self.submitted[getattr(function, "__name__", "task").strip("_")] += 1
            return submit(function, *args, **options)

        def many(function: Callable[..., Any], rows: Sequence[Any], *args: Any, **options: Any) -> Any:
            self.submitted[getattr(function, "__name__", "task").strip("_")] += len(rows)
            return submit_all(function, rows, *args, **options)

        pool.submit, pool.submit_all = one, many  # type: ignore[method-assign]

    def now(self) -> Spent:
        cpu = self._scheduler.cpu_times()
        return Spent(cpu.user + cpu.system, time.process_time(), time.monotonic())

    def spent(self, run: Callable[[], Any]) -> Spent:
        """Run, wait until the scheduler has tidied up, and return what that took, beyond what idling takes."""
        before = self.now()
        run()
        self.executor._pool.client.sync(self._settled)
        after = self.now()
        wall = after.wall - before.wall
        spent = after.scheduler - before.scheduler - self._idle.scheduler * wall
        return Spent(spent, after.client - before.client - self._idle.client * wall, wall)

    def idle(self, seconds: float = 5.0) -> Spent:
        """Return what a second without tasks takes; it is taken off from then on."""
        self._idle = Spent(0.0, 0.0, 1.0)
        took = self.spent(lambda: time.sleep(seconds))
        self._idle = Spent(took.scheduler / took.wall, took.client / took.wall, 1.0)
        return self._idle

    async def _settled(self) -> None:
        await self.executor._pool.client.scheduler.identity()


@contextmanager
def office(folder: Path, workers: int) -> Iterator[Office]:
    """Start everything, encrypted as clusters are; end it all."""
    certificates = folder / "certificates"
    if not certificates.exists():
        make_certificates(certificates)
    address = f"tls://127.0.0.1:{PORT}"
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    common: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = [sys.executable, "-m", "cloudem", "cluster", "scheduler", "--host", "127.0.0.1", "--port", str(PORT)]
    scheduler = subprocess.Popen([*start, "--certificates", str(certificates)], **common)
    crew = None
    try:
        crew = subprocess.Popen(
            [sys.executable, "-m", "bars.scheduling", address, str(certificates), str(workers)], **common
        )
        with DaskExecutor(scheduler=address, certificates=str(certificates), patience_s=120) as executor:
            deadline = time.monotonic() + 120
            while executor.workers < workers:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{executor.workers} workers of {workers} came")
                time.sleep(0.1)
            yield Office(psutil.Process(scheduler.pid), executor)
    finally:
        for process in (crew, scheduler):
            if process is not None:
                process.terminate()
        for process in (crew, scheduler):
            if process is not None:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def by_kind(there: Office, items: int) -> dict[str, tuple[int, Spent]]:
    """Submit each kind of task many times; return how many tasks there were and what they took.

    Each task has the arguments, dependencies and place that `DaskExecutor` gives it, and is submitted in the same way:
    those of a kind together, but for merges.
    """
    from cloudem.execution.dask import worker_tasks
    from cloudem.execution.dask.peer_transfer import HeldPart, Holdings, collect
    from cloudem.execution.reduction_tree import Subtree

    pool, names = there.executor._pool, list(there.executor._pool.threads())
    shared = [Shared(pool.submit(int, number)) for number in (1, 2)]
    copies = {name: [Shared(pool.submit(itself, s, worker=name)) for s in shared] for name in names}
    for pair in copies.values():
        for copy in pair:
            pool.wait(copy.handle)
    found: dict[str, tuple[int, Spent]] = {}
    place = [names[index * len(names) // items] for index in range(items)]

    def all_of(kind: str, submit: Callable[[], Sequence[Any]]) -> list[Any]:
        futures: list[Any] = []

        def submit_and_wait() -> None:
            futures.extend(submit())
            for future in futures:
                pool.wait(future)

        took = there.spent(submit_and_wait)
        found[kind] = len(futures), took
        return futures

    rows = [(TRIVIAL, [(1, i)], [[copy.handle for copy in copies[w]]]) for i, w in enumerate(place)]
    added = all_of("add", lambda: pool.submit_all(worker_tasks.add, rows, place))
    notes = all_of("note", lambda: pool.submit_all(worker_tasks.note, [(a,) for a in added], place))
    pairs = [(added[i], added[i + 1], place[i]) for i in range(0, items - 1, 2)]
    merged = all_of("merge", lambda: [pool.submit(worker_tasks.merge, TRIVIAL, a, b, worker=w) for a, b, w in pairs])
    first = {w: a for a, w in zip(added, place, strict=True)}  # a part on each worker
    # of two parts: the scheduler has nothing to do with how many there are, and workers of one process are slow at many
    held = Holdings([HeldPart(Subtree(0, n), first[w].key, w) for n, w in enumerate(names[:2])])
    holdings = pool.submit(itself, held, worker=names[0])
    asked = [(TRIVIAL, 1, number, len(names), holdings) for number in range(len(names))]
    whole = all_of("collect", lambda: [f for _ in range(8) for f in pool.submit_all(collect, asked, names)])
    joined = all_of("join", lambda: [pool.submit(worker_tasks.join_sum, TRIVIAL, whole[: len(names)], worker=names[0])])
    first.clear()
    kept = [notes, merged, whole, joined, asked, rows, added, pairs, copies, shared]

    def forget() -> None:
        for part in kept:
            part.clear()
        time.sleep(0.5)

    found["forget"] = sum(count for count, _ in found.values()), there.spent(forget)
    return found


def accumulated(there: Office, items: int) -> tuple[Counter[str], Spent]:
    """Fold items of two half-sets as a refinement does; return the tasks by kind and what they took."""
    each = [(half, index) for half in (1, 2) for index in range(items // 2)]
    there.submitted.clear()

    def fold() -> None:
        shared = [there.executor.spread(int, number, local=int) for number in (1, 2)]
        sums, notes = there.executor.accumulate(TRIVIAL, each, shared=lambda item: shared)
        assert len(notes) == items
        assert [float(there.executor.fetch(value)[0]) for value in sums.values()] == [3.0 * items / 2] * 2
        del sums
        time.sleep(0.5)

    took = there.spent(fold)
    return Counter(there.submitted), took


async def _crew(address: str, certificates: str, workers: int) -> None:
    import dask
    from distributed import Worker

    from cloudem.execution.dask.configuration import CONFIGURATION, WITHOUT_PAGES

    dask.config.set(CONFIGURATION | WITHOUT_PAGES)
    security = security_for(address, certificates)
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(
                Worker(address, nthreads=1, security=security, dashboard=False, memory_limit=0, name=str(number))
            )
            for number in range(workers)
        ]
        await asyncio.gather(*(worker.finished() for worker in running))


if __name__ == "__main__":
    asyncio.run(_crew(sys.argv[1], sys.argv[2], int(sys.argv[3])))
