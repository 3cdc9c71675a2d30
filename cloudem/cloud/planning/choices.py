"""What could be rented for a step, what that takes and costs, and which of it is worth considering."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cloudem.cloud.catalogue import LOCAL, Catalogue
from cloudem.cloud.nodes import InstanceType, Market, Pool
from cloudem.cloud.planning.estimate import Duration, Fleet, Range, Refusal, StepEstimate, total

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Machines of a fleet that are considered."""

START: Mapping[bool, Range] = {True: Range(2.0, 6.0, 20.0), False: Range(45.0, 110.0, 240.0)}
"""Seconds from the request for a node until it works: processes of this machine, and in a cloud. Supposed."""

END_S: Mapping[bool, float] = {True: 3.0, False: 20.0}
"""Seconds in which a node ends, likewise: paid, and waited for only at the very end."""

LEAST_PAID_S = 60.0
"""A node in a cloud is paid for a minute at least."""

HEADS = 3
"""Types that are considered for a head that works."""

DISK_GIB = 30
"""Root disk of every node."""

HOURS_PER_MONTH = 730.0

UNKNOWN_RATE: Mapping[bool, float] = {False: 0.08, True: 0.57}
"""Interruptions of a spot node per hour where nothing is recorded, without GPUs (supposed) and with (the median of the
kinds of GPUs that were recorded)."""

RATE_SPREAD = 3.0
NOTICED = 0.2
"""Share of what a node holds that is lost although it was warned. Supposed."""

DELAY_S = 5.0, 20.0
"""In which the others take over, expected and at most."""

SPOT_RANGE = 0.6, 1.8
"""Of a spot price without a history."""


@dataclass(frozen=True)
class Choice:
    """A fleet for a step.

    Attributes
    ----------
    stage
        The step.
    pool, count
        What is rented; a count of 0 is the head alone.
    duration
        Of the step, its machines ready.
    wall, usd
        Seconds from the request to its end, and all that is paid meanwhile.
    costs
        Expected dollars by what they are paid for.
    parts
        Expected seconds by part.
    """

    stage: StepEstimate
    pool: Pool
    count: int
    duration: Duration
    wall: Range
    usd: Range
    costs: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ChoiceSequence:
    """A choice for each step, one after the other."""

    choices: tuple[Choice, ...]
    wall: float
    usd: float


class Offers:
    """What a region offers, and what of it cannot be used and why.

    Parameters
    ----------
    catalogue
        Types and prices.
    region, zones, markets, types
        What may be used; ``types`` are those of workers, None for all.
    quotas
        Free vCPUs by family and market; what is not in it is not limited.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        region: str,
        zones: Sequence[str],
        markets: Sequence[Market],
        types: Collection[str] | None,
        quotas: Mapping[tuple[str, str], float],
    ) -> None:
        self.catalogue = catalogue
        self.region = region
        self.zones = tuple(zones)
        self.markets = tuple(markets)
        self.quotas = quotas
        self._wanted = types
        self.refused: dict[tuple[str, str], None] = {}
        self._durations: dict[tuple[str, str, int], Duration | Refusal] = {}

    @cached_property
    def types(self) -> tuple[InstanceType, ...]:
        """Types whose machines may work, and that are sold in the region at all."""
        known = [t for name, t in self.catalogue.types.items() if self._wanted is None or name in self._wanted]
        sold = []
        for kind in known:
            if any(self._price(Pool(kind.name, zone, m)) for zone in self.zones for m in ("spot", "on-demand")):
                sold.append(kind)
            elif (self.region == LOCAL) == kind.name.startswith(f"{LOCAL}."):
                self.refuse(kind.name, f"no price in {self.region}")
        return tuple(sold)

    def refuse(self, what: str, why: str) -> None:
        """Note what cannot be used."""
        self.refused[what, why] = None

    def _price(self, pool: Pool) -> float | None:
        price = self.catalogue.price(pool)
        return None if price is None else price.usd_per_hour

    @property
    def start(self) -> Range:
        """Seconds in which a node starts."""
        return START[self.region == LOCAL]

    @property
    def end(self) -> float:
        """Seconds in which a node ends."""
        return END_S[self.region == LOCAL]

    @property
    def least_paid(self) -> float:
        """Seconds for which a node is paid at least."""
        return 0.0 if self.region == LOCAL else LEAST_PAID_S

    def rate(self, pool: Pool) -> Range | None:
        """Return what a node of a pool costs, dollars per hour; None where that is not known."""
        price = self._price(pool)
        if price is None or pool.market == "on-demand":
            return None if price is None else Range.exactly(price)
        low, high = self.catalogue.spot_range(pool.instance_type, pool.zone) or (
            SPOT_RANGE[0] * price,
            SPOT_RANGE[1] * price,
        )
        return Range(min(low, price), price, max(high, price))

    def disk(self, wall: Range) -> Range:
        """Return what the disk of a node costs for seconds."""
        per_month = self.catalogue.rates_in(self.region).disk_usd_per_GiB_month * DISK_GIB
        return wall.times(per_month / HOURS_PER_MONTH / 3600)

    def duration(self, stage: StepEstimate, kind: InstanceType, count: int) -> Duration | Refusal:
        """Return how long a stage takes on a fleet, or why it cannot."""
        key = (stage.name, kind.name, count)
        if key not in self._durations:
            self._durations[key] = stage.estimate(Fleet(kind, count))
        return self._durations[key]

    def heads(self, stages: Sequence[StepEstimate], zone: str) -> list[InstanceType]:
        """Return types that can be the head in a zone: the cheapest, or the cheapest few if the head works itself."""
        most = HEADS if any(stage.on_head for stage in stages) else 1
        found = []
        for kind in self.catalogue.types.values():
            price = self._price(Pool(kind.name, zone, "on-demand"))
            if kind.gpus or price is None:
                continue
            need = max((stage.head_GiB for stage in stages), default=0.0) + 0.5
            if kind.memory_GiB * 0.95 < need:
                self.refuse(f"{kind.name} as head", f"too little memory: {need:.1f} GiB of {kind.memory_GiB:g}")
                continue
            reasons = [d.reason for s in stages if s.on_head and isinstance(d := self.duration(s, kind, 1), Refusal)]
            if reasons:
                self.refuse(f"{kind.name} as head", reasons[0])
            elif self._free(kind, "on-demand") >= kind.vcpus:
                found.append((price, kind))
            else:
                self.refuse(f"{kind.name} as head", self._quota(kind, "on-demand", kind.vcpus))
        return [kind for _, kind in sorted(found, key=lambda pair: (pair[0], pair[1].name))[:most]]

    def _free(self, kind: InstanceType, market: Market) -> float:
        return self.quotas.get((kind.quota, market), math.inf)

    def _quota(self, kind: InstanceType, market: Market, vcpus: int) -> str:
        return f"quota {kind.quota} {market}: {self._free(kind, market):g} vCPUs free, {vcpus} needed"

    def choices(self, stage: StepEstimate, zone: str, head: InstanceType) -> list[Choice]:
        """Return what a step may run on in a zone, with a head."""
        if stage.on_head:
            choice = self.choice(stage, Pool(head.name, zone, "on-demand"), 0, head)
            return [] if choice is None else [choice]
        found = []
        for kind in self.types:
            for market in self.markets:
                pool = Pool(kind.name, zone, market)
                if self.rate(pool) is None:
                    if not any(self.rate(pool._replace(zone=z)) for z in self.zones):
                        self.refuse(f"{kind.name} {market}", f"no price in {self.region}")
                    continue
                found += self._fleets(stage, kind, pool, head)
        return found

    def _fleets(self, stage: StepEstimate, kind: InstanceType, pool: Pool, head: InstanceType) -> list[Choice]:
        found: list[Choice] = []
        free = self._free(kind, pool.market)
        if pool.market == "on-demand" and head.quota == kind.quota:
            free -= head.vcpus
        for count in COUNTS:
            if count > stage.most:
                break
            if count * kind.vcpus > free:
                self.refuse(f"{count} × {kind.name} {pool.market}", self._quota(kind, pool.market, count * kind.vcpus))
                break
            choice = self.choice(stage, pool, count, head)
            if choice is None:
                break
            found.append(choice)
            if count * choice.duration.tasks >= stage.most:
                break
        return found

    def choice(self, stage: StepEstimate, pool: Pool, count: int, head: InstanceType) -> Choice | None:
        """Return what a fleet takes and costs; None, and note why, where it cannot do the step."""
        kind = self.catalogue.types[pool.instance_type]
        duration = self.duration(stage, kind, max(count, 1))
        rate, head_rate = self.rate(pool), self.rate(Pool(head.name, pool.zone, "on-demand"))
        if isinstance(duration, Refusal):
            self.refuse(f"{kind.name} for {stage.name}", duration.reason)
            return None
        if rate is None or head_rate is None:
            return None
        rework, replaced = self._rework(pool, count, duration)
        start = self.start if count else Range.exactly(0.0)
        wall = total([start, duration.seconds, rework])
        paid = Range(*(max(s + self.end, self.least_paid) for s in wall)).plus(replaced) if count else wall
        rates = self.catalogue.rates_in(self.region)
        requests = (stage.puts * rates.put_usd_per_1000 + stage.gets * rates.get_usd_per_1000) / 1000
        dollars = {
            "workers": rate.times(paid).times(count / 3600),
            "head": head_rate.times(wall).times(1 / 3600),
            "disks": self.disk(wall).times(count + 1),
            "requests": Range.within(requests, 2.0),
        }
        costs = {name: part.expected for name, part in dollars.items() if part.expected}
        parts = dict(duration.parts)
        if count:
            parts["starting nodes"] = start.expected
        if rework.expected:
            parts["spot rework"] = rework.expected
            lost = (rework.expected + replaced.expected) * rate.expected * count / 3600
            costs["spot rework"], costs["workers"] = lost, costs.get("workers", lost) - lost
        return Choice(stage, pool, count, duration, wall, total(dollars.values()), costs, parts)

    def _rework(self, pool: Pool, count: int, duration: Duration) -> tuple[Range, Range]:
        """Return seconds by which interruptions delay a step, and seconds for which each node is paid in their place.

        A node that is taken costs what was lost of its work, and what it would have done until it is replaced; the
        others share that.
        """
        none = Range.exactly(0.0)
        if pool.market != "spot" or not count or self.region == LOCAL:
            return none, none
        rate = self.catalogue.interruption_rate(pool.instance_type, self.region)
        rate = UNKNOWN_RATE[self.catalogue.types[pool.instance_type].gpus > 0] if rate is None else rate
        hours, start = duration.seconds.times(1 / 3600), self.start
        often = Range(0.0, rate * count * hours.expected, RATE_SPREAD * rate * count * hours.high)
        each = Range(
            0.0,
            (NOTICED * duration.lost_s + start.expected) / count + DELAY_S[0],
            (duration.lost_s + start.high) / count + DELAY_S[1],
        )
        return often.times(each), often.times(start).times(1 / count)


def pareto(courses: Iterable[ChoiceSequence]) -> list[ChoiceSequence]:
    """Return those of which no other is both as fast and as cheap, by time."""
    best: list[ChoiceSequence] = []
    for course in sorted(courses, key=lambda c: (c.wall, c.usd)):
        if not best or course.usd < best[-1].usd:
            best.append(course)
    return best


def choice_sequences(steps: Sequence[Sequence[Choice]]) -> list[ChoiceSequence]:
    """Return the Pareto set of the courses that take one choice of each step."""
    front = [ChoiceSequence((), 0.0, 0.0)]
    for choices in steps:
        single = pareto(ChoiceSequence((choice,), choice.wall.expected, choice.usd.expected) for choice in choices)
        front = pareto(
            ChoiceSequence((*before.choices, *one.choices), before.wall + one.wall, before.usd + one.usd)
            for before in front
            for one in single
        )
    return front
