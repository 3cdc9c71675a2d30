"""The run of ``cloudem refine_ctf``: rebuild the maps, compare, fit; again while there is something to gain.

Half-sets never mix: images are fitted to the map of their own, whose filter and limit are set by the FSC. What they
share are the few parameters of micrographs and optics groups, to which images of both halves contribute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import by_direction
from cloudem.algorithms.bricks import unpack_reference
from cloudem.algorithms.ctf_refinement import (
    FIRST,
    covariance,
    group_step,
    judge_aberrations,
    looked_ahead,
    prior_precision,
    shortened_step,
    without,
)
from cloudem.algorithms.joint_fit import Fitted, mean_defocus
from cloudem.algorithms.noise import noise_variance
from cloudem.algorithms.phase_sums import PhaseSums, model_gain, phase_pictures
from cloudem.algorithms.resolution import masked_fsc
from cloudem.algorithms.significance import independent_voxels, significant_shell
from cloudem.execution.executor import itself
from cloudem.execution.task_names import labelled
from cloudem.io.formats.mrc import Vector, Volume
from cloudem.io.storage.groups import holds_arrays, read_attributes
from cloudem.io.storage.location import contents
from cloudem.jobs.base import Context
from cloudem.jobs.dataset import open_for_tasks
from cloudem.jobs.iterative import IterationResult, Iterations, PlainState, clear, source_of
from cloudem.jobs.maps import read_mask
from cloudem.jobs.provenance import job_record
from cloudem.jobs.reconstruct.run import solve_halves_and_whole, solvent_mask
from cloudem.jobs.refine3d.tasks import counter, fold_of, insert_group, tasks
from cloudem.jobs.refine_ctf.job import RefineCtf
from cloudem.jobs.refine_ctf.output import aberration_arrays, sentences
from cloudem.jobs.refine_ctf.state import CtfRun, Fit, FitMaps, fit_of, fit_record, opened, start_fit, table_after
from cloudem.jobs.refine_ctf.tasks import (
    FitView,
    GroupRows,
    fold_of_comparison,
    fold_of_pass,
    reference_to_fit,
)
from cloudem.jobs.results import within, write_maps, write_particles_of
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.slices import padded_box
from cloudem.model.optics import OpticsGroup
from cloudem.model.symmetry import operators

Float64 = NDArray[np.float64]

LEAST_SHELL = 6
"""Where half-maps agree on fewer shells, no aberration shows, and nothing is fitted."""

MOST_PASSES, STEPS = 8, 3
"""Passes of an iteration, and steps of each image in one."""

CONVERGED, SHARE = 0.05, 0.01
"""A pass is the last where the next step of each optics group promises no more log-likelihood than this, or than this
share of what its iteration gained: the former would move aberrations by a third of their standard errors at most."""

JITTER = 0.3
"""By how much minus the log-likelihood of n images may rise, times the root of n, before a step is taken back: slices
jump by some thousandths where a window reaches the next voxels."""

NOISE_STRIDE, MANY = 4, 1000
"""Every how many-th image the noise is measured on, where that leaves so many."""

LEAST_FSC = 0.1
"""Least weight of a shell that is fitted."""

MOST_MAGNIFICATION = 0.06
"""By how much M may come to differ from what the table says: the maps are made ready for slices that reach further by
twice that."""

ENOUGH = 0.3
"""Where the limit no longer rises, an iteration is the last that moves no aberration by more standard errors."""

LEAST_SPREAD, MOST_SPREAD = 10.0, 1000.0
"""Å: what the spread of the defocus about its micrograph's mean is kept between."""


class CtfRefinement(Iterations[PlainState]):
    """A CTF refinement in the words of the engine: each iteration rebuilds the maps and fits to them."""

    def __init__(self, job: RefineCtf, context: Context) -> None:
        super().__init__(context)
        self.run = opened(job, context)

    def begin(self) -> PlainState:
        """Commit what the table says."""
        job, state = self.run.job, PlainState(values={"limit": 0})
        fit = start_fit(self.run)
        clear(self.context, job)
        self.context.write("", {}, {"kind": "result", "source": source_of(job.particles), **job_record(job)})
        self.commit(state, *fit_record(fit, None))
        return state

    def state(self, record: Mapping[str, Any]) -> PlainState:
        """Return the state that was recorded."""
        state = PlainState(**record)
        return replace(state, finished=state.converged or state.iteration > self.run.job.max_iterations)

    def iterate(self, state: PlainState) -> IterationResult[PlainState]:
        """Rebuild the maps, and fit to them; judge aberrations if that was the last time."""
        run, most = self.run, self.run.job.max_iterations
        fit, mask = fit_of(*self.checkpoint(), run.pixel_size)
        maps = rebuilt(run, fit, mask)
        resolution = run.box * run.pixel_size / max(maps.limit, 1)
        row = {"iteration": state.iteration, "resolution_A": resolution, "limit_A": resolution}
        if maps.limit < LEAST_SHELL:
            self.context.progress.warning(
                f"the half-maps agree to {resolution:.1f} Å only, where no aberration shows: nothing was fitted"
            )
            fit = start_fit(run)
            row |= {"passes": 0, "gain": 0.0, "spread_A": fit.spread}
            after = state.following(converged=True, most=most)
            return IterationResult(after, row, {}, result=Fitting(fit, maps.mask, 0, None))
        last = fit.change.copy()
        compared(run, fit, maps, NOISE_STRIDE if len(run.kept) >= NOISE_STRIDE * MANY else 1)
        passes, gain = fit_aberrations(run, fit, maps)
        ahead = look_ahead(run, fit, maps, last)
        converged = maps.limit <= int(state.values["limit"]) and moved_most(fit, ahead) < ENOUGH
        values = {"limit": maps.limit}
        after = state.following(converged=converged, most=most, values=values)
        arrays, attributes = fit_record(replace(fit, change=last + ahead), maps.mask)
        onward = None if converged else replace(state, iteration=state.iteration + 1, values=values)
        result = None
        if after.finished:
            passes += believe(run, fit, maps, gain)
            result = Fitting(fit, maps.mask, maps.limit, compared(run, fit, maps))
        row |= {"passes": passes, "gain": gain / max(run.weight.sum(), 1.0), "spread_A": fit.spread}
        return IterationResult(after, row, arrays, attributes, onward=onward, result=result)

    def finish(self, last: IterationResult[PlainState], wall_s: float) -> None:
        """Rebuild the maps once more, and write the result."""
        fitting: Fitting = last.result
        maps = rebuilt(self.run, fitting.fit, fitting.mask)
        write_refined_ctf(self.run, fitting.fit, maps, fitting.limit, fitting.sums, wall_s)


class Fitting(NamedTuple):
    """What the last iteration found: parameters, the mask, the limit, and what images say pixel by pixel."""

    fit: Fit
    mask: Volume
    limit: int
    sums: PhaseSums | None


def moved_most(fit: Fit, moved: Float64) -> float:
    """Return by how many standard errors the aberrations moved at most."""
    most = [
        np.abs(move[free]) / np.sqrt(np.diag(covariance(precision, free)))[free]
        for move, precision, free in zip(moved, fit.precision, fit.free, strict=True)
    ]
    return float(max(np.concatenate(most), default=0.0))


def look_ahead(run: CtfRun, fit: Fit, maps: FitMaps, last: Float64) -> Float64:
    """Return how far aberrations have to move from where they were when the maps were made, (g, 14).

    Keeps what is known of each defocus, and how they spread, once the map is as unknown as they are.
    """
    felt, fit.variance = weighed(run, fit, maps, 1)
    out = np.zeros_like(fit.change)
    for g in range(len(out)):
        ahead = looked_ahead(fit.change[g] - last[g], fit.precision[g], felt[g], fit.free[g])
        out[g] = shortened_step(ahead, maps.limit / (run.box * run.pixel_size))
    away = fit.fitted.defocus - mean_defocus(fit.fitted.defocus, run.micrograph, fit.spread)[run.micrograph]
    spread = np.sqrt(np.average(away**2 + fit.variance, weights=np.maximum(run.weight, 1e-9)))
    fit.spread = float(np.clip(spread, LEAST_SPREAD, MOST_SPREAD))
    return out


def weighed(run: CtfRun, fit: Fit, maps: FitMaps, times: int) -> tuple[Float64, Float64]:
    """Return matrices of aberrations (g, 14, 14) and variances of the defocus, shells weighted by their FSC again.

    Once is by how much a fit follows what is not in the map yet. Twice is what is known of aberrations: the noise of
    all images is in the map, and aberrations fit it to that of each.
    """
    assert fit.sigma2 is not None  # noqa: S101 - images have been compared
    sums, _, variance = one_pass(run, replace(fit, sigma2=fit.sigma2 / weights_of_shells(maps) ** times), maps, steps=0)
    columns = run.job.freedom.group - FIRST
    out = np.zeros_like(fit.precision)
    out[:, columns[:, None], columns] = sums.matrix
    return out, variance


def rebuilt(run: CtfRun, fit: Fit, mask: Volume | None) -> FitMaps:
    """Insert all images as they were fitted, solve for both half-maps and the map, and make them ready to fit to."""
    job, executor, box = run.job, run.executor, run.box
    table = table_after(run, fit)
    write_particles_of(run.context, table, run.dataset.store)
    with labelled(step="open"):
        data = executor.spread(open_for_tasks, run.context.url, local=itself)
    k_max = box // 2 - 1
    items = tasks(run.half, job.group_size, order=by_direction(fit.fitted.rotations))
    with run.context.progress.stage("insert", len(table)) as stage:
        fold = fold_of(partial(insert_group, k_max=k_max, symmetry=run.symmetry))
        bricks, _ = executor.accumulate(fold, items, shared=lambda item: [data], on_done=counter(stage, items))
    with run.context.progress.stage("solve"):
        halves, whole, sums, slices = solve_halves_and_whole(executor, bricks, run.half, box, k_max, run.symmetry)
        mask = mask or mask_of(run, whole)
        curves = within(masked_fsc(halves[0], halves[1], mask.data, job.seed), k_max)
        voxels = independent_voxels(box, curves.fraction, len(operators(run.symmetry)))
        limit = min(int(significant_shell(curves.corrected, voxels)), k_max)
        if job.max_resolution_A:
            limit = min(limit, int(box * run.pixel_size / job.max_resolution_A))
        maps = FitMaps(halves, whole, mask, curves, limit)
        if limit >= LEAST_SHELL:
            reach = shells_reached(limit, [run.table.optics[number] for number in np.unique(run.group)])
            unpack = partial(unpack_reference, k_max=reach, padding=padded_box(box) / box)
            maps.volumes = [
                executor.spread(
                    reference_to_fit, sums[i], mask.data, reach, limit, slices[i], local=unpack, purpose="reference"
                )
                for i in (0, 1)
            ]  # fmt: skip
    return maps


def shells_reached(limit: int, optics: Sequence[OpticsGroup]) -> int:
    """Return the last shell of the map that images up to a shell may show, whatever is added to their M."""
    stretch = max(float(np.linalg.norm(group.magnification, 2)) for group in optics)
    return int(np.ceil((limit + 0.5) * (max(stretch, 1.0) + 2 * MOST_MAGNIFICATION)))


def mask_of(run: CtfRun, whole: NDArray[np.float32]) -> Volume:
    """Return the mask: the user's, that of the results that hold the particles, or one found in the map."""
    job, place = run.job, run.job.mask
    if place is None and holds_arrays(job.particles, "result", "mask"):
        place = job.particles
    if place is None:
        return solvent_mask(job, run.context, whole, run.pixel_size)  # type: ignore[arg-type]  # it has a diameter, too
    return read_mask(place, run.box, run.pixel_size, run.context.progress)


def compared(run: CtfRun, fit: Fit, maps: FitMaps, stride: int = 1) -> PhaseSums:
    """Compare all images, or some, with the maps; set noise and gain, and return what they say pixel by pixel."""
    view = pass_view(run, replace(fit, gain=None), maps)
    _, items = run.items(fit)
    with run.context.progress.stage("compare", len(run.kept)) as stage:
        sums, _ = run.executor.accumulate(
            fold_of_comparison(view, stride), items, shared=lambda item: [run.data, *maps.volumes],
            on_done=lambda number: stage.advance(len(items[number].indices)),
        )  # fmt: skip
        found = [run.executor.fetch(sums[h]) for h in (1, 2)]
    fit.sigma2 = np.array([noise_variance(part.residual, part.images, run.box) for part in found])
    fit.gain = np.array([model_gain(part.match) for part in found])
    run.context.log.debug("gain %s", np.array2string(fit.gain[:, : maps.limit + 1], precision=3))
    return found[0].plus(found[1])


def weights_of_shells(maps: FitMaps) -> Float64:
    """Return the weight of each shell, its FSC; see `cloudem.algorithms.ctf_refinement.looked_ahead`."""
    return np.clip(np.nan_to_num(maps.curves.corrected), LEAST_FSC, 1.0)


def pass_view(run: CtfRun, fit: Fit, maps: FitMaps) -> FitView:
    """Return what stays the same in a pass."""
    sigma2 = None if fit.sigma2 is None else fit.sigma2 / weights_of_shells(maps)
    gain = np.ones((2, run.box // 2 + 1)) if fit.gain is None else fit.gain
    return FitView(maps.limit, sigma2, gain, fit.change.copy(), fit.spread, run.job.freedom, STEPS)


def one_pass(run: CtfRun, fit: Fit, maps: FitMaps, steps: int = STEPS) -> tuple[GroupRows, Fitted, Float64]:
    """Fit all images with aberrations as they are; return sums, parameters and variances of the defocus."""
    rows, items = run.items(fit)
    with run.context.progress.stage("fit", len(run.kept)) as stage:
        fold = fold_of_pass(pass_view(run, fit, maps)._replace(steps=steps))
        sums, notes = run.executor.accumulate(
            fold, items, shared=lambda item: [run.data, *maps.volumes],
            on_done=lambda number: stage.advance(len(items[number].indices)),
        )  # fmt: skip
        found = with_prior(run, fit, run.executor.fetch(sums[0]))
    back = np.argsort(np.concatenate(rows))
    parts = [note.fitted for note in notes]
    fitted = Fitted(
        *(np.concatenate([getattr(part, name) for part in parts])[back] for name in Fitted.__dataclass_fields__)
    )
    return found, fitted, np.concatenate([note.variance for note in notes])[back]


def with_prior(run: CtfRun, fit: Fit, sums: GroupRows) -> GroupRows:
    """Return the sums of a pass with what is known of aberrations without images."""
    columns = run.job.freedom.group - FIRST
    prior = np.array([prior_precision(group)[columns] for group in run.table.optics])
    change = fit.change[:, columns]
    return sums._replace(
        matrix=sums.matrix + prior[:, :, None] * np.eye(len(columns)),
        gradient=sums.gradient - prior * change,
        cost=sums.cost + np.sum(prior * change**2, axis=1) / 2,
    )


def fit_aberrations(run: CtfRun, fit: Fit, maps: FitMaps, gained: float = 0.0) -> tuple[int, float]:
    """Fit until little is to be gained; return the number of passes, and what was gained, ``gained`` before it.

    Of each optics group on its own: a step of its aberrations that made its images fit worse is halved, and so are all
    that follow; these are halved, too, where a step promises more than the one before, since that one went too far.
    """
    limit = maps.limit / (run.box * run.pixel_size)
    columns = run.job.freedom.group - FIRST
    groups = len(fit.change)
    best, first = np.full(groups, np.inf), np.zeros(groups)
    good = fit.change.copy()
    steps = np.zeros_like(fit.change)
    trust, promises = np.ones(groups), np.full(groups, np.inf)
    number = 0
    for number in range(1, MOST_PASSES + 1):
        sums, parameters, _ = one_pass(run, fit, maps)
        if number == 1:
            first = sums.cost
        worse = sums.cost > best + JITTER * np.sqrt(sums.weight)
        accepted = ~worse[run.group]
        fit.fitted = fit.fitted.put(accepted, parameters)
        promised = 0.0
        for g in range(groups):
            if worse[g]:
                steps[g] /= 2
                trust[g] /= 2
            else:
                good[g], best[g] = fit.change[g], sums.cost[g]
                fit.precision[g] = 0
                fit.precision[g][np.ix_(columns, columns)] = sums.matrix[g]
                if fit.free[g].any():
                    step, gain = group_step(sums.matrix[g], sums.gradient[g], fit.free[g][columns])
                    promised = max(promised, gain)
                    if gain > promises[g]:
                        trust[g] /= 2
                    promises[g] = gain
                    steps[g] = 0
                    steps[g][columns] = trust[g] * step
                    steps[g] = shortened_step(steps[g], limit)
            fit.change[g] = good[g] + steps[g]
            fit.change[g, :3] = np.clip(fit.change[g, :3], -MOST_MAGNIFICATION / 2, MOST_MAGNIFICATION / 2)
        run.context.log.debug(
            "pass %d: cost %s, best %s, promised %.3f", number, np.round(sums.cost, 2), np.round(best, 2), promised
        )
        total = gained + float(np.sum(first - np.minimum(best, first)))
        if not worse.any() and promised < max(CONVERGED, SHARE * total):
            break
    else:
        fit.change = good
    run.context.log.debug("aberrations %s", np.array2string(good, precision=4))
    return number, gained + float(np.sum(first - best))


def believe(run: CtfRun, fit: Fit, maps: FitMaps, gain: float) -> int:
    """Judge what was fitted, and fit once more what is significant, with the rest as the table has it.

    Returns the number of passes. Only now, at the end: maps that were made without an aberration hold part of it, so
    that a single iteration finds too little of what is faint.
    """
    known, _ = weighed(run, fit, maps, 2)
    fit.judged = [
        judge_aberrations(change, matrix, free, run.job.significance)
        for change, matrix, free in zip(fit.change, known, fit.free, strict=True)
    ]
    believed = np.array([judged.believed for judged in fit.judged])
    dropped = fit.free & ~believed
    if not dropped.any():
        return 0
    fit.free = believed
    fit.change = np.array([without(*each) for each in zip(fit.change, known, dropped, believed, strict=True)])
    return fit_aberrations(run, fit, maps, gain)[0]


def maps_origin(run: CtfRun, mask: Volume) -> Vector:
    """Return the origin of the maps: that of the results that hold the particles, or the mask's."""
    found = read_attributes(run.job.particles, "result") if contents(run.job.particles) else None
    stated = (found or {}).get("origin_A")
    if stated is None:
        return mask.origin
    x, y, z = stated
    return float(x), float(y), float(z)


def write_refined_ctf(run: CtfRun, fit: Fit, maps: FitMaps, limit: int, sums: PhaseSums | None, wall: float) -> None:
    """Write particles, maps, aberrations and the report."""
    job, context = run.job, run.context
    table = table_after(run, fit)
    more = {"defocus_change": fit.fitted.defocus, "defocus_error": np.sqrt(fit.variance)}
    if sums is not None:
        more |= aberration_arrays(run.table.optics, fit.judged, fit.change, limit / (run.box * run.pixel_size))
        more["phases"] = phase_pictures(sums, fit.change, half_disc(run.box, limit), run.box, run.pixel_size)
        more["phases_reach_per_A"] = np.array([limit / (run.box * run.pixel_size)])
        for line in sentences(run.table.optics, fit.judged):
            context.progress.message(line)
    write_maps(
        context, maps.halves, maps.whole, maps.mask.data, run.box // 2 - 1, run.pixel_size, run.symmetry, job.seed,
        wall, table, run.dataset.store, job.report, maps_origin(run, maps.mask), more=more,
    )  # fmt: skip
