"""The two verbs that carry every job, and the executor that runs them one after another.

``map`` applies a pure function to every item; ``accumulate`` folds every item into sums by key. An algorithm that is
written with these two runs unchanged, and to the bit with the same result, on one core, on a laptop's threads, on
worker processes and on a cluster: parts are always merged along the same tree over the items
(`cloudem.execution.reduction_tree`), whoever made them and whichever finished first.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

from cloudem import traffic
from cloudem.execution.doing import JobDoing
from cloudem.execution.reduction_tree import Forest, Subtree
from cloudem.execution.threads import one_thread_per_task
from cloudem.execution.workers import ThisProcess, WorkerSeen
from cloudem.traffic import Traffic

T = TypeVar("T")
I = TypeVar("I")
N = TypeVar("N")
K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Shared(Generic[T]):
    """Stands for a value that lives where the tasks run; made by an executor, good only for that one.

    ``place`` is the worker that should hold it, where that is known; ``parts`` are values from which it is made once
    more if it is lost, and that are not freed before it.
    """

    handle: Any
    place: str | None = None
    parts: Any = None


@dataclass(frozen=True)
class Pieces(Generic[V]):
    """How a value is cut to be handed on: ``cut(value, number, count)`` and ``join(all pieces)``, pure."""

    cut: Callable[[V, int, int], V]
    join: Callable[[Sequence[V]], V]


class Added(NamedTuple, Generic[K, V, N]):
    """What one item gives.

    Attributes
    ----------
    sums
        Large: they stay where they are made, and are merged with those of other items.
    note
        Small: it goes to the caller.
    """

    sums: Mapping[K, V]
    note: N


@dataclass(frozen=True)
class Fold(Generic[I, K, V, N]):
    """A reduction, declared: what one item adds, how two sums become one, and how they are cut to be sent.

    Attributes
    ----------
    keys
        ``keys(item)``: to which sums the item adds; asked of the caller, not of the workers.
    add
        ``add(item, *shared values) -> Added``: pure; what it returns is handed over, it must keep no reference.
    merge
        ``merge(earlier, later) -> sum``: pure, also for what ``cut`` returns.
    cut
        ``cut(sum, number, count)``: brick ``number`` of ``count``, in the form in which it is sent; bricks of one
        number and count can be merged.
    join
        ``join(bricks)``: the sum whose bricks these are, in order.

    They travel to other processes: use functions of a module, or `functools.partial` of them with small arguments;
    what is large goes through `Executor.share`.
    """

    keys: Callable[[I], Sequence[K]]
    add: Callable[..., Added[K, V, N]]
    merge: Callable[[V, V], V]
    cut: Callable[[V, int, int], V]
    join: Callable[[Sequence[V]], V]

    def merge_sums(self, earlier: Mapping[K, V], later: Mapping[K, V]) -> dict[K, V]:
        """Return the sums of both by key."""
        both = dict(earlier)
        for key, value in later.items():
            both[key] = self.merge(both[key], value) if key in both else value
        return both


class Executor(ABC):
    """Runs pure functions over items; a context manager that gives back its threads and processes."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """Number of tasks that run at the same time; a hint for how finely to cut the items."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for people: what runs the tasks."""

    @abstractmethod
    def share(self, build: Callable[..., T], *args: Any, purpose: str = "other") -> Shared[T]:
        """Return a value that tasks may read: ``build(*args)``, made where the tasks run.

        ``build`` is pure: it runs once, and again only if its result is lost with a worker. ``args`` may hold other
        shared values; it runs where the first of them is that has a place. The value is freed when the last reference
        to what is returned has gone. ``purpose`` says for which of `cloudem.traffic.PURPOSES` its bytes count.
        """

    @abstractmethod
    def spread(
        self,
        build: Callable[..., V],
        *args: Any,
        local: Callable[[V], T],
        pieces: Pieces[V] | None = None,
        purpose: str = "other",
    ) -> Shared[T]:
        """Return a value that all workers will read: ``local(build(*args))``.

        ``build`` runs once; its result is handed from worker to worker, once to each that needs it, and each makes its
        own of it with ``local`` and keeps that. A large one should come with ``pieces``.
        """

    @abstractmethod
    def fetch(self, shared: Shared[T]) -> T:
        """Return a shared value to the caller; raises the exception of what should have made it."""

    @abstractmethod
    def map(
        self,
        function: Callable[..., R],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Yield ``function(item, *values of shared(item))`` for every item, in the order of the items.

        Lazy: no more than a few items per worker are under way ahead of the one that is asked for. The first
        exception of a task is raised as it is, and the rest is dropped.

        Parameters
        ----------
        function
            Pure; travels to other processes, as the functions of a `Fold` do.
        items
            Small things: indices, slices, names.
        shared
            Which shared values the task of an item reads.
        on_done
            Called with the index of every item that is done, in the caller's thread and in the order of the items.
        """

    @abstractmethod
    def accumulate(
        self,
        fold: Fold[I, K, V, N],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[dict[K, Shared[V]], list[N]]:
        """Fold all items into sums by key; return these, each on one worker, and the notes of all items.

        Sums are merged along a tree over the items that depends on their number alone. Keys are in the order in which
        they first come. ``on_done`` is called with the index of every item that is done, in any order. Raises the
        first exception of a task as it is.
        """

    @abstractmethod
    def traffic(self) -> dict[str, Traffic]:
        """Return the bytes that all processes have moved over the network since the start, by purpose."""

    @abstractmethod
    def seen_workers(self, doing: JobDoing | None = None) -> tuple[WorkerSeen, ...]:
        """Return what is known of those that run the tasks, for people.

        Any thread may ask, at any time; it waits for no more than a second, and whatever may be raised is of no
        consequence to the tasks. ``doing`` is what the job does meanwhile, for others who look at its workers.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back threads and processes; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class SerialExecutor(Executor):
    """Runs every task at once in the calling thread: for tests, for debugging and as the reference for all others."""

    def __init__(self) -> None:
        self._resources = contextlib.ExitStack()
        self._resources.enter_context(one_thread_per_task())
        self._before = traffic.totals()
        self._process = ThisProcess()

    @property
    def workers(self) -> int:
        """One."""
        return 1

    @property
    def description(self) -> str:
        """What runs the tasks."""
        return "serial, in this process"

    def share(self, build: Callable[..., T], *args: Any, purpose: str = "other") -> Shared[T]:
        """Build the value now."""
        return Shared(build(*values(args)))

    def spread(
        self,
        build: Callable[..., V],
        *args: Any,
        local: Callable[[V], T],
        pieces: Pieces[V] | None = None,
        purpose: str = "other",
    ) -> Shared[T]:
        """Build the value now."""
        return Shared(local(build(*values(args))))

    def fetch(self, shared: Shared[T]) -> T:
        """Return the value."""
        value: T = shared.handle
        return value

    def map(
        self,
        function: Callable[..., R],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Apply ``function`` to one item whenever a result is asked for."""
        for index, item in enumerate(items):
            result = function(item, *values(shared(item)))
            if on_done is not None:
                on_done(index)
            yield result

    def accumulate(
        self,
        fold: Fold[I, K, V, N],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[dict[K, Shared[V]], list[N]]:
        """Fold one item after the other, holding no more sums than the tree has levels."""
        rows = ((item, values(shared(item))) for item in items)
        sums, notes = folded(fold, rows, len(items), on_done)
        return {key: Shared(value) for key, value in sums.items()}, notes

    def traffic(self) -> dict[str, Traffic]:
        """Return what this process has counted."""
        return traffic.difference(traffic.totals(), self._before)

    def seen_workers(self, doing: JobDoing | None = None) -> tuple[WorkerSeen, ...]:
        """Return this process."""
        return (self._process.seen(),)

    def close(self) -> None:
        """Give the numerical libraries their threads back."""
        self._resources.close()


def folded(
    fold: Fold[I, K, V, N],
    rows: Iterable[tuple[I, Sequence[Any]]],
    count: int,
    on_done: Callable[[int], None] | None = None,
) -> tuple[Mapping[K, V], list[N]]:
    """Fold items, each with its shared values, one after another; return the sums by key and the notes.

    No more sums are held than the tree over the items has levels.
    """
    forest: Forest[Mapping[K, V]] = Forest(count, fold.merge_sums)
    notes: list[N] = []
    for index, (item, shared) in enumerate(rows):
        added = fold.add(item, *shared)
        forest.add(Subtree(0, index), added.sums)
        notes.append(added.note)
        del added
        if on_done is not None:
            on_done(index)
    (sums,) = forest.nodes().values() or ({},)
    return sums, notes


def values(arguments: Sequence[Any]) -> list[Any]:
    """Return arguments with the handles in place of what is shared."""
    return [argument.handle if isinstance(argument, Shared) else argument for argument in arguments]


def itself(value: T) -> T:
    """Return the value: for ``local`` where workers use what they are handed as it is."""
    return value
