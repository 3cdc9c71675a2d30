"""Fixed presets in the style of GoToCloud: one type and count of machines for each step, on demand, for all of it.

The types are those of GoToCloud's cluster templates (github.com/KEK-SBRC-CryoEM/gotocloud,
gtc_sh/gtc_config_template_benchmark.yaml, commit 49ec2f9a840bbfb99232261c9766694dcc724ec7: queues of one type each, on
demand by default, `MaxCount` 10 from gtc_config_create.sh) that cloudem's catalogue has; g4dn.metal, g4dn.8xlarge and
12xlarge, g5.16xlarge and 24xlarge, c6i, m6i, r6i and r7i have no price in it. In the preset's favour: nodes end with
their step (ParallelCluster keeps them for ten minutes), the shared file system (FSx for Lustre, 2.4 TB by default) and
public addresses cost nothing, nothing is ever sold out. Everything else is as for cloudem: true speeds, starts, head,
disks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bars.month_job import Alignment, machine
from bars.month_runs import Play
from cloudem.cloud.nodes import InstanceType, Pool
from cloudem.cloud.planning.calibration import speeds
from cloudem.cloud.planning.capacity import FleetCapacity, fleet_capacity
from cloudem.cloud.planning.choices import DISK_GIB, END_S, START
from cloudem.cloud.planning.estimate import Fleet, Range, total
from cloudem.cloud.planning.totals import likely
from cloudem.jobs.refine3d.duration import Alignment as Particles
from cloudem.jobs.refine3d.duration import alignment_work, estimate

TYPES = ("c7i.48xlarge", "g4dn.2xlarge", "g5.4xlarge", "g5.8xlarge", "g5.12xlarge", "g5.48xlarge")
COUNTS = (1, 2, 3, 4, 6, 8, 10)


@dataclass(frozen=True)
class Preset:
    """What is rented for each step that needs workers, what it takes (seconds), likely takes, and costs (dollars)."""

    fleets: tuple[tuple[str, int], ...]
    wall: float
    likely: float
    usd: float

    def describe(self) -> str:
        """Return it as people say it."""
        return "; ".join(f"{count} × {name}" for name, count in self.fleets)


def _rate(play: Play, name: str) -> float | None:
    """Return dollars per hour of a machine with its disk, wherever in the region it is sold."""
    zones = [play.plan.zone, *play.catalogue.zones(play.spec.region)]
    prices = (play.catalogue.price(Pool(name, zone, "on-demand")) for zone in zones)
    price = next((each.usd_per_hour for each in prices if each is not None), None)
    disk = play.catalogue.rates_in(play.spec.region).disk_usd_per_GiB_month * DISK_GIB / 730
    return None if price is None else price + disk


def _expected_s(kind: InstanceType, count: int, work: Particles) -> Range | None:
    """Return what cloudem's own model expects of a fleet; None where it cannot do it."""
    crew = fleet_capacity(Fleet(kind, count), alignment_work(work), speeds())
    return estimate(work, crew).seconds if isinstance(crew, FleetCapacity) else None


def _whole(play: Play, fleets: Mapping[str, tuple[str, int]], seconds: Mapping[str, Range], starts: Range) -> Preset:
    """Return a preset from the seconds of its steps, starting of their nodes among them."""
    head = _rate(play, play.plan.head.instance_type) or 0.0
    wall = total([starts, *seconds.values(), Range.exactly(END_S[False])])
    usd = head * wall.expected / 3600
    for name, (kind, count) in fleets.items():
        usd += count * (_rate(play, kind) or 0.0) * (seconds[name].expected + END_S[False]) / 3600
    return Preset(tuple(fleets.values()), wall.expected, likely(wall), usd + play.besides())


def expected(play: Play) -> Iterator[Preset]:
    """Return all presets as they are expected to be."""
    parallel = {name: work for name, work in play.works.items() if work is not None}
    serial = {name: play.stage(name).wall for name, work in play.works.items() if work is None}
    start = START[False]
    options = []
    for work in parallel.values():
        found = []
        for name, count in itertools.product(TYPES, COUNTS):
            kind = play.catalogue.types[name]
            seconds = _expected_s(kind, count, work) if _rate(play, name) is not None else None
            if seconds is not None:
                found.append(((name, count), start.plus(seconds)))
        options.append(found)
    for chosen in itertools.product(*options):
        fleets = {name: fleet for name, (fleet, _) in zip(parallel, chosen, strict=True)}
        times = {name: seconds for name, (_, seconds) in zip(parallel, chosen, strict=True)}
        yield _whole(play, fleets, serial | times, start)


def chosen(play: Play, presets: list[Preset], hours: float) -> Preset | None:
    """Return the cheapest preset that likely meets a deadline, as cloudem plans too; None where none does."""
    return min((p for p in presets if p.likely <= 3600 * hours), key=lambda p: p.usd, default=None)


def actual(play: Play, preset: Preset) -> Preset:
    """Return what a preset truly takes and costs."""
    head = play.catalogue.types[play.plan.head.instance_type]
    speed = play.world.speed(head, 1)
    starts = _ready(play, head, "preset head")
    parallel = [name for name, work in play.works.items() if work is not None]
    fleets = dict(zip(parallel, preset.fleets, strict=True))
    seconds: dict[str, Range] = {}
    for name, work in play.works.items():
        if work is None:
            stated = sum(play.stage(name).parts.values()) * speeds().of(head).core
            seconds[name] = Range.exactly(play.world.on_head(name) * stated / speed)
            continue
        kind, count = play.catalogue.types[fleets[name][0]], fleets[name][1]
        seconds[name] = Range.exactly(_aligned(play, name, work, kind, count, speed))
    return _whole(play, fleets, seconds, Range.exactly(starts))


def _ready(play: Play, kind: InstanceType, node: str) -> float:
    pool = Pool(kind.name, play.plan.zone, "on-demand")
    return play.market.boot_s(pool, play.spec.at, node) + play.world.ready_s(kind, node)


def _aligned(play: Play, name: str, work: Particles, kind: InstanceType, count: int, head_speed: float) -> float:
    """Return seconds from the request for a fleet to the end of its step."""
    nodes = [f"preset {name} {number}" for number in range(count)]
    ready = sorted((_ready(play, kind, node), node) for node in nodes)
    job = Alignment("", name, play.world, work, ready[0][0], head_speed)
    for at, node in ready:
        job.join(at, machine(play.world, node, kind, work))
    job.advance(math.inf)
    return job.ended
