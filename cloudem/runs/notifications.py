"""What a run tells a webhook: that it is finished, failed or stopped, that its money goes, that nodes were lost.

What is told is decided by the controller's own state, and told by a thread of its own, so that no webhook and no store
can hold the controller up. Every message has a key, and ``<run>/notified/<key>.json`` is written, if it is not there,
*before* the message is sent: a controller that is started again sends nothing that an earlier one sent or was about to
send. What was about to be sent when its controller died is lost: at most once is better than twice.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cloudem.cloud.money import Entry, NodeEnded, NodeStarted
from cloudem.cloud.nodes import HEAD
from cloudem.io.storage.groups import read_attributes
from cloudem.runs.records import RunRecord, RunState, RunStore
from cloudem.runs.webhook import Webhook
from cloudem.text import dollars, duration

LOG = logging.getLogger("cloudem.run")

BUDGET_SHARE = 0.8
"""Of the cap; when so much is spent, that is told."""

LOST_EVERY_S = 60.0
"""Lost nodes are told together, at most so often."""

LOST, NODES_LOST = "lost-", "nodes-lost"
"""How the key of a lost node begins, and the kind of event."""

OLD_S = 900.0
"""Who is lost for longer, as after a controller's death, is no news."""

FLUSH_S = 15.0
"""How long the end of a run, with all workers gone, waits for its last messages, seconds."""

MOST_WAITING = 64
"""Messages that wait; more are dropped, which the log says."""

FETCH_S = 10.0
"""Pause before the secret is asked for again where its keeper does not answer, seconds."""


class Notification(NamedTuple):
    """Something to tell.

    Attributes
    ----------
    keys
        What it tells, each told once; made of letters, digits, ``-`` and ``.``.
    kind
        ``finished``, ``failed``, ``stopped``, ``budget`` or ``nodes-lost``.
    text
        For people, one line.
    fields
        For programs.
    """

    keys: tuple[str, ...]
    kind: str
    text: str
    fields: Mapping[str, Any]


@dataclass
class Observer:
    """Decides what there is to tell of a run; knows what it has already told, and asks nobody.

    Attributes
    ----------
    record
        Of the run.
    """

    record: RunRecord
    _told: set[str] = field(default_factory=set)
    _lost_at: float = float("-inf")

    def events(self, state: RunState, max_usd: float, ledger: Sequence[Entry]) -> list[Notification]:
        """Return what is new.

        Parameters
        ----------
        state
            How the run stands.
        max_usd
            Its cap, dollars.
        ledger
            Its entries.
        """
        found = [self._lost(state, ledger), self._budget(state, max_usd), self._end(state, max_usd)]
        events = [event for event in found if event is not None]
        for event in events:
            self._told |= set(event.keys)
        return events

    def _end(self, state: RunState, max_usd: float) -> Notification | None:
        key = f"{state.status}-{state.launch}"
        if not state.over or key in self._told:
            return None
        name, money = self.record.name, f"{dollars(state.spent_usd)} of {dollars(max_usd)}"
        seconds = max(state.at - self.record.created, 0.0)
        kind = {"done": "finished"}.get(state.status, state.status)
        text = f"run {name} {kind} {'in' if kind == 'finished' else 'after'} {duration(seconds)}"
        why = "" if kind == "finished" else state.why or "no reason was given"
        text += f": {why}; {money}" if why else f": {money}"
        if kind == "stopped":
            text += "; cloudem submit --resume goes on from there"
        return Notification((key,), kind, text, _fields(state, max_usd) | {"seconds": seconds, "why": why})

    def _budget(self, state: RunState, max_usd: float) -> Notification | None:
        key = f"budget-{max_usd:.6g}"
        if state.over or state.spent_usd < BUDGET_SHARE * max_usd or key in self._told:
            return None
        text = f"run {self.record.name} has spent {dollars(state.spent_usd)} of {dollars(max_usd)}"
        text += f" ({state.spent_usd / max_usd:.0%})"
        if state.usd_per_hour > 0:
            left_s = max(max_usd - state.spent_usd, 0.0) / state.usd_per_hour * 3600
            text += f"; at {dollars(state.usd_per_hour)} an hour the rest lasts {duration(left_s)}"
        return Notification((key,), "budget", text, _fields(state, max_usd))

    def _lost(self, state: RunState, ledger: Sequence[Entry]) -> Notification | None:
        """Tell of lost nodes together, so that a hundred that are reclaimed at once are one message."""
        if state.status not in ("running", "draining"):  # before and after, nodes come and go by themselves
            return None
        nodes = {node for node in lost_nodes(ledger, state.at - OLD_S) if f"{LOST}{node}" not in self._told}
        if not nodes or state.at - self._lost_at < LOST_EVERY_S:
            return None
        self._lost_at = state.at
        return _loss(self.record.name, [f"{LOST}{node}" for node in sorted(nodes)])


def lost_nodes(ledger: Sequence[Entry], since: float) -> dict[str, str]:
    """Return the slots of workers that ended since a moment (unix seconds) though nobody here had ended them, by ID."""
    slots = {entry.node: entry.slot for entry in ledger if isinstance(entry, NodeStarted) and entry.slot != HEAD}
    return {
        entry.node: slots[entry.node]
        for entry in ledger
        if isinstance(entry, NodeEnded) and entry.unasked and entry.at >= since and entry.node in slots
    }


class Notifications:
    """Tells a webhook what there is to tell, in a thread of its own.

    Parameters
    ----------
    store
        Of the run.
    record
        Of the run.
    url
        Returns the webhook's URL; None where there is none, and then nothing is told. May hang, or raise.
    pause
        Waits for so many seconds.
    """

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        url: Callable[[], bytes | None],
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store, self._record, self._fetch, self._pause = store, record, url, pause
        self._observer = Observer(record)
        self._waiting: queue.Queue[Notification] = queue.Queue(MOST_WAITING)
        self._off = threading.Event()
        threading.Thread(target=self._run, name="cloudem-webhook", daemon=True).start()

    def look(self, state: RunState, max_usd: float, ledger: Sequence[Entry]) -> None:
        """Tell what is new; returns at once, but for the last time: when the run is over it waits up to `FLUSH_S`."""
        if self._off.is_set():
            return
        for event in self._observer.events(state, max_usd, ledger):
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                LOG.warning("notification %s was dropped: too many are waiting", event.kind)
        if state.over:
            self._flush()

    def _flush(self) -> None:
        limit = time.monotonic() + FLUSH_S
        while self._waiting.unfinished_tasks and not self._off.is_set() and time.monotonic() < limit:
            time.sleep(0.02)

    def _run(self) -> None:
        webhook = self._webhook()
        if webhook is None:
            self._off.set()
            return
        while True:
            event = self._waiting.get()
            try:
                self._tell(webhook, event)
            except Exception as error:  # of a store that fails; what a library says may hold what it was given
                LOG.warning("notification %s was not sent: %s", event.kind, type(error).__name__)
            finally:
                self._waiting.task_done()

    def _webhook(self) -> Webhook | None:
        said = False
        while True:
            try:
                url = self._fetch()
                return None if url is None else Webhook(url.decode())
            except ValueError:  # another look would find the same
                LOG.warning("notifications are off: the secret of the run holds no URL of a webhook")
                return None
            except Exception as error:
                if not said:
                    LOG.warning("the webhook's URL cannot be read yet: %s", type(error).__name__)
                said = True
                self._pause(FETCH_S)

    def _tell(self, webhook: Webhook, event: Notification) -> None:
        claimed = [key for key in event.keys if self._store.claim_message(key)]
        if not claimed:
            return
        if event.kind == NODES_LOST:  # an earlier controller may have told of some of them
            event = _loss(self._record.name, claimed)
        text, fields = event.text, dict(event.fields)
        if event.kind == "finished" and (resolution := self._resolution()) is not None:
            text = text.replace(": ", f": {resolution:.1f} Å, ", 1)
            fields["resolution_A"] = resolution
        about = {"event": event.kind, "id": f"{self._record.name}/{claimed[0]}", "run": self._record.name}
        problem = webhook.deliver({"text": escaped(text), **about, **fields}, self._pause)
        if problem:
            LOG.warning("notification %s was not delivered: %s", event.kind, problem)
        else:
            LOG.info("notification %s was delivered", event.kind)

    def _resolution(self) -> float | None:
        """Return the resolution of the last result that has one, Å."""
        for step in reversed(self._record.steps):
            found = read_attributes(str(step.get("out", "")), "result") or {}
            value = found.get("resolution_A")
            if isinstance(value, int | float) and value > 0:
                return float(value)
        return None


def escaped(text: str) -> str:
    """Return a text as Slack takes it: without links and mentions, whatever the last line of a job was."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _loss(run: str, keys: Sequence[str]) -> Notification:
    """Return what is told of lost nodes."""
    nodes = [key.removeprefix(LOST) for key in keys]
    named = ", ".join(nodes[:3]) + (" and more" if len(nodes) > 3 else "")
    count = f"{len(nodes)} nodes ({named}); their" if len(nodes) > 1 else f"a node ({named}); its"
    return Notification(tuple(keys), NODES_LOST, f"run {run} lost {count} work is repeated by others", {"nodes": nodes})


def _fields(state: RunState, max_usd: float) -> dict[str, Any]:
    return {
        "status": state.status,
        "spent_usd": round(state.spent_usd, 5),
        "max_usd": max_usd,
        "usd_per_hour": round(state.usd_per_hour, 5),
    }
