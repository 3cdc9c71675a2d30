"""What a classification by maps leaves: particles with their classes, a map of each, and how sure it is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.mask import estimate_mask, soft_sphere
from cloudem.algorithms.resolution import fsc_weight, masked_fsc, multiply_shells
from cloudem.algorithms.states import Gain, gain_of
from cloudem.errors import ParameterError
from cloudem.jobs.classify3d.tasks import HELD, Shared3D, StateCheckpoint, StateItem, insert_class, state_fold
from cloudem.jobs.dataset import groups_of, kept_rows
from cloudem.jobs.maps import soft_edge
from cloudem.jobs.refine3d.solving import unfiltered, whole_sums
from cloudem.jobs.report import run_attributes, write_report
from cloudem.jobs.results import claimed_resolution, within, write_particles_of
from cloudem.model.poses import matrix_to_euler
from cloudem.model.symmetry import operators

if TYPE_CHECKING:
    from cloudem.jobs.classify3d.run import StateClassification, StatesOutcome

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LEAST = 0.05
"""Images that belong to a class with less probability are not in its map."""

GOLD = (
    "The class of an image depends on the maps of images of both half-sets, so the resolutions of the classes rank "
    "them and are not those of a gold standard. refine3d begins anew from a selection, with half-sets that never mix."
)


def said_of(states: int, tried: int, gain: Gain) -> str:
    """Return the answer as a sentence."""
    measured = f"{gain.mean:.3f} ± {gain.error:.3f} in evidence (logarithm, mean of {gain.images:,} images held out)"
    if states == 1:
        return (
            f"one state: {tried} classes explain images that trained none of them no better than one map does, by "
            f"{measured}"
        )
    return (
        f"{states} states: images that trained none of the classes are better explained by them than by one map, by "
        f"{measured}, {gain.deviations:.0f} standard errors"
    )


class ClassSolved:
    """Half-maps of a class, its mask, the FSC, its filtered map, and the resolution, Å."""

    def __init__(self, halves: Float32, job: Any, box: int, pixel_size: float) -> None:
        mean = (halves[0] + halves[1]) / np.float32(2)
        radius = job.diameter_A / 2 / pixel_size
        try:
            self.mask = estimate_mask(mean, pixel_size, diameter=job.diameter_A)
        except ParameterError:  # nothing stands out of the noise
            self.mask = soft_sphere(box, radius, soft_edge(box, radius))
        self.halves = halves
        curves = within(masked_fsc(halves[0], halves[1], self.mask, job.seed), box // 2 - 1)
        self.fsc = curves.corrected
        self.resolution = claimed_resolution(curves, pixel_size, job.symmetry)
        self.map = multiply_shells(mean, fsc_weight(curves.corrected))


def class_maps(
    run: StateClassification, indices: NDArray[np.int64], probability: Float64, rotations: Float64, shifts: Float64,
    half_set: NDArray[np.int8],
) -> list[ClassSolved]:  # fmt: skip
    """Return the maps of all classes, each of its images with their probabilities, at their full resolution."""
    job, s, executor = run.job, run.settings, run.context.executor
    box, k_max = s.whole_box, s.whole_box // 2 - 1
    items = []
    for number in range(probability.shape[1]):
        for half in (1, 2):
            own = np.flatnonzero((probability[:, number] > LEAST) & (half_set[indices] == half))
            for some in groups_of(own, job.group_size) if len(own) else []:
                part = 2 * number + half - 1
                items.append(
                    StateItem(
                        part, part, indices[some], rotations[some], shifts[some], probability[some, number : number + 1]
                    )
                )
    add = partial(insert_class, settings=s, k_max=k_max, symmetry=job.symmetry)
    with run.context.progress.stage("average", sum(len(item.indices) for item in items)) as stage:
        bricks, _ = executor.accumulate(
            state_fold(add, 1), items, shared=lambda _: [run.data],
            on_done=lambda index: stage.advance(len(items[index].indices)),
        )  # fmt: skip
        found = []
        for number in range(probability.shape[1]):
            halves = []
            for half in (1, 2):
                key = 2 * number + half - 1, 0
                if key not in bricks:
                    halves.append(np.zeros((box,) * 3, np.float32))
                    continue
                sums = executor.share(whole_sums, bricks[key], box, k_max, job.symmetry)
                count = int(np.count_nonzero((probability[:, number] > 0.5) & (half_set[indices] == half)))
                slices = len(operators(job.symmetry)) * max(count, 1)
                halves.append(executor.fetch(executor.share(unfiltered, sums, box, k_max, slices)))
            found.append(ClassSolved(np.stack(halves), job, box, s.length / box))
    return found


def write_states(run: StateClassification, outcome: StatesOutcome, wall_s: float) -> None:
    """Write particles, maps, evidence and report: the largest class first."""
    context, job, s, checkpoint = run.context, run.job, run.settings, outcome.checkpoint
    posed = np.flatnonzero(checkpoint.half_set > 0)
    if outcome.found is None:  # one state: particles keep the poses that they came with
        ones = np.ones((len(posed), 1))
        found = Shared3D(
            posed, ones, ones, ones[:, 0], checkpoint.rotations[posed], checkpoint.shifts[posed]
        )  # fmt: skip
    else:
        found = outcome.found
    order = np.argsort(-found.probability.sum(axis=0), kind="stable")
    probability = found.probability[:, order]
    share = probability.mean(axis=0)
    maps = class_maps(run, found.indices, probability, found.rotations, found.shifts, checkpoint.half_set)
    number = probability.argmax(axis=1)
    columns: dict[str, NDArray[Any]] = {
        "half_set": checkpoint.half_set[found.indices],
        "class_number": number + 1,
        "class_probability": probability.max(axis=1),
    }
    if outcome.found is not None:
        rot, tilt, psi = matrix_to_euler(found.rotations)
        x, y = found.shifts.T * s.pixel_size
        columns |= {"rot": rot, "tilt": tilt, "psi": psi, "shift_x": x, "shift_y": y}
    particles = kept_rows(run.dataset.particles, checkpoint.half_set).with_columns(**columns)
    write_particles_of(context, particles, run.dataset.store)
    states, gain = len(order), known_gain(checkpoint)
    sentence = said_of(states, outcome.classes_tried, gain)
    arrays = {
        "class_maps": np.stack([each.map for each in maps]),
        "class_half1": np.stack([each.halves[0] for each in maps]),
        "class_half2": np.stack([each.halves[1] for each in maps]),
        "class_masks": np.stack([each.mask for each in maps]),
        "class_fsc": np.stack([each.fsc for each in maps]),
        "class_members": np.bincount(number, minlength=states).astype(np.int64),
        "class_share": share,
        "class_resolution_A": np.array([each.resolution for each in maps]),
        "class_posterior": probability,
    }
    if states > 1:
        arrays["class_differences"] = checkpoint.maps[HELD][order]
    attributes = {
        "box": s.whole_box,
        "pixel_size_A": s.length / s.whole_box,
        "difference_pixel_size_A": s.pixel_size,
        "diameter_A": job.diameter_A,
        "symmetry": job.symmetry,
        "states": states,
        "gain": gain.mean,
        "gain_error": gain.error,
        "held_out": gain.images,
        "answer": sentence,
        "wall_s": wall_s,
        "cpu_s": sum(timing.cpu_s for timing in context.progress.timings()),
        "particle_count": len(particles),
        "notes": [f"{sentence[0].upper()}{sentence[1:]}.", GOLD],
        **run_attributes(context.progress, context.executor.traffic()),
    }
    context.write("result", arrays, attributes)
    context.progress.message(sentence)
    for place, each in enumerate(maps):
        context.progress.message(
            f"class {place + 1}: {arrays['class_members'][place]:,} particles, {100 * share[place]:.1f} %, "
            f"{each.resolution:.2f} Å"
        )
    if job.report:
        context.progress.message(f"report: {write_report(context.url)}")


def known_gain(checkpoint: StateCheckpoint) -> Gain:
    """Return the gain of the images that were held out, as it was when the number of states was decided on."""
    return gain_of(checkpoint.evidence[np.isfinite(checkpoint.evidence)])
