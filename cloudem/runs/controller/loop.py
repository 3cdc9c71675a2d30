"""What runs on the head node: observe, decide, act; run the steps one after another; meter; stop in time.

Everything that it knows is in the project store before anything depends on it, so that it may die at any moment: the
head's agent starts it again, and it goes on. What to do about nodes is decided in `cloudem.cloud.reconcile`, what may
be spent in `cloudem.cloud.money`: both pure. Here is what carries that out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import (
    Account,
    Cap,
    CapChanged,
    Entry,
    NodeEnded,
    NodeStarted,
    Note,
    PriceChanged,
    StepEnded,
    StepStarted,
    account,
    node_deadline,
    verdict,
    worst_overshoot,
)
from cloudem.cloud.nodes import HEAD, Node, Pool
from cloudem.cloud.planning.plan import Plan, PlannedStep
from cloudem.cloud.provider import Provider
from cloudem.cloud.providers import provider_of
from cloudem.cloud.reconcile import (
    LISTING_S,
    WORTH_S,
    Attempt,
    Desired,
    GiveUp,
    Launch,
    Observed,
    Retire,
    Terminate,
    WantedNode,
    noted,
    reconcile,
    sent,
    settled,
)
from cloudem.errors import (
    CapacityError,
    CloudemError,
    FormatError,
    LeaseLostError,
    MissingInputError,
    ParameterError,
    ProviderError,
    QuotaError,
    StorageError,
    ThrottledError,
)
from cloudem.execution.dask.draining import workers_of
from cloudem.io.storage.lease import hold
from cloudem.jobs.logs import keep_log
from cloudem.runs.agent import ALONE_S
from cloudem.runs.controller.steps import RunningStep, StepProcess
from cloudem.runs.reckoning import completed
from cloudem.runs.records import LATENCY_S, OVER, RunState, RunStore, Status, Wishes, node_status
from cloudem.runs.supervision import Repeated
from cloudem.text import dollars

LOG = logging.getLogger("cloudem.run")

TICK_S: Mapping[str, float] = {"local": 0.5, "aws": 5.0}
"""Pause between two looks at everything."""

ORDER_S = 6.0
"""How long a job may take to end when its controller ends, before it is killed."""

KILL_S = 30.0
"""How long a job may take to end when it has to, before it is killed."""

ASK_AGAIN_S = 60.0
"""When a price is asked for again that the provider did not tell."""

PRICES_S = 600.0
"""How often spot prices are asked for."""

KNOWN_S = 3.0
"""How often the scheduler is asked for its workers."""

LAUNCHES = 8
"""Nodes that are asked for at the same time."""

DISK_GIB = 30
"""Root disk of every node."""

TRIES = 3
"""How often a step is begun that fails, where nodes were lost meanwhile."""

FIRST_FINISH_S: Mapping[str, float] = {"local": 10.0, "aws": 120.0}
"""How long an iteration is taken to last before one was seen."""

ITERATION_S = 10.0
"""How often the store is asked for the time that iterations took."""


class Controller:
    """The controller of one run.

    Parameters
    ----------
    store
        Of the run.
    provider
        Of its nodes.
    node
        The head's start document, with ``scheduler`` and ``certificates_folder``.
    begin
        Begins a step: its job, and whether it runs on the head alone.
    workers
        Returns the nodes whose workers the scheduler knows; None while that is not known.
    clock
        Unix seconds.
    report
        Writes the page of a run that is over, and returns where it is.
    """

    def __init__(
        self,
        store: RunStore,
        provider: Provider,
        node: Mapping[str, Any],
        catalogue: Catalogue,
        begin: Callable[[Mapping[str, Any], bool], RunningStep],
        workers: Callable[[], Set[str] | None],
        clock: Callable[[], float] = time.time,
        report: Callable[[RunState], str] | None = None,
    ) -> None:
        self._store, self._provider, self._node, self._catalogue, self._clock = store, provider, node, catalogue, clock
        self._record = store.record()
        self._plan = Plan.from_json(self._record.plan)
        self._wanted: Wishes = store.wanted()
        self._ledger, self._gap = store.read_ledger()
        self._attempts: Sequence[Attempt] = store.attempts()
        self._finished = dict(store.finished())
        self._nodes: list[Node] = []
        self._spot: dict[Pool, tuple[float, float | None]] = {}
        before = store.state()
        self._before = before
        self._sign = clock() if before is None else before.at
        self._seen: dict[str, float] = {}
        self._missing: dict[str, float] = {}
        self._repriced: dict[str, float] = {}
        self._prices_at = 0.0
        self._status: Status = "starting"
        self._why = ""
        self._begin_step, self._workers, self._write_report = begin, workers, report
        self._process: RunningStep | None = None
        self._began = 0.0
        self._tries, self._failed = 0, False
        self._lost_before = 0
        self._asked_to_stop = False
        self._drained_by: Cap | None = None
        self._why_ended: dict[str, str] = {}
        self._stopping_at = 0.0
        self._iteration_s, self._iteration_at = 0.0, 0.0
        self._quiet_since = clock()
        self._ready_at: dict[str, float] | None = None

    @property
    def over(self) -> bool:
        """Whether everything but the head is gone."""
        return self._status in OVER

    def run(self) -> None:
        """Run what is left of the workflow, and return when everything but the head is gone."""
        with hold(self._store.url, log=LOG) as lease, keep_log(LOG, self._store.url, lease.check):
            self.begin()
            try:
                while not self.over:
                    if lease.lost:
                        lease.check()
                    began = self._clock()
                    try:
                        self.tick()
                    except StorageError as error:  # without a sign of life in the store the head ends after a while
                        LOG.warning("%s", error)
                    time.sleep(max(0.0, began + TICK_S[self._record.provider] - self._clock()))
            finally:
                if self._process is not None:
                    self._process.interrupt()
                    limit = time.monotonic() + ORDER_S
                    while self._process.poll() is None and time.monotonic() < limit:
                        time.sleep(0.05)
                    self._process.kill()

    def begin(self) -> None:
        """Say that a controller begins, and with which cap."""
        launches = self._wanted.launch
        self._note(f"controller of launch {launches} started; steps already finished: {len(self._finished)}")
        self._enter(self._cap_entry(self._clock(), self._wanted))

    def tick(self) -> None:
        """Look at everything once, decide, and act.

        The meter goes on, and what it says is acted upon, also while the provider does not answer.
        """
        now = self._clock()
        with provider_errors():
            self._look(now)
        self._make_up(now)
        spent = account(self._ledger, now)
        self._steer(now, spent)
        self._watch_step(now)
        with provider_errors():
            self._act(now, spent)
        self._settle(now)
        state = self._state(now)
        if state.over:  # before anybody hears of it, who might end this machine
            self._report(state)
        self._store.write_state(state)

    # ------------------------------------------------------------------ observing

    def _look(self, now: float) -> None:
        try:
            wanted = self._store.wanted()
        except (FormatError, MissingInputError) as error:  # what was wanted before holds
            LOG.warning("%s", error)
            wanted = self._wanted
        if wanted.launch > int(self._node.get("generation", 1)):
            raise SupersededError(f"launch {wanted.launch} of {self._record.name} has begun, this one ends")
        if (wanted.max_usd, wanted.deadline) != (self._wanted.max_usd, self._wanted.deadline):
            self._enter(self._cap_entry(now, wanted))
        self._wanted = wanted
        listed = self._provider.nodes(self._record.name)
        known = {entry.node for entry in self._ledger if isinstance(entry, NodeStarted)}
        ended = {entry.node: entry.at for entry in self._ledger if isinstance(entry, NodeEnded)}
        self._nodes = [*listed, *self._forgotten(ended.keys() - {node.id for node in listed}, ended)]
        if self._ready_at is None:  # of those that are there nobody knows how long they did their work
            self._ready_at = {node.id: now for node in self._nodes}
        for node in listed:
            if node.id not in known:
                self._enter_start(node)
            if not node.alive and node.id not in ended:
                self._enter(NodeEnded(node.ended or now, node.id, self._why_ended.get(node.id, "ended")))
                LOG.info("%s: %s has ended", node.slot, node.id)
        self._seen |= {node.id: now for node in listed}
        self._miss(now, {node.id for node in listed})
        self._reprice(now)

    def _make_up(self, now: float) -> None:
        """Enter what a ledger with a gap lacks of what was said to be spent before: the cap holds for all of it."""
        before, self._before = self._before, None
        if before is None:
            return
        rested = before.model_copy(update={"usd_per_hour": 0.0})  # what is there now has been entered by now
        full, gap = completed(self._ledger, self._gap, rested, now, started=bool(before.spent_usd))
        if gap:
            more = full[len(self._ledger) :]
            self._note(gap)
            self._enter(*more)

    def _enter_start(self, node: Node) -> None:
        rate = self._rate(node.pool)
        self._enter(NodeStarted(node.launched, node.id, node.slot, node.pool, rate))
        LOG.info("%s: %s, %s, at $%.3f an hour", node.slot, node.id, " ".join(node.pool), rate)

    def _miss(self, now: float, listed: Set[str]) -> None:
        """Enter that nodes are gone which are listed no more: they ended soon after their controller was silent."""
        starts = {entry.node: entry.at for entry in self._ledger if isinstance(entry, NodeStarted)}
        ended = {entry.node for entry in self._ledger if isinstance(entry, NodeEnded)}
        missing = starts.keys() - ended - listed
        self._missing = {node: self._missing.get(node, max(starts[node], min(now, self._sign))) for node in missing}
        for node, since in self._missing.items():
            if now - since >= LISTING_S:
                last = max(starts[node], self._seen.get(node, self._sign))
                self._enter(NodeEnded(min(now, last + ALONE_S), node, f"not listed for {LISTING_S:.0f} s"))
        self._sign = now

    def _forgotten(self, ids: Set[str], ended: Mapping[str, float]) -> list[Node]:
        """Return nodes that are known to have ended and that the provider lists no more."""
        found = []
        for a in self._attempts:
            if a.node in ids and a.pools:
                last = ended[a.node]
                found.append(
                    Node(
                        a.node, self._record.name, a.slot, a.generation, a.token, "ended", a.pools[0], a.first or a.at,
                        a.deadline, last,
                    )
                )  # fmt: skip
        return found

    def _rate(self, pool: Pool) -> float:
        """Return dollars per hour of a node with its disk."""
        if pool.market == "spot" and (spot := self._spot_price(pool)) is not None:
            return spot + self._disk_rate
        price = self._catalogue.price(pool)
        if price is None:  # the worst that is known of the type, so that the cap holds
            price = self._catalogue.price(pool._replace(market="on-demand"))
        if price is None:
            return self._dearest(pool)
        return price.usd_per_hour + self._disk_rate

    def _spot_price(self, pool: Pool) -> float | None:
        """Return what a spot pool costs, as asked lately; what was known last where the provider does not answer."""
        at, known = self._spot.get(pool, (float("-inf"), None))
        if self._clock() < at + PRICES_S:
            return known
        self._spot[pool] = self._clock() - PRICES_S + ASK_AGAIN_S, known
        with provider_errors():
            known = self._provider.spot_prices([pool]).get(pool)
            self._spot[pool] = self._clock(), known
        return known

    def _dearest(self, pool: Pool) -> float:
        """Return the highest price of a region, for what has none here: rather too much than nothing."""
        prices = [self._catalogue.price(Pool(name, pool.zone, "on-demand")) for name in self._catalogue.types]
        found = [price.usd_per_hour for price in prices if price is not None]
        if not found:
            raise ParameterError(f"there is no price of {' '.join(pool)}; `cloudem prices update` may find one")
        return max(found) + self._disk_rate

    @property
    def _disk_rate(self) -> float:
        if self._record.provider == "local":
            return 0.0
        return self._catalogue.rates_in(self._record.region).disk_usd_per_GiB_month * DISK_GIB / (30 * 24)

    def _reprice(self, now: float) -> None:
        """Follow the spot market."""
        if now < self._prices_at + PRICES_S:
            return
        self._prices_at = now
        alive = [node for node in self._nodes if node.alive and node.pool.market == "spot"]
        if alive:
            prices = self._provider.spot_prices(list({node.pool for node in alive}))
            for node in alive:
                usd = prices.get(node.pool, 0.0) + self._disk_rate
                if node.pool in prices and self._repriced.get(node.id) != usd:
                    self._enter(PriceChanged(now, node.id, usd))
                    self._repriced[node.id] = usd

    # ------------------------------------------------------------------ deciding

    def _steer(self, now: float, spent: Account) -> None:
        """Go from running to draining to stopping as money, time and the owner want."""
        finish = self._to_finish(now)
        planned = self._planned_rate(self._planned)
        what = verdict(self._wanted.cap, spent, now, to_finish_s=finish, latency_s=self._latency, planned_rate=planned)
        if what == "run" and (self._wanted.stop or self._too_late(now, spent)):
            what = "drain"
        if what != "run" and self._status in ("starting", "running"):
            self._status = "draining"
            self._why, self._drained_by = self._reason(now, spent), self._wanted.cap
            self._note(f"draining: {self._why}")
        if self._status == "draining" and what == "run" and self._wanted.cap != self._drained_by:
            self._status, self._why = "running", ""  # a job that was asked to stop goes on where it did
            self._note("going on: its limits were changed")
        if self._status == "draining" and self._may_go_on(now, spent):
            self._status, self._why = "running", ""
            self._note("continuing: the remaining budget covers the next step")
        if what == "end" and self._status == "draining":
            self._stopping("the remaining budget only covers shutting down")

    def _may_go_on(self, now: float, spent: Account) -> bool:
        """Return whether what is left surely pays for the next step: one on the head, with no worker to begin it for.

        What ran was stopped for the time that an iteration may take; it may have ended sooner, with its last one.
        """
        planned = self._planned
        if self._process is not None or self._wanted.stop or planned is None or not planned.on_head:
            return False
        finish = planned.wall.high
        return verdict(self._wanted.cap, spent, now, to_finish_s=finish, latency_s=self._latency) == "run"

    def _too_late(self, now: float, spent: Account) -> bool:
        """Return whether what is left pays for no worker that would be of use, where there is none."""
        workers = any(node.alive and node.slot != HEAD for node in self._nodes)
        desired = self._desired(now, spent)
        return bool(desired.slots) and not workers and desired.deadline - now < WORTH_S

    def _to_finish(self, now: float) -> float:
        """Return how long the running iteration may still take, seconds: as long as the longest before it."""
        if self._process is None:
            return 0.0
        if now >= self._iteration_at + ITERATION_S:
            self._iteration_at = now
            self._iteration_s = self._process.iteration_s()
        first, planned = FIRST_FINISH_S[self._record.provider], self._planned
        return self._iteration_s or (first if planned is None else min(first, planned.wall.high))

    def _reason(self, now: float, spent: Account) -> str:
        if self._wanted.stop:
            return "requested by its owner"
        if now + self._to_finish(now) + self._latency >= self._wanted.deadline:
            return "its time is nearly up"
        return f"{dollars(spent.total)} of {dollars(self._wanted.max_usd)} are spent, too much to start the next step"

    @property
    def _latency(self) -> float:
        return LATENCY_S[self._record.provider]

    def _stopping(self, text: str) -> None:
        self._status, self._stopping_at = "stopping", self._clock()
        if self._process is not None:
            self._process.interrupt()
        self._note(f"ending all nodes: {text}")

    @property
    def _step(self) -> int | None:
        """Number of the step that is next, or runs."""
        return next((n for n in range(len(self._record.steps)) if n not in self._finished), None)

    @property
    def _planned(self) -> PlannedStep | None:
        """What was planned for it; for a cluster without steps, its one fleet."""
        number = self._step
        if number is None:
            return self._plan.steps[0] if not self._record.steps and self._plan.steps else None
        return self._plan.steps[number]

    def _planned_rate(self, step: PlannedStep | None) -> float:
        """Return dollars per hour of the head and of all nodes that are planned for a step."""
        workers = step.count * self._rate(step.pool) if step is not None else 0.0
        return self._rate(self._plan.head) + workers

    def _desired(self, now: float, spent: Account) -> Desired:
        planned = self._planned
        needs = planned is not None and not planned.on_head
        if self._status == "stopping" or planned is None or not needs:
            down = self._status == "stopping" or planned is None
            return Desired(self._record.name, "down" if down else "run", {}, now)
        pools = (planned.pool, *planned.fallbacks)
        given = {key: value for key, value in self._node.items() if key in START_KEYS}
        # of a cluster without steps nobody knows what its jobs will use
        start = json.dumps(given | (planned.workers if self._record.steps else {}))
        kind = f"{planned.pool.instance_type}{'-gpu' if planned.gpu_GiB else ''}"
        kind += f"-{planned.tasks}" if planned.tasks else ""
        left = [step for n, step in enumerate(self._plan.steps) if n not in self._finished]
        highest = max(map(self._planned_rate, left), default=0.0)  # so that no node outlives the money, see there
        # the last resort, for when nobody is left to end them: the meter has to have drained the run before
        deadline = node_deadline(self._wanted.cap, spent, highest, now, shutdown_s=0.0)
        slots = {f"worker-{kind}-{number:04d}": WantedNode(pools, start, DISK_GIB) for number in range(planned.count)}
        return Desired(self._record.name, "drain" if self._status == "draining" else "run", slots, deadline)

    # ------------------------------------------------------------------ acting

    def _act(self, now: float, spent: Account) -> None:
        workers = tuple(node for node in self._nodes if node.slot != HEAD)
        ready, ready_at = self._registered()
        observed = Observed(workers, tuple(self._attempts), self._store.notices(), ready, ready_at)
        actions = reconcile(self._desired(now, spent), observed, now)
        for action in actions:  # what costs money first: asking for nodes may take long
            if isinstance(action, Terminate):
                LOG.info("ending %s: %s", ", ".join(action.nodes), action.why)
                self._why_ended |= dict.fromkeys(action.nodes, action.why)
                self._provider.terminate(action.nodes)
            elif isinstance(action, Retire):
                LOG.info("%s is about to be taken", action.node)
            elif isinstance(action, GiveUp):
                self._why = f"{action.slot}: {action.why}"
        mine = str(self._node.get("slot")), int(self._node.get("generation", 1))
        older = [n.id for n in self._nodes if n.alive and n.slot == mine[0] and n.generation < mine[1]]
        if older:
            self._provider.terminate(older)
        self._launch([action for action in actions if isinstance(action, Launch)], now)

    def _registered(self) -> tuple[frozenset[str], Mapping[str, float]]:
        """Return the nodes whose workers the scheduler knows, and when each was last seen among them."""
        seen, found = self._ready_at or {}, self._workers()
        if found is None:  # it was not asked yet, or does not answer: nobody is replaced for that
            return frozenset(seen), {node.id: self._clock() for node in self._nodes}
        self._ready_at = seen | dict.fromkeys(found, self._clock())
        return frozenset(found), self._ready_at

    def _launch(self, actions: Sequence[Launch], now: float) -> None:
        """Ask for nodes; what is asked for is written down first, so that a crash between repeats the same request."""
        if not actions:
            return
        for action in actions:
            self._remember(sent(action.request, now))
        self._store.write_attempts(self._attempts)
        with ThreadPoolExecutor(LAUNCHES) as pool:
            answers = list(pool.map(self._ask, actions))
        for attempt, _ in answers:
            self._remember(attempt)
        self._store.write_attempts(self._attempts)
        known = {entry.node for entry in self._ledger if isinstance(entry, NodeStarted)}
        for _, node in answers:  # it is paid for, although it may not be listed yet
            if node is not None and node.id not in known:
                self._enter_start(node)

    def _ask(self, action: Launch) -> tuple[Attempt, Node | None]:
        attempt = replace(sent(action.request, self._clock()), outcome="unknown")
        try:
            node = self._provider.launch(replace(action.request, tags=self._node.get("tags", {})))
            return replace(attempt, outcome="launched", node=node.id), node
        except CapacityError as error:
            LOG.warning("%s", error)
            return replace(attempt, outcome="no-capacity"), None
        except QuotaError as error:
            LOG.warning("%s", error)
            return replace(attempt, outcome="quota"), None
        except ThrottledError:
            return replace(attempt, outcome="throttled"), None
        except ProviderError as error:
            LOG.warning("%s", error)
            return attempt, None

    def _remember(self, attempt: Attempt) -> None:
        self._attempts = noted(self._attempts, attempt)

    def _watch_step(self, now: float) -> None:
        """Begin, follow and end the steps."""
        if self._process is not None:
            how = self._process.poll()
            if how is not None:
                self._step_ended(now, how)
            elif self._status == "draining" and not self._asked_to_stop:
                self._asked_to_stop = True
                self._process.ask_to_stop()
            elif self._status == "stopping" and now - self._stopping_at >= KILL_S:
                LOG.warning("%s did not end within %.0f s and is killed", self._process.job, KILL_S)
                self._process.kill()
            return
        number = self._step
        if self._status == "draining" or (number is None and self._record.steps):
            if self._status != "stopping":
                done = number is None and bool(self._record.steps)
                self._stopping("the workflow is finished" if done else "nothing is running")
            return
        if number is None or self._status not in ("starting", "running"):
            self._status = "running" if self._status == "starting" else self._status
            return
        step = self._record.steps[number]
        self._status = "running"
        planned = self._plan.steps[number]
        if not planned.on_head and not any(n.state == "running" for n in self._nodes if n.slot != HEAD):
            self._why = "waiting for the first node"
            return
        self._why, self._began, self._asked_to_stop, self._iteration_s = "", now, False, 0.0
        self._enter(StepStarted(now, f"{number}-{step['job']}", planned.usd, planned.wall))
        LOG.info("step %d of %d: %s", number + 1, len(self._record.steps), step["job"])
        self._lost_before = self._lost()
        self._process = self._begin_step(step, planned.on_head)

    def _step_ended(self, now: float, how: str) -> None:
        number, process = self._step, self._process
        assert number is not None and process is not None  # noqa: S101, PT018 - it ran
        name = f"{number}-{process.job}"
        if how == "failed" and self._status == "stopping":  # it was ended before it could say so
            how = "stopped"
        self._enter(StepEnded(now, name, how))
        self._process = None
        if how == "done":
            self._store.finish(number, {"at": now, "seconds": now - self._began, "job": process.job})
            self._finished[number] = {}
            self._tries = 0
        elif how == "failed" or (self._status == "running" and not self._asked_to_stop):  # or somebody else stopped it
            self._tries += 1
            lost = self._lost() > self._lost_before
            if (how == "failed" and not lost) or self._tries >= TRIES:
                self._failed = True
                self._why = f"{name} failed: {process.progress[-1] if process.progress else 'without a message'}"
                self._stopping(self._why)

    def _lost(self) -> int:
        return sum(isinstance(entry, NodeEnded) for entry in self._ledger)

    def _settle(self, now: float) -> None:
        """End when there is nothing left to end."""
        if self._status != "stopping" or self._process is not None:
            return
        workers = tuple(node for node in self._nodes if node.slot != HEAD)
        if any(node.alive for node in workers):
            self._quiet_since = now
            return
        gone = {node.token for node in workers}
        lost = any(attempt.token not in gone for attempt in self._attempts)
        if lost and not settled(Observed(workers, tuple(self._attempts)), now, self._quiet_since):
            return
        done = self._step is None and bool(self._record.steps)
        self._status = "done" if done else "failed" if self._failed else "stopped"
        for node in self._nodes:
            if node.alive:
                self._enter(NodeEnded(now + TICK_S[self._record.provider], node.id, "the run is over"))
        self._note(f"{self._status}: {self._why or 'all steps are finished'}")

    # ------------------------------------------------------------------ telling

    def _enter(self, *entries: Entry) -> None:
        self._store.append(*entries)
        self._ledger.extend(entries)

    def _cap_entry(self, now: float, wanted: Wishes) -> CapChanged:
        return CapChanged(now, wanted.max_usd, (wanted.deadline - self._record.created) / 3600)

    def _note(self, text: str) -> None:
        LOG.info("%s", text)
        self._enter(Note(self._clock(), text))

    def _report(self, state: RunState) -> None:
        """Write the run's page; nothing that fails there keeps the run from ending."""
        try:
            if self._write_report is not None:
                LOG.info("report: %s", self._write_report(state))
        except Exception:
            LOG.exception("the report could not be written; `cloudem cost %s --report FILE` does", self._store.url)

    def _state(self, now: float) -> RunState:
        spent, number = account(self._ledger, now), self._step
        return RunState(
            at=now,
            status=self._status,
            step=number if number is not None else len(self._record.steps),
            steps=len(self._record.steps),
            job=str(self._record.steps[number]["job"]) if number is not None else "",
            progress=self._process.progress if self._process else (),
            spent_usd=spent.total,
            usd_per_hour=spent.rate_per_hour,
            overshoot_usd=worst_overshoot(spent.rate_per_hour, self._latency),
            nodes=() if self.over else tuple(node_status(node) for node in self._nodes if node.alive),
            launch=self._wanted.launch,
            why=self._why,
        )


class SupersededError(LeaseLostError):
    """The run was launched again, and another controller is to go on with it."""


START_KEYS = ("cloudem", "project", "run", "cluster", "provider", "deadline", "certificates", "environment")
"""Of the head's start document that workers get, too."""


@contextlib.contextmanager
def provider_errors() -> Iterator[None]:
    """Go on where a provider fails: it may answer soon, and the meter must not stop."""
    try:
        yield
    except ProviderError as error:
        LOG.warning("%s", error)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run the controller that the head's agent starts; what it needs is in ``CLOUDEM_NODE``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    node = json.loads(environment["CLOUDEM_NODE"])
    store = RunStore.of(node["project"], node["run"])
    try:
        provider = provider_of(node["provider"], store.record().region)
        scheduler, certificates = str(node["scheduler"]), node.get("certificates_folder")
        # their files are in a folder with the node's name
        known = Repeated(lambda: frozenset(workers_of(scheduler, certificates).values()), KNOWN_S)
        begin = partial(StepProcess, scheduler=scheduler, certificates=certificates, say=LOG.info)
        catalogue = Catalogue.load()

        def report(state: RunState) -> str:
            from cloudem.runs.run_report import write_run_page  # draws; is not needed before the end

            return write_run_page(store, catalogue, state)

        Controller(store, provider, node, catalogue, begin, lambda: known.value, report=report).run()
    except SupersededError as error:
        LOG.warning("%s", error)
    except (FormatError, MissingInputError, ParameterError) as error:  # no other controller could do better
        LOG.error("%s", error)
        state = RunState(at=time.time(), status="failed", launch=int(node.get("generation", 1)), why=str(error))
        with contextlib.suppress(CloudemError), hold(store.url, log=LOG):
            store.write_state(state)
    except CloudemError as error:
        LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
