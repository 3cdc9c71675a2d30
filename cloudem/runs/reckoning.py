"""What a run costs where its own records do not tell: entries are missing, or its head is gone.

The ledger is believed where it has entries. Where some are missing, what its controller said of the sum holds; where
nobody writes any more, what the provider says of nodes, and that nodes end themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cloudem.cloud.money import SHUTDOWN_S, Charge, Entry, NodeEnded, NodeStarted, account, worst_overshoot
from cloudem.cloud.nodes import HEAD, Node
from cloudem.cloud.provider import Provider
from cloudem.errors import ProviderError
from cloudem.runs.agent import ALONE_S
from cloudem.runs.records import RunState, RunStore

SILENT_S = 240.0
"""A controller that says nothing for so long, of a head that is gone, is gone."""

NOT_IN_LEDGER = "not in the ledger"
"""What a `Charge` is for that makes up for missing entries."""

SLACK_USD, SLACK = 1e-4, 0.01
"""By how much the sum may differ from what the controller said, in dollars and of all, before entries are missed."""

NAMED = 5
"""Missing entries that a message names."""


class Reckoned(NamedTuple):
    """A ledger with what it lacks, and until when to reckon.

    Attributes
    ----------
    entries
        With a charge for what is missing, and ends of nodes that nobody entered.
    until
        Moment up to which they are reckoned, unix seconds.
    gap
        What is wrong with the ledger, for people; empty if nothing is.
    lost
        That the head is gone and what that may still cost, for people; empty if it is not.
    """

    entries: Sequence[Entry]
    until: float
    gap: str
    lost: str


def reckon(store: RunStore, now: float, nodes: Sequence[Node] | None = None, state: RunState | None = None) -> Reckoned:
    """Return what a run's ledger says, and what it does not.

    Parameters
    ----------
    store
        Of the run.
    now
        The time.
    nodes
        As the provider lists them; None if it was not asked.
    state
        How the run stands; as its record says by default.
    """
    state = state or store.state()
    entries, missing = store.read_ledger()
    started = bool(store.attempts()) or (state is not None and bool(state.nodes or state.spent_usd))
    found, gap = completed(entries, missing, state, now, started=started)
    if state is None:
        return Reckoned(found, now, gap, "")
    if state.over:
        return Reckoned(found, max((entry.at for entry in found), default=now), gap, "")
    if not is_lost(state, now, nodes):
        return Reckoned(found, now, gap, "")
    found = [*found, *_ends(found, state, nodes or ())]
    spent = account(found, now)
    listed = {node.id for node in nodes or () if node.alive}
    left = spent.alive & listed if nodes is not None else spent.alive
    until = min(now, state.at + ALONE_S + SHUTDOWN_S) if not listed else now
    return Reckoned(found, until, gap, _lost(state, now, len(left) if nodes is not None else None))


def completed(
    entries: Sequence[Entry], missing: Sequence[int], state: RunState | None, now: float, *, started: bool
) -> tuple[list[Entry], str]:
    """Return a ledger with a charge for what is missing from it, and what that is; empty if nothing is.

    Numbers of entries are consecutive, so a hole among them shows; whether the last ones are gone shows only in the
    sum that the controller reckoned, as ``state`` has it.

    Parameters
    ----------
    entries, missing
        As `RunStore.read_ledger` returns them.
    state
        How the run stands; None before it began.
    now
        The time.
    started
        Whether nodes were asked for.
    """
    found = list(entries)
    lack = 0.0
    if state is not None:
        known = account(found, state.at)
        lack = max(state.spent_usd - known.total, 0.0)
        if not state.over:  # what is paid for now and has no entry
            until = min(now, state.at + ALONE_S)
            lack += max(state.usd_per_hour - known.rate_per_hour, 0.0) * max(until - state.at, 0.0) / 3600
    none = started and not any(isinstance(entry, NodeStarted) for entry in found)
    noticed = state is not None and lack > SLACK_USD + SLACK * state.spent_usd
    if not (missing or none or noticed):
        return found, ""
    if missing:
        named = ", ".join(map(str, missing[:NAMED])) + (f" and {len(missing) - NAMED} more" if missing[NAMED:] else "")
        what = f"{'entry' if len(missing) == 1 else 'entries'} {named} missing or empty"
    else:
        what = "it has no entry of any node, and nodes were started" if none else "its last entries are missing"
    if state is not None and lack > 0:
        found.append(Charge(state.at, NOT_IN_LEDGER, lack))
        what += f"; ${lack:.5f} were added from state.json"
    return found, f"the ledger has a gap: {what}; the sum is a lower bound"


def is_lost(state: RunState, now: float, nodes: Sequence[Node] | None) -> bool:
    """Return whether a run that is not over has nobody left who looks after it: its head ended, or was silent long."""
    if state.over:
        return False
    heads = [node for node in nodes or () if node.slot == HEAD]
    return now - state.at > SILENT_S or (bool(heads) and not any(head.alive for head in heads))


def nodes_of(store: RunStore, provider: Provider) -> tuple[Sequence[Node] | None, str]:
    """Return a run's nodes as the provider lists them, or None and why it cannot be asked."""
    try:
        return provider.nodes(store.record().name), ""
    except ProviderError as error:
        return None, f"the provider was not asked: {error}"


def _ends(entries: Iterable[Entry], state: RunState, nodes: Sequence[Node]) -> list[NodeEnded]:
    """Return the ends of nodes that nobody entered: as listed, else when a node without controller ends itself."""
    listed = {node.id: node for node in nodes}
    found = []
    for node in account(entries, state.at).alive:
        known = listed.get(node)
        if known is None:
            found.append(NodeEnded(state.at + ALONE_S + SHUTDOWN_S, node, "its head is gone"))
        elif not known.alive:
            found.append(NodeEnded(known.ended or state.at, node, "seen to have ended"))
    return found


def _lost(state: RunState, now: float, alive: int | None) -> str:
    silent = f"head not heard of since {clock_of(state.at)}"
    if alive == 0:
        return f"{silent}; none of its nodes is left"
    end = state.at + ALONE_S + SHUTDOWN_S
    count = "its nodes" if alive is None else f"{alive} of its nodes {'is' if alive == 1 else 'are'} left, which"
    if now >= end and alive is None:
        return f"{silent}; its nodes ended themselves by {clock_of(end)} at the latest"
    most = worst_overshoot(state.usd_per_hour, ALONE_S + SHUTDOWN_S)
    return f"{silent}; {count} end themselves by {clock_of(end)}: at most ${most:.5f} since then"


def clock_of(at: float) -> str:
    """Return a moment as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
