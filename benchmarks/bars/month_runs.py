"""Runs of the simulated month: cloudem's planner and controller as they are, a simulated cloud, simulated jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from bars.month_job import HANDED_ON, Alignment, OnHead, machine
from bars.month_market import RecordedMonth
from bars.month_truth import World
from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import Entry, worst_overshoot
from cloudem.cloud.nodes import HEAD, Node
from cloudem.cloud.planning.calibration import speeds
from cloudem.cloud.planning.choices import DISK_GIB
from cloudem.cloud.planning.plan import Plan, plan
from cloudem.cloud.planning.work import Size
from cloudem.cloud.reconcile import Attempt
from cloudem.errors import ProviderError
from cloudem.jobs.base import find_job
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.duration import Alignment as Particles
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.runs.controller.loop import Controller
from cloudem.runs.controller.steps import RunningStep as Running
from cloudem.runs.records import LATENCY_S, RunRecord, RunState, RunStore, Wishes
from cloudem.runs.submit import head_request, new_run, resume
from cloudem.runs.workflow import Step, Workflow
from cloudem.runs.workload import Given, step_estimates
from cloudem.testing.simulated_cloud import Clock, Fault, MemoryProvider

BEGIN = 1.7e9
"""First second of the month."""

QUOTAS: Mapping[tuple[str, str], float] = {
    ("standard", "on-demand"): 640, ("standard", "spot"): 1280, ("G", "on-demand"): 256, ("G", "spot"): 256,
    ("P", "on-demand"): 192, ("P", "spot"): 192,
}  # fmt: skip
"""vCPUs that the account may have. Supposed."""

FAULTS = {"throttled": 0.01, "failed": 0.003, "lost": 0.003}
"""Share of the provider's calls that go wrong. Supposed."""

TICK_S, LONGEST_TICK_S = 5.0, 30.0
"""Pause between two ticks: the controller's own near a limit or where something begins or ends, longer in between."""

NEAR_S = 900.0
"""Nearer than that to a limit the controller ticks as often as it really does."""

LAUNCHES = 4
"""A run that was stopped is resumed with more money and time, so that it is known what it would have taken."""


@dataclass(frozen=True)
class Spec:
    """A workflow: what is done, on what, where, when, and within which limits.

    Attributes
    ----------
    slack
        Deadline over the time of the fastest plan that costs at most twice the cheapest.
    cap
        Cap over the upper end of the plan's cost, or over what it expects where the cap is meant to be hit (`tight`).
    """

    number: int
    seed: str
    particles: Size
    symmetry: str
    kind: str
    region: str
    at: float
    slack: float
    tight: bool
    cap: float


REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "eu-central-1")
BOXES = {64: 5, 96: 8, 128: 12, 192: 15, 256: 25, 320: 12, 384: 13, 512: 10}
SYMMETRIES = {"C1": 50, "C2": 20, "D2": 15, "O": 15}
KINDS = {"refine": 60, "refine, mask": 25, "reconstruct, refine": 15}


def spec_of(number: int, seed: int) -> Spec:
    """Draw a workflow."""
    world = World(f"{seed}/{number}")
    chance = world.random("workflow")
    box = chance.choices(list(BOXES), list(BOXES.values()))[0]
    count = round(math.exp(chance.uniform(math.log(5e3), math.log(1e6))))
    tight = chance.random() < 0.2
    return Spec(
        number,
        world.seed,
        Size(count, (box, box), round(chance.uniform(0.7, 1.4) * max(1.0, 200 / box), 3)),
        chance.choices(list(SYMMETRIES), list(SYMMETRIES.values()))[0],
        chance.choices(list(KINDS), list(KINDS.values()))[0],
        chance.choice(REGIONS),
        BEGIN + chance.uniform(0.0, 30 * 86400),
        math.exp(chance.uniform(math.log(1.2), math.log(5.0))),
        tight,
        chance.uniform(0.3, 0.9) if tight else chance.uniform(1.0, 2.0),
    )


def workflow_of(spec: Spec) -> Workflow:
    """Return it as cloudem knows workflows."""
    project, diameter = "s3://month/project", 0.6 * spec.particles.box * spec.particles.pixel_size
    known = {"particles": f"{project}/particles.zarr", "symmetry": spec.symmetry}
    refine = known | {"reference": f"{project}/start.mrc", "diameter_A": diameter, "out": f"{project}/refine"}
    steps = [("refine", "refine3d", refine)]
    if spec.kind == "reconstruct, refine":
        steps = [
            ("reconstruct", "reconstruct", known | {"out": f"{project}/first", "diameter_A": diameter}),
            ("refine", "refine3d", refine | {"local": True}),
        ]
    if spec.kind == "refine, mask":
        steps.append(("mask", "mask", {"map": f"{project}/refine", "out": f"{project}/mask.mrc"}))
    steps.append(("sharpen", "postprocess", {"halves": f"{project}/refine", "out": f"{project}/sharpened"}))
    made = tuple(Step(name, find_job(job)(**values)) for name, job, values in steps)
    return Workflow(project, "month", spec.region, made)


def works_of(spec: Spec, workflow: Workflow) -> dict[str, Particles | None]:
    """Return the steps' work by name; None for those on the head."""
    return {
        step.name: step.job.alignment(spec.particles) if isinstance(step.job, Refine3D | Reconstruct) else None
        for step in workflow.steps
    }


def planned(spec: Spec, workflow: Workflow, catalogue: Catalogue) -> tuple[Plan, float]:
    """Return the plan under the deadline, and the deadline in hours."""
    particles = spec.particles
    given = Given(particles.count, particles.box, particles.pixel_size)
    steps = [replace(stage, estimate=cache(stage.estimate)) for stage in step_estimates(workflow, speeds(), given)]

    def make(max_hours: float | None) -> Plan:
        return plan(steps, catalogue, region=spec.region, now=spec.at, max_hours=max_hours, quotas=QUOTAS)

    free = make(None)
    dear = 2 * free.usd.expected
    quick = min(other.wall.expected for other in free.alternatives if other.usd.expected <= dear)
    hours = spec.slack * quick / 3600
    return make(hours), hours


class MemoryRun(RunStore):
    """The folder of a run, in memory."""

    def __init__(self, url: str, provider: MemoryProvider) -> None:
        super().__init__(url)
        self._provider = provider
        self._entries: list[Entry] = []
        self._attempts: list[Attempt] = []
        self._done: dict[int, dict[str, Any]] = {}
        self._last: RunState | None = None
        self._what: RunRecord | None = None
        self._limits: Wishes | None = None

    def create(self, record: RunRecord, wanted: Wishes) -> None:
        """Begin a run."""
        self._what, self._limits = record, wanted

    def record(self) -> RunRecord:
        """Return what was asked for."""
        assert self._what is not None
        return self._what

    def wanted(self) -> Wishes:
        """Return what its owner wants."""
        assert self._limits is not None
        return self._limits

    def change(self, *, after: int | None = None, **values: Any) -> Wishes:
        """Change some of it; nobody else does."""
        del after
        self._limits = Wishes(**{**self.wanted().model_dump(), **values})
        return self._limits

    def state(self) -> RunState | None:
        """Return how it stands."""
        return self._last

    def write_state(self, state: RunState) -> None:
        """Say how it stands."""
        self._last = state

    def attempts(self) -> list[Attempt]:
        """Return which nodes were asked for."""
        return list(self._attempts)

    def write_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Note which nodes were asked for."""
        self._attempts = list(attempts)

    def notices(self) -> dict[str, float]:
        """Return which nodes are about to be taken: each of them writes that down."""
        return self._provider.notices(self.record().name)

    def append(self, *entries: Entry) -> None:
        """Add to the ledger."""
        self._entries.extend(entries)

    def read_ledger(self) -> tuple[list[Entry], list[int]]:
        """Return the ledger, of which nothing is missing."""
        return list(self._entries), []

    def finished(self) -> Mapping[int, dict[str, Any]]:
        """Return the steps that are finished."""
        return dict(self._done)

    def finish(self, step: int, result: Mapping[str, Any]) -> None:
        """Note that a step is finished."""
        self._done[step] = dict(result)


class Play:
    """One run, from its plan to its end, and again where it was stopped."""

    def __init__(self, spec: Spec, catalogue: Catalogue, market: RecordedMonth, machines: str = "") -> None:
        self.spec, self.catalogue, self.market = spec, catalogue, market
        self.world = World(spec.seed, machines)
        self.workflow = workflow_of(spec)
        self.works = works_of(spec, self.workflow)
        self.plan, self.hours = planned(spec, self.workflow, catalogue)
        self.clock = Clock(spec.at)
        chance = self.world.random("faults")

        def fault(what: str, at: float) -> Fault | None:
            del what, at
            drawn = chance.random()
            for kind, share in FAULTS.items():
                if drawn < share:
                    return Fault(kind)  # type: ignore[arg-type]
                drawn -= share
            return None

        self.provider = MemoryProvider(self.clock, market, quotas=QUOTAS, types=catalogue.types, faults=fault)
        expected, high = self.plan.usd.expected, self.plan.usd.high
        cap = spec.cap * (expected if spec.tight else high)
        name = f"month-{spec.number}"
        _, record, wanted = new_run(self.workflow, self.plan, "aws", name, cap, self.hours, spec.at)
        self.store = MemoryRun(f"{self.workflow.project}/runs/{name}", self.provider)
        self.store.create(record, wanted)
        self.name = name
        self._step: Alignment | OnHead | None = None
        self._committed: dict[str, list[float]] = {}
        self._there: dict[str, Node] = {}
        self._seen_gone: set[str] = set()
        self.taken = 0
        self._head_speed = 1.0
        self.launches: list[dict[str, float | str]] = []

    # --- What the controller is given ------------------------------------------------------------------------------

    def begin(self, parameters: Mapping[str, Any], on_head: bool) -> Running:
        """Begin a step."""
        number = next(n for n, each in enumerate(self.store.record().steps) if each == parameters)
        step = self.workflow.steps[number]
        work = self.works[step.name]
        if work is None:
            seconds = sum(self.stage(step.name).parts.values()) * self._speed_stated
            self._step = OnHead(
                step.job.name, self.clock() + self.world.on_head(step.name) * seconds / self._head_speed
            )
            return self._step
        self._step = Alignment(
            step.job.name, step.name, self.world, work, self.clock(), self._head_speed,
            self._committed.setdefault(step.name, []),
        )  # fmt: skip
        for node in self._there.values():
            self._step.join(self.clock(), machine(self.world, node.id, self.catalogue.types[node.pool[0]], work))
        return self._step

    def stage(self, name: str) -> Any:
        """Return what was planned for a step."""
        return self.plan.step(name)

    @property
    def _speed_stated(self) -> float:
        return speeds().of(self.catalogue.types[self.plan.head.instance_type]).core

    def workers(self) -> frozenset[str]:
        """Return the nodes whose workers work."""
        return frozenset(self._there)

    # --- Time ------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Let machines come and go, in the order of time."""
        now = self.clock()
        events: list[tuple[float, str, Node]] = []
        for node in self.provider.truth(self.name, 2 * 3600):
            if node.slot == HEAD or node.id in self._seen_gone:
                continue
            if node.state == "ended":
                self._seen_gone.add(node.id)
                self.taken += node.ended == self.market.taken(node.pool, node.launched, node.id)
                events.append((node.ended or now, "gone", node))
            elif node.id not in self._there:
                kind = self.catalogue.types[node.pool.instance_type]
                boot = self.market.boot_s(node.pool, node.launched, node.id)
                ready = node.launched + boot + self.world.ready_s(kind, node.id)
                if ready <= now and node.state == "running":
                    events.append((ready, "ready", node))
        for at, what, node in sorted(events, key=lambda event: (event[0], event[2].id)):
            if what == "ready":
                self._there[node.id] = node
                work = self.works.get(self._step.name) if isinstance(self._step, Alignment) else None
                if self._step is not None and work is not None:
                    kind = self.catalogue.types[node.pool.instance_type]
                    self._step.join(max(at, self._step.now), machine(self.world, node.id, kind, work))  # type: ignore[union-attr]
            elif self._there.pop(node.id, None) is not None and self._step is not None:
                handed_on = self.world.random(f"handed on {node.id}").random() < HANDED_ON
                self._step.leave(at, node.id, handed_on)
        if self._step is not None:
            self._step.advance(now)

    def play(self) -> None:
        """Run it; where it was stopped, resume it with more."""
        while len(self.launches) < LAUNCHES:
            status = self._launch()
            if status != "stopped":
                return
            self.clock.advance(60.0)
            usd = self.spent() + 2 * self.plan.usd.high
            resume(self.store, usd, 3 * self.plan.wall.high / 3600, self.clock())

    def _launch(self) -> str:
        wanted, began = self.store.wanted(), self.clock()
        head = self._start_head(wanted)
        running = self.market.boot_s(head.pool, head.launched, head.id)
        kind = self.catalogue.types[head.pool.instance_type]
        self._head_speed = self.world.speed(kind, 1)
        self.clock.advance(running + self.world.ready_s(kind, head.id))
        node = {"slot": HEAD, "generation": wanted.launch, "project": self.workflow.project, "run": self.name}
        controller = Controller(self.store, self.provider, node, self.catalogue, self.begin, self.workers, self.clock)
        controller.begin()
        limit = began + 20 * self.plan.wall.high
        while not controller.over:
            self._look()
            controller.tick()
            self.clock.advance(self._pause())
            if self.clock() > limit:
                raise RuntimeError(f"run {self.spec.number} does not end: {self.store.state()}")
        for _ in range(60):
            try:
                self.provider.terminate([n.id for n in self.provider.nodes(self.name) if n.alive])
            except ProviderError:
                self.clock.advance(TICK_S)
                continue
            break
        self.clock.advance(30.0)
        self._look()
        state = self.store.state()
        assert state is not None
        wall = max(n.ended or self.clock() for n in self.provider.truth(self.name, math.inf)) - began
        left = [each for each in self.provider.truth(self.name) if each.alive]
        self.launches.append({
            "status": state.status, "why": state.why, "wall_s": wall, "cap_usd": wanted.max_usd,
            "deadline_s": wanted.deadline - began, "usd": self.spent(), "metered_usd": state.spent_usd,
            "left": len(left), "step": state.step,
        })  # fmt: skip
        self._step, self._there = None, {}
        return state.status

    def _start_head(self, wanted: Wishes) -> Node:
        request = head_request(self.store, self.store.record(), wanted, {"job": self.name}, self.catalogue)
        while True:
            try:
                self.provider.prepare(self.name, {})
                return self.provider.launch(request)
            except ProviderError:
                self.clock.advance(30.0)

    def _pause(self) -> float:
        state, wanted = self.store.state(), self.store.wanted()
        if state is None or state.status != "running" or not state.nodes:
            return TICK_S
        left_s = wanted.deadline - self.clock()
        left_usd = (wanted.max_usd - state.spent_usd) / max(state.usd_per_hour, 1e-9) * 3600
        if min(left_s, left_usd) < NEAR_S + self._longest():
            return TICK_S
        return min(max(self.plan.wall.expected / 150, TICK_S), LONGEST_TICK_S)

    def _longest(self) -> float:
        return self._step.iteration_s() if self._step is not None else 0.0

    # --- What it cost ----------------------------------------------------------------------------------------------

    def spent(self) -> float:
        """Return what the nodes and their disks really cost until now."""
        per_hour = self.catalogue.rates_in(self.spec.region).disk_usd_per_GiB_month * DISK_GIB / 730
        hours = sum(
            (min(node.ended or math.inf, self.clock()) - node.launched) / 3600
            for node in self.provider.truth(self.name, math.inf)
        )
        return self.provider.spent(self.name) + per_hour * hours

    def besides(self) -> float:
        """Return what is not paid by time: requests, a month's storage, results sent to the user."""
        requests = sum(step.costs.get("requests", 0.0) for step in self.plan.steps)
        extra = sum(self.plan.extra[name].expected for name in ("storage, one month", "results to you"))
        chance = self.world.random("besides")
        return requests * chance.uniform(0.6, 1.8) + extra * chance.uniform(0.85, 1.2)

    def stated_overshoot(self) -> float:
        """Return the worst overshoot that is promised: the highest rate of the plan while the controller reacts."""
        prices = {p: q.usd_per_hour for s in self.plan.steps for p in s.pools if (q := self.catalogue.price(p))}
        head = self.catalogue.price(self.plan.head)
        assert head is not None
        highest = max(step.count * max(prices.get(pool, 0.0) for pool in step.pools) for step in self.plan.steps)
        return worst_overshoot(head.usd_per_hour + highest, LATENCY_S["aws"])
