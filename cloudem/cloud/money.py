"""What was spent, what is being spent, and when to stop: a ledger's entries, and pure functions of them.

The ledger only grows. Its entries may come twice and in any order, and a controller that died leaves nodes without
their end: what they cost is reckoned until now, until somebody notes that they are gone. Times are seconds since 1970
(UTC), money is US dollars. Providers charge per second, at least a minute for each node; a spot node is charged at the
price that holds at each moment. What else is assumed is in ``docs/money.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias

from cloudem.cloud.nodes import Pool
from cloudem.cloud.planning.estimate import Range
from cloudem.errors import FormatError

MINIMUM_S = 60.0
"""A node is charged for at least that (EC2's rule for Linux, per second with a minimum of one minute)."""

SHUTDOWN_S = 60.0
"""From the decision of a node to end until it is charged no more."""

START_UP, IDLE = "(start-up)", "(idle)"
"""Under what `Account.by_step` has the cost of time before the first step, and of any other time outside of steps."""

ENDED, NOT_LISTED = "ended", "not listed"
"""Why a node ended that nobody here had ended, or how the text begins that says so."""

Verdict: TypeAlias = Literal["run", "drain", "end"]


@dataclass(frozen=True)
class Entry:
    """A line of the ledger; ``at`` is when it happened, not when it was written."""

    at: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data, with its kind."""
        return {"kind": type(self).__name__} | {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Entry:
        """Return the entry that `as_json` wrote.

        Raises
        ------
        FormatError
            It is of no known kind, its fields are not those of its kind, or a number is none or beyond all reason:
            with such a one no comparison with the cap would hold.
        """
        if not isinstance(data, Mapping):
            raise FormatError("an entry of the ledger is no JSON object")
        values = dict(data)
        kind = KINDS.get(str(values.pop("kind", "")))
        if kind is None:
            raise FormatError(f"the ledger has an entry of kind {data.get('kind')!r}; known are {', '.join(KINDS)}")
        try:
            if "pool" in values:
                values["pool"] = Pool(*values["pool"])
            for name in ("usd", "wall"):
                if isinstance(values.get(name), list | tuple):
                    values[name] = Range(*values[name])
            entry = kind(**values)
        except TypeError as error:
            raise FormatError(f"an entry {data.get('kind')} of the ledger cannot be read: {error}") from None
        for field in fields(entry):
            if not _sound(field.name, getattr(entry, field.name)):
                raise FormatError(
                    f"an entry {data.get('kind')} of the ledger has {field.name} = {data[field.name]!r:.60}"
                )
        return entry


_LARGEST = {"at": 1e11, "usd_per_hour": 1e6, "usd": 1e9, "max_usd": 1e12, "max_hours": 1e9}
"""Fields of entries that are numbers, and how large each may be."""


def _sound(name: str, value: object) -> bool:
    if isinstance(value, Range):
        return all(isinstance(each, int | float) and math.isfinite(each) for each in value)
    if isinstance(value, Pool):
        return all(isinstance(each, str) for each in value)
    if name in ("usd", "wall") and value is None:
        return True
    if name in _LARGEST:
        least = 0.0 if name in ("usd", "usd_per_hour") else -_LARGEST[name]
        return isinstance(value, int | float) and least <= value <= _LARGEST[name]
    return isinstance(value, str)


@dataclass(frozen=True)
class NodeStarted(Entry):
    """A node is paid for from ``at`` on: the moment of the call that launched it.

    ``usd_per_hour`` is of all that is paid as long as the node exists: machine, disk, public address.
    """

    node: str
    slot: str
    pool: Pool
    usd_per_hour: float


@dataclass(frozen=True)
class PriceChanged(Entry):
    """From ``at`` on a node costs ``usd_per_hour``."""

    node: str
    usd_per_hour: float


@dataclass(frozen=True)
class NodeEnded(Entry):
    """A node was seen to be gone, at ``at``: never written for a node that was only told to end."""

    node: str
    why: str = ""

    @property
    def unasked(self) -> bool:
        """Whether nobody here had ended it: it was taken, or failed."""
        return self.why == ENDED or self.why.startswith(NOT_LISTED)


@dataclass(frozen=True)
class StepStarted(Entry):
    """A step began; with what it was planned to cost (dollars) and to take (seconds)."""

    step: str
    usd: Range | None = None
    wall: Range | None = None


@dataclass(frozen=True)
class StepEnded(Entry):
    """A step ended: ``finished``, ``failed``, ``stopped``."""

    step: str
    how: str = "finished"


@dataclass(frozen=True)
class Charge(Entry):
    """Something that is not paid by time: requests, egress."""

    what: str
    usd: float


@dataclass(frozen=True)
class CapChanged(Entry):
    """The user set, or changed, what the run may cost and take."""

    max_usd: float
    max_hours: float


@dataclass(frozen=True)
class Note(Entry):
    """Something for people to read."""

    text: str


KINDS: dict[str, Callable[..., Entry]] = {
    kind.__name__: kind
    for kind in (NodeStarted, PriceChanged, NodeEnded, StepStarted, StepEnded, Charge, CapChanged, Note)
}


@dataclass(frozen=True)
class Account:
    """What the ledger says at one moment.

    Attributes
    ----------
    total
        Dollars spent: nodes and charges.
    by_node
        Dollars of every node.
    by_step
        Dollars of every step, and of `START_UP` and `IDLE`; their sum is ``total``.
    by_charge
        Dollars of what is not paid by time, by what it was.
    rate_per_hour
        What the nodes that are alive cost per hour.
    alive
        Nodes that have no end.
    """

    total: float
    by_node: Mapping[str, float]
    by_step: Mapping[str, float]
    by_charge: Mapping[str, float]
    rate_per_hour: float
    alive: frozenset[str]


class Cap(NamedTuple):
    """What a run may cost (dollars), and when it has to be over."""

    max_usd: float
    deadline: float


class _Paid(NamedTuple):
    """A stretch of time in which a node has one price."""

    begin: float
    end: float
    usd_per_hour: float

    @property
    def usd(self) -> float:
        return (self.end - self.begin) * self.usd_per_hour / 3600


def account(entries: Iterable[Entry], now: float) -> Account:
    """Return what was spent until ``now``.

    Entries may come twice and in any order. Of several starts of one node the earliest counts, of several ends the
    earliest too: who saw it later saw only that it was gone. An end without a start has no price and counts nothing.
    """
    known = set(entries)
    starts, ends, changes = _lives(known)
    steps = _steps(known)
    by_node: dict[str, float] = {}
    by_step: dict[str, float] = {}
    by_charge: dict[str, float] = {}
    for node, start in starts.items():
        stretches = _stretches(start, changes.get(node, []), min(ends.get(node, now), now))
        by_node[node] = sum(stretch.usd for stretch in stretches)
        for stretch in stretches:
            _share(stretch, steps, by_step)
    for entry in known:
        if isinstance(entry, Charge):
            by_charge[entry.what] = by_charge.get(entry.what, 0.0) + entry.usd
            name = _step_at(steps, entry.at)
            by_step[name] = by_step.get(name, 0.0) + entry.usd
    alive = frozenset(starts) - frozenset(ends)
    rate = sum(_stretches(starts[node], changes.get(node, []), now)[-1].usd_per_hour for node in alive)
    return Account(sum(by_node.values()) + sum(by_charge.values()), by_node, by_step, by_charge, rate, alive)


def _lives(known: set[Entry]) -> tuple[dict[str, NodeStarted], dict[str, float], dict[str, list[PriceChanged]]]:
    """Return start, end and changes of price of every node."""
    starts: dict[str, NodeStarted] = {}
    ends: dict[str, float] = {}
    changes: dict[str, list[PriceChanged]] = {}
    for entry in known:
        if isinstance(entry, NodeStarted):
            other = starts.get(entry.node, entry)
            starts[entry.node] = min(entry, other, key=lambda start: (start.at, -start.usd_per_hour))
        elif isinstance(entry, NodeEnded):
            ends[entry.node] = min(entry.at, ends.get(entry.node, entry.at))
        elif isinstance(entry, PriceChanged):
            changes.setdefault(entry.node, []).append(entry)
    return starts, ends, changes


def _stretches(start: NodeStarted, changes: Sequence[PriceChanged], end: float) -> list[_Paid]:
    """Return the stretches for which a node is paid, at least `MINIMUM_S` in all and never none."""
    end = max(end, start.at + MINIMUM_S)
    marks = [(start.at, start.usd_per_hour)]
    marks += sorted((change.at, change.usd_per_hour) for change in changes if start.at < change.at < end)
    ends = [at for at, _ in marks[1:]] + [end]
    return [_Paid(at, until, usd) for (at, usd), until in zip(marks, ends, strict=True)]


def _steps(known: set[Entry]) -> list[tuple[float, str]]:
    """Return from when on time belongs to what: at any time to the step that was started last, and has not ended."""
    marks: list[tuple[float, str]] = [(float("-inf"), START_UP)]
    found = [entry for entry in known if isinstance(entry, StepStarted | StepEnded)]
    # Of what happens at one moment the end comes first.
    for entry in sorted(found, key=lambda entry: (entry.at, isinstance(entry, StepStarted), entry.step)):
        if isinstance(entry, StepStarted):
            marks.append((entry.at, entry.step))
        elif marks[-1][1] == entry.step:
            marks.append((entry.at, IDLE))
    return marks


def _share(stretch: _Paid, steps: Sequence[tuple[float, str]], by_step: dict[str, float]) -> None:
    """Add a stretch of a node to the steps during which it was."""
    for (begin, name), after in zip(steps, [*(at for at, _ in steps[1:]), float("inf")], strict=True):
        common = min(stretch.end, after) - max(stretch.begin, begin)
        if common > 0:
            by_step[name] = by_step.get(name, 0.0) + common * stretch.usd_per_hour / 3600


def _step_at(steps: Sequence[tuple[float, str]], at: float) -> str:
    return [name for begin, name in steps if begin <= at][-1]


def verdict(
    cap: Cap, spent: Account, now: float, *, to_finish_s: float, latency_s: float, planned_rate: float = 0.0
) -> Verdict:
    """Say whether to go on.

    Parameters
    ----------
    cap
        What must not be passed.
    spent
        What was spent until ``now``.
    now
        The time.
    to_finish_s
        How long it takes to finish the running iteration, or whatever cannot be interrupted without being lost.
    latency_s
        From now until all nodes are charged no more, if they are told to end at the next occasion: the meter's
        interval, the calls, the shutdown; see `latency`.
    planned_rate
        Dollars per hour of all nodes that are wanted, where more are wanted than are known to be alive.

    Returns
    -------
    verdict
        ``run``; ``drain`` (stop scheduling, checkpoint, finish: what is left only just pays for that); ``end``
        (terminate at once: what is left only just pays for that).
    """
    # A node that is launched in the next moment costs a minute at once.
    rate = max(spent.rate_per_hour, planned_rate) / 3600
    left_usd, left_s = cap.max_usd - spent.total, cap.deadline - now
    if left_usd <= rate * max(latency_s, MINIMUM_S) or left_s <= latency_s:
        return "end"
    if left_usd <= rate * (to_finish_s + max(latency_s, MINIMUM_S)) or left_s <= to_finish_s + latency_s:
        return "drain"
    return "run"


def latency(interval_s: float, calls_s: float, shutdown_s: float = SHUTDOWN_S) -> float:
    """Return seconds from when a cap is passed until nothing is charged any more: meter, calls, shutdown."""
    return interval_s + calls_s + shutdown_s


def node_deadline(
    cap: Cap, spent: Account, planned_rate: float, now: float, *, shutdown_s: float = SHUTDOWN_S
) -> float:
    """Return when a node that is launched now has to end itself.

    That is when the money would be gone if, from now on, ``planned_rate`` (dollars per hour) were spent. Where it is
    the highest rate of the whole plan, no node outlives the money, even when nobody is left who could end it: whatever
    was spent since is at most what was reckoned with here. It is never after the run's own deadline.
    """
    rate = max(planned_rate, spent.rate_per_hour) / 3600
    left_s = (cap.max_usd - spent.total) / rate if rate > 0 else float("inf")
    return max(now, min(now + left_s, cap.deadline) - shutdown_s)


def worst_overshoot(rate_per_hour: float, latency_s: float) -> float:
    """Return what may be spent beyond the cap (dollars) while ``latency_s`` pass at ``rate_per_hour``.

    The latency is that of the meter (`latency`) as long as the controller lives, and the patience of the nodes, with
    their shutdown, when it is dead.
    """
    return rate_per_hour * max(latency_s, MINIMUM_S) / 3600


def describe_cap(max_usd: float, rate_per_hour: float, *, latency_s: float, patience_s: float) -> str:
    """Return for people what a cap promises.

    Parameters
    ----------
    max_usd
        The cap.
    rate_per_hour
        The highest rate of the plan, dollars.
    latency_s
        See `latency`.
    patience_s
        After how long a node ends itself when scheduler or controller are gone.
    """
    normal = worst_overshoot(rate_per_hour, latency_s)
    dead = worst_overshoot(rate_per_hour, patience_s + SHUTDOWN_S)
    return (
        f"approximate maximum ${max_usd:,.2f}; worst overshoot ${normal:,.2f} (all nodes for {latency_s:.0f} s), "
        f"${dead:,.2f} if the control plane dies (nodes end themselves after {patience_s + SHUTDOWN_S:.0f} s)"
    )
