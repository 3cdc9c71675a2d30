"""Parts of large values, from worker to worker: each asks those that hold them, a few at a time.

Dask hands over whole results: a brick of a partial sum would have to be a task of its own, n² of them for n workers,
each some milliseconds of the scheduler's time. Here a worker has one task for its brick, asks the holders of the sums
by itself, merges what comes, and the scheduler is only asked where a part is that is not where it was. In the same way
a value that all need is handed on: cut into as many pieces as there are workers, each of which gets one, and the others
from those that have them, so that no link carries it more than twice. Parts are results that Dask knows: one that is
lost is made again, and asked for until it is there.

Requests come over the connections of Dask, behind its certificates (`cloudem.execution.dask.security`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from dask.sizeof import sizeof
from distributed import WorkerPlugin, get_worker, secede
from distributed.protocol import Serialize, to_serialize

from cloudem import traffic
from cloudem.execution.dask.transfer_counts import TaskKey, purpose_of
from cloudem.execution.executor import Fold, itself
from cloudem.execution.reduction_tree import ANY_NUMBER, Forest, Subtree, merged

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")

OPERATION = "cloudem_cut"
"""Name of the request."""

AT_ONCE = 4
"""Parts that a worker asks for at the same time: enough to keep its link busy, few enough to bound what waits."""

PATIENCE_S = 1.0
"""After that long without an answer a task makes room for others, which may be what it waits for, seconds."""

LOOK_S = (0.01, 0.2)
"""How long to wait before a part that is not there is asked for again, at first and at most, seconds."""


@dataclass(frozen=True)
class HeldPart:
    """A partial sum or a piece: its place, the name of the result that holds it, and the worker that had it last.

    No tuple: Dask would look for names of results in it.
    """

    node: Subtree
    result: TaskKey
    worker: str


@dataclass(frozen=True)
class Holdings:
    """All parts of a value."""

    parts: Sequence[HeldPart]


class Exchange(WorkerPlugin):  # type: ignore[misc]
    """Lets a worker cut for others what it holds."""

    name = "cloudem-exchange"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Begin to answer."""
        self._worker = worker
        worker.handlers[OPERATION] = self._answer

    async def _answer(self, result: TaskKey, cut: Callable[[Any], Any]) -> Any:
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
    first = len(holdings.parts) * number // count
    forest: Forest[V] = Forest(ANY_NUMBER, fold.merge)
    with contextlib.closing(_in_turn(holdings, partial(_brick, fold, key, number, count), first)) as bricks:
        for part, brick in bricks:
            forest.add(part.node, brick)
            del brick
    return merged(forest.nodes(), fold.merge)


def _brick(fold: Fold[Any, K, V, Any], key: K, number: int, count: int, part: Any) -> V:
    return fold.cut(part.sums[key], number, count)


def one_of(holdings: Holdings, cut: Callable[[V, int, int], V], number: int, count: int) -> V:
    """Return piece ``number`` of ``count`` of a value that one worker holds; a task."""
    with contextlib.closing(_in_turn(holdings, partial(_piece, cut, number, count))) as pieces:
        ((_, piece),) = pieces
    return cast(V, piece)


def _piece(cut: Callable[[V, int, int], V], number: int, count: int, value: V) -> V:
    return cut(value, number, count)


def value_of_pieces(
    holdings: Holdings, join: Callable[[Sequence[V]], V], local: Callable[[V], T], own: int, _own: V
) -> T:
    """Return what a worker makes of all pieces, the one that it has being ``own``; a task."""
    found: dict[int, V] = {}
    with contextlib.closing(_in_turn(holdings, itself, own)) as pieces:
        for part, piece in pieces:
            found[part.node.place] = piece
    return local(join([found.pop(number) for number in sorted(found)]))


def _in_turn(holdings: Holdings, cut: Callable[[Any], Any], first: int = 0) -> Generator[tuple[HeldPart, Any]]:
    """Yield what is cut of each part, from a first one on, asking a few ahead."""
    worker, parts = get_worker(), [*holdings.parts[first:], *holdings.parts[:first]]
    ask = partial(_asked, worker, worker.get_current_task(), cut)
    coming: deque[tuple[HeldPart, concurrent.futures.Future[Any]]] = deque()
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


async def _asked(worker: Any, task: object, cut: Callable[[Any], Any], part: HeldPart) -> Any:
    """Return a brick of a part, from wherever it is, as soon as it is there."""
    where, wait = part.worker, LOOK_S[0]
    while True:
        if part.result in worker.data:
            return await asyncio.to_thread(cut, worker.data[part.result])
        gone = where == worker.address
        if not gone:
            try:
                brick = await _answered(worker, where, cut, part)
            except OSError:
                gone = True
            else:
                if brick is not None:
                    traffic.count(purpose_of(part.result), received=int(sizeof(brick)))
                    return brick
        if getattr(worker.state.tasks.get(task), "state", "forgotten") not in ("executing", "long-running"):
            raise concurrent.futures.CancelledError("nobody waits for this brick any more")
        await asyncio.sleep(wait)
        wait = min(2 * wait, LOOK_S[1])
        if gone or wait == LOOK_S[1]:  # it may be made elsewhere
            where = next(iter(await _holders(worker, part)), where)


async def _answered(worker: Any, where: str, cut: Callable[[Any], Any], part: HeldPart) -> Any:
    """Return what another worker answers; raise OSError when it is gone, which a connection takes long to notice."""
    call = asyncio.ensure_future(getattr(worker.rpc(where), OPERATION)(result=part.result, cut=to_serialize(cut)))
    try:
        while not (await asyncio.wait([call], timeout=PATIENCE_S))[0]:
            if where not in await _holders(worker, part):
                raise OSError(f"{where} does not hold {part.result[0]} any more")
        return _bare(await call)
    finally:
        call.cancel()


async def _holders(worker: Any, part: HeldPart) -> Sequence[str]:
    """Return the workers that hold a part, as the scheduler knows; none, if it does not answer."""
    with contextlib.suppress(OSError):
        return tuple((await worker.scheduler.who_has(keys=[part.result])).get(part.result, ()))
    return ()
