"""What was decided to rent for a workflow, what it will take and cost, and what else could have been rented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cloudem.cloud.estimate import Range
from cloudem.cloud.nodes import Market, Pool
from cloudem.errors import FormatError

Objective: TypeAlias = Literal["cheapest", "fastest"]

VERSION = 1
"""Of the plan's form as JSON."""


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
        Tasks at the same time on each machine: as many as its threads, or as its memory holds.
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
