"""The run of ``cloudem refine3d``: store, decisions and executor brought together.

Everything that an iteration needs is in the group ``checkpoint``, and every iteration begins by reading it from there,
so that a resumed run cannot differ from one that was never interrupted. Only poses, curves and decisions pass through
here: sums, maps and references stay on the workers and in the store. Half-sets meet in one place only: the FSC, whose
values set the frequency limit and the filter of both. (When to stop also depends on two shares of all images: those
that moved, and those that jumped to another maximum.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import best_of
from cloudem.algorithms.bricks import Brick
from cloudem.algorithms.expectation import IterationPlan, noise_variance
from cloudem.algorithms.refinement import (
    IterationOutcome,
    Settings,
    State,
    beyond_start,
    first_state,
    iteration_plan,
    next_state,
    onward_state,
    reference_snr,
    resolution_shell,
)
from cloudem.algorithms.resolution import FscCurves, low_pass, resolution_at
from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.execution.executor import Executor, Shared, itself
from cloudem.io.formats.mrc import NOWHERE, Vector
from cloudem.io.storage.groups import list_groups, read_attributes
from cloudem.jobs.base import Context, job_record
from cloudem.jobs.dataset import (
    Dataset,
    groups_of,
    kept_rows,
    left_out,
    micrograph_numbers,
    open_dataset,
    open_for_tasks,
)
from cloudem.jobs.halves import Drawing, half_sets
from cloudem.jobs.iterative import Iterations, Step, clear, commit
from cloudem.jobs.maps import check_start_map, read_mask, read_start_map
from cloudem.jobs.progress import RunningStage
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.poses import (
    changes,
    no_poses,
    pose_arrays,
    scale_changes,
    shift_variance,
    sorted_found,
    table_poses,
)
from cloudem.jobs.refine3d.resume import leave_out, source_of
from cloudem.jobs.refine3d.solving import (
    MASK,
    Masking,
    compare,
    half_map_mask,
    unfiltered,
    unfiltered_whole,
    whole_sums,
    write_reference,
)
from cloudem.jobs.refine3d.tasks import (
    REFERENCE_PIECES,
    REFERENCES,
    Aligned,
    Checkpoint,
    Found,
    Item,
    align_group,
    contrast_of_group,
    fold_of,
    model_of,
    power_of_group,
    read_checkpoint,
    read_reference,
)
from cloudem.jobs.results import write_maps
from cloudem.model.columns import Value
from cloudem.model.poses import matrix_to_euler
from cloudem.model.symmetry import operators
from cloudem.traffic import purpose

Float32 = NDArray[np.float32]

CONTRAST_SAMPLE = 150
"""Images of each half-set from which scale and contrast of the reference are judged."""

SMALLEST = 8
"""Least diameter of a particle in pixels: with less there is nothing to align."""

CIRCLE_LEAKAGE = 1
"""Scoring begins this many shells below the starting resolution: images are masked by a circle, which spreads what is
aligned, noise too, over the next two."""

SPHERE_UNTIL = 2
"""Iterations in which the solvent mask is the sphere, because the maps are too coarse to outline a molecule."""


@dataclass(frozen=True)
class Run:
    """What stays the same during a run; ``without`` counts particles that are left out."""

    job: Refine3D
    context: Context
    dataset: Dataset
    settings: Settings
    mask: Float32 | None
    group: NDArray[np.float64]
    without: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def executor(self) -> Executor:
        """Runs the tasks."""
        return self.context.executor

    @property
    def url(self) -> str:
        """Of the results."""
        return self.context.url

    @cached_property
    def data(self) -> Shared[Dataset]:
        """The particles, open on every worker."""
        return self.executor.spread(open_for_tasks, self.job.particles, local=itself)

    def masking(self, estimate: bool) -> Masking:
        """How masks are made."""
        s = self.settings
        return Masking(s.box, s.pixel_size, s.radius, self.mask is not None, estimate)


@dataclass(frozen=True)
class Maps:
    """Each half-set's unfiltered map and mask, (n, n, n), and the unfiltered map of all particles in the end."""

    halves: Sequence[Shared[Float32]]
    masks: Sequence[Shared[Float32]]
    whole: Shared[Float32] | None = None


@dataclass(frozen=True)
class Outcome:
    """What an iteration leaves.

    Attributes
    ----------
    checkpoint
        For the next.
    references
        Names of the groups that hold both half-sets' references for the next.
    observed
        For the decision what that does.
    after
        That decision: the state before the next iteration.
    maps
        Let go once the next iteration is decided on: were one lost with a worker, all that it was made of would be
        made again.
    curves
        FSC curves.
    found
        Poses and weights of both halves.
    """

    checkpoint: Checkpoint
    references: Sequence[str]
    observed: IterationOutcome
    after: State
    maps: Maps | None
    curves: FscCurves
    found: Sequence[Found]


class Refinement(Iterations[State]):
    """A refinement, as the engine of iterations sees it."""

    def __init__(self, job: Refine3D, context: Context, *, resumes: bool) -> None:
        super().__init__(context)
        group = operators(job.symmetry)
        dataset = open_dataset(job.particles)
        settings = settings_of(job, dataset)
        box, pixel_size = settings.box, settings.pixel_size
        facts = {"particles": f"{len(dataset.store):,} of {box} px at {pixel_size:.4g} Å", "symmetry": job.symmetry}
        context.progress.facts(facts)
        if resumes:  # it needs the reference no more
            origin = origin_of(context.url)
        else:
            place = check_start_map(job.reference, job.reference_pixel_size_A, job.diameter_A, box, pixel_size)
            origin = place.origin_on(box, pixel_size)
        mask = None
        if job.mask is not None:
            mask = read_mask(job.mask, box, pixel_size, context.progress, origin=origin).data
        without = left_out(dataset.store, job.skip_damaged)
        self.run = Run(job, context, dataset, settings, mask, group, without)

    def begin(self) -> State:
        """Make the first checkpoint."""
        return begin(self.run)

    def state(self, record: Mapping[str, Any]) -> State:
        """Return the state; how many iterations there are to be may have been changed, what the data decided stays."""
        left = State(**record)
        return replace(left, final=left.converged or left.iteration >= self.run.job.max_iterations)

    def resume(self, state: State) -> None:
        """Check that the particles are still those that it began with; leave out those that were lost since."""
        job, store = self.run.job, self.run.dataset.store
        before = len(read_checkpoint(self.run.url)[0].half_set)
        if before != len(store):
            raise InconsistentDataError(
                f"{self.run.url} was started with {before} particles, but {job.particles} now has {len(store)}; "
                "choose another --out, or --restart to replace it"
            )
        leave_out(self.context, job.particles, self.run.without)

    def iterate(self, state: State) -> Step[State]:
        """Align all images, and solve for the next references."""
        return iterate(self.run, state)

    def committed(self, step: Step[State]) -> None:
        """Delete references of earlier iterations."""
        drop_references(self.run, step.attributes["references"])

    def converged(self, iterations: int) -> str:
        """Return what that means."""
        return f"converged after {iterations} iterations: resolution and poses no longer improve"

    def finish(self, last: Step[State], wall_s: float) -> None:
        """Write poses, maps and report."""
        finish(self.run, last.result, wall_s)


def write_record(run: Run, origin: Vector) -> None:
    """Write what is done here, of what, and where its maps lie."""
    source = source_of(run.job.particles)
    run.context.write("", {}, {"kind": "result", "source": source, "origin_A": origin, **job_record(run.job)})


def finish(run: Run, outcome: Outcome, wall: float) -> None:
    """Write poses, maps and report."""
    s, checkpoint = run.settings, outcome.checkpoint
    poses = checkpoint.poses()
    best = best_of(poses.images)
    kept = poses.images[best]
    rot, tilt, psi = matrix_to_euler(poses.rotations[best])
    score = np.zeros(len(checkpoint.half_set))
    for part in outcome.found:
        first = best_of(part.poses.images)
        score[part.poses.images[first]] = part.poses.score[first]
    refined = kept_rows(run.dataset.particles, checkpoint.half_set).with_columns(
        rot=rot,
        tilt=tilt,
        psi=psi,
        shift_x=poses.shifts[best, 0] * s.pixel_size,
        shift_y=poses.shifts[best, 1] * s.pixel_size,
        half_set=checkpoint.half_set[kept],
        intensity_scale=checkpoint.scale[kept],
        weight=checkpoint.pose_weights[best],
        score=score[kept],
    )
    if resolution_shell(outcome.observed.fsc) <= s.first_limit + CIRCLE_LEAKAGE + 1:
        run.context.progress.warning(
            f"the refinement did not get beyond its start, --initial-resolution-A {run.job.start_resolution:g} Å: "
            "the map may be noise aligned to the starting map; check images, starting map and --diameter-A"
        )
    maps, fetch = outcome.maps, run.executor.fetch
    assert maps is not None and maps.whole is not None  # noqa: S101, PT018 - the last iteration has them
    halves = np.stack([fetch(half) for half in maps.halves])
    mask = np.maximum(*(fetch(mask) for mask in maps.masks))
    write_maps(
        run.context, halves, fetch(maps.whole), mask, s.box // 2 - 1, s.pixel_size,
        run.job.symmetry, run.job.seed, wall, refined, run.dataset.store, run.job.report, origin_of(run.url),
    )  # fmt: skip


def origin_of(url: str) -> Vector:
    """Return the origin of the reference that a refinement began with, Å along x, y, z."""
    x, y, z = (read_attributes(url, "") or {}).get("origin_A", NOWHERE)
    return float(x), float(y), float(z)


def settings_of(job: Refine3D, dataset: Dataset) -> Settings:
    """Turn Å and degrees into pixels, shells and radians, and check them against the images."""
    return settings_from(job, dataset.store.box, dataset.store.pixel_size)


def settings_from(job: Refine3D, box: int, pixel_size: float) -> Settings:
    """Do as `settings_of` for images that need not be there yet."""
    length = box * pixel_size
    if job.diameter_A >= length:
        raise ParameterError(
            f"--diameter-A {job.diameter_A:g} does not fit in the images, {box} px of {pixel_size:.4g} Å = "
            f"{length:.4g} Å; give the particle's diameter, or extract a larger box"
        )
    if job.diameter_A < SMALLEST * pixel_size:
        raise ParameterError(
            f"--diameter-A {job.diameter_A:g} is less than {SMALLEST} px of {pixel_size:.4g} Å; give the particle's "
            "diameter in Å"
        )
    last = box // 2 - 1
    if job.max_resolution_A:
        last = min(last, max(4, int(length / job.max_resolution_A)))
    return Settings(
        box=box,
        pixel_size=pixel_size,
        radius=job.diameter_A / 2 / pixel_size,
        first_limit=int(np.clip(length / job.start_resolution - CIRCLE_LEAKAGE, 4, last)),
        search_step=float(np.radians(job.search_step_deg)),
        shift_range=(job.shift_range_A or 0.06 * job.diameter_A) / pixel_size,
        candidates=job.candidates,
        poses=job.poses,
        last_limit=last,
        most_iterations=job.max_iterations,
    )


def begin(run: Run) -> State:
    """Make the first checkpoint: half-sets, noise from the images' power, the reference on the images' scale."""
    job, s, progress = run.job, run.settings, run.context.progress
    reference = read_start_map(job.reference, job.reference_pixel_size_A, job.diameter_A, s.box, s.pixel_size, progress)
    density = low_pass(reference.data, s.pixel_size, job.start_resolution) * run.masking(estimate=False).sphere
    drawing = Drawing(job.seed, job.new_halves, job.halves_by)
    halves = half_sets(run.dataset.particles, drawing, run.without)
    items = tasks(halves, job.group_size)
    with progress.stage("noise", int(np.count_nonzero(halves))) as stage:
        power = run.executor.map(power_of_group, items, shared=lambda item: [run.data], on_done=counter(stage, items))
        total: dict[int, Any] = {1: 0, 2: 0}
        for item, part in zip(items, power, strict=True):
            total[item.half] = total[item.half] + part
    sigma2 = np.array([noise_variance(total[h][:, :-1], total[h][:, -1], s.box) for h in (1, 2)])
    state = replace(first_state(s), search=not job.local)
    start = Checkpoint(
        sigma2=sigma2,
        shift_variance=np.full(2, s.shift_range**2),
        half_set=halves,
        scale=np.ones(len(halves)),
        settled=np.zeros(len(halves), bool),
        **(table_poses(run.dataset.particles, s.pixel_size) if job.local else no_poses()),
    )
    clear(run.context, job)  # only now that the input is known to be good
    write_record(run, reference.origin)
    if run.mask is not None:
        run.context.write(MASK, {"mask": run.mask}, {})
    # without a state nothing resumes from it: contrast and scale are still to come
    save(run, start, None, first_references(run, density, (1.0, 1.0)))
    save(run, start, state, first_references(run, density, reference_scales(run, state)))
    return state


def first_references(run: Run, density: Float32, factors: Iterable[float]) -> list[str]:
    """Write the start map, times a factor, as the reference of each half-set; return the names of the groups."""
    names = {f"000-{half}-{factor:g}": np.float32(factor) for half, factor in enumerate(factors, start=1)}
    for name, factor in names.items():
        with purpose("reference"):
            run.context.write(f"{REFERENCES}/{name}", {"map": density * factor}, {})
    return list(names)


def tasks(
    half_set: NDArray[np.int8], size: int, most: int | None = None, order: NDArray[np.int64] | None = None
) -> list[Item]:
    """Return the tasks of one half-set and then of the other; ``most`` images of each, in the store's order or another.

    So most workers have images of one half-set, and need its reference and sums alone.
    """
    order = np.arange(len(half_set)) if order is None else order
    return [Item(h, group) for h in (1, 2) for group in groups_of(order[half_set[order] == h][:most], size)]


def counter(stage: RunningStage, items: Sequence[Item]) -> Callable[[int], None]:
    """Return what tells a stage how many images a finished task held."""
    return lambda index: stage.advance(len(items[index].indices))


def save(run: Run, checkpoint: Checkpoint, state: State | None, references: Sequence[str]) -> None:
    """Commit a checkpoint with the state, None if no iteration can begin with it yet; drop older references."""
    commit(run.context, state, checkpoint.arrays(), {"references": list(references)})
    drop_references(run, references)


def drop_references(run: Run, kept: Sequence[str]) -> None:
    """Delete references that no checkpoint needs any more."""
    for name in set(list_groups(run.url, REFERENCES)) - set(kept):
        run.context.delete(f"{REFERENCES}/{name}")


def share(run: Run, plan: IterationPlan) -> Callable[[Item], Sequence[Shared[Any]]]:
    """Share the particles and both half-sets' models with the tasks; each reads that of its half-set."""
    make = partial(model_of, plan=plan, symmetry=run.job.symmetry)
    models = [
        run.executor.spread(read_reference, run.url, h, plan, local=make, pieces=REFERENCE_PIECES, purpose="reference")
        for h in (1, 2)
    ]
    return lambda item: (run.data, models[item.half - 1])


def reference_scales(run: Run, state: State) -> NDArray[np.float64]:
    """Return each half-set's factor that puts the reference on its images' scale, (2,).

    Raises
    ------
    InconsistentDataError
        The images are of the opposite contrast, and that is not to be ignored.
    """
    halves = read_checkpoint(run.url)[0].half_set
    items = tasks(halves, run.job.group_size, CONTRAST_SAMPLE)
    plan = iteration_plan(state, run.settings)
    task = partial(contrast_of_group, url=run.url, plan=plan)
    with run.context.progress.stage("contrast", sum(len(item.indices) for item in items)) as stage:
        found = list(run.executor.map(task, items, shared=share(run, plan), on_done=counter(stage, items)))
    rows = [np.concatenate([part for item, part in zip(items, found, strict=True) if item.half == h]) for h in (1, 2)]
    difference = np.concatenate([half[:, 0] - half[:, 1] for half in rows])
    error = difference.std() / np.sqrt(len(difference))
    run.context.log.debug("likelihood of the reference over its negative: %.3g ± %.3g", difference.mean(), error)
    if difference.mean() < -4 * error:
        text = "the images match the negative of the reference: protein is dark in one of them"
        if not run.job.ignore_contrast:
            raise InconsistentDataError(
                f"{text}; import the images again with --invert-contrast, or use --ignore-contrast"
            )
        run.context.progress.warning(text)
    numerator, norm = np.array([half[:, 2:].sum(axis=0) for half in rows]).T
    usable = (numerator > 0) & (norm > 0)
    factors = np.where(usable, numerator / np.where(usable, norm, 1), 1.0)
    # four digits are plenty, and free of the last bits of matrix products, which depend on where arrays lie in memory
    return np.array([float(f"{factor:.4g}") for factor in factors])


def iterate(run: Run, state: State) -> Step[State]:
    """Run one iteration from the checkpoint in the store."""
    progress, began = run.context.progress, time.monotonic()
    plan = iteration_plan(state, run.settings)
    before, _ = read_checkpoint(run.url)
    items = tasks(before.half_set, run.job.group_size)
    count = int(np.count_nonzero(before.half_set))
    with progress.stage("align", count) as stage:
        fold = fold_of(partial(align_group, url=run.url, plan=plan))
        sums, aligned = run.executor.accumulate(fold, items, shared=share(run, plan), on_done=counter(stage, items))
    seconds = time.monotonic() - began
    with progress.stage("solve"):
        outcome = solve_halves(run, state, plan, before, sums, list(zip(items, aligned, strict=True)))
    after, onward = outcome.after, None
    if not after.finished:  # what is lost with a worker is made again from the checkpoint, which is another one soon
        outcome = replace(outcome, maps=None)
        del sums, aligned
    elif not after.converged:
        onward = onward_state(state, run.settings, outcome.observed)
    length = run.settings.box * run.settings.pixel_size
    row: dict[str, Value] = {
        "iteration": state.iteration,
        "resolution_A": resolution_at(outcome.curves.corrected, run.settings.box, run.settings.pixel_size),
        "limit_A": length / plan.k_score,
        "images_per_s": count / seconds,
        "moving": outcome.observed.moving,
    }
    references = {"references": list(outcome.references)}
    curves = outcome.curves.by_name()
    return Step(after, row, outcome.checkpoint.arrays(), references, curves, onward, outcome)


def solve_halves(
    run: Run,
    state: State,
    plan: IterationPlan,
    before: Checkpoint,
    bricks: Mapping[int, Shared[Brick]],
    aligned: Sequence[tuple[Item, Aligned]],
) -> Outcome:
    """Turn the sums of an iteration into maps, FSC and the next checkpoint."""
    s, executor, k_max = run.settings, run.executor, plan.k_insert
    symmetry = run.job.symmetry
    sums = [executor.share(whole_sums, bricks[h], s.box, k_max, symmetry) for h in (1, 2)]
    halves = [executor.share(unfiltered, half, s.box, k_max) for half in sums]
    # at first the maps are too coarse to outline a molecule
    masking = run.masking(state.iteration > SPHERE_UNTIL and beyond_start(state, s))
    masks = [executor.share(half_map_mask, half, run.url, masking) for half in halves]
    comparison = executor.share(compare, *halves, *masks, run.job.seed, k_max)
    found = [sorted_found([part for item, rest in aligned if item.half == h for part in rest.found]) for h in (1, 2)]
    noise = [np.sum([rest.noise for item, rest in aligned if item.half == h], axis=0) for h in (1, 2)]
    change, kept = changes(plan, before, found, run.group), before.half_set > 0
    curves = executor.fetch(comparison)
    observed = IterationOutcome(
        curves.corrected, float(np.mean(change.moving[kept])), float(np.mean(change.jumped[kept]))
    )
    after = next_state(state, s, observed)
    references: list[str] = []
    maps = Maps(halves, masks)
    if after.finished:  # only now do the half-sets meet
        maps = replace(maps, whole=executor.share(unfiltered_whole, bricks[1], bricks[2], s.box, k_max, symmetry))
    if not (after.finished and after.converged):  # there is a next iteration, or will be if more are allowed
        snr = reference_snr(curves.corrected)
        where = (run.url, state.iteration)
        written = [executor.share(write_reference, sums[h - 1], masks[h - 1], *where, h, snr, k_max) for h in (1, 2)]
        references = [executor.fetch(name) for name in written]
    scale = before.scale
    if run.job.correct_scale:
        scale = scale * scale_changes(micrograph_numbers(run.dataset.particles), found)
    checkpoint = Checkpoint(
        sigma2=np.array([noise_variance(part[:, :-1], part[:, -1], s.box) for part in noise]),
        shift_variance=np.array([shift_variance(part) for part in found]),
        half_set=before.half_set,
        scale=scale,
        settled=before.settled | (bool(plan.k_search) & ~change.jumped),
        **pose_arrays(found),
    )
    return Outcome(checkpoint, references, observed, after, maps, curves, found)
