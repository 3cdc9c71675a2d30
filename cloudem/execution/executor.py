"""The two verbs that carry every job, and the executor that runs them one after another.

``map`` applies a pure function to every item; ``accumulate`` folds every item into sums by key. An algorithm that is
written with these two runs unchanged, and to the bit with the same result, on one core, on a laptop's threads, on
worker processes and on a cluster: parts are always merged in the order of the items, whichever finishes first.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from cloudem.execution.threads import one_thread_per_task

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Shared(Generic[T]):
    """Stands for a value that lives where the tasks run; made by `Executor.share`, good only for that executor."""

    handle: Any


@dataclass(frozen=True)
class Fold(Generic[K, V, R]):
    """A reduction, declared: what one item adds, how two sums become one, and what is made of the whole.

    Attributes
    ----------
    add
        ``add(item, *shared values) -> {key: sum}``: pure; what it returns is handed over, it must keep no reference.
    merge
        ``merge(earlier, later) -> sum``: may change and return its first argument, which nobody else reads any more.
    finalise
        ``finalise(key, sum) -> result``.

    The three travel to other processes: use functions of a module, or `functools.partial` of them with small
    arguments; what is large goes through `Executor.share`.
    """

    add: Callable[..., Mapping[K, V]]
    merge: Callable[[V, V], V]
    finalise: Callable[[K, V], R]

    def merge_sums(self, earlier: dict[K, V], later: Mapping[K, V]) -> dict[K, V]:
        """Merge the later sums by key into the earlier ones and return these."""
        for key, value in later.items():
            earlier[key] = self.merge(earlier[key], value) if key in earlier else value
        return earlier


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
    def share(self, build: Callable[..., T], *args: Any) -> Shared[T]:
        """Return a value that every task may read: ``build(*args)``, made where the tasks run.

        ``build`` is pure: it runs once, and again only if its result is lost with a worker. ``args`` may hold other
        shared values. The value is freed when the last reference to what is returned has gone.
        """

    @abstractmethod
    def map(
        self,
        function: Callable[..., R],
        items: Sequence[Any],
        *shared: Shared[Any],
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Yield ``function(item, *shared values)`` for every item, in the order of the items.

        Lazy: no more than a few items per worker are under way ahead of the one that is asked for. The first
        exception of a task is raised as it is, and the rest is dropped.

        Parameters
        ----------
        function
            Pure; travels to other processes, as the functions of a `Fold` do.
        items
            Small things: indices, slices, names.
        *shared
            Values that every task reads.
        on_done
            Called with the index of every item that is done, in the caller's thread and in the order of the items.
        """

    @abstractmethod
    def accumulate(
        self,
        fold: Fold[K, V, R],
        items: Sequence[Any],
        *shared: Shared[Any],
        on_done: Callable[[int], None] | None = None,
    ) -> dict[K, R]:
        """Fold all items into sums by key and return what ``fold.finalise`` makes of them.

        Sums are merged in the order of the items, so that the result does not depend on who finished first. Keys are
        in the order in which they first came. Raises the first exception of a task as it is.
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

    @property
    def workers(self) -> int:
        """One."""
        return 1

    @property
    def description(self) -> str:
        """What runs the tasks."""
        return "serial, in this process"

    def share(self, build: Callable[..., T], *args: Any) -> Shared[T]:
        """Build the value now."""
        return Shared(build(*_values(args)))

    def map(
        self,
        function: Callable[..., R],
        items: Sequence[Any],
        *shared: Shared[Any],
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Apply ``function`` to one item whenever a result is asked for."""
        for index, item in enumerate(items):
            result = function(item, *_values(shared))
            if on_done is not None:
                on_done(index)
            yield result

    def accumulate(
        self,
        fold: Fold[K, V, R],
        items: Sequence[Any],
        *shared: Shared[Any],
        on_done: Callable[[int], None] | None = None,
    ) -> dict[K, R]:
        """Fold one item after the other."""
        sums: dict[K, V] = {}
        for index, item in enumerate(items):
            sums = fold.merge_sums(sums, fold.add(item, *_values(shared)))
            if on_done is not None:
                on_done(index)
        return {key: fold.finalise(key, value) for key, value in sums.items()}

    def close(self) -> None:
        """Give the numerical libraries their threads back."""
        self._resources.close()


def _values(arguments: Sequence[Any]) -> list[Any]:
    return [argument.handle if isinstance(argument, Shared) else argument for argument in arguments]
