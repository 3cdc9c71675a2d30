"""Jobs of the simulated month: images are scored task by task by the machines that are there, then sums are combined.

No image is computed. A task is a group of images on one thread (or on a GPU); machines take the next task when
they have done one, as cloudem's roster has them do; what a machine was working on is lost with it, and what it did in
this iteration too, unless it handed that on after a notice. Combining sums, solving and writing take all machines'
time. Costs of a task are those measured on one thread, times what `month_truth` says is true.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bars.month_truth import World
from cloudem.cloud.nodes import InstanceType
from cloudem.cloud.planning.calibration import speeds
from cloudem.cloud.planning.estimate import Fleet
from cloudem.jobs.dataset import AHEAD
from cloudem.jobs.refine3d import cost
from cloudem.jobs.refine3d.cost import at_box
from cloudem.jobs.refine3d.job import alignment_needs
from cloudem.runs.controller.steps import How, RunningStep
from cloudem.runs.duration import CACHED_BYTES, IMAGE_BYTES, Work, sizes
from cloudem.runs.fleet_capacity import FleetCapacity, fleet_capacity

HANDED_ON = 0.9
"""How often a machine that was warned hands on what it holds. Supposed; the planner takes 0.8."""

CALM_S = 15.0
"""A loss while sums are combined delays that by so much, and by the machine's tasks. Supposed."""


@dataclass
class Machine:
    """A machine at work.

    Attributes
    ----------
    slots
        Tasks at the same time.
    workers
        Processes that exchange sums: one, or one for each GPU.
    align, other
        Speed of each of them at aligning and at all else, threads of the reference.
    alone
        Of one thread while the others are idle.
    link, reading
        Bytes per second of each process's share of its network, and of each task from object storage.
    """

    name: str
    slots: int
    workers: int
    align: float
    other: float
    alone: float
    link: float
    reading: float
    passes: int = 0
    done: int = 0
    busy: int = 0


def machine(world: World, name: str, kind: InstanceType, work: Work) -> Machine:
    """Return a machine of a type as it truly is."""
    needs = alignment_needs(work.count, work.box, work.group_size, remote=work.remote)
    crew = fleet_capacity(Fleet(kind, 1), needs, work.box if work.settings is not None else 0, speeds())
    if not isinstance(crew, FleetCapacity):
        raise ValueError(f"{kind.name} cannot do it: {crew.reason}")
    slots = crew.threads
    own = world.machine(name)
    other = own * world.speed(kind, slots) / world.factor("crowd")
    align = own * world.gpu(kind) if crew.gpu is not None else other
    link = world.factor("link") * max(kind.network_Gbps, 0.1) * 1e9 / 8
    return Machine(
        name, slots, crew.share, align, other, own * world.speed(kind, 1), link / crew.share,
        min(AHEAD * world.reading(), link / slots),
    )  # fmt: skip


class Task(NamedTuple):
    """When a slot of a machine ends its task."""

    at: float
    machine: str


@dataclass
class Alignment(RunningStep):
    """A refinement, or a reconstruction, in simulated time: a step whose progress somebody looks after (`advance`).

    Parameters
    ----------
    work
        What is done.
    begun
        Iterations that were committed before; changed as it goes on.
    """

    job: str
    name: str
    world: World
    work: Work
    now: float
    head_speed: float
    begun: list[float] = field(default_factory=list)
    machines: dict[str, Machine] = field(default_factory=dict)
    how: How | None = None
    ended: float = math.inf

    def __post_init__(self) -> None:
        self._costs = self.world.particle_s(self.work, self.name)
        self._items = cost.items_of(self.work.count, self.work.group_size)
        self._scale = self.world.cost(self.work.box)
        self._stop = False
        self._seconds: dict[tuple[str, bool, int], float] = {}
        self._events: list[Task] = []
        self._left = self._items
        self._began = self.now
        self._combined = math.inf
        start = self._scale * cost.START_S / self.head_speed
        self._starts = self.now + start

    # --- As its controller sees it ---------------------------------------------------------------------------------

    @property
    def progress(self) -> tuple[str, ...]:
        """What it would say."""
        return (f"iteration {len(self.begun) + 1} of {len(self._costs)}",)

    def poll(self) -> How | None:
        """Return how it ended."""
        return self.how if self.now >= self.ended else None

    def iteration_s(self) -> float:
        """Return the longest finished iteration."""
        return max(self.begun, default=0.0)

    def ask_to_stop(self) -> None:
        """Stop after the running iteration."""
        self._stop = True

    def interrupt(self) -> None:
        """Stop now."""
        if self.how is None:
            self.how, self.ended = "stopped", self.now

    kill = interrupt

    # --- As the simulation drives it -------------------------------------------------------------------------------

    def join(self, at: float, machine: Machine) -> None:
        """Let a machine work from now on."""
        self.advance(at)
        self.machines[machine.name] = machine
        self._assign(max(at, self._starts))

    def leave(self, at: float, name: str, handed_on: bool) -> None:
        """Lose a machine, and what it did, unless that was handed on."""
        self.advance(at)
        gone = self.machines.pop(name, None)
        if gone is None or self.how is not None:
            return
        self._events = [task for task in self._events if task.machine != name]
        heapq.heapify(self._events)
        lost = 0 if handed_on else gone.done
        self._left += gone.busy + lost
        if self._combined < math.inf:
            self._combined = math.inf if lost or not self.machines else self._combined + CALM_S
        self._assign(at)

    def advance(self, to: float) -> None:
        """Go on until a time."""
        while self.how is None:
            if self._combined < math.inf:
                if self._combined > to:
                    break
                self._finish(self._combined)
            elif self._events and self._events[0].at <= to:
                at, name = heapq.heappop(self._events)
                self.machines[name].busy -= 1
                self.machines[name].done += 1
                self._assign(at)
            else:
                break
        self.now = max(self.now, to)

    def _assign(self, at: float) -> None:
        """Give tasks to idle slots; when all are done, sums are combined."""
        if self.how is not None or self._combined < math.inf:
            return
        for one in self.machines.values():
            while self._left and one.busy < one.slots:
                one.busy += 1
                self._left -= 1
                heapq.heappush(self._events, Task(at + self._cached_task_s(one), one.name))
        if not self._left and not self._events and self.machines:
            self._combined = at + self._combining_s()

    @property
    def _costs_now(self) -> tuple[float, int, int]:
        return self._costs[len(self.begun)]

    def _cached_task_s(self, one: Machine) -> float:
        key = one.name, one.passes == 0, len(self.machines)
        if key not in self._seconds:
            self._seconds[key] = self._task_s(one)
        return self._seconds[key]

    def _task_s(self, one: Machine) -> float:
        particle, k_insert, _ = self._costs_now
        work, images = self.work, self.work.count / self._items
        leaf = self._scale * at_box(cost.LEAF, work.box) * (k_insert / (work.box / 2)) ** 3
        seconds = images * particle / one.align + leaf / one.other
        if not self.begun and work.settings is not None:
            seconds += self._scale * images * cost.PASS_S * (work.box / 128) ** 2 / one.other
        share = IMAGE_BYTES * work.box**2 * work.count / len(self.machines)
        if work.remote and (share > CACHED_BYTES or one.passes == 0):  # it reads ahead while it computes
            seconds = max(seconds, IMAGE_BYTES * work.box**2 * images / one.reading)
        return seconds

    def _combining_s(self) -> float:
        """Return seconds from the last task to the iteration's end."""
        work, number = self.work, sum(one.workers for one in self.machines.values())
        _, k_insert, k_reference = self._costs_now
        size = k_insert / (work.box / 2 - 1)
        crew = list(self.machines.values())
        alone, link = min(one.alone for one in crew), min(one.link for one in crew)
        halves = 1 if sum(one.slots for one in crew) > 1 else 2
        solving = self.world.factor("solving") * halves * at_box(cost.SOLVE, work.box) * (0.5 + 0.5 * size**3) / alone
        merging = self._scale * at_box(cost.MERGE, work.box) * size**3 / alone
        seconds = (
            solving + merging * math.log2(max(self._items / number, 2)) + cost.POSE_S * work.count / self.head_speed
        )
        tasks = 2.5 * self._items + 12 * number * math.log2(number + 1)
        seconds += self.world.factor("scheduler") * 1.5e-3 * tasks / self.head_speed
        if number > 1:
            sums, _, reference = sizes(work.box, work.symmetry, number, work.count)
            moved = 2 * sums * size**3 + reference * (2 * k_reference / work.box) ** 3 * (1 + math.log2(number))
            seconds += (moved + cost.POSE_BYTES * work.count * (1 + math.log2(number))) / link
            seconds += 2 * merging * math.log2(number)
        return seconds + self.world.factor("storing") * (0.6 + 16 * work.box**3 / 150e6 + 600 * work.count / 150e6)

    def _finish(self, at: float) -> None:
        """Commit the iteration and begin the next one, or end."""
        self.begun.append(at - self._began)
        self._began, self._combined, self._left = at, math.inf, self._items
        for one in self.machines.values():
            one.passes, one.done, one.busy = one.passes + 1, 0, 0
        self._events, self._seconds = [], {}
        if len(self.begun) == len(self._costs):
            last = self._scale * cost.FINISH_S * self.work.box**3 / self.head_speed
            self.how, self.ended = "done", at + last
        elif self._stop:
            self.how, self.ended = "stopped", at
        else:
            self._assign(at)


@dataclass
class OnHead(RunningStep):
    """A step on the head: it takes its time."""

    job: str
    ended: float
    how: How | None = None
    machines: Mapping[str, Machine] = field(default_factory=dict)

    @property
    def progress(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def poll(self) -> How | None:
        """Return how it ended."""
        return self.how

    def iteration_s(self) -> float:
        """Return 0: it has no iterations."""
        return 0.0

    def ask_to_stop(self) -> None:
        """Stop now: it begins again."""
        self.how = self.how or "stopped"

    interrupt = kill = ask_to_stop

    def join(self, at: float, machine: Machine) -> None:
        """Nobody helps."""

    def leave(self, at: float, name: str, handed_on: bool) -> None:
        """Nobody is missed."""

    def advance(self, to: float) -> None:
        """Go on until a time."""
        if self.how is None and to >= self.ended:
            self.how = "done"
