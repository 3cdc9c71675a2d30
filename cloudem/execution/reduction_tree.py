"""The order in which partial sums are merged, and who works on which items: pure decisions, free of Dask.

Sums are merged along a fixed binary tree over the items: node (level, place) holds the items ``place * 2**level`` up to
``(place + 1) * 2**level``. The tree depends on the number of items alone, so a sum is the same to the bit on one
core and on any cluster, whoever works on what and finishes first. Each worker is given a run of consecutive items,
whose nodes it merges by itself; only what is left at the top of a run, one node where runs are aligned with the tree,
is cut into bricks and crosses the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")
W = TypeVar("W", bound=Hashable)

TASK_S = 10.0
"""How long a task of several items may take, seconds."""

MOST_TOGETHER = 8
"""Items of a task."""

ANY_NUMBER = 1 << 62
"""Of items, for a `Forest` that waits for every sibling, whether there is one or not."""


class Subtree(NamedTuple):
    """Items ``place * 2**level`` up to ``(place + 1) * 2**level``, as far as there are any."""

    level: int
    place: int

    @property
    def start(self) -> int:
        """First item."""
        return self.place << self.level

    @property
    def stop(self) -> int:
        """Item after the last."""
        return (self.place + 1) << self.level

    @property
    def parent(self) -> Subtree:
        """The node that this one is merged into."""
        return Subtree(self.level + 1, self.place >> 1)

    @property
    def sibling(self) -> Subtree:
        """The node that it is merged with."""
        return Subtree(self.level, self.place ^ 1)


class Forest(Generic[V]):
    """Grows the tree over a number of items from nodes as they come, and keeps those that wait for their sibling.

    Parameters
    ----------
    count
        Number of items.
    merge
        ``merge(earlier, later)``; called as soon as both are there.
    may_merge
        Whether two siblings may be merged now; by default always.
    """

    def __init__(
        self, count: int, merge: Callable[[V, V], V], may_merge: Callable[[V, V], bool] = lambda earlier, later: True
    ) -> None:
        self._count = count
        self._merge = merge
        self._may_merge = may_merge
        self._waiting: dict[Subtree, V] = {}

    def add(self, node: Subtree, value: V) -> None:
        """Put a node in, and merge upwards as far as it goes."""
        while True:
            sibling = node.sibling
            if sibling.start >= self._count:  # nothing will ever come from there
                if node.place == 0:
                    break
            elif sibling in self._waiting and self._may_merge(*self._ordered(node, value)):
                earlier, later = self._ordered(node, value)
                del self._waiting[sibling]
                value = self._merge(earlier, later)
                del earlier, later
            else:
                break
            node = node.parent
        self._waiting[node] = value

    def _ordered(self, node: Subtree, value: V) -> tuple[V, V]:
        other = self._waiting[node.sibling]
        return (other, value) if node.place % 2 else (value, other)

    def nodes(self) -> dict[Subtree, V]:
        """Return what is left, in the order of the items; one node if all was merged."""
        return {node: self._waiting[node] for node in sorted(self._waiting, key=lambda node: node.start)}


def merged(nodes: Mapping[Subtree, V], merge: Callable[[V, V], V]) -> V:
    """Merge all nodes that hold a key into one.

    Where a node is absent, because there is no such item or none of its items holds the key, its sibling goes up
    unmerged.
    """
    left = dict(nodes)
    while True:
        forest: Forest[V] = Forest(ANY_NUMBER, merge)
        for node in list(left):
            forest.add(node, left.pop(node))
        left = forest.nodes()
        if len(left) == 1:
            return next(iter(left.values()))
        lowest = min(node.level for node in left)
        left = {node.parent if node.level == lowest else node: value for node, value in left.items()}


def runs(count: int, threads: Mapping[W, int]) -> dict[W, range]:
    """Give each worker a run of consecutive items, in proportion to its threads.

    Limits are moved to the widest nodes that shift no more than a sixteenth of a worker's share: the fewer nodes a run
    ends in, the fewer bytes cross the network.
    """
    total = sum(threads.values())
    edges, seen = [0], 0
    for worker, number in threads.items():
        seen += number
        edges.append(_aligned(count * seen / total, count * number / total / 16) if seen < total else count)
        edges[-1] = max(edges[-1], edges[-2])
        del worker
    return {worker: range(*pair) for worker, pair in zip(threads, itertools.pairwise(edges), strict=True)}


def _aligned(position: float, slack: float) -> int:
    """Return the multiple of the highest power of two within ``slack`` of a position, else the nearest integer."""
    step = 1
    while abs(round(position / (2 * step)) * 2 * step - position) <= slack:
        step *= 2
    return round(position / step) * step


def together_for(seconds: float) -> int:
    """Return how many items, each of so many seconds, a task should have: few seconds of work, for what a task costs.

    Between one and `MOST_TOGETHER`, so that progress shows and little is lost with a worker.
    """
    return max(min(int(TASK_S / max(seconds, 1e-9)), MOST_TOGETHER), 1)


def first_node(run: range, together: int, threads: int) -> Subtree:
    """Return what a thread takes of a run: the widest node at its beginning that holds ``together`` items or fewer.

    Half a thread's share of the run at most, so that all threads of a worker end at about the same time.
    """
    most = min(together, len(run) // (2 * threads))
    level = 0
    while 2 << level <= most and run.start % (2 << level) == 0:
        level += 1
    return Subtree(level, run.start >> level)


class Roster(Generic[W]):
    """Hands out items: each worker its own run first, then, when that is done, the far half of the longest one left."""

    def __init__(self, count: int, threads: Mapping[W, int]) -> None:
        self._left: dict[W, range] = runs(count, threads)
        self._threads = dict(threads)

    def __len__(self) -> int:
        """Return how many items have not been handed out."""
        return sum(len(run) for run in self._left.values())

    def take(self, worker: W, together: int = 1) -> Subtree | None:
        """Return the next items for a worker, whether known before or not; None when all are out.

        They are all items of a node of the tree: ``together`` of them, or fewer (:func:`first_node`).
        """
        mine = self._left.get(worker, range(0))
        if not mine:
            other = max(self._left, key=lambda w: len(self._left[w]))
            theirs = self._left[other]
            if not theirs:
                return None
            middle = theirs.start + len(theirs) // 2
            self._left[other], mine = range(theirs.start, middle), range(middle, theirs.stop)
        node = first_node(mine, together, self._threads.get(worker, 1))
        self._left[worker] = range(node.stop, mine.stop)
        return node


def copied_from(number: int) -> int:
    """Return from which copy of a shared value copy ``number`` is made: a binary tree, whose root is copy 0."""
    return (number - 1) // 2


class Tasks(NamedTuple):
    """What a scheduler is given for a fold.

    Attributes
    ----------
    counts
        Tasks of each kind.
    parts
        Partial sums of a key that each of its holders is left with, on the mean: 1 where runs end at nodes of the tree.
    """

    counts: Mapping[str, int]
    parts: float


def task_counts(keys: Sequence[Hashable], workers: Mapping[Subtree, Hashable]) -> Tasks:
    """Return which tasks a scheduler is given for a fold.

    Parameters
    ----------
    keys
        Sum to which each item adds.
    workers
        Nodes of the tree as they are handed out, all items of each being one task, and the worker of each.
    """
    merges = 0

    def merge(earlier: Hashable, later: Hashable) -> Hashable:
        nonlocal merges
        merges += 1
        return earlier

    forest: Forest[Hashable] = Forest(len(keys), merge, lambda earlier, later: earlier == later)
    for node, worker in workers.items():
        forest.add(node, worker)
    parts: dict[Hashable, list[Hashable]] = {}
    for node, worker in forest.nodes().items():
        for key in dict.fromkeys(keys[node.start : node.stop]):
            parts.setdefault(key, []).append(worker)
    counts = {"add": len(workers), "note": len(workers), "merge": merges, "holdings": 0, "collect": 0, "join": 0}
    counts["sum"] = sum(len(holders) == 1 for holders in parts.values())
    for holders in parts.values():
        if len(holders) > 1:
            counts["holdings"] += 1
            counts["collect"] += len(set(holders))
            counts["join"] += 1
    return Tasks(counts, sum(map(len, parts.values())) / sum(len(set(holders)) for holders in parts.values()))
