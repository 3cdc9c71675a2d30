"""Bricks of partial sums, from worker to worker: each asks those that hold a part for its brick, and merges what comes.

Dask hands over whole results: a brick of a part would have to be a task of its own, n² of them for n workers, each
some milliseconds of the scheduler's time. Here a worker has one task for its brick, asks the holders of the parts by
itself, a few at a time, and the scheduler is only asked where a part is that is not where it was. Parts are results
that Dask knows: one that is lost is made again from the items, and asked for until it is there.

Requests come over the connections of Dask, behind its certificates (`cloudem.execution.security`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from dask.sizeof import sizeof
from distributed import WorkerPlugin, get_worker, secede
from distributed.protocol import Serialize, to_serialize

from cloudem import traffic
from cloudem.execution.executor import Fold
from cloudem.execution.folding import Forest, Node, merged
from cloudem.execution.transfers import purpose_of

K = TypeVar("K")
V = TypeVar("V")

OPERATION = "cloudem_cut"
"""Name of the request."""

AT_ONCE = 4
"""Parts that a worker asks for at the same time: enough to keep its link busy, few enough to bound what waits."""

PATIENCE_S = 1.0
"""After that long without an answer a task makes room for others, which may be what it waits for, seconds."""

LOOK_S = 0.2
"""How often to ask for a part that is being made again, seconds."""

ANY_NUMBER = 1 << 62
"""Of items: nodes are merged as they come, whatever is still missing."""


@dataclass(frozen=True)
class Part:
    """A partial sum: its place in the tree, the name of the result that holds it, and the worker that had it last.

    No tuple: Dask would look for names of results in it.
    """

    node: Node
    result: str
    worker: str


@dataclass(frozen=True)
class Holdings:
    """All parts of a sum."""

    parts: Sequence[Part]


class Bricks(WorkerPlugin):  # type: ignore[misc]
    """Lets a worker cut for others what it holds."""

    name = "cloudem-bricks"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Begin to answer."""
        self._worker = worker
        worker.handlers[OPERATION] = self._answer

    async def _answer(self, result: str, cut: Callable[[Any], Any]) -> Any:
        """Return a brick; nothing, if the part is not here."""
        if result not in self._worker.data:
            return None
        brick = await asyncio.to_thread(_bare(cut), self._worker.data[result])
        traffic.count(purpose_of(result), sent=int(sizeof(brick)))
        return to_serialize(brick)


def collect(fold: Fold[Any, K, V, Any], key: K, number: int, count: int, holdings: Holdings) -> V:
    """Return brick ``number`` of ``count`` of a sum, merged along the tree; a task.

    It begins with the parts of another worker each than its neighbours, so that not all ask the same one.
    """
    worker, parts = get_worker(), holdings.parts
    first = len(parts) * number // count
    ask = partial(_asked, worker, worker.get_current_task(), partial(_cut, fold, key, number, count))
    forest: Forest[V] = Forest(ANY_NUMBER, fold.merge)
    with contextlib.closing(_in_turn(worker, ask, [*parts[first:], *parts[:first]])) as bricks:
        for part, brick in bricks:
            forest.add(part.node, brick)
            del brick
    return merged(forest.nodes(), fold.merge)


def _cut(fold: Fold[Any, K, V, Any], key: K, number: int, count: int, part: Any) -> V:
    return fold.cut(part.sums[key], number, count)


def _in_turn(worker: Any, ask: Callable[[Part], Any], parts: Sequence[Part]) -> Generator[tuple[Part, Any]]:
    """Yield what is answered for each part, asking a few ahead."""
    coming: deque[tuple[Part, concurrent.futures.Future[Any]]] = deque()
    left, seceded = iter(parts), False
    try:
        while True:
            for part in left:
                coming.append((part, asyncio.run_coroutine_threadsafe(ask(part), worker.loop.asyncio_loop)))
                if len(coming) == AT_ONCE:
                    break
            if not coming:
                return
            part, future = coming.popleft()
            if not seceded and not concurrent.futures.wait([future], PATIENCE_S).done:
                secede()  # a part that is lost is made again by a task that needs a thread
                seceded = True
            yield part, future.result()
            del future
    finally:
        for _, future in coming:
            future.cancel()


def _bare(value: Any) -> Any:
    """Return what was sent; between workers of one process nothing takes it out of its wrapper."""
    return value.data if isinstance(value, Serialize) else value


async def _asked(worker: Any, task: str, cut: Callable[[Any], Any], part: Part) -> Any:
    """Return a brick of a part, from wherever it is, as soon as it is there."""
    where = part.worker
    while True:
        if part.result in worker.data:
            return await asyncio.to_thread(cut, worker.data[part.result])
        if where != worker.address:
            with contextlib.suppress(OSError):  # that worker is gone
                brick = _bare(await getattr(worker.rpc(where), OPERATION)(result=part.result, cut=to_serialize(cut)))
                if brick is not None:
                    traffic.count(purpose_of(part.result), received=int(sizeof(brick)))
                    return brick
        if getattr(worker.state.tasks.get(task), "state", "forgotten") not in ("executing", "long-running"):
            raise concurrent.futures.CancelledError("nobody waits for this brick any more")
        await asyncio.sleep(LOOK_S)
        with contextlib.suppress(OSError):
            holders = (await worker.scheduler.who_has(keys=[part.result])).get(part.result, ())
            where = next(iter(holders), where)
