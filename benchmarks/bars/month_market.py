"""The market of the simulated month: recorded losses and price changes, stretched over thirty days and all pools.

*Recorded*: when which share of a spot fleet was taken, when its pool gave machines again (`traces`), how the spot price
of one type moved in five zones, by how much spot prices of single pools changed between two fetches. *Derived*: that
another pool lives through the same, from another moment on; that a recording is repeated (T4: 35 h, V100: 11 h,
K80: 89 h); that no machine is to be had from a loss until the next machine came. Machines without GPUs were in no
recording: their pools live through that of the K80 machines, the calmest. *Supposed*: when on-demand pools are sold
out.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from functools import cache, lru_cache
from typing import NamedTuple

from traces import spot_history, spot_prices, traces

from bars.month_truth import boot_s
from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.nodes import Pool
from cloudem.testing.market import NEVER, SimulatedMarket

DAYS = 34
"""Thirty, and some more for what began on the last of them."""

SOLD_OUT = {"standard": (0.01, 1800.0), "G": (0.06, 5400.0), "P": (0.3, 14400.0)}
"""Of on-demand pools by family: share of the time, and mean length of a stretch, seconds. Supposed."""


class Life(NamedTuple):
    """What recordings of a kind of machine tell, one after the other: (at, share taken), and sold out (from, until)."""

    length_s: float
    losses: tuple[tuple[float, float], ...]
    sold_out: tuple[tuple[float, float], ...]


@cache
def lives() -> dict[str, Life]:
    """Return the recordings by kind of GPU."""
    found: dict[str, Life] = {}
    for trace in traces().values():
        before = found.get(trace.gpu, Life(0.0, (), ()))
        began, shift = trace.events[0].at, before.length_s
        losses = tuple((shift + at, share) for at, share in trace.losses())
        stretches, since = [], None
        for event in trace.events:
            at = shift + event.at - began
            if event.taken and since is None:
                since = at
            elif event.came and since is not None:
                stretches.append((since, at))
                since = None
        found[trace.gpu] = Life(shift + trace.duration_s, before.losses + losses, before.sold_out + tuple(stretches))
    return found


class RecordedMonth(SimulatedMarket):
    """A market of thirty days from ``begin``; everything follows from the recordings, the catalogue and the seed."""

    def __init__(self, catalogue: Catalogue, begin: float, seed: str) -> None:
        self._catalogue, self._begin, self._seed = catalogue, begin, seed
        self._losses = lru_cache(None)(self._find_losses)
        self._gaps = lru_cache(None)(self._find_gaps)
        self._steps = lru_cache(None)(self._find_steps)

    def _random(self, *what: object) -> random.Random:
        return random.Random(f"{self._seed}/{what}")

    def _life(self, pool: Pool) -> tuple[Life, float]:
        """Return which recording a spot pool lives through, and from where."""
        chance, kind = self._random("life", pool), self._catalogue.types[pool.instance_type]
        recorded = ["K80"] if not kind.gpus else ["T4"] if kind.gpu == "T4" else ["T4", "V100"]
        life = lives()[chance.choice(recorded)]
        return life, chance.uniform(0.0, life.length_s)

    def _rounds(self, pool: Pool) -> tuple[Life, list[float]]:
        life, offset = self._life(pool)
        return life, [self._begin - offset + n * life.length_s for n in range(int(DAYS * 86400 // life.length_s) + 2)]

    def _find_losses(self, pool: Pool) -> tuple[tuple[float, float], ...]:
        life, rounds = self._rounds(pool)
        return tuple((began + at, share) for began in rounds for at, share in life.losses)

    def _find_gaps(self, pool: Pool) -> tuple[tuple[float, float], ...]:
        if pool.market == "spot":
            life, rounds = self._rounds(pool)
            return tuple((began + since, began + until) for began in rounds for since, until in life.sold_out)
        chance = self._random("sold out", pool)
        share, mean = SOLD_OUT[self._catalogue.types[pool.instance_type].quota]
        at, found = self._begin + chance.expovariate(share / mean / (1 - share)), []
        while at < self._begin + DAYS * 86400:
            until = at + chance.expovariate(1 / mean)
            found.append((at, until))
            at = until + chance.expovariate(share / mean / (1 - share))
        return tuple(found)

    def _find_steps(self, pool: Pool) -> tuple[tuple[float, float], ...]:
        """Return when a pool costs what: the catalogue's price, moved as recorded, and drifting through the month."""
        price = self._catalogue.price(pool)
        if price is None:
            return ()
        if pool.market == "on-demand":
            return ((self._begin, price.usd_per_hour),)
        chance, recorded = self._random("price", pool), spot_prices()
        earlier, later = recorded.get((pool.instance_type, pool.zone)) or chance.choice(sorted(recorded.values()))
        history = spot_history()[chance.choice(sorted(spot_history()))]
        mean = sum(usd for _, usd in history) / len(history)
        length = history[-1][0] - history[0][0]
        shift = chance.uniform(0.0, length)
        most = self._catalogue.price(pool._replace(market="on-demand"))
        found = []
        for n in range(int(DAYS * 86400 // length) + 2):
            for at, usd in history:
                day = at - history[0][0] - shift + n * length
                drift = (later / earlier) ** min(max(day / (30 * 86400), 0.0), 1.0)
                found.append((self._begin + day, price.usd_per_hour * drift * usd / mean))
        return tuple((at, min(usd, most.usd_per_hour) if most else usd) for at, usd in found)

    def price(self, pool: Pool, at: float) -> float | None:
        """Return dollars per hour."""
        steps = self._steps(pool)
        return steps[max(_after(steps, at) - 1, 0)][1] if steps else None

    def next_price(self, pool: Pool, at: float) -> float:
        """Return when the price next changes."""
        steps = self._steps(pool)
        following = max(_after(steps, at), 1)
        return steps[following][0] if following < len(steps) else NEVER

    def capacity(self, pool: Pool, at: float) -> float:
        """Return how many nodes there may be: none in a gap."""
        gaps = self._gaps(pool)
        index = _after(gaps, at) - 1
        return 0.0 if not self._steps(pool) or (index >= 0 and at < gaps[index][1]) else math.inf

    def taken(self, pool: Pool, launched: float, node: str) -> float:
        """Return when a node is taken: at each loss of its pool with the share of the machines that were taken."""
        if pool.market != "spot":
            return NEVER
        losses, chance = self._losses(pool), self._random("taken", pool, launched, node)
        first = _after(losses, launched)
        return next((at for at, share in losses[first:] if chance.random() < share), NEVER)

    def boot_s(self, pool: Pool, launched: float, node: str) -> float:
        """Return seconds from launch to ``running``."""
        return boot_s(self._random("boot", pool, launched, node))


def _after(steps: tuple[tuple[float, float], ...], at: float) -> int:
    return bisect_right(steps, at, key=lambda step: step[0])
