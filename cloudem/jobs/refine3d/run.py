"""The run of ``cloudem refine3d``, as the engine of iterations sees it.

Everything that an iteration needs is in the group ``checkpoint``, and every iteration begins by reading it from there,
so that a resumed run cannot differ from one that was never interrupted. How it begins is in
`cloudem.jobs.refine3d.start`, what an iteration does in `cloudem.jobs.refine3d.iteration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cloudem.algorithms.align import best_of
from cloudem.algorithms.focus import by_shell_undone
from cloudem.algorithms.refinement import CONVERGED_MOVING, State
from cloudem.errors import InconsistentDataError
from cloudem.io.formats.mrc import NOWHERE, Vector
from cloudem.io.storage.groups import read_attributes
from cloudem.jobs.base import Context
from cloudem.jobs.dataset import kept_rows, left_out, open_dataset
from cloudem.jobs.iterative import IterationResult, Iterations
from cloudem.jobs.maps import check_start_map, read_mask, stated_symmetry
from cloudem.jobs.refine3d.focusing import focus_of
from cloudem.jobs.refine3d.held_out import last_answers
from cloudem.jobs.refine3d.iteration import Outcome, Run, iterate
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.judging import advice
from cloudem.jobs.refine3d.resume import leave_out
from cloudem.jobs.refine3d.start import begin, size_in_doubt
from cloudem.jobs.refine3d.symmetry import DOUBTED, contradicted
from cloudem.jobs.refine3d.tasks import read_checkpoint
from cloudem.jobs.results import START, write_maps
from cloudem.model.poses import matrix_to_euler


class Refinement(Iterations[State]):
    """A refinement in the words of the engine."""

    def __init__(self, job: Refine3D, context: Context, *, resumes: bool) -> None:
        super().__init__(context)
        dataset = open_dataset(job.particles)
        box, pixel_size = dataset.store.box, dataset.store.pixel_size
        symmetry = symmetry_of(context.url, job) if resumes else stated_symmetry(job.symmetry, job.reference)
        facts = {"particles": f"{len(dataset.store):,} of {box} px at {pixel_size:.4g} Å", "symmetry": symmetry}
        context.progress.facts(facts)
        if resumes:  # it needs the reference no more
            origin = origin_of(context.url)
        else:
            place = check_start_map(job.reference, job.reference_pixel_size_A, job.diameter_A, box, pixel_size)
            origin = place.origin_on(box, pixel_size)
        mask = None
        if job.mask is not None:
            mask = read_mask(job.mask, box, pixel_size, context.progress, origin=origin).data
        focus = focus_of(job, mask, box, pixel_size, symmetry)
        if focus is not None:
            mask = None if mask is None else focus.map_about_pivot(mask)
            x, y, z = (pixel_size * v for v in focus.pivot)
            context.log.info("poses turn about %.4g, %.4g, %.4g Å from the middle of the box", x, y, z)
        settings = job.settings(focus.box if focus else box, pixel_size)
        without = left_out(dataset.store, job.skip_damaged)
        self.beyond_start, self.moving = False, 0.0
        self.run = Run(job, context, dataset, settings, mask, symmetry, without, focus)

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

    def iterate(self, state: State) -> IterationResult[State]:
        """Align all images, and solve for the next references."""
        step = iterate(self.run, state)
        self.beyond_start, self.moving = not self.run.not_beyond(step.after), step.result.observed.moving
        return step

    def converged(self, iterations: int) -> str:
        """Return what that means."""
        return how_it_ended(iterations, self.beyond_start, self.moving)

    def finish(self, last: IterationResult[State], wall_s: float) -> None:
        """Write poses, maps and report."""
        done = int(last.row["iteration"])
        ended = (
            self.converged(done)
            if last.after.converged
            else f"stopped after {done} iterations, before it had converged"
        )
        finish(self.run, last.result, done, f"The refinement {ended}.", wall_s)


def how_it_ended(iterations: int, beyond_start: bool, moving: float) -> str:
    """Say what it means that no further iteration is due; ``moving`` is the share of the poses that still move."""
    if not beyond_start:
        return f"stopped after {iterations} iterations: nothing is found beyond the starting map"
    if moving >= CONVERGED_MOVING:
        still = f"the resolution stands still, while {100 * moving:.0f} % of the poses still move"
        return f"stopped after {iterations} iterations: {still}"
    return f"converged after {iterations} iterations: resolution and poses no longer improve"


FAINT = 15.0
"""Median evidence of images against noise, as a logarithm, below which few of them can be placed: a pose is one of some
e^12 to e^16."""


def nothing_beyond(start: float, evidence: float) -> str:
    """Say that nothing was shown beyond the starting map, and what to look at first.

    Parameters
    ----------
    start
        Resolution to which the starting map was trusted, Å.
    evidence
        Median natural logarithm of the images' Bayes factor against noise.
    """
    said = (
        f"nothing is shown beyond the {start:.4g} Å of the starting map (--initial-resolution-A): "
        "what lies further correlates no more than noise that was aligned to it. "
    )
    if evidence < FAINT:
        return said + (
            f"The images are too faint to be placed one by one, or show something else: half of them tell the map from "
            f"noise by less than e^{evidence:.0f}. More images, less binning or a better starting map may help; check "
            "--diameter-A, too"
        )
    return said + (
        "Check starting map, --diameter-A and --symmetry; if the start was already as good as the data, use a coarser "
        "--initial-resolution-A"
    )


def finish(run: Run, outcome: Outcome, iteration: int, ended: str, wall: float) -> None:
    """Write poses, maps and report.

    Parameters
    ----------
    run, outcome, iteration
        The run, what its last iteration left, and the number of that.
    ended
        Why it was the last, as a sentence.
    wall
        Seconds that the run took.
    """
    s, checkpoint = run.settings, outcome.checkpoint
    poses = checkpoint.poses()
    best = best_of(poses.images)
    kept = poses.images[best]
    # of the halves one after the other, in the order of the store
    half_order = np.argsort(np.concatenate([kept[checkpoint.half_set[kept] == half] for half in (1, 2)]))
    rotations, shifts = (np.concatenate(parts)[half_order] for parts in zip(*outcome.inserted, strict=True))
    if run.focus is not None:
        axes = run.dataset.aberrations.axes(rotations, run.dataset.optics_group[kept])
        shifts = run.focus.undone(axes, shifts, run.dataset.focused(kept, run.focus).corners)
    rot, tilt, psi = matrix_to_euler(rotations)
    judgement = outcome.judgement
    refined = kept_rows(run.dataset.particles, checkpoint.half_set).with_columns(
        rot=rot,
        tilt=tilt,
        psi=psi,
        shift_x=shifts[:, 0] * s.pixel_size,
        shift_y=shifts[:, 1] * s.pixel_size,
        half_set=checkpoint.half_set[kept],
        intensity_scale=checkpoint.scale[kept],
        weight=checkpoint.pose_weights[best],
        keep=judgement.keep[kept],
        noise_evidence=judgement.noise_evidence[kept],
        other_evidence=judgement.other_evidence[kept],
    )
    start = run.not_beyond(outcome.after)
    if start:
        run.context.progress.warning(nothing_beyond(start, float(np.median(judgement.noise_evidence[kept]))))
    source = START
    if not start and contradicted(run, outcome, max(outcome.after.best, s.first_limit)):
        start, source = run.job.start_resolution, DOUBTED
    elif sentence := advice(judgement, checkpoint.half_set):  # what a wrong group does to images says nothing of them
        run.context.progress.warning(sentence)
    maps, fetch = outcome.maps, run.executor.fetch
    assert maps is not None and maps.whole is not None  # noqa: S101, PT018 - the last iteration has them
    halves = np.stack([fetch(half) for half in maps.halves])
    mask, whole = np.maximum(*(fetch(mask) for mask in maps.masks)), fetch(maps.whole)
    # a part that moves changes its size as its motion is followed
    if not start and run.focus is None and (sentence := size_in_doubt(run, halves)):
        run.context.progress.warning(sentence)
    held_out, last = last_answers(run.url, outcome.held_out, iteration), s.box // 2 - 1
    if run.focus is not None:  # the result lies where the reference did
        box = run.dataset.store.box
        halves = np.stack([run.focus.map_undone(half, box) for half in halves])
        mask, whole = run.focus.map_undone(mask, box), run.focus.map_undone(whole, box)
        held_out, last = by_shell_undone(held_out, box), last * box // s.box
    write_maps(
        run.context, halves, whole, mask, last, s.pixel_size,
        run.symmetry, run.job.seed, wall, refined, run.dataset.store, run.job.report, origin_of(run.url), start,
        source, held_out, [ended],
    )  # fmt: skip


def symmetry_of(url: str, job: Refine3D) -> str:
    """Return the point group that a refinement began with; that of an earlier version is what its job says."""
    return str((read_attributes(url, "") or {}).get("symmetry") or job.symmetry)


def origin_of(url: str) -> Vector:
    """Return the origin of the reference that a refinement began with, Å along x, y, z."""
    x, y, z = (read_attributes(url, "") or {}).get("origin_A", NOWHERE)
    return float(x), float(y), float(z)
