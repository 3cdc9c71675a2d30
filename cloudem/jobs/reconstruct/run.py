"""The run of ``cloudem reconstruct``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import by_direction
from cloudem.algorithms.bricks import Brick
from cloudem.algorithms.ewald import Curvature
from cloudem.algorithms.mask import estimate_mask, soft_sphere
from cloudem.algorithms.reconstruct import Sums
from cloudem.errors import ParameterError
from cloudem.execution.executor import Executor, Shared, itself
from cloudem.execution.task_names import labelled
from cloudem.io.formats.mrc import Volume
from cloudem.jobs.base import Context
from cloudem.jobs.dataset import kept_rows, left_out, open_dataset, open_for_tasks
from cloudem.jobs.halves import Drawing, half_sets
from cloudem.jobs.maps import read_mask, soft_edge
from cloudem.jobs.provenance import job_record
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.solving import unfiltered, unfiltered_whole, whole_sums
from cloudem.jobs.refine3d.tasks import counter, fold_of, insert_group, tasks
from cloudem.jobs.results import write_maps
from cloudem.model.poses import euler_to_matrix
from cloudem.model.symmetry import operators


def reconstruct(job: Reconstruct, context: Context) -> None:
    """Insert all images at their poses, solve for both half-maps and the map, and write the result."""
    started = time.monotonic()
    dataset = open_dataset(job.particles)
    box, pixel_size = dataset.store.box, dataset.store.pixel_size
    last = box // 2 - 1
    k_max = min(last, int(box * pixel_size / job.max_resolution_A)) if job.max_resolution_A else last
    context.progress.facts({"particles": f"{len(dataset.store):,} of {box} px at {pixel_size:.4g} Å"})
    # before the work: a mask that is none should cost nothing
    given = read_mask(job.mask, box, pixel_size, context.progress) if job.mask is not None else None
    drawing = Drawing(job.seed, job.new_halves, job.halves_by)
    halves = half_sets(dataset.particles, drawing, left_out(dataset.store, job.skip_damaged))
    rotations = euler_to_matrix(*(dataset.particles[name] for name in ("rot", "tilt", "psi")))
    # neighbours in direction one after the other: their slices find each other's voxels in the cache
    items = tasks(halves, job.group_size, order=by_direction(rotations))
    executor = context.executor
    with labelled(step="open"):
        data = executor.spread(open_for_tasks, job.particles, local=itself)
    with context.progress.stage("insert", int(np.count_nonzero(halves))) as stage:
        curvature = None
        if job.ewald_sphere:
            curvature = Curvature(job.reverse_curvature, job.diameter_A or 0.9 * box * pixel_size)
            context.progress.facts({"Ewald sphere": "reversed" if job.reverse_curvature else "as RELION curves it"})
        fold = fold_of(partial(insert_group, k_max=k_max, symmetry=job.symmetry, curvature=curvature))
        bricks, _ = executor.accumulate(fold, items, shared=lambda item: [data], on_done=counter(stage, items))
    with context.progress.stage("solve"):
        solved = solve_halves_and_whole(executor, bricks, halves, box, k_max, job.symmetry)
        maps, whole = solved.halves, solved.whole
        mask = given or solvent_mask(job, context, whole, pixel_size)
    context.write("", {}, {"kind": "result", **job_record(job)})
    particles = kept_rows(dataset.particles.with_columns(half_set=halves), halves)
    wall = time.monotonic() - started
    where = (k_max, pixel_size, job.symmetry, job.seed)
    write_maps(context, maps, whole, mask.data, *where, wall, particles, dataset.store, job.report, mask.origin)


class HalvesAndWhole(NamedTuple):
    """Unfiltered half-maps (2, n, n, n) and map of all; sums of each half-set, and how many slices they hold."""

    halves: NDArray[np.float32]
    whole: NDArray[np.float32]
    sums: list[Shared[Sums]]
    slices: list[int]


def solve_halves_and_whole(
    executor: Executor,
    bricks: Mapping[int, Shared[Brick]],
    half_set: NDArray[np.int8],
    box: int,
    k_max: int,
    symmetry: str,
) -> HalvesAndWhole:
    """Solve for the maps of two half-sets and of all particles, without filter, where their sums are.

    Parameters
    ----------
    executor, bricks
        With the sums of each half-set, 1 and 2.
    half_set
        Of each particle, (N,); 0 where it has no part.
    box, k_max, symmetry
        Pixels, the last shell, point group.
    """
    shape = (box, k_max, symmetry)
    sums = [executor.share(whole_sums, bricks[h], *shape) for h in (1, 2)]
    order = len(operators(symmetry))
    slices = [order * int(np.count_nonzero(half_set == h)) for h in (1, 2)]
    solved = [executor.share(unfiltered, sums[i], box, k_max, slices[i]) for i in (0, 1)]
    both = executor.share(unfiltered_whole, bricks[1], bricks[2], *shape, sum(slices))
    return HalvesAndWhole(np.stack([executor.fetch(half) for half in solved]), executor.fetch(both), sums, slices)


def solvent_mask(job: Reconstruct, context: Context, whole: NDArray[np.float32], pixel_size: float) -> Volume:
    """Return the mask for the FSC: one found in the map, or else the particle's sphere."""
    box = whole.shape[0]
    diameter = job.diameter_A or 0.9 * box * pixel_size
    try:
        return Volume(estimate_mask(whole, pixel_size, diameter=diameter), pixel_size)
    except ParameterError as error:
        context.progress.warning(f"no mask could be estimated, using a sphere of the particle's diameter: {error}")
        radius = diameter / 2 / pixel_size
        return Volume(soft_sphere(box, radius, soft_edge(box, radius)), pixel_size)
