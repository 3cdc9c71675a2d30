"""One fold on Dask's workers: each adds and merges a run of items, all merge bricks, and one joins each sum.

Who works on what, and in which order sums are merged, is decided in `cloudem.execution.reduction_tree`.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from cloudem.execution.dask import worker_tasks
from cloudem.execution.dask.broadcast import Spread
from cloudem.execution.dask.connection import scheduler_lost
from cloudem.execution.dask.worker_pool import IN_FLIGHT_PER_THREAD, LOOK_AROUND_S, MERGE_FIRST, WorkerPool
from cloudem.execution.executor import Fold, Shared, itself
from cloudem.execution.reduction_tree import Forest, Roster, Subtree, together_for
from cloudem.execution.task_names import current_label

I = TypeVar("I")
K = TypeVar("K")
V = TypeVar("V")
N = TypeVar("N")

MERGE = "merge"
"""Name of the step in which sums become one."""


class _Held(NamedTuple):
    """A partial sum and the worker that should hold it."""

    start: int
    node: Subtree
    future: Any
    worker: str


@dataclass(frozen=True)
class Folding(Generic[I, K, V, N]):
    """One fold of items on the workers of a pool.

    Attributes
    ----------
    pool
        Who works.
    fold, items, shared
        As for `cloudem.execution.executor.Executor.accumulate`.
    fixed_order
        Whether sums are merged along the same tree whatever the number of workers.
    """

    pool: WorkerPool
    fold: Fold[I, K, V, N]
    items: Sequence[I]
    shared: Callable[[I], Sequence[Shared[Any]]]
    fixed_order: bool

    def run(self, on_done: Callable[[int], None] | None) -> tuple[dict[K, Shared[V]], list[N]]:
        """Add and merge on all workers, merge bricks where they belong, join each sum on one worker."""
        held, notes = self._add(on_done)
        if not self.fixed_order:
            held = self._merge_by_worker(held)
        starts = [part.start for part in held]
        holders: dict[K, dict[int, _Held]] = {}  # in the order in which keys first come
        for index, item in enumerate(self.items):
            number = bisect.bisect_right(starts, index) - 1
            for key in self.fold.keys(item):
                holders.setdefault(key, {})[number] = held[number]
        sums = {key: self._reduce(key, list(parts.values())) for key, parts in holders.items()}
        for whole in sums.values():  # partial sums are needed until then: if some are lost, they are made again
            self.pool.wait(whole.handle)
        return sums, notes

    def _add(self, on_done: Callable[[int], None] | None) -> tuple[list[_Held], list[N]]:
        """Add all items; return what each worker could merge by itself, in the order of the items."""
        from distributed import as_completed

        count, threads = len(self.items), self.pool.threads()
        roster = Roster(count, threads)
        forest: Forest[_Held] = Forest(count, self._merge_held, lambda earlier, later: earlier.worker == later.worker)
        running: dict[Any, tuple[Subtree, str]] = {}
        load: Counter[str] = Counter()
        notes: dict[int, N] = {}
        completed = as_completed(loop=self.pool.client.loop)
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
                for (node, worker), added, note in self._submit_adding(taken):
                    forest.add(node, _Held(node.start, node, added, worker))
                    running[note] = node, worker
                    completed.add(note)
                    del added  # it is freed once it is merged
                while not completed.has_ready() and time.monotonic() < looked + LOOK_AROUND_S:
                    time.sleep(0.01)
                if time.monotonic() >= looked + LOOK_AROUND_S:  # workers come and go
                    threads, looked = self.pool.threads(), time.monotonic()
                for note in completed.next_batch(block=False):
                    node, worker = running[note]
                    found, seconds = self.pool.result(note)
                    del running[note]
                    load[worker] -= 1
                    together = 1 if self.pool.in_this_process else together_for(seconds / len(found))
                    for index, one in enumerate(found, start=node.start):
                        notes[index] = one
                        if on_done is not None:
                            on_done(index)
            return list(forest.nodes().values()), [notes[index] for index in range(count)]
        finally:
            self.pool.drop(list(running))

    def _submit_adding(self, taken: Sequence[tuple[Subtree, str]]) -> Iterator[tuple[tuple[Subtree, str], Any, Any]]:
        """Have workers add the items of nodes; return with each the future of the sums and that of the notes."""
        batches = [self.items[node.start : node.stop] for node, _ in taken]
        values = [[self.shared(item) for item in batch] for batch in batches]
        places = [worker for _, worker in taken]
        needed: dict[Spread, list[str]] = {}
        for worker, mine in zip(places, values, strict=True):
            for handle in {value.handle for some in mine for value in some}:
                if isinstance(handle, Spread):
                    needed.setdefault(handle, []).append(worker)
        for spread, workers in needed.items():  # on all workers at once
            spread.prepare(workers)
        rows = [
            (self.fold, batch, [[self.pool.handle(value, worker) for value in some] for some in mine])
            for batch, worker, mine in zip(batches, places, values, strict=True)
        ]
        added = self.pool.submit_all(worker_tasks.add, rows, places, purpose="bricks")
        of = [(one,) for one in added]
        label = current_label().within("notes")  # a kind of its own, since it takes no time
        noted = self.pool.submit_all(worker_tasks.note, of, places, purpose="poses", priority=MERGE_FIRST, label=label)
        return zip(taken, added, noted, strict=True)

    def _merge_held(self, earlier: _Held, later: _Held) -> _Held:
        """Merge two partial sums where the earlier one is."""
        arguments, worker = (self.fold, earlier.future, later.future), earlier.worker
        merged = self._submit_merging(worker_tasks.merge, *arguments, worker=worker, priority=MERGE_FIRST)
        return _Held(earlier.start, earlier.node.parent, merged, worker)

    def _submit_merging(self, function: Callable[..., Any], *args: Any, worker: str, priority: int = 0) -> Any:
        """Have a task run that is a step of its own, since all folds merge in the same way."""
        label = current_label().within(MERGE)
        return self.pool.submit(function, *args, worker=worker, purpose="bricks", priority=priority, label=label)

    def _merge_by_worker(self, held: Sequence[_Held]) -> list[_Held]:
        """Merge what one worker holds of a run, in any order of addition: fewer bytes, other last bits."""
        merged: list[_Held] = []
        for part in held:
            if merged and merged[-1].worker == part.worker:
                merged[-1] = self._merge_held(merged[-1], part)
            else:
                merged.append(part)
        return merged

    def _reduce(self, key: K, parts: Sequence[_Held]) -> Shared[V]:
        """Have each worker that holds a part merge one brick of all, and join the bricks on the first of them."""
        from cloudem.execution.dask.peer_transfer import HeldPart, Holdings, collect

        if len(parts) == 1:
            place = parts[0].worker
            return Shared(self._submit_merging(worker_tasks.sum_of, key, parts[0].future, worker=place), place)
        for part in parts:
            self.pool.wait(part.future)
        with scheduler_lost():
            holders = self.pool.client.who_has([part.future for part in parts])
        held = []
        for number, part in enumerate(parts):
            node = part.node if self.fixed_order else Subtree(0, number)  # without a fixed order any tree will do
            held.append(HeldPart(node, part.future.key, next(iter(holders.get(part.future.key, ())), part.worker)))
        places = list(dict.fromkeys(part.worker for part in held))
        holdings = self._submit_merging(itself, Holdings(held), worker=places[0])
        count = len(places)
        rows = [(self.fold, key, number, count, holdings) for number in range(count)]
        label = current_label().within(MERGE)
        bricks = self.pool.submit_all(collect, rows, places, purpose="bricks", label=label)
        # whoever loses the sum, or a brick, needs the parts once more
        joined = self._submit_merging(worker_tasks.join_sum, self.fold, bricks, worker=places[0])
        return Shared(joined, places[0], [part.future for part in parts])
