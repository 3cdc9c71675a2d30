"""What to do next so that there are the machines that are wanted: a pure function of what was observed.

One owner of a role
-------------------
A *token* is ``cluster/slot/generation``. One token makes at most one node (that is the provider's promise, see
`cloudem.cloud.provider.Provider.launch`), so of one slot no two nodes have the same generation, whatever was lost,
repeated or answered wrongly: a request whose fate is not known is repeated with its token, and every other request of
the slot has a higher generation. Before a request is sent it is written down as an `Attempt`, so that generations never
go back, even if the controller dies between.

The node of the highest generation *attempted* owns the slot, from when it is ready (`owners`). That is fencing: the
moment a next generation is written down the older one owns nothing any more, whether it knows or not, and never will
again; it is ended, or retires first where the provider takes it after a notice. A next generation is attempted only
when the node of the one before is gone, is about to be taken, was told to end, or never appeared.

Nothing here waits or remembers. Backoff follows from the attempts; it is deterministic, without jitter: what happened
determines what is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from cloudem.cloud.nodes import Node, Pool, Request

Phase: TypeAlias = Literal["run", "drain", "down"]

Outcome: TypeAlias = Literal["sent", "launched", "no-capacity", "quota", "throttled", "unknown"]

LISTING_S = 120.0
"""A node that was launched is listed after so long, or is gone."""

UNANSWERED_S = 300.0
"""A request without an answer made its node within that, or will make none."""

RESEND_S = 20.0
"""A request whose answer nobody wrote down (the controller died) is repeated after that."""

READY_S = 600.0
"""A node that is not ready for so long is replaced."""

BACKOFF_S, LONGEST_BACKOFF_S = 10.0, 300.0
"""Wait after a first failure; doubled with each further one, to at most that."""

SOLD_OUT_S = 900.0
"""A pool that had no capacity, or takes its nodes back, is tried after the others for so long."""

GIVE_UP_S = 1800.0
"""When nothing but failures came for so long, somebody has to be told."""

WORTH_S = 60.0
"""With less time left no node is launched: it would end before it works."""

QUIET_S = 30.0
"""Everything is gone when nothing was listed for so long."""

BURST = 20
"""Requests at a time; only one after a failure, until one succeeds."""


@dataclass(frozen=True)
class WantedNode:
    """A node that is wanted: where from, best first; its start document (JSON); its root disk."""

    pools: tuple[Pool, ...]
    start: str = "{}"
    disk_GiB: int = 30


@dataclass(frozen=True)
class Desired:
    """What there should be.

    Attributes
    ----------
    cluster
        Name of the cluster.
    phase
        ``run``; ``drain``: what there is goes on, nothing is launched; ``down``: everything ends.
    slots
        What is wanted, by slot. Nodes of other slots are ended.
    deadline
        When nodes launched now have to end themselves.
    """

    cluster: str
    phase: Phase
    slots: Mapping[str, WantedNode]
    deadline: float


@dataclass(frozen=True)
class Attempt:
    """A request that was sent, or is about to be: one for each token (`sent`, `noted`).

    Attributes
    ----------
    token, slot, generation, pools, deadline
        Of the request. Where ``deadline`` is 0 it was not kept.
    at
        When it was sent last.
    outcome
        ``sent``: no answer is known; ``unknown``: the call failed, and whether it did something cannot be told.
    node
        What was launched.
    first
        When it was sent for the first time; 0 where that was not kept.
    failures
        How many answers were failures.
    """

    token: str
    slot: str
    generation: int
    at: float
    outcome: Outcome
    node: str = ""
    pools: tuple[Pool, ...] = ()
    deadline: float = 0.0
    first: float = 0.0
    failures: int = 0


@dataclass(frozen=True)
class Observed:
    """What there is.

    Attributes
    ----------
    nodes
        As the provider told.
    attempts
        Requests, the last of each token.
    notices
        Nodes that are about to be taken: when.
    ready
        Nodes that do their work: a worker known to the scheduler, a head whose scheduler answers.
    ready_at
        When each node was last seen to be ready. None where nobody keeps that: then only nodes that remain ``pending``
        are taken to be not ready. Who begins to keep it begins with the nodes that it finds, as ready.
    """

    nodes: tuple[Node, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    notices: Mapping[str, float] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    ready_at: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Launch:
    """Write the attempt down (`sent`), then ask for a node, then write down what came of it (`noted`)."""

    request: Request


@dataclass(frozen=True)
class Retire:
    """Have others take over what a node holds; it is said again until the node is ready no more."""

    node: str


@dataclass(frozen=True)
class Terminate:
    """End nodes."""

    nodes: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class GiveUp:
    """For long there was no node to be had for a slot. Attempts go on, rarely, until it is not wanted any more."""

    slot: str
    why: str


Action: TypeAlias = Launch | Retire | Terminate | GiveUp


def token_of(cluster: str, slot: str, generation: int) -> str:
    """Return the token of a node."""
    return f"{cluster}/{slot}/{generation}"


def sent(request: Request, now: float) -> Attempt:
    """Return the attempt to write down before a request is sent."""
    return Attempt(
        request.token, request.slot, request.generation, now, "sent", "", request.pools, request.deadline, now
    )


def noted(attempts: Iterable[Attempt], attempt: Attempt) -> tuple[Attempt, ...]:
    """Return attempts with one more, or with what came of one; what has launched a node stays launched."""
    kept = {each.token: each for each in attempts}
    before = kept.pop(attempt.token, None)
    if before is not None:
        failed = attempt.outcome not in ("sent", "launched")
        attempt = replace(
            attempt,
            first=before.first or before.at,
            failures=before.failures + failed,
            deadline=attempt.deadline or before.deadline,
        )
        if before.node and not attempt.node:
            attempt = replace(attempt, outcome="launched", node=before.node)
    return (*kept.values(), attempt)


class _Slot:
    """What is known of one slot; ``top`` is the highest generation attempted, 0 where there was none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.attempts: dict[int, Attempt] = {}
        self.top = 0

    def holder(self) -> Node | None:
        """Return the node of the highest generation, as listed.

        Should a provider have made two with one token, the older is it: so say all who look.
        """
        found = [node for node in self.nodes if node.generation == self.top]
        return min(found, key=lambda node: (not node.alive, node.launched, node.id), default=None)


def _by_slot(observed: Observed) -> dict[str, _Slot]:
    slots: dict[str, _Slot] = {}
    known: tuple[Node | Attempt, ...] = (*observed.nodes, *observed.attempts)
    for each in known:
        slot = slots.get(each.slot)
        if slot is None:
            slot = slots[each.slot] = _Slot(each.slot)
        if isinstance(each, Node):
            slot.nodes.append(each)
        else:
            slot.attempts[each.generation] = each
        slot.top = max(slot.top, each.generation)
    return slots


def owners(observed: Observed) -> dict[str, str]:
    """Return the owner of every slot that has one: slot -> node. Nobody else is to be given work of that slot."""
    found = {}
    for name, slot in _by_slot(observed).items():
        node = slot.holder()
        if node is not None and node.state in ("pending", "running") and node.id in observed.ready:
            found[name] = node.id
    return found


def settled(observed: Observed, now: float, quiet_since: float) -> bool:
    """Tell whether, after ``down``, nothing is left and nothing can appear any more.

    ``quiet_since`` is since when no node was listed that is alive. A request without an answer may still make a node,
    and one that was refused may have made one nevertheless, until `UNANSWERED_S` and `LISTING_S` after it was sent.
    """
    if any(node.alive for node in observed.nodes) or now - quiet_since < QUIET_S:
        return False
    ended = {node.token for node in observed.nodes}
    return all(
        attempt.token in ended or now - attempt.at >= (UNANSWERED_S if _unanswered(attempt) else LISTING_S)
        for attempt in observed.attempts
    )


def _unanswered(attempt: Attempt) -> bool:
    return attempt.outcome in ("sent", "unknown")


def reconcile(desired: Desired, observed: Observed, now: float) -> list[Action]:
    """Return what to do next.

    All of it may be done twice, or not at all: who observes afterwards and asks again gets what is missing.
    """
    slots = _by_slot(observed)
    if desired.phase == "down":
        return _end_all(observed, now)
    ending: dict[str, list[str]] = {}
    actions: list[Action] = []
    for name, slot in sorted(slots.items()):
        for node in slot.nodes:
            if node.state in ("stopping", "ended"):
                continue
            why = _why_end(node, slot, name in desired.slots, observed, now)
            if why:
                ending.setdefault(why, []).append(node.id)
            elif node.id in observed.notices and node.id in observed.ready:
                actions.append(Retire(node.id))
    actions[:0] = [Terminate(tuple(ids), why) for why, ids in ending.items()]
    return actions + _launches(desired, observed, slots, now)


def _end_all(observed: Observed, now: float) -> list[Action]:
    """End what is listed, and what was launched so lately that it may not be listed yet."""
    listed = {node.id for node in observed.nodes}
    ids = [node.id for node in observed.nodes if node.state in ("pending", "running")]
    ids += [a.node for a in observed.attempts if a.node and a.node not in listed and now - a.at < LISTING_S]
    return [Terminate(tuple(ids), "the cluster ends")] if ids else []


def _why_end(node: Node, slot: _Slot, wanted: bool, observed: Observed, now: float) -> str:
    """Return why a node has to end, or nothing."""
    taken = observed.notices.get(node.id)
    if taken is not None and now < taken and node.id in observed.ready:
        return ""  # it retires first
    if not wanted:
        return "not wanted any more"
    holder = slot.holder()
    if node.generation < slot.top:
        return f"replaced by generation {slot.top}"
    if holder is not None and node.id != holder.id:
        return "a second node of the same generation"
    if now >= node.deadline:
        return "past its deadline"
    return f"not ready for {READY_S:.0f} s" if _unready(node, observed, now) else ""


def _unready(node: Node, observed: Observed, now: float) -> bool:
    if node.id in observed.ready:
        return False
    if observed.ready_at is None:
        return node.state == "pending" and now - node.launched >= READY_S
    return now - max(node.launched, observed.ready_at.get(node.id, node.launched)) >= READY_S


def _launches(desired: Desired, observed: Observed, slots: Mapping[str, _Slot], now: float) -> list[Action]:
    """Return requests for slots that have no node, those first that waited longest; and what is hopeless."""
    if desired.phase != "run" or desired.deadline - now < WORTH_S:
        return []
    sold_out = _sold_out(observed, now)
    due: list[tuple[float, Request]] = []
    hopeless: list[Action] = []
    for name, wanted in desired.slots.items():
        slot = slots.get(name, _Slot(name))
        failures = _failures(slot, observed)
        since = now - (failures[-1].first or failures[-1].at) if failures else 0.0
        if since >= GIVE_UP_S and _all_failed(wanted, failures):
            why = f"no node for {since / 60:.0f} min, the last answer was {failures[0].outcome}"
            hopeless.append(GiveUp(name, why))
        generation = _generation(slot, failures, observed, now)
        if generation is None:
            continue
        before = slot.attempts.get(slot.top)
        due.append((before.at if before else 0.0, _request(desired, slot, wanted, generation, sold_out, now)))
    due.sort(key=lambda each: (each[0], each[1].slot))
    answers = [attempt for attempt in observed.attempts if attempt.outcome != "sent"]
    last = max(answers, key=lambda attempt: attempt.at, default=None)
    burst = BURST if last is None or last.outcome == "launched" else 1
    return [*hopeless, *(Launch(request) for _, request in due[:burst])]


def _generation(slot: _Slot, failures: Sequence[Attempt], observed: Observed, now: float) -> int | None:
    """Return of which generation a node is to be asked for now; None where there is one, or is to be waited."""
    again, following = slot.top, slot.top + 1
    node, attempt = slot.holder(), slot.attempts.get(slot.top)
    rested = not failures or now - _failed_at(slot, failures[0]) >= backoff(len(failures))
    if node is not None:
        if node.state in ("pending", "running"):
            going = node.id in observed.notices or _unready(node, observed, now) or now >= node.deadline
            return following if going and rested else None
        return following if rested else None
    if attempt is None:
        return following
    waited = now - attempt.at
    if attempt.outcome == "launched":
        return following if waited >= LISTING_S else None
    if attempt.outcome == "sent":
        return again if waited >= RESEND_S else None
    if attempt.outcome in ("no-capacity", "quota"):
        return following if rested else None
    if attempt.outcome == "unknown" and now - (attempt.first or attempt.at) >= UNANSWERED_S:
        return following
    return again if waited >= backoff(attempt.failures or 1) else None


def backoff(failures: int) -> float:
    """Return how long to wait after so many failures, seconds."""
    return min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 1, 30))


def _failures(slot: _Slot, observed: Observed) -> list[Attempt]:
    """Return the attempts, newest first, since the last that gave a node which worked."""
    nodes = {node.generation: node for node in slot.nodes}
    found = []
    for generation in sorted(slot.attempts, reverse=True):
        attempt, node = slot.attempts[generation], nodes.get(generation)
        if node is not None:
            early = node.ended is not None and node.ended - node.launched < READY_S + LISTING_S
            if not early or (observed.ready_at is not None and node.id in observed.ready_at):
                break
        elif attempt.outcome in ("sent", "launched"):
            break
        found.append(attempt)
    return found


def _failed_at(slot: _Slot, attempt: Attempt) -> float:
    ends = [node.ended for node in slot.nodes if node.generation == attempt.generation and node.ended is not None]
    return max([attempt.at, *ends])


def _all_failed(wanted: WantedNode, failures: Iterable[Attempt]) -> bool:
    return set(wanted.pools) <= {pool for attempt in failures for pool in attempt.pools}


def _sold_out(observed: Observed, now: float) -> dict[Pool, float]:
    """Return pools that lately had no capacity, or take their nodes back: when."""
    found: dict[Pool, float] = {}
    for attempt in observed.attempts:
        if attempt.outcome in ("no-capacity", "quota") and now - attempt.at < SOLD_OUT_S:
            for pool in attempt.pools:
                found[pool] = max(attempt.at, found.get(pool, attempt.at))
    return found | {node.pool: now for node in observed.nodes if node.id in observed.notices}


def _request(
    desired: Desired, slot: _Slot, wanted: WantedNode, generation: int, sold_out: Mapping[Pool, float], now: float
) -> Request:
    """Return a request; the same as before, where it is repeated."""
    before = slot.attempts.get(generation)
    pools = tuple(sorted(wanted.pools, key=lambda pool: sold_out.get(pool, 0.0)))
    deadline = desired.deadline
    if before is not None:
        pools, deadline = before.pools or pools, before.deadline or deadline
    start = json.loads(wanted.start) | {
        "cluster": desired.cluster,
        "slot": slot.name,
        "generation": generation,
        "deadline": deadline,
    }
    token = token_of(desired.cluster, slot.name, generation)
    return Request(token, desired.cluster, slot.name, generation, pools, deadline, json.dumps(start), wanted.disk_GiB)
