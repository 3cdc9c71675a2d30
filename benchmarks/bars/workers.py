"""The model of an iteration on many workers: measured costs of tasks, the bytes that are moved, and who waits for whom.

A worker is one thread with a link of its own. Times are seconds of the critical path; what others do meanwhile is not
added. Nothing here is measured; what is, comes in as `Costs`.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloudem.algorithms.transport import (
    MAP_BYTES,
    IterationSizes,
    merging_seconds,
    relion_bytes,
    seconds,
    spreading_seconds,
)
from cloudem.execution.reduction_tree import Roster, Subtree, Tasks, task_counts, together_for
from cloudem.jobs.refine3d.cost import items_of

IMAGE_BYTES = 2
"""Of a pixel: images are stored as float16."""

GROUP_SIZE = 500
"""Particles of an item, at least."""

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
def shared_out(items: int, workers: int, together: int, spread: float) -> tuple[float, dict[Subtree, int]]:
    """Let workers take items as `cloudem.execution.dask` lets them.

    Returns
    -------
    Time until the last is done, in times of an item, and the tasks with the worker of each.
    """
    random = np.random.default_rng(workers)
    takes = np.maximum(random.normal(1, spread, items), 0.2)
    roster = Roster(items, dict.fromkeys(range(workers), 1))
    whose: dict[Subtree, int] = {}
    free = [(0.0, worker) for worker in range(workers)]
    queue: dict[int, list[Subtree]] = {worker: [] for worker in range(workers)}
    for _ in range(AHEAD - 1):
        for worker in range(workers):
            if (node := roster.take(worker)) is not None:  # how long items take is not known yet
                queue[worker].append(node)
    end = 0.0
    heapq.heapify(free)
    while free:
        now, worker = heapq.heappop(free)
        if (node := roster.take(worker, together)) is not None:
            queue[worker].append(node)
        if not queue[worker]:
            continue
        node = queue[worker].pop(0)
        whose[node] = worker
        done = now + float(takes[node.start : node.stop].sum())
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    return end, whose


@functools.cache
def counted(items: int, workers: int, together: int, spread: float) -> Tasks:
    """Return the tasks of an iteration: its fold, and what is spread, solved and written."""
    _, whose = shared_out(items, workers, together, spread)
    keys = [2 * index // items for index in range(items)]
    tasks = task_counts(keys, whose)
    readers = {(keys[item], worker) for node, worker in whose.items() for item in range(node.start, node.stop)}
    more = {"spread": 2 * len(readers), "solve": 2 + 2 + 1 + 2}  # of references a copy, and what is made of it
    return Tasks({**tasks.counts, **more}, tasks.parts)


def tasks_of(it: IterationSizes, particles: int, costs: Costs, speed: float = 1.0) -> Tasks:
    """Return the tasks that the scheduler is given in an iteration."""
    items = items_of(particles, GROUP_SIZE)
    return counted(items, it.workers, together_for(item_seconds(particles, costs, speed)), costs.spread)


def item_seconds(particles: int, costs: Costs, speed: float) -> float:
    """Return how long an item takes."""
    return (costs.particle * particles / items_of(particles, GROUP_SIZE) + costs.leaf) / speed


def scheduler_seconds(counts: Mapping[str, int], costs: Costs) -> float:
    """Return the scheduler's CPU-seconds."""
    known = {name: number for name, number in counts.items() if name in costs.task}
    rest = sum(counts.values()) - sum(known.values())
    return sum(costs.task[name] * number for name, number in known.items()) + costs.task["note"] * rest


def iteration(
    it: IterationSizes, particles: int, costs: Costs, bandwidth: float, speed: float = 1.0
) -> dict[str, float]:
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
    items, workers = items_of(particles, GROUP_SIZE), it.workers
    leaf = item_seconds(particles, costs, speed)
    end, _ = shared_out(items, workers, together_for(leaf), costs.spread)
    mean = items / workers
    reading = IMAGE_BYTES * it.box**2 * particles / workers / bandwidth
    share = max(leaf * mean, reading)
    tasks = tasks_of(it, particles, costs, speed)
    own_merges = math.ceil(math.log2(max(mean, 1))) * costs.merge  # those after its last item
    handed = spreading_seconds(it.reference_bytes, bandwidth, it.holders)
    table = 2 * math.log2(workers) * costs.pose_bytes * particles / bandwidth if workers > 1 else 0.0
    merging = own_merges
    if it.holders > 1:
        merging += merging_seconds(
            it.sum_bytes, tasks.parts * it.part_bytes, bandwidth, tasks.parts * costs.merge, it.holders
        )
    maps = 2 * MAP_BYTES * it.box**3 / bandwidth if workers > 1 else 0.0
    return {
        "aligning": share,
        "waiting for the last": max(end * leaf - share, 0.0),
        "reference to all": handed + table + costs.ready / speed,
        "merging": merging,
        "solving": costs.solve / speed * (2 if workers == 1 else 1) + maps,
        "poses in the client": costs.pose * particles,
        "scheduler": scheduler_seconds(tasks.counts, costs),
    }


def ways(it: IterationSizes, bandwidth: float) -> dict[str, float]:
    """Return the seconds in which others would merge: sums in double precision over the half-cube."""
    return seconds(relion_bytes(it.k_insert), it.holders, bandwidth)
