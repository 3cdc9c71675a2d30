"""What a planner knows of a step of a workflow: how long it takes on so many machines of a type, or why it cannot run.

Every figure is a range: what is expected, and what it hardly falls short of or passes. A range says nothing of machines
that are sold out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from cloudem.cloud.nodes import InstanceType


class Range(NamedTuple):
    """A figure with what it may turn out to be; ``low <= expected <= high``."""

    low: float
    expected: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        """Return a range without width."""
        return cls(value, value, value)

    @classmethod
    def within(cls, expected: float, factor: float) -> Range:
        """Return a range from ``expected / factor`` to ``expected * factor``; ``factor`` is 1 or more."""
        return cls(expected / factor, expected, expected * factor)

    def plus(self, other: Range) -> Range:
        """Return the sum. Ends are added, too: what makes one step slow (a slow type) makes the others slow."""
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, other: Range | float) -> Range:
        """Return the product with a range of nothing below 0, or with a number of 0 or more."""
        by = other if isinstance(other, Range) else Range.exactly(other)
        return Range(self.low * by.low, self.expected * by.expected, self.high * by.high)

    def holds(self, value: float) -> bool:
        """Tell whether a value lies within."""
        return self.low <= value <= self.high


def total(ranges: Iterable[Range]) -> Range:
    """Return the sum of ranges; nothing sums to 0."""
    whole = Range.exactly(0.0)
    for part in ranges:
        whole = whole.plus(part)
    return whole


@dataclass(frozen=True)
class Fleet:
    """So many machines of a type."""

    type: InstanceType
    count: int


@dataclass(frozen=True)
class Duration:
    """How long a step takes on a fleet, once its machines are ready.

    Attributes
    ----------
    seconds
        Wall time, without starting machines.
    bottleneck
        The part that takes longest, in a few words.
    parts
        Seconds of the parts, expected; their sum is ``seconds.expected``.
    measured
        Whether the speed of this type was measured, and not scaled from other figures.
    memory_GiB
        What a machine of the fleet needs.
    gpu_GiB
        What one of its GPUs needs; 0 where none is used.
    lost_s
        Seconds of a machine's work that are gone with it when it is taken without having handed on what it holds.
    tasks
        Tasks at the same time on each machine: threads of one worker or, with GPUs, as many workers of one.
    """

    seconds: Range
    bottleneck: str
    parts: Mapping[str, float] = field(default_factory=dict)
    measured: bool = False
    memory_GiB: float = 0.0
    gpu_GiB: float = 0.0
    lost_s: float = 0.0
    tasks: int = 1

    def limit(self, type: InstanceType) -> int:
        """Return the tasks that memory limits a machine to; 0 where it has one for each thread, or for each GPU."""
        return self.tasks if self.tasks < (type.gpus if self.gpu_GiB else type.vcpus) else 0


@dataclass(frozen=True)
class Refusal:
    """Why a fleet cannot do a step, in one line without its name."""

    reason: str


Estimate: TypeAlias = Callable[[Fleet], Duration | Refusal]


@dataclass(frozen=True)
class StepEstimate:
    """One step as the planner sees it.

    Attributes
    ----------
    name
        Of the step.
    estimate
        How long it takes on a fleet. With ``on_head`` the fleet is the head node alone.
    most
        Machines beyond which more find no work.
    on_head
        It runs on the head node, and needs no workers.
    head_GiB
        Memory that the head needs for it, beside that of an ``on_head`` step.
    puts, gets
        Requests to object storage.
    stored_GiB
        What it leaves in object storage.
    result_GiB
        What is fetched from there to the user's machine.
    notes
        Lines for whoever plans it: counts, sizes, assumptions.
    """

    name: str
    estimate: Estimate
    most: int = 1
    on_head: bool = False
    head_GiB: float = 0.0
    puts: float = 0.0
    gets: float = 0.0
    stored_GiB: float = 0.0
    result_GiB: float = 0.0
    notes: tuple[str, ...] = ()
