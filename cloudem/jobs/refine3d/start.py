"""How ``cloudem refine3d`` begins: with half-sets, noise, and the reference on the images' scale, as a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.axes import AGREES, find_axes, turned
from cloudem.algorithms.magnification import coarse, magnification
from cloudem.algorithms.noise import noise_variance
from cloudem.algorithms.refinement import State, first_state, iteration_plan
from cloudem.algorithms.resolution import low_pass
from cloudem.algorithms.view_density import grid
from cloudem.errors import InconsistentDataError
from cloudem.io.formats.mrc import Vector
from cloudem.io.storage.groups import has_group, holds_arrays, read_group
from cloudem.jobs.halves import Drawing, half_sets
from cloudem.jobs.iterative import clear, commit, drop_unnamed, source_of
from cloudem.jobs.maps import fitted, read_start_map, result_map
from cloudem.jobs.provenance import job_record
from cloudem.jobs.refine3d.focusing import FIRST_TURN
from cloudem.jobs.refine3d.iteration import Float32, Run, share
from cloudem.jobs.refine3d.poses import no_poses, table_poses
from cloudem.jobs.refine3d.solving import MASK
from cloudem.jobs.refine3d.tasks import (
    REFERENCES,
    Checkpoint,
    contrast_of_group,
    counter,
    power_of_group,
    read_checkpoint,
    tasks,
)
from cloudem.model.poses import angle_between
from cloudem.traffic import purpose

START_MAP = "start"
"""Group of the starting map as it was given, coarse."""

CONTRAST_SAMPLE = 150
"""Images of each half-set from which scale and contrast of the reference are judged."""


def begin(run: Run) -> State:
    """Make the first checkpoint: half-sets, noise from the images' power, the reference on the images' scale."""
    job, s, progress = run.job, run.settings, run.context.progress
    box = run.dataset.store.box
    reference = read_start_map(job.reference, job.reference_pixel_size_A, job.diameter_A, box, s.pixel_size, progress)
    data = on_axes(run, reference.data)
    if run.focus is None:
        halves_of_start = [data, data]
    else:
        halves_of_start = [run.focus.map_about_pivot(half) for half in own_starts(run, data)]
        data = run.focus.map_about_pivot(data)
    densities = [low_passed_start(run, half) for half in halves_of_start]
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
        shift_variance=np.full(2, (run.focus and run.focus.shift_variance) or s.shift_range**2),
        turn_variance=np.full(2, (run.focus and run.focus.turn_variance) or FIRST_TURN),
        half_set=halves,
        scale=np.ones(len(halves)),
        settled=np.zeros(len(halves), bool),
        view_gradient=np.zeros((2, *grid().shape), np.float16),
        keep=np.ones(len(halves)),
        **start_poses_of(run),
    )
    clear(run.context, job)  # only now that the input is known to be good
    write_record(run, reference.origin)
    if run.mask is not None:
        run.context.write(MASK, {"mask": run.mask}, {})
    run.context.write(START_MAP, {"map": coarse(data)}, {})
    # without a state nothing resumes from it: contrast and scale are still to come
    save(run, start, None, first_references(run, densities, (1.0, 1.0)))
    save(run, start, state, first_references(run, densities, reference_scales(run, state)))
    return state


def start_poses_of(run: Run) -> dict[str, Any]:
    """Return the poses with which images begin, as the pose arrays of a checkpoint: with a focus, about its pivot."""
    if not run.job.local:
        return no_poses()
    known = table_poses(run.dataset.particles, run.settings.pixel_size)
    if run.focus is not None:
        known["pose_shifts"] = run.dataset.focused(known["pose_images"], run.focus).shifts
    return known


def own_starts(run: Run, whole: Float32) -> list[Float32]:
    """Return the map that each half-set begins with: its own half-map where the reference has those of the same images.

    A common start is filtered, so that the half-sets share nothing finer. In a part of a map that holds little else
    than noise they would share that, and images would be turned towards it in both.
    """
    job, s = run.job, run.settings
    where = (run.dataset.store.box, s.pixel_size, run.context.progress)
    names = "half1", "half2"
    if job.new_halves or job.reference_pixel_size_A is not None or not holds_arrays(job.reference, "result", *names):
        return [whole, whole]
    return [fitted(result_map(job.reference, name), "reference", *where) for name in names]


def low_passed_start(run: Run, density: Float32) -> Float32:
    """Return a start map up to the resolution to which it is trusted, within the particle's sphere and a local mask."""
    start = low_pass(density, run.settings.pixel_size, run.job.start_resolution) * run.masking(estimate=False).sphere
    return start * run.mask if run.focus is not None and run.mask is not None else start


def on_axes(run: Run, data: Float32) -> Float32:
    """Return the start map with its axes where the point group has them; say so where they were not, or are nowhere."""
    if len(run.group) == 1:
        return data
    job, progress = run.job, run.context.progress
    with progress.stage("axes"):
        axes = find_axes(data, run.group, run.settings.radius)
    degrees = float(np.degrees(angle_between(axes.turn, np.eye(3))))
    found = f"it correlates by {axes.before:.2f} with its copies turned about the axes of {run.symmetry}"
    if axes.after > axes.before and not job.local:  # poses that are known hold for the map as it is
        progress.warning(
            f"the starting map was turned by {degrees:.0f}° onto the axes of {run.symmetry}: {found} as given, and by "
            f"{axes.after:.2f} turned; the result lies as it is now"
        )
        return turned(data, axes.turn)
    if axes.after > axes.before:
        progress.warning(
            f"the starting map has its axes {degrees:.0f}° away: {found}, and by {axes.after:.2f} if it were turned; "
            "check whether the poses of --local hold for these axes"
        )
    elif axes.before < AGREES:
        progress.warning(
            f"the starting map does not have the symmetry {run.symmetry} in any orientation: {found}; compare the "
            "result with that of C1"
        )
    return data


def size_in_doubt(run: Run, halves: Float32) -> str:
    """Return that the result has another size than the starting map, as a sentence; "" where it has not.

    Parameters
    ----------
    run
        Of this refinement.
    halves
        Its unfiltered half-maps, (2, n, n, n).
    """
    if not has_group(run.url, START_MAP):  # a checkpoint of an earlier version
        return ""
    arrays, _ = read_group(run.url, START_MAP)
    found = magnification(halves, arrays["map"], run.settings.radius)
    run.context.log.debug("size against the starting map: %s", found)
    if not found.differs:
        return ""
    return (
        f"the map is {abs(found.factor - 1):.1%} {'larger' if found.factor > 1 else 'smaller'} than the starting map "
        f"(they correlate by {found.agreement:.2f} with that mended, and by {found.as_given:.2f} without): the pixel "
        "size of the particles or that of the starting map is probably wrong. If it is that of the particles, the "
        "resolution is wrong by as much"
    )


def first_references(run: Run, densities: Sequence[Float32], factors: Iterable[float]) -> list[str]:
    """Write each half-set's start map, times a factor, as its reference; return the names of the groups."""
    names = {f"000-{half}-{factor:g}": np.float32(factor) for half, factor in enumerate(factors, start=1)}
    for density, (name, factor) in zip(densities, names.items(), strict=True):
        with purpose("reference"):
            owned = np.zeros(len(density) // 2 + 1)  # no image has a part in it
            run.context.write(f"{REFERENCES}/{name}", {"map": density * factor, "own_share": owned}, {})
    return list(names)


def save(run: Run, checkpoint: Checkpoint, state: State | None, references: Sequence[str]) -> None:
    """Commit a checkpoint with the state, None if no iteration can begin with it yet; drop older references."""
    attributes = {REFERENCES: list(references)}
    commit(run.context, state, checkpoint.arrays(), attributes)
    drop_unnamed(run.job, run.context, attributes)


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


def write_record(run: Run, origin: Vector) -> None:
    """Write what is done here, of what, and where its maps lie."""
    source = source_of(run.job.particles)
    kept = {"kind": "result", "source": source, "origin_A": origin, "symmetry": run.symmetry}
    run.context.write("", {}, {**kept, **job_record(run.job)})
