"""What runs on the workers for the executor: adding, merging, joining, counting."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from cloudem import traffic
from cloudem.execution.executor import Added, Fold, folded
from cloudem.execution.threads import CORES
from cloudem.traffic import Traffic

I = TypeVar("I")
K = TypeVar("K")
V = TypeVar("V")
N = TypeVar("N")
R = TypeVar("R")


def with_free_threads(function: Callable[..., R], *args: Any) -> R:
    """Run a task that others wait for with the threads that no other task of its worker uses."""
    from distributed import get_worker

    with _cores_shared_by(len(get_worker().state.executing)):
        return function(*args)


@contextlib.contextmanager
def _cores_shared_by(tasks: int) -> Iterator[None]:
    """Have a task use its part of this worker's cores, of which so many tasks have the same."""
    from distributed import get_worker

    state = get_worker().state
    cores = int(state.total_resources.get(CORES, state.nthreads)) // max(tasks, 1)
    if cores < 2:
        yield
        return
    from scipy import fft

    with fft.set_workers(cores):
        yield


def add(
    fold: Fold[I, K, V, N], items: Sequence[I], values: Sequence[Sequence[Any]]
) -> Added[K, V, tuple[list[N], float]]:
    """Add the items of a node of the tree one after another; with the notes comes how long that took, seconds.

    A task that leaves most of its work to a GPU has more than one core for the rest.
    """
    from distributed import get_worker

    began = time.monotonic()
    with _cores_shared_by(get_worker().state.nthreads):
        sums, notes = folded(fold, zip(items, values, strict=True), len(items))
    return Added(sums, (notes, time.monotonic() - began))


def note(added: Added[K, V, N]) -> N:
    """Return what was noted of items."""
    return added.note


def merge(fold: Fold[I, K, V, N], earlier: Added[K, V, Any], later: Added[K, V, Any]) -> Added[K, V, None]:
    """Merge the sums of two results of `add`, the earlier first."""
    return Added(fold.merge_sums(earlier.sums, later.sums), None)


def join_sum(fold: Fold[I, K, V, N], bricks: Sequence[V]) -> V:
    """Join the bricks of one sum."""
    return fold.join(bricks)


def sum_of(key: K, whole: Added[K, V, Any]) -> V:
    """Return one sum of all that were added."""
    return whole.sums[key]


def counted() -> tuple[str, dict[str, Traffic]]:
    """Return this process's name and what it has moved."""
    return traffic.PROCESS, traffic.totals()
