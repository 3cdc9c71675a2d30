"""One iteration of ``cloudem refine3d``: align all images, and solve their sums for maps, FSC and the next references.

Only poses, curves and decisions pass through here: sums, maps and references stay on the workers and in the store.
Half-sets meet in the FSC, whose values set the frequency limit and the filter of both, and, with ``--non-uniform``, in
their local agreement, which is that filter from place to place, and says where the limit is taken from. (When to stop
also depends on two shares of all images: those that moved, and those that jumped to another maximum.) Their mean is
shown to whoever looks on, by `show_preview`, from which nothing comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Anchors, Prior, best_of
from cloudem.algorithms.bricks import Brick
from cloudem.algorithms.expectation import IterationPlan
from cloudem.algorithms.focus import Focus
from cloudem.algorithms.junk import Judgement
from cloudem.algorithms.local_filter import local_gains
from cloudem.algorithms.noise import noise_variance
from cloudem.algorithms.refinement import (
    EVIDENCE_SAMPLE,
    IterationOutcome,
    Settings,
    State,
    asks_for_evidence,
    believed_shell,
    beyond_start,
    iteration_plan,
    next_state,
    onward_state,
    reference_snr,
)
from cloudem.algorithms.resolution import FscCurves
from cloudem.algorithms.significance import independent_voxels
from cloudem.algorithms.view_density import density_gradient
from cloudem.execution.executor import Executor, Shared, itself
from cloudem.execution.task_names import labelled
from cloudem.jobs.base import Context
from cloudem.jobs.dataset import Dataset, micrograph_numbers, open_for_tasks
from cloudem.jobs.iterative import IterationResult
from cloudem.jobs.preview import Preview, finest_spectrum, previews_of_halves
from cloudem.jobs.refine3d.focusing import spread_of
from cloudem.jobs.refine3d.held_out import HeldOut, ask_held_out
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.judging import judged
from cloudem.jobs.refine3d.poses import best_views, changes, intensities, pose_arrays, shift_variance, sorted_found
from cloudem.jobs.refine3d.solving import (
    Masking,
    compare,
    compare_core,
    half_map_mask,
    map_to_match,
    unfiltered,
    unfiltered_whole,
    whole_sums,
    write_reference,
)
from cloudem.jobs.refine3d.tasks import (
    REFERENCE_PIECES,
    Aligned,
    Checkpoint,
    Found,
    Item,
    Placed,
    align_group,
    counter,
    fold_of,
    model_of,
    read_checkpoint,
    read_reference,
    spread_groups,
    tasks,
)
from cloudem.jobs.results import HELD_OUT
from cloudem.model.columns import Value
from cloudem.model.symmetry import operators

Float32 = NDArray[np.float32]

SPHERE_UNTIL = 2
"""Iterations in which the solvent mask is the sphere, because the maps are too coarse to outline a molecule."""


@dataclass(frozen=True)
class Run:
    """What stays the same during a run.

    ``symmetry`` names the point group, ``without`` counts particles left out. With a ``focus``, ``settings`` and
    ``mask`` are those of images and maps about its pivot; only `begin` and `finish` of the run know of others.
    """

    job: Refine3D
    context: Context
    dataset: Dataset
    settings: Settings
    mask: Float32 | None
    symmetry: str
    without: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    focus: Focus | None = None

    @cached_property
    def group(self) -> NDArray[np.float64]:
        """Operators of the point group, (g, 3, 3)."""
        return operators(self.symmetry)

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
        with labelled(step="open"):
            return self.executor.spread(open_for_tasks, self.job.particles, self.focus, local=itself)

    def not_beyond(self, state: State) -> float:
        """Return the resolution in Å that none better than is claimed, 0 once signal beyond the start was shown."""
        return 0.0 if beyond_start(state, self.settings) else self.job.start_resolution

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
    held_out
        Deviations by shell of what images match beyond what decided their poses (`cloudem.jobs.refine3d.held_out`).
    judgement
        Which images show the molecule.
    inserted
        The best pose of each image as it is in the map, of both halves.
    """

    checkpoint: Checkpoint
    references: Sequence[str]
    observed: IterationOutcome
    after: State
    maps: Maps | None
    curves: FscCurves
    held_out: NDArray[np.float64]
    judgement: Judgement
    inserted: Sequence[Placed]


def share(run: Run, plan: IterationPlan) -> Callable[[Item], Sequence[Shared[Any]]]:
    """Share the particles and both half-sets' models with the tasks; each reads that of its half-set."""
    make = partial(model_of, plan=plan, symmetry=run.symmetry)
    options: dict[str, Any] = {"local": make, "pieces": REFERENCE_PIECES, "purpose": "reference"}
    with labelled(step="reference"):
        models = [run.executor.spread(read_reference, run.url, h, plan, **options) for h in (1, 2)]
    return lambda item: (run.data, models[item.half - 1])


def iterate(run: Run, state: State) -> IterationResult[State]:
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
    length, curves = run.settings.box * run.settings.pixel_size, outcome.curves
    # stated is what the whole mask shows, also where the limit follows a part of it
    voxels = independent_voxels(run.settings.box, curves.fraction, len(run.group))
    stated = believed_shell(replace(outcome.observed, fsc=curves.corrected, voxels=voxels), state.limit)
    row: dict[str, Value] = {
        "iteration": state.iteration,
        "resolution_A": max(length / max(stated, 1.0), run.not_beyond(after)),
        "limit_A": length / plan.k_score,
        "images_per_s": count / seconds,
        "moving": outcome.observed.moving,
    }
    if run.focus is not None:
        widths = (outcome.checkpoint.turn_variance, outcome.checkpoint.shift_variance)
        turn, shift = (float(np.sqrt(each).mean()) for each in widths)
        row |= {"prior_deg": float(np.degrees(turn)), "prior_A": shift * run.settings.pixel_size}
    kept = {"references": list(outcome.references), "poses": len(outcome.checkpoint.pose_images)}
    arrays = {**curves.by_name(), HELD_OUT: outcome.held_out}
    return IterationResult(after, row, outcome.checkpoint.arrays(), kept, arrays, onward, outcome)


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
    symmetry = run.symmetry
    sums = [executor.share(whole_sums, bricks[h], s.box, k_max, symmetry) for h in (1, 2)]
    slices = [len(run.group) * int(np.count_nonzero(before.half_set == h)) for h in (1, 2)]
    halves = [executor.share(unfiltered, sums[i], s.box, k_max, slices[i]) for i in (0, 1)]
    # at first the maps are too coarse to outline a molecule, unless they are made of poses that are known
    masking = run.masking(run.job.local or (state.iteration > SPHERE_UNTIL and beyond_start(state, s)))
    with labelled(step="fsc"):
        masks = [executor.share(half_map_mask, half, run.url, masking) for half in halves]
        comparison = executor.share(compare, *halves, *masks, run.job.seed, k_max)
    found = [sorted_found([part for item, rest in aligned if item.half == h for part in rest.found]) for h in (1, 2)]
    noise = [np.sum([rest.noise for item, rest in aligned if item.half == h], axis=0) for h in (1, 2)]
    change, kept = changes(plan, before, found, run.group), before.half_set > 0
    counts = np.maximum(before.keep[kept], 1e-6)  # images that show something else wander for ever
    curves = executor.fetch(comparison)
    show_preview(run, state, halves, curves)
    scored = curves  # what the limit follows
    if run.job.non_uniform and beyond_start(state, s):
        with labelled(step="fsc"):
            core = executor.share(compare_core, *halves, *masks, curves, s.pixel_size, run.job.seed, k_max)
        scored = executor.fetch(core)
    voxels = independent_voxels(s.box, scored.fraction, len(run.group))
    maps = Maps(halves, masks)

    def ask() -> HeldOut:
        volumes = [executor.share(map_to_match, halves[h], masks[h], k_max) for h in (1, 0)]  # the other's
        items = spread_groups(tasks(before.half_set, run.job.group_size), EVIDENCE_SAMPLE)
        return ask_held_out(run.context, run.data, volumes, plan, items, found)

    asks = asks_for_evidence(scored.corrected, voxels, plan.k_score)
    held_out = ask() if asks else HeldOut.unasked(s.box)
    observed = IterationOutcome(
        fsc=scored.corrected,
        voxels=voxels,
        evidence=held_out.evidence,
        moving=float(np.average(change.moving[kept], weights=counts)),
        jumped=float(np.average(change.jumped[kept], weights=counts)),
    )
    after = next_state(state, s, observed)
    if after.finished and not asks:  # for the report: nothing is decided by it
        held_out = ask()
    references: list[str] = []
    if after.finished:  # only now do the half-sets meet
        shape = (s.box, k_max, symmetry, sum(slices))
        maps = replace(maps, whole=executor.share(unfiltered_whole, bricks[1], bricks[2], *shape))
    if not (after.finished and after.converged):  # there is a next iteration, or will be if more are allowed
        snr, local = reference_snr(curves.corrected, after.limit), None
        if run.job.non_uniform and beyond_start(after, s):
            core_snr = reference_snr(scored.corrected, after.limit)
            local = executor.share(local_gains, *halves, *masks, snr, core_snr, s.pixel_size)
        where = (run.url, state.iteration)
        written = [
            executor.share(write_reference, sums[i], masks[i], *where, i + 1, snr, k_max, slices[i], s.radius, local)
            for i in (0, 1)
        ]
        references = [executor.fetch(name) for name in written]
    judgement = judged(found, before.scale, beyond_start(after, s))
    scale = before.scale
    if run.job.correct_scale:
        scale = intensities(scale, micrograph_numbers(run.dataset.particles), found, judgement.keep)
    shift_width, turn_width = prior_variances(run, state.iteration, before, found)
    checkpoint = Checkpoint(
        sigma2=np.array([noise_variance(part[:, :-1], part[:, -1], s.box) for part in noise]),
        shift_variance=shift_width,
        turn_variance=turn_width,
        half_set=before.half_set,
        scale=scale,
        settled=before.settled | (bool(plan.k_search) & ~change.jumped),
        keep=judgement.keep,
        view_gradient=np.stack([density_gradient(best_views(part), run.group) for part in found]),
        **pose_arrays(found),
    )
    placed = [part.inserted for part in found]
    return Outcome(checkpoint, references, observed, after, maps, curves, held_out.by_shell, judgement, placed)


def prior_variances(
    run: Run, iteration: int, before: Checkpoint, found: Sequence[Found]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variances of shift and turn in each half-set's prior for the next iteration, as in a `Checkpoint`.

    They stay as they are in the first iteration, whose references may hold the images themselves without saying how
    much, and then go half of the way, as logarithms: a prior that has become narrow holds images in the poses in which
    they are in the reference, and would seem right.
    """
    focus = run.focus
    if focus is None:
        shifts = np.array([shift_variance(part) for part in found])
        return shifts, before.turn_variance
    turns, shifts = np.full((2, 2), (focus.turn_variance, focus.shift_variance)).T.copy()
    for half, part in enumerate(found):
        best = part.poses.take(best_of(part.poses.images))
        at = run.dataset.focused(best.images, focus)
        prior = Prior(float(before.shift_variance[half]), float(before.turn_variance[half]))
        turn, shift = spread_of(best, Anchors(at.rotations, at.shifts), prior)
        if iteration == 1:
            turn, shift = prior.turn_variance, prior.shift_variance
        turns[half] = focus.turn_variance or np.sqrt(turn * prior.turn_variance)
        shifts[half] = focus.shift_variance or np.sqrt(shift * prior.shift_variance)
    said = f"{np.degrees(np.sqrt(turns)).round(2)}°, {(run.settings.pixel_size * np.sqrt(shifts)).round(2)} Å"
    run.context.log.debug("standard deviations of the priors of both half-sets: %s", said)
    return shifts, turns


def show_preview(run: Run, state: State, halves: Sequence[Shared[Float32]], curves: FscCurves) -> None:
    """Show the half-maps' mean of an iteration, coarse, to whoever looks on; nothing else knows of it."""
    executor, s = run.executor, run.settings

    def made() -> list[Preview]:
        spectra = [executor.share(finest_spectrum, half) for half in halves]
        where = (curves.corrected, s.box, s.pixel_size, state.iteration)
        return executor.fetch(executor.share(previews_of_halves, *spectra, *where))

    if run.context.progress.previews.due():
        run.context.progress.previews.make(made, run.context.log)
