"""Random histories of a cluster: a small controller around `reconcile` and `money`, in a cloud that fails and lies.

A history is data that hypothesis draws. `Play` plays it in simulated time and asserts, all the time and at its end:

- of no slot two nodes ever have the same generation, and its owner's generation never goes back;
- what was really spent (from launch to true end, whatever the cloud told) is at most the cap and the overshoot that was
  stated beforehand;
- after `down` nothing is left, and it is said to be over only then.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import strategies as st

from cloudem.cloud.money import (
    SHUTDOWN_S,
    Cap,
    Entry,
    NodeEnded,
    NodeStarted,
    PriceChanged,
    account,
    latency,
    node_deadline,
    verdict,
    worst_overshoot,
)
from cloudem.cloud.nodes import HEAD, Node, Pool
from cloudem.cloud.reconcile import (
    LISTING_S,
    Attempt,
    Desired,
    GiveUp,
    Launch,
    Observed,
    Phase,
    Retire,
    Terminate,
    WantedNode,
    noted,
    owners,
    reconcile,
    sent,
    settled,
)
from cloudem.errors import CapacityError, ProviderError, QuotaError, ThrottledError
from cloudem.testing.market import RecordedMarket
from cloudem.testing.simulated_cloud import Clock, Fault, MemoryProvider

START = 1.8e9
TO_FINISH_S = 240.0
CLUSTER = "history"
WRONG = (
    *[("launch", kind) for kind in ("throttled", "failed", "lost", "denied")],
    *[("nodes", kind) for kind in ("failed", "late")],
    *[("terminate", kind) for kind in ("throttled", "lost")],
    *[("spot_prices", "failed"), ("resources", "failed"), ("remove", "lost")],
    *[("every call", kind) for kind in ("throttled", "lost")],
)


@dataclass(frozen=True)
class Outage:
    """A time during which a call goes wrong, always or now and then."""

    begin: float
    length: float
    wrong: tuple[str, Literal["throttled", "failed", "lost", "denied", "late"]]
    share: float


@dataclass(frozen=True)
class Crash:
    """The controller dies at its next launch after ``at``: before it asks, or before it notes the answer."""

    at: float
    asked: bool
    away_s: float


@dataclass(frozen=True)
class History:
    """All that happens; times are seconds after its begin."""

    seed: int
    workers: int
    tick_s: float
    on_demand_usd: tuple[float, ...]
    spot: tuple[tuple[tuple[float, float], ...], ...]
    """For each pool its spot price as a share of the price on demand: from when on."""
    sold_out: tuple[tuple[int, float, float], ...]
    interruptions_per_hour: float
    quota: float
    outages: tuple[Outage, ...]
    crashes: tuple[Crash, ...]
    kills: tuple[float, ...]
    never_ready: float
    unready: tuple[tuple[float, float], ...]
    lag_s: float
    late_s: float
    calls_s: float
    """For how long a call fails, at most, before it succeeds once."""
    max_usd: float
    hours: float
    fewer_at: float
    down_at: float
    dead_at: float
    """From when on there is no controller."""
    patience_s: float
    deadlines: bool
    """Whether nodes know when they have to end themselves."""

    def market(self) -> RecordedMarket:
        prices = {pool: [(START, usd)] for pool, usd in zip(self.pools("on-demand"), self.on_demand_usd, strict=True)}
        sold_out: dict[Pool, list[tuple[float, float]]] = {}
        for pool, usd, steps in zip(self.pools("spot"), self.on_demand_usd, self.spot, strict=True):
            prices[pool] = [(START + at, usd * share) for at, share in steps]
        names = [*self.pools("spot"), *self.pools("on-demand")]
        for index, begin, length in sorted(self.sold_out, key=lambda each: each[1]):
            times = sold_out.setdefault(names[index % len(names)], [])
            if not times or START + begin > times[-1][1]:
                times.append((START + begin, START + begin + length))
        rates = dict.fromkeys(self.pools("spot"), self.interruptions_per_hour)
        return RecordedMarket(prices, sold_out, interruptions_per_hour=rates, seed=self.seed)

    def pools(self, market: Literal["spot", "on-demand"]) -> list[Pool]:
        return [Pool(f"type-{index}", "a", market) for index in range(len(self.on_demand_usd))]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw a history."""

    def number(low: float, high: float) -> float:
        return draw(st.integers(0, 1000)) * (high - low) / 1000 + low

    def several(make: object, most: int) -> tuple:
        return tuple(make() for _ in range(draw(st.integers(0, most))))  # type: ignore[operator]

    def steps() -> tuple[tuple[float, float], ...]:
        later = sorted({round(number(60, 7200)) for _ in range(draw(st.integers(0, 3)))})
        return tuple((float(at), draw(st.sampled_from([0.1, 0.3, 0.9, 1.0]))) for at in (0, *later))

    types, workers = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    usd = tuple(number(0.1, 10) for _ in range(types))
    calls_s = draw(st.sampled_from([0.0, 30.0, 100.0, 400.0]))
    down_at = number(300, 14400)
    return History(
        seed=draw(st.integers(0, 2**32)),
        workers=workers,
        tick_s=draw(st.sampled_from([20.0, 30.0, 60.0])),
        on_demand_usd=usd,
        spot=tuple(steps() for _ in range(types)),
        sold_out=several(lambda: (draw(st.integers(0, 5)), number(0, 7200), number(60, 3600)), 5),
        interruptions_per_hour=draw(st.sampled_from([0.0, 0.2, 2.0, 8.0])),
        quota=draw(st.sampled_from([0.0, 2.0, 1e9, 1e9])),
        outages=several(
            lambda: Outage(
                draw(st.sampled_from([0.0, down_at])) + number(0, 3600), number(30, 3600),
                draw(st.sampled_from(WRONG)), draw(st.sampled_from([0.1, 0.5, 1.0])),
            ),
            8,
        ),
        crashes=several(lambda: Crash(number(0, 7200), draw(st.booleans()), number(0, 300)), 3),
        kills=several(lambda: number(60, 14400), 8),
        never_ready=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        unready=several(lambda: (number(0, 7200), number(30, 1200)), 2),
        lag_s=draw(st.sampled_from([0.0, 10.0, 60.0, 100.0])),
        late_s=number(0, LISTING_S - 10),
        calls_s=calls_s,
        max_usd=(workers + 1) * max(usd) * draw(st.sampled_from([0.2, 0.5, 2.0, 1e4])) * number(0.5, 1.5),
        hours=draw(st.sampled_from([0.3, 2.0, 5.0])) * number(0.5, 1.5),
        fewer_at=draw(st.sampled_from([1e9, 1800.0, 3600.0])),
        down_at=down_at,
        dead_at=draw(st.sampled_from([1e9, 1e9, 1e9, down_at / 2])),
        patience_s=number(60, 900),
        deadlines=draw(st.booleans()),
    )  # fmt: skip


class CrashedError(Exception):
    """The controller is gone, and all that it did not write down."""


@dataclass
class Play:
    """A history as it is played."""

    history: History
    clock: Clock = field(default_factory=lambda: Clock(START))
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        h = self.history
        self.random = random.Random(h.seed)
        self.failing: dict[str, float] = {}
        self.chances: dict[str, tuple[bool, bool]] = {}
        market = h.market()
        self.provider = MemoryProvider(
            self.clock, market, quotas={("standard", "spot"): h.quota}, faults=self.fault, lag_s=h.lag_s
        )
        # In the project store, and what the controller keeps in mind.
        self.attempts: tuple[Attempt, ...] = ()
        self.ledger: list[Entry] = []
        self.entered: set[tuple[str, str]] = set()
        self.rates: dict[str, float] = {}
        self.forget()
        self.away_until, self.crashes = START, sorted(h.crashes, key=lambda crash: crash.at)
        self.kills = sorted(h.kills)
        self.drained_at: float | None = None
        self.down = False
        self.owned: dict[str, tuple[int, str]] = {}
        self.last_usd = 0.0
        # What is stated beforehand: the highest rate, and how long it may take until nothing is charged.
        self.cap = Cap(h.max_usd, START + h.hours * 3600)
        self.rate = (h.workers + 1) * max(h.on_demand_usd)
        away = max([crash.away_s for crash in h.crashes], default=0.0)
        self.latency_s = latency(h.tick_s, h.calls_s + h.tick_s + h.lag_s + h.late_s + away)
        self.overshoot = worst_overshoot(self.rate, self.latency_s)
        if h.dead_at < 1e9:
            self.overshoot = max(self.overshoot, worst_overshoot(self.rate, h.patience_s + SHUTDOWN_S))

    def forget(self) -> None:
        """What a controller that begins does not know."""
        self.listing: tuple[Node, ...] | None = None
        self.ready_at: dict[str, float] = {}
        self.listed_at: dict[str, float] = {}
        self.quiet_since = self.clock()
        self.fresh = True

    # --- What goes wrong ------------------------------------------------------------------------------------------

    def fault(self, call: str, now: float) -> Fault | None:
        h = self.history
        for outage in h.outages:
            which, kind = outage.wrong
            there = which in (call, "every call") and 0 <= now - START - outage.begin < outage.length
            if there and self.random.random() < outage.share:
                return self.failed(call, now, Fault(kind, h.late_s if kind == "late" else 0.0))
        self.failing.pop(call, None)
        return None

    def failed(self, call: str, now: float, fault: Fault) -> Fault | None:
        """A call fails for ``calls_s`` at most: then it succeeds once."""
        if fault.kind == "late":
            return fault
        if now - self.failing.setdefault(call, now) >= self.history.calls_s:
            del self.failing[call]
            return None
        self.counts[f"{call} {fault.kind}"] += 1
        return fault

    def ready(self) -> frozenset[str]:
        """Nodes that do their work, as a scheduler knows."""
        now, h = self.clock() - START, self.history
        away = any(begin <= now < begin + length for begin, length in h.unready)
        found = set()
        for node in self.provider.truth(CLUSTER, lately_s=0.0):
            if node.id not in self.chances:
                chance = random.Random(f"{h.seed}/ready/{node.id}")
                self.chances[node.id] = chance.random() < h.never_ready, chance.random() < 0.5
            never, may_be_away = self.chances[node.id]
            if node.state in ("running", "stopping") and not never and not (may_be_away and away):
                found.add(node.id)
        return frozenset(found)

    def happen(self) -> None:
        """Kill nodes without notice; let nodes end themselves when their scheduler is gone for long."""
        now, alive = self.clock(), self.provider.truth(CLUSTER, lately_s=0.0)
        while self.kills and now - START >= self.kills[0]:
            self.kills.pop(0)
            if alive:
                self.provider.kill(self.random.choice(alive).id)
        newest = {node.slot: node for node in alive}
        ready = self.ready()
        doubled = [newest[node.slot] for node in alive if newest[node.slot] is not node]
        doubled = [node for node in doubled if node.id in ready and self.owned.get(node.slot, (0, ""))[1] == node.id]
        if doubled and self.kills and self.random.random() < 0.5:  # the hardest moment: the one before is still there
            self.kills.pop()
            self.provider.kill(doubled[0].id)
        if now - START >= self.history.dead_at + self.history.patience_s + SHUTDOWN_S and not self.down:
            for node in alive:
                self.provider.kill(node.id)

    # --- The controller -------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Observe, decide, act, as the controller of a run does."""
        now = self.clock()
        self.look(now)
        spent = account(self.ledger, now)
        what = verdict(
            self.cap, spent, now, to_finish_s=TO_FINISH_S, latency_s=self.latency_s, planned_rate=self.wanted_rate(now)
        )
        self.counts[what] += 1
        if what == "drain" and self.drained_at is None:
            self.drained_at = now
        if what == "end" or (self.drained_at is not None and now >= self.drained_at + TO_FINISH_S):
            self.down = True
        phase: Phase = "down" if self.down else "run" if self.drained_at is None else "drain"
        if self.listing is None and phase != "down":
            return
        deadline = node_deadline(self.cap, spent, self.rate, now) if self.history.deadlines else now + 1e6
        self.act(Desired(CLUSTER, phase, self.slots(now), deadline), self.observed(), now)

    def look(self, now: float) -> None:
        """List the nodes and enter into the ledger what is new."""
        try:
            self.listing = tuple(self.provider.nodes(CLUSTER))
        except ProviderError:
            self.listing = None
            self.quiet_since = now
            return
        for node in self.listing:
            self.listed_at[node.id] = now
            self.enter_started(node, now)
            if not node.alive:
                self.enter(NodeEnded(node.ended or now, node.id, "ended"), node.id)
        if any(node.alive for node in self.listing):
            self.quiet_since = now
        for node_id in self.rates:
            if now - self.listed_at.setdefault(node_id, now) > LISTING_S:
                self.enter(NodeEnded(now, node_id, "not listed"), node_id)
        self.reprice(now)
        ready = self.ready()
        if self.fresh:
            ready |= {node.id for node in self.listing}
            self.fresh = False
        self.ready_at |= dict.fromkeys(ready, now)

    def enter(self, entry: Entry, node: str) -> None:
        key = (type(entry).__name__, node)
        if key not in self.entered:
            self.entered.add(key)
            self.ledger.append(entry)

    def enter_started(self, node: Node, now: float) -> None:
        if node.id not in self.rates:
            price = self.provider.market.price(node.pool, now)
            assert price is not None
            self.rates[node.id] = price
            self.enter(NodeStarted(node.launched, node.id, node.slot, node.pool, price), node.id)

    def reprice(self, now: float) -> None:
        alive = [node for node in self.listing or () if node.alive and node.pool.market == "spot"]
        try:
            prices = self.provider.spot_prices([node.pool for node in alive]) if alive else {}
        except ProviderError:
            return
        for node in alive:
            if prices[node.pool] != self.rates[node.id]:
                self.rates[node.id] = prices[node.pool]
                self.ledger.append(PriceChanged(now, node.id, prices[node.pool]))

    def slots(self, now: float) -> dict[str, WantedNode]:
        h = self.history
        workers = h.workers if now - START < h.fewer_at else h.workers // 2
        anywhere = WantedNode((*h.pools("spot"), *h.pools("on-demand")), '{"cloudem": 1}')
        return {HEAD: WantedNode(tuple(h.pools("on-demand")), '{"cloudem": 1}')} | {
            f"worker-{number:04d}": anywhere for number in range(1, workers + 1)
        }

    def wanted_rate(self, now: float) -> float:
        return len(self.slots(now)) * max(self.history.on_demand_usd)

    def observed(self) -> Observed:
        notices = self.provider.notices(CLUSTER)
        return Observed(self.listing or (), self.attempts, notices, self.ready(), self.ready_at)

    def act(self, desired: Desired, observed: Observed, now: float) -> None:
        self.check_owners(observed)
        before = self.attempts
        for action in reconcile(desired, observed, now):
            self.counts[type(action).__name__] += 1
            if isinstance(action, Launch):
                assert desired.phase == "run"
                self.launch(action, now)
            elif isinstance(action, Terminate):
                self.terminate(action)
            else:
                assert isinstance(action, Retire | GiveUp)
        if self.attempts is not before:
            self.check_owners(self.observed())

    def terminate(self, action: Terminate) -> None:
        try:
            self.provider.terminate(action.nodes)
        except ProviderError:
            self.counts["terminate failed"] += 1

    def launch(self, action: Launch, now: float) -> None:
        """Write down, ask, note."""
        attempt = sent(action.request, now)
        self.attempts = noted(self.attempts, attempt)
        crash = self.crashes[0] if self.crashes and now - START >= self.crashes[0].at else None
        if crash is not None:
            self.crashes.pop(0)
            self.away_until = now + crash.away_s
            if not crash.asked:
                raise CrashedError
        outcome, node = self.ask(action)
        if crash is not None:
            raise CrashedError
        self.attempts = noted(
            self.attempts,
            Attempt(attempt.token, attempt.slot, attempt.generation, now, outcome, node, attempt.pools),
        )

    def ask(self, action: Launch) -> tuple[Literal["launched", "no-capacity", "quota", "throttled", "unknown"], str]:
        try:
            return "launched", self.provider.launch(action.request).id
        except CapacityError:
            return "no-capacity", ""
        except QuotaError:
            return "quota", ""
        except ThrottledError:
            return "throttled", ""
        except ProviderError:
            return "unknown", ""

    # --- What has to hold -----------------------------------------------------------------------------------------

    def check_owners(self, observed: Observed) -> None:
        """No slot's owner is of an older generation than an owner before, or another node of the same one."""
        for slot, node_id in owners(observed).items():
            generation = next(node.generation for node in observed.nodes if node.id == node_id)
            before = self.owned.get(slot, (generation, node_id))
            assert before <= (generation, node_id), f"{slot}: {node_id} owns after {before}"
            assert before[0] < generation or before[1] == node_id, f"{slot}: two owners of generation {generation}"
            self.owned[slot] = (generation, node_id)

    def check_nodes(self) -> None:
        """Of no slot two nodes ever have one generation."""
        truth = self.provider.truth(CLUSTER)
        assert len({(node.slot, node.generation) for node in truth}) == len(truth)
        assert len({node.token for node in truth}) == len(truth)

    def check_money(self) -> None:
        usd = self.provider.spent(CLUSTER)
        assert usd <= self.cap.max_usd + self.overshoot + 1e-9, (
            f"${usd:.3f} of ${self.cap.max_usd:.3f}, stated was an overshoot of ${self.overshoot:.3f}"
        )

    # --- The whole ------------------------------------------------------------------------------------------------

    def play(self) -> Play:
        """Play until everything is gone, and some time after that."""
        self.until_done(lambda: self.provider.prepare(CLUSTER, {}))
        while not (self.down and settled(self.observed(), self.clock(), self.quiet_since)):
            self.clock.advance(self.history.tick_s)
            self.step()
            assert self.clock() - START < self.history.down_at + 6 * 3600, "it never ends"
        assert not [node for node in self.provider.truth(CLUSTER) if node.alive], "said to be over before it was"
        self.clock.advance(3600)
        assert not [node for node in self.provider.truth(CLUSTER) if node.alive]
        self.until_done(self.release)
        self.check_nodes()
        self.check_money()
        return self

    def step(self) -> None:
        """One pause, and what follows."""
        self.happen()
        now = self.clock()
        if now - START >= self.history.down_at and not self.down:
            self.down = True  # by its owner, from anywhere: also where there is no controller any more
            self.away_until = now
            self.forget()
        if now < self.away_until or (now - START >= self.history.dead_at and not self.down):
            return
        try:
            self.tick()
        except CrashedError:
            self.counts["crash"] += 1
            self.forget()

    def release(self) -> None:
        """Remove everything, as often as it takes."""
        if self.provider.release(CLUSTER) or self.provider.resources(CLUSTER):
            raise ProviderError("something is left")

    def until_done(self, call: Callable[[], None]) -> None:
        for _ in range(1000):
            try:
                return call()
            except ProviderError:
                self.clock.advance(self.history.tick_s)
        return call()
