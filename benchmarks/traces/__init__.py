"""Spot machines that were really rented: when they came and when they were taken. Recorded by others, sources inside.

Each ``.txt`` holds one recording, transcribed without loss, with its source and licence in its head:

- form ``levels``: pairs ``time:count`` of how many machines there were, of the number that was asked for all along;
- form ``machines``: pairs ``time:+n``, n machines came (numbered from 1 in that order), and ``time:-a,b``, those were
  taken.

What is *recorded*: these times and counts. What is *derived*: a level that falls by n is read as n interruptions; a
recording that is repeated to fill a month is a month that nobody recorded. The interruption rates that cloudem ships
are the interruptions of all recordings of a kind of GPU over their machine-hours. These fleets took whatever was to be
had in one or two zones, in 2020 and soon after, and some got never as many machines as they asked for: such rates are
high. Of ``p3-bamboo`` the source says that it was recorded on P3 machines of EC2, of ``g4dn-bamboo`` nothing but the
name. Larger recordings exist (github.com/skypilot-org/spot-traces: V100 and CPU machines of 2022 and 2023, a sample
every 30 to 600 s); they are not here.

``spot-prices.csv``: spot prices of the same pools in two fetches of AWS's prices by the SkyPilot catalogue
(github.com/skypilot-org/skypilot-catalog, catalogs/v7/aws/vms.csv, commit 001367d22a0033fac286a8c71aeac7109e431bcb,
then catalogs/v8/aws/vms.csv, commit e385a0d348eda9cefd9806423e7725944dc249e4). The days are not known; the later one is
between 2025-08-18 and 2025-11-18. Two points, not a series: nothing in between is recorded.

``spot-history-c5a.2xlarge.csv``: every change of the spot price of c5a.2xlarge (Linux) in five zones of us-east-1 from
2023-11-11 to 2023-12-06, as AWS's spot price history told it, to the minute; the letters of the zones are those of the
account that asked (github.com/soso0024/Research-Video-Encoding, data/spot_price_history.csv, commit
b65f0074e06215f69f18a6a20547a0de41f48de6, its newer rows left out). Another machine's price that moves by the same
ratios is derived, not recorded.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Event(NamedTuple):
    """Machines that came (`came` > 0) or were taken (`taken` > 0) at a time, seconds from the recording's start."""

    at: float
    came: int
    taken: int


@dataclass(frozen=True)
class Trace:
    """One recording.

    Attributes
    ----------
    name
        Of its file.
    instance_type, gpu, zone, began
        What was rented, where, from which day; "not told" where the source does not tell.
    wanted
        How many were asked for all along; 0 where that is not told.
    events
        In the order of time.
    lifetimes_s
        How long each machine that was taken had lived; empty for recordings that do not tell machines apart.
    source, licence
        Whose it is.
    """

    name: str
    instance_type: str
    gpu: str
    zone: str
    began: str
    wanted: int
    events: tuple[Event, ...]
    lifetimes_s: tuple[float, ...]
    source: str
    licence: str

    @property
    def duration_s(self) -> float:
        """From the first machine that came to the last event."""
        return self.events[-1].at - self.events[0].at

    @property
    def interruptions(self) -> int:
        """Machines that were taken."""
        return sum(event.taken for event in self.events)

    @property
    def machine_hours(self) -> float:
        """Hours of all machines together."""
        hours, alive, last = 0.0, 0, 0.0
        for event in self.events:
            hours += alive * (event.at - last) / 3600
            alive, last = alive + event.came - event.taken, event.at
        return hours

    def losses(self, duration_s: float | None = None) -> tuple[tuple[float, float], ...]:
        """Return when which share of the machines was taken: (seconds, 0 to 1).

        Parameters
        ----------
        duration_s
            The recording is repeated until then (derived, not recorded); None: once. The first machine comes at 0.
        """
        found, alive = [], 0
        for event in self.events:
            if event.taken:
                found.append((event.at - self.events[0].at, event.taken / alive))
            alive += event.came - event.taken
        if duration_s is None:
            return tuple(found)
        rounds = int(duration_s // self.duration_s) + 1
        every = ((at + n * self.duration_s, share) for n in range(rounds) for at, share in found)
        return tuple((at, share) for at, share in every if at < duration_s)


def traces() -> dict[str, Trace]:
    """Return all recordings by name."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.txt"))}


def interruption_rates() -> dict[str, float]:
    """Return interruptions per machine and hour for each kind of GPU, over all of its recordings."""
    kinds: dict[str, list[Trace]] = {}
    for trace in traces().values():
        kinds.setdefault(trace.gpu, []).append(trace)
    return {gpu: sum(t.interruptions for t in of) / sum(t.machine_hours for t in of) for gpu, of in kinds.items()}


def spot_prices() -> dict[tuple[str, str], tuple[float, float]]:
    """Return the spot prices of (type, zone) in the earlier and in the later fetch, dollars per hour."""
    with (FOLDER / "spot-prices.csv").open(newline="") as file:
        return {(row[0], row[1]): (float(row[2]), float(row[3])) for row in list(csv.reader(file))[1:]}


def spot_history() -> dict[str, tuple[tuple[float, float], ...]]:
    """Return for each zone when the spot price of c5a.2xlarge changed, and to what: (seconds since 1970, dollars)."""
    found: dict[str, list[tuple[float, float]]] = {}
    with (FOLDER / "spot-history-c5a.2xlarge.csv").open(newline="") as file:
        for time, zone, usd in list(csv.reader(file))[1:]:
            found.setdefault(zone, []).append((datetime.fromisoformat(time).timestamp(), float(usd)))
    return {zone: tuple(changes) for zone, changes in found.items()}


def _read(path: Path) -> Trace:
    lines = path.read_text().splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    pairs = [pair.split(":") for line in lines if not line.startswith("#") for pair in line.split()]
    unit = float(head["unit_s"])
    events, lifetimes = [], []
    level = 0
    came: dict[int, float] = {}
    numbered = 0
    for time, what in pairs:
        at = float(time) * unit
        if head["form"] == "levels":
            change = int(what) - level
            level = int(what)
            events.append(Event(at, max(change, 0), max(-change, 0)))
        elif what.startswith("+"):
            came |= {numbered + n: at for n in range(1, int(what) + 1)}
            numbered += int(what)
            events.append(Event(at, int(what), 0))
        else:
            gone = [int(number) for number in what[1:].split(",")]
            lifetimes += [at - came.pop(number) for number in gone]
            events.append(Event(at, 0, len(gone)))
    known = {key: head[key] for key in ("instance_type", "gpu", "zone", "began", "source", "licence")}
    return Trace(path.stem, wanted=int(head["wanted"]), events=tuple(events), lifetimes_s=tuple(lifetimes), **known)
