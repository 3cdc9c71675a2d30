"""What a run was planned to cost and take, beside what it did: from its ledger and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloudem.cloud.money import Account, CapChanged, Entry, NodeEnded, NodeStarted, StepEnded, StepStarted, account
from cloudem.cloud.planning.estimate import Range
from cloudem.cloud.planning.plan import Plan


class StepCost(NamedTuple):
    """A step: planned and actual, dollars and seconds; ``how`` it ended, empty while it runs."""

    name: str
    planned_usd: Range | None
    usd: float
    planned_wall: Range | None
    wall: float
    how: str


class NodeCost(NamedTuple):
    """A node: what it is, for how long it was there (seconds) and what it cost."""

    node: str
    slot: str
    pool: str
    seconds: float
    usd: float
    alive: bool


@dataclass(frozen=True)
class Costs:
    """What a run costs.

    Attributes
    ----------
    steps, nodes
        One by one.
    spent
        In all.
    planned
        In all, dollars.
    max_usd
        The cap, as it was set last.
    """

    steps: tuple[StepCost, ...]
    nodes: tuple[NodeCost, ...]
    spent: Account
    planned: Range
    max_usd: float | None


def costs(plan: Plan, ledger: Sequence[Entry], now: float) -> Costs:
    """Return what a run costs by now."""
    spent = account(ledger, now)
    caps = [entry for entry in ledger if isinstance(entry, CapChanged)]
    return Costs(
        tuple(_steps(ledger, spent, now)),
        tuple(_nodes(ledger, spent, now)),
        spent,
        plan.usd,
        max(caps, key=lambda entry: entry.at).max_usd if caps else None,
    )


def _steps(ledger: Sequence[Entry], spent: Account, now: float) -> list[StepCost]:
    """Return the steps in the order in which they began, then what belongs to none."""
    marks = [
        entry for entry in sorted(set(ledger), key=lambda entry: entry.at) if isinstance(entry, StepStarted | StepEnded)
    ]
    names = list(dict.fromkeys(mark.step for mark in marks))
    found = [_step([mark for mark in marks if mark.step == name], spent, now) for name in names]
    rest = {name: usd for name, usd in sorted(spent.by_step.items()) if name not in names and usd > 0}
    return found + [StepCost(name, None, usd, None, 0.0, "") for name, usd in rest.items()]


def _step(marks: Sequence[StepStarted | StepEnded], spent: Account, now: float) -> StepCost:
    """A step that was begun again took all of its times; where an end is missing, the controller died in between."""
    wall, since, planned = 0.0, None, None
    for mark in marks:
        if isinstance(mark, StepStarted):
            since = mark.at if since is None else since
            planned = planned or mark
        elif since is not None:
            wall, since = wall + mark.at - since, None
    last = marks[-1]
    usd, seconds = (planned.usd, planned.wall) if planned else (None, None)
    return StepCost(
        last.step,
        Range(*usd) if usd else None,
        spent.by_step.get(last.step, 0.0),
        Range(*seconds) if seconds else None,
        wall if since is None else wall + now - since,
        last.how if isinstance(last, StepEnded) else "",
    )


def _nodes(ledger: Sequence[Entry], spent: Account, now: float) -> list[NodeCost]:
    starts = {entry.node: entry for entry in reversed(ledger) if isinstance(entry, NodeStarted)}
    ends = {entry.node: entry.at for entry in reversed(ledger) if isinstance(entry, NodeEnded)}
    return [
        NodeCost(
            node,
            start.slot,
            " ".join(start.pool),
            max(ends.get(node, now) - start.at, 0.0),
            spent.by_node[node],
            node in spent.alive,
        )
        for node, start in sorted(starts.items(), key=lambda item: item[1].at)
    ]
