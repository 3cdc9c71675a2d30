"""Markets of machines for simulations: prices, capacity, interruptions and starts as functions of pool and time.

Everything follows from data and an explicit seed: the same questions get the same answers in any order.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloudem.cloud.nodes import Pool

NEVER = float("inf")


class SimulatedMarket(ABC):
    """What a simulated provider sells; times are seconds since 1970."""

    @abstractmethod
    def price(self, pool: Pool, at: float) -> float | None:
        """Return dollars per hour; None where the pool is not sold."""

    @abstractmethod
    def next_price(self, pool: Pool, at: float) -> float:
        """Return when the price next changes after ``at``; infinity for never."""

    @abstractmethod
    def capacity(self, pool: Pool, at: float) -> float:
        """Return how many nodes of the pool the account may have at a time."""

    @abstractmethod
    def taken(self, pool: Pool, launched: float, node: str) -> float:
        """Return when a node is taken back; infinity for never."""

    @abstractmethod
    def boot_s(self, pool: Pool, launched: float, node: str) -> float:
        """Return seconds from launch to ``running``."""


@dataclass(frozen=True)
class RecordedMarket(SimulatedMarket):
    """A market that follows records, or what was made up in their form.

    Attributes
    ----------
    prices
        For each pool that is sold: from when on it costs how many dollars per hour, in order of time. The first price
        also holds before.
    sold_out
        When a pool has no capacity: from, until; in order of time, apart from each other.
    takes_back
        Whether spot nodes are taken when their pool gets sold out.
    interruptions_per_hour
        Rate at which single spot nodes are taken besides.
    most
        Nodes that a pool has where it is not sold out.
    boot
        Shortest and longest start, seconds.
    seed
        Of interruptions and starts.
    """

    prices: Mapping[Pool, Sequence[tuple[float, float]]]
    sold_out: Mapping[Pool, Sequence[tuple[float, float]]] = field(default_factory=dict)
    takes_back: bool = True
    interruptions_per_hour: Mapping[Pool, float] = field(default_factory=dict)
    most: float = NEVER
    boot: tuple[float, float] = (40.0, 90.0)
    seed: int = 0

    def price(self, pool: Pool, at: float) -> float | None:
        """Return dollars per hour; None where the pool is not sold."""
        steps = self.prices.get(pool)
        return steps[max(_after(steps, at) - 1, 0)][1] if steps else None

    def next_price(self, pool: Pool, at: float) -> float:
        """Return when the price next changes after ``at``."""
        steps = self.prices.get(pool, ())
        following = max(_after(steps, at), 1)
        return steps[following][0] if following < len(steps) else NEVER

    def capacity(self, pool: Pool, at: float) -> float:
        """Return how many nodes there may be at a time."""
        times = self.sold_out.get(pool, ())
        index = _after(times, at) - 1
        return 0.0 if pool not in self.prices or (index >= 0 and at < times[index][1]) else self.most

    def taken(self, pool: Pool, launched: float, node: str) -> float:
        """Return when a node is taken back: by chance, or because its pool gets sold out."""
        if pool.market != "spot":
            return NEVER
        rate = self.interruptions_per_hour.get(pool, 0.0)
        at = launched + 3600 * self._random("taken", node).expovariate(rate) if rate > 0 else NEVER
        times = self.sold_out.get(pool, ())
        following = _after(times, launched)
        return min(at, times[following][0]) if self.takes_back and following < len(times) else at

    def boot_s(self, pool: Pool, launched: float, node: str) -> float:
        """Return seconds from launch to ``running``."""
        return self._random("boot", node).uniform(*self.boot)

    def _random(self, what: str, node: str) -> random.Random:
        return random.Random(f"{self.seed}/{what}/{node}")  # noqa: S311 - a simulation


def _after(steps: Sequence[tuple[float, float]], at: float) -> int:
    """Return how many steps begin at ``at`` or before."""
    return bisect_right(steps, at, key=lambda step: step[0])
