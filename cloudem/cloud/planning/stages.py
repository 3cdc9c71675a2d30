"""How long the stages of a job take on a fleet, and what the planner knows of the job as a step of a workflow."""

from __future__ import annotations

import math
from functools import partial

from cloudem.cloud.planning.calibration import Speeds
from cloudem.cloud.planning.capacity import FleetCapacity, fleet_capacity
from cloudem.cloud.planning.estimate import Duration, Fleet, Range, Refusal, StepEstimate
from cloudem.cloud.planning.work import GIB, Stage, Work

START_S = 6.0
"""A job without its stages: its start. Seconds, measured."""

OBJECT_BYTES = 32 << 20
"""Of an object of a store, or of what one request reads."""

OVERHEAD_REQUESTS = 20.0, 50.0
"""Objects that any job writes and reads: records, tables, its lease."""

CONTENTION = 1.08
"""Wall time of tasks side by side over their CPU time. Measured with two threads."""

TASK_S = 2e-3
"""Of the scheduler for one task, seconds on one thread: measured 0.6 to 1.3 ms; the rest is the client's."""


def step_estimate(name: str, work: Work, speeds: Speeds) -> StepEstimate:
    """Return a job as the planner sees it."""
    written = work.disk_bytes
    read = sum(stage.items * stage.read_bytes * stage.passes for stage in work.stages)
    client = work.base_bytes if work.client_bytes is None else work.client_bytes
    return StepEstimate(
        name,
        partial(on_fleet, work=work, speeds=speeds),
        most=work.tasks,
        on_head=not work.parallel,
        head_GiB=client / GIB if work.parallel else 0.0,
        puts=OVERHEAD_REQUESTS[0] + written / OBJECT_BYTES if work.puts is None else work.puts,
        gets=OVERHEAD_REQUESTS[1] + read / OBJECT_BYTES if work.gets is None else work.gets,
        stored_GiB=written / GIB,
        result_GiB=work.result_bytes / GIB,
        notes=work.notes,
    )


def on_fleet(fleet: Fleet, work: Work, speeds: Speeds) -> Duration | Refusal:
    """Return how long a fleet takes, or why it cannot do it."""
    capacity = fleet_capacity(fleet, work, speeds)
    if isinstance(capacity, Refusal):
        return capacity
    return duration_of(work, capacity) if work.model is None else work.model(capacity)


def duration_of(work: Work, capacity: FleetCapacity) -> Duration:
    """Return how long stages take that exchange nothing with each other: their sum.

    Costs of the stages and speeds of the machines are independent of each other, so that their factors are added in
    quadrature.
    """
    parts = {"start": START_S / capacity.speed(1)}
    spreads = {"start": 1.0}
    for stage in work.stages:
        parts[stage.name] = parts.get(stage.name, 0.0) + seconds_of(stage, capacity)
        spreads[stage.name] = max(spreads.get(stage.name, 1.0), stage.spread)
    whole = sum(parts.values())
    share = sum(parts[name] * math.log(spreads[name]) for name in parts) / whole
    spread = math.exp(math.hypot(share, math.log(capacity.spread if work.parallel else capacity.row.spread**0.5)))
    longest = max(parts, key=lambda name: parts[name])
    most = max((stage for stage in work.stages if stage.parallel), key=lambda stage: stage.seconds, default=None)
    lost = parts[most.name] / max(most.passes, 1) / 2 if most is not None else 0.0
    return Duration(
        Range.within(whole, spread), longest, parts, capacity.measured, capacity.memory_GiB, capacity.gpu_GiB,
        lost_s=lost, tasks=capacity.tasks * capacity.share,
    )  # fmt: skip


def seconds_of(stage: Stage, capacity: FleetCapacity) -> float:
    """Return the wall seconds of a stage: its tasks in waves, or its reading where that takes longer."""
    if not stage.parallel:
        reading = stage.items * stage.passes * stage.read_bytes / capacity.reading
        return stage.seconds / capacity.speed(1) + reading
    busy = min(stage.tasks, capacity.threads)
    waves = math.ceil(stage.tasks / capacity.threads)
    if capacity.gpu is not None and stage.gpu_s is not None:
        item = stage.gpu_s / capacity.gpu.core
    else:
        item = stage.cpu_s / capacity.speed(busy) * (CONTENTION if busy > 1 else 1.0)
    working = waves * item * stage.items / stage.tasks
    reading = stage.items * stage.read_bytes / capacity.machines / capacity.reading
    return stage.passes * (max(working, reading) + TASK_S * stage.tasks)
