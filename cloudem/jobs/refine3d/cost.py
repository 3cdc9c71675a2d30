"""What the parts of a refinement cost on the reference core: measured figures, and how they go with box and parameters.

The reference is one thread of an AMD EPYC (Zen 3, 2.45 GHz, virtual machine) with nothing beside it. Figures by box are
medians of ``benchmarks/results/workers.jsonl`` (see ``docs/scaling.md``); between boxes they are interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from cloudem.algorithms.expectation import IterationPlan
from cloudem.algorithms.refinement import GROWTH, Settings, State, iteration_plan
from cloudem.algorithms.search import shift_grid
from cloudem.jobs.dataset import MOST_GROUPS
from cloudem.kernels.polar import polar_grid
from cloudem.model.poses import asymmetric_directions
from cloudem.model.symmetry import operators

ALIGN = {64: 0.34e-3, 96: 0.73e-3, 128: 1.57e-3, 192: 6.5e-3, 256: 13.4e-3, 384: 37.8e-3, 512: 84e-3}
"""Local refinement and insertion of a particle, scored to :data:`SCORED`, by box: CPU-seconds."""

LEAF = {64: 0.0034, 96: 0.013, 128: 0.025, 192: 0.114, 256: 0.24, 384: 2.7, 512: 5.8}
"""A new accumulator, and packing it: CPU-seconds."""

MERGE = {64: 0.0001, 96: 0.001, 128: 0.0019, 192: 0.0114, 256: 0.0276, 384: 0.127, 512: 0.32}
"""Adding two packed sums: CPU-seconds."""

SOLVE = {64: 0.09, 96: 0.24, 128: 0.52, 192: 1.48, 256: 3.8, 384: 11.3, 512: 28.9}
"""From the sums of a half-set to its next reference, in one thread: CPU-seconds (96 px interpolated)."""

SOLVED_BY_ONE, MOST_SOLVING = 0.3, 4.0
"""Share of it that one thread does, and how many threads make the rest faster at most. Supposed: two made the largest
part 1.8 times faster, more were not measured."""

LOCAL_VOXEL_S, LOCAL_VOXEL_BYTES = 1.0e-6, 80
"""Filtering both references from place to place, and the FSC of their core, by voxel of the box: CPU-seconds, bytes
beside the rest. Measured."""

UNPACK = {64: 0.0042, 96: 0.0149, 128: 0.0353, 192: 0.139, 256: 0.266, 384: 1.57, 512: 3.9}
"""Unpacking a reference, all shells: CPU-seconds."""

SCORED = 0.7
"""Share of Nyquist to which :data:`ALIGN` was measured; all shells were inserted."""

ALWAYS, INSERTING = 0.15, 0.25
"""Shares of :data:`ALIGN` that are always there (transforms), and that go with the shells inserted."""

SEARCH_S, SEARCHED = 12.99e-3, (17, 367, 37, 100)
"""Searching a particle on that many rings, directions, shifts and angles: CPU-seconds, measured."""

PRODUCTS = 0.63
"""Share of it that goes with the rings (matrix products)."""

SCORE_S = 101e-9
"""Scoring one Fourier pixel of one pose with its derivatives: CPU-seconds, measured at 128 px."""

CLIMBS = 6.0
"""Times that a candidate is scored after a search, on the shells searched. Supposed: most are dropped on the way."""

PASS_S = 0.2e-3
"""Passes over the images before the first iteration (noise, contrast), a particle of 128 px: CPU-seconds, measured."""

FINISH_S = 1.0e-6
"""By voxel of the box, the last maps, FSC and report: seconds, measured."""

POSE_S, POSE_BYTES = 2.2e-6, 129
"""A particle's pose in the client, CPU-seconds; and bytes of the table that each worker gets. Measured."""

TASK_S: Mapping[str, float] = {"add": 0.64e-3, "note": 0.60e-3, "merge": 1.28e-3, "collect": 0.85e-3}
"""Of the scheduler, by kind of task: CPU-seconds, measured with 32 workers."""

INSERT_S = {box: 0.4 * seconds for box, seconds in ALIGN.items()}
"""Inserting a particle whose pose is known (``reconstruct``): measured at 128 px, grows like :data:`ALIGN`."""


def at_box(figures: Mapping[int, float], box: int) -> float:
    """Return a cost at a box: straight lines between the logarithms of the measured ones, beyond them as n³ log n."""
    return _at_box(tuple(sorted(figures.items())), box)


@cache
def _at_box(figures: tuple[tuple[int, float], ...], box: int) -> float:
    (first, least), (last, most) = figures[0], figures[-1]
    if box > last:
        return most * (box / last) ** 3 * math.log(box) / math.log(last)
    if box < first:
        return least * (box / first) ** 2
    known, cost = np.log(np.array(figures)).T
    return float(math.exp(np.interp(math.log(box), known, cost)))


class Convergence(NamedTuple):
    """How a refinement may go: what the data decide.

    Attributes
    ----------
    iterations
        In all.
    reaches
        Resolution in the end, share of Nyquist.
    unsettled
        Share of the images that each search searches.
    """

    iterations: int
    reaches: float
    unsettled: tuple[float, ...]


EXPECTED = Convergence(7, 0.6, (1.0, 1.0, 0.3))
"""As most measured refinements went: 5 to 7 iterations, two or three searches."""

QUICK, LONG = Convergence(5, 0.45, (1.0, 0.5)), Convergence(11, 1.0, (1.0, 1.0, 1.0, 0.5, 0.3))
"""As the shortest and the longest of them went."""


def iterations_of(settings: Settings, course: Convergence, *, local: bool) -> list[tuple[IterationPlan, float]]:
    """Return what each iteration of a course does, and the share of the images that it searches."""
    reach = max(settings.first_limit, min(settings.last_limit, round(course.reaches * (settings.box // 2 - 1))))
    number = min(course.iterations, settings.most_iterations)
    searched = () if local else course.unsettled[:number]
    limit, found = settings.first_limit, []
    for index in range(number):
        search = index < len(searched)
        state = State(iteration=index + 1, limit=limit, search=search, final=index == number - 1)
        found.append((iteration_plan(state, settings), searched[index] if search else 0.0))
        limit = min(GROWTH * limit, reach)
    return found


@cache
def _directions(step: float, symmetry: str) -> int:
    return len(asymmetric_directions(step, operators(symmetry)))


def search_seconds(plan: IterationPlan, symmetry: str) -> float:
    """Return CPU-seconds of searching a particle and of refining what is found."""
    rings, directions, shifts, angles = SEARCHED
    k = plan.k_search
    tried = len(shift_grid(plan.shift_radius, plan.shift_step))
    turned = polar_grid(k, plan.radius, plan.box).angles
    poses = _directions(plan.step, symmetry) / directions * tried / shifts * turned / angles
    climbing = plan.candidates * CLIMBS * math.pi / 2 * k * k * SCORE_S
    return SEARCH_S * poses * (1 - PRODUCTS + PRODUCTS * k / rings) + climbing


def local_seconds(plan: IterationPlan) -> float:
    """Return CPU-seconds of refining a particle's poses and inserting them."""
    half = plan.box / 2
    tried = 7 if plan.fan else 1
    scoring = (1 - ALWAYS - INSERTING) * tried * (plan.k_score / (SCORED * half)) ** 2
    inserting = INSERTING * (plan.k_insert / half) ** 2
    return at_box(ALIGN, plan.box) * (ALWAYS + scoring + inserting)


def scheduler_seconds(counts: Mapping[str, int]) -> float:
    """Return the scheduler's CPU-seconds for tasks (:func:`cloudem.execution.reduction_tree.task_counts`)."""
    return sum(number * TASK_S.get(name, TASK_S["note"]) for name, number in counts.items())


def items_of(particles: int, size: int) -> int:
    """Return the tasks of both half-sets (:func:`cloudem.jobs.dataset.groups_of`)."""
    each = min(max(particles // 2 // size, 4), MOST_GROUPS)
    return 2 * (1 << (each.bit_length() - 1))
