"""The hidden truth of the simulated month: what a planner does not know, drawn for each workflow apart.

Each workflow is a world of its own: how fast the types of machines are, how the refinement goes, what the model of the
costs overlooks, what network and storage give. So the month averages over what is not known; in a single real world
the same type would be as fast for all. Where a distribution comes from is said beside it.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cloudem.cloud.nodes import InstanceType
from cloudem.cloud.planning.calibration import SpeedRow, speeds
from cloudem.jobs.refine3d import cost as costs
from cloudem.jobs.refine3d.cost import Convergence
from cloudem.jobs.refine3d.duration import Alignment as Particles

RESULTS = Path(__file__).parents[1] / "results"

STATED = 1.645
"""A stated spread is read as holding the truth in nine of ten cases: so many standard deviations of its logarithm."""

ONE_MACHINE = 0.04
"""Machines of a type differ by this much (standard deviation). Supposed."""

OVERLOOKED = 0.1
"""Besides measured over estimated, which were used to choose the model: a further error of it. Supposed."""

BEYOND_BOX, BEYOND = 192, 0.15
"""No whole refinement of a larger box was measured: the error grows by so much with each doubling. Supposed."""

FACTORS = {
    "crowd": (1.0, 1.3),
    "link": (0.45, 0.9),
    "solving": (0.8, 1.4),
    "scheduler": (0.8, 2.0),
    "storing": (0.5, 3.0),
}
"""Drawn evenly: tasks side by side, share of the nominal bandwidth, solving with real data, scheduler with hundreds of
workers (measured to 32), writing to object storage. Supposed."""

READING = 80e6, 0.45
"""Bytes per second of a connection to object storage, and the standard deviation of its logarithm. Supposed."""

ON_HEAD = 0.4
"""Steps on the head were measured in single runs: standard deviation of the logarithm. Supposed."""

BOOT_S = {"median": 75.0, "sigma": 0.35, "gpu": 25.0, "work": (10.0, 45.0), "late": (0.03, 240.0)}
"""From launch to running, more for GPUs, from running to a worker that works; and how often it takes how much longer.
Supposed, from what people report; not the planner's 45, 110, 240 s."""


@cache
def residuals() -> tuple[float, ...]:
    """Return measured over estimated wall time of the whole refinements in docs/benchmarks.md."""
    from tests.runs.test_workload import MEASURED, REFERENCE, Fleet, surely, work

    return tuple(
        wall / surely(Fleet(REFERENCE, 1), work(count, box, length, diameter, start, symmetry)).seconds.expected
        for box, length, diameter, start, symmetry, count, wall in MEASURED
    )


@cache
def iterations() -> tuple[int, ...]:
    """Return how many iterations the measured refinements took: every row of benchmarks/results that tells."""
    found = []
    for path in sorted(RESULTS.glob("*.jsonl")):
        if path.stem in ("apoferritin", "noise", "ribosome96", "ribosome128", "scaling"):
            rows = [json.loads(line).get("row", {}) for line in path.read_text().splitlines()]
            found += [int(row["iterations"]) for row in rows if "iterations" in row]
    return tuple(found)


@dataclass(frozen=True)
class World:
    """What is true for one workflow; everything follows from its seed, machines from ``machines`` where it is given."""

    seed: str
    machines: str = ""

    def random(self, what: str) -> random.Random:
        """Return the chance of one thing, whatever else was asked for before."""
        return random.Random(f"{self.seed}/{what}")

    def factor(self, what: str) -> float:
        """Return one of `FACTORS`."""
        return self.random(what).uniform(*FACTORS[what])

    def _true(self, what: str, row: SpeedRow) -> float:
        chance = random.Random(f"{self.machines or self.seed}/{what}")
        return row.core * math.exp(chance.gauss(0.0, math.log(row.spread) / STATED))

    def speed(self, kind: InstanceType, tasks: int) -> float:
        """Return the true speed of each of so many tasks on a machine's processor, threads of the reference."""
        row = speeds().of(kind)
        return row.busy(kind, tasks) * self._true(f"family {kind.name.partition('.')[0]}", row) / row.core

    def gpu(self, kind: InstanceType) -> float:
        """Return the true speed of one of its GPUs; 0 where it has none."""
        row = speeds().gpu(kind)
        return self._true(f"GPU {kind.gpu}", row) if row is not None else 0.0

    def machine(self, node: str) -> float:
        """Return how a single machine differs from its type."""
        return math.exp(self.random(f"machine {node}").gauss(0.0, ONE_MACHINE))

    def cost(self, box: int) -> float:
        """Return the true over the estimated CPU costs of this refinement."""
        chance = self.random("cost")
        beyond = BEYOND * max(math.log2(box / BEYOND_BOX), 0.0)
        return chance.choice(residuals()) * math.exp(chance.gauss(0.0, math.hypot(OVERLOOKED, beyond)))

    def reading(self) -> float:
        """Return bytes per second of a connection to object storage."""
        return READING[0] * math.exp(self.random("reading").gauss(0.0, READING[1]))

    def on_head(self, step: str) -> float:
        """Return the true over the estimated time of a step on the head, apart from the head's speed."""
        return math.exp(self.random(f"serial {step}").gauss(0.0, ON_HEAD))

    def ready_s(self, kind: InstanceType, node: str) -> float:
        """Return seconds from a machine's being ``running`` until its worker works."""
        return self.random(f"ready {node}").uniform(*BOOT_S["work"]) + BOOT_S["gpu"] * bool(kind.gpus)

    def course(self, step: str) -> Convergence:
        """Return how the refinement really goes: as many iterations as a measured one, to 0.4 of Nyquist or beyond."""
        chance = self.random(f"course {step}")
        unsettled = [1.0, chance.uniform(0.4, 1.0)]
        unsettled += [chance.uniform(0.1, 1.0)] if chance.random() < 0.7 else []
        unsettled += [chance.uniform(0.05, 0.5)] if len(unsettled) == 3 and chance.random() < 0.4 else []
        return Convergence(chance.choice(iterations()), chance.uniform(0.4, 1.0), tuple(unsettled))

    def particle_s(self, work: Particles, step: str) -> list[tuple[float, int, int]]:
        """Return of each iteration the CPU-seconds of a particle, the last shell inserted and that of the reference."""
        factor = self.cost(work.box)
        if work.settings is None:
            return [(factor * costs.at_box(costs.INSERT_S, work.box), work.box // 2 - 1, 0)]
        found = []
        for plan, unsettled in costs.iterations_of(work.settings, self.course(step), local=work.local):
            searching = unsettled * costs.search_seconds(plan, work.symmetry) if unsettled else 0.0
            found.append((factor * (costs.local_seconds(plan) + searching), plan.k_insert, plan.k_score))
        return found


def boot_s(chance: random.Random) -> float:
    """Return seconds from launch to ``running``."""
    late, more = BOOT_S["late"]
    extra = more * chance.random() if chance.random() < late else 0.0
    return BOOT_S["median"] * math.exp(chance.gauss(0.0, BOOT_S["sigma"])) + extra
