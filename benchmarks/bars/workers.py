"""The model of an iteration on many workers: measured costs of tasks, the bytes that are moved, and who waits for whom.

A worker is one thread with a link of its own. Times are seconds of the critical path; what others do meanwhile is not
added. Nothing here is measured; what is, comes in as `Costs`.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloudem.algorithms.transport import MAP_BYTES, Iteration, relion_bytes, seconds
from cloudem.execution.folding import GROUP, Roster, task_counts
from cloudem.jobs.dataset import MOST_GROUPS

IMAGE_BYTES = 2
"""Of a pixel: images are stored as float16."""

AHEAD = 2
"""Items that a worker of one thread is given at a time."""

PARTS = (
    "aligning", "waiting for the last", "reference to all", "merging", "solving", "poses in the client", "scheduler",
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """Measured, or extrapolated to the box of the model.

    Attributes
    ----------
    particle
        CPU-seconds of aligning a particle.
    leaf
        Of an item besides its particles: clear and pack an accumulator, seconds.
    merge
        Of adding two partial sums, seconds.
    solve
        From the sums to the next reference, one after another on the worker that solves, seconds.
    ready
        Of unpacking the reference on each worker, seconds.
    pose, pose_bytes
        CPU-seconds of a particle's pose in the client, and bytes of the table that each worker gets.
    task
        CPU-seconds of the scheduler by kind of task.
    spread
        Standard deviation of the time of items, as a share of it.
    """

    particle: float
    leaf: float
    merge: float
    solve: float
    ready: float
    pose: float
    pose_bytes: float
    task: Mapping[str, float]
    spread: float = 0.05


@functools.cache
def shared_out(items: int, workers: int, spread: float) -> tuple[float, tuple[int, ...]]:
    """Let workers take items as `cloudem.execution.dask` lets them.

    Returns
    -------
    Time until the last is done, in times of an item, and the worker of each item.
    """
    random = np.random.default_rng(workers)
    takes = np.maximum(random.normal(1, spread, items), 0.2)
    roster = Roster(items, dict.fromkeys(range(workers), 1))
    whose = [0] * items
    free = [(0.0, worker) for worker in range(workers)]
    queue: dict[int, list[int]] = {worker: [] for worker in range(workers)}
    for _ in range(AHEAD - 1):
        for worker in range(workers):
            if (index := roster.take(worker)) is not None:
                queue[worker].append(index)
    end = 0.0
    heapq.heapify(free)
    while free:
        now, worker = heapq.heappop(free)
        if (index := roster.take(worker)) is not None:
            queue[worker].append(index)
        if not queue[worker]:
            continue
        index = queue[worker].pop(0)
        whose[index] = worker
        end = max(end, now + takes[index])
        heapq.heappush(free, (now + takes[index], worker))
    return end, tuple(whose)


def items_of(particles: int, size: int = 500) -> int:
    """Return the items of both half-sets (:func:`cloudem.jobs.dataset.groups_of`)."""
    each = min(max(particles // 2 // size, 4), MOST_GROUPS)
    return 2 * (1 << (each.bit_length() - 1))


@functools.cache
def counted(items: int, workers: int, spread: float) -> Counter[str]:
    """Return the tasks of an iteration: its fold, and what is spread, solved and written."""
    _, whose = shared_out(items, workers, spread)
    keys = [2 * index // items for index in range(items)]
    counts = Counter(task_counts(keys, whose))
    models = sum(len({whose[i] for i in range(items) if keys[i] == half}) for half in (0, 1))
    counts["spread"] = 2 * workers + 2 * models  # table and references: a copy, and what is made of it
    counts["solve"] = 2 + 2 + 1 + 2
    return counts


def tasks_per_iteration(items: int, workers: int, spread: float = 0.0) -> int:
    """Return how many tasks the scheduler is given in an iteration."""
    return sum(counted(items, workers, spread).values())


def scheduler_seconds(counts: Counter[str], costs: Costs) -> float:
    """Return the scheduler's CPU-seconds; a merged brick costs by the parts that it depends on, which are the cuts."""
    known = {name: number for name, number in counts.items() if name in costs.task}
    rest = sum(counts.values()) - sum(known.values())
    return sum(costs.task[name] * number for name, number in known.items()) + costs.task["note"] * rest


def iteration(it: Iteration, particles: int, costs: Costs, bandwidth: float, speed: float = 1.0) -> dict[str, float]:
    """Return the seconds of the parts of an iteration.

    Parameters
    ----------
    it
        Box, shells and number of workers.
    particles
        In both half-sets.
    costs
        Measured ones.
    bandwidth
        Of each link and direction, bytes per second.
    speed
        Of aligning, solving and unpacking on a worker, in those measured.
    """
    items, workers = items_of(particles), it.workers
    leaf = (costs.particle * particles / items + costs.leaf) / speed
    end, _ = shared_out(items, workers, costs.spread)
    mean = items / workers
    reading = IMAGE_BYTES * it.box**2 * particles / workers / bandwidth
    share = max(leaf * mean, reading)
    counts = counted(items, workers, costs.spread)
    own_merges = math.ceil(math.log2(max(mean, 1))) * costs.merge  # those after its last item
    depth = math.log2(max(it.holders, 1))
    # a copy serves two others over the same link
    handed = 2 * depth * it.reference_bytes / bandwidth
    table = 2 * math.log2(workers) * costs.pose_bytes * particles / bandwidth if workers > 1 else 0.0
    merging = own_merges + merge_seconds(it, counts, costs, bandwidth)
    maps = 2 * MAP_BYTES * it.box**3 / bandwidth if workers > 1 else 0.0
    return {
        "aligning": share,
        "waiting for the last": max(end * leaf - share, 0.0),
        "reference to all": handed + table + costs.ready / speed,
        "merging": merging,
        "solving": costs.solve / speed * (2 if workers == 1 else 1) + maps,
        "poses in the client": costs.pose * particles,
        "scheduler": scheduler_seconds(counts, costs),
    }


def merge_seconds(it: Iteration, counts: Counter[str], costs: Costs, bandwidth: float) -> float:
    """Return how long bricks take through the busiest links: of those who merge them, and of the one who joins them.

    On each level of groups a worker receives what amounts to one sum, on the first one for each part that it holds.
    """
    if it.holders == 1:
        return 0.0
    fan = min(it.holders, GROUP)
    parts = counts["cut"] / 2 / fan / it.holders  # of a holder
    levels = math.ceil(math.log(it.holders) / math.log(fan) - 1e-9)
    first = parts * (it.part_bytes / bandwidth + costs.merge)
    return first + (levels - 1) * (it.sum_bytes / bandwidth + costs.merge) + it.sum_bytes / bandwidth  # and the join


def ways(it: Iteration, bandwidth: float) -> dict[str, float]:
    """Return the seconds in which others would merge: sums in double precision over the half-cube."""
    return seconds(relion_bytes(it.k_insert), it.holders, bandwidth)
