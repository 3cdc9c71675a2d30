"""The nodes of a run: which there are, and what is asked for and ended so that there are those that are wanted.

What to do about them is decided in `cloudem.cloud.reconcile`; here is what observes for it and carries it out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from cloudem.cloud.money import ENDED, NOT_LISTED, NodeEnded
from cloudem.cloud.nodes import HEAD, Node
from cloudem.cloud.planning.choices import DISK_GIB
from cloudem.cloud.planning.plan import PlannedStep
from cloudem.cloud.provider import Provider
from cloudem.cloud.reconcile import (
    LISTING_S,
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
from cloudem.errors import CapacityError, ProviderError, QuotaError, ThrottledError
from cloudem.runs.agent import ALONE_S
from cloudem.runs.controller.meter import Meter, provider_errors
from cloudem.runs.records import RunRecord, RunStore

LOG = logging.getLogger("cloudem.run")

LAUNCHES = 8
"""Nodes that are asked for at the same time."""

START_KEYS = ("cloudem", "project", "run", "cluster", "provider", "deadline", "certificates", "environment")
"""Of the head's start document that workers get, too."""


class RunFleet:
    """The nodes of one run, its head among them.

    Parameters
    ----------
    store
        Of the run; which nodes were asked for is read now, and from now on nobody else writes it.
    record
        What was asked for and planned.
    node
        The head's start document.
    provider
        Of the nodes.
    meter
        Is told of every node that is paid for, and of its end.
    registered
        Returns the nodes whose workers the scheduler knows; None while that is not known.
    clock
        Unix seconds.

    Attributes
    ----------
    nodes
        As the provider listed them last, and those that ended and that it lists no more.
    """

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        node: Mapping[str, Any],
        provider: Provider,
        meter: Meter,
        registered: Callable[[], Set[str] | None],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._record, self._node, self._provider, self._meter = store, record, node, provider, meter
        self._registered, self._clock = registered, clock
        self.nodes: Sequence[Node] = ()
        self._attempts: Sequence[Attempt] = store.attempts()
        before = store.state()
        self._sign = clock() if before is None else before.at
        self._seen: dict[str, float] = {}
        self._missing: dict[str, float] = {}
        self._ready_at: dict[str, float] | None = None
        self._why_ended: dict[str, str] = {}
        self._quiet_since = clock()

    @property
    def workers(self) -> tuple[Node, ...]:
        """All nodes but the head."""
        return tuple(node for node in self.nodes if node.slot != HEAD)

    def wanted(self, step: PlannedStep) -> dict[str, WantedNode]:
        """Return the nodes that are wanted for a step, by slot."""
        given = {key: value for key, value in self._node.items() if key in START_KEYS}
        # of a cluster without steps nobody knows what its jobs will use
        start = json.dumps(given | (step.workers if self._record.steps else {}))
        kind = f"{step.pool.instance_type}{'-gpu' if step.gpu_GiB else ''}"
        kind += f"-{step.tasks}" if step.tasks else ""
        node = WantedNode((step.pool, *step.fallbacks), start, DISK_GIB)
        return {f"worker-{kind}-{number:04d}": node for number in range(step.count)}

    def settled(self, now: float) -> bool:
        """Return whether no worker is left, and none can appear any more; ``now`` is in unix seconds."""
        workers = self.workers
        if any(node.alive for node in workers):
            self._quiet_since = now
            return False
        gone = {node.token for node in workers}
        lost = any(attempt.token not in gone for attempt in self._attempts)
        return not lost or settled(Observed(workers, tuple(self._attempts)), now, self._quiet_since)

    # ------------------------------------------------------------------ observing

    def look(self, now: float) -> None:
        """See which nodes there are and what they cost, and enter what changed.

        Where the provider does not answer, what was seen before holds.

        Parameters
        ----------
        now
            The time, unix seconds.
        """
        with provider_errors():
            listed = self._provider.nodes(self._record.name)
            ids = {node.id for node in listed}
            known, ended = self._meter.started, self._meter.ended
            self.nodes = [*listed, *self._forgotten({node: at for node, at in ended.items() if node not in ids})]
            if self._ready_at is None:  # of those that are there nobody knows how long they did their work
                self._ready_at = {node.id: now for node in self.nodes}
            for node in listed:
                if node.id not in known:
                    self._meter.enter_start(node)
                if not node.alive and node.id not in ended:
                    self._meter.enter(NodeEnded(node.ended or now, node.id, self._why_ended.get(node.id, ENDED)))
                    LOG.info("%s: %s has ended", node.slot, node.id)
            self._seen |= dict.fromkeys(ids, now)
            self._miss(now, ids)
            self._meter.reprice(now, self.nodes)

    def _miss(self, now: float, listed: Set[str]) -> None:
        """Enter that nodes are gone which are listed no more: they ended soon after their controller was silent."""
        starts = self._meter.started
        missing = starts.keys() - self._meter.ended.keys() - listed
        self._missing = {node: self._missing.get(node, max(starts[node], min(now, self._sign))) for node in missing}
        for node, since in self._missing.items():
            if now - since >= LISTING_S:
                last = max(starts[node], self._seen.get(node, self._sign))
                self._meter.enter(NodeEnded(min(now, last + ALONE_S), node, f"{NOT_LISTED} for {LISTING_S:.0f} s"))
        self._sign = now

    def _forgotten(self, ended: Mapping[str, float]) -> list[Node]:
        """Return nodes that are known to have ended, at those moments, and that the provider lists no more."""
        return [
            Node(
                a.node, self._record.name, a.slot, a.generation, a.token, "ended", a.pools[0], a.first or a.at,
                a.deadline, ended[a.node],
            )
            for a in self._attempts
            if a.node in ended and a.pools
        ]  # fmt: skip

    def _ready(self) -> tuple[frozenset[str], Mapping[str, float]]:
        """Return the nodes whose workers the scheduler knows, and when each was last seen among them."""
        seen, found = self._ready_at or {}, self._registered()
        if found is None:  # it was not asked yet, or does not answer: nobody is replaced for that
            return frozenset(seen), {node.id: self._clock() for node in self.nodes}
        self._ready_at = seen | dict.fromkeys(found, self._clock())
        return frozenset(found), self._ready_at

    # ------------------------------------------------------------------ acting

    def act(self, desired: Desired, now: float) -> str:
        """Do what is next so that there are the nodes that are wanted.

        What the provider refuses is decided upon anew at the next look.

        Parameters
        ----------
        desired
            What there should be.
        now
            The time, unix seconds.

        Returns
        -------
        why
            Why there has been no node for a slot for long; empty where that is not so.
        """
        why = ""
        with provider_errors():
            ready, ready_at = self._ready()
            observed = Observed(self.workers, tuple(self._attempts), self._store.notices(), ready, ready_at)
            actions = reconcile(desired, observed, now)
            for action in actions:  # what costs money first: asking for nodes may take long
                if isinstance(action, Terminate):
                    LOG.info("ending %s: %s", ", ".join(action.nodes), action.why)
                    self._why_ended |= dict.fromkeys(action.nodes, action.why)
                    self._provider.terminate(action.nodes)
                elif isinstance(action, Retire):
                    LOG.info("%s is about to be taken", action.node)
                elif isinstance(action, GiveUp):
                    why = f"{action.slot}: {action.why}"
            self._end_older_heads()
            self._launch([action for action in actions if isinstance(action, Launch)], now)
        return why

    def _end_older_heads(self) -> None:
        slot, generation = str(self._node.get("slot")), int(self._node.get("generation", 1))
        older = [n.id for n in self.nodes if n.alive and n.slot == slot and n.generation < generation]
        if older:
            self._provider.terminate(older)

    def _launch(self, actions: Sequence[Launch], now: float) -> None:
        """Ask for nodes; what is asked for is written down first, so that a crash between repeats the same request."""
        if not actions:
            return
        self._remember(sent(action.request, now) for action in actions)
        with ThreadPoolExecutor(LAUNCHES) as pool:
            answers = list(pool.map(self._ask, actions))
        self._remember(attempt for attempt, _ in answers)
        known = self._meter.started
        for _, node in answers:  # it is paid for, although it may not be listed yet
            if node is not None and node.id not in known:
                self._meter.enter_start(node)

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

    def _remember(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self._attempts = noted(self._attempts, attempt)
        self._store.write_attempts(self._attempts)
