"""How long a refinement or a reconstruction takes on a fleet: measured costs, the bytes that are moved, who waits.

The model is that of ``docs/scaling.md`` with machines of several threads: threads of a machine share references and
memory, machines exchange partial sums; each GPU counts as a machine (`cloudem.cloud.planning.capacity.FleetCapacity`).
Times are of the critical path. What the data decide (iterations, how far the resolution goes) is taken as expected, as
short and as long as it was seen to be; that, the speed of the machines, the costs themselves and the network are
independent of each other, so that their factors are added in quadrature.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from cloudem.algorithms.bricks import VOXEL_BYTES
from cloudem.algorithms.refinement import Settings
from cloudem.algorithms.transport import MAP_BYTES, IterationSizes, merging_seconds, spreading_seconds
from cloudem.cloud.planning.capacity import FleetCapacity
from cloudem.cloud.planning.estimate import Duration, Range
from cloudem.cloud.planning.stages import START_S
from cloudem.cloud.planning.work import GIB, Size, Stage, Work
from cloudem.execution.reduction_tree import Tasks, first_node, runs, task_counts, together_for
from cloudem.jobs.dataset import AHEAD, AHEAD_BYTES, BATCH, groups_of
from cloudem.jobs.refine3d import cost
from cloudem.jobs.refine3d.cost import Convergence, at_box
from cloudem.jobs.subtracted import subtracting_seconds
from cloudem.kernels.slices import half_width, padded_box

IMAGE_BYTES = 2
"""Of a pixel: images are stored as float16."""

GIVEN_BYTES = 4
"""Of a pixel on its way to a GPU: float32."""

CACHED_BYTES = 20e9
"""Of its images, that a rented machine's disk keeps from one iteration to the next."""

CONTENTION = 1.08
"""Wall time of tasks side by side over their CPU time. Measured with two threads."""

CROWDED = 1.15
"""The same on a machine with 16 threads and more, which share caches and memory. Supposed."""

PUT_S, GET_BYTES = 40.0, 32 << 20
"""Objects that an iteration writes (references, checkpoint, curves); and bytes that one request reads of images."""

GPU_BASE = int(1.2 * GIB)
"""Of a GPU's memory: its context and libraries, and the scores of a tile in the search."""

GPU_SPARE = 1.2
"""A pool of freed memory keeps pieces that nothing else fits into."""

COST_SPREAD = 1.3
"""By how much costs of a particle were off, against whole refinements."""

NETWORK_SPREAD = 2.0

WRITE_BYTES, COMMIT_S = 150e6, {True: 1.2, False: 0.2}
"""Bytes per second into storage, and seconds of an iteration's small objects there; remote or not."""

ALIGNING = ("aligning", "waiting for the last")
NETWORK = ("reading images", "references to all", "merging", "storage")

LABELS: Mapping[str, str] = {
    "waiting for the last": "too few tasks for so many threads",
    "solving": "solving in one thread",
}


@dataclass(frozen=True)
class Correction:
    """What a pilot on some of the particles found: factors on the model's costs, and how far they may be off."""

    search: float = 1.0
    local: float = 1.0
    spread: float = COST_SPREAD


@dataclass(frozen=True)
class Alignment:
    """Particles and what is done with them.

    Attributes
    ----------
    count, box
        Particles.
    symmetry
        Point group.
    group_size
        Images of a task, at least.
    remote
        Whether they lie in object storage.
    settings
        Of a refinement; None for a reconstruction.
    local
        Whether the refinement begins with known poses.
    correction
        Of the pilot.
    pixel_size
        Å.
    non_uniform
        References are filtered from place to place.
    subtracted
        Whether a map is subtracted of images when they are read.
    image_box
        Of the images as they are stored, where they are cut to ``box`` when they are read; 0 for the same.
    """

    count: int
    box: int
    symmetry: str
    group_size: int
    remote: bool
    settings: Settings | None
    local: bool = False
    correction: Correction = Correction()
    pixel_size: float = 1.0
    non_uniform: bool = False
    subtracted: bool = False
    image_box: int = 0

    @property
    def stored(self) -> Size:
        """Images as they are stored."""
        side = self.image_box or self.box
        return Size(self.count, (side, side), self.pixel_size, self.remote, self.subtracted)


@dataclass(frozen=True)
class AlignmentModel:
    """How long an alignment takes on a fleet, for a job's `Work`."""

    alignment: Alignment

    def __call__(self, capacity: FleetCapacity) -> Duration:
        """Return how long a fleet takes."""
        return estimate(self.alignment, capacity)

    def corrected(self, correction: Correction) -> AlignmentModel:
        """Return the model with what a pilot found."""
        return AlignmentModel(replace(self.alignment, correction=correction))


def alignment_work(alignment: Alignment) -> Work:
    """Return what aligning or inserting particles does and needs.

    Measured with two threads, up to Nyquist: 500 particles of 64 px 445 MiB of 508 projected, 250 of 128 px
    1,046 MiB of 1,158.
    """
    count, box, side = alignment.count, alignment.box, alignment.stored.box
    voxels = voxels_of(box, box // 2 - 1)
    kept = 6 * voxels  # of an accumulator once it is packed; 12 bytes for each voxel before
    pixels = int(0.4 * box * box)
    groups = 2 * len(groups_of(np.arange(-(-count // 2)), alignment.group_size))
    # a task: images with their transforms, five complex arrays of half discs, its accumulator, and that packed; a
    # packed one that waits to be merged
    per_task = BATCH * (24 * box * box + 44 * pixels) + 12 * voxels + 2 * kept
    per_task += BATCH * 4 * (side * side - box * box)  # whole images, while they are cut
    if alignment.remote:  # a block in use, and those that are read meanwhile
        per_task += (AHEAD + 1) * max(AHEAD_BYTES, 4 * BATCH * side * side)
    # a worker that aligns: references, one of them being made, and packed sums, one for each level of their tree
    aligning = (2 * 8 + 30) * voxels + groups.bit_length() * kept
    if alignment.subtracted:  # two maps, ready to be projected, and projections of a batch with their transforms
        aligning += 2 * (8 * voxels_of(side, side // 2 - 1) + 4 * side**3)
        per_task += BATCH * 26 * side * side
    # one that solves, as far as that is more: of both halves packed and whole sums, what solving takes, and maps
    solving = 2 * (kept + (12 + 8) * voxels + 2 * 4 * box**3) + cost.LOCAL_VOXEL_BYTES * alignment.non_uniform * box**3
    steps = passes(alignment, cost.EXPECTED)
    items = cost.items_of(count, alignment.group_size)
    images = float(IMAGE_BYTES * side**2)
    align = Stage(
        "align" if alignment.settings else "insert",
        count,
        "images",
        cpu_s=sum(particle for particle, *_ in steps) / len(steps),
        parallel=True,
        task_items=max(count // items, 1),
        task_bytes=per_task,
        read_bytes=images,
        passes=len(steps),
        spread=alignment.correction.spread,
    )
    solve = Stage(
        "solve", 2, "maps", cpu_s=at_box(cost.SOLVE, box) + local_filter_seconds(alignment) / 2, passes=len(steps)
    )
    maps = 3 * 4 * side**3  # of the whole, also where images are cut
    return Work(
        (align, solve),
        # the client: several poses for each particle
        base_bytes=400_000_000 + max(aligning, solving) + 4000 * count,
        client_bytes=int(0.6e9) + 4000 * count + 40 * side**3,
        gpu_bytes=gpu_needs(box) if alignment.settings else 0,
        stored_bytes=40 * side**3 + 600 * count,
        result_bytes=maps + 200 * count,
        makes={"": alignment.stored},  # what is made is that of whole images
        notes=(f"{count:,} particles of {box} px, about {groups} tasks per pass",),
        model=AlignmentModel(alignment),
        puts=PUT_S * len(steps) if alignment.remote else 0.0,
        gets=len(steps) * (images * count / GET_BYTES + 8 * items) if alignment.remote else 0.0,
    )


def gpu_needs(box: int) -> int:
    """Return what aligning needs of a GPU's memory, bytes.

    From the shapes of what is on the GPU: both references; of the task its accumulator, the line of what is kept of it,
    its images with their transforms and five arrays of half discs, and the scores of the search. Not measured.
    """
    voxels, pixels = voxels_of(box, box // 2 - 1), int(0.4 * box * box)
    return int(GPU_SPARE * (GPU_BASE + (28 + 6) * voxels + BATCH * (24 * box * box + 44 * pixels)))


def voxels_of(box: int, k_max: int) -> int:
    """Return the voxels of a padded half-volume for shells up to ``k_max``."""
    m = half_width(k_max, padded_box(box) / box)
    return (2 * m + 1) ** 2 * (m + 2)


@cache
def passes(work: Alignment, course: Convergence) -> tuple[tuple[float, int, int], ...]:
    """Return of each iteration the CPU-seconds of a particle, and the last shells inserted and of the reference."""
    factor, reading = work.correction, subtracting_seconds(work.stored)
    if work.settings is None:
        return ((reading + factor.local * at_box(cost.INSERT_S, work.box), work.box // 2 - 1, 0),)
    found = []
    for plan, unsettled in cost.iterations_of(work.settings, course, local=work.local):
        searching = unsettled * cost.search_seconds(plan, work.symmetry) if unsettled else 0.0
        particle = reading + factor.local * cost.local_seconds(plan) + factor.search * searching
        found.append((particle, plan.k_insert, plan.k_score))
    return tuple(found)


def estimate(work: Alignment, crew: FleetCapacity) -> Duration:
    """Return how long a fleet takes."""
    expected = parts_of(work, crew, cost.EXPECTED)
    whole = sum(expected.values())
    lower: list[float] = []
    upper: list[float] = []
    if work.settings is not None:
        for course, factors in ((cost.QUICK, lower), (cost.LONG, upper)):
            factors.append(sum(parts_of(work, crew, course).values()) / whole)
    # one type is slow in all it does; a GPU's aligning does not depend on its processor
    everywhere = crew.gpu is None
    others = tuple(name for name in expected if name not in NETWORK and (everywhere or name not in ALIGNING))
    changes: list[tuple[tuple[str, ...], float]] = [
        (ALIGNING, work.correction.spread), (others, crew.row.spread), (NETWORK, NETWORK_SPREAD),
    ]  # fmt: skip
    if not everywhere:
        changes.append((ALIGNING, crew.spread))
    for names, factor in changes:
        part = sum(expected.get(name, 0.0) for name in names)
        upper.append(1 + part * (factor - 1) / whole)
        lower.append(1 + part * (1 / factor - 1) / whole)
    seconds = Range(whole / _together(lower), whole, whole * _together(upper))
    first = max(expected, key=lambda name: expected[name])
    bottleneck = LABELS.get(first, first)
    if first == "aligning":
        bottleneck = f"aligning ({'CPU' if crew.gpu is None else 'GPU'})"
    number = len(passes(work, cost.EXPECTED))
    return Duration(
        seconds, bottleneck, expected, crew.measured, crew.memory_GiB, crew.gpu_GiB,
        lost_s=sum(expected[name] for name in ALIGNING) / number / 2, tasks=crew.tasks * crew.share,
    )  # fmt: skip


def _together(factors: list[float]) -> float:
    """Return independent factors as one, 1 or more: their logarithms in quadrature."""
    return math.exp(math.sqrt(sum(math.log(factor) ** 2 for factor in factors)))


def parts_of(work: Alignment, crew: FleetCapacity, course: Convergence) -> dict[str, float]:
    """Return the wall seconds of all iterations by part, and of the start and the end."""
    alone = crew.speed(1)
    solved = solving_seconds(work.box, crew) + local_filter_seconds(work) / alone
    total: defaultdict[str, float] = defaultdict(float)
    items = cost.items_of(work.count, work.group_size)
    busy = min(items, crew.threads)
    crowd = CONTENTION if crew.tasks * crew.share < 16 else CROWDED
    waves = math.ceil(items / crew.threads)
    crossing = crew.on_gpu(0.0, GIVEN_BYTES * work.box**2)  # of an image
    reading = IMAGE_BYTES * work.stored.pixels * work.count / crew.machines / crew.reading if work.remote else 0.0
    kept = reading * crew.reading * crew.share <= CACHED_BYTES
    for number, (particle, k_insert, k_reference) in enumerate(passes(work, course)):
        aligning = particle / crew.aligning(busy) + crossing
        size = k_insert / (work.box / 2 - 1)
        merging = at_box(cost.MERGE, work.box) * size**3 / crew.speed(busy)
        packing = packing_seconds(work, crew, k_insert, busy) + merging  # with a sum that is there already
        item = crowd * (aligning * work.count / items + packing)
        share = item * items / crew.threads
        total["aligning"] += share
        total["waiting for the last"] += item * waves - share
        if number == 0 or not kept:
            total["reading images"] += max(reading - item * waves, 0.0)
        total["solving"] += solved * (0.5 + 0.5 * size**3)
        total["poses in the client"] += cost.POSE_S * work.count / alone
        tasks = tasks_of_fold(items, crew.machines, crew.tasks, together_for(item))
        total["scheduler"] += cost.scheduler_seconds(tasks.counts) / alone
        total["merging"] += merging * math.log2(max(busy / crew.machines, 1))
        for name, seconds in exchanged(work, crew, tasks.parts, size, k_reference, merging).items():
            total[name] += seconds
        if work.settings is not None:
            written = 2 * MAP_BYTES * work.box**3 + (150 + 4 * cost.POSE_BYTES) * work.count
            total["storage"] += COMMIT_S[work.remote] + written / WRITE_BYTES
    looking = cost.PASS_S * (work.box / 128) ** 2 + subtracting_seconds(work.stored)
    first = looking / crew.aligning(busy) + crossing if work.settings else 0.0
    total["start and end"] = first * work.count / busy + (START_S + cost.FINISH_S * work.box**3) / alone
    return dict(total)


def packing_seconds(work: Alignment, crew: FleetCapacity, k_insert: int, busy: int) -> float:
    """Return the seconds in which a task makes its accumulator and packs it.

    On a GPU it is cleared and read once, and the line of what is kept written and copied to the host.
    """
    if crew.gpu is None:
        return at_box(cost.LEAF, work.box) * (k_insert / (work.box / 2)) ** 3 / crew.speed(busy)
    line = sizes(work.box, work.symmetry, 1, work.count)[0] * (k_insert / (work.box / 2 - 1)) ** 3
    return crew.on_gpu(2 * VOXEL_BYTES * voxels_of(work.box, k_insert) + line, line)


def unpacking_seconds(work: Alignment, crew: FleetCapacity, k_reference: int, reference: float) -> float:
    """Return the seconds in which a worker makes a half-volume of the bytes of a reference."""
    if crew.gpu is None:
        return at_box(cost.UNPACK, work.box) * (2 * k_reference / work.box) ** 3 / crew.speed(1)
    return crew.on_gpu(8 * voxels_of(work.box, k_reference) + 2 * reference, reference)


def solving_seconds(box: int, crew: FleetCapacity) -> float:
    """Return the seconds from both half-sets' sums to their next references, all shells.

    Each has the threads of a machine, or half of them where there is one machine, and does with at most
    `cost.MOST_SOLVING` of them what threads can do.
    """
    threads = crew.tasks if crew.machines > 1 else crew.tasks / 2
    others = (1 - cost.SOLVED_BY_ONE) / min(max(threads, 1.0), cost.MOST_SOLVING)
    both = 1 if crew.threads > 1 else 2  # one thread solves them one after the other
    return both * at_box(cost.SOLVE, box) * (cost.SOLVED_BY_ONE + others) / crew.speed(1)


def local_filter_seconds(work: Alignment) -> float:
    """Return the CPU-seconds in which an iteration filters both references from place to place, in one thread."""
    return cost.LOCAL_VOXEL_S * work.box**3 if work.non_uniform else 0.0


def exchanged(
    work: Alignment, crew: FleetCapacity, parts: float, size: float, k_reference: int, merging: float
) -> dict[str, float]:
    """Return the seconds in which machines exchange references and partial sums in an iteration.

    As in ``benchmarks/bars/workers.py``: references are handed on in pieces; each machine receives its brick of every
    part; and one joins the bricks.
    """
    if crew.machines == 1:
        return {}
    sums, part, reference = sizes(work.box, work.symmetry, crew.machines, work.count)
    sums, part = sums * size**3, part * size**3
    reference *= (k_reference / (work.box / 2 - 1)) ** 3
    holders = max(crew.machines // 2, 1)
    table = cost.POSE_BYTES * work.count * 2 * math.log2(crew.machines)
    unpacking = unpacking_seconds(work, crew, k_reference, reference)
    handed = spreading_seconds(reference, crew.bandwidth, holders)
    found = {"references to all": handed + table / crew.bandwidth + unpacking}
    found["solving"] = 2 * MAP_BYTES * work.box**3 / crew.bandwidth
    if holders > 1:
        found["merging"] = merging_seconds(sums, part * parts, crew.bandwidth, merging * parts, holders)
    return found


@cache
def tasks_of_fold(items: int, machines: int, tasks: int, together: int) -> Tasks:
    """Return the tasks of an accumulation, machines working on runs of its items at the same pace."""
    whose = {}
    for machine, run in runs(items, dict.fromkeys(range(machines), tasks)).items():
        while run:
            node = first_node(run, together, tasks)
            whose[node], run = machine, range(node.stop, run.stop)
    return task_counts([2 * index // items for index in range(items)], whose)


@cache
def sizes(box: int, symmetry: str, machines: int, slices: int) -> tuple[float, float, float]:
    """Return the bytes of a half-set's sum, of a machine's part of it and of a reference, all shells."""
    it = replace(_iteration(box, symmetry), workers=machines, slices=slices)
    return float(it.sum_bytes), float(it.part_bytes), float(_reference_bytes(box))


@cache
def _iteration(box: int, symmetry: str) -> IterationSizes:
    return IterationSizes(box, box // 2 - 1, box // 2 - 1, symmetry, 1, 1)


@cache
def _reference_bytes(box: int) -> int:
    return _iteration(box, "C1").reference_bytes
