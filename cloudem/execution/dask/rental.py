"""What a cluster of rented machines needs of whoever rents them, and what follows from what is seen of a node. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

LATE_S = 60.0
"""How long a provider may take to list a node that it has started."""

GONE_S = 30.0
"""How long a node may be without its worker, which its supervisor starts again when it dies, before it is replaced."""


class Rental(Protocol):
    """What a cluster needs of whoever rents machines; every call may block, and comes from any thread."""

    def prepare(self) -> None:
        """Make what all nodes share."""

    def launch(self, slot: str, generation: int) -> str:
        """Start the node of a slot and return its id; after `close` it raises, or ends what it has started."""

    def alive(self) -> Sequence[str]:
        """Return the nodes that are not ended."""

    def scheduler(self) -> str | None:
        """Return the scheduler's address, as soon as the head has told it."""

    def terminate(self, nodes: Sequence[str]) -> None:
        """End nodes; those that are gone are no error."""

    def close(self) -> Sequence[str]:
        """End all nodes, remove all that was made; return what could not be removed. May be repeated."""


class Patience(NamedTuple):
    """How long is waited for nodes.

    Attributes
    ----------
    ready_s
        From the request for a node until its scheduler answers, or its worker has joined; seconds.
    look_s
        Between two looks at the nodes, seconds.
    again_s
        Before a slot whose node failed gets another, seconds; doubled for each failure.
    tries
        Failures in a row after which a slot is given up.
    """

    ready_s: float = 600.0
    look_s: float = 2.0
    again_s: float = 10.0
    tries: int = 3


Fate: TypeAlias = Literal["wait", "launch", "vanished", "silent", "left"]


@dataclass
class WorkerSlot:
    """What is known of a worker's slot.

    Attributes
    ----------
    node
        Id of its node, empty while it has none.
    since
        When that was asked for, seconds since 1970.
    listed, joined
        Whether the provider has told of it, and whether its worker has been at the scheduler.
    missed
        Since when its worker has been missing there.
    failures
        Nodes in a row that did not come to work.
    again
        No node is asked for before.
    asking
        Whether one is being asked for.
    """

    node: str = ""
    since: float = 0.0
    listed: bool = False
    joined: bool = False
    missed: float | None = None
    failures: int = 0
    again: float = 0.0
    asking: bool = False

    def fate(self, alive: frozenset[str], at_work: frozenset[str], now: float, ready_s: float) -> Fate:
        """Note what is seen now, and return what follows.

        Parameters
        ----------
        alive
            Nodes that are not ended.
        at_work
            Those with a worker at the scheduler.
        now
            Seconds since 1970.
        ready_s
            How long a node may take until its worker has joined.
        """
        if not self.node:
            return "wait" if self.asking or now < self.again else "launch"
        self.listed |= self.node in alive
        if self.node not in alive:
            return "vanished" if self.listed or now > self.since + LATE_S else "wait"
        if self.node in at_work:
            self.joined, self.missed, self.failures = True, None, 0
            return "wait"
        if not self.joined:
            return "silent" if now > self.since + ready_s else "wait"
        self.missed = now if self.missed is None else self.missed
        return "left" if now > self.missed + GONE_S else "wait"

    def without_node(self) -> WorkerSlot:
        """Return the slot after the end of its node, which is no failure where that had worked."""
        return WorkerSlot(failures=self.failures if self.joined else self.failures + 1)
