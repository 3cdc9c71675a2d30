"""What was decided to rent for a workflow, what it will take and cost, and what else could have been rented.

All is judged by what is expected; where the upper end of a range is beyond a limit, a note says so. Deciding is pure:
the same stages, prices and limits give the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.nodes import Market, Pool
from cloudem.cloud.planning.choices import Choice, Offers, choice_sequences
from cloudem.cloud.planning.estimate import Range, Refusal, StepEstimate
from cloudem.cloud.planning.totals import (
    Whole,
    excess,
    fits,
    front_of,
    limits_in_words,
    nearest,
    why_impossible,
    with_overheads,
)
from cloudem.errors import BudgetError, FormatError, ParameterError
from cloudem.text import rough_dollars, rough_time

Objective: TypeAlias = Literal["cheapest", "fastest"]

VERSION = 1
"""Of the plan's form as JSON."""

OTHER_TYPES, OTHER_ZONES = 4, 2
"""Fallbacks of each kind at most."""

AS_FAST = 1.5
"""A type is a fallback if it takes no longer than so many times the planned one."""

AS_DEAR = 1.3
"""A type in the same zone goes before other zones if the step costs no more than so many times what was planned."""

NEGLIGIBLE = 1.03
"""Nobody pays for a plan that is faster by less than this factor."""

NEARLY = 1.1
"""Where no plan is likely within the limits: those that miss them by no more than so many times the least."""

MOST_ALTERNATIVES = 24
"""Shown of the Pareto set; the ends, and the chosen one, are always among them."""


@dataclass(frozen=True)
class PlannedStep:
    """What is rented for one step.

    Attributes
    ----------
    name
        Of the step.
    pool, count
        Where its workers come from, and how many; a count of 0 means that it runs on the head, whose pool is given.
    fallbacks
        Where they may come from instead, best first: another type, another zone, on demand.
    wall
        Seconds from the request for its workers to its end.
    usd
        All that is paid meanwhile: workers, head, disks, addresses, requests, expected rework.
    bottleneck
        What takes longest.
    memory_GiB, gpu_GiB
        What each machine, and each of its GPUs, needs.
    measured
        Whether the speed of the type was measured.
    parts
        Expected seconds by part, starting of nodes and rework among them.
    costs
        Expected dollars by what they are paid for.
    tasks
        Tasks at the same time on each machine, where its memory holds fewer than it has threads, or GPUs; else 0.
    """

    name: str
    pool: Pool
    count: int
    fallbacks: tuple[Pool, ...]
    wall: Range
    usd: Range
    bottleneck: str
    memory_GiB: float = 0.0
    gpu_GiB: float = 0.0
    measured: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    tasks: int = 0

    @property
    def on_head(self) -> bool:
        """Whether it needs no workers."""
        return self.count == 0

    @property
    def instance_type(self) -> str:
        """Type of its workers."""
        return self.pool.instance_type

    @property
    def market(self) -> Market:
        """How they are bought."""
        return self.pool.market

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Where its workers may come from, best first."""
        return (self.pool, *self.fallbacks)

    @property
    def workers(self) -> dict[str, Any]:
        """What its nodes are told of their workers (`cloudem.runs.agent`): a GPU has a worker of its own."""
        return {"gpus": self.tasks or "all"} if self.gpu_GiB else {"gpus": "none", "tasks": self.tasks}

    def describe(self) -> str:
        """Return what is rented, as people say it."""
        return "head" if self.on_head else f"{self.count} × {self.instance_type} {self.market}"


@dataclass(frozen=True)
class Alternative:
    """Another choice of which none is both cheaper and faster.

    Attributes
    ----------
    usd, wall
        In all, dollars and seconds.
    steps
        What each step would rent (:meth:`PlannedStep.describe`).
    chosen
        Whether it is the plan.
    """

    usd: Range
    wall: Range
    steps: tuple[str, ...]
    chosen: bool = False


@dataclass(frozen=True)
class Plan:
    """A plan for a workflow.

    Attributes
    ----------
    region, zone
        Where it runs.
    objective, max_usd, max_hours
        What was asked for; None for no limit.
    head
        Pool of the head node, on demand, from the first request to the end.
    steps
        In the order in which they run.
    start
        Seconds until the head works.
    extra
        Dollars that belong to no step: the head's start, storage, egress.
    usd, wall
        In all, dollars and seconds.
    refused
        What cannot be used, and why.
    alternatives
        The Pareto set, by time.
    notes
        For people: stale prices, speeds that nobody measured, an upper end beyond the limits.
    made, prices_of
        When it was made (seconds since 1970), and the oldest date of a price in it (ISO).
    """

    region: str
    zone: str
    objective: Objective
    max_usd: float | None
    max_hours: float | None
    head: Pool
    steps: tuple[PlannedStep, ...]
    start: Range
    extra: Mapping[str, Range]
    usd: Range
    wall: Range
    refused: tuple[tuple[str, str], ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()
    made: float = 0.0
    prices_of: str = ""

    def step(self, name: str) -> PlannedStep:
        """Return the step of a name.

        Raises
        ------
        KeyError
            There is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, from which :meth:`from_json` makes it again."""
        return {"cloudem_plan": VERSION, **_plain(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Make a plan from what :meth:`as_json` returned.

        Raises
        ------
        FormatError
            It is no plan, or one of another version of cloudem.
        """
        version = value.get("cloudem_plan")
        if version != VERSION:
            raise FormatError(f"a plan of form {VERSION} is needed and got {version!r}; make it again: cloudem plan")
        given = {key: part for key, part in value.items() if key != "cloudem_plan"}
        try:
            return cls(
                **{
                    **given,
                    "head": Pool(*given["head"]),
                    "steps": tuple(_step(step) for step in given["steps"]),
                    "start": Range(*given["start"]),
                    "extra": {name: Range(*part) for name, part in given["extra"].items()},
                    "usd": Range(*given["usd"]),
                    "wall": Range(*given["wall"]),
                    "refused": tuple((what, why) for what, why in given["refused"]),
                    "alternatives": tuple(_alternative(part) for part in given["alternatives"]),
                    "notes": tuple(given["notes"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"this is no plan of cloudem ({error}); make it again: cloudem plan") from None


def plan(
    stages: Sequence[StepEstimate],
    catalogue: Catalogue,
    *,
    region: str,
    now: float,
    zones: Sequence[str] | None = None,
    markets: Sequence[Market] = ("spot", "on-demand"),
    types: Collection[str] | None = None,
    max_usd: float | None = None,
    max_hours: float | None = None,
    objective: Objective = "cheapest",
    quotas: Mapping[tuple[str, str], float] | None = None,
) -> Plan:
    """Return the cheapest, or the fastest, plan within limits.

    Parameters
    ----------
    stages
        Steps, one after the other; each has another name.
    catalogue
        Types and prices.
    region, zones, markets, types
        What may be used; all zones and types (of workers) of the region by default. A cluster is in one zone.
    now
        Seconds since 1970.
    max_usd, max_hours
        Of what is expected in all.
    objective
        Of the plans within these limits.
    quotas
        Free vCPUs by family and market; what is not in it is not limited.

    Raises
    ------
    ParameterError
        The region or a zone has no prices, or a type is none.
    BudgetError
        Nothing can do a step, or nothing that can is within the limits; says what comes nearest.
    """
    known = catalogue.zones(region)
    if not known:
        raise ParameterError(f"no prices are known for {region!r}; known regions are {', '.join(catalogue.regions())}")
    if strange := [zone for zone in zones or () if zone not in known]:
        raise ParameterError(f"no prices are known for zone {strange[0]!r}; zones of {region} are {', '.join(known)}")
    if unknown := [name for name in types or () if name not in catalogue.types]:
        raise ParameterError(
            f"there is no instance type {unknown[0]!r}; known types are {', '.join(sorted(catalogue.types))}"
        )
    offers = Offers(catalogue, region, zones or known, markets, types, quotas or {})
    wholes = [
        with_overheads(stages, offers, zone, head, course)
        for zone in offers.zones
        for head in offers.heads(stages, zone)
        for course in choice_sequences([offers.choices(stage, zone, head) for stage in stages])
    ]
    front = front_of(wholes)
    if not front:
        raise BudgetError(why_impossible(stages, offers))
    fitting = [whole for whole in front if fits(whole, max_usd, max_hours)]
    if not fitting:
        raise BudgetError(nearest(front, max_usd, max_hours))
    # a run is stopped at its limits: what is only just expected to be within them would be stopped every other time
    near = max(1.0, NEARLY * min(excess(whole, max_usd, max_hours) for whole in fitting))
    safe = [whole for whole in fitting if excess(whole, max_usd, max_hours) <= near]
    as_fast = [whole for whole in safe if whole.wall.expected <= NEGLIGIBLE * safe[0].wall.expected]
    chosen = safe[-1] if objective == "cheapest" else as_fast[-1]  # both are ordered: faster first, cheaper last
    beyond = len(front) - len(fitting)
    if beyond:
        offers.refuse(f"{beyond} of {len(front)} best choices", f"beyond {limits_in_words(max_usd, max_hours)}")
    steps = tuple(_planned(choice, chosen, offers, max_usd) for choice in chosen.course.choices)
    pools = [Pool(chosen.head.name, chosen.zone, "on-demand"), *(step.pool for step in steps)]
    dates = [str(price.as_of) for pool in pools if (price := catalogue.price(pool)) is not None]
    return Plan(
        region, chosen.zone, objective, max_usd, max_hours, pools[0], steps, chosen.start, chosen.extra,
        chosen.usd, chosen.wall, tuple(offers.refused), _alternatives(front, chosen),
        _notes(chosen, catalogue, region, now, max_usd, max_hours), now, min(dates),
    )  # fmt: skip


def _planned(choice: Choice, whole: Whole, offers: Offers, max_usd: float | None) -> PlannedStep:
    d, kind = choice.duration, offers.catalogue.types[choice.pool.instance_type]
    fallbacks = _fallbacks(choice, whole, offers, max_usd) if choice.count else ()
    return PlannedStep(
        choice.stage.name, choice.pool, choice.count, fallbacks, choice.wall, choice.usd, d.bottleneck, d.memory_GiB,
        d.gpu_GiB, d.measured, choice.parts, choice.costs, d.limit(kind) if choice.count else 0,
    )  # fmt: skip


def _fallbacks(choice: Choice, whole: Whole, offers: Offers, max_usd: float | None) -> tuple[Pool, ...]:
    """Return where else as many workers may come from, best first.

    Another type in the same zone that is not much dearer, other zones and dearer types by cost, and on demand as far as
    the budget allows. Types are as fast at least as 1 / :data:`AS_FAST`, and hold as many tasks as their nodes will be
    told to run.
    """
    left = float("inf") if max_usd is None else max_usd - whole.usd.expected + choice.usd.expected
    planned = choice.duration.limit(offers.catalogue.types[choice.pool.instance_type])

    def may(zone: str, market: Market) -> list[tuple[float, Pool]]:
        found = []
        for kind in offers.types:
            d = offers.duration(choice.stage, kind, choice.count)
            if isinstance(d, Refusal) or d.seconds.expected > AS_FAST * choice.duration.seconds.expected:
                continue
            if (choice.duration.gpu_GiB > 0) != (d.gpu_GiB > 0):  # workers of one step are of one kind
                continue
            if (holds := d.limit(kind)) and not 0 < planned <= holds:  # nodes are told what was planned
                continue
            other = offers.choice(choice.stage, Pool(kind.name, zone, market), choice.count, whole.head)
            if other is not None and other.usd.expected <= left:
                found.append((other.usd.expected, other.pool))
        return sorted(found)

    chosen, order = choice.pool, list[Pool]()
    elsewhere = [zone for zone in offers.zones if zone != chosen.zone]
    if "spot" in offers.markets and chosen.market == "spot":
        types = [each for each in may(chosen.zone, "spot") if each[1] != chosen][:OTHER_TYPES]
        zones = [each for zone in elsewhere for each in may(zone, "spot")[:1]][:OTHER_ZONES]
        dear = AS_DEAR * choice.usd.expected  # as many of twice the size would cost twice as much
        order += [pool for usd, pool in types if usd <= dear]
        order += [pool for _, pool in sorted([*zones, *(each for each in types if each[0] > dear)])]
    if "on-demand" in offers.markets:
        order += [pool for _, pool in may(chosen.zone, "on-demand") if pool != chosen][:OTHER_TYPES]
        order += [pool for zone in elsewhere for _, pool in may(zone, "on-demand")[:1]][:OTHER_ZONES]
    return tuple(order)


def _alternatives(front: Sequence[Whole], chosen: Whole) -> tuple[Alternative, ...]:
    """Return the Pareto set without what is faster by a negligible factor, evenly thinned if it is long."""
    slower = [*front[1:], None]
    worth = [
        w for w, n in zip(front, slower, strict=True)
        if n is None or w is chosen or n.wall.expected > NEGLIGIBLE * w.wall.expected
    ]  # fmt: skip
    step = max(1, -(-len(worth) // MOST_ALTERNATIVES))
    shown = [w for n, w in enumerate(worth) if n % step == 0 or w is chosen or n == len(worth) - 1]
    return tuple(Alternative(w.usd, w.wall, tuple(_describe(c) for c in w.course.choices), w is chosen) for w in shown)


def _describe(choice: Choice) -> str:
    return f"{choice.count} × {choice.pool.instance_type} {choice.pool.market}" if choice.count else "head"


def _notes(
    chosen: Whole, catalogue: Catalogue, region: str, now: float, max_usd: float | None, max_hours: float | None
) -> tuple[str, ...]:
    notes = [catalogue.about(now, region)]
    if any(choice.duration.gpu_GiB for choice in chosen.course.choices):
        notes.append(
            "GPU speeds are scaled from memory bandwidth, not measured: time and cost may be off by a factor of 3.5"
        )
    elif not all(choice.duration.measured for choice in chosen.course.choices if choice.count):
        notes.append("the speed of these machines is scaled from other figures, not measured on them")
    if max_hours is not None and chosen.wall.high > 3600 * max_hours:
        notes.append(f"it may take up to {rough_time(chosen.wall.high)}, beyond {rough_time(3600 * max_hours)}")
    if max_usd is not None and chosen.usd.high > max_usd:
        notes.append(f"it may need up to {rough_dollars(chosen.usd.high)}: at ${max_usd:g} it would be stopped early")
    return tuple(notes)


def _plain(thing: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON holds them."""
    return {name: _value(value) for name, value in vars(thing).items()}


def _value(value: Any) -> Any:
    if isinstance(value, PlannedStep | Alternative):
        return _plain(value)
    if isinstance(value, tuple):
        return [_value(part) for part in value]
    if isinstance(value, Mapping):
        return {name: _value(part) for name, part in value.items()}
    return value


def _ranges(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**given, "usd": Range(*given["usd"]), "wall": Range(*given["wall"])}


def _step(given: Mapping[str, Any]) -> PlannedStep:
    pools = {"pool": Pool(*given["pool"]), "fallbacks": tuple(Pool(*pool) for pool in given["fallbacks"])}
    return PlannedStep(**{**_ranges(given), **pools})


def _alternative(given: Mapping[str, Any]) -> Alternative:
    return Alternative(**{**_ranges(given), "steps": tuple(given["steps"])})
